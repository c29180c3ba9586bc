// Shows the numbers of the token that the pointer or the keyboard is at. All text of the model goes through textContent.
"use strict";
(() => {
  const read = (element) => JSON.parse(element.textContent);
  const main = document.querySelector("main");
  const card = document.querySelector("aside");
  const names = read(document.querySelector("script.names"));
  const terms = read(document.querySelector("script.terms"));
  const blocks = [...document.querySelectorAll("script.numbers")];
  const tokens = [...main.querySelectorAll("span:not(.plain)")];
  const numbers = [];
  const index = new Map(tokens.map((token, number) => [token, number]));
  const STRONG = 5;
  let now = null; // the token that is shown
  let stop = tokens[0]; // where Tab enters the text

  const record = (number) => {
    const block = Math.floor(number / terms.block);
    numbers[block] ??= read(blocks[block]);
    return numbers[block][number % terms.block];
  };

  const make = (tag, text, ...children) => {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    element.append(...children);
    return element;
  };

  const percent = (prob) => {
    if (prob <= 0) return "0%";
    return prob >= 0.0001 ? (100 * prob).toFixed(2) + "%" : (100 * prob).toExponential(1) + "%";
  };

  const row = (own, [name, prob, note]) => {
    const bar = make("div", null);
    bar.style.width = 100 * Math.min(1, prob) + "%";
    const line = make("tr", null, make("td", null, make("bdi", names[name][1])), make("td", null, bar), make("td", percent(prob)));
    if (note) line.append(make("td", note));
    if (name === own) line.className = "taken";
    return line;
  };

  const place = () => {
    if (!now || card.hidden) return;
    const at = now.getClientRects()[0] ?? now.getBoundingClientRect();
    const below = at.bottom + 8;
    const above = at.top - card.offsetHeight - 8;
    const lowest = Math.max(8, innerHeight - card.offsetHeight - 8);
    card.style.top = (below <= lowest || above < 0 ? Math.min(below, lowest) : above) + "px";
    card.style.left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - card.offsetWidth - 8)) + "px";
  };

  const show = (token) => {
    if (token === now && !card.hidden) return;
    now?.classList.remove("now");
    now = token;
    now.classList.add("now");
    const number = index.get(token);
    const [own, facts, lists] = record(number);
    const [id, name] = names[own];
    const list = make("dl", null);
    facts.forEach((fact, i) => list.append(make("div", null, make("dt", terms.facts[i]), make("dd", fact))));
    card.replaceChildren(make("h2", null, make("bdi", name), make("small", "token " + id)), list);
    lists.forEach((choices, i) => {
      if (choices.length) card.append(make("h3", terms.lists[i]), make("table", null, ...choices.map((choice) => row(own, choice))));
    });
    card.hidden = false;
    place();
  };

  const hide = () => {
    now?.classList.remove("now");
    now = null;
    card.hidden = true;
  };

  const go = (token) => {
    if (!token) return;
    stop.tabIndex = -1;
    stop = token;
    stop.tabIndex = 0;
    stop.focus();
  };

  // The nearest token of the line above (-1) or below (1).
  const line = (from, way) => {
    const at = from.getClientRects()[0] ?? from.getBoundingClientRect();
    let found = null, top = null, least = Infinity;
    for (let i = index.get(from) + way; i >= 0 && i < tokens.length; i += way) {
      const box = tokens[i].getClientRects()[0] ?? tokens[i].getBoundingClientRect();
      if ((box.top - at.top) * way < at.height / 2) continue;
      top ??= box.top;
      if ((box.top - top) * way > at.height / 2) break;
      const far = Math.abs(box.left - at.left);
      if (far < least) [found, least] = [tokens[i], far];
    }
    return found;
  };

  const strong = (from, way) => {
    let i = index.get(from) + way;
    while (tokens[i] && !(Number(tokens[i].className.match(/^h(\d+)/)?.[1]) >= STRONG)) i += way;
    return tokens[i];
  };

  const keys = {
    ArrowRight: (token) => tokens[index.get(token) + 1],
    ArrowLeft: (token) => tokens[index.get(token) - 1],
    ArrowDown: (token) => line(token, 1),
    ArrowUp: (token) => line(token, -1),
    Home: () => tokens[0],
    End: () => tokens[tokens.length - 1],
    n: (token) => strong(token, 1),
    p: (token) => strong(token, -1),
  };

  const under = (event) => event.target.closest?.("main span:not(.plain)");
  main.addEventListener("mouseover", (event) => { const token = under(event); if (token) show(token); });
  main.addEventListener("mouseleave", () => { if (document.activeElement === stop) show(stop); else hide(); });
  main.addEventListener("click", (event) => go(under(event)));
  main.addEventListener("focusin", (event) => { const token = under(event); if (token) show(token); });
  main.addEventListener("focusout", hide);
  main.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    go(keys[event.key](under(event)));
  });
  addEventListener("scroll", place, { passive: true });
  addEventListener("resize", place);
  if (stop) stop.tabIndex = 0;
})();

// Shows where a token looks, in the layer and head that are chosen. All text of the model goes through textContent.
"use strict";
(() => {
  const LEVELS = [0.02, 0.05, 0.1, 0.2, 0.4, 0.7]; // shares at which the next of the colours s1, s2, ... begins
  const read = (element) => JSON.parse(element.textContent);
  const find = (selector) => document.querySelector(selector);
  const terms = read(find("script.terms"));
  const blocks = [...document.querySelectorAll("script.layer")];
  const [main, shown, canvas, legend] = ["main", ".shown", "canvas", ".legend"].map(find);
  const [layers, heads] = ["select.layer", "select.head"].map(find);
  const count = terms.names.length;
  const cell = Math.max(1, Math.min(28, Math.floor(900 / count)));
  const cache = [];
  let now = count - 1; // the token that looks
  let shares = null; // of the chosen head: row by row, as far as each reaches

  const level = (share) => LEVELS.filter((least) => share >= least).length;
  const percent = (share) => (100 * share).toFixed(1) + "%";
  const at = (row, column) => shares[(row * (row + 1)) / 2 + column];

  const decode = (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / terms.one);
  };

  // The shares of one head; head -1: the mean of all.
  const load = (layer, head) => {
    const known = (cache[layer] ??= read(blocks[layer]).map(() => null));
    const one = (number) => (known[number] ??= decode(read(blocks[layer])[number]));
    if (head >= 0) return one(head);
    const sum = new Float32Array((count * (count + 1)) / 2);
    known.forEach((_, number) => one(number).forEach((share, i) => { sum[i] += share / known.length; }));
    return sum;
  };

  const option = (text, value) => {
    const element = document.createElement("option");
    element.textContent = text;
    element.value = value;
    return element;
  };

  const tokens = terms.names.map((name, number) => {
    const token = document.createElement("span");
    token.textContent = name;
    token.tabIndex = -1;
    main.append(token);
    return token;
  });

  const look = () => {
    tokens.forEach((token, number) => {
      const share = number <= now ? at(now, number) : 0;
      token.className = (number > now ? "later" : "s" + level(share)) + (number === now ? " now" : "");
      token.title = number > now ? "comes later" : percent(share);
      token.tabIndex = number === now ? 0 : -1;
    });
    const best = [...Array(now + 1).keys()].sort((a, b) => at(now, b) - at(now, a)).slice(0, 6);
    const name = document.createElement("b");
    name.textContent = terms.names[now];
    shown.replaceChildren(name, " (position " + now + ") looks at");
    best.forEach((number, i) => {
      const seen = document.createElement("b");
      seen.textContent = terms.names[number];
      shown.append(i ? ", " : " ", seen, " " + percent(at(now, number)));
    });
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const colors = [0, ...LEVELS].map((_, i) => style.getPropertyValue("--s" + i).trim());
    const pen = canvas.getContext("2d");
    pen.fillStyle = style.getPropertyValue("--page");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    for (let row = 0; row < count; row++) {
      for (let column = 0; column <= row; column++) {
        pen.fillStyle = colors[level(at(row, column))];
        pen.fillRect(column * cell, row * cell, cell, cell);
      }
    }
    pen.strokeStyle = style.getPropertyValue("--mark");
    pen.strokeRect(0.5, now * cell + 0.5, (now + 1) * cell - 1, Math.max(1, cell - 1));
    canvas.setAttribute("aria-label", "Attention of layer " + layers.value + " as a map of " + count + " by " + count + " tokens");
  };

  const choose = (number) => {
    if (!(number in tokens)) return;
    now = number;
    look();
    draw();
  };

  const pick = () => {
    const head = heads.value || String(terms.head ?? -1);
    const number = read(blocks[layers.value]).length;
    heads.replaceChildren(option("mean of all", -1), ...[...Array(number).keys()].map((i) => option(i, i)));
    heads.value = Number(head) < number ? head : -1;
    shares = load(Number(layers.value), Number(heads.value));
    look();
    draw();
  };

  // Row and column of the map under the pointer.
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width / cell;
    return [Math.floor((event.clientY - box.top) * scale), Math.floor((event.clientX - box.left) * scale)];
  };

  const index = (event) => tokens.indexOf(event.target.closest("main span"));
  const keys = { ArrowRight: () => now + 1, ArrowLeft: () => now - 1, Home: () => 0, End: () => count - 1 };
  main.addEventListener("mouseover", (event) => choose(index(event)));
  main.addEventListener("focusin", (event) => choose(index(event)));
  main.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    tokens[keys[event.key]()]?.focus();
  });
  canvas.addEventListener("click", (event) => choose(under(event)[0]));
  canvas.addEventListener("mousemove", (event) => {
    const [row, column] = under(event);
    const seen = row < count && column <= row;
    canvas.title = seen ? terms.names[row] + " looks at " + terms.names[column] + ": " + percent(at(row, column)) : "";
  });
  layers.addEventListener("change", pick);
  heads.addEventListener("change", pick);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  canvas.width = canvas.height = count * cell;
  layers.replaceChildren(...blocks.map((_, i) => option(i, i)));
  layers.value = terms.layer;
  legend.append("share of attention, from: ");
  ["0%", ...LEVELS.map((share) => Math.round(100 * share) + "%")].forEach((name, i) => {
    const entry = document.createElement("span");
    entry.className = "s" + i;
    entry.textContent = name;
    legend.append(entry, " ");
  });
  pick();
})();

"""The terminal of `llm explore`: keys become steps of a tree (llmcli/tree.py), which a thread of its own computes one after the other.

The screen is the text, the outline of what may follow, and a line of what is known. The only module that imports Textual.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Key
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import Worker, get_current_worker

from llmcli import places
from llmcli.cli import bars
from llmcli.cli.explore import save
from llmcli.cli.failures import as_llm_error
from llmcli.errors import LlmError, Stopped
from llmcli.text.escape import Escape, name
from llmcli.tree import Node, Row, Tree

KEYS = "↑↓ choose  Enter take  Bksp back  g write  e expand  s save  q quit"
BAR = 10
INDENT = 2


class Outline(Widget):
    """The rows, as many as there is room for, around the one that is chosen."""

    rows: list[Row]
    chosen = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def show(self, rows: list[Row], chosen: int) -> None:
        self.rows, self.chosen = rows, max(0, min(chosen, len(rows) - 1))
        self.refresh()

    def render(self) -> Text:
        height, width = max(1, self.size.height), max(1, self.size.width)
        first = max(0, min(self.chosen - height // 2, len(self.rows) - height))
        largest = max((row.token.prob for row in self.rows), default=1.0) or 1.0
        lines = [_line(row, width, largest, at == self.chosen) for at, row in enumerate(self.rows[first : first + height], first)]
        return Text("\n").join(lines)


class Name(Input):
    """A line for a file's name. Its keys are obeyed where they come: Textual hands them on, and letters typed fast would overtake them."""

    KEYS: ClassVar = {binding.key: binding.action for binding in Binding.make_bindings(Input.BINDINGS)}

    async def on_key(self, event: Key) -> None:
        if event.key in self.KEYS:
            event.stop()
            await self.run_action(self.KEYS[event.key])


class Explorer(App[None]):
    """Leaves `node`, the place in the tree where it was left; its return code is 130 after Ctrl-C."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #text { height: auto; max-height: 45%; padding: 0 0 1 0; scrollbar-size: 0 0; }
    Outline { height: 1fr; }
    #name { height: 1; border: none; padding: 0; display: none; }
    .line { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #keys { text-style: dim; }
    """
    # All of them before the screen's: so keys take effect in the order in which they were pressed, however fast.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(keys, action, priority=True)
        for keys, action in (
            ("up", "move(-1)"),
            ("down", "move(1)"),
            ("pageup", "move(-10)"),
            ("pagedown", "move(10)"),
            ("enter", "enter"),
            ("right", "take"),
            ("backspace,left", "parent"),
            ("home", "root"),
            ("end", "leaf"),
            ("g", "generate"),
            ("e", "expand"),
            ("s", "save"),
            ("escape", "cancel"),
            ("q", "quit"),
            ("ctrl+c", "interrupt"),
        )
    ]

    def __init__(self, tree: Tree, prompt: str, most: int, wider: int, path: Path) -> None:
        """most: tokens that `g` writes; wider: tokens that `e` adds; path: what `s` proposes."""
        super().__init__(ansi_color=True)
        self.model_tree, self.prompt, self.most, self.wider, self.path = tree, prompt, most, wider, path
        self.node = tree.root
        self._turn = threading.Lock()  # a job that was cancelled may still be in its last step when the next one begins
        self._busy = ""
        self._asking = False
        self._overwrite: Path | None = None
        self._message = ""

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="text", can_focus=False):
            yield Static(id="words", markup=False)
        yield Outline()
        yield Name(id="name", select_on_focus=False)
        yield Static(id="status", classes="line", markup=False)
        yield Static(KEYS, id="keys", classes="line", markup=False)

    def on_mount(self) -> None:
        signal.signal(signal.SIGINT, self._signalled)
        signal.signal(signal.SIGTERM, self._signalled)
        self._show()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """Signals from outside (^C is a key here) end it in order. The loop that waits for keys has to be woken by another thread."""
        threading.Thread(target=self._leave_soon, args=(128 + number,), daemon=True).start()

    def _leave_soon(self, code: int) -> None:
        with contextlib.suppress(RuntimeError):  # it is leaving already
            self.call_from_thread(self._leave, code)

    # What keys do

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """While a name is asked for, its line has the other keys."""
        return not self._asking or action in ("enter", "cancel", "interrupt")

    async def action_enter(self) -> None:
        if not self._asking:
            self.action_take()
            return
        line = self.query_one(Name)
        read = asyncio.Event()
        line.call_later(read.set)  # behind the keys that the line has still to read
        await read.wait()
        self._save_as(line.value.strip())

    def action_move(self, by: int) -> None:
        outline = self.query_one(Outline)
        outline.show(outline.rows, outline.chosen + by)
        self._say("")

    def action_take(self) -> None:
        outline = self.query_one(Outline)
        if outline.rows:
            row = outline.rows[outline.chosen]
            self._go(self.model_tree.take(row.parent, row.token))

    def action_parent(self) -> None:
        if self.node.parent is not None:
            self._go(self.node.parent, self.node)

    def action_root(self) -> None:
        self._go(self.model_tree.root)

    def action_leaf(self) -> None:
        """Along the way that was taken last."""
        node = self.node
        while node.children:
            node = list(node.children.values())[-1]
        self._go(node)

    def action_generate(self) -> None:
        self._start("writing", lambda: self.model_tree.generate(self.node, self.most), follow=True)

    def action_expand(self) -> None:
        self._start("expanding", lambda: self.model_tree.expand(self.node, self.wider), follow=False)

    def action_cancel(self) -> None:
        if self._asking:
            self._ask(False)
        elif self._busy:
            self.workers.cancel_all()
            self._busy = ""
            self._go(self.node)

    def action_save(self) -> None:
        line = self.query_one(Name)
        line.value, line.cursor_position = str(self.path), len(str(self.path))
        self._overwrite = None
        self._ask(True)

    async def action_quit(self) -> None:
        self._leave(0)

    def action_interrupt(self) -> None:
        self._leave(130)

    def _save_as(self, words: str) -> None:
        path = places.expanded(words)
        if not words:
            return
        if path.is_file() and self._overwrite != path:
            self._overwrite = path
            self._say("it is there: Enter writes over it, Esc does not")
            return
        self._ask(False)
        try:
            save(self.model_tree.record(self.prompt), path)
        except (LlmError, OSError, ValueError) as error:
            self._say(str(as_llm_error(error)))
        else:
            self.path = path
            self._say(f"saved {path}")

    # What they do it with

    def _ask(self, begin: bool) -> None:
        self._asking = begin
        line = self.query_one(Name)
        line.display = begin
        if begin:
            self.set_focus(line)
        else:
            self.set_focus(None)
        self._say("")

    def _leave(self, code: int) -> None:
        self.workers.cancel_all()
        self.model_tree.engine.stop()
        self.exit(return_code=code)

    def _go(self, node: Node, chosen: Node | None = None) -> None:
        """Makes this the place; chosen: the node of the row to choose."""
        self.node, self._message = node, ""
        if node.next is None:
            self._start("computing", lambda: _looked(self.model_tree, node), follow=False)
        else:
            self.workers.cancel_all()
            self._busy = ""
        self._show(chosen)

    def _start(self, what: str, steps: Callable[[], Iterator[Node]], follow: bool) -> None:
        """Begins a job in place of the one that runs; follow: the place moves along with its nodes."""
        self._busy = what
        self._say("")
        self.run_worker(lambda: self._work(steps, follow), thread=True, exclusive=True, exit_on_error=False)

    def _work(self, steps: Callable[[], Iterator[Node]], follow: bool) -> None:
        """In a thread of its own: the job, a turn a step."""
        worker = get_current_worker()
        try:
            with self._turn:
                todo = None if worker.is_cancelled else steps()
            while todo is not None:
                with self._turn:
                    node = None if worker.is_cancelled else next(todo, None)
                    if node is None:
                        break
                self._tell(worker, self._arrived, node if follow else None)
            with self._turn:
                if not worker.is_cancelled:
                    self.model_tree.look(self.node)
            self._tell(worker, self._done, "")
        except Stopped:
            return
        except Exception as error:
            self._tell(worker, self._done, str(as_llm_error(error)))

    def _tell(self, worker: Worker[None], what: Callable[[Any], None], value: object) -> None:
        """From a job's thread: the screen's thread does this, unless a key has ended the job meanwhile."""

        def tell() -> None:
            if not worker.is_cancelled:
                what(value)

        with contextlib.suppress(RuntimeError):  # it is leaving
            self.call_from_thread(tell)

    def _arrived(self, node: Node | None) -> None:
        self.node = node or self.node
        self._show()

    def _done(self, problem: str) -> None:
        self._busy = ""
        self._show()
        if problem:
            self._say(problem)

    # What is seen

    def _show(self, chosen: Node | None = None) -> None:
        """chosen: the node whose row is to be chosen; None: the same row as before, where it is still there."""
        filter = Escape()
        words = Text(filter.feed(self.prompt), style="dim")
        words.append(filter.feed(self.model_tree.text(self.node)) + filter.finish(), style="not dim")
        self.query_one("#words", Static).update(words)
        self.query_one("#text", VerticalScroll).scroll_end(animate=False)
        outline, rows = self.query_one(Outline), self.model_tree.rows(self.node)
        before = outline.rows[outline.chosen] if outline.rows else None

        def same(row: Row) -> bool:
            if chosen is not None:
                return row.node is chosen
            return before is not None and row.parent is before.parent and row.token.id == before.token.id

        outline.show(rows, next((at for at, row in enumerate(rows) if same(row)), 0))
        self._status()

    def _say(self, message: str) -> None:
        """A message that stays until the next key."""
        self._message = message
        self._status()

    def _status(self) -> None:
        message = self._message
        if self._asking:
            message = message or "save the tree as (.json or .html)"
        elif not message:
            node, parts = self.node, []
            depth = len(node.path())
            if self._busy:
                parts.append(f"{self._busy}… (Esc ends it)")
            elif node.end:
                parts.append("the text ends here")
            elif node.next is not None:
                parts.append(f"entropy {node.next.entropy_bits:.2f} bits")
            if depth:
                parts.append(f"{depth:,} token{'' if depth == 1 else 's'}, log-probability {node.logprob:.2f}")
            message = "  ".join([*parts, self.model_tree.engine.name])
        self.query_one("#status", Static).update(Text(name(message), no_wrap=True, overflow="ellipsis"))


def _looked(tree: Tree, node: Node) -> Iterator[Node]:
    """A job that only computes what follows a node."""
    tree.look(node)
    yield from ()


def _line(row: Row, width: int, largest: float, chosen: bool) -> Text:
    """A row of the outline. Tokens come last, so that one of unknown width, or written from right to left, disturbs nothing."""
    line = Text(no_wrap=True, overflow="ellipsis", end="")
    line.append("❯ " if chosen else "  ", style="bold")
    line.append(" " * (INDENT * min(row.depth, max(0, (width - 30) // INDENT))))
    line.append(f"{bars.percent(row.token.prob):>8} ")
    if width >= 40:
        bar = bars.bar(row.token.prob / largest, BAR)
        line.append(bar + " " * (BAR - cell_len(bar)) + " ", style="cyan")
    line.append(bars.visible(row.token.text, row.token.bytes), style="bold" if row.node is not None else "")
    for node in row.chain[:width]:
        if node.token is not None:
            line.append(name(node.token.text), style="dim")
    if row.node is not None and (row.node.end or (row.chain and row.chain[-1].end)):
        line.append(" ■", style="dim")
    line.truncate(width, overflow="ellipsis")
    if chosen:
        line.stylize("reverse")
    return line

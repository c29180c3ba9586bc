"""The help of a command, as a manual page says it: what it does, its options in sections, examples, exit codes, where more is.

A command's module gives the words: ABOUT (paragraphs), EXAMPLE (a line each, with # comments) and the help of its options.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import typer.core

from llmcli.cli.options import Common
from llmcli.errors import EXIT_CODES, UsageError


class Command(typer.core.TyperCommand):
    """A command whose help has sections, and that takes no more words than it says."""

    module: ModuleType

    def format_help(self, ctx: Any, formatter: Any) -> None:
        name = ctx.info_name
        self.format_usage(ctx, formatter)
        for paragraph in (self.help or "", *getattr(self.module, "ABOUT", "").strip().split("\n\n")):
            if paragraph:
                formatter.write_paragraph()
                with formatter.indentation():
                    formatter.write_text(" ".join(paragraph.split()))
        self.format_options(ctx, formatter)
        with formatter.section("Examples"):
            for line in self.module.EXAMPLE.strip().splitlines():
                formatter.write(f"  {line}\n")
        with formatter.section("Exit codes"):
            formatter.write_text("; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()))
        with formatter.section("More"):
            formatter.write_text(f"llm docs {name} (works offline)")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section for each class of options; what is for every command comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                flags, text = record
                text = "this help" if param.name == "help" else text
                sections.setdefault(getattr(param, "rich_help_panel", None) or Common.__doc__ or "", []).append((flags, text))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Braces around what must be given say nothing that missing brackets do not."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}", "a text of several words needs quotes", f"See {ctx.command_path} --help")
        return rest

"""The tables of options in docs/commands.md, made from the options themselves: `make docs` writes them.

python tests/helpers/commands_page.py docs/commands.md

The page has a line `<!-- options of NAME -->` for each command, and a line `<!-- end -->`. What stands
between them is replaced. The rest of the page is written by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from selfplay.cli import app

TABLE = re.compile(r"(<!-- options of (?P<name>[a-z-]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def commands() -> Mapping[str, Any]:
    """Name -> command, in the order of `selfplay --help`."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group.commands


def with_tables(page: str) -> str:
    """The page with the tables of today's options. Raises KeyError for a name that is no command."""
    known = commands()

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}{_table(known[found['name']])}{found[3]}"

    return TABLE.sub(table, page)


def _table(command: Any) -> str:
    context = typer.Context(command, info_name=command.name)
    rows = [row for param in command.get_params(context) for row in _row(param, context)]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _row(param: object, context: typer.Context) -> Iterator[str]:
    if isinstance(param, TyperArgument):
        default = "required" if param.required else "–"
        yield f"| `{_cell(param.metavar or '')}` | {default} | {_cell(param.help or '')} |"
    elif isinstance(param, TyperOption) and "--help" not in param.opts:
        spelled = [*sorted(param.opts, key=len, reverse=True), *param.secondary_opts]
        metavar = param.metavar or ""
        names = ", ".join(f"`{_cell(f'{name} {metavar}')}`" for name in spelled)
        yield f"| {names} | {_default(param, context)} | {_cell(param.help or '')} |"


def _default(param: TyperOption, context: typer.Context) -> str:
    value = param.get_default(context)
    if param.required:
        return "required"
    if value is None or value is False or value == "":
        return "–"
    return "on" if value is True else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("page", type=Path)
    chosen = options.parse_args()
    written = with_tables(chosen.page.read_text(encoding="utf-8"))
    chosen.page.write_text(written, encoding="utf-8")

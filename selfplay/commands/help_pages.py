"""How `--help` shows options: a metavar says what a value is, and a flag has none.

Typer would show the types of Python, as in `<list[str]>`. The texts themselves are in `options`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption


class Command(TyperCommand):
    """A command whose help page names values by their metavars."""

    def get_params(self, ctx: Any) -> Any:
        return without_types(super().get_params(ctx))


def without_types(params: Iterable[Any]) -> list[Any]:
    """The parameters, so that neither a flag nor the row of an argument, which begins with its name, has a
    type.
    """
    shown = list(params)
    for param in shown:
        if isinstance(param, TyperArgument):
            param.display_type_rich = _nothing  # type: ignore[method-assign]
        elif isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
    return shown


def _nothing(ctx: Any) -> str:
    return ""

"""How `--help` shows options, and what a wrong value is told: in words, without the types of Python.

A metavar says what a value is, and a flag has none. The texts themselves are in `options`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption


class Command(TyperCommand):
    """A command whose help page names values by their metavars, and which names a wrong value."""

    def get_params(self, ctx: Any) -> Any:
        return without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if errors := getattr(error.__cause__, "errors", None):  # pydantic's, which do not name the value
                from selfplay.settings.faults import needed

                error.message = needed(errors()[0]) or error.message
            raise


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

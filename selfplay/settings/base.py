"""What every section of the settings shares. A field's docstring is its entry in docs/settings.md."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Range = tuple[int, int]


class Section(BaseModel):
    """A table of the TOML file. Unknown keys are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

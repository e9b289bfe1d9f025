"""docs/settings.md, made from the docstrings of the settings: `make docs` writes it, a test compares it.

python tests/helpers/settings_page.py > docs/settings.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic.fields import FieldInfo

from selfplay import parts
from selfplay.config import RENAMED_SETTINGS, RENAMED_VALUES, Config
from selfplay.settings.base import Section
from selfplay.settings.learning import ShapeSettings
from selfplay.settings.serving import NodeSettings
from selfplay.warm_start.settings import ExecuteSettings, StageSettings, WarmStartSettings
from selfplay.warm_start.settings import ShapeSettings as WarmShapeSettings

HEAD = """\
# Settings

Every setting, its default and its meaning. `make docs` makes this page from the docstrings of the settings.

- A recipe is a TOML file with these sections: `selfplay train --config FILE`. Recipes are in `runs/recipes/`.
- One setting on the command line: `--set train.updates=6`. It may be repeated, and it wins over the file.
- `config.json` in a run's folder holds all of them as they were resolved.
- A setting marked **part** takes one of the names listed, or one's own part as `package.module:name`
  ([CONTRIBUTING.md](../CONTRIBUTING.md)).
"""
# Key -> the section that is a table inside another one.
INNER: Mapping[str, type[Section]] = {"policy.shape": ShapeSettings, "cluster.nodes": NodeSettings}
WARM_INNER: Mapping[str, type[Section]] = {
    "shape": WarmShapeSettings,
    "stages": StageSettings,
    "executed": ExecuteSettings,
}


def settings_page() -> str:
    lines = [HEAD]
    top = {name: info for name, info in Config.model_fields.items() if _section(info) is None}
    lines += ["## The run as a whole", "", *_table("", top)]
    for name, info in Config.model_fields.items():
        section = _section(info)
        if section is not None:
            lines += _part(f"## [{name}]", name, section)
    lines += ["## Tables inside a section", ""]
    for key, section in INNER.items():
        lines += _part(f"### {key}", key, section)
    lines += ["## Warm start", "", "For `selfplay warm-start --config FILE --set key=value`.", ""]
    lines += _table("", WarmStartSettings.model_fields)
    for key, section in WARM_INNER.items():
        lines += _part(f"### {key}", key, section)
    lines += ["## Names until version 0.1", "", "They work for one more release.", ""]
    lines += ["| old | now |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in RENAMED_SETTINGS.items()]
    lines += [f'| `{key} = "{old}"` | `{key} = "{new}"` |' for (key, old), new in RENAMED_VALUES.items()]
    return "\n".join(lines) + "\n"


def _part(title: str, key: str, section: type[Section]) -> Iterator[str]:
    yield from (title, "", _text(section.__doc__ or ""), "")
    yield from _table(key, section.model_fields)


def _section(info: FieldInfo) -> type[Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _table(section: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield from ("| setting | default | meaning |", "|---|---|---|")
    for name, info in fields.items():
        key = f"{section}.{name}" if section else name
        yield f"| `{name}` | {_default(info)} | {_text(info.description or '')}{_names(key)} |"
    yield ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Section):
        return "a table, see below"
    if isinstance(value, tuple) and (len(value) > 8 or any(isinstance(one, Section) for one in value)):
        return f"{len(value)} entries"
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {weight}" for key, weight in value.items())
        return f"`{{ {inner} }}`"
    return "none" if value is None else f"`{value}`"


def _names(key: str) -> str:
    if key not in parts.PARTS:
        return ""
    return f" **part**: {', '.join(f'`{name}`' for name in parts.names_of(key))}."


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(settings_page(), end="")

"""Says in words what is wrong with settings: the key, what it needs, what it got, and what may be meant.

pydantic finds the faults. Invariant: each text names the key and its value, or the names that there are.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from selfplay.settings.base import Section

Location = Sequence[str | int]
UNKNOWN = "unknown setting."
MAX_VALUE = 100  # characters of a wrong value that are shown
# Kind of fault, as pydantic calls it -> what the setting needs. {…}: the bound.
NEEDS: Mapping[str, str] = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
}


def explain(
    error: ValidationError, model: type[Section], source: str, overridden: Collection[str] = ()
) -> str:
    """A paragraph for each source with its wrong keys.

    source: the file, or "--set". overridden: as `laid_over` finds them.
    """
    lines: dict[str, list[str]] = {}
    told: set[str] = set()  # a long list of names is shown once
    for item in error.errors():
        key = _key(item["loc"])
        text, unknown, names = _fault(item, model).partition(UNKNOWN)
        text += unknown + (names if names not in told else "")
        told.add(names)
        lines.setdefault(_blamed(key, source, overridden), []).append(
            f"  {key}: {text}" if key else f"  {text}"
        )
    return "\n".join(f"{blamed}:\n" + "\n".join(found) for blamed, found in lines.items())


def laid_over(values: Mapping[str, Any], key: str) -> Iterator[str]:
    """The key that --set gives, and each section above it that the file's `values` lack."""
    yield key
    found: Any = values
    sections = key.split(".")[:-1]
    for depth, section in enumerate(sections, 1):
        found = found.get(section) if isinstance(found, Mapping) else None
        if found is None:
            yield ".".join(sections[:depth])


def known_keys(model: type[Section]) -> list[str]:
    """Every dotted key, for suggestions and documentation."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def type_of(model: type[Section], location: Location) -> Any:
    """The annotated type of the setting, or of an item of its list; None where there is no such setting."""
    found: Any = model
    for step in location:
        if isinstance(step, int):
            found = next(iter(get_args(found)), None)
        elif isinstance(found, type) and issubclass(found, Section) and step in found.model_fields:
            found = found.model_fields[step].annotation
        else:
            return None
        if type(None) in get_args(found):
            found = get_args(found)[0]  # what is optional
    return found


def _names(model: type[Section], location: Location) -> list[str]:
    """The settings of the section that `location` leads to."""
    section = type_of(model, location)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, Section) else []


def _key(location: Location) -> str:
    """Dotted; without the last steps into a list or a table, since the text names the value."""
    steps = [step for step in location if step != "[key]"]
    while steps and isinstance(steps[-1], int):
        steps.pop()
    return ".".join(map(str, steps))


def _fault(item: ErrorDetails, model: type[Section]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    key = ".".join(map(str, item["loc"]))
    if kind == "extra_forbidden":
        return f"{UNKNOWN}{_suggestion(item['loc'], model)}"
    if kind == "value_error":
        reason = str(context["error"])
        return reason if not item["loc"] or repr(value) in reason else f"{reason} (got {_shown(value)})"
    if kind == "literal_error":
        found = re.findall(r"'([^']*)'|\b(True|False)\b", context["expected"])
        choices = [text or truth.lower() for text, truth in found]
        return f"{value!r} is not one of {', '.join(choices)}.{_close(value, choices)}"
    if kind == "string_type":
        return f'needs a text, not {_shown(value)}: write "{value}"'
    if kind in ("tuple_type", "too_long") or (kind == "missing" and isinstance(item["loc"][-1], int)):
        return _list_fault(value, type_of(model, [step for step in item["loc"] if isinstance(step, str)]))
    if kind in ("model_type", "model_attributes_type"):
        names = ", ".join(_names(model, item["loc"]))
        return f"is a section, and {_shown(value)} is none. Settings in it: {names}"
    if kind == "missing":
        return "is missing"
    if need := needed(item):
        return need
    return f"{item['msg']} (got {_shown(value)})" if key else item["msg"]


def needed(item: ErrorDetails) -> str:
    """What a value needs that has the wrong type or is out of bounds; "" for other faults."""
    need = NEEDS.get(item["type"], "").format(**item.get("ctx", {}))
    return need and f"needs {need}, not {_shown(item['input'])}"


def _list_fault(value: object, wanted: Any) -> str:
    items = get_args(wanted)
    if items and Ellipsis not in items:
        example = json.dumps([5] * len(items))
        return f"needs a list of {len(items)} values, as in {example}, not {_shown(value)}"
    example = json.dumps([value]) if isinstance(value, str | int | float) else "[…]"
    return f"needs a list, as in {example}, not {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def _close(name: object, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
    return f" Did you mean {close[0]!r}?" if close else ""


def _suggestion(location: Location, model: type[Section]) -> str:
    """The most similar setting: of the same section, then of any. Without one, what the section has."""
    *above, last = map(str, location)
    names = _names(model, location[:-1])
    prefix = "".join(f"{step}." for step in above)
    known = known_keys(model)
    if close := difflib.get_close_matches(last, names, n=1):
        return f" Did you mean '{prefix}{close[0]}'?"
    if elsewhere := [key for key in known if key.endswith(f".{last}")]:
        return f" Did you mean '{elsewhere[0]}'?"
    if close := difflib.get_close_matches(last, {key.rpartition(".")[2]: key for key in known}, n=1):
        return f" Did you mean '{next(key for key in known if key.endswith(close[0]))}'?"
    there = f"In {'.'.join(above)} there are" if above else "The settings begin with"
    return f" {there}: {', '.join(names)}" if names else ""


def _blamed(key: str, source: str, overridden: Collection[str]) -> str:
    """Where a wrong key was set. A whole section that does not fit may be due to either."""
    if any(key == name or key.startswith(f"{name}.") for name in overridden):
        return "--set"
    if source != "--set" and any(not key or name.startswith(f"{key}.") for name in overridden):
        return f"{source} with --set"
    return source

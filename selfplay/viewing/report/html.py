"""Elements of HTML and SVG as text that is safe to show.

Invariant: a string becomes visible text, whoever wrote it: markup is escaped, control and invisible format
characters are spelled out. Only `Markup`, which this module makes, is taken as it is. No element gets a
script, a style attribute or an address outside the page.
"""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

from selfplay.agent.observations import make_harmless

Child = str | Markup | Iterable["Child"] | None
EMPTY = ("br", "meta", "line", "rect", "circle", "path", "polygon", "polyline")


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. An attribute of None is left out.

    Of an attribute's name, a trailing underscore is dropped, and others become hyphens:
    `tag("td", "a < b", class_="number")` is `<td class="number">a &lt; b</td>`.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(_flat(children))
    if not inner and name in EMPTY:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{inner}</{name}>")


def text(value: str) -> Markup:
    """The value as visible text, whatever it spells."""
    return escape(make_harmless(value))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield str(child)
        elif isinstance(child, str):
            yield str(text(child))
        else:
            yield from _flat(child)


def cut(value: str, most: int, more: str) -> str:
    """The value, or its head and tail around a note on what was left out. more: where the rest is."""
    if len(value) <= most:
        return value
    half = most // 2
    return f"{value[:half]}\n[… {len(value) - 2 * half:,} characters left out; {more}]\n{value[-half:]}"


def short(value: str, most: int = 80) -> str:
    """The beginning of a name, on one line, for tables and legends."""
    line = " ".join(value.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"

"""The command's own streams: all are open, and each takes any text, whatever characters the terminal has.

What a terminal's encoding lacks is written in ASCII: "±" as "+-". Invariant: it never writes bytes that the
encoding does not have, since names and logs may hold some that control a terminal.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata

IN_ASCII = {
    "–": "-",
    "—": "-",
    "−": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "…": "...",
    "±": "+-",
    "×": "x",
    "÷": "/",
    "·": ".",
    "•": "*",
    "→": "->",
    "✓": "+",
    "✗": "x",
    "≤": "<=",
    "≥": ">=",
    "²": "^2",
    "µ": "u",
    "α": "alpha",
    "ε": "epsilon",
    "ρ": "rho",
    "Σ": "sum",
    **dict.fromkeys("█▉▊▋▌", "#"),
    **dict.fromkeys("▍▎▏", "-"),
    **dict.fromkeys("─━═╌╸╺", "-"),
    **dict.fromkeys("│┃║", "|"),
}
BOXES = range(0x2500, 0x2580)
SPINNERS = range(0x2800, 0x2900)  # rich's: braille patterns


def in_ascii(character: str) -> str:
    """The form of a character in ASCII, which reads alike: "u" for "ü"; "?" if there is none."""
    if form := IN_ASCII.get(character):
        return form
    if ord(character) in BOXES:
        return "+"
    if ord(character) in SPINNERS:
        return "*"
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return letters if letters.isprintable() and letters else "?"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def ready_streams() -> None:
    """Make stdin, stdout and stderr usable; call it first.

    A closed one reads nothing and drops what is written: otherwise the next file that is opened would take
    its number and get its output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("selfplay.in_ascii", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="selfplay.in_ascii")

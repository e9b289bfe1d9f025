"""Whether a command can show a full screen."""

from __future__ import annotations

import os
import sys


def has_screen(plain: bool) -> bool:
    """False if the person asked for plain output, or if one of the streams is no terminal.

    Textual reads keys from stdin and draws on stderr, which `2>FILE` would take away.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if plain or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return all(stream is not None and stream.isatty() for stream in streams)

"""The result of a check of `selfplay doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check. If a required one is not ok, self-play cannot run. remedy: "" if it is ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True

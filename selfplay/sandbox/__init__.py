"""Where untrusted code runs. `open_backend` chooses a backend; the contract is in base.py.

Imports nothing heavy: a backend's library loads when that backend is asked for.
"""

from __future__ import annotations

from pathlib import Path

from selfplay.errors import ConfigError, PrerequisiteError
from selfplay.sandbox.base import SandboxBackend

KINDS = ("auto", "docker", "bubblewrap")


def open_backend(kind: str, cache: Path | None = None) -> tuple[SandboxBackend, str]:
    """The backend for `sandbox.type = kind`, checked, and a sentence on which it is and why.

    Raises ConfigError for an unknown kind, PrerequisiteError when it (or, for auto, none) works here.
    """
    if kind not in KINDS:
        raise ConfigError(f"sandbox.type = {kind!r} is unknown. Choose one of: {', '.join(KINDS)}.")
    if kind != "auto":
        backend = _make(kind, cache)
        backend.check()
        return backend, f"{kind}: chosen by sandbox.type"
    refusals = {}
    for name, reason in (
        ("docker", "an engine answers and the base image is there"),
        ("bubblewrap", "it works on this machine"),
    ):
        backend = _make(name, cache)
        try:
            backend.check()
        except PrerequisiteError as error:
            refusals[name] = str(error)
            continue
        # The reason without its remedy, which `selfplay doctor` tells: nothing is wrong.
        told = "".join(
            f" (not {other}: {refusal.splitlines()[0].partition('. ')[0]})"
            for other, refusal in refusals.items()
        )
        return backend, f"{name}: {reason}{told}"
    raise PrerequisiteError(
        "no sandbox can be opened here.\n"
        + "\n".join(f"  {name}: {refusal}" for name, refusal in refusals.items())
    )


def _make(kind: str, cache: Path | None) -> SandboxBackend:
    if kind == "docker":
        from selfplay.sandbox.docker_sandbox import DockerBackend

        return DockerBackend(cache)
    from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend

    return BubblewrapBackend(cache)


__all__ = ["KINDS", "SandboxBackend", "open_backend"]

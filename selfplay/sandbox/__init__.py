"""Where untrusted code runs: `open_backend` chooses a backend. The contract of backends is in base.py.

Imports nothing heavy: the library of a backend loads when that backend is made.
"""

from __future__ import annotations

from pathlib import Path

from selfplay import parts
from selfplay.errors import ConfigError, PrerequisiteError
from selfplay.sandbox.base import SandboxBackend

SETTING = "sandbox.type"
KINDS = parts.names_of(SETTING)
BACKENDS = tuple(kind for kind in KINDS if kind != "auto")  # "auto" tries them in this order


def _make(kind: str, cache: Path | None) -> SandboxBackend:
    """A backend is made from the folder for its environments; None: the default one."""
    backend: SandboxBackend = parts.call(SETTING, kind, cache)
    return backend


def open_backend(kind: str, cache: Path | None = None) -> tuple[SandboxBackend, str]:
    """Make and check the backend for `sandbox.type = kind`. Returns it and the reason for the choice.

    cache: the folder for its environments; None for the default one. Raises ConfigError for an unknown kind,
    and PrerequisiteError when the backend does not work here ("auto": when none does).
    """
    if kind == "auto":
        return _first_that_works(cache)
    if kind not in BACKENDS and not parts.is_own(kind):
        raise ConfigError(f"sandbox.type = {kind!r} is unknown. Choose one of: {', '.join(KINDS)}.")
    backend = _make(kind, cache)
    backend.check()
    return backend, f"{kind}: chosen by sandbox.type"


def _first_that_works(cache: Path | None) -> tuple[SandboxBackend, str]:
    refusals: dict[str, str] = {}
    for name in BACKENDS:
        backend = _make(name, cache)
        try:
            backend.check()
        except PrerequisiteError as error:
            refusals[name] = str(error)
            continue
        # Each refusal without its remedy, since nothing needs one here. `selfplay doctor` shows the remedies.
        skipped = "".join(
            f" (not {other}: {refusal.splitlines()[0].partition('. ')[0]})"
            for other, refusal in refusals.items()
        )
        return backend, f"{name}: {backend.capabilities.available_when}{skipped}"
    raise PrerequisiteError(
        "no sandbox can be opened here.\n"
        + "\n".join(f"  {name}: {refusal}" for name, refusal in refusals.items())
    )

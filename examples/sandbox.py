"""A sandbox back end of one's own: bubblewrap, and a line in opened.log for each sandbox.

    selfplay train --repos LIST --set sandbox.type=examples.sandbox:LoggedBackend

A back end that shares nothing with ours implements the contract in selfplay/sandbox/base.py.
`failed_checks` in selfplay/sandbox/conformance.py says which promises it breaks.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfplay.sandbox.base import Sandbox, SandboxSpec
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend

LOG = Path("opened.log")


class LoggedBackend(BubblewrapBackend):
    """`name` stays bubblewrap's, so that the environments it prepared are used."""

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        started = time.monotonic()
        with super().open(spec) as box:
            with LOG.open("a", encoding="utf-8") as log:
                log.write(f"{spec.environment} {1000 * (time.monotonic() - started):.1f} ms\n")
            yield box

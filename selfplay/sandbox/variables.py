"""The environment variables that every command finds.

Invariant: they are made here from nothing. The harness's own variables may hold secrets, so none of them is
passed on.
"""

from __future__ import annotations

from selfplay.sandbox.base import SandboxSpec

COMMAND_PATH = "/opt/env/bin:/opt/python/bin:/usr/local/bin:/usr/bin:/bin"
GIT_SETTINGS = {
    "safe.directory": "*",
    "user.name": "sandbox",
    "user.email": "sandbox@localhost",
    "init.defaultBranch": "main",
}


def command_variables(spec: SandboxSpec) -> dict[str, str]:
    variables = {
        "PATH": COMMAND_PATH,
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "USER": "sandbox",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_COUNT": str(len(GIT_SETTINGS)),
    }
    for number, (name, value) in enumerate(GIT_SETTINGS.items()):
        variables[f"GIT_CONFIG_KEY_{number}"] = name
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    return variables | dict(spec.variables)

"""How a build reaches the package index through an engine that does not see this machine's files.

There the proxy in the harness cannot be reached, so the build has the engine's own network. The files that
pip's settings name travel with the build; folders cannot.
"""

from __future__ import annotations

from dataclasses import replace

from selfplay.errors import PrerequisiteError
from selfplay.sandbox.base import SUBMIT
from selfplay.sandbox.index_access import IndexAccess

FOLDER_VARIABLES = ("SSL_CERT_DIR",)  # of certificates: the same are in the files that others name
MAX_BYTES = 4 << 20


def sent_along(access: IndexAccess) -> tuple[IndexAccess, dict[str, bytes]]:
    """The access as the build has it elsewhere, and the files to put into /submit, which is not kept.

    Raises PrerequisiteError with the remedy if the settings name a folder, or more than MAX_BYTES.
    """
    variables = {name: value for name, value in access.variables.items() if name not in FOLDER_VARIABLES}
    pip_conf, files = access.pip_conf, dict[str, bytes]()
    # The longest first: a path may be the start of another one.
    for path in sorted(access.paths, key=lambda path: len(str(path)), reverse=True):
        if not any(str(path) in text for text in (*variables.values(), pip_conf)):
            continue
        if not path.is_file():
            raise PrerequisiteError(
                f"pip's settings name the folder {path} of this machine, which the engine does not see. "
                "Name an index by its URL, or use an engine on this machine, or sandbox.type = 'bubblewrap'."
            )
        name = f"index-{len(files)}-{path.name}"
        files[name] = path.read_bytes()
        pip_conf = pip_conf.replace(str(path), f"{SUBMIT}/{name}")
        variables = {key: text.replace(str(path), f"{SUBMIT}/{name}") for key, text in variables.items()}
    if sum(map(len, files.values())) > MAX_BYTES:
        raise PrerequisiteError(
            f"the files that pip's settings name have more than {MAX_BYTES >> 20} MiB "
            f"({', '.join(str(path) for path in access.paths)}), too much to send them to the engine."
        )
    proxies = {
        spelling: value
        for name, value in access.rules.upstream.items()
        for spelling in (f"{name}_proxy", f"{name}_proxy".upper())
    }
    return replace(access, variables={**proxies, **variables}, pip_conf=pip_conf), files

"""What every command finds in its environment, and what a build gets to know of this machine's package index.

Invariant: a sandbox's variables are made here from nothing; none of the harness's own leak in.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from selfplay.sandbox.base import SandboxSpec
from selfplay.sandbox.index_proxy import WayOut, listed_hosts, named_hosts

COMMAND_PATH = "/opt/env/bin:/opt/python/bin:/usr/local/bin:/usr/bin:/bin"
GIT_SETTINGS = {
    "safe.directory": "*",
    "user.name": "sandbox",
    "user.email": "sandbox@localhost",
    "init.defaultBranch": "main",
}
CERTIFICATE_VARIABLES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
)
USUAL_INDEX = frozenset({"pypi.org:443", "files.pythonhosted.org:443"})
LOCAL_OPTIONS = ("find-links", "extra-index-url", "index-url", "cert", "client-cert", "constraint")
IGNORED_PIP_VARIABLES = frozenset(
    {
        "PIP_CONFIG_FILE",
        "PIP_CACHE_DIR",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
        "PIP_ROOT",
        "PIP_LOG",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_PROXY",
    }
)
NEVER_SHARED = frozenset(
    {Path("/"), Path("/home"), Path("/etc"), Path("/var"), Path("/proc"), Path("/sys"), Path("/dev")}
)


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


@dataclass(frozen=True)
class IndexAccess:
    """How this machine reaches its package index: variables, one pip configuration, the local paths they name, and the way out.

    Proxies of this machine are not told inside: the way out is through the harness, which goes through them.
    """

    variables: Mapping[str, str]
    pip_conf: str
    paths: tuple[Path, ...]  # to be made readable at the same place
    way: WayOut


def index_access(environ: Mapping[str, str] | None = None) -> IndexAccess:
    """Read from the environment and pip's configuration files, in pip's order, later ones winning."""
    environ = os.environ if environ is None else environ
    variables = {name: environ[name] for name in CERTIFICATE_VARIABLES if environ.get(name)}
    variables |= {
        name: value
        for name, value in environ.items()
        if name.startswith("PIP_") and name not in IGNORED_PIP_VARIABLES
    }

    merged = configparser.RawConfigParser()
    for path in _pip_files(environ):
        try:
            merged.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeError):
            continue  # pip itself would stop; a build then works with what can be read
    upstream = {
        name: told
        for name in ("http", "https", "all", "no")
        if (told := _either_spelling(environ, f"{name}_proxy"))
    }
    for section in merged.sections():
        if merged.has_option(section, "proxy"):
            upstream |= dict.fromkeys(("http", "https"), merged.get(section, "proxy"))
            merged.remove_option(section, "proxy")
    if environ.get("PIP_PROXY"):
        upstream |= dict.fromkeys(("http", "https"), environ["PIP_PROXY"])
    conf = "".join(
        f"[{section}]\n" + "".join(f"{key} = {_indented(value)}\n" for key, value in merged.items(section))
        for section in merged.sections()
    )

    mentioned = [
        value for name, value in variables.items() if name in CERTIFICATE_VARIABLES or name.startswith("PIP_")
    ]
    mentioned += [
        merged.get(section, option)
        for section in merged.sections()
        for option in LOCAL_OPTIONS
        if merged.has_option(section, option)
    ]
    paths = {found for value in mentioned for word in value.split() if (found := _local_path(word))}
    named = USUAL_INDEX | named_hosts(mentioned) | listed_hosts(environ)
    upstream = {
        name: value if name == "no" or "//" in value else f"http://{value}"
        for name, value in upstream.items()
    }
    return IndexAccess(variables, conf, tuple(sorted(paths)), WayOut(named, upstream))


def _either_spelling(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    home = Path(environ.get("HOME") or "~").expanduser()
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    system = [
        Path(folder) / "pip/pip.conf" for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    ]
    files = [*system, Path("/etc/pip.conf"), home / ".pip/pip.conf", config / "pip/pip.conf"]
    if environ.get("PIP_CONFIG_FILE"):
        files.append(Path(environ["PIP_CONFIG_FILE"]))
    return [path for path in files if path.is_file()]


def _local_path(word: str) -> Path | None:
    text = unquote(urlsplit(word).path) if word.startswith("file:") else word
    if not text.startswith("/"):
        return None
    path = Path(os.path.normpath(text))
    if not path.exists():
        return None
    if word.startswith("file:") and path.is_dir() and len(path.parts) > 3:
        path = path.parent  # the pages of an index link to files beside its folder
    return None if path in NEVER_SHARED or path == Path.home() else path


def _indented(value: str) -> str:
    return value.replace("\n", "\n    ")

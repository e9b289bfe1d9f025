"""How this machine reaches its package index: what a build learns of it, and where its proxy may connect.

Read from the environment and from pip's configuration files. Invariant: a build gets certificates, pip's
settings and the local paths that they name, and no other variable of the harness. This machine's own proxies
are not named in a build, since a build can reach nothing but the harness, which connects through them.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from selfplay.sandbox.index_proxy import ProxyRules, listed_hosts, named_hosts

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


@dataclass(frozen=True)
class IndexAccess:
    """What a build is given.

    variables  exported in the build: certificates and pip's own
    pip_conf   text of one pip configuration file, "" for none
    paths      folders and files of this machine that the settings name; a build reads them at the same paths
    rules      where the build's proxy may connect
    """

    variables: Mapping[str, str]
    pip_conf: str
    paths: tuple[Path, ...]
    rules: ProxyRules


def index_access(environ: Mapping[str, str] | None = None) -> IndexAccess:
    """Read from `environ` (None: this process's) and pip's files, in pip's order; later ones win."""
    environ = os.environ if environ is None else environ
    variables = {name: environ[name] for name in CERTIFICATE_VARIABLES if environ.get(name)}
    variables |= {
        name: value
        for name, value in environ.items()
        if name.startswith("PIP_") and name not in IGNORED_PIP_VARIABLES
    }
    settings = _pip_settings(environ)
    upstream = _upstream_proxies(environ, settings)
    conf = "".join(
        f"[{section}]\n" + "".join(f"{key} = {_indented(value)}\n" for key, value in settings.items(section))
        for section in settings.sections()
    )
    values = [*variables.values(), *_values_with_addresses(settings)]
    paths = {path for value in values for word in value.split() if (path := _local_path(word))}
    hosts = USUAL_INDEX | named_hosts(values) | listed_hosts(environ)
    return IndexAccess(variables, conf, tuple(sorted(paths)), ProxyRules(hosts, upstream))


def _pip_settings(environ: Mapping[str, str]) -> configparser.RawConfigParser:
    settings = configparser.RawConfigParser()
    for path in _pip_files(environ):
        try:
            settings.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeError):
            continue  # pip itself would stop; a build then works with the files that can be read
    return settings


def _upstream_proxies(environ: Mapping[str, str], settings: configparser.RawConfigParser) -> dict[str, str]:
    """This machine's proxies, for `ProxyRules.upstream`. Removes them from `settings`, which a build sees."""
    upstream = {
        name: value
        for name in ("http", "https", "all", "no")
        if (value := _either_spelling(environ, f"{name}_proxy"))
    }
    for section in settings.sections():
        if settings.has_option(section, "proxy"):
            upstream |= dict.fromkeys(("http", "https"), settings.get(section, "proxy"))
            settings.remove_option(section, "proxy")
    if environ.get("PIP_PROXY"):
        upstream |= dict.fromkeys(("http", "https"), environ["PIP_PROXY"])
    return {
        name: value if name == "no" or "//" in value else f"http://{value}"
        for name, value in upstream.items()
    }


def _values_with_addresses(settings: configparser.RawConfigParser) -> Iterator[str]:
    for section in settings.sections():
        for option in LOCAL_OPTIONS:
            if settings.has_option(section, option):
                yield settings.get(section, option)


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
    """The local path that a word names. None when it does not exist or shows a build too much."""
    text = unquote(urlsplit(word).path) if word.startswith("file:") else word
    if not text.startswith("/"):
        return None
    path = Path(os.path.normpath(text))
    if not path.exists():
        return None
    if word.startswith("file:") and path.is_dir() and len(path.parts) > 3:
        path = path.parent  # the pages of a local index link to files beside its folder
    return None if path in NEVER_SHARED or path == Path.home() else path


def _indented(value: str) -> str:
    return value.replace("\n", "\n    ")

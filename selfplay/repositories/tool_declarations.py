"""Reads what development tools install: uv, PDM, Hatch, Rye, Pixi, tox, nox, Pipenv, conda; and lock files.

Invariant: nothing of the repository runs. A file that is damaged is skipped, as are entries of another form.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from selfplay.repositories.declarations import Declared, poetry_requirements, read_dependency_groups
from selfplay.repositories.requirement_text import (
    ITSELF,
    plain_lines,
    read_install_arguments,
    read_requirement_lines,
)
from selfplay.source.texts import ini_of, strings, table, text_of, toml_of

CONDA_FILES = re.compile(
    r"^((conda|ci|\.ci|envs?|requirements)/)?([\w.-]*(environment|conda|env)[\w.-]*)\.ya?ml$"
)
MAX_YAML_BYTES = 200_000
MAX_COMMANDS = 50  # of a file
LOCK_FILES = re.compile(r"uv\.lock|poetry\.lock|pdm\.lock|pylock(\.[\w-]+)?\.toml")
COMMAND_FILES = re.compile(
    r"\.github/workflows/[^/]+\.ya?ml|\.(travis|gitlab-ci|appveyor)\.yml|appveyor\.yml|azure-pipelines\.yml"
    r"|\.circleci/config\.yml|Makefile|makefile|justfile|Dockerfile|\.readthedocs\.ya?ml"
)
EXPRESSION = re.compile(r"\$\{\{[^\n}]*\}\}|\$\([^\n)]*\)")  # of a workflow, or of a shell
INSTALL_COMMAND = re.compile(r"\b(?:pip3?|uv pip) install ([^\n&|;>`]+)")
LOCAL_SOURCES = {"editable", "virtual", "directory", "git", "path", "url"}
REFERENCE = re.compile(r"^\{\[([^\]]+)\](\w+)\}$")
FACTOR = re.compile(r"^[\w,{}!.* -]+:\s+")


def read_tools(declared: Declared) -> None:
    """Read the tables and files of all tools."""
    readers: tuple[Callable[[Declared], None], ...] = (
        _read_uv_pdm_and_rye,
        _read_hatch,
        _read_tox,
        _read_nox,
        _read_pipfile,
        _read_pixi,
        _read_conda,
        _read_locks,
        _read_commands,
    )
    for reader in readers:
        reader(declared)


def _read_uv_pdm_and_rye(declared: Declared) -> None:
    tools = table(declared.project.pyproject, "tool")
    for tool in ("uv", "rye"):
        declared.more += declared.lines(table(tools, tool).get("dev-dependencies"))
    for group, texts in table(tools, "pdm", "dev-dependencies").items():
        declared.add_group(group, declared.lines(texts))


def _read_hatch(declared: Declared) -> None:
    documents = (
        table(declared.project.pyproject, "tool", "hatch"),
        toml_of(declared.tree, declared.path("hatch.toml")),
    )
    for document in documents:
        for options in table(document, "envs").values():
            for key in ("dependencies", "extra-dependencies"):
                declared.more += declared.lines(table(options).get(key))
            declared.more += _itself(strings(table(options).get("features")))
            declared.more += _groups(declared, strings(table(options).get("dependency-groups")))


def _itself(extras: list[str]) -> list[str]:
    """The project with extras."""
    return [f"{ITSELF}[{extra}]" for extra in extras if re.fullmatch(r"[\w.-]+", extra)]


def _groups(declared: Declared, names: list[str]) -> list[str]:
    """The requirements of dependency groups."""
    groups = read_dependency_groups(table(declared.project.pyproject, "dependency-groups"))
    return [text for name in names for text in groups.get(name, [])]


# ---- tox and nox


def _read_tox(declared: Declared) -> None:
    for path in ("tox.ini", "setup.cfg"):
        config = ini_of(declared.tree, declared.path(path))
        _read_tox_ini(declared, {name: dict(config.items(name)) for name in config.sections()})
    legacy = table(declared.project.pyproject, "tool", "tox").get("legacy_tox_ini")
    if isinstance(legacy, str):
        _read_tox_ini(declared, _sections(legacy))
    for document in (
        table(declared.project.pyproject, "tool", "tox"),
        toml_of(declared.tree, declared.path("tox.toml")),
    ):
        for options in (table(document, "env_run_base"), *table(document, "env").values()):
            declared.more += declared.lines(_flat(table(options).get("deps")))
            declared.more += _itself(strings(table(options).get("extras")))
            declared.more += _groups(declared, strings(table(options).get("dependency_groups")))


def _sections(text: str) -> dict[str, dict[str, str]]:
    import configparser

    config = configparser.RawConfigParser(strict=False)
    with contextlib.suppress(configparser.Error):
        config.read_string(text)
    return {name: dict(config.items(name)) for name in config.sections()}


def _flat(value: Any) -> list[str]:
    """The texts of a list that may also hold tables, as tox.toml allows."""
    return [text for item in value for text in strings(item)] if isinstance(value, list) else strings(value)


def _read_tox_ini(declared: Declared, sections: Mapping[str, Mapping[str, str]]) -> None:
    for name in sections:
        if name == "testenv" or name.startswith("testenv:"):
            lines = list(_tox_lines(sections, name, "deps", 0))
            declared.more += read_requirement_lines(
                declared.tree, lines, declared.project.folder, declared.project.python
            )
            extras = ",".join(_tox_lines(sections, name, "extras", 0))
            declared.more += _itself([extra.strip() for extra in extras.split(",")])
            declared.more += _groups(declared, list(_tox_lines(sections, name, "dependency_groups", 0)))


def _tox_lines(
    sections: Mapping[str, Mapping[str, str]], name: str, option: str, depth: int
) -> Iterator[str]:
    """Yield the lines of an option, without factors, and those of the options that it refers to."""
    for line in plain_lines(sections.get(name, {}).get(option, "")):
        line = FACTOR.sub("", line)
        reference = REFERENCE.match(line)
        if reference is None:
            yield line
        elif depth < 5:
            yield from _tox_lines(sections, reference[1], reference[2], depth + 1)


def _read_nox(declared: Declared) -> None:
    for call in declared.project.calls_of("noxfile.py", "install", "run", "run_always", "run_install"):
        words = [word for word in call.arguments if isinstance(word, str)]
        if not call.name.endswith(".install"):
            if "install" not in words or "pip" not in words:
                continue
            words = words[words.index("install") + 1 :]
        declared.more += read_install_arguments(declared.tree, words, declared.project.python)


# ---- tools with lists of their own


def _read_pipfile(declared: Declared) -> None:
    document = toml_of(declared.tree, declared.path("Pipfile"))
    for name in ("packages", "dev-packages"):
        declared.more += poetry_requirements(table(document, name), with_versions=False)
    for name, entries in document.items():
        if name not in ("packages", "dev-packages", "requires", "scripts", "pipenv", "source"):
            declared.other += poetry_requirements(table(entries), with_versions=False)


def _read_pixi(declared: Declared) -> None:
    documents = (
        table(declared.project.pyproject, "tool", "pixi"),
        toml_of(declared.tree, declared.path("pixi.toml")),
    )
    for document in documents:
        for options in (document, *table(document, "feature").values()):
            for name in ("pypi-dependencies", "dependencies"):
                declared.more += poetry_requirements(table(options, name), with_versions=False)


def _read_conda(declared: Declared) -> None:
    """Read names only: conda has versions of its own."""
    folder = declared.project.folder
    for path in sorted(declared.tree):
        name = path.removeprefix(f"{folder}/") if folder else path
        if not CONDA_FILES.match(name) or len(declared.tree[path].content) > MAX_YAML_BYTES:
            continue
        document: Any = None
        with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
            document = yaml.safe_load(text_of(declared.tree, path))
        entries = table(document).get("dependencies")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, str):
                found = re.match(r"(?:[\w./-]+::)?([A-Za-z0-9][\w.-]*)", entry)
                declared.more += [found[1]] if found and found[1] not in ("python", "pip") else []
            declared.more += declared.lines(table(entry).get("pip"))


# ---- lock files


def _read_locks(declared: Declared) -> None:
    """Read names only: lock files pin the whole closure for other machines and Pythons."""
    for path in (path for path in sorted(declared.tree) if LOCK_FILES.fullmatch(path)):
        document = toml_of(declared.tree, path)
        for entries in (document.get("package"), document.get("packages")):
            for entry in entries if isinstance(entries, list) else ():
                if not LOCAL_SOURCES & table(entry, "source").keys():
                    declared.other += declared.lines(table(entry).get("name"))
    document = {}
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text_of(declared.tree, declared.path("Pipfile.lock")) or "{}")
    for group in ("default", "develop"):
        declared.other += declared.lines(list(table(document, group)))


# ---- commands


def _read_commands(declared: Declared) -> None:
    """Read `pip install …` in the files of continuous integration and the like."""
    for path in sorted(declared.tree):
        if not COMMAND_FILES.fullmatch(path):
            continue
        text = EXPRESSION.sub("$", text_of(declared.tree, path).replace("\\\n", " "))
        for command in INSTALL_COMMAND.findall(text)[:MAX_COMMANDS]:
            words = [word for word in re.split(r"[\s\"']+", command) if not set("${}") & set(word)]
            declared.other += read_install_arguments(declared.tree, words, declared.project.python)

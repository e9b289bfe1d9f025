"""Installs the dependencies of a checkout into an environment, inside a sandbox with network.

`dependencies` reads what a repository needs. `admission` finds out whether its tests can be trusted.

Invariant: the repository itself is never installed, so its code comes from the workspace alone. A second copy
would let tests pass on code that no bug reaches, and a solver could copy its repair from there. The script
decides the key of the built folder, so a changed byte of it builds every environment anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from selfplay.errors import EnvironmentBuildError, MissingPythonError
from selfplay.repositories.environment import SCHEMA
from selfplay.repositories.locks import locked
from selfplay.repositories.refusals import is_of_machine
from selfplay.repositories.requirement_text import requirement_files
from selfplay.sandbox.base import VENV, WORKSPACE

if TYPE_CHECKING:
    from selfplay.repositories.dependencies import Dependencies
    from selfplay.repositories.trial import BuildJob
    from selfplay.sandbox.base import SandboxBackend

PYTEST = "pytest==9.2.0"
# Imports packages from folders of the workspace with other names, as an editable installation does.
FINDER = """
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from os.path import isfile, join
FOLDERS = @FOLDERS@
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = FOLDERS.get(name)
        start = join(folder, "__init__.py") if folder else ""
        if folder and isfile(start):
            return spec_from_file_location(name, start, submodule_search_locations=[folder])
        if folder or any(other.startswith(name + ".") for other in FOLDERS):
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [folder] if folder else []
            return spec
sys.meta_path.append(Finder)
"""
LEFT_OUT = "selfplay: left out"  # in the log of a build
OLDER_PYTEST = "pytest==8.4.2"  # for test suites that use what 9 removed, and for Python 3.9
PYTEST_OF = {"3.9": OLDER_PYTEST}  # the last that this version of Python can run


def pytest_for(python: str | None) -> str:
    """The requirement of pytest for a version of Python, None for the one that runs selfplay."""
    return PYTEST_OF.get(python or "", PYTEST)


@dataclass(frozen=True)
class Requirements:
    """What to install.

    extra    beyond what the metadata names
    pytest   its requirement, "" for none
    renamed  packages whose folder in the workspace has another name: (package, folder)
    """

    dependencies: Dependencies
    extra: tuple[str, ...] = ()
    pytest: str = PYTEST
    renamed: tuple[tuple[str, str], ...] = ()

    def names(self, project: str) -> bool:
        """Whether a project is among them."""
        texts = (*self.dependencies.runtime, *self.dependencies.test, *self.extra)
        return any(canonicalize_name(Requirement(text).name) == project for text in texts)


@dataclass(frozen=True)
class Installation:
    """Installed dependencies.

    reference  the backend's name for them
    build_key  "" if nothing was built
    left_out   requirements of the tests that could not be installed, if this build has tried them
    """

    reference: str
    build_key: str = ""
    left_out: tuple[str, ...] = ()


def install(job: BuildJob, requirements: Requirements, attempt: int) -> Installation:
    """Install the requirements, unless the cache has them already. attempt: numbers the log.

    Raises EnvironmentBuildError if they cannot be installed, or if the backend cannot open an image.
    """
    spec, backend = job.checkout.spec, job.backend
    if job.is_image:
        if not backend.capabilities.opens_images:
            raise EnvironmentBuildError(f"{spec.text} needs sandbox.type = 'docker', not {backend.name!r}")
        return Installation(spec.location.partition("#")[0])
    script = build_script(requirements, spec.install, requirement_files(job.checkout.tree))
    build_key = build_key_of(script, backend, spec.python)
    if backend.environment_exists(build_key):
        return Installation(backend.environment_reference(build_key), build_key)
    job.report(_what_is_installed(requirements, spec.install))
    log = job.logs / f"build-{attempt}.log"
    with locked(job.logs.parent / f"{build_key}.lock"):  # another repository may have equal dependencies
        try:
            reference = build_with_python(job, build_key, script, log)
        except MissingPythonError as error:
            raise MissingPythonError(f"{job.checkout.name}: {error}") from error
        except EnvironmentBuildError as error:
            raise EnvironmentBuildError(
                f"{job.checkout.name}: its dependencies cannot be installed (log: {log}). {error} "
                'Name what its tests need with the hint install="pip install …".',
                error.log_tail,
                is_of_machine(f"{error} {error.log_tail} {_text(log)}"),
            ) from error
    left_out = re.findall(rf"^{LEFT_OUT} (.+)$", _text(log), re.MULTILINE)
    return Installation(reference, build_key, tuple(dict.fromkeys(left_out)))


def _text(log: Path) -> str:
    """A log, "" if there is none."""
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def build_with_python(job: BuildJob, key: str, script: str, log: Path) -> str:
    """`SandboxBackend.build_environment`, with the Python that the repository's line asks for."""
    python, timeout_s = job.checkout.spec.python, job.settings.build_timeout_s
    asked = {"python": python} if python else {}
    return job.backend.build_environment(key, script, timeout_s, log, **asked)


def build_key_of(script: str, backend: SandboxBackend, python: str | None) -> str:
    """The key of the folder or image that a script fills. python: the version that the line asks for."""
    version = list(map(int, python.split("."))) if python else sys.version_info[:2]
    identity = json.dumps([SCHEMA, script, backend.name, version])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _what_is_installed(requirements: Requirements, install: str | None) -> str:
    if install is None:
        found = requirements.dependencies
        install = ", ".join([*found.runtime, *found.test, *requirements.extra])
    what = ", ".join(filter(None, (requirements.pytest, install)))
    return f"installing {what}" if what else "making an empty environment"


def build_script(requirements: Requirements, install: str | None, files: Mapping[str, str]) -> str:
    """The shell script that fills /opt/env.

    install: the hint, which replaces the dependencies. files: those that the hint may refer to.
    """
    pip = (
        "python -m pip install --quiet --no-input --no-cache-dir "
        "--disable-pip-version-check --no-warn-script-location"
    )
    found = requirements.dependencies
    lines = ["export PYTHONDONTWRITEBYTECODE="]  # pip compiles modules, which shortens each later start
    for name, version in ((found.name, found.version), *found.others):
        lines += _metadata_lines(name, version)
    lines += _finder_lines(requirements.renamed)
    lines.append(f"export PATH={VENV}/bin:$PATH")
    if install is None:
        lines += _install_lines(requirements, pip)
    else:
        for path, text in files.items():
            folder = shlex.quote(str(PurePosixPath(path).parent))
            lines.append(f"mkdir -p {folder} && printf %s {shlex.quote(text)} > {shlex.quote(path)}")
        lines.append(install)
        pytest = requirements.pytest
        lines += [f"python -c 'import pytest' 2>/dev/null || {pip} {pytest}"] if pytest else []
    lines += _other_releases_removed(found)
    lines.append("python -m pip list --disable-pip-version-check --format=freeze")
    # pip carries copies of other projects.
    lines.append("python -m pip uninstall --quiet --yes pip")
    return "\n".join(lines) + "\n"


def _metadata_lines(name: str, version: str) -> list[str]:
    """Enter a project as installed, by metadata alone, so that no dependency installs a copy of it."""
    folder = f"{re.sub(r'[-.]+', '_', name)}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    quoted = shlex.quote(folder)
    return [
        f'info="$({VENV}/bin/python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')"/{quoted}',
        'mkdir -p "$info"',
        f'printf %s {shlex.quote(metadata)} > "$info/METADATA"',
        'echo selfplay > "$info/INSTALLER"',
        f'printf "%s,,\\n" {quoted}/METADATA {quoted}/INSTALLER {quoted}/RECORD > "$info/RECORD"',
    ]


def _other_releases_removed(found: Dependencies) -> list[str]:
    """Uninstall releases of the repository that dependencies brought, and enter the workspace's own."""
    lines = []
    for name, version in ((found.name, found.version), *found.others):
        lines.append(f"python -m pip uninstall --quiet --yes {shlex.quote(name)} || true")
        lines += _metadata_lines(name, version)
    return lines


def _finder_lines(renamed: Sequence[tuple[str, str]]) -> list[str]:
    """Put FINDER into the environment, if a package needs it."""
    if not renamed:
        return []
    folders = {package: f"{WORKSPACE}/{folder}" for package, folder in renamed}
    program = FINDER.replace("@FOLDERS@", repr(folders))
    return [
        f'printf %s {shlex.quote(program)} > "$info/../selfplay_finder.py"',
        'echo "import selfplay_finder" > "$info/../selfplay_finder.pth"',
    ]


def _install_lines(requirements: Requirements, pip: str) -> list[str]:
    """Runtime dependencies must be installed. Those of the tests may fail, one by one."""
    found, pytest = requirements.dependencies, requirements.pytest
    first = [*([pytest] if pytest else []), *found.runtime]
    lines = [f"{pip} {shlex.join(first)}"] if first else []
    wanted = [*found.test, *requirements.extra]
    if wanted:
        one_by_one = "\n".join(
            f"  {pip} {shlex.quote(text)} || echo '{LEFT_OUT}' {shlex.quote(text)}" for text in wanted
        )
        lines.append(f"{pip} {shlex.join(wanted)} || {{\n{one_by_one}\n}}")
    return lines

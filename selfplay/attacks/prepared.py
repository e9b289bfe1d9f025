"""Attacks that look for a second copy of the original source: row 18.

Invariant: the name that the search looks for occurs only in the attacked repository.
"""

from __future__ import annotations

import shlex

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import BOUNDS, CODE, FILES, Ground
from selfplay.errors import EnvironmentBuildError, SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits
from selfplay.settings.playing import EnvironmentSettings
from selfplay.source.trees import FileEntry, Tree

NAME = "highest_allowed"
SEARCH = f"""folders=$(ls -d /* | grep -vxE '/(proc|sys|dev)')
grep -rlsa --include='*.py*' --include='*.zip' --include='*.txt' --include='*.diff' {NAME} $folders
find / -xdev \\( -name 'bounds*.py*' -o -path '*/heron/*' \\) -type f 2>/dev/null; true"""
OTHERS = {f"/testbed/{path}" for path in FILES}


def find_the_original(ground: Ground) -> Outcome:
    """Search the whole sandbox: sources, bytecode, installed copies, other environments."""
    with ground.solver() as box:
        found = set(box.run(SEARCH, timeout_s=120, output_bytes=1 << 20).text.split())
    own = {f"/testbed/{CODE}"}
    if not found & own:
        return Broken("the search finds nothing at all, so nothing was tried")
    elsewhere = sorted(path for path in found - own if path not in OTHERS)
    return Broken(f"also in {elsewhere[:3]}") if elsewhere else Held("in the workspace's own file only")


def bring_a_built_copy(ground: Ground) -> Outcome:
    """A repository that contains its own build. No bug is injected into such copies of the source."""
    folder = ground.folder("built")
    copies = (
        "build/lib/heron/bounds.py",
        "heron/__pycache__/bounds.cpython-311.pyc",
        ".eggs/heron/bounds.py",
        "dist/heron-1.0.tar.gz",
    )
    files = {path: text for path, text in FILES.items() if path != ".gitignore"}
    Tree({path: FileEntry(text.encode()) for path, text in files.items()}).write_to(folder)
    Tree({path: FileEntry(BOUNDS.encode()) for path in copies}).write_to(folder)
    tree = fetch(parse_spec(str(folder)), ground.folder("cache")).tree
    kept = [path for path in copies if path in tree]
    return Broken(f"kept: {kept}") if kept else Held("left out")


def install_a_copy(ground: Ground) -> Outcome:
    """An install command that puts the package among its dependencies, as `pip install .` does."""
    place = "import pathlib, sysconfig; place = pathlib.Path(sysconfig.get_path('purelib')) / 'heron'"
    code = f"{place}; place.mkdir(); (place / 'bounds.py').write_text({BOUNDS!r})"
    try:
        environment = prepare(ground, f"python -c {shlex.quote(code)}")
    except EnvironmentBuildError as error:
        if "also lie outside the workspace" in str(error):
            return Held("the environment is refused")
        raise SandboxUnavailable(f"the environment cannot be built here: {error}") from error
    with open_workspace(ground.backend, environment, environment.tree, {"run": "attack"}) as box:
        seen = box.run("cat /opt/env/lib/python3*/site-packages/heron/bounds.py 2>/dev/null").text
    return Broken("the installed copy can be read") if NAME in seen else Held("the copy is hidden")


def prepare(ground: Ground, install: str) -> Environment:
    """Prepare the ground's repository with this install command. Raises what `prepare_environment` does."""
    folder = ground.folder("heron")
    Tree({path: FileEntry(text.encode()) for path, text in FILES.items()}).write_to(folder)
    checkout = fetch(parse_spec(f"{shlex.quote(str(folder))} install={shlex.quote(install)}"), ground.cache)
    settings = EnvironmentSettings(baselines=2)
    return prepare_environment(checkout, ground.backend, settings, Limits(), ground.cache, lambda _: None)


ATTACKS = (
    Attack("find-original", 18, "find the original source outside the workspace", find_the_original),
    Attack("build-folder", 18, "bring a built copy along in the repository", bring_a_built_copy),
    Attack("installed-copy", 18, "install a copy of the package into its environment", install_a_copy),
)

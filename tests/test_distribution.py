"""The name that pip installs, and an installation from a wheel, without a checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest

from selfplay import DISTRIBUTION

ROOT = Path(__file__).parents[1]
PLACES = ("selfplay", "tests", "benchmarks", "examples", "docs", "runs/recipes", "sandboxes", ".ci")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
KINDS = {".py", ".md", ".sh", ".toml", ".txt", ".j2", ""}
# `selfplay` alone is an unrelated package on the public index: as a requirement with extras, or given to pip.
FOREIGN = re.compile(r"(?<![\w./-])selfplay(\\?\[[a-z]|==)|pip install\s+(-\S+\s+)*['\"]?selfplay(?![\w-])")


def texts() -> list[Path]:
    found = [ROOT / name for name in PAGES]
    for place in PLACES:
        found += [path for path in (ROOT / place).rglob("*") if path.suffix in KINDS and path.is_file()]
    # The log tells what was; data and recordings are played texts.
    left_out = {"data", "recordings", "__pycache__"}
    return [
        path
        for path in found
        if not left_out & set(path.relative_to(ROOT).parts)
        and path != ROOT / "docs" / "log.md"
        and path != Path(__file__)
    ]


@pytest.mark.parametrize(
    ("text", "is_foreign"),
    [
        ("pip install 'selfplay[vllm]'", True),
        (r"pip install 'selfplay\[lora\]'", True),
        ("pip install -q selfplay", True),
        ("'selfplay[vllm-cpu]' on one without", True),
        ("pip install 'selfplay-swe[vllm]'", False),
        ("uninstall -q -y selfplay", False),
        ("selfplay train --repos list.txt", False),
    ],
)
def test_the_other_package_is_recognised(text: str, is_foreign: bool):
    assert bool(FOREIGN.search(text)) == is_foreign


def test_no_file_says_to_install_the_other_package():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert found == []


def test_the_package_knows_the_name_that_it_is_installed_by():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION == "selfplay-swe"
    assert metadata.distribution(DISTRIBUTION).entry_points["selfplay"].value == "selfplay.cli:main"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with selfplay from a wheel. Its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index answers: a wheel cannot be built without hatchling")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "-q", "--no-deps", str(wheel)], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A line of a .pth file becomes a folder to import from, but .pth files in that folder are not read, so
    # this environment's link to the checkout has no effect there.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def run(arguments: list[str], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(installed: Path, tmp_path: Path):
    python, command = str(installed / "bin" / "python"), str(installed / "bin" / "selfplay")
    package = Path(run([python, "-c", "import selfplay; print(selfplay.__file__)"], tmp_path).strip()).parent
    assert package.is_relative_to(installed)
    assert "train" in run([command, "--help"], tmp_path)
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    recipe = package / "_resources" / "recipes" / "quickstart.toml"
    shown = run(
        [command, "train", "--repos", "list.txt", "--config", str(recipe), "--dry-run"],
        tmp_path,
    )
    assert "trainer" in shown
    assert str(ROOT) not in shown

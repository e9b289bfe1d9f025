"""A small package with tests, as a plain folder on a repository list, and how it is prepared."""

from pathlib import Path

from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings

CODE = {"shop/__init__.py": "def total(prices):\n    return sum(prices)\n"}
TEST_FILES = {"tests/test_many.py", "tests/test_one.py"}
PACKAGE = {
    **CODE,
    "tests/test_many.py": (
        "import pytest\nfrom shop import total\n\n\n"
        "@pytest.mark.parametrize('prices', [[1], [1, 2], [3, 4, 5]])\n"
        "def test_many(prices):\n    assert total(prices) == sum(prices)\n"
    ),
    "tests/test_one.py": "from shop import total\n\n\ndef test_one():\n    assert total([1]) == 1\n",
}


def write_shop(files: dict[str, str], folder: Path) -> Path:
    """Write the files into a folder that is named shop, since equal names are installed once."""
    folder = folder / "shop"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def shop_checkout(files: dict[str, str], folder: Path, cache: Path, hints: str = "") -> Checkout:
    return fetch(parse_spec(f"{write_shop(files, folder)} {hints}"), cache)


def prepared_shop(
    found: Checkout, backend: SandboxBackend, cache: Path, said: list[str] | None = None, **settings: float
) -> Environment:
    """said: gets the lines of progress."""
    progress = (lambda message: None) if said is None else said.append
    return prepare_environment(found, backend, EnvironmentSettings(**settings), Limits(), cache, progress)

"""The version of a repository, from git's tags or from its files."""

import pytest

from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.versions import archived_version, version_of_description
from selfplay.source.trees import FileEntry, Tree

NAME = '[project]\nname = "shop"\ndynamic = ["version"]\n'


@pytest.mark.parametrize(
    ("description", "version"),
    [
        ("v2.5.0-0-gabc", "2.5.0"),
        ("v2.5.0-3-gabc", "2.5.1.dev3"),
        ("2.5-3-gabc", "2.6.dev3"),
        ("shop-v1.2-0-gabc", "1.2"),
        ("release/1.2.3-0-gabc", "1.2.3"),
        ("py3-v1.2-0-gabc", "1.2"),
        ("v1.0rc1-0-gabc", "1.0rc1"),
        ("v1.0rc1-2-gabc", "1.0rc2.dev2"),
        ("nightly-2-0-gabc", "2"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_a_description_of_git_means_a_version(description: str, version: str) -> None:
    assert version_of_description(description) == version


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": f'[build-system]\nrequires = ["setuptools", "setuptools_scm[toml]>=8"]\n{NAME}'},
        {"pyproject.toml": f'[build-system]\nrequires = ["hatchling", "hatch-vcs"]\n{NAME}'},
        {"pyproject.toml": f'{NAME}[tool.hatch.version]\nsource = "vcs"\n'},
        {"pyproject.toml": f'{NAME}[tool.pdm.version]\nsource = "scm"\n'},
        {"pyproject.toml": f"{NAME}[tool.setuptools_scm]\n"},
        {
            "pyproject.toml": '[tool.poetry]\nname = "shop"\nversion = "0.0.0"\n'
            "[tool.poetry-dynamic-versioning]\nenable = true\n"
        },
        {"setup.py": "from setuptools import setup\nsetup(name='shop', use_scm_version=True)\n"},
        {"setup.py": "from setuptools import setup\nsetup(setup_requires=['pbr'], pbr=True)\n"},
        {
            "setup.py": "import versioneer\nsetup(name='shop', version=versioneer.get_version())\n",
            "versioneer.py": "",
        },
    ],
)
def test_a_repository_that_takes_its_version_from_tags_has_that_version(files: dict[str, str]) -> None:
    tree = Tree({path: FileEntry(text.encode()) for path, text in files.items()})
    found = read_dependencies(tree, "shop", "2.5.0")
    assert (found.version, found.unread) == ("2.5.0", ())


@pytest.mark.parametrize(
    "files",
    [
        {
            "pyproject.toml": f'{NAME}[tool.hatch.version]\npath = "shop/about.py"\n',
            "shop/about.py": 'VERSION = "3.1"\n',
        },
        {
            "pyproject.toml": f'{NAME}[tool.setuptools.dynamic]\nversion = {{attr = "shop.v.NUMBER"}}\n',
            "shop/v.py": 'version = "3.1"',
        },
        {
            "pyproject.toml": f'{NAME}[tool.setuptools.dynamic]\nversion = {{file = "VERSION.txt"}}\n',
            "VERSION.txt": "3.1\n",
        },
        {"pyproject.toml": f"{NAME}", "src/shop/__init__.py": '"""Shop."""\n__version__: str = "3.1"\n'},
        {
            "setup.cfg": "[metadata]\nname = shop\nversion = attr: shop.__version__\n",
            "shop/__init__.py": "__version__ = '3.1'\n",
        },
        {
            "setup.py": "setup(name='shop', version=find_version())\n",
            "shop/_version.py": "__version__ = version = '3.1'\n",
        },
        {"setup.py": "setup(name='shop', version=open('VERSION').read().strip())\n", "VERSION": "3.1\n"},
    ],
)
def test_a_version_that_a_file_states_is_read(files: dict[str, str]) -> None:
    tree = Tree({path: FileEntry(text.encode()) for path, text in files.items()})
    found = read_dependencies(tree, "shop", "9.9")
    assert (found.version, found.unread) == ("3.1", ())


@pytest.mark.parametrize(
    ("name", "version"), [("v2.5.0", "2.5.0"), ("v2.5.0-2-gabc", "2.5.1.dev2"), ("$Format$", "")]
)
def test_an_archive_of_git_names_its_version(name: str, version: str) -> None:
    text = f"node: abc\ndescribe-name: {name}\n"
    assert archived_version(Tree({".git_archival.txt": FileEntry(text.encode())})) == version

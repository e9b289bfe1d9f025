"""Which folders go on Python's path, by what each build backend is told."""

import pytest

from selfplay.source.import_roots import import_roots, renamed_packages
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import FileEntry, Tree

SETUP = "from setuptools import setup, find_packages\n"
CASES = {
    "a package at the top": ({"shop/__init__.py": ""}, ("",)),
    "a package below src": ({"src/shop/__init__.py": ""}, ("src", "")),
    "src that is a package": ({"src/__init__.py": "", "src/shop/__init__.py": ""}, ("",)),
    "a namespace package below src": (
        {"src/corp/shop/prices.py": "", "pyproject.toml": "[project]\n"},
        ("src", ""),
    ),
    "scripts below src beside a package": ({"shop/__init__.py": "", "src/native/make.py": ""}, ("",)),
    "setuptools, where": (
        {
            "code/shop/__init__.py": "",
            "pyproject.toml": '[tool.setuptools.packages.find]\nwhere = ["code"]\nnamespaces = true\n',
        },
        ("code", ""),
    ),
    "setuptools, package-dir": (
        {"code/shop/__init__.py": "", "pyproject.toml": '[tool.setuptools]\npackage-dir = {"" = "code"}\n'},
        ("code", ""),
    ),
    "setuptools, the folder of one package": (
        {"code/py/shop/a.py": "", "setup.py": f"{SETUP}setup(package_dir={{'shop': 'code/py/shop'}})\n"},
        ("code/py", ""),
    ),
    "setup.cfg": (
        {"code/shop/a.py": "", "setup.cfg": "[options]\npackage_dir =\n    = code\npackages = find:\n"},
        ("code", ""),
    ),
    "setup.cfg, where": (
        {
            "code/shop/a.py": "",
            "setup.cfg": "[options]\npackages = find:\n[options.packages.find]\nwhere = code\n",
        },
        ("code", ""),
    ),
    "setup.py": (
        {"code/shop/a.py": "", "setup.py": f"{SETUP}ROOT = 'code'\nsetup(package_dir={{'': ROOT}})\n"},
        ("code", ""),
    ),
    "setup.py, find_packages": (
        {
            "code/shop/a.py": "",
            "setup.py": f"{SETUP}setup(packages=find_packages(where='code', exclude=['x']))\n",
        },
        ("code", ""),
    ),
    "poetry": (
        {
            "code/shop/a.py": "",
            "pyproject.toml": '[tool.poetry]\nname = "shop"\npackages = [{include = "shop", from = "code"}, '
            '{include = "other"}]\n',
        },
        ("code", ""),
    ),
    "hatch, packages": (
        {
            "code/shop/a.py": "",
            "pyproject.toml": '[tool.hatch.build.targets.wheel]\npackages = ["code/shop"]\n',
        },
        ("code", ""),
    ),
    "hatch, sources": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.hatch.build]\nsources = ["code"]\n'},
        ("code", ""),
    ),
    "hatch, a table of sources": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.hatch.build.targets.wheel.sources]\n"code" = ""\n'},
        ("code", ""),
    ),
    "hatch, a renamed folder": (
        {
            "code/shop/a.py": "",
            "pyproject.toml": '[tool.hatch.build.targets.wheel.sources]\n"code/shop" = "shop"\n',
        },
        ("code", ""),
    ),
    "hatch.toml": (
        {"code/shop/a.py": "", "hatch.toml": '[build.targets.wheel]\npackages = ["code/shop"]\n'},
        ("code", ""),
    ),
    "hatch, development mode": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.hatch.build]\ndev-mode-dirs = ["code", "."]\n'},
        ("code", ""),
    ),
    "PDM": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.pdm.build]\npackage-dir = "code"\n'},
        ("code", ""),
    ),
    "uv": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.uv.build-backend]\nmodule-root = "code"\n'},
        ("code", ""),
    ),
    "maturin": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.maturin]\npython-source = "code"\n'},
        ("code", ""),
    ),
    "scikit-build": (
        {"code/shop/a.py": "", "pyproject.toml": '[tool.scikit-build]\nwheel.packages = ["code/shop"]\n'},
        ("code", ""),
    ),
    "flit below src": (
        {"src/shop.py": "", "pyproject.toml": '[tool.flit.module]\nname = "shop"\n'},
        ("src", ""),
    ),
    "a project in a folder": (
        {"backend/setup.py": f"{SETUP}setup(name='shop')\n", "backend/shop/a.py": "", "frontend/a.js": ""},
        ("backend", ""),
    ),
    "an application in a folder, without metadata": (
        {"backend/requirements.txt": "", "backend/app/main.py": "", "backend/tests/test_a.py": ""},
        ("backend", ""),
    ),
    "packages with requirement files, and a folder that hides the standard library": (
        {
            "src/shop/__init__.py": "",
            "src/shop/requirements.txt": "",
            "src/shop/web/types.py": "",
            "app/requirements.txt": "",
            "app/types.py": "",
            "app/pages/a.py": "",
        },
        ("src", ""),
    ),
    "several projects": (
        {
            "libs/a/pyproject.toml": '[project]\nname = "a"\n',
            "libs/a/src/shop_a/__init__.py": "",
            "libs/b/pyproject.toml": '[tool.poetry]\nname = "b"\n',
            "libs/b/shop_b/__init__.py": "",
            "examples/c/pyproject.toml": '[project]\nname = "c"\n',
        },
        ("libs/a/src", "libs/a", "libs/b", ""),
    ),
    "a workspace": (
        {
            "pyproject.toml": '[project]\nname = "top"\n[tool.uv.workspace]\nmembers = ["packages/*"]\n',
            "packages/a/pyproject.toml": '[project]\nname = "a"\n',
            "packages/a/src/a/__init__.py": "",
            "other/b/pyproject.toml": '[project]\nname = "b"\n',
        },
        ("packages/a/src", "packages/a", ""),
    ),
    "a dependency at a path": (
        {
            "pyproject.toml": '[tool.poetry]\nname = "top"\n'
            '[tool.poetry.dependencies]\na = {path = "./libs/a"}\n',
            "libs/a/setup.py": f"{SETUP}setup(name='a')\n",
            "libs/a/a.py": "",
        },
        ("libs/a", ""),
    ),
    "folders that are not there, or outside": (
        {
            "shop/a.py": "",
            "pyproject.toml": '[tool.setuptools.packages.find]\nwhere = ["none", "..", "/etc", "a:b", "."]\n',
            "a:b/x.py": "",
        },
        ("",),
    ),
}


def tree_of(files: dict[str, str]) -> Tree:
    return Tree({path: FileEntry(text.encode()) for path, text in files.items()})


@pytest.mark.parametrize("case", CASES)
def test_the_import_roots_are_those_that_the_metadata_name(case: str) -> None:
    files, roots = CASES[case]
    assert import_roots(tree_of(files)) == roots


@pytest.mark.parametrize(
    "files",
    [
        {"setup.py": f"{SETUP}setup(package_dir={{'shop': 'source', '': '.'}})\n"},
        {"setup.cfg": "[options]\npackage_dir =\n    shop = source\n    other = none\n"},
        {"pyproject.toml": '[tool.setuptools]\npackage-dir = {shop = "source", source = "source"}\n'},
        {"pyproject.toml": '[tool.hatch.build.targets.wheel.sources]\n"source" = "shop"\n'},
        {"pyproject.toml": '[tool.scikit-build.wheel.packages]\n"shop" = "source"\n'},
    ],
)
def test_a_package_whose_folder_has_another_name_is_found(files: dict[str, str]) -> None:
    assert renamed_packages(tree_of({"source/a.py": "", **files})) == {"shop": "source"}


def test_a_module_that_would_shadow_pytest_is_protected_in_every_import_root() -> None:
    files = {"code/shop/a.py": "", "pyproject.toml": '[tool.maturin]\npython-source = "code"\n'}
    original = tree_of(files)
    assert is_protected_path("code/pytest.py", original)
    assert is_protected_path("code/json/__init__.py", original)
    assert not is_protected_path("code/shop/json.py", original)
    assert not is_protected_path("code/shop/b.py", original)

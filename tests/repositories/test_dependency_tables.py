"""Every form in which projects say what their tests need: `freezegun` must be among what is installed."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay.repositories.dependencies import Dependencies, read_dependencies
from selfplay.repositories.versions import missing_version_files
from selfplay.source.import_roots import Project, import_roots, renamed_packages
from selfplay.source.trees import FileEntry, Tree

PROJECT = '[project]\nname = "shop"\nversion = "1"\ndependencies = ["attrs"]\n'
POETRY = (
    '[tool.poetry]\nname = "shop"\nversion = "1"\n[tool.poetry.dependencies]\npython = "^3.8"\nattrs = "*"\n'
)
SETUP = "from setuptools import setup\n"
OLD = f'{SETUP}setup(name="shop", version="1", install_requires=["attrs"])\n'

# Expected among `test`, which is installed at once.
INSTALLED: dict[str, Mapping[str, str | bytes]] = {
    "an extra that names the project itself": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\ncli = ["freezegun"]\n'
        'test = ["Shop[CLI]"]\n'
    },
    "extras that name the project in a circle": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\na = ["shop[test]", "freezegun"]\n'
        'test = ["shop[a]"]\n'
    },
    "a dependency group that includes another": {
        "pyproject.toml": f'{PROJECT}[dependency-groups]\nclock = ["freezegun"]\n'
        'test = [{include-group = "clock"}]\n'
    },
    "a dependency group that also includes one that is not there": {
        "pyproject.toml": f'{PROJECT}[dependency-groups]\nclock = ["freezegun"]\n'
        'test = [{include-group = "none"}, {include-group = "Clock"}]\n'
    },
    "a dependency group that names an extra": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\nclock = ["freezegun"]\n'
        '[dependency-groups]\ntest = ["shop[clock]"]\n'
    },
    "PDM": {"pyproject.toml": f'{PROJECT}[tool.pdm.dev-dependencies]\ntest = ["freezegun"]\n'},
    "flit": {
        "pyproject.toml": '[tool.flit.metadata]\nmodule = "shop"\nrequires = ["attrs"]\n'
        '[tool.flit.metadata.requires-extra]\ntest = ["freezegun"]\n'
    },
    "setuptools' dynamic files": {
        "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n'
        'dynamic = ["dependencies", "optional-dependencies"]\n[tool.setuptools.dynamic]\n'
        'dependencies = {file = ["deps/run.txt"]}\noptional-dependencies.test = {file = "deps/clock.txt"}\n',
        "deps/run.txt": "attrs\n",
        "deps/clock.txt": "freezegun\n",
    },
    "hatch-requirements-txt": {
        "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n'
        'dynamic = ["dependencies", "optional-dependencies"]\n'
        '[tool.hatch.metadata.hooks.requirements_txt]\nfiles = ["run.txt"]\n'
        '[tool.hatch.metadata.hooks.requirements_txt.optional-dependencies]\ntest = ["clock.txt"]\n',
        "run.txt": "attrs\n",
        "clock.txt": "freezegun\n",
    },
    "files that setup.cfg names": {
        "setup.cfg": "[metadata]\nname = shop\nversion = 1\n[options]\ninstall_requires = file: run.txt\n"
        "[options.extras_require]\ntest = file: clock.txt\n",
        "run.txt": "attrs\n",
        "clock.txt": "freezegun\n",
    },
    "setup.cfg in one line": {
        "setup.cfg": "[metadata]\nname = shop\nversion = 1\n[options]\ninstall_requires = attrs; six>=1\n"
        "[options.extras_require]\ntest = mock; freezegun\n",
    },
    "setup.py with names in variables": {
        "setup.py": f'{SETUP}REQ = ["attrs"]\nTEST = ["freezegun"]\n'
        'setup(name="shop", version="1", install_requires=REQ, extras_require={"test": TEST})\n'
    },
    "setup.py with a dictionary of arguments": {
        "setup.py": f'{SETUP}kw = dict(name="shop", version="1", install_requires=["attrs"])\n'
        'kw["extras_require"] = {"test": ["freezegun"]}\nsetup(**kw)\n'
    },
    "setup.py with one computed extra": {
        "setup.py": f'{SETUP}find = lambda: []\nsetup(name="shop", version="1", install_requires=["attrs"], '
        'extras_require={"docs": find(), "test": ["freezegun"]})\n'
    },
    "setup.py that adds lists": {
        "setup.py": f'{SETUP}extras = {{"clock": ["freezegun"]}}\n'
        'extras["test"] = ["six"] + extras["clock"]\n'
        'setup(name="shop", version="1", install_requires=["attrs"] + unknown(), extras_require=extras)\n'
    },
    "setup.py that reads files through a function of its own": {
        "setup.py": f"import os\n{SETUP}def read(name):\n    with open(os.path.join(HERE, name)) as file:\n"
        "        return [line.strip() for line in file if line.strip() and not line.startswith('#')]\n"
        'setup(name="shop", version="1", install_requires=read("run.txt"), '
        'extras_require={"test": read("clock.txt")})\n',
        "run.txt": "# these\nattrs\n",
        "clock.txt": "freezegun\n",
    },
    "setup.py that reads a file by its path": {
        "setup.py": f"from pathlib import Path\n{SETUP}here = Path(__file__).parent\n"
        'setup(name="shop", version="1", install_requires=(here / "run.txt").read_text().splitlines(), '
        'tests_require=open("clock.txt").readlines())\n',
        "run.txt": "attrs\n",
        "clock.txt": "freezegun\n",
    },
    "setup.py with setup in a function, under a condition": {
        "setup.py": f'{SETUP}tests = ["freezegun"]\nif sys.version_info < (3, 3):\n    tests = []\n'
        'def main():\n    setup(name="shop", version="1", install_requires=["attrs"], tests_require=tests)\n'
        'if __name__ == "__main__":\n    main()\n'
    },
    "requirements with hashes": {
        "pyproject.toml": PROJECT,
        "requirements-test.txt": "freezegun==1.5.1 \\\n    --hash=sha256:aaaa \\\n    --hash=sha256:bbbb\n"
        "    # via -r test.in\n",
    },
    "requirements that include others": {
        "pyproject.toml": PROJECT,
        "requirements/test.txt": "-r more/clock.txt\n-r test.txt\n",
        "requirements/more/clock.txt": "--requirement=../end.txt\n",
        "requirements/end.txt": "freezegun\n",
    },
    "requirements that install the project with an extra": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\ncli = ["freezegun"]\n',
        "requirements-test.txt": "-e .[cli]\n",
    },
    "requirements with a byte order mark": {
        "pyproject.toml": PROJECT,
        "requirements-test.txt": "\ufefffreezegun\n",
    },
    "requirements in UTF-16": {
        "pyproject.toml": PROJECT,
        "requirements-test.txt": "freezegun\r\n".encode("utf-16"),
    },
    "requirements with options and comments": {
        "pyproject.toml": PROJECT,
        "test-requirements.txt": "--index-url https://host/simple\n-f wheels\n"
        "freezegun>=1 ; python_version > '3'  # why\n./local\nhttps://host/x.whl\n",
    },
    "pyproject.toml with a byte order mark": {
        "pyproject.toml": f'\ufeff{PROJECT}[project.optional-dependencies]\ntest = ["freezegun"]\n'
    },
    "a group of Poetry": {
        "pyproject.toml": f'{POETRY}[tool.poetry.group.test.dependencies]\nfreezegun = "^1"\n'
    },
    "an extra of Poetry": {
        "pyproject.toml": f'{POETRY}freezegun = {{version = "^1", optional = true}}\n'
        '[tool.poetry.extras]\ntest = ["freezegun"]\n'
    },
    "a plugin of pytest in a group for development": {
        "pyproject.toml": f'{POETRY}[tool.poetry.group.dev.dependencies]\npytest-freezegun = "^0"\n'
    },
    "pbr": {
        "setup.py": f'{SETUP}setup(setup_requires=["pbr"], pbr=True)\n',
        "setup.cfg": "[metadata]\nname = shop\n[extras]\ntest =\n  freezegun\n",
        "requirements.txt": "attrs\n",
    },
}
# Expected at least among `more`, which is installed if tests miss it.
AT_HAND: dict[str, Mapping[str, str | bytes]] = {
    "uv": {"pyproject.toml": f'{PROJECT}[tool.uv]\ndev-dependencies = ["freezegun"]\n'},
    "Rye": {"pyproject.toml": f'{PROJECT}[tool.rye]\ndev-dependencies = ["freezegun"]\n'},
    "Hatch": {"pyproject.toml": f'{PROJECT}[tool.hatch.envs.test]\ndependencies = ["freezegun"]\n'},
    "hatch.toml": {
        "pyproject.toml": PROJECT,
        "hatch.toml": '[envs.default]\nextra-dependencies = ["freezegun"]\n',
    },
    "features of Hatch": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\nclock = ["freezegun"]\n'
        '[tool.hatch.envs.test]\nfeatures = ["clock"]\n'
    },
    "tox.ini": {
        "pyproject.toml": PROJECT,
        "tox.ini": "[tox]\n[testenv]\ndeps =\n  py{38,39}: six\n  {[base]deps}\n[base]\ndeps = freezegun\n",
    },
    "a file that tox.ini names": {
        "pyproject.toml": PROJECT,
        "tox.ini": "[testenv:unit]\ndeps = -r{toxinidir}/ci/unit.txt\n",
        "ci/unit.txt": "freezegun\n",
    },
    "extras of tox": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\nclock = ["freezegun"]\n',
        "tox.ini": "[testenv]\nextras =\n  clock\n",
    },
    "groups of tox": {
        "pyproject.toml": f'{PROJECT}[dependency-groups]\nclock = ["freezegun"]\n',
        "tox.ini": "[testenv]\ndependency_groups = clock\n",
    },
    "tox in pyproject.toml": {"pyproject.toml": f'{PROJECT}[tool.tox.env_run_base]\ndeps = ["freezegun"]\n'},
    "tox.toml": {
        "pyproject.toml": PROJECT,
        "tox.toml": '[env.unit]\ndeps = ["-r ci.txt"]\n',
        "ci.txt": "freezegun\n",
    },
    "old tox in pyproject.toml": {
        "pyproject.toml": f'{PROJECT}[tool.tox]\nlegacy_tox_ini = """\n[testenv]\ndeps = freezegun\n"""\n'
    },
    "nox": {
        "pyproject.toml": PROJECT,
        "noxfile.py": 'import nox\nEXTRA = ["freezegun"]\n@nox.session\ndef tests(session):\n'
        '    session.install("-e", ".", *EXTRA)\n',
    },
    "nox with a file": {
        "pyproject.toml": PROJECT,
        "noxfile.py": 'import nox\n@nox.session(python=["3.11"])\ndef tests(session):\n'
        '    session.run("python", "-m", "pip", "install", "-r", "ci/clock.txt")\n',
        "ci/clock.txt": "freezegun\n",
    },
    "nox with an extra": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\nclock = ["freezegun"]\n',
        "noxfile.py": 'import nox\n@nox.session\ndef tests(session):\n    session.install(".[clock]")\n',
    },
    "Pipfile": {"setup.py": OLD, "Pipfile": '[dev-packages]\nfreezegun = "*"\n'},
    "Pipfile.lock": {
        "setup.py": OLD,
        "Pipfile.lock": json.dumps({"develop": {"freezegun": {"version": "==1.5.1"}}}),
    },
    "conda": {
        "pyproject.toml": PROJECT,
        "environment.yml": "dependencies:\n  - python\n  - conda-forge::freezegun>=1\n",
    },
    "pip in conda": {
        "pyproject.toml": PROJECT,
        "ci/environment-test.yaml": "dependencies:\n  - pip:\n    - freezegun==1.5.1\n",
    },
    "Pixi": {"pyproject.toml": f'{PROJECT}[tool.pixi.feature.test.pypi-dependencies]\nfreezegun = "*"\n'},
    "uv.lock": {
        "pyproject.toml": PROJECT,
        "uv.lock": '[[package]]\nname = "freezegun"\nversion = "1.5.1"\n'
        '[[package]]\nname = "shop"\nversion = "1"\nsource = { editable = "." }\n',
    },
    "poetry.lock": {
        "pyproject.toml": POETRY,
        "poetry.lock": '[[package]]\nname = "freezegun"\nversion = "1"\n',
    },
    "pylock.toml": {"pyproject.toml": PROJECT, "pylock.toml": '[[packages]]\nname = "freezegun"\n'},
    "a lock file of another name": {
        "pyproject.toml": PROJECT,
        "pylock.dev.toml": '[[packages]]\nname = "freezegun"\n',
    },
    "commands of continuous integration": {
        "pyproject.toml": PROJECT,
        ".github/workflows/ci.yml": "steps:\n  - run: |\n      python -m pip install -U pip && "
        "pip install -e . 'freezegun>=1' $MORE\n",
    },
    "a file with capital letters": {"pyproject.toml": PROJECT, "ci/Requirements-CI.txt": "freezegun\n"},
    "a feature's extra": {
        "pyproject.toml": f'{PROJECT}[project.optional-dependencies]\nclock = ["freezegun"]\n'
    },
    "a group of Poetry for development": {
        "pyproject.toml": f'{POETRY}[tool.poetry.group.dev.dependencies]\nfreezegun = "^1"\n'
    },
    "old development dependencies of Poetry": {
        "pyproject.toml": f"{POETRY}[tool.poetry.dev-dependencies]\n"
        'freezegun = {version = "^1", python = ">3"}\n'
    },
}


def read(files: Mapping[str, str | bytes]) -> Dependencies:
    entries = {
        path: FileEntry(text if isinstance(text, bytes) else text.encode()) for path, text in files.items()
    }
    return read_dependencies(Tree(entries), "shop")


@pytest.mark.parametrize("form", INSTALLED)
def test_what_tests_need_is_installed(form: str) -> None:
    found = read(INSTALLED[form])
    assert found.name == "shop"
    assert any(text.startswith("attrs") for text in found.runtime)
    assert any("freezegun" in text for text in found.test)


@pytest.mark.parametrize("form", AT_HAND)
def test_what_tests_may_need_is_at_hand(form: str) -> None:
    found = read(AT_HAND[form])
    assert any(text.startswith("attrs") for text in found.runtime)
    assert any("freezegun" in text for text in found.more)
    assert "freezegun" in "".join(found.wanted_by("ModuleNotFoundError: No module named 'freezegun'"))


def test_constraints_limit_versions_and_ask_for_nothing() -> None:
    found = read(
        {
            "pyproject.toml": PROJECT,
            "requirements-test.txt": "-c limits.txt\nfreezegun\nmock>=1\n",
            "limits.txt": "freezegun<2\nsix==1.0\nmock<5\n",
        }
    )
    assert found.test == ("freezegun<2", "mock<5,>=1")


def test_values_of_options_are_no_requirements() -> None:
    workflow = (
        "- run: pip install -U --upgrade-strategy only-if-needed --group test -i https://host "
        "six==${{ matrix.six }}\n"
        "- run: pip install --quiet -t target $(cat names) mock\n"
    )
    found = read({"pyproject.toml": PROJECT, ".github/workflows/ci.yml": workflow})
    assert found.more == ("mock",)


def test_requirements_at_urls_are_named() -> None:
    found = read(
        {
            "pyproject.toml": '[project]\nname = "shop"\ndependencies = ["a @ https://host/a.whl", '
            "\"b @ https://host/b.whl ; python_version < '3'\"]\n",
            "requirements-test.txt": "-e git+https://host/c@v1#egg=c\ngit+https://host/shop#egg=shop\n",
        }
    )
    assert found.urls == ("a @ https://host/a.whl", "c @ git+https://host/c@v1")
    assert (found.runtime, found.test) == ((), ())


def test_an_include_reaches_files_of_the_tree_only() -> None:
    files = {"requirements-test.txt": "-r /etc/passwd\n-r ../../x.txt\n-r https://host/x.txt\nsix\n"}
    assert read({"pyproject.toml": PROJECT, **files}).test == ("six",)


def test_versions_of_poetry_become_those_of_packaging() -> None:
    table = (
        '[tool.poetry]\nname = "shop"\nversion = "1"\n[tool.poetry.dependencies]\na = "^1.2"\nb = "^0.3.1"\n'
        'c = "~2.1"\nd = "1.5"\ne = ">=1,<3"\nf = "^1 || ^2"\n'
        'g = {git = "https://host/g"}\nh = {path = "../h"}\n'
        'i = [{version = "1", python = "<3"}, {version = "2", python = ">=3"}]\nj = "2.*"\n'
    )
    assert read({"pyproject.toml": table}).runtime == (
        *("a<2,>=1.2", "b<0.4,>=0.3.1", "c<2.2,>=2.1", "d==1.5", "e<3,>=1", "f", "i", "j==2.*"),
    )


def test_members_of_a_workspace_are_read_and_not_installed() -> None:
    files = {
        "pyproject.toml": '[tool.uv.workspace]\nmembers = ["packages/*"]\n'
        "[tool.uv.sources]\nshop-core = { workspace = true }\n",
        "packages/core/pyproject.toml": '[project]\nname = "shop-core"\nversion = "2"\n'
        'dependencies = ["attrs"]\n',
        "packages/web/pyproject.toml": '[project]\nname = "shop-web"\nversion = "3"\n'
        'dependencies = ["shop-core", "six"]\n[dependency-groups]\ntest = ["freezegun"]\n',
        "examples/x/pyproject.toml": '[project]\nname = "x"\ndependencies = ["mock"]\n',
    }
    found = read(files)
    assert (found.name, found.version, found.others) == ("shop-core", "2", (("shop-web", "3"),))
    assert (found.runtime, found.test) == (("attrs", "six"), ("freezegun",))


@pytest.mark.parametrize(
    ("files", "unread"),
    [
        ({"pyproject.toml": PROJECT}, ()),
        ({"setup.py": OLD}, ()),
        ({"setup.py": f"{SETUP}setup(name='shop', install_requires=[])\n"}, ()),
        ({"setup.py": f"{SETUP}setup(name='shop', install_requires=compute())\n"}, ("dependencies",)),
        ({"setup.py": f"{SETUP}setup(**compute())\n"}, ("dependencies", "extras")),
        (
            {"pyproject.toml": '[project]\nname = "shop"\ndynamic = ["dependencies"]\nversion = "1"\n'},
            ("dependencies",),
        ),
        (
            {
                "PKG-INFO": "Metadata-Version: 2.1\nName: shop\nVersion: 1\n",
                "setup.py": f"{SETUP}setup(install_requires=compute())\n",
            },
            (),
        ),
    ],
)
def test_what_only_the_build_backend_knows_is_named(files: dict[str, str], unread: tuple[str, ...]) -> None:
    assert read(files).unread == unread


@pytest.mark.parametrize(
    "program",
    [
        "x = ['a']\n" + "x = [x, x]\n" * 60 + "setup(name=str(x), install_requires=x)\n",
        "x = ['a']\n" + "x.extend(x)\n" * 60 + "setup(install_requires=x)\n",
        "x = 'a' * 10**9\nsetup(name='{:999999999}'.format(1), version='%999999999d' % 1)\n",
        "x = 'a'\n" + "x = x + x\n" * 60 + "setup(install_requires=[x.replace('a', x)])\n",
        "def f():\n    return [f(), f()]\nsetup(install_requires=f())\n",
        "setup(install_requires=" + "(" * 80 + "[]" + ")" * 80 + ")\n",
        "x = ()\n" + "x = (x, x)\n" * 60 + "y = {x: 1}\nsetup(install_requires=x == x)\n",
        "for a in range(10**9):\n    pass\n"
        "x = [i for i in open('setup.py') for j in open('setup.py')]\nsetup()\n",
    ],
)
def test_a_hostile_setup_script_costs_little_and_gives_nothing(program: str) -> None:
    found = read({"setup.py": SETUP + program})
    assert len(found.runtime) <= 1


VALUES = st.sampled_from(
    [
        "'a'",
        "1",
        "true",
        "['a']",
        "[1, 2]",
        "[[]]",
        "{a = 'b'}",
        "[{a = 'b'}]",
        "{file = ['x']}",
        "'-e .'",
        "'../x'",
    ]
)
KEY_NAMES = """
    project project.dependencies project.optional-dependencies project.dynamic project.name project.version
    dependency-groups dependency-groups.test build-system build-system.requires tool tool.uv tool.uv.sources
    tool.uv.workspace tool.uv.workspace.members tool.poetry tool.poetry.dependencies tool.poetry.group
    tool.poetry.group.a.dependencies tool.poetry.packages tool.poetry.extras tool.pdm.version tool.pdm.build
    tool.pdm.dev-dependencies tool.hatch tool.hatch.envs tool.hatch.envs.a tool.hatch.build.sources
    tool.hatch.build.targets.wheel tool.hatch.metadata.hooks.requirements_txt tool.setuptools.package-dir
    tool.setuptools.dynamic tool.setuptools.dynamic.version tool.setuptools_scm tool.setuptools_scm.write_to
    tool.flit tool.flit.metadata tool.versioningit tool.tox tool.tox.env tool.tox.env_run_base.deps tool.pixi
    tool.scikit-build tool.scikit-build.generate tool.maturin tool.rye envs env packages package
"""
KEYS = st.sampled_from(KEY_NAMES.split())


@given(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_metadata_of_any_form_are_read(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in pairs)
    names = ("pyproject.toml", "hatch.toml", "tox.toml", "pixi.toml", "Pipfile", "uv.lock", "b/x.py")
    tree = Tree({name: FileEntry(text.encode()) for name in names})
    read_dependencies(tree, "shop", "1.0")
    import_roots(tree)
    renamed_packages(tree)
    missing_version_files(tree, Project(tree, ""), "1.0")

"""Environments, built and run in a real sandbox of this machine. Needs a package index that pip can reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import sandbox_groups
from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings
from selfplay.source.trees import FileEntry, Tree
from shop_repository import prepared_shop as prepare
from shop_repository import shop_checkout as checkout

pytestmark = pytest.mark.sandbox

LABELS = {"run": "test"}
PACKAGE = {
    "shop/__init__.py": "from shop.prices import total\n",
    "shop/prices.py": (
        "import functools\n\n\n"
        "def total(prices):\n"
        "    result = 0\n"
        "    for price in prices:\n"
        "        result += price\n"
        "    return result\n\n\n"
        "class Basket:\n"
        "    @functools.lru_cache\n"
        "    def sum(self):\n"
        "        return total([1, 2])\n\n\n"
        "def never_called():\n"
        "    return 1\n"
    ),
    "tests/test_total.py": (
        "import pytest\nfrom shop import total\n\n\n"
        "@pytest.mark.parametrize('prices', [[1], [1, 2], [3, 4, 5]])\n"
        "def test_total(prices):\n"
        "    assert total(prices) == sum(prices)\n\n\n"
        "def test_nothing():\n"
        "    assert total([]) == 0\n"
    ),
    "tests/test_basket.py": (
        "from shop.prices import Basket\n\n\n"
        "def test_sum():\n"
        "    for _ in range(3000):  # the costlier of the two files that call total\n"
        "        assert Basket().sum() == 3\n"
    ),
}


@pytest.fixture(scope="module")
def shop(backend: SandboxBackend, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return prepare(checkout(PACKAGE, tmp_path_factory.mktemp("shop"), cache), backend, cache)


def test_an_environment_is_found_again_with_the_settings_that_a_run_has_stored(
    shop: Environment, backend: SandboxBackend, cache: Path
) -> None:
    stored = EnvironmentSettings.model_validate_json(EnvironmentSettings().model_dump_json())
    said: list[str] = []
    assert shop.checkout is not None
    again = prepare_environment(shop.checkout, backend, stored, Limits(), cache, said.append)
    assert (again.key, said) == (shop.key, [])


def test_a_folder_becomes_an_environment_with_a_baseline(shop: Environment) -> None:
    assert shop.test_files == ("tests/test_basket.py", "tests/test_total.py")
    assert {name.partition("[")[0] for name in shop.baseline.passed} == {
        "tests/test_basket.py::test_sum",
        "tests/test_total.py::test_total",
        "tests/test_total.py::test_nothing",
    }
    assert (shop.baseline.failed, shop.excluded_ids) == (frozenset(), frozenset())


def test_targets_are_the_functions_that_tests_really_call(shop: Environment) -> None:
    assert [(t.path, t.name, t.first_line, t.last_line, t.test_file) for t in shop.targets] == [
        ("shop/prices.py", "total", 4, 8, "tests/test_total.py"),
        ("shop/prices.py", "Basket.sum", 13, 14, "tests/test_basket.py"),
    ]
    assert shop.targets[1].source == "13:    def sum(self):\n14-        return total([1, 2])"


def test_calls_say_which_functions_each_test_calls(shop: Environment) -> None:
    total, basket = ("shop/prices.py", "total"), ("shop/prices.py", "Basket.sum")
    assert shop.calls == {
        "tests/test_basket.py::test_sum": (basket, total),
        **{f"tests/test_total.py::test_total[prices{number}]": (total,) for number in range(3)},
        "tests/test_total.py::test_nothing": (total,),
    }


def test_the_source_shown_is_what_grep_prints(shop: Environment, backend: SandboxBackend) -> None:
    with open_workspace(backend, shop, shop.tree, LABELS) as box:
        assert box.run("grep -n -A 4 'def total(' shop/prices.py").text.rstrip("\n") == shop.targets[0].source


def test_the_second_call_builds_nothing(
    shop: Environment, backend: SandboxBackend, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfplay.repositories.build._build", lambda *_: pytest.fail("built again"))
    assert prepare(shop.checkout, backend, cache) == shop


def test_the_script_exits_with_the_status_of_pytest_and_names_the_failing_line(
    shop: Environment, backend: SandboxBackend
) -> None:
    broken = shop.tree.replace(
        {"shop/prices.py": FileEntry(shop.tree["shop/prices.py"].content.replace(b"+= price", b"-= price"))}
    )
    for tree, status in ((shop.tree, 0), (broken, 1)):
        with open_workspace(backend, shop, tree, LABELS) as box:
            result = box.run(shop.script, 60, 1 << 20)
        assert result.exit_code == status
    assert "tests/test_total.py:7: in test_total" in result.text


def test_the_script_can_be_narrowed_to_some_files(shop: Environment, backend: SandboxBackend) -> None:
    with open_workspace(backend, shop, shop.tree, LABELS) as box:
        text = box.run(shop.script_for(["tests/test_basket.py"]), 60, 1 << 20).text
    assert "test_basket.py::test_sum" in text
    assert "test_total.py" not in text


def test_the_package_knows_its_version_but_is_only_in_the_workspace(
    shop: Environment, backend: SandboxBackend
) -> None:
    with open_workspace(backend, shop, Tree(), LABELS) as box:
        assert (
            box.run("python -c 'import importlib.metadata as m; print(m.version(\"shop\"))'").text
            == "0.0.0\n"
        )
        assert "ModuleNotFoundError" in box.run("python -c 'import shop'").text


def test_unstable_failing_and_address_bearing_tests_are_excluded(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "tests/test_odd.py": (
            "import pytest\nfrom shop import total\n\n\n"
            "def test_fails():\n    assert total([1]) == 2\n\n\n"
            "def test_hash():\n    differ = hash('b') % 4 != hash('a') % 4\n"
            "    assert total([differ, 1]) == 1 + (hash('b') % 4 != 0)\n\n\n"
            "def test_ok():\n    assert total([2]) == 2\n\n\n"
            "@pytest.mark.skip\ndef test_skipped():\n    pass\n\n\n"
            "@pytest.mark.parametrize('x', [1], ids=[repr(object())])\ndef test_address(x):\n    pass\n\n\n"
            "@pytest.mark.parametrize('x', [1, 2, 3], ids=['a - b', 'a] - b', 'a'])\n"
            "def test_dash(x):\n    pass\n\n\n"
            "@pytest.mark.parametrize('x', [1], ids=['c] - d'])\n"
            "def test_wrong(x):\n    assert x == 2, 'e] - f'\n"
        ),
        "tests/test_only_failures.py": "def test_no():\n    assert 0\n",
    }
    found = prepare(checkout(files, tmp_path, cache), backend, cache, baselines=4)
    odd = {name.removeprefix("tests/test_odd.py::") for name in found.baseline.passed if "odd" in name}
    assert odd == {"test_ok", "test_dash[a - b]", "test_dash[a] - b]", "test_dash[a]"}
    assert {
        "tests/test_odd.py::test_fails",
        "tests/test_odd.py::test_wrong[c] - d]",
        "tests/test_only_failures.py::test_no",
    } <= found.excluded_ids
    assert any("test_address" in name for name in found.excluded_ids)
    assert "tests/test_only_failures.py" not in found.test_files
    assert found.calls["tests/test_odd.py::test_fails"] == (("shop/prices.py", "total"),)


def test_a_package_that_tests_import_from_elsewhere_is_refused(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "shop.py": PACKAGE["shop/prices.py"],
        "tests/test_a.py": "import json\n\n\ndef test_a():\n    assert json.loads('1') == 1\n",
    }
    with pytest.raises(EnvironmentBuildError, match="imported from elsewhere"):
        prepare(checkout(files, tmp_path, cache), backend, cache)


def test_an_installed_copy_of_the_source_is_refused(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    copy = (
        'mkdir -p /opt/env/share/old; printf %s "$(cat requirements.txt)" > /opt/env/share/old/x.py; '
        "python -m pip install -q pytest"
    )
    files = {**PACKAGE, "requirements.txt": "# " + "x" * 300, "shop/copied.py": "# " + "x" * 300}
    with pytest.raises(EnvironmentBuildError, match=r"outside the workspace.*/opt/env/share/old/x\.py"):
        prepare(checkout(files, tmp_path, cache, f"install='{copy}'"), backend, cache)


def test_nothing_of_a_repository_runs_whose_files_state_what_it_depends_on(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "setup.py": "from setuptools import setup\nraise SystemExit('ran')\n"
        "setup(name='shop', install_requires=[])\n",
    }
    found = prepare(checkout(files, tmp_path, cache), backend, cache)
    assert len(found.baseline.passed) == 5


def test_a_src_layout_is_imported_from_the_workspace(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {(f"src/{path}" if path.startswith("shop") else path): text for path, text in PACKAGE.items()}
    found = prepare(checkout(files, tmp_path, cache), backend, cache)
    assert found.variables["PYTHONPATH"] == "/testbed/src:/testbed"
    assert {target.path for target in found.targets} == {"src/shop/prices.py"}


def test_no_passing_test_is_an_error_with_the_end_of_the_log(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "tests/test_total.py": "import no_such_module_here\n",
        "tests/test_basket.py": "def test_a():\n    assert 0, 'odd'\n",
    }
    said: list[str] = []
    reason = r"no test passes: all tests fail \(1 failed\): AssertionError: odd\. Log: .*baseline-1\.log"
    with pytest.raises(EnvironmentBuildError, match=reason) as caught:
        prepare(checkout(files, tmp_path, cache), backend, cache, said)
    assert "odd" in caught.value.log_tail
    assert "1 of its test files cannot be imported: No module named 'no_such_module_here'" in "\n".join(said)


def test_no_test_at_all_is_an_error(backend: SandboxBackend, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError, match="no test was found"):
        prepare(checkout({"shop.py": "x = 1\n"}, tmp_path, cache), backend, cache)


def test_dependencies_that_cannot_be_installed_are_an_error_with_the_log(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentBuildError, match=r"cannot be installed \(log: .*build-1\.log") as caught:
        prepare(checkout(PACKAGE, tmp_path, cache, "install='echo strange words; exit 3'"), backend, cache)
    assert "strange words" in caught.value.log_tail


def test_a_python_version_that_the_machine_lacks_is_an_error(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentBuildError, match=r"python=2\.7 is older than"):
        prepare(checkout(PACKAGE, tmp_path, cache, "python=2.7"), backend, cache)


def test_a_test_hint_chooses_tests_and_options(backend: SandboxBackend, cache: Path, tmp_path: Path) -> None:
    found = prepare(
        checkout(PACKAGE, tmp_path, cache, "test='pytest -k \"not nothing\" tests/test_total.py'"),
        backend,
        cache,
    )
    assert found.test_files == ("tests/test_total.py",)
    assert {name.partition("[")[0] for name in found.baseline.passed} == {"tests/test_total.py::test_total"}


@pytest.mark.parametrize("options", ["-q tests", "-rA --color=yes", "--no-summary -vv --tb=long"])
def test_a_test_hint_cannot_change_the_report(
    options: str, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    found = prepare(checkout(PACKAGE, tmp_path, cache, f"test='pytest {options}'"), backend, cache)
    assert len(found.baseline.passed) == 5 and found.options == "-o addopts="
    assert found.notes[0].startswith("runs without the options ")
    assert prepare(found.checkout, backend, cache).notes == found.notes


OWN_OPTIONS = {
    "a plugin of its own": {
        "pytest.ini": "[pytest]\naddopts = -p tests.shared -v -n auto --strange --strict-config\n"
        "required_plugins = pytest-xdist pytest-cov\ncache_dir = .cache\n",
        "tests/__init__.py": "",
        "tests/shared.py": "import pytest\n@pytest.fixture\ndef price():\n    return [1, 2]\n",
        "tests/test_more.py": "from shop import total\ndef test_more(price):\n    assert total(price) == 3\n",
    },
    "a choice of tests": {
        "pyproject.toml": "[tool.pytest]\naddopts = ['-m', 'not slow', '-ra']\nmarkers = ['slow']\n",
        "tests/test_more.py": "import time, pytest\nfrom shop import total\n"
        "@pytest.mark.slow\ndef test_slow():\n    time.sleep(1000)\n"
        "def test_more():\n    assert total([1]) == 1\n",
    },
    "an option of its conftest.py": {
        "setup.cfg": "[tool:pytest]\naddopts = --cases=3 tests\n",
        "tests/conftest.py": "def pytest_addoption(parser):\n    parser.addoption('--cases')\n",
        "tests/test_more.py": "from shop import total\ndef test_more(request):\n"
        "    assert total([1] * int(request.config.getoption('cases'))) == 3\n",
    },
    "a pattern of names": {
        "pytest.ini": "[pytest]\npython_files = check_*.py test_*.py\ntestpaths = tests pkg/*\n",
        "pkg/unit/check_more.py": "from shop import total\ndef test_more():\n    assert total([1]) == 1\n",
    },
    "doctests in a document": {
        "tox.ini": "[pytest]\naddopts = --doctest-glob=*.md --doctest-modules\n",
        "shop/extra.py": '"""\n>>> 1 + 1\n2\n"""\n',
        "use.md": "Use\n\n>>> from shop import total\n>>> total([1])\n1\n",
    },
}


@pytest.mark.parametrize("name", OWN_OPTIONS)
def test_options_that_the_tests_need_stay(
    name: str, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = PACKAGE | OWN_OPTIONS[name]
    found = prepare(checkout(files, tmp_path, cache), backend, cache, test_timeout_s=60)
    assert len(found.baseline.passed) == 6, found.options
    assert found.excluded_ids == frozenset()
    assert not any(path.startswith("shop/") for path in found.test_files)


def test_doctests_in_code_alone_are_refused_with_the_reason(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "shop.py": 'def one():\n    """\n    >>> one()\n    1\n    """\n    return 1\n',
        "pytest.ini": "[pytest]\naddopts = --doctest-modules\n",
    }
    with pytest.raises(EnvironmentBuildError, match="its only tests are doctests in 1 files of its code"):
        prepare(checkout(files, tmp_path, cache), backend, cache)


def test_ids_with_line_breaks_are_whole(backend: SandboxBackend, cache: Path, tmp_path: Path) -> None:
    files = PACKAGE | {
        "pytest.ini": "[pytest]\n"
        "disable_test_id_escaping_and_forfeit_all_rights_to_community_support = true\n",
        "tests/test_odd.py": "import pytest\nfrom shop import total\n\n\n"
        "@pytest.mark.parametrize('x', [1, 2, 3], ids=['a\\nb', 'a', 'c\\x0cd'])\n"
        "def test_x(x):\n    assert total([x]) == x\n",
    }
    found = prepare(checkout(files, tmp_path, cache), backend, cache)
    odd = {name for name in found.baseline.passed if "odd" in name}
    assert odd == {rf"tests/test_odd.py::test_x[{name}]" for name in ("a\\nb", "a", "c\\x0cd")}
    assert set(found.calls) == found.baseline.passed
    assert prepare(found.checkout, backend, cache) == found


@pytest.mark.slow
@pytest.mark.parametrize("text", ["pypi:inflection==0.5.1", "pypi:toolz==0.12.1..1.0.0"])
def test_real_releases_become_environments(text: str, backend: SandboxBackend, cache: Path) -> None:
    found = prepare(fetch(parse_spec(text), cache), backend, cache)
    assert len(found.baseline.passed) > 100
    assert len(found.targets) > 5


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(backend: SandboxBackend, cache: Path) -> Iterator[None]:
    yield
    # Only groups of this process count: earlier tests killed others, and remove what those left.
    assert sandbox_groups() == []
    assert list(cache.glob("**/.building-*")) == []

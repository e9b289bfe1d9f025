"""Suites that are too long, that hang, or that end Python: what fits is admitted, and the rest is named."""

from pathlib import Path

import pytest

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.environment import Environment
from selfplay.sandbox.base import SandboxBackend
from shop_repository import CODE, PACKAGE, TEST_FILES, prepared_shop, shop_checkout

pytestmark = pytest.mark.sandbox

# Seconds of a run. A suite may take half of it, a measured test a tenth.
TIMEOUT_S = 40
HANGS = (
    "import time\nfrom shop import total\n\n\n"
    "def test_hangs():\n    time.sleep(10**6)\n\n\n"
    "def test_works():\n    assert total([2]) == 2\n"
)


def admitted(
    files: dict[str, str], backend: SandboxBackend, cache: Path, folder: Path, said: list[str] | None = None
) -> Environment:
    found = shop_checkout({**PACKAGE, **files}, folder, cache)
    return prepared_shop(found, backend, cache, said, test_timeout_s=TIMEOUT_S)


def test_one_test_that_hangs_is_left_out_and_the_rest_of_its_file_stays(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    found = admitted({"tests/test_hangs.py": HANGS}, backend, cache, tmp_path, said)
    assert set(found.test_files) == {*TEST_FILES, "tests/test_hangs.py"}
    assert "tests/test_hangs.py::test_works" in found.baseline.passed
    assert found.options.endswith("--deselect=tests/test_hangs.py::test_hangs")
    (note,) = [note for note in found.notes if "too long" in note]
    assert "tests/test_hangs.py::test_hangs (" in note
    assert f"shop: {note}" in said
    assert prepared_shop(found.checkout, backend, cache, test_timeout_s=TIMEOUT_S) == found, (
        "not from the cache"
    )


def test_a_file_whose_tests_run_apart_is_measured_whole(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    """pytest runs all tests with the first parameter of a session's fixture before those with the second."""
    files = {
        "tests/conftest.py": "import pytest\n\n\n@pytest.fixture(scope='session', params=[0, 10**6])\n"
        "def seconds(request):\n    return request.param\n",
        "tests/test_apart.py": "import time\nfrom shop import total\n\n\n"
        "def test_waits(seconds):\n    time.sleep(seconds)\n\n\n"
        "def test_works():\n    assert total([2]) == 2\n",
        "tests/test_hangs.py": "import time\n\n\ndef test_hangs(seconds):\n    time.sleep(10**6)\n",
    }
    found = admitted(files, backend, cache, tmp_path)
    assert set(found.test_files) == {*TEST_FILES, "tests/test_apart.py"}
    assert found.options.endswith("--deselect=tests/test_apart.py::test_waits")


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_one_test_that_ends_python_is_left_out(
    end: str, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "tests/test_ends.py": "import os, signal\nfrom shop import total\n\n\n"
        f"def test_ends():\n    {end}\n\n\n"
        "def test_works():\n    assert total([2]) == 2\n"
    }
    found = admitted(files, backend, cache, tmp_path)
    assert set(found.test_files) == {*TEST_FILES, "tests/test_ends.py"}
    assert "left out, ends Python, or cannot be ended: tests/test_ends.py::test_ends" in found.notes
    assert len(found.baseline.passed) == 5
    assert len(found.targets) == 1


def test_a_test_file_that_ends_python_when_it_is_imported_does_not_spoil_the_others(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {"tests/test_main.py": "import unittest\nunittest.main()\n"}
    found = admitted(files, backend, cache, tmp_path)
    assert set(found.test_files) == TEST_FILES
    assert found.notes == (
        "tests/test_main.py ends Python when it is imported, or its import does not end: left out",
    )


def test_a_test_file_whose_import_hangs_does_not_spoil_the_others(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {"tests/test_slow.py": "import time\ntime.sleep(10**6)\n"}
    assert set(admitted(files, backend, cache, tmp_path).test_files) == TEST_FILES


def test_tests_that_wait_for_ever_once_the_code_is_broken_are_admitted(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "tests/test_waits.py": "import time\n\n\ndef test_waits():\n"
        "    while True:\n        try:\n            from shop import total\n            break\n"
        "        except Exception:\n            time.sleep(0.1)\n"
        "    assert total([1]) == 1\n"
    }
    assert len(admitted(files, backend, cache, tmp_path).baseline.passed) == 5


def test_markers_of_a_plugin_that_is_not_installed_are_no_error(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "pytest.ini": "[pytest]\nfilterwarnings = error\n",
        "tests/test_marked.py": "import pytest\nfrom shop import total\n\n\n"
        "@pytest.mark.no_cover\ndef test_marked():\n    assert total([1]) == 1\n",
    }
    assert "tests/test_marked.py::test_marked" in admitted(files, backend, cache, tmp_path).baseline.passed


def test_a_suite_of_which_nothing_fits_is_refused_with_the_remedy(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {**CODE, "tests/test_slow.py": "import time\n\n\ndef test_slow():\n    time.sleep(10**6)\n"}
    with pytest.raises(
        EnvironmentBuildError, match="did not end within 8 s; raise environment.test_timeout_s"
    ) as caught:
        prepared_shop(shop_checkout(files, tmp_path, cache), backend, cache, test_timeout_s=8)
    assert caught.value.of_machine  # so it is not kept: the machine may have been busy


def test_a_benchmark_runs_its_function_once(backend: SandboxBackend, cache: Path, tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "[project]\nname = 'shop'\nversion = '1'\n"
        "[project.optional-dependencies]\ntest = ['pytest-benchmark']\n",
        "tests/test_speed.py": "from shop import total\n\n\ndef test_speed(benchmark):\n    sums = []\n"
        "    benchmark(lambda: sums.append(total([1])))\n    assert sums == [1]\n",
    }
    found = admitted(files, backend, cache, tmp_path)
    assert "tests/test_speed.py::test_speed" in found.baseline.passed


def test_tests_whose_threads_keep_python_alive_are_refused(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        "tests/test_thread.py": "import threading, time\n\n\ndef test_thread():\n"
        "    threading.Thread(target=time.sleep, args=[10**6]).start()\n"
    }
    with pytest.raises(EnvironmentBuildError, match="did not end within 40 s"):
        admitted(files, backend, cache, tmp_path)


def test_the_remedy_for_a_file_that_ends_python_when_it_is_imported_works(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **CODE,
        "tests/test_main.py": "import os, sys, unittest\nsys.path.insert(0, os.getcwd())\n"
        "from shop import total\n\n\nclass Test(unittest.TestCase):\n    def test_total(self):\n"
        "        self.assertEqual(total([1, 2]), 3)\n\n\nunittest.main()\n",
    }
    hint = 'test="python tests/test_main.py -v" parser=unittest'
    with pytest.raises(EnvironmentBuildError, match="ends Python when it is imported") as caught:
        prepared_shop(shop_checkout(files, tmp_path, cache), backend, cache)
    assert hint in str(caught.value)
    found = prepared_shop(shop_checkout(files, tmp_path, cache, hint), backend, cache)
    assert len(found.baseline.passed) == 1


def test_one_slow_file_has_the_whole_time_and_failing_tests_their_true_reason(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **CODE,
        "tests/test_slow.py": "import time\n\n\ndef test_slow():\n    time.sleep(22)\n    assert 0, 'odd'\n",
    }
    with pytest.raises(EnvironmentBuildError, match=r"no test passes: all tests fail \(1 failed\): .* odd"):
        prepared_shop(shop_checkout(files, tmp_path, cache), backend, cache, test_timeout_s=TIMEOUT_S)

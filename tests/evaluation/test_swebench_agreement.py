"""The grades of predictions agree with those of SWE-bench's own code, on the logs of the same runs."""

import io

import pytest
from field_records import make_clones, swe_bench_record
from rich.console import Console

from machine import open_or_skip
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import build_config
from selfplay.errors import PatchError
from selfplay.evaluation.checks import Checker
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import parse_task
from selfplay.repositories.prepare import Preparer
from selfplay.source.diffs import parse_patch
from selfplay.verdicts.bug import build_states
from selfplay.verdicts.grading import grade
from selfplay.verdicts.prediction import add_prediction
from selfplay.verdicts.test_runs import TestRunner
from tiny_bugs import diff

REASON = "swebench is not installed; install it outside of selfplay's environment and put it on PYTHONPATH"
grading = pytest.importorskip("swebench.harness.grading", reason=REASON)
pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
CONFIG = build_config({})


def test_grades_agree_with_those_of_swe_bench(tmp_path, monkeypatch):
    from swebench.harness import constants
    from swebench.types import TestSpec

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    backend = open_or_skip("bubblewrap", tmp_path / "cache")
    clones, limits = make_clones(tmp_path / "clones"), sandbox_limits(CONFIG)
    record = swe_bench_record(clones)
    task = parse_task(record)
    prepared = prepare_tasks([task], Preparer(backend, CONFIG, limits, Console(file=io.StringIO())), clones)
    runner = TestRunner(backend, CONFIG.validator, limits, {})
    environment, bug = Checker(runner).check([task], prepared.environments).bugs[task.instance_id]
    spec = TestSpec(
        instance_id=task.instance_id,
        image="",
        eval_script_list=[],
        repo=record["repo"],
        version="0.4",
        FAIL_TO_PASS=list(task.fail_to_pass),
        PASS_TO_PASS=list(task.pass_to_pass),
        log_parser="parse_log_pytest_v2",
        eval_type=constants.EvalType.PASS_AND_FAIL.value,
    )

    def theirs(patch: str) -> bool:
        """What SWE-bench says of the log of the same tests on the same tree."""
        original, files = environment.tree, bug.artifact.test_files
        try:
            tree, _ = add_prediction(original, start, parse_patch(patch, 1 << 20), files)
        except PatchError:
            text = constants.APPLY_PATCH_FAIL
        else:
            final = tree.restore(original, files)
            done = runner.script(environment, final, bug.artifact.test_script)
            log = done.log.decode()
            text = f"{constants.START_TEST_OUTPUT}\n{log}\n{constants.END_TEST_OUTPUT}\n"
            text += f"{constants.TEST_EXIT_CODE}: {done.exit_code}\n"
        file = tmp_path / "log"
        file.write_text(text)
        prediction = {"instance_id": task.instance_id, "model_name_or_path": "m", "model_patch": patch}
        report = grading.get_eval_report(spec, prediction, str(file), include_tests_status=False)
        return bool(report[task.instance_id]["resolved"])

    start = build_states(environment.tree, bug).solver_start

    def change(*replaced: tuple[str, str]) -> str:
        return diff(start, {"tiny/numbers.py": replace_all(start.text("tiny/numbers.py"), replaced)})

    repair = ("str(number)", "str(abs(number))")
    patches = {
        "right": change(repair),
        "another way": change(("str(number)", "str(number).lstrip('-')")),
        "wrong": change(("str(number)", "'7'")),
        "repairs one and breaks another": change(repair, ("return total /", "return 1 + total /")),
        "does not compile": change(("str(number)", "str(number")),
        "ends the process": change(repair, ("def digits", "import os\n\nos._exit(0)\n\n\ndef digits")),
        "no diff": "nonsense",
    }
    ours = {name: grade(bug, patch, environment, runner).passed for name, patch in patches.items()}
    assert ours == {name: theirs(patch) for name, patch in patches.items()}
    assert [name for name, passed in ours.items() if passed] == ["right", "another way"]


def replace_all(text: str, replaced: tuple[tuple[str, str], ...]) -> str:
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return text

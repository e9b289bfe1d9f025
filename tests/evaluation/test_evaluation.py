"""Evaluations: the figures of a folder, the comparison of two, and sentences that claim no more."""

import io
import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from selfplay.config import RENAMED_SETTINGS, build_config
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.comparison import compare, verdict_of
from selfplay.evaluation.folder import AttemptResult, Folder, entries_of, identity_of, policy_identity
from selfplay.evaluation.rates import summarise, timeouts_warning
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.evaluation.tasks import Task
from selfplay.viewing.scores import points, sentences, show_comparison, show_rates
from selfplay.viewing.summary import _evaluations

CONFIG = build_config({})
TASKS = [
    Task(
        f"bug-{n}",
        f"pypi:{'toolz' if n % 2 else 'parse'}==1.0",
        "",
        "",
        ("t",),
        (),
        {"a": "b"},
        set="own",
        part="unseen" if n > 5 else "",
    )
    for n in range(8)
]


def results(task: Task, sampled: list[bool | None], greedy: bool | None = None) -> list[AttemptResult]:
    def one(number, passed, mode):
        return AttemptResult(task.instance_id, task.repo, number, passed, "", "submitted", 4, 100, mode, 2.0)

    made = [one(number, passed, "sampled") for number, passed in enumerate(sampled)]
    return made + ([one(0, greedy, "greedy")] if greedy is not None else [])


def a_folder(path, passes, tasks=TASKS, config=CONFIG, policy="p") -> Folder:
    """passes(n): (sampled outcomes, greedy outcome) of bug n."""
    folder = Folder(path)
    folder.begin(identity_of(config, {"model": policy}, tasks))
    rows = [result for n, task in enumerate(tasks) for result in results(task, *passes(n))]
    folder.results_file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return folder


def never(n):
    return [False] * 4, False


def printed(width, show) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(console)
    return console.file.getvalue()


def test_settings_of_training_do_not_make_another_evaluation():
    def identity(**agent):
        return identity_of(build_config({"agent": agent}), {"model": "p"}, TASKS)

    assert identity(resamples=4) == identity()
    assert identity(max_turns=9) != identity()
    # A folder of version 0.1 names neither tools nor their format.
    assert not {"agent.tools", "agent.tool_format"} & identity().settings.keys()
    assert identity(tools=["bash", "submit"]) != identity()


def test_evaluations_have_their_own_sampling_and_older_folders_can_be_continued(tmp_path):
    def identity(**sections):
        return identity_of(build_config(sections), {"model": "p"}, TASKS)

    assert identity(agent={"temperature": 0.7}) == identity()
    assert identity(evaluation={"temperature": 0.7}) != identity() != identity(evaluation={"top_p": 0.95})
    folder = a_folder(tmp_path, never)
    older = json.loads(folder.identity_file.read_text())
    older["settings"]["agent.temperature"] = older["settings"].pop("evaluation.temperature")
    folder.identity_file.write_text(json.dumps(older))
    folder.check(identity_of(CONFIG, {"model": "p"}, TASKS))


# ---- figures


def test_sampled_and_greedy_attempts_are_counted_apart(tmp_path):
    folder = a_folder(tmp_path, lambda n: ([True, False, False, n == 0], n == 1))
    summary = summarise(folder.results(), entries_of(folder), 4)
    sampled, greedy = summary["sampled"]["all"], summary["greedy"]["all"]
    assert (sampled["tasks"], sampled["attempts"], sampled["pass@4"]) == (8, 32, 1.0)
    assert sampled["pass@1"] == pytest.approx((0.25 * 7 + 0.5) / 8)
    assert (greedy["attempts"], greedy["pass@1"]) == (8, 0.125)
    assert "pass@4" not in greedy
    assert (sampled["turns"], sampled["tokens"], sampled["seconds"]) == (4, 100, 2)


def test_pass_at_each_k_is_an_estimate_and_best_at_k_is_what_was_played(tmp_path):
    """One bug, repaired by the third of four attempts."""
    folder = a_folder(tmp_path, lambda n: ([False, False, True, False], False), TASKS[:1])
    row = summarise(folder.results(), entries_of(folder), 4)["sampled"]["all"]
    assert [row[f"pass@{k}"] for k in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [row[f"best@{k}"] for k in (2, 3, 4)] == [0.0, 1.0, 1.0]
    text = printed(100, lambda console: show_rates({**summarise(folder.results(), {}, 4)}, console, 1.0))
    assert "best@k (the first k)" in text and "75.0%" in text


def test_figures_are_given_by_set_part_and_repository(tmp_path):
    folder = a_folder(tmp_path, lambda n: ([n > 5], n > 5))
    summary = summarise(folder.results(), entries_of(folder), 1)["sampled"]
    assert {name: row["pass@1"] for name, row in summary["sets"].items()} == {"own": 0, "own/unseen": 1}
    assert {name: row["tasks"] for name, row in summary["repositories"].items()} == {"parse": 4, "toolz": 4}


def test_attempts_that_the_machine_spoiled_are_not_counted():
    rows = [*results(TASKS[0], [True, None]), *results(TASKS[1], [None, None])]
    summary = summarise(rows, {}, 2)
    assert summary["spoiled_by_the_machine"] == 3
    assert (summary["sampled"]["all"]["tasks"], summary["sampled"]["all"]["pass@1"]) == (1, 1.0)


@pytest.mark.parametrize(("timed_out", "warned"), [(3, "In 3 of 4 attempts"), (0, "")])
def test_many_attempts_whose_commands_met_their_time_limit_are_warned_of(timed_out, warned):
    rows = [*results(TASKS[0], [False, False]), *results(TASKS[1], [False, True, None])]
    rows = [replace(row, timed_out=2 if number < timed_out else 0) for number, row in enumerate(rows)]
    summary = summarise(rows, {}, 2)
    warning = timeouts_warning(summary)
    assert warning.startswith(warned) and ("agent.command_timeout_s" in warning) == bool(warned)
    shown = " ".join(printed(80, lambda console: show_rates(summary, console, 1.0)).split())
    assert warning in shown and ("met its time limit" in shown) == bool(warned)


# ---- folders


def test_results_without_a_mode_still_read_as_sampled(tmp_path):
    row = asdict(results(TASKS[0], [True])[0])
    del row["mode"], row["seconds"]
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + '\n{"torn')
    assert [(result.mode, result.passed) for result in Folder(tmp_path).results()] == [("sampled", True)]


def test_a_result_without_a_patch_gives_no_prediction(tmp_path):
    """Results of earlier versions have none: an empty patch would say that the policy changed nothing."""
    older, newer = results(TASKS[0], [True])[0], results(TASKS[1], [True])[0]
    Folder(tmp_path).write_predictions([older, replace(newer, patch="p")], "m")
    written = json.loads((tmp_path / "preds.json").read_text())
    expected = {"instance_id": "bug-1", "model_name_or_path": "m", "model_patch": "p"}
    assert written == {"bug-1": expected}


def test_results_of_an_unknown_policy_are_not_continued(tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps(asdict(results(TASKS[0], [True])[0])) + "\n")
    with pytest.raises(UsageError, match="without an evaluation.json"):
        Folder(tmp_path).begin(identity_of(CONFIG, {"model": "p"}, TASKS))


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    folder = a_folder(tmp_path, never)
    whole = folder.results_file.read_bytes()
    folder.results_file.write_bytes(whole[:-20])
    folder.begin(identity_of(CONFIG, {"model": "p"}, TASKS))
    with folder.results_file.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[-1])
    assert len(folder.results()) == 40


def test_more_workers_are_the_same_evaluation_and_another_prompt_is_not(tmp_path):
    folder = a_folder(tmp_path, never)
    folder.check(
        identity_of(
            build_config({"train": {"workers": 7}, "sandbox": {"type": "docker"}}), {"model": "p"}, TASKS
        )
    )
    with pytest.raises(UsageError, match="agent.prompt_style = 'full' there and 'terse' here"):
        folder.check(identity_of(build_config({"agent": {"prompt_style": "terse"}}), {"model": "p"}, TASKS))


def test_settings_under_their_former_names_are_the_same_evaluation(tmp_path):
    folder = a_folder(tmp_path, never)
    identity = json.loads(folder.identity_file.read_text())
    former = {new: old for old, new in RENAMED_SETTINGS.items()}
    settings = {former.get(name, name): value for name, value in identity["settings"].items()}
    assert settings.keys() > {"agent.requeries", "solver.given"}
    folder.identity_file.write_text(json.dumps(identity | {"settings": settings}))
    folder.check(identity_of(CONFIG, {"model": "p"}, TASKS))


def test_a_policy_is_identified_by_its_weights_and_not_by_its_folder(tmp_path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (policy_identity("m", str(tmp_path / name)) for name in "abc")
    assert a == b != c


# ---- comparisons


def test_differences_are_paired_by_bug(tmp_path):
    first = a_folder(tmp_path / "a", lambda n: ([n % 2 == 0, False], False))
    second = a_folder(tmp_path / "b", lambda n: ([n % 2 == 0, n < 4], False), policy="q")
    row = compare(first, second)["sampled"]["all"]
    assert (row["first"]["pass@1"], row["second"]["pass@1"]) == (0.25, 0.5)
    assert (row["mean"], row["count"], row["changed"]) == (0.25, 8, 4)
    assert row["low"] < 0.25 < row["high"]


def test_a_gain_at_t_1_alone_is_called_sharpening(tmp_path):
    first, second = (
        a_folder(tmp_path / "a", never),
        a_folder(tmp_path / "b", lambda n: ([True, n > 2, False, False], False)),
    )
    comparison = compare(first, second)
    assert comparison["verdict"].startswith("sharpening: better at T = 1, no difference shown greedily.")


def test_a_gain_of_both_kinds_is_called_better(tmp_path):
    first, second = a_folder(tmp_path / "a", never), a_folder(tmp_path / "b", lambda n: ([True] * 4, n > 0))
    assert compare(first, second)["verdict"] == "better: at T = 1 and greedily."
    assert compare(second, first)["verdict"] == "worse: at T = 1 and greedily."


@pytest.mark.parametrize(
    ("sampled", "greedy", "start"),
    [
        (0, 0, "no difference shown."),
        (0, None, "no difference shown."),
        (1, None, "better at T = 1; greedily not measured, so this may be no more than sharpening"),
        (0, 1, "no difference shown at T = 1, better greedily."),
        (None, -1, "not measured at T = 1, worse greedily."),
        (-1, 0, "worse at T = 1, no difference shown greedily."),
        (1, -1, "mixed: better at T = 1, worse greedily."),
    ],
)
def test_every_outcome_has_its_sentence(sampled, greedy, start):
    assert verdict_of(sampled, greedy).startswith(start)


def test_a_small_difference_is_called_not_distinguishable(tmp_path):
    first, second = (
        a_folder(tmp_path / "a", never),
        a_folder(tmp_path / "b", lambda n: ([n == 0, False], False)),
    )
    assert sentences(compare(first, second)) == [
        "T = 1: difference +6.2 points, 95% interval -8.5 to +21.0: "
        "not distinguishable from no difference (with these bugs, about 15 points would be).",
        "greedy: the same rate on each of 8 bug(s).",
        "Verdict: no difference shown.",
    ]


def test_a_gain_on_a_few_bugs_only_is_not_called_better(tmp_path):
    first = a_folder(tmp_path / "a", never, TASKS[:4])
    second = a_folder(tmp_path / "b", lambda n: ([True] * 4, True), TASKS[:4])
    comparison = compare(first, second)
    assert "only 4 bug(s) changed" in sentences(comparison)[0]
    assert comparison["verdict"] == "no difference shown."


def test_two_bugs_show_no_interval(tmp_path):
    first = a_folder(tmp_path / "a", never, TASKS[:2])
    second = a_folder(tmp_path / "b", lambda n: ([n == 0] * 2, n == 0), TASKS[:2])
    comparison = compare(first, second)
    assert points(comparison["sampled"]["all"]) == "+50.0"
    assert sentences(comparison)[0] == (
        "T = 1: difference +50.0 points: 2 bugs are too few for an interval; at least 6 are needed."
    )


def test_an_interval_ends_at_100_points():
    row = {"mean": 0.5, "low": -0.3, "high": 1.3, "count": 6, "changed": 4}
    assert points(row) == "+50.0 (-30.0 to +100.0)"
    assert points({**row, "mean": -0.5, "low": -1.3, "high": 0.3}) == "-50.0 (-100.0 to +30.0)"


def test_bugs_in_only_one_folder_are_left_out_and_counted(tmp_path):
    comparison = compare(a_folder(tmp_path / "a", never), a_folder(tmp_path / "b", never, TASKS[:6]))
    assert (comparison["sampled"]["all"]["count"], comparison["left_out"]) == (6, 2)


def test_other_settings_are_named(tmp_path):
    other = build_config({"agent": {"max_turns": 3}})
    comparison = compare(a_folder(tmp_path / "a", never), a_folder(tmp_path / "b", never, config=other))
    assert comparison["settings"] == "agent.max_turns = 64 there and 3 here"


def test_settings_of_sandboxes_do_not_make_another_evaluation(tmp_path):
    other = build_config({"sandbox": {"type": "bubblewrap", "prewarmed": 4}})
    assert (
        compare(a_folder(tmp_path / "a", never), a_folder(tmp_path / "b", never, config=other))["settings"]
        == ""
    )


def test_the_number_of_suspects_matters_only_if_solvers_see_suspects(tmp_path):
    def evaluated(name, help_, number):
        return a_folder(
            tmp_path / name, never, config=build_config({"solver": {"help": help_, "max_suspects": number}})
        )

    assert (
        compare(evaluated("a", ["suspects"], 5), evaluated("b", ["suspects"], 3))["settings"]
        == "solver.max_suspects = 5 there and 3 here"
    )
    assert compare(evaluated("c", ["tests"], 5), evaluated("d", ["tests"], 3))["settings"] == ""


def test_folders_that_cannot_be_compared_say_why(tmp_path):
    good = a_folder(tmp_path / "good", never)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no folder .*none"):
        compare(good, Folder(tmp_path / "none"))
    with pytest.raises(UsageError, match="holds no finished attempt"):
        compare(good, Folder(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no task in common"):
        compare(
            good,
            a_folder(
                tmp_path / "others",
                never,
                [replace(task, instance_id=f"x{task.instance_id}") for task in TASKS],
            ),
        )
    with pytest.raises(UsageError, match="8 task.s. .* share an id and are different bugs"):
        compare(good, a_folder(tmp_path / "changed", never, [replace(task, failure="E") for task in TASKS]))
    torn = a_folder(tmp_path / "torn", never)
    torn.identity_file.write_text('{"policy": ')
    with pytest.raises(RunError, match="evaluation.json cannot be read"):
        compare(good, torn)


# ---- tables and sentences


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_their_width(tmp_path, width):
    first, second = (
        a_folder(tmp_path / "a", lambda n: ([n % 2 == 0] * 4, n > 3)),
        a_folder(tmp_path / "b", lambda n: ([True] * 4, n < 3)),
    )
    comparison = {
        **compare(first, second),
        "first": {"folder": "a", "policy": {}},
        "second": {"folder": "b", "policy": {}},
    }
    summary = summarise(second.results(), entries_of(second), 4)
    text = printed(width, lambda console: show_rates(summary, console, 1.0)) + printed(
        width, lambda c: show_comparison(comparison, c)
    )
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "own/unseen" in text and "parse" in text


def test_the_summary_of_a_run_shows_before_and_after(tmp_path):
    a_folder(tmp_path / "evaluations" / "u0000", never)
    _, body = _evaluations(tmp_path)[0]
    assert "only update 0 is evaluated" in str(body)
    a_folder(tmp_path / "evaluations" / "u0008", lambda n: ([n < 2, False], False))
    _, body = _evaluations(tmp_path)[0]
    text = " ".join(printed(80, lambda console: console.print(body)).split())
    assert "update 0" in text and "update 8" in text
    assert "not distinguishable from no difference" in text
    assert "Verdict: no difference shown." in text


def test_a_fall_on_one_set_beside_a_rise_on_another_is_warned_of(tmp_path):
    tasks = [replace(task, set="own" if n < 4 else "human", part="") for n, task in enumerate(TASKS)]

    def folder(update, passes):
        return a_folder(tmp_path / "evaluations" / f"u{update:04d}", passes, tasks)

    folder(0, lambda n: ([n >= 4, n == 7], False))
    folder(4, lambda n: ([n >= 4, n == 7], False))
    folder(8, lambda n: ([n < 3, n == 7], False))
    evaluations = RunEvaluations(tmp_path / "evaluations", CONFIG.evaluation, tasks, None)
    assert evaluations.warnings(0) == evaluations.warnings(4) == []
    (warning,) = evaluations.warnings(8)
    assert "'human' fell by 50.0 points while that on 'own' rose by 37.5" in warning
    ((_, body),) = _evaluations(tmp_path)
    text = " ".join(printed(80, lambda console: console.print(body)).split())
    assert warning in text
    assert "human 4 62.5%" in text and "own 4 0.0%" in text


def test_a_summary_says_why_evaluations_cannot_be_compared(tmp_path):
    a_folder(tmp_path / "evaluations" / "u0000", never)
    a_folder(tmp_path / "evaluations" / "u0008", never).identity_file.write_text("{")
    ((_, body),) = _evaluations(tmp_path)
    assert "u0008/evaluation.json cannot be read" in str(body)


def test_a_run_without_evaluations_has_no_such_section(tmp_path):
    assert _evaluations(tmp_path) == []

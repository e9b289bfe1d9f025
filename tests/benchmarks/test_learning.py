"""The learning experiment's arms, tables and plots, from hand-made recordings: no run, no sandbox."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.learning import Plan, arm_settings, episodes_an_update, is_finished, settings_that_differ
from benchmarks.learning_figures import (
    BEGIN,
    END,
    Curve,
    Evaluation,
    FixedBugs,
    Nearness,
    arms_table,
    compute_table,
    draw_nearness,
    nearness_table,
    on_fixed_bugs,
    rates_table,
    read_curve,
    running_mean,
    write_figures,
)
from benchmarks.learning_nearness import ELSEWHERE, PLAYED, classes_of
from selfplay.commands.train import start_training
from selfplay.config import load_config
from selfplay.curriculum.store import Store
from selfplay.errors import ConfigError, RunError, UsageError
from selfplay.evaluation.folder import AttemptResult, Folder, Identity, TaskEntry
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.orchestrator.given_bugs import touched_functions
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.source.trees import FileEntry, Tree
from store_rows import a_group, with_bug

RECIPE = Path("runs/recipes/learning.toml")
BUGS = {
    f"own-{number}": TaskEntry("d", "own", "unseen" if number < 4 else "seen", "parse")
    for number in range(12)
} | {f"human-{number}": TaskEntry("d", "human", "", "toolz") for number in range(4)}


def an_evaluation(run: Path, update: int, passes, bugs=tuple(BUGS)) -> Path:
    """passes(bug) of 4 sampled attempts pass. The greedy one passes if at least 3 do."""
    folder = run / "evaluations" / f"u{update:04d}"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(Identity({"model": "m"}, {}, BUGS).to_json()))
    rows = []
    for bug in bugs:
        rows += [AttemptResult(bug, "parse", n, n < passes(bug), "", "submitted", 3, 50) for n in range(4)]
        rows.append(AttemptResult(bug, "parse", 0, passes(bug) >= 3, "", "submitted", 3, 50, "greedy"))
    (folder / "results.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return folder


def a_run(folder: Path, arm: str, seed: int, gain: int, updates: int = 6) -> RunFolder:
    """Every bug of `own` goes from 1 of 4 to 1 + gain of 4. Human bugs stay."""
    run = folder / f"learning-{arm}-s{seed}"
    an_evaluation(run, 0, lambda bug: 1)
    an_evaluation(run, updates, lambda bug: 1 + gain * bug.startswith("own"))
    with (run / "metrics.jsonl").open("w") as file:
        for update in range(1, updates + 1):
            row = {
                "update": update,
                "carried_gradient": True,
                "solver/solved": 0.1 * update,
                "solver/episodes": 24,
                "solver/entropy": 0.5,
            }
            row |= {
                "injector/valid": 0.5,
                "injector/episodes": 16,
                "injector/sampled_tokens": 100,
                "solver/sampled_tokens": 200,
            }
            row |= {
                "rollout_logprob_diff": 0.01,
                "action_tokens": 250,
                "seconds/injecting": 20.0,
                "seconds/solving": 39.0,
                "seconds/training": 1.0,
            }
            file.write(json.dumps(row) + "\n")
        for evaluated in (0, updates, updates):
            file.write(json.dumps({"evaluation": evaluated, "seconds/evaluating": 60.0}) + "\n")
    return RunFolder(run)


def three_arms(folder: Path) -> list[tuple[str, int, RunFolder]]:
    gains = {"selfplay": 2, "repair": 1, "injection": 0}
    return [(arm, seed, a_run(folder, arm, seed, gain)) for arm, gain in gains.items() for seed in (1, 2)]


def cells(table: list[str], **wanted: str) -> list[dict[str, str]]:
    """The table's rows as dictionaries, those that hold `wanted`."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [dict(zip(split[0], row, strict=True)) for row in split[2:]]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_gain_counts_as_shown_only_if_bugs_changed(tmp_path):
    table = rates_table([read_curve(*run) for run in three_arms(tmp_path)])
    (own,) = cells(table, arm="self-play", seed="1", set="own", mode="T = 1")
    assert (own["before"], own["after"], own["shown"]) == ("25.0 % ± 0.0", "75.0 % ± 0.0", "up")
    assert own["difference, 95 % interval"] == "+50.0 [+50.0, +50.0]"
    (human,) = cells(table, arm="self-play", seed="1", set="human", mode="T = 1")
    assert (human["difference, 95 % interval"], human["shown"], human["bugs"]) == (
        "+0.0 [+0.0, +0.0]",
        "no",
        "4",
    )


def test_a_gain_at_temperature_one_is_separate_from_the_greedy_one(tmp_path):
    table = rates_table([read_curve(*run) for run in three_arms(tmp_path)])
    (sampled,) = cells(table, arm="repair-only", seed="1", set="own", mode="T = 1")
    (greedy,) = cells(table, arm="repair-only", seed="1", set="own", mode="greedy")
    assert (sampled["shown"], greedy["shown"]) == ("up", "no")


def test_seeds_are_pooled_bug_by_bug_and_parts_of_a_set_have_their_own_rows(tmp_path):
    runs = [
        ("selfplay", 1, a_run(tmp_path, "selfplay", 1, 2)),
        ("selfplay", 2, a_run(tmp_path, "selfplay", 2, 1)),
    ]
    table = rates_table([read_curve(*run) for run in runs])
    (pooled,) = cells(table, seed="all", set="own", mode="T = 1")
    assert (pooled["bugs"], pooled["after"]) == ("12", "62.5 % ± 0.0")
    assert [row["bugs"] for row in cells(table, seed="all", set="own/unseen", mode="greedy")] == ["4"]
    (together,) = cells(table, seed="all", set="own and human", mode="T = 1")
    assert (together["bugs"], together["after"].split(" ±")[0]) == ("16", "53.1 %")  # 12 at 62.5, 4 at 25


def test_arms_are_compared_after_their_last_update_bug_by_bug(tmp_path):
    table = arms_table([read_curve(*run) for run in three_arms(tmp_path)])
    (found,) = cells(table, arms="self-play − repair-only", set="own", mode="T = 1")
    assert (found["seeds"], found["difference after, 95 % interval"], found["shown"]) == (
        "1, 2",
        "+25.0 [+25.0, +25.0]",
        "up",
    )


def test_an_unfinished_evaluation_is_left_out(tmp_path):
    run = a_run(tmp_path, "selfplay", 1, 2)
    an_evaluation(run.path, 9, lambda bug: 4)
    assert [evaluation.update for evaluation in read_curve("selfplay", 1, run).evaluations] == [0, 6]


def test_the_policy_that_every_run_starts_from_is_measured_once_for_all_of_them(tmp_path):
    run = a_run(tmp_path, "selfplay", 1, gain=2)
    before = Folder((run.path / "evaluations/u0000").rename(tmp_path / "before"))
    rows = [
        row for row in map(json.loads, run.metrics.read_text().splitlines()) if row.get("evaluation") != 0
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_curve("selfplay", 1, run).evaluations) == 1
    (row,) = cells(rates_table([read_curve("selfplay", 1, run, before)]), set="own", mode="T = 1")
    assert row["before"].startswith("25.0 %") and row["after"].startswith("75.0 %")


def evaluated_again(run: RunFolder, update: int, passes: int) -> None:
    an_evaluation(run.path, update, lambda bug: passes)
    with run.metrics.open("a") as file:
        file.write(json.dumps({"evaluation": update, "seconds/evaluating": 60.0}) + "\n")


def test_arms_after_different_numbers_of_updates_are_not_compared(tmp_path):
    runs = [
        ("selfplay", 1, a_run(tmp_path, "selfplay", 1, 2)),
        ("repair", 1, a_run(tmp_path, "repair", 1, 1, updates=4)),
    ]
    assert not cells(arms_table([read_curve(*run) for run in runs]))
    # The longer run has an evaluation there too, with 2 of 4 for each bug, like the shorter one's own bugs.
    evaluated_again(runs[0][2], 4, 2)
    (found,) = cells(arms_table([read_curve(*run) for run in runs]), set="own", mode="T = 1")
    assert (found["updates"], found["difference after, 95 % interval"]) == ("4", "+0.0 [+0.0, +0.0]")


def test_every_evaluation_after_the_first_has_its_rows(tmp_path):
    run = a_run(tmp_path, "selfplay", 1, 2)
    evaluated_again(run, 3, 2)
    rows = cells(rates_table([read_curve("selfplay", 1, run)]), set="own", mode="T = 1")
    assert [(row["updates"], row["after"]) for row in rows] == [("3", "50.0 % ± 0.0"), ("6", "75.0 % ± 0.0")]


def a_repair(line: int) -> str:
    return f"diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -{line} +{line} @@\n-x = 2\n+x = 1\n"


def fixed_task(number: int, patch: str) -> Task:
    return Task(f"toolz__fixed-{number}", "pypi:toolz==1", patch, "", (), (), {})


def a_played_store(run: RunFolder) -> str:
    """One bug, and a target in lines 1 to 4 of its file. Returns the repair of the bug."""
    with Store.open(run.database) as store:
        bug = with_bug(store)
        target = {"path": "m.py", "name": "f", "first_line": 1, "last_line": 4, "source": "", "test_file": ""}
        store.add_group(replace(a_group("targeted"), target_json=json.dumps(target)))
        return str(bug.task_record()["patch"])


def test_bugs_are_classed_by_their_distance_from_what_a_run_played(tmp_path):
    run = a_run(tmp_path, "selfplay", 1, 0)
    tasks = [
        fixed_task(0, a_played_store(run)),
        fixed_task(1, a_repair(4)),
        fixed_task(2, a_repair(5)),
        fixed_task(3, "no diff"),
    ]
    ids = [[name.rpartition("-")[2] for name in found] for found in classes_of(tasks, run).values()]
    assert ids == [["0"], ["1"], ["2", "3"]]
    elsewhere = replace(tasks[1], instance_id="parse__fixed-1")
    assert classes_of([elsewhere], run)[ELSEWHERE] == ["parse__fixed-1"]


@pytest.mark.parametrize(
    ("is_evaluated", "others"), [(True, 11), (False, 0)], ids=["with frozen sets", "without, all played"]
)
def test_bugs_that_were_trained_on_have_their_own_table(tmp_path, is_evaluated, others):
    run = a_run(tmp_path, "repair", 1, gain=0)
    tasks = [
        fixed_task(0, a_played_store(run)),
        *(fixed_task(number, a_repair(90 + number)) for number in range(1, 1 + others)),
    ]
    for update, passes in ((0, 1), (6, 3)):
        folder = an_evaluation(
            run.path, 90 + update, lambda bug, passes=passes: passes, [task.instance_id for task in tasks]
        )
        on_fixed_bugs(run, update).path.parent.mkdir(exist_ok=True)
        folder.rename(on_fixed_bugs(run, update).path)
    before = Folder(on_fixed_bugs(run, 0).path.rename(tmp_path / "before"))
    if not is_evaluated:
        run.metrics.write_text(
            "".join(
                line for line in run.metrics.read_text().splitlines(keepends=True) if "evaluating" not in line
            )
        )
    page = tmp_path / "learning.md"
    write_figures([("repair", 1, run)], page, fixed_bugs=FixedBugs(tasks, before))
    assert (page.parent / "figures/learning-nearness.svg").is_file()
    table, _, rest = (
        page.read_text()
        .partition("### Repair rate on the bugs that repair-only trains on\n\n")[2]
        .partition("\n\n")
    )
    rows = cells(table.split("\n"), mode="T = 1")
    # A part that is the whole has no row.
    parts = [(PLAYED, 1), ("not played", others), (ELSEWHERE, others)] if others else []
    assert [(row["set"], row["bugs"]) for row in rows] == [
        (name, str(count)) for name, count in [("all", 1 + others), *parts]
    ]
    after, shown = ("75.0 % ± 0.0", "up") if others else ("75.0 %", "no")  # one bug has no error
    assert (rows[0]["arm"], rows[0]["updates"], rows[0]["after"], rows[0]["shown"]) == (
        "repair-only",
        "6",
        after,
        shown,
    )
    assert ELSEWHERE not in rest


MET = ["a", "b", "c", "d", "e", "f", "g"]


def met(arm: str, seed: int, played: list[str], rate: float, updates: int = 60) -> Nearness:
    """Before, nothing passes.

    Afterwards all attempts at played bugs pass, and the share `rate` of the others.
    """
    after = {"sampled": {bug: 1.0 if bug in played else rate for bug in MET}}
    evaluations = [Evaluation(0, {"sampled": dict.fromkeys(MET, 0.0)}), Evaluation(updates, after)]
    curve = Curve(arm, seed, evaluations, [], dict.fromkeys(MET, TaskEntry("")), 0.0)
    return Nearness(
        curve, {"all": MET, PLAYED: played, "not played": [bug for bug in MET if bug not in played]}
    )


def test_a_bug_counts_only_for_the_seeds_in_which_it_has_the_class():
    runs = [
        met("selfplay", 1, ["a", "b"], 0.5),
        met("selfplay", 2, ["b", "c"], 0.25),
        met("injection", 1, ["a"], 0.0),
    ]
    rows = [row for row in cells(nearness_table(runs)) if row["seed"] == "all"]
    # Not played: a and c in one seed each, d to g in both, b in none: (0.25 + 0.5 + 4 * 0.375) / 6.
    assert [(row["set"], row["bugs"], row["after"].split(" ±")[0]) for row in rows] == [
        ("all", "7", "55.4 %"),
        (PLAYED, "3", "100.0 %"),
        ("not played", "6", "37.5 %"),
    ]
    (row,) = cells(arms_table([run.curve for run in runs]))
    assert (row["arms"], row["seeds"], row["set"], row["bugs"]) == (
        "self-play − injection-only",
        "1",
        "all",
        "7",
    )


@pytest.mark.parametrize(
    ("ends", "labels"),
    [((60, 60), ["self-play, seeds 1 and 2"]), ((60, 30), ["self-play, seed 1", "self-play, seed 2"])],
)
def test_seeds_with_equal_results_are_one_point_of_the_plot(ends, labels):
    runs = [
        met("selfplay", seed, ["a", "b", "c"], 0.5 * seed, updates) for seed, updates in enumerate(ends, 1)
    ]
    figure = draw_nearness(runs, [run.curve for run in runs])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    (axis,) = (axis for axis in figure.axes if axis.get_title() == "T = 1")
    points = [round(float(line.get_xdata()[0]), 1) for line in axis.lines if line.get_marker() == "o"]
    # Played: all pass. All: 4 of 7 were not played, of which 50 and 100 % pass.
    assert sorted(points) == ([85.7, 100.0] if len(labels) == 1 else [71.4, 100.0, 100.0, 100.0])


def test_the_compute_of_a_run_is_counted_over_its_updates(tmp_path):
    (row,) = cells(compute_table([read_curve("selfplay", 1, a_run(tmp_path, "selfplay", 1, 2))]))
    assert (row["updates"], row["episodes"], row["sampled tokens"], row["trained tokens"]) == (
        "6",
        "240",
        "1800",
        "1500",
    )
    assert (row["minutes played"], row["minutes evaluated"]) == ("6", "2")
    assert (row["artifacts valid"], row["attempts passed"]) == ("50%", "35%")


def test_the_page_keeps_its_text_and_equal_recordings_give_equal_bytes(tmp_path):
    runs = three_arms(tmp_path / "runs")
    page = tmp_path / "docs" / "learning.md"
    page.parent.mkdir()
    page.write_text(f"# Mine\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_figures(runs, page)
    first = {path.name: path.read_bytes() for path in [page, *(page.parent / "figures").iterdir()]}
    write_figures(runs, page)
    assert first == {path.name: path.read_bytes() for path in [page, *(page.parent / "figures").iterdir()]}
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n") and text.endswith("\n\nafter\n") and "old" not in text
    assert sorted(first) == ["learning-rates.svg", "learning-signals.svg", "learning.md"]
    for name in ("learning-rates.svg", "learning-signals.svg"):
        assert f"figures/{name}" in text
        assert "self-play, seed 1" in "".join(ElementTree.fromstring(first[name]).itertext())


def test_a_page_without_its_markers_is_left_alone(tmp_path):
    page = tmp_path / "learning.md"
    page.write_text("# Mine\n")
    with pytest.raises(RunError, match="needs the lines"):
        write_figures([("selfplay", 1, a_run(tmp_path, "selfplay", 1, 1))], page)
    assert page.read_text() == "# Mine\n"


def test_a_running_mean_uses_what_there_is_at_the_ends():
    assert running_mean([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]


def test_every_arm_plays_as_many_episodes_an_update():
    played = {}
    for arm in ("selfplay", "repair", "injection"):
        recipe = load_config(RECIPE)
        played[arm] = episodes_an_update(load_config(RECIPE, arm_settings(arm, recipe, Path("bugs.jsonl"))))
    assert set(played.values()) == {40}


def test_an_update_that_solvers_alone_cannot_fill_is_refused():
    with pytest.raises(UsageError, match="plays 22 episodes, which no number of solver groups of 8"):
        odd = [
            "train.injector_groups=3",
            "train.injector_group_size=2",
            "train.solver_groups=2",
            "train.group_size=8",
        ]
        arm_settings("repair", load_config(RECIPE, odd), Path("bugs.jsonl"))


def test_a_run_with_other_settings_differs_from_one_that_is_only_longer(tmp_path):
    run = RunFolder(tmp_path)
    run.config_file.write_text(
        load_config(RECIPE, ["trainer.learning_rate=3e-5", "train.updates=2", "run.name=x"]).resolved()
    )
    (found,) = settings_that_differ(load_config(RECIPE, ["trainer.learning_rate=1e-4"]), run)
    assert found == "trainer.learning_rate: 0.0001 is asked for, 3e-05 is there"


def test_a_run_is_finished_when_its_last_evaluation_has_its_row(tmp_path):
    run = RunFolder(tmp_path)
    with Store.open(run.database) as store:
        store.begin_update(1)
        store.commit_update(1, "update-00001", 1, True, "{}")
    assert is_finished(run, 1, evaluates=False) and not is_finished(run, 2, evaluates=False)
    assert not is_finished(run, 1, evaluates=True)
    run.metrics.write_text(json.dumps({"evaluation": 1}) + "\n")
    assert is_finished(run, 1, evaluates=True)


def test_the_repair_arm_takes_the_bugs_of_the_teachers_run_by_default(tmp_path):
    plan = Plan(RECIPE, Path("repos.txt"), (f"run.folder={tmp_path}",), "try", None)
    assert plan.frozen_bugs == tmp_path / "try-teacher" / "frozen-bugs.jsonl"
    assert plan.run("repair", 2).path == tmp_path / "try-repair-s2"


def test_a_run_without_injectors_and_given_bugs_is_refused_before_it_starts(tmp_path):
    repositories = tmp_path / "repos.txt"
    repositories.write_text("pypi:toolz==1.0.0\n")
    settings = ["train.injector_groups=0", f"run.folder={tmp_path / 'runs'}"]
    with pytest.raises(
        UsageError, match=r"train.injector_groups = 0 makes no bugs, and train.bugs names no file"
    ):
        start_training(repositories, None, settings)
    assert not (tmp_path / "runs").exists()


def test_given_bugs_that_are_also_evaluated_on_are_refused_before_the_run_starts(tmp_path):
    (tmp_path / "repos.txt").write_text("pypi:toolz==1.0.0\n")
    task = Task("some-bug", "pypi:toolz==1.0.0", "the fix", "", ("t",), (), {"bug_inject.diff": ""})
    write_tasks([task], tmp_path / "given.jsonl")
    write_tasks([replace(task, instance_id="renamed")], tmp_path / "evaluated.jsonl")
    settings = [
        f"train.bugs={tmp_path / 'given.jsonl'}",
        f"evaluation.tasks=['{tmp_path / 'evaluated.jsonl'}']",
        f"run.folder={tmp_path}/runs",
    ]
    with pytest.raises(UsageError, match="share 1 bug.*'some-bug'"):
        start_training(tmp_path / "repos.txt", None, settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "train.trained_roles=[]",
        'train.trained_roles=["solver", "solver"]',
        'train.trained_roles=["judge"]',
        "train.injector_group_size=1",
    ],
)
def test_settings_with_which_nothing_is_learned_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_config(RECIPE, [setting])


CODE = """\
LIMIT = 3


def first(x):
    return x


@property
def second(x):
    y = x

    return y


class Box:
    def third(self):
        return 1
"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("LIMIT = 3", "LIMIT = 4", set()),
        ("    return x\n", "    return -x\n", {"first"}),
        ("@property\n", "", {"second"}),
        ("    y = x\n", "    y = x\n    y = 2\n", {"second"}),
        ("\n    return y\n", "", {"second"}),
        ("        return 1\n", "        return 2\n", {"Box.third"}),
        ("def first(x):", "def other(x):", {"first", "other"}),
        ("    return x\n", "    return x\n\n\ndef added():\n    pass\n", {"added"}),
    ],
)
def test_a_function_is_touched_when_one_of_its_lines_differs_before_or_after(old, new, names):
    trees = [Tree({"m.py": FileEntry(code.encode())}) for code in (CODE, CODE.replace(old, new))]
    assert touched_functions(*trees) == names

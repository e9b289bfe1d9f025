"""The learning experiment: plays runs of several arms and seeds, then writes docs/learning-tables.md.

All arms get equal compute. To continue, repeat the command: it skips finished runs and resumes killed ones.
learning_figures.py reads the runs and draws.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning_figures import FixedBugs, on_fixed_bugs, write_figures
from benchmarks.options import at_least_one
from selfplay.config import Config, load_config
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, SelfplayError, UsageError
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.tasks import read_tasks
from selfplay.metrics import read_metrics
from selfplay.orchestrator.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
ARMS = ("selfplay", "repair", "injection")
# Groups of 2 episodes, each on another function. A little over half of them become different bugs.
TEACHER_GROUPS = 100
# Settings in which a run may differ from the plan and still be continued.
FREE = {
    "run.name",
    "train.updates",
    "train.bugs",
    "train.workers",
    "train.episodes_in_flight",
    "train.max_machine_failures",
}


@dataclass(frozen=True)
class Plan:
    """The wanted experiment: the recipe with the user's settings, and the paths."""

    config_file: Path
    repositories: Path
    settings: tuple[str, ...]  # key=value
    prefix: str
    bugs: Path | None  # of the repair arm; None if the teacher makes them

    def config(self, *more: str) -> Config:
        return load_config(self.config_file, [*self.settings, *more])

    @property
    def runs(self) -> Path:
        return Path(self.config().run.folder)

    @property
    def teacher(self) -> RunFolder:
        return RunFolder(self.runs / f"{self.prefix}-teacher")

    @property
    def frozen_bugs(self) -> Path:
        return self.bugs or self.teacher.path / "frozen-bugs.jsonl"

    @property
    def before(self) -> Folder:
        """The evaluation of the policy that every run starts from."""
        return Folder(self.runs / f"{self.prefix}-before")

    @property
    def before_on_fixed_bugs(self) -> Folder:
        return Folder(self.runs / f"{self.prefix}-before-on-fixed-bugs")

    def run(self, arm: str, seed: int) -> RunFolder:
        return RunFolder(self.runs / f"{self.prefix}-{arm}-s{seed}")


def episodes_an_update(config: Config) -> int:
    train = config.train
    return (
        train.injector_groups * (train.injector_group_size or train.group_size)
        + train.solver_groups * train.group_size
    )


def arm_settings(arm: str, config: Config, bugs: Path) -> list[str]:
    """The settings that an arm changes in the recipe. Every arm plays equally many episodes and updates.

    selfplay: none. Both roles play, and both are trained.
    repair: no injectors. Solvers play instead of them, on the bugs of one file. No second-order
        bugs.
    injection: both roles play, since an injector's reward needs solve rates. Only injectors are trained.

    Raises UsageError if solver groups cannot make up the number of episodes in an update.
    """
    if arm == "selfplay":
        return []
    if arm == "injection":
        return ['train.trained_roles=["injector"]']
    episodes, size = episodes_an_update(config), config.train.group_size
    if episodes % size:
        raise UsageError(
            f"an update plays {episodes} episodes, which no number of solver groups of {size} makes up: "
            "the repair arm would play fewer. "
            "Change train.injector_groups, train.injector_group_size or train.group_size."
        )
    solvers = f"train.solver_groups={episodes // size}"
    return [
        "train.injector_groups=0",
        solvers,
        "solver.second_order_share=0.0",
        f"train.bugs={json.dumps(str(bugs))}",
    ]


def check_bugs(path: Path, config: Config, arms: Sequence[str]) -> None:
    """Raise UsageError if the repair arm has too few bugs for one update."""
    groups = episodes_an_update(config) // config.train.group_size
    if "repair" in arms and len(read_tasks(path)) < groups:
        raise UsageError(
            f"{path} holds fewer bugs than the {groups} that an update of the repair arm plays. "
            "Give --bugs a larger file."
        )


def settings_that_differ(config: Config, run: RunFolder) -> list[str]:
    """One line for each setting in which an existing run differs from `config`, except for FREE."""
    wanted, there = config.model_dump(mode="json"), run.config().model_dump(mode="json")
    found = []
    for name, value in wanted.items():
        pairs = (
            [(f"{name}.{key}", v, there[name][key]) for key, v in value.items()]
            if isinstance(value, dict)
            else [(name, value, there[name])]
        )
        found += [
            f"{key}: {a!r} is asked for, {b!r} is there" for key, a, b in pairs if a != b and key not in FREE
        ]
    return found


def is_finished(run: RunFolder, updates: int, evaluates: bool) -> bool:
    """True if all updates are committed and the last evaluation has its row."""
    if not run.database.is_file():
        return False
    with Store.open(run.database, writer=False) as store:
        committed = store.last_update()
    return committed >= updates and (
        not evaluates or any(row.get("evaluation") == committed for row in read_metrics(run.metrics))
    )


def selfplay(*arguments: str) -> None:
    """Run one `selfplay` command and show its output. Raises RunError if it fails."""
    print("$ selfplay", *arguments, flush=True)
    status = subprocess.run([sys.executable, "-m", "selfplay.cli", *arguments]).returncode
    if status < 0 or status == 130:
        raise KeyboardInterrupt
    if status:
        raise RunError(
            f"selfplay {arguments[0]} failed with status {status}. Repeat the command to continue."
        )


def play(plan: Plan, run: RunFolder, more: Sequence[str]) -> None:
    """Start the run, continue it, or leave a finished one alone.

    more: settings in addition to the plan's. Raises UsageError if the run was played with other settings.
    """
    config = plan.config(f"run.name={run.path.name}", *more)
    updates = config.train.updates
    if not run.config_file.is_file():
        overrides = [*plan.settings, *more, f"run.name={run.path.name}"]
        given = [part for setting in overrides for part in ("--set", setting)]
        return selfplay("train", "--repos", str(plan.repositories), "--config", str(plan.config_file), *given)
    if differing := settings_that_differ(config, run):
        raise UsageError(
            f"{run.path} was played with other settings ({'; '.join(differing[:4])}). "
            "Remove that folder, or choose another --name."
        )
    if is_finished(run, updates, bool(config.evaluation.tasks)):
        return print(f"{run.path.name}: finished.", flush=True)
    return selfplay(
        "train", "--resume", str(run.path), "--runs", str(plan.runs), "--set", f"train.updates={updates}"
    )


def evaluate(plan: Plan, tasks: Sequence[str], output: Folder, *more: str) -> None:
    """Evaluate a policy as the runs do, in the folder `output`. It continues an unfinished evaluation."""
    evaluation = plan.config().evaluation
    named = [part for name in tasks for part in ("--tasks", name)]
    given = [part for setting in (*plan.settings, *more) for part in ("--set", setting)]
    how = [
        "--attempts",
        str(evaluation.attempts),
        "--greedy" if evaluation.greedy else "--no-greedy",
        "--limit",
        str(evaluation.limit),
    ]
    selfplay("eval", *named, *how, "--config", str(plan.config_file), *given, "--output", str(output.path))


def evaluate_on_fixed_bugs(plan: Plan, runs: Sequence[RunFolder]) -> None:
    """Evaluate the first policy, and the last one of each finished run, on the repair arm's bugs."""
    tasks = [str(plan.frozen_bugs)]
    evaluate(plan, tasks, plan.before_on_fixed_bugs)
    config = plan.config()
    for run in runs:
        newest = run.newest_checkpoint()
        if newest and is_finished(run, config.train.updates, bool(config.evaluation.tasks)):
            update = int(newest.name.rpartition("-")[2])
            evaluate(plan, tasks, on_fixed_bugs(run, update), f"policy.model={json.dumps(str(newest))}")


def make_frozen_bugs(plan: Plan) -> None:
    """Let the scripted teacher make bugs in the same repositories, in one update without solvers.

    None of them lies in a held-out function. Raises UsageError if the file of --bugs is missing.
    """
    if plan.frozen_bugs.is_file():
        return
    if plan.bugs:
        raise UsageError(
            f"there is no file {plan.bugs}. Leave out --bugs, and the scripted teacher makes bugs."
        )
    groups = [
        "train.injector_group_size=0",
        "train.group_size=2",
        f"train.injector_groups={TEACHER_GROUPS}",
        "train.solver_groups=0",
    ]
    play(
        plan,
        plan.teacher,
        [
            "engine.type=scripted",
            "evaluation.tasks=[]",
            "train.updates=1",
            "train.fill_idle_slots=false",
            *groups,
        ],
    )
    partial = plan.frozen_bugs.with_suffix(".partial")
    selfplay(
        "inspect-bugs",
        plan.teacher.path.name,
        "--runs",
        str(plan.runs),
        "--order",
        "1",
        "--tasks",
        str(partial),
    )
    partial.rename(plan.frozen_bugs)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--updates", type=at_least_one, help="instead of the recipe's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a setting for every arm; may be repeated",
    )
    parser.add_argument("--name", default="learning", help="the runs are called NAME-ARM-sSEED")
    parser.add_argument("--config", type=Path, default=ROOT / "runs/recipes/learning.toml")
    parser.add_argument("--repos", type=Path, default=ROOT / "runs/recipes/learning-repos.txt")
    parser.add_argument(
        "--bugs",
        type=Path,
        help="task records for the repair arm; without this option the scripted teacher makes them",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        default=ROOT / "docs/learning-tables.md",
        help="the page that gets the tables and plots",
    )
    parser.add_argument(
        "--figures-only",
        action="store_true",
        help="play nothing; write tables and plots of the existing runs",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    settings = (*options.settings, *([f"train.updates={options.updates}"] if options.updates else []))
    plan = Plan(
        options.config, options.repos, settings, options.name, options.bugs and options.bugs.absolute()
    )
    failed = []
    try:
        config = plan.config()
        if not options.figures_only:
            started = time.monotonic()
            if "repair" in options.arms:
                make_frozen_bugs(plan)
                check_bugs(plan.frozen_bugs, config, options.arms)
            if config.evaluation.tasks:  # all runs start from one policy, which is evaluated once
                evaluate(plan, config.evaluation.tasks, plan.before)
            # All arms of one seed first: half of the runs are a comparison already.
            for seed in options.seeds:
                for arm in options.arms:
                    try:
                        arms = arm_settings(arm, config, plan.frozen_bugs.absolute())
                        play(plan, plan.run(arm, seed), [*arms, f"seed={seed}", "evaluation.before=false"])
                    except RunError as error:
                        failed.append(f"{arm}, seed {seed}: {error}")
                        print(failed[-1], file=sys.stderr, flush=True)
            if "repair" in options.arms:
                evaluate_on_fixed_bugs(
                    plan, [plan.run(arm, seed) for arm in options.arms for seed in options.seeds]
                )
            print(f"{(time.monotonic() - started) / 60:.1f} minutes.", flush=True)
        runs = [(arm, seed, plan.run(arm, seed)) for arm in options.arms for seed in options.seeds]
        played = [(arm, seed, run) for arm, seed, run in runs if run.database.is_file()]
        fixed = (
            FixedBugs(read_tasks(plan.frozen_bugs), plan.before_on_fixed_bugs)
            if plan.frozen_bugs.is_file()
            else None
        )
        write_figures(played, options.docs, plan.before, fixed)
    except SelfplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted. Repeat the command to continue.", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kills processes of training runs at random moments, and compares the results with an undisturbed run.

    make chaos KILLS=50

Each run is `selfplay train`, resumed until all its updates are done. It prints a line for each kill. The
first failure ends it with exit code 1; it prints the seed, what was killed, and the command to repeat it.

Invariant: it kills only processes of runs that it started.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from folder_events import FolderEvents
from process_tree import (
    COMMAND,
    CONTROLLER,
    HELPER,
    MONITOR,
    PARSER,
    RANK,
    SERVER,
    TEST_RUN,
    Process,
    adopt_orphans,
    is_alive,
    own_children,
    processes_of,
)
from run_contents import contents, differences, twice_or_lost
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.scripts import standard_parser, standard_script
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from tiny_bugs import CLAMP_BUG, CLAMP_TEST, CLAMP_WEAKENED, TESTS, diff
from tiny_policy import build_tiny_policy
from tiny_repository import FILES, TEST_IDS, build_tiny_repository

ROOT = Path(__file__).parents[1]
NAME = "chaos"
WAIT_FOR_VICTIM_S = 20.0
GONE_S = 180.0  # most seconds that processes may outlive their controller: a busy machine is slow
MOST_KILLS = 8  # kills in one run: with more, too few runs end and can be compared
EARLY_S = 3.0  # a kill in these first seconds of a start is an early one
EARLY_SHARE = 0.25  # at least this share of the kills is early
# If one of these dies, the run may stop with an error. It must survive the death of all others.
MAY_STOP_THE_RUN = (RANK, HELPER)

GAME: dict[str, dict[str, Any]] = {
    "": {"seed": 11},
    "train": {
        "updates": 2,
        "injector_groups": 1,
        "solver_groups": 1,
        "group_size": 3,
        "max_machine_failures": 0.9,
    },
    "agent": {
        "max_turns": 10,
        "context_tokens": 8192,
        "turn_tokens": 2048,
        "observation_tokens": 1500,
        "prompt_style": "terse",
    },
    "injector": {"strategies": {"direct": 1.0}, "help": ["tests", "target"], "min_passing_tests": [3, 3]},
    "solver": {"help": ["failure", "suspects", "tests"], "second_order_share": 0.5, "max_spec_tokens": 4000},
    "engine": {"type": "scripted"},
    "sandbox": {"type": "bubblewrap"},
    "trainer": {"learning_rate": 1e-3, "warmup_updates": 1, "bf16": False},
}
# Settings that fit the policy that comes with selfplay, as in the quickstart.
CARRIED = {
    "agent": {
        "max_turns": 8,
        "context_tokens": 3072,
        "turn_tokens": 160,
        "observation_tokens": 400,
        "prompt_style": "terse",
    },
    "engine": {"type": "hf"},
    "policy": {"model": "carried"},
}


@dataclass(frozen=True)
class Scenario:
    """A kind of run, and what may be killed in it.

    share         weight of the scenario in the number of kills
    victims       kind of process -> weight
    is_exact      the run must end with the contents of an undisturbed run
    needs         a module without which the scenario is left out
    is_evaluated  the run evaluates after each update
    left_out      fields of an episode that are not compared
    """

    name: str
    share: int
    victims: Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_exact: bool = True
    needs: str = ""
    is_evaluated: bool = False
    left_out: tuple[str, ...] = ()


SANDBOXES = {MONITOR: 2, SERVER: 2}
# A killed test run or parser counts against the policy, whose code may have sent the signal.
RUNS = {TEST_RUN: 2, PARSER: 1}
SCENARIOS = (
    Scenario("scripted", 60, {CONTROLLER: 7, HELPER: 1, **SANDBOXES}, is_evaluated=True),
    # A killed process of a policy's command changes the observation: the command might have killed it itself.
    Scenario("commands", 14, {COMMAND: 8, CONTROLLER: 2, **SANDBOXES, **RUNS}, is_exact=False),
    Scenario(
        "deepspeed",
        14,
        {RANK: 1, CONTROLLER: 1},
        {"trainer": GAME["trainer"] | {"type": "deepspeed", "ranks": 2, "zero_stage": 2}},
        needs="deepspeed",
    ),
    # The last bits of a log-probability depend on the rest of its batch. The sampled tokens do not.
    Scenario("hf", 12, {CONTROLLER: 3, MONITOR: 1, SERVER: 1}, CARRIED, left_out=("logprobs",)),
)


class Failed(Exception):
    """A check failed. The message holds what one needs to investigate it."""


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its contents, its duration, and the number of writes to each part of its folder."""

    values: Mapping[str, Any]
    seconds: float
    events: Mapping[str, int]


def part_of(path: str) -> str:
    """The part of a run's folder to which a changed path belongs. path: relative to the folder of runs."""
    parts = Path(path).parts[1:]
    if not parts:
        return "run folder"
    if parts[0] in ("checkpoints", "episodes"):
        return parts[0]
    if parts[0].startswith("selfplay.db"):
        return "database"
    return "metrics" if parts[0].startswith("metrics") else "run folder"


class Chaos:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.killed: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.runs = 0
        self.repository = build_tiny_repository(folder / "tiny", git=True)
        build_tiny_policy(folder / "policy")
        (folder / "repos.txt").write_text(f"{self.repository}\n")
        write_tasks([a_task(self.repository)], folder / "tasks.jsonl")

    # -- one run

    def command(self, scenario: Scenario, home: Path, resume: bool) -> list[str]:
        line = [sys.executable, "-m", "selfplay.cli", "train"]
        if resume:
            return [*line, "--resume", NAME, "--runs", str(home)]
        sections = {
            **GAME,
            "policy": {"model": str(self.folder / "policy")},
            **scenario.settings,
            "run": {"name": NAME, "folder": str(home)},
        }
        if scenario.is_evaluated:
            sections["evaluation"] = {
                "tasks": [str(self.folder / "tasks.jsonl")],
                "attempts": 1,
                "greedy": False,
                "before": False,
                "every": 1,
            }
        overrides = [
            f"{f'{section}.' if section else ''}{key}={_toml(value)}"
            for section, values in sections.items()
            for key, value in values.items()
        ]
        return [
            *line,
            "--repos",
            str(self.folder / "repos.txt"),
            *(part for text in overrides for part in ("--set", text)),
        ]

    def start(self, scenario: Scenario, home: Path, number: int) -> subprocess.Popen[bytes]:
        resume = (home / NAME / "config.json").exists()
        with (home.with_suffix(".log")).open("ab") as log:
            log.write(f"--- leg {number}{', resumed' if resume else ''}\n".encode())
            log.flush()
            variables = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_WAIT_POLICY": "passive",
                "COLUMNS": "160",
            }
            return subprocess.Popen(
                self.command(scenario, home, resume),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=variables,
            )

    def undisturbed(self, scenario: Scenario, name: str = "reference") -> Reference:
        home = self.folder / f"{scenario.name}-{name}"
        home.mkdir()
        counts: Counter[str] = Counter()
        began = time.monotonic()
        with FolderEvents(home) as events:
            process = self.start(scenario, home, 1)
            while process.poll() is None:
                while (path := events.next(0.2)) is not None:
                    counts[part_of(path)] += 1
        if process.returncode:
            raise Failed(f"the undisturbed run ended with {process.returncode}:\n{log_tail(home)}")
        run = RunFolder(home / NAME)
        if wrong := twice_or_lost(run):
            raise Failed("the undisturbed run is wrong:\n" + "\n".join(wrong))
        return Reference(contents(run, scenario.left_out), time.monotonic() - began, counts)

    def attack(self, scenario: Scenario, reference: Reference, number: int, planned: int) -> int:
        """Play one run with `planned` kills, or fewer if it ends before. Returns how many. Raises Failed."""
        home = self.folder / f"{scenario.name}-{number}"
        home.mkdir()
        rng = random.Random(f"{self.seed}/{scenario.name}/{number}")
        attempt = Attempt(self, scenario, reference, home, rng, planned)
        try:
            attempt.play()
            run = RunFolder(home / NAME)
            wrong = twice_or_lost(run)
            if scenario.is_exact:
                wrong += differences(reference.values, contents(run, scenario.left_out))
            if wrong:
                raise Failed(f"{len(wrong)} thing(s) are wrong:\n" + "\n".join(wrong[:25]))
        except Failed as failure:
            history = "\n".join(f"  {line}" for line in attempt.kills) or "  none"
            raise Failed(
                f"run {number} of {scenario.name}: {failure}\nkills of this run:\n{history}\n"
                f"folder: {home}, log: {home}.log\n{log_tail(home)}\n"
                f"repeat: python tests/chaos.py --seed {self.seed} --scenario {scenario.name} "
                f"--run {number} --kills {planned}"
            ) from failure
        self.runs += 1
        shutil.rmtree(home)
        return len(attempt.kills)


def a_task(repository: Path) -> Task:
    """A bug of the tiny repository, for evaluation."""
    tree = Tree({path: FileEntry(text.encode()) for path, text in FILES.items()})
    artifact = Artifact(
        diff(tree, CLAMP_BUG),
        diff(tree, CLAMP_WEAKENED),
        TESTS,
        standard_script(TESTS, "-o addopts="),
        standard_parser(),
    )
    passing = tuple(test for test in TEST_IDS if test != CLAMP_TEST)
    return Task(
        "tiny__clamp", str(repository), "", "", (CLAMP_TEST,), passing, artifact.to_files(), set="tiny"
    )


class Attempt:
    """One run in which processes are killed. It has a leg for each start of `selfplay train`."""

    def __init__(
        self,
        chaos: Chaos,
        scenario: Scenario,
        reference: Reference,
        home: Path,
        rng: random.Random,
        planned: int,
    ) -> None:
        self.chaos = chaos
        self.scenario = scenario
        self.reference = reference
        self.home = home
        self.rng = rng
        self.planned = planned
        self.kills: list[str] = []
        self.early = 0
        self.legs = 0

    def play(self) -> None:
        """Start the run, kill processes, and resume it until it is done. Raises Failed."""
        with FolderEvents(self.home) as events:
            while True:
                self.legs += 1
                process = self.chaos.start(self.scenario, self.home, self.legs)
                dead: list[str] = []
                try:
                    if self.early <= EARLY_SHARE * len(self.kills) and len(self.kills) < self.planned:
                        dead += self._kill_early(process, events)
                    while (
                        len(self.kills) < self.planned and CONTROLLER not in dead and process.poll() is None
                    ):
                        dead += self._kill_one(process, events)
                    code = process.wait(120 + 20 * self.reference.seconds)
                except subprocess.TimeoutExpired:
                    raise Failed(
                        f"leg {self.legs}, process {process.pid}, does not end within 120 s "
                        f"and 20 times the {self.reference.seconds:.0f} s of the undisturbed run"
                    ) from None
                finally:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
                self._check_nothing_lives()
                if code == 0:
                    return
                may_end = set(dead) & set(MAY_STOP_THE_RUN) or (
                    code == -signal.SIGKILL and CONTROLLER in dead
                )
                if not may_end and not (code == 1 and dead and self._was_starting()):
                    raise Failed(
                        f"leg {self.legs} ended with {code}; killed in it: {', '.join(dead) or 'nothing'}"
                    )

    def _was_starting(self) -> bool:
        """True if the leg ended with an error before it began to play.

        Then its checks of the machine reported what the kill broke, and the start can be repeated.
        """
        leg = (
            self.home.with_suffix(".log")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition("--- leg ")[2]
        )
        return "update " not in leg and "error: " in leg

    def _kill_one(self, process: subprocess.Popen[bytes], events: FolderEvents) -> list[str]:
        """Wait for a random moment, then kill a process of a random kind.

        Returns its kind, or [] if there is no such process.
        """
        rng, began = self.rng, time.monotonic()
        victims = self.scenario.victims
        wanted = rng.choices(list(victims), list(victims.values()))[0]
        parts = [
            part
            for part in ("checkpoints", "episodes", "database", "metrics", "run folder")
            if self.reference.events.get(part)
        ]
        pause_s = rng.uniform(0, 0.6 * self.reference.seconds)
        part = rng.choice(parts) if wanted in (CONTROLLER, RANK) and rng.random() < 0.6 else ""
        count = rng.randint(1, max(1, self.reference.events.get(part, 1) // 3))
        delay_s = rng.choice((0.0, 0.0, 0.001, 0.005))
        if part:
            moment = f"{part} write {count}"
            events.forget()
            while count and process.poll() is None:
                path = events.next(0.5)
                count -= path is not None and part_of(path) == part
            time.sleep(delay_s)
        else:
            moment = "any time"
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
        return self._kill(self._victim(process, wanted), part or "any time", moment, began)

    def _kill_early(self, process: subprocess.Popen[bytes], events: FolderEvents) -> list[str]:
        """Kill the controller in the first EARLY_S seconds of its start. Returns its kind, or [].

        Half of these kills are at a random time, half at one of the first writes to the run's folder.
        """
        began = time.monotonic()
        if self.rng.random() < 0.5:
            pause_s = self.rng.uniform(0, EARLY_S)
            moment = f"{pause_s:.2f} s"
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
        else:
            events.forget()
            count = writes = self.rng.randint(1, 40)
            moment = f"write {writes}"
            while count and process.poll() is None and (left := began + EARLY_S - time.monotonic()) > 0:
                count -= events.next(left) is not None
        found = [one for one in processes_of(process.pid) if one.kind == CONTROLLER]
        killed = self._kill(next(iter(found), None), "start", f"{moment} of the start", began)
        self.early += len(killed)
        return killed

    def _kill(self, victim: Process | None, part: str, moment: str, began: float) -> list[str]:
        """Kill the victim and record when. Returns its kind, or [] if there was nothing to kill."""
        if victim is None:
            return []
        doing = last_line(self.home)
        written = newest_file(self.home / NAME)
        if not kill(victim):
            return []
        self.chaos.killed[victim.kind] += 1
        self.chaos.moments[part] += 1
        line = f"{victim}, {moment}, waited {time.monotonic() - began:.1f} s; last file {written}; {doing}"
        self.kills.append(line)
        print(
            f"kill {sum(self.chaos.killed.values())}, {self.scenario.name}, leg {self.legs}: {line}",
            flush=True,
        )
        return [victim.kind]

    def _victim(self, process: subprocess.Popen[bytes], wanted: str) -> Process | None:
        """A living process of the wanted kind. Waits for one; None if none comes or the run ends."""
        give_up = time.monotonic() + (WAIT_FOR_VICTIM_S if wanted != HELPER else 2.0)
        while process.poll() is None and time.monotonic() < give_up:
            found = [one for one in processes_of(process.pid) if one.kind == wanted]
            if found:
                return self.rng.choice(found)
            time.sleep(0.003)
        return None

    def _check_nothing_lives(self) -> None:
        give_up = time.monotonic() + GONE_S
        while alive := own_children():
            if time.monotonic() > give_up:
                names = [
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode("utf-8", "replace")[:120]
                    for pid in alive
                ]
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                raise Failed(f"{GONE_S:.0f} s after the run's process ended, these still live: {names}")
            time.sleep(0.02)


def kill(victim: Process) -> bool:
    """Send SIGKILL to the process that was found, never to another one with the same number."""
    try:
        handle = os.pidfd_open(victim.pid)
    except OSError:
        return False
    try:
        if not is_alive(victim.pid):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def last_line(home: Path) -> str:
    """The last line that the run printed."""
    lines = home.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((f"last line {line.strip()[:90]!r}" for line in reversed(lines) if line.strip()), "no output")


def newest_file(run: Path) -> str:
    newest, at = "none", 0.0
    for path in run.rglob("*"):
        with suppress(OSError):
            if path.is_file() and (when := path.stat().st_mtime) > at:
                newest, at = str(path.relative_to(run)), when
    return newest


def log_tail(home: Path, lines: int = 25) -> str:
    text = home.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "end of the log:\n" + "\n".join(f"  {line}" for line in text[-lines:])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def shares_of(kills: int, scenarios: Sequence[Scenario]) -> dict[str, int]:
    """The number of kills of each scenario, by its share and at least 1."""
    total = sum(scenario.share for scenario in scenarios)
    shares = {scenario.name: max(1, round(kills * scenario.share / total)) for scenario in scenarios[1:]}
    return {scenarios[0].name: max(1, kills - sum(shares.values())), **shares}


def main() -> int:
    options = argparse.ArgumentParser(
        description="Kill processes of training runs, and check that nothing is lost or counted twice."
    )
    options.add_argument("--kills", type=int, default=50)
    options.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**31), help="seed of all random choices; printed"
    )
    options.add_argument(
        "--scenario", default="", help=f"only this one: {', '.join(scenario.name for scenario in SCENARIOS)}"
    )
    options.add_argument(
        "--run", type=int, default=1, help="number of the first run of each scenario, to repeat a failure"
    )
    options.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="folder to work in; it is kept. Default: a temporary one, kept only after a failure",
    )
    chosen = options.parse_args()
    if chosen.kills < 1:
        options.error(f"--kills {chosen.kills}: give at least 1")
    scenarios = [scenario for scenario in SCENARIOS if chosen.scenario in ("", scenario.name)]
    if not scenarios:
        options.error(
            f"--scenario {chosen.scenario!r} is none of: {', '.join(scenario.name for scenario in SCENARIOS)}"
        )
    for scenario in list(scenarios):
        if scenario.needs and importlib.util.find_spec(scenario.needs) is None:
            print(f"left out: {scenario.name}, because {scenario.needs} is not installed", flush=True)
            scenarios.remove(scenario)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="selfplay-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    began = time.monotonic()
    print(f"{chosen.kills} kills, seed {chosen.seed}, in {folder}", flush=True)
    chaos = Chaos(folder, chosen.seed)
    try:
        for name, kills in shares_of(chosen.kills, scenarios).items():
            scenario = next(one for one in scenarios if one.name == name)
            reference = chaos.undisturbed(scenario)
            print(
                f"{name}: undisturbed it takes {reference.seconds:.0f} s; "
                f"{len(reference.values)} values to compare; {kills} kills",
                flush=True,
            )
            done, number = 0, chosen.run
            while done < kills:
                left = kills - done
                planned = (
                    left
                    if left <= MOST_KILLS
                    else random.Random(f"{chosen.seed}/{name}/{number}/kills").randint(3, MOST_KILLS)
                )
                done += chaos.attack(scenario, reference, number, planned)
                what = "equals the undisturbed run" if scenario.is_exact else "lost and doubled nothing"
                print(f"{name}, run {number}: {what}", flush=True)
                number += 1
    except Failed as failure:
        print(f"FAILED after {sum(chaos.killed.values())} kills, seed {chosen.seed}\n{failure}", flush=True)
        return 1
    kinds = ", ".join(f"{kind} {count}" for kind, count in chaos.killed.most_common())
    moments = ", ".join(f"{part} {count}" for part, count in chaos.moments.most_common())
    print(
        f"{sum(chaos.killed.values())} kills in {chaos.runs} runs, {time.monotonic() - began:.0f} s: "
        f"{kinds}. Moments: {moments}. "
        "No run lost or doubled anything, and each exact one equals the undisturbed run."
    )
    if chosen.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

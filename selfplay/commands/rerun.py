"""`selfplay replay EPISODE --rerun`: the recorded actions once more, in a fresh sandbox.

The agent plays as in the run. Its engine answers with the tokens that were recorded, so nothing is sampled.
What the policy was shown then and what it would be shown now are compared, turn by turn.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode, Role
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.local_host import LocalHost
from selfplay.agent.observations import make_harmless
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey, sandbox_limits
from selfplay.commands.policies import check_model
from selfplay.config import Config
from selfplay.curriculum.store import Store
from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.errors import RunError
from selfplay.orchestrator.dispatcher import sampled_thresholds
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import read_repository_list
from selfplay.repositories.targets import Target
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.folding import diff_style

if TYPE_CHECKING:
    import torch

SAME, DIFFERENT = 0, 1
# How long something took, as test runners print it: the only difference that is not reported.
SECONDS = re.compile(r"\b\d+(?:\.\d+)? ?(?:s|ms|sec|secs|seconds)\b")


@dataclass(frozen=True)
class Difference:
    """The first place where the rerun differs. turn: from 1; 0: in how the episode ended."""

    turn: int
    what: str
    recorded: str
    now: str


class RecordedEngine:
    """Answers each turn with the tokens that were recorded, and every later one with a stop token."""

    weight_version = 0

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: GenerationRequest) -> Completion:
        number, turns = int(request.tag.rpartition("/")[2]), self._episode.turns
        ids: tuple[int, ...] = (min(request.stop_ids),)
        if number < len(turns):
            ids = self._episode.token_ids[slice(*turns[number].tokens)]
        return Completion(ids, (0.0,) * len(ids), 0, ids[-1] in request.stop_ids)

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """It has none."""

    def close(self) -> None:
        """It holds nothing."""


def rerun(found: RecordedEpisode, console: Console, *, as_json: bool = False) -> int:
    """Play a recorded episode of training once more and print the first difference.

    Returns the exit code: 0 if nothing differs, else 1. Raises RunError if it cannot be played again.
    """
    run = RunFolder(found.path.parent.parent)
    if not run.database.is_file():
        raise RunError(f"{found.path} is of an evaluation. --rerun takes an episode of a training run.")
    config = run.config()
    spec = next(
        (
            spec
            for spec in read_repository_list(run.repositories_file)
            if spec.name == found.episode.repository
        ),
        None,
    )
    if spec is None:
        raise RunError(f"{run.repositories_file} has no repository {found.episode.repository!r} any more.")
    chat = ChatFormat(load_tokenizer(check_model(config)))
    backend, _ = open_backend(config.sandbox.type)
    limits, cache = sandbox_limits(config), cache_root()
    with console.status(Text(f"{make_harmless(spec.name)}: preparing")):
        checkout = fetch(spec, cache)
        environment = prepare_environment(
            checkout, backend, config.environment, limits, cache, lambda _: None
        )
    with console.status("playing the recorded actions"):
        again = play_again(found.episode, run, config, chat, environment, backend)
    difference = first_difference(found.episode, again)
    if as_json:
        print(json.dumps({"turns": len(again.turns), "difference": difference and asdict(difference)}))
    else:
        show_difference(found.episode, difference, console)
    return SAME if difference is None else DIFFERENT


def play_again(
    episode: Episode,
    run: RunFolder,
    config: Config,
    chat: ChatFormat,
    environment: Environment,
    backend: SandboxBackend,
) -> Episode:
    """The episode with the recorded actions, played now. Raises RunError if the run cannot give its task."""
    for turn in episode.turns[:1]:
        if chat.decode(episode.token_ids[slice(*turn.tokens)]) != turn.text:
            raise RunError(
                f"the tokenizer of policy.model = {config.policy.model!r} is not the one that "
                f"{episode.episode_id} was played with. Put that policy back to play it again."
            )
    # A recorded action is the one that was kept: none is sampled again.
    agent = config.agent.model_copy(update={"resamples": 0})
    config = config.model_copy(update={"agent": agent})
    limits = sandbox_limits(config)
    labels = {"run": "rerun", "owner": str(os.getpid())}
    context = EpisodeContext(config, RecordedEngine(episode), chat, backend, limits)
    runner = TestRunner(backend, config.validator, limits, labels, run.secret())
    host = LocalHost(context, {environment.repository: environment}, runner)
    key = EpisodeKey(config.seed, episode.update, episode.group, episode.member, labels)
    work = work_of(episode, run, config)
    if isinstance(work, SolverWork):
        work = host.prepare(work)
    return host.play(work, key)


def work_of(episode: Episode, run: RunFolder, config: Config) -> InjectorWork | SolverWork:
    """What the episode was given to do, as the run's database has it."""
    with closing(Store.open(run.database, writer=False)) as store:
        if episode.role is Role.SOLVER:
            row = store.bug(episode.bug_id)
            return SolverWork(episode.repository, row.bug_id, row.state(), row.failure)
        group = next((group for group in store.groups() if group.group_id == episode.group), None)
    if group is None:
        raise RunError(f"{run.database} has no group {episode.group!r}, so the task is not known.")
    target_json = group.target_of(episode.member)
    target = Target(**json.loads(target_json)) if target_json else None
    thresholds = sampled_thresholds(config, group.group_id, episode.member)
    return InjectorWork(group.repository, group.strategy, target, thresholds)


def first_difference(recorded: Episode, now: Episode) -> Difference | None:
    """The first observation that differs, or else another end or submission. Durations do not count."""
    for number, before in enumerate(recorded.turns):
        if number >= len(now.turns):
            break
        after = now.turns[number]
        if steady(before.observation) != steady(after.observation):
            return Difference(number + 1, "the observation", before.observation, after.observation)
    if recorded.finish is not now.finish or len(recorded.turns) != len(now.turns):
        ends = [
            f"{one.finish.value} after {len(one.turns)} turns" + (f": {one.error}" if one.error else "")
            for one in (recorded, now)
        ]
        return Difference(0, "the end", *ends)
    if recorded.submission != now.submission:
        texts = [
            "\n".join(f"{name}\n{text}" for name, text in one.submission.items()) for one in (recorded, now)
        ]
        return Difference(0, "the submission", *texts)
    return None


def steady(text: str) -> str:
    """The text without durations."""
    return SECONDS.sub("… s", text)


def show_difference(episode: Episode, difference: Difference | None, console: Console) -> None:
    count = len(episode.turns)
    if difference is None:
        text = f"Nothing differs: all {count} turns of {episode.episode_id}, its end and its submission."
        console.print(Text(make_harmless(text), "green"), soft_wrap=True)
        return
    where = f"turn {difference.turn} of {count}: " if difference.turn else ""
    console.print(Text(f"{where}{difference.what} differs", "bold red"), soft_wrap=True)
    before, after = steady(difference.recorded).split("\n"), steady(difference.now).split("\n")
    for line in difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=2):
        console.print(Text(make_harmless(line), diff_style(line)), soft_wrap=True, highlight=False)

"""Plans the groups of a wave: injector groups with repository, strategy and target; solver groups with a bug.

It plays nothing. Invariants:
- A plan is stored in one transaction, and made once: a run that resumes reads it.
- Its random draws depend on the run's seed, the wave and the purpose alone, never on the order of completion.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from selfplay.agent.episode import Role
from selfplay.config import Config
from selfplay.curriculum.rows import BugRow, GroupRow
from selfplay.curriculum.sampling import (
    Candidates,
    choose_solver_bugs,
    choose_strategy,
    choose_target,
)
from selfplay.engines.base import derive_seed
from selfplay.orchestrator.batching import carries_gradient
from selfplay.orchestrator.bug_rows import GIVEN_STRATEGY
from selfplay.orchestrator.run_state import RunState
from selfplay.repositories.environment import Environment
from selfplay.repositories.targets import Target, usable_targets
from selfplay.settings.playing import InjectorSettings

if TYPE_CHECKING:
    from selfplay.curriculum.store import Store


@dataclass(frozen=True)
class GroupPlanner:
    """environments: by repository name."""

    store: Store
    state: RunState
    config: Config
    environments: Mapping[str, Environment]

    # ---- injectors

    def plan_injector_groups(
        self, wave: int, injecting: Collection[int], accepted_share: float
    ) -> list[GroupRow]:
        """The wave's injector groups. No group if enough bugs queue for their solvers.

        injecting: other waves that have no solver groups yet.
        accepted_share: expected share of their artifacts that become bugs.
        """
        if self.state.is_planned(wave, Role.INJECTOR):
            return self.store.groups(update=wave, role=Role.INJECTOR)
        train = self.config.train
        plays_bugs = train.solver_groups > 0 or train.fill_idle_slots  # else no queue ever gets shorter
        wanted = max(1, train.solver_groups)
        is_full = plays_bugs and self._bugs_in_queue(injecting, accepted_share) >= wanted
        groups = self._new_injector_groups(wave, 0 if is_full else train.injector_groups)
        self._save(wave, Role.INJECTOR, groups)
        return groups

    def _bugs_in_queue(self, injecting: Collection[int], accepted_share: float) -> float:
        """First-order bugs that wait for solvers, with what other waves will add and take."""
        artifacts = sum(
            group.size for wave in injecting for group in self.store.groups(update=wave, role=Role.INJECTOR)
        )
        waiting = len(self._free(self.store.bugs(status="fresh", order=1)))
        return waiting + artifacts * accepted_share - len(injecting) * self.config.train.solver_groups

    def _new_injector_groups(self, wave: int, count: int) -> list[GroupRow]:
        """Groups spread over repositories and targets: each takes one of those that were used least."""
        config = self.config
        rng = random.Random(derive_seed(config.seed, wave, "injector groups"))
        strategies = {str(name): weight for name, weight in config.injector.strategies.items()}
        earlier = self.store.groups(role=Role.INJECTOR)
        uses = Counter(group.repository for group in earlier)
        target_uses = Counter(target for group in earlier for target in group.targets)
        groups = []
        for number in range(count):
            least = min(uses[name] for name in self.environments)
            repository = rng.choice(sorted(name for name in self.environments if uses[name] == least))
            uses[repository] += 1
            targets: list[str] = []
            if "target" in config.injector.help:
                usable = targets_of(self.environments[repository], config.injector)
                names = sorted(json.dumps(asdict(target), sort_keys=True) for target in usable)
                for _ in range(min(config.injector.targets_per_group, len(names))):
                    unused = [name for name in names if name not in targets]
                    targets.append(choose_target(unused, target_uses, rng))
                target_uses.update(targets)
            groups.append(
                GroupRow(
                    group_id=f"u{wave:04d}-inj{number}",
                    update=wave,
                    role=Role.INJECTOR,
                    repository=repository,
                    strategy=choose_strategy(strategies, rng),
                    target_json=targets[0]
                    if len(targets) == 1
                    else f"[{', '.join(targets)}]"
                    if targets
                    else "",
                    bug_id="",
                    size=config.train.injector_group_size or config.train.group_size,
                )
            )
        return groups

    # ---- solvers

    def plan_solver_groups(self, wave: int, bugs: Sequence[BugRow]) -> None:
        """Store one group for each bug. The wave has then had its turn to choose bugs."""
        self._save(wave, Role.SOLVER, self._new_solver_groups(wave, bugs, first=0))

    def plan_refills(self, wave: int) -> list[GroupRow]:
        """New groups of other bugs, in place of groups without a gradient; `train.refills` at most."""
        groups = self.store.groups(update=wave, role=Role.SOLVER)
        limit = self.config.train.refills
        if not limit or not groups:
            return []
        refilled = self.state.refills(wave)
        without_gradient = sum(
            group.status != "open"
            and not carries_gradient(group, self.store.episodes(group_id=group.group_id))
            for group in groups
        )
        wanted = min(without_gradient, limit) - refilled
        if wanted <= 0:
            return []
        played = {group.bug_id for group in groups}
        bugs = self.choose_bugs(wave, wanted, f"refill {refilled}", without=played)
        refills = self._new_solver_groups(wave, bugs, first=len(groups))
        with self.store.transaction():
            self._save(wave, Role.SOLVER, refills)
            self.state.set_refills(wave, refilled + wanted)
        return refills

    def choose_bugs(
        self, wave: int, slots: int, purpose: str = "solver groups", without: Collection[str] = ()
    ) -> list[BugRow]:
        """At most `slots` bugs that no group plays now. without: ids of bugs to leave out.

        Each slot is for a given bug with probability `train.reference_share`. If there are too few of one
        kind, the other fills the slots.
        """
        rng = random.Random(derive_seed(self.config.seed, wave, purpose))
        share = self.config.train.reference_share
        if not share:
            return self._sampled(lambda _: True, slots, without, rng)
        wanted = sum(rng.random() < share for _ in range(slots))
        given = self._sampled(_is_given, wanted, without, rng)
        others = self._sampled(lambda bug: not _is_given(bug), slots - len(given), without, rng)
        left = slots - len(given) - len(others)
        more = self._sampled(_is_given, left, {*without, *(bug.bug_id for bug in given)}, rng) if left else []
        return [*given, *others, *more]

    def _sampled(
        self, wanted: Callable[[BugRow], bool], slots: int, without: Collection[str], rng: random.Random
    ) -> list[BugRow]:
        """At most `slots` of the wanted bugs, as the curriculum's sampler chooses."""
        fresh, measured = (
            [bug for bug in self._free(self.store.bugs(status=status), without) if wanted(bug)]
            for status in ("fresh", "measured")
        )
        solver = self.config.solver
        candidates = Candidates(fresh, measured, slots, solver.second_order_share, solver.replay_share)
        return choose_solver_bugs(self.config.curriculum.sampler, candidates, rng)

    def solver_slots(self, wave: int) -> int:
        """How many bugs the wave plays.

        With train.fill_idle_slots solvers also take the slots of injectors that wait for the queue of bugs.
        """
        train = self.config.train
        if not train.fill_idle_slots:
            return train.solver_groups
        injecting = sum(group.size for group in self.store.groups(update=wave, role=Role.INJECTOR))
        planned = (
            train.injector_groups * (train.injector_group_size or train.group_size)
            + train.solver_groups * train.group_size
        )
        return (planned - injecting) // train.group_size

    def _new_solver_groups(self, wave: int, bugs: Sequence[BugRow], first: int) -> list[GroupRow]:
        return [
            GroupRow(
                group_id=f"u{wave:04d}-sol{number}",
                update=wave,
                role=Role.SOLVER,
                repository=bug.repository,
                strategy=bug.strategy,
                target_json="",
                bug_id=bug.bug_id,
                size=self.config.train.group_size,
            )
            for number, bug in enumerate(bugs, first)
        ]

    def _free(self, bugs: Sequence[BugRow], without: Collection[str] = ()) -> list[BugRow]:
        """Those that no solver group plays now, of repositories that the run has an environment of."""
        open_groups = self.store.groups(role=Role.SOLVER, status="open")
        taken = {group.bug_id for group in open_groups}.union(without)
        return [bug for bug in bugs if bug.bug_id not in taken and bug.repository in self.environments]

    def _save(self, wave: int, role: Role, groups: Sequence[GroupRow]) -> None:
        with self.store.transaction():
            for group in groups:
                self.store.add_group(group)
            self.state.set_planned(wave, role)


def _is_given(bug: BugRow) -> bool:
    return bug.strategy == GIVEN_STRATEGY


def targets_of(environment: Environment, settings: InjectorSettings) -> list[Target]:
    """The functions that an injector may get as its target.

    They are short enough, and a test file that can carry an artifact covers them.
    """
    return usable_targets(
        environment.targets,
        environment.baseline.passed,
        settings.max_target_lines,
        settings.min_passing_tests[1],
    )

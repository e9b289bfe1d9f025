"""What a run remembers besides its rows: finished steps of its waves, and episodes that its metrics count.

A typed view of the database's table `state`. Invariant: keys and values keep their form, because a run that
resumes reads those that an older version wrote.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.agent.episode import Role

if TYPE_CHECKING:
    from selfplay.curriculum.store import Store


@dataclass(frozen=True)
class RunState:
    """Reads and writes the state of one run. Each method may be part of a transaction of the store.

    Key                       Value
    planned/<wave>/<role>     "yes": the wave's groups of this role are in the database
    refilled/<wave>           number of solver groups that the wave wanted as refills
    second/<group id>         id of the second-order bug that the solver group led to, or "none"
    played/<wave>             "yes": nothing of the wave is left to play
    evaluated/<update>        "yes": the evaluation after the update is finished
    episodes counted          JSON list: episodes of unfinished waves that an update's metrics count
    waves counted             JSON list: waves of which updates' metrics count every episode
    given_bugs                number of bugs that `train.bugs` added to the curriculum
    """

    store: Store

    def is_planned(self, wave: int, role: Role) -> bool:
        return self._is_set(f"planned/{wave}/{role}")

    def set_planned(self, wave: int, role: Role) -> None:
        self._set(f"planned/{wave}/{role}")

    def is_admitted(self, wave: int) -> bool:
        """True if the wave's accepted artifacts are bugs by now. Before that, each looks like a duplicate."""
        return self.is_planned(wave, Role.SOLVER)

    def refills(self, wave: int) -> int:
        return int(self.store.state(f"refilled/{wave}") or 0)

    def set_refills(self, wave: int, count: int) -> None:
        self._set(f"refilled/{wave}", str(count))

    def is_second_order_decided(self, group_id: str) -> bool:
        return self._is_set(f"second/{group_id}")

    def set_second_order(self, group_id: str, bug_id: str | None) -> None:
        self._set(f"second/{group_id}", bug_id or "none")

    def is_played(self, wave: int) -> bool:
        return self._is_set(f"played/{wave}")

    def set_played(self, wave: int) -> None:
        self._set(f"played/{wave}")

    def is_evaluated(self, update: int) -> bool:
        return self._is_set(f"evaluated/{update}")

    def set_evaluated(self, update: int) -> None:
        self._set(f"evaluated/{update}")

    def counted_episodes(self) -> set[str]:
        return set(json.loads(self.store.state("episodes counted") or "[]"))

    def counted_waves(self) -> set[int] | None:
        """None if the run never saved them."""
        saved = self.store.state("waves counted")
        return set(json.loads(saved)) if saved else None

    def set_counted(self, episodes: Collection[str], waves: Collection[int]) -> None:
        self._set("episodes counted", json.dumps(sorted(episodes)))
        self._set("waves counted", json.dumps(sorted(waves)))

    def has_given_bugs(self) -> bool:
        return self._is_set("given_bugs")

    def set_given_bugs(self, count: int) -> None:
        self._set("given_bugs", str(count))

    def _is_set(self, key: str) -> bool:
        return self.store.state(key) is not None

    def _set(self, key: str, value: str = "yes") -> None:
        self.store.set_state(key, value)

"""Repeated runs of a bug: outcomes must not change with the hash seed or with changes without meaning.

The first run of a state has no such changes, like a policy's own runs. All others have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfplay.outcomes import TestOutcomes
from selfplay.source.trees import Tree
from selfplay.verdicts.checks import Finding, judge_repeats
from selfplay.verdicts.test_runs import TestRun

PARALLEL_RUNS = 2
# Additional runs of a buggy state that may be random, two at a time until one differs. Take a bug that
# repairs itself by chance with p = 0.26, the solve rate that pays an injector best. These runs and those of
# every bug miss it in 0.74^9 = 7 % of cases if the random draw depends on the code, and in 0.74^10 = 5 % if
# it does not.
SUSPECT_RUNS = 8


@dataclass(frozen=True)
class Job:
    """One run. number: 0 for a first run; each number has a hash seed and changes of its own."""

    tree: Tree
    script: str
    parser: str
    number: int = 0


@dataclass(frozen=True)
class Repeats:
    """states: name -> its first run. judged: the state that grading sees; it gets the additional runs.

    change   a tree with the changes of a number
    run_all  runs jobs, several at a time
    """

    states: Mapping[str, Job]
    judged: str
    change: Callable[[Tree, int], Tree]
    run_all: Callable[[Sequence[Job]], Sequence[TestRun]]

    def judge(self, runs_each: int, is_suspect: bool) -> Finding:
        """Make `runs_each` runs of each state, and SUSPECT_RUNS more of the judged one if it is a suspect."""
        firsts = self.run_all([*self.states.values()])
        runs: dict[str, list[tuple[TestOutcomes, str]]] = {
            name: [(run.outcomes, run.error)] for name, run in zip(self.states, firsts, strict=True)
        }

        def repeat(wanted: Sequence[tuple[str, int]]) -> Finding:
            found = self.run_all([self._repeated(self.states[name], number) for name, number in wanted])
            for (name, _), run in zip(wanted, found, strict=True):
                runs[name].append((run.outcomes, run.error))
            return judge_repeats(runs)

        finding = repeat([(name, number) for name in self.states for number in range(1, runs_each)])
        if runs_each > 1 and is_suspect:
            for first in range(runs_each, runs_each + SUSPECT_RUNS, PARALLEL_RUNS):
                if not finding.passed:
                    break
                finding = repeat([(self.judged, first + more) for more in range(PARALLEL_RUNS)])
        return finding

    def _repeated(self, first: Job, number: int) -> Job:
        return Job(self.change(first.tree, number), first.script, first.parser, number)

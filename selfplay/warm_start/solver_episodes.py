"""Fabricated solver episodes and drills.

Runs nothing: what tests print is a random choice; what files hold is computed. The calls are the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfplay.agent import prompting
from selfplay.agent.chat import ChatFormat
from selfplay.repositories.suspects import Suspect, failure_first
from selfplay.teacher.functions import Function
from selfplay.teacher.mutations import Mutation, smallest_edit
from selfplay.teacher.phrases import LineEdit, show_command, shown_lines, try_command
from selfplay.teacher.player import GUESSES_IN_LAST
from selfplay.warm_start.call_sites import CallSite, specification
from selfplay.warm_start.failures import FailureWriter
from selfplay.warm_start.packages import Bug
from selfplay.warm_start.refused_calls import PossibleEdits, add_refused_calls
from selfplay.warm_start.sampler import PLAIN_SOLVED, FunctionSampler
from selfplay.warm_start.transcripts import DRILL, PlayLimits, Transcript

THROUGH_A_CALLER = 0.3  # share of bugs that tests reach through a caller of the function, where there is one
OTHER_FAILURE, OTHER_SPECIFICATION = 0.3, 0.1  # shares in which the two show different tests
RANKS = (0.45, 0.2, 0.15, 0.1, 0.1)  # probability of each rank of the broken function among the suspects
GUESSED = 0.5  # share of other shown functions that get a wrong edit
MISSED = 0.35  # share of chances to repair that are used for a wrong edit
REFUSED = 0.4  # share of texts with refused calls
REPAIR_REFUSED = 0.6  # share of those in which the refused call is the repair, but for its fault
LOOKS_AGAIN = 0.3  # share of episodes with more than one listing that show the broken function again
TURNS_TO_REPAIR = 7  # turns that must be left for a wrong edit or refused calls
OTHER_FILES = 0.6  # share of bugs whose suspects come from other files too


@dataclass(frozen=True)
class SolverEpisodes:
    """Fabricates solver texts of bugs that `sampler` chooses."""

    sampler: FunctionSampler
    chat: ChatFormat
    limits: PlayLimits

    def episode(self) -> Transcript:
        """Find the bug, repair it, run the tests, submit.

        The search shows suspects in order, with wrong edits in between.
        """
        generator = self.sampler.random
        bug = self._bug()
        caller = self._caller(bug)
        spec_site, failure_site = self._call_sites(bug, caller)
        failure = FailureWriter(generator).write(bug, failure_site, caller)
        suspects = failure_first(self._suspects(bug, caller), failure)
        prompt = prompting.render(
            "solver/repair",
            "terse",
            issue="",
            specification=specification(spec_site, generator).rstrip("\n"),
            failure=failure,
            suspects=suspects,
        )
        transcript = Transcript(self.chat, self.limits, prompt.text)
        next_suspect = self._search(transcript, bug, suspects)
        self._add_refused(transcript, bug, suspects)
        if transcript.turns > 1 and generator.random() < LOOKS_AGAIN:
            _show(transcript, bug, _culprit(suspects, bug))
        path = bug.function.path
        _add_repair(transcript, bug.mutation)
        transcript.observe(f"edited {path}:{bug.mutation.line}")
        transcript.bash(try_command(path, next_suspect.place if next_suspect else None))
        transcript.observe("", 1)
        transcript.submit()
        return transcript

    def short(self) -> Transcript:
        """The failure and the broken function, then the repair."""
        bug = self._bug()
        _, failure_site = self._call_sites(bug, None)
        failure = FailureWriter(self.sampler.random).write(bug, failure_site)
        suspects = self._suspects(bug, None)
        transcript = Transcript(self.chat, self.limits, f"solver\n{failure}")
        _show(transcript, bug, _culprit(suspects, bug), counts=False)
        self._add_refused(transcript, bug, suspects)
        _add_repair(transcript, bug.mutation)
        return transcript

    def drill(self) -> Transcript:
        """One shown function with bugs in several lines, repaired in their order."""
        while True:
            package, function, mutations = self.sampler.sample()
            count = self.sampler.random.choice([2, 3, 4, 6])
            chosen = [self.sampler.choose(mutations, PLAIN_SOLVED) for _ in range(count)]
            by_line = {mutation.line: mutation for mutation in chosen}
            text = package.text(function.path)
            for mutation in by_line.values():
                text = mutation.apply(text)
            shown = shown_lines(text, function.first_line, function.last_line)
            bugs = [by_line[line] for line in sorted(by_line) if _is_shown(line, shown)]
            if bugs:
                break
        transcript = Transcript(self.chat, self.limits, DRILL)
        command = show_command(function.path, function.first_line, function.last_line)
        transcript.bash(command, counts=False)
        transcript.observe(shown)
        for mutation in bugs:
            _add_repair(transcript, mutation)
            transcript.observe(f"edited {function.path}:{mutation.line}")
        return transcript

    def _add_refused(self, transcript: Transcript, bug: Bug, suspects: Sequence[Suspect]) -> None:
        """Sometimes, add calls that the tool refuses, if turns are left for them."""
        generator = self.sampler.random
        if generator.random() >= REFUSED or transcript.turns + TURNS_TO_REPAIR > self.limits.turns:
            return
        others = [m for m in bug.mutations if m.line != bug.mutation.line]
        is_repair = not others or generator.random() < REPAIR_REFUSED
        meant = [_repair(bug.mutation)] if is_repair else others
        texts = {suspect.path: _text(bug, suspect.path) for suspect in suspects}
        shown: Callable[[Mutation], str] = lambda m: f"{m.line}:{m.before}"  # noqa: E731
        edits = PossibleEdits(bug.function.path, texts, meant, others, shown)
        add_refused_calls(transcript, edits, generator)

    # ---- the bug and its prompt

    def _bug(self) -> Bug:
        """A bug in a line that a listing of the function shows."""
        while True:
            package, function, mutations = self.sampler.sample()
            mutation = self.sampler.choose(mutations, PLAIN_SOLVED)
            text = mutation.apply(package.text(function.path))
            if _is_shown(mutation.line, shown_lines(text, function.first_line, function.last_line)):
                return Bug(package, function, mutations, mutation, text)

    def _caller(self, bug: Bug) -> Function | None:
        """Sometimes, a function through which the tests reach the broken one."""
        callers = bug.package.callers_of(bug.function.short_name)
        if callers and self.sampler.random.random() < THROUGH_A_CALLER:
            return self.sampler.random.choice(callers)
        return None

    def _call_sites(self, bug: Bug, caller: Function | None) -> tuple[CallSite, CallSite]:
        """(of the specification, of the failure). A bug fails several tests, so the two may differ."""
        site = self.sampler.call_site(bug.package, caller or bug.function)
        chance = self.sampler.random.random()
        if chance < OTHER_FAILURE:
            return site, self.sampler.other_assertion(bug.package, site)
        if chance < OTHER_FAILURE + OTHER_SPECIFICATION:
            return self.sampler.other_assertion(bug.package, site), site
        return site, site

    def _suspects(self, bug: Bug, caller: Function | None) -> list[Suspect]:
        """The broken function among up to four others, mostly of its file.

        Its rank is distributed roughly as in the ranking by test calls (`find_suspects`).
        """
        generator, function, neighbours = self.sampler.random, bug.function, bug.package.neighbours
        others = [s for s in neighbours[function.path] if s.name != function.name]
        elsewhere = [path for path in sorted(neighbours) if path != function.path]
        if elsewhere and generator.random() < OTHER_FILES:
            path = generator.choice(elsewhere)
            others = generator.sample(others, min(len(others), len(neighbours[path]))) + neighbours[path]
        count = generator.choice([1, 2, 3, 4, 5, 5, 5, 5]) - 1
        found = generator.sample(others, min(count, len(others)))
        if caller is not None:
            suspect = _as_suspect(caller)
            rest = [s for s in found if (s.path, s.name) != (suspect.path, suspect.name)]
            found = [suspect, *rest][: max(count, 1)]
            if generator.random() < 0.5:
                generator.shuffle(found)
        rank = min(generator.choices(range(len(RANKS)), RANKS)[0], len(found))
        return [*found[:rank], _as_suspect(function), *found[rank:]]

    # ---- the search

    def _search(self, transcript: Transcript, bug: Bug, suspects: Sequence[Suspect]) -> Suspect | None:
        """Show suspects in order, with wrong edits, until the turn to repair.

        Returns the suspect to show next, if there is one.
        """
        generator, culprit = self.sampler.random, _culprit(suspects, bug)
        _show(transcript, bug, suspects[0])
        shown = 1
        while True:
            next_suspect = suspects[shown] if shown < len(suspects) else None
            is_found = culprit in suspects[:shown]
            is_late = transcript.turns + TURNS_TO_REPAIR > self.limits.turns
            if is_found and (generator.random() >= MISSED or is_late):
                return next_suspect
            if is_found or generator.random() < GUESSED:
                suspect = suspects[shown - 1]
                if generator.random() >= GUESSES_IN_LAST:
                    suspect = generator.choice(suspects[:shown])
                if self._guess(transcript, bug, suspect, next_suspect):
                    shown += next_suspect is not None
                    continue
            if next_suspect is None:
                return None
            _show(transcript, bug, next_suspect)
            shown += 1

    def _guess(
        self, transcript: Transcript, bug: Bug, suspect: Suspect, next_suspect: Suspect | None
    ) -> bool:
        """Add a wrong edit of `suspect`, and the test run that refuses it. False if no new edit is possible.

        Training does not count the edit; it counts the test run.
        """
        generator, meant = self.sampler.random, bug.mutation
        fresh = [m for m in self._wrong_edits(bug, suspect) if m not in transcript.tried]
        if not fresh:
            return False
        tried = self.sampler.choose(fresh, PLAIN_SOLVED)
        transcript.tried.add(tried)
        is_line_of_bug = (tried.path, tried.line) == (meant.path, meant.line)
        before = meant.after if is_line_of_bug else tried.before
        texts = smallest_edit(before, tried.after)
        edit = LineEdit(f"{tried.line}:{before}", suspect.path, tried.line, *texts)
        transcript.edit(edit, counts=False)
        transcript.observe(f"edited {suspect.path}:{tried.line}")
        transcript.bash(try_command(suspect.path, next_suspect.place if next_suspect else None))
        failed = "1 error"
        if generator.random() < 0.93:
            failed = f"{generator.choice([1, 1, 1, 2, 2, 3, 4, 5, 7, 12])} failed"
        transcript.observe(f"{failed}\n{_listing(bug, next_suspect)}" if next_suspect else failed)
        return True

    def _wrong_edits(self, bug: Bug, suspect: Suspect) -> list[Mutation]:
        """Edits of `suspect` that leave the bug: of other lines, or another change of the bug's line."""
        meant = bug.mutation
        wrong = [
            mutation
            for mutation in bug.package.mutations_in(suspect.path, suspect.name)
            if (mutation.path, mutation.line) != (meant.path, meant.line)
        ]
        has_bug = suspect.path == meant.path and suspect.first_line <= meant.line <= suspect.last_line
        if has_bug and self.sampler.random.random() < 0.5:
            # Other bugs of the same line show what else one may write there.
            return [m for m in bug.mutations if m.line == meant.line and m.after != meant.after] or wrong
        return wrong


def _show(transcript: Transcript, bug: Bug, suspect: Suspect, counts: bool = True) -> None:
    transcript.bash(show_command(*suspect.place), counts)
    transcript.observe(_listing(bug, suspect))


def _listing(bug: Bug, suspect: Suspect) -> str:
    return shown_lines(_text(bug, suspect.path), suspect.first_line, suspect.last_line)


def _text(bug: Bug, path: str) -> str:
    """The file with the bug, where the bug is in it."""
    return bug.text if path == bug.mutation.path else bug.package.text(path)


def _repair(mutation: Mutation) -> Mutation:
    """The reverse of a mutation."""
    search, replacement = smallest_edit(mutation.after, mutation.before)
    return replace(mutation, search=search, replace=replacement, before=mutation.after, after=mutation.before)


def _add_repair(transcript: Transcript, mutation: Mutation) -> None:
    texts = smallest_edit(mutation.after, mutation.before)
    shown = f"{mutation.line}:{mutation.after}"
    transcript.edit(LineEdit(shown, mutation.path, mutation.line, *texts))


def _as_suspect(function: Function) -> Suspect:
    return Suspect(function.path, function.name, function.first_line, function.last_line)


def _culprit(suspects: Sequence[Suspect], bug: Bug) -> Suspect:
    """The suspect that is the broken function."""
    where = (bug.function.path, bug.function.name)
    return next(suspect for suspect in suspects if (suspect.path, suspect.name) == where)


def _is_shown(line: int, listing: str) -> bool:
    return f"\n{line}:" in "\n" + listing

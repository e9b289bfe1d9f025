"""Fabricated injector episodes and drills.

Runs nothing: which tests fail is a random choice. The calls are the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfplay.agent import prompting
from selfplay.agent.chat import ChatFormat
from selfplay.repositories.targets import Span, Target, shown_source
from selfplay.teacher.mutations import Mutation
from selfplay.teacher.phrases import SPEC_FILES, LineEdit, break_command, listed, weaken_command
from selfplay.warm_start.refused_calls import PossibleEdits, add_refused_calls
from selfplay.warm_start.sampler import FunctionSampler, SampledFunction
from selfplay.warm_start.transcripts import DRILL, PlayLimits, Transcript

REFUSED = 0.25  # share of episodes with refused calls
UNNOTICED = 0.3  # share of episodes in which no test fails at first


@dataclass(frozen=True)
class InjectorEpisodes:
    """Fabricates injector texts of functions that `sampler` chooses."""

    sampler: FunctionSampler
    chat: ChatFormat
    limits: PlayLimits

    def episode(self) -> Transcript:
        """Break the target, run the tests, weaken one that fails, submit."""
        sample, generator = self.sampler.sample(), self.sampler.random
        package, function, mutations = sample
        path = function.path
        site = self.sampler.call_site(package, function)
        transcript = Transcript(self.chat, self.limits, _prompt(sample, site.path))
        mutation = self.sampler.choose(mutations)
        if generator.random() < REFUSED:
            unmeant = [other for other in mutations if other.line != mutation.line]
            text = package.text(path)
            edits = PossibleEdits(path, {path: text}, mutations, unmeant, lambda m: listed(function, m))
            add_refused_calls(transcript, edits, generator)
        _add_edit(transcript, sample, mutation)
        others = [other for other in mutations if other.line != mutation.line]
        if others and generator.random() < UNNOTICED:
            transcript.bash(break_command(site.path))
            transcript.observe("", 1)
            _add_edit(transcript, sample, self.sampler.choose(others))
        transcript.bash(break_command(site.path))
        failing = self._failing_lines(site.line)
        names = [self._test_name(function.short_name) for _ in failing]
        transcript.observe(
            "\n".join(f"{site.path}:{n}: in {name}" for n, name in zip(failing, names, strict=True))
        )
        transcript.bash(weaken_command(site.path, failing[0]))
        transcript.observe("")
        transcript.submit(*SPEC_FILES)
        return transcript

    def drill(self) -> Transcript:
        """Many edits of one shown function. It teaches edits at the cost of one listing."""
        sample = self.sampler.sample()
        site = self.sampler.call_site(sample.package, sample.function)
        prompt = _prompt(sample, site.path).replace("injector direct", DRILL, 1)
        transcript = Transcript(self.chat, self.limits, prompt)
        for _ in range(self.sampler.random.randint(3, 6)):
            _add_edit(transcript, sample, self.sampler.choose(sample.mutations))
        return transcript

    def _failing_lines(self, line: int) -> list[int]:
        """`line` and up to two lines near it, in random order."""
        generator = self.sampler.random
        others = [max(1, line + generator.randint(-60, 120)) for _ in range(generator.choice([0, 0, 1, 2]))]
        lines = sorted({line, *others})
        generator.shuffle(lines)
        return lines

    def _test_name(self, name: str) -> str:
        return "test_" + self.sampler.random.choice([name, "basic", "simple", name + "_2", "types"])


def _prompt(sample: SampledFunction, test_file: str) -> str:
    package, function, _ = sample
    path, name, first, last = function.path, function.name, function.first_line, function.last_line
    source = shown_source(package.lines(path), Span(name, first, first, last))
    target = Target(path, name, first, last, test_file, source)
    return prompting.render("injector/direct", "terse", target=target, test_files=(test_file,)).text


def _add_edit(transcript: Transcript, sample: SampledFunction, mutation: Mutation) -> None:
    path, shown = sample.function.path, listed(sample.function, mutation)
    transcript.edit(LineEdit(shown, path, mutation.line, mutation.search, mutation.replace))
    transcript.observe(f"edited {path}:{mutation.line}")

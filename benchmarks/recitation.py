"""Does the policy know the frozen bugs' original lines by heart?

    python -m benchmarks.recitation --policy smollm2 --adapter carried

A pretrained model may have read the packages that the frozen sets break. Here it sees a broken function and
nothing else: no test, no failure. Then it writes its edit, greedily. Counted are bugs that change one line:

finds     the edit is of the broken line
restores  given the broken line, the replacement is the original line

The control are bugs of the same kind in selfplay's own code, which is younger than the model. A policy that
knows lines by heart restores more lines of public packages than of that code.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from benchmarks.rollouts import own_sources
from selfplay.agent.chat import ChatFormat, chat_format, load_tokenizer, policy_path
from selfplay.engines.adapted_models import adapted_folder, adapter_folder
from selfplay.engines.models import load_causal_model
from selfplay.errors import SelfplayError
from selfplay.evaluation.statistics import estimate
from selfplay.evaluation.tasks import Task, bug_of, frozen_sets, read_tasks
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import function_spans
from selfplay.runtime.resources import resource
from selfplay.settings.learning import PolicySettings
from selfplay.settings.playing import AgentSettings
from selfplay.source.trees import Tree
from selfplay.teacher.mutations import smallest_edit
from selfplay.teacher.phrases import LineEdit, show_command, shown_lines
from selfplay.verdicts.bug import build_states
from selfplay.warm_start.figures import end_of
from selfplay.warm_start.packages import Package
from selfplay.warm_start.sampler import PLAIN_SOLVED, FunctionSampler
from selfplay.warm_start.transcripts import DRILL, PlayLimits, Transcript

CONTROL = "selfplay"
MAX_LINES = 22  # of the control's functions, as of the teacher's


@dataclass(frozen=True)
class BrokenLine:
    """A function whose line `line` is broken. `text` is the file with the bug; lines count from 1."""

    path: str
    text: str
    span: tuple[int, int]
    line: int
    broken: str
    original: str

    def transcript(self, chat: ChatFormat, limits: PlayLimits) -> Transcript:
        """The function as the policy is shown it, then the edit that restores the line."""
        transcript = Transcript(chat, limits, DRILL)
        transcript.bash(show_command(self.path, *self.span))
        transcript.observe(shown_lines(self.text, *self.span))
        texts = smallest_edit(self.broken, self.original)
        transcript.edit(LineEdit(f"{self.line}:{self.broken}", self.path, self.line, *texts))
        return transcript


def of_task(task: Task) -> BrokenLine | None:
    """The broken line of a task; None if the bug changes more than one line, or lines of no function."""
    environment: Any = None  # tasks with an artifact need none
    _, bug = bug_of(task, environment)
    tree = fetch(parse_spec(task.repo), cache_root()).tree
    buggy = build_states(tree, bug).buggy
    changed = [path for path in tree.changed_paths(buggy) if path.endswith(".py")]
    if len(changed) != 1 or changed[0] not in tree or changed[0] not in buggy:
        return None
    (path,) = changed
    return _between(path, tree, buggy)


def _between(path: str, tree: Tree, buggy: Tree) -> BrokenLine | None:
    before, after = tree.text(path).split("\n"), buggy.text(path).split("\n")
    lines = [number for number, pair in enumerate(zip(before, after, strict=False), 1) if pair[0] != pair[1]]
    if len(before) != len(after) or len(lines) != 1:
        return None
    line = lines[0]
    spans = [
        (span.first_line, span.last_line)
        for span in function_spans(buggy[path].content)
        if span.first_line <= line <= span.last_line
    ]
    if not spans:
        return None
    span = max(spans)  # the innermost starts last
    return BrokenLine(path, "\n".join(after), span, line, after[line - 1], before[line - 1])


def control(count: int) -> Iterator[BrokenLine]:
    """`count` bugs of the teacher's kind in selfplay's own code."""
    generator = random.Random(0)
    package = Package(CONTROL, "", own_sources(), MAX_LINES, 500)
    sampler = FunctionSampler([package], generator)
    for _ in range(count):
        _, function, mutations = sampler.sample()
        mutation = sampler.choose(mutations, PLAIN_SOLVED)
        text = mutation.apply(package.tree.text(function.path))
        span = (function.first_line, function.last_line)
        yield BrokenLine(function.path, text, span, mutation.line, mutation.after, mutation.before)


def measure(
    model: Any, chat: ChatFormat, limits: PlayLimits, bugs: Sequence[BrokenLine]
) -> tuple[list[bool], list[bool]]:
    """(finds, restores) of each bug whose line the listing shows and whose text fits the context."""
    finds: list[bool] = []
    restores: list[bool] = []
    for bug in bugs:
        if f"\n{bug.line}:" not in "\n" + shown_lines(bug.text, *bug.span):
            continue
        transcript = bug.transcript(chat, limits)
        ((start, opening),) = transcript.edits
        ids = transcript.ids
        if len(ids) > limits.context_tokens or bug.broken not in chat.decode(ids[:start]):
            continue
        with torch.inference_mode():
            predicted = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right = [True, *(guess == id_ for guess, id_ in zip(predicted, ids[1:], strict=False))]
        end = end_of(opening, ids, start, chat)
        finds.append(all(right[start:end]))
        restores.append(all(right[end:]))
    return finds, restores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="smollm2", help="as policy.model (default: %(default)s)")
    parser.add_argument("--adapter", default="", help="as policy.adapter, for instance carried")
    parser.add_argument("--parts", action="store_true", help="edits replace a part of a line")
    parser.add_argument("--control", type=at_least_one, default=200, help="bugs in selfplay's own code")
    options = parser.parse_args()
    policy = PolicySettings(model=options.policy, adapter=options.adapter)
    try:
        folder = policy_path(policy.model)
        if policy.adapter:
            folder = adapted_folder(folder, adapter_folder(policy))
    except SelfplayError as error:
        parser.error(str(error))
    chat = chat_format(load_tokenizer(folder), policy, AgentSettings())
    limits = PlayLimits(whole_lines=not options.parts)
    model = load_causal_model(folder, torch.float32).eval()
    table = Table("bugs in", "of one line", "finds the line", "restores it, given the line")
    for name in (*frozen_sets(), CONTROL):
        if name == CONTROL:
            bugs = list(control(options.control))
        else:
            tasks = read_tasks(resource("data/tasks") / f"{name}.jsonl")
            bugs = [bug for task in tasks if (bug := of_task(task)) is not None]
        finds, restores = measure(model, chat, limits, bugs)
        table.add_row(name, str(len(finds)), _share(finds), _share(restores))
    Console().print(table)


def _share(values: Sequence[bool]) -> str:
    if not values:
        return "–"
    found = estimate([100.0 * value for value in values])
    return f"{found.mean:.1f}% ± {found.error or 0:.1f}"


if __name__ == "__main__":
    main()

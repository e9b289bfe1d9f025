"""docs/metrics.md names exactly the metrics that a run can write."""

import ast
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

from selfplay.evaluation.folder import AttemptResult
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.orchestrator.run_metrics import IdleClock
from selfplay.parts import names_of
from selfplay.settings.learning import EvaluationSettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfplay"
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def documented():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - set(names_of("metrics.sinks"))


def written():
    """Names of recorded games, of an evaluation, and of what the source says besides. With placeholders."""
    recording = json.loads(gzip.decompress((ROOT / "tests" / "recordings" / "game.json.gz").read_bytes()))
    rows = [
        row for game in recording.values() for key, row in game.items() if key.startswith("metrics.jsonl/")
    ]
    names = {name for row in rows for name in row}
    names |= IdleClock().shares(0.0, 0).keys() | evaluation_row().keys()
    for path in PACKAGE.glob("training/*_trainer.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            keys = [key.value for key in getattr(node, "keys", []) if isinstance(key, ast.Constant)]
            names |= set(keys) if "grad_norm" in keys else set()
    for path in [*PACKAGE.glob("weights/*.py"), *PACKAGE.glob("engines/*.py")]:
        names |= set(re.findall(r'"(sync/\w+)"', path.read_text()))
    for path in PACKAGE.glob("orchestrator/*.py"):
        text = path.read_text()
        phases = re.findall(r'_phase\("([\w ]+)"\)', text)
        names |= {f"seconds/{phase.replace(' ', '_')}" for phase in phases}
        names |= {f"groups/{name}" for name in re.findall(r'counts\[f?"([^"]+)"\]', text)}
        names |= set(re.findall(r'metrics\[f?"([^"]+/[^"]+)"\]', text))
    return {placed(name) for name in names}


def placed(name):
    name = re.sub(r"\{(group\.)?role\}", "<role>", name)
    name = re.sub(r"(?<=@)[2-9]", "<n>", re.sub(r"/(sampled|greedy)/", "/<mode>/", name))
    roles = re.sub(r"(^|groups/)(injector|solver)/", r"\1<role>/", name)
    return roles if roles in documented() else name


def evaluation_row():
    def play(*arguments):
        return [
            AttemptResult(task, "toolz", number, bool(number), "", "submitted", 1, 1, mode)
            for task in ("a", "b")
            for mode, number in (("sampled", 0), ("sampled", 1), ("greedy", 0))
        ]

    settings = EvaluationSettings(tasks=("own",), attempts=2)
    evaluations = RunEvaluations(Path("nowhere"), settings, [], SimpleNamespace(play=play))
    return evaluations.play(3, {}, lambda done, total: None)


def test_every_metric_that_a_run_writes_is_on_the_page():
    assert sorted(written() - documented()) == []


def test_every_metric_on_the_page_is_written():
    assert sorted(documented() - written()) == []


def test_every_sink_is_on_the_page():
    assert [name for name in names_of("metrics.sinks") if f"| `{name}` |" not in PAGE] == []

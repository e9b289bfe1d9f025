"""A policy from nothing, at a size that a test can wait for."""

import json
import random
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from selfplay import cli
from selfplay.agent.chat import ChatFormat
from selfplay.agent.editing import apply_edit
from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.agent.tools import parse_action
from selfplay.errors import ConfigError, SandboxUnavailable
from selfplay.repositories.environment import Environment
from selfplay.repositories.targets import Target, is_held_out
from selfplay.source.trees import FileEntry, Tree
from selfplay.teacher.mutations import Mutation
from selfplay.warm_start.attempts import Attempt, Collection, training_text
from selfplay.warm_start.copy_tests import LEAST_COPIED, copy_tests, measure_copying
from selfplay.warm_start.copying import PolicyShape, build_policy
from selfplay.warm_start.executed import Collecting, collect
from selfplay.warm_start.fabrication import EpisodeMaker
from selfplay.warm_start.mutation_plan import PlannedMutation
from selfplay.warm_start.packages import Package
from selfplay.warm_start.pipeline import warm_start
from selfplay.warm_start.settings import (
    CORPUS,
    HELD_OUT,
    REPOSITORIES,
    ExecuteSettings,
    WarmStartSettings,
    read_settings,
)
from selfplay.warm_start.tokenizer import train_tokenizer
from selfplay.warm_start.transcripts import PlayLimits, Transcript
from tiny_policy import build_tiny_tokenizer
from tiny_repository import build_tiny_repository

RECIPES = Path(__file__).parents[2] / "runs" / "recipes"


def package() -> Package:
    source = "\n".join(
        f"def f{n}(a, b):\n    if a < b:\n        return a + {n}\n    return not b\n\n" for n in range(6)
    )
    tests = "from m import *\n\n\ndef test_all():\n" + "".join(
        f"    assert f{n}(1, 2) == {n}\n" for n in range(6)
    )
    tree = Tree({"m.py": FileEntry(source.encode()), "tests/test_m.py": FileEntry(tests.encode())})
    return Package("m==1", "MIT", tree, 22, 100)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(
        AutoTokenizer.from_pretrained(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    )


def test_a_new_policy_copies_what_it_saw_before_any_training() -> None:
    import torch

    model = build_policy(PolicyShape(), seed=0, eos_token_id=2, pad_token_id=0)
    span = torch.randint(3, 1024, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        predicted = model(input_ids=torch.cat([span, span], 1)).logits[0].argmax(-1)
    # The first two tokens of the second time round have nothing behind them to be known by.
    assert (predicted[62:119] == span[0, 3:]).float().mean() > 0.9


@pytest.mark.parametrize("role", ["injector", "solver"])
def test_fabricated_calls_are_read_as_calls_and_their_edits_fit(chat: ChatFormat, role: str) -> None:
    made = package()
    maker = EpisodeMaker([made], chat, PlayLimits(context_tokens=6000), random.Random(3))
    for _ in range(10):
        transcript = maker.transcript(role)
        counted = [action for text in replies(chat, transcript) if (action := parse_action(text))]
        assert counted[-1].tool == "submit"
        edits = [action for action in counted if action.tool == "edit"]
        assert edits
        if role == "injector":
            apply_edit(made.tree.text("m.py"), edits[0].search, edits[0].replace, edits[0].line)


def replies(chat: ChatFormat, transcript: Transcript) -> list[str]:
    """The replies that count; those that show a mistake do not."""
    found: list[list[int]] = [[]]
    for id_, weight in zip(transcript.ids, transcript.weight, strict=True):
        if weight == 1:
            found[-1].append(id_)
        elif found[-1]:
            found.append([])
    return [chat.decode(ids) for ids in found if ids]


def test_only_what_the_policy_writes_counts_fully(chat: ChatFormat) -> None:
    transcript = EpisodeMaker([package()], chat, PlayLimits(), random.Random(1)).transcript("injector")
    counted = [id_ for id_, weight in zip(transcript.ids, transcript.weight, strict=True) if weight == 1]
    text = chat.decode(counted)
    assert "<tool: edit>" in text
    assert "injector direct" not in text
    assert "turns, " not in text


def test_the_tokenizer_keeps_digits_apart_and_tool_tags_whole() -> None:
    texts = ["<tool: edit>\nm.py:123\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n</tool>"] * 30
    tokenizer = train_tokenizer(iter(texts), 400)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(texts[0], add_special_tokens=False))
    assert {"1", "2", "3"} <= set(pieces)
    assert tokenizer.decode(tokenizer.encode(texts[0], add_special_tokens=False)) == texts[0]
    assert len(tokenizer.encode("<tool: edit>\n", add_special_tokens=False)) == 1


def tiny(tmp_path: Path, **changes: Any) -> WarmStartSettings:
    repository = str(build_tiny_repository(tmp_path / "tiny"))
    values: dict[str, Any] = {
        "corpus": (repository,),
        "held_out": repository,
        "tokenizer_texts": 60,
        "shape": {
            "vocabulary": 400,
            "hidden": 32,
            "layers": 1,
            "heads": 1,
            "head_dim": 16,
            "intermediate": 32,
        },
        "rows": 1,
        "sequence_tokens": 1500,
        "context_tokens": 4000,
        "compile": False,
        "measured": 2,
        "stages": [{"name": "one", "steps": 2, "mix": {"injector": 1, "solver_drill": 1, "copy": 1}}],
    }
    return WarmStartSettings.model_validate(values | changes)


def test_one_call_makes_a_policy_folder_and_a_second_repeats_no_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    output, said = tmp_path / "policy", list[str]()
    settings = tiny(tmp_path)
    warm_start(output, settings, said.append)
    ChatFormat(AutoTokenizer.from_pretrained(output)).check()
    AutoModelForCausalLM.from_pretrained(output)
    generation = json.loads((output / "generation_config.json").read_text())
    assert (generation.get("temperature", 1.0), generation.get("top_p", 1.0), generation.get("top_k")) == (
        1.0,
        1.0,
        0,
    )
    assert "| one |" in (output / "MODEL_CARD.md").read_text()
    # Two steps teach nobody to copy, and that is told at once.
    assert any(line.startswith("warning: one should leave 80%") for line in said)
    warm_start(output, settings, said.append)
    assert "one: done before" in said


def test_a_stage_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    settings = tiny(tmp_path, stages=[{"name": "one", "steps": 1, "mix": {"poems": 1}}])
    with pytest.raises(ConfigError, match="'poems', and there is only source, solver_drill"):
        warm_start(tmp_path / "out", settings)


def test_settings_come_from_a_file_with_values_on_top(tmp_path: Path) -> None:
    file = tmp_path / "warm.toml"
    file.write_text("seed = 3\n[shape]\nlayers = 2\n")
    settings = read_settings(file, ["shape.hidden=64", "held_out=x==1"])
    assert (settings.seed, settings.shape.layers, settings.shape.hidden, settings.held_out) == (
        3,
        2,
        64,
        "x==1",
    )
    with pytest.raises(ConfigError, match="shape.layer"):
        read_settings(None, ["shape.layer=2"])


def test_no_text_shows_a_function_that_is_held_out() -> None:
    names = [f"f{n}" for n in range(40)]
    source = "".join(f"def {name}(a, b):\n    return a + b\n\n\n" for name in names)
    made = Package("m==1", "MIT", Tree({"m.py": FileEntry(source.encode())}), 22, 100)
    held = {name for name in names if is_held_out(name)}
    assert 0 < len(held) < len(names)
    assert {function.name for function, _ in made.functions} == set(names) - held
    assert {function.name for function, _ in replace(made, held_out=True).functions} == held
    assert set(re.findall(r"def (\w+)", made.shown("m.py"))) == set(names) - held


def test_the_held_out_package_is_not_in_the_corpus() -> None:
    assert HELD_OUT.partition("==")[0] not in {name.partition("==")[0] for name in CORPUS}


def test_the_recipe_is_the_defaults_written_out() -> None:
    assert read_settings(RECIPES / "warm-start.toml", []) == WarmStartSettings()


def test_episodes_are_played_on_the_repositories_of_the_quickstart() -> None:
    lines = (RECIPES / "quickstart-repos.txt").read_text().splitlines()
    assert tuple(line for line in lines if line and not line.startswith("#")) == REPOSITORIES


# ---- copying


def test_what_is_copied_is_an_identifier_that_was_shown_and_the_corpus_lacks(chat: ChatFormat) -> None:
    source = "".join(
        f"def function_{n}(operand, amount):\n    return operand + amount + function_{n}\n\n\n"
        for n in range(9)
    )
    made = Package("m==1", "MIT", Tree({"m.py": FileEntry(source.encode())}), 22, 100)
    corpus = Package(
        "c==1", "MIT", Tree({"c.py": FileEntry(b"def f(operand):\n    return operand\n")}), 22, 100
    )
    tests = copy_tests(EpisodeMaker([made], chat, PlayLimits(), random.Random(1)), [corpus], 12)
    assert len(tests) == 12
    for test in tests:
        for first, end in test.answers:
            answer = chat.decode(test.ids[first:end]).strip(" (")
            assert answer
            assert "operand" not in answer
            assert answer in chat.decode(test.ids[: first - 1])


def test_a_new_policy_is_measured_to_copy_nearly_all(chat: ChatFormat) -> None:
    model = build_policy(PolicyShape(vocabulary=512), seed=0, eos_token_id=2, pad_token_id=0)
    tests = copy_tests(EpisodeMaker([package()], chat, PlayLimits(), random.Random(1)), [], 10)
    assert measure_copying(model, tests) >= LEAST_COPIED


# ---- played episodes


def episode(name: str, role: Role = Role.INJECTOR) -> Episode:
    """Ten tokens: three shown, a good turn of two, an answer, a turn of two that caused an error, an answer."""
    turns = (Turn("a", "edit", "", (3, 5)), Turn("b", "", "", (6, 8), is_error=True))
    mask = (0, 0, 0, 1, 1, 0, 1, 1, 0, 0)
    ids, logprobs = tuple(range(10)), (0.0,) * 10
    return Episode(name, role, "r", 0, "g", 0, 0, FinishReason.SUBMITTED, (), turns, ids, mask, logprobs)


def test_a_turn_that_caused_an_error_counts_nothing() -> None:
    weights = list(training_text(episode("e")).weights)
    assert weights[3:5] == [1.0, 1.0]
    assert weights[6:8] == [0.0, 0.0]
    assert all(0 < weight < 1 for weight in weights[:3])


@pytest.mark.parametrize(
    ("tool", "seen", "counts"), [("edit", "2 failed", False), ("edit", "", True), ("bash", "2 failed", True)]
)
def test_an_edit_that_the_tests_refuse_counts_nothing_and_trying_it_does(
    tool: str, seen: str, counts: bool
) -> None:
    edit, tried = (
        Turn("a", tool, "edited f.py:3", (3, 5)),
        Turn("b", "bash", f"{seen}\n[exit 0; 8 turns, 900 tokens left]", (6, 8)),
    )
    weights = list(training_text(replace(episode("e"), turns=(edit, tried))).weights)
    assert weights[3:5] == ([1.0, 1.0] if counts else [0.0, 0.0])
    assert weights[6:8] == [1.0, 1.0]


def test_an_attempt_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    rows = [
        asdict(
            Attempt(
                n, "r", "f.py::f", "constant", "validated", 1.0, f"d{n}", f"i{n}", (f"s{n}",), ("repaired",)
            )
        )
        for n in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "attempts.jsonl").write_text(text[:-20])
    assert Collection.read(tmp_path).injectors == ["i0", "i1"]
    (tmp_path / "attempts.jsonl").write_text(text[:-20] + "\n" + json.dumps(rows[2]) + "\n")
    assert Collection.read(tmp_path).solvers == ["s0", "s1", "s2"]


def planned_mutations(count: int) -> list[PlannedMutation]:
    target = Target("f.py", "f", 1, 2, "test_f.py", "")
    return [
        PlannedMutation(
            n, cast(Environment, None), target, Mutation("f.py", 1, "a", "b", "constant", "a", "b")
        )
        for n in range(count)
    ]


def attempt_at(planned: PlannedMutation, digest: str) -> tuple[Attempt, list[Episode]]:
    made = episode(f"i{planned.number}")
    return Attempt(planned.number, "r", "f.py::f", "constant", "validated", 0.1, digest, made.episode_id), [
        made
    ]


def test_what_the_machine_spoiled_is_not_kept_and_is_played_again_by_the_next_call(tmp_path: Path) -> None:
    fails = {1}

    def play(planned: PlannedMutation, repairs_only: bool) -> tuple[Attempt, list[Episode]]:
        if planned.number in fails:
            raise SandboxUnavailable("no sandbox")
        return attempt_at(planned, f"d{planned.number}")

    settings, said = ExecuteSettings(injector_episodes=3, solver_episodes=0, workers=2), list[str]()
    first = Collecting(settings, Collection.read(tmp_path), said.append).run(planned_mutations(3), play)
    assert first.injectors == ["i0", "i2"]
    assert any("no sandbox" in line for line in said)
    fails.clear()
    left = [
        planned
        for planned in planned_mutations(3)
        if planned.number not in {a.number for a in first.attempts}
    ]
    Collecting(settings, Collection.read(tmp_path), said.append).run(left, play)
    assert Collection.read(tmp_path).injectors == ["i0", "i1", "i2"]
    assert sorted(path.name for path in tmp_path.glob("*.json.gz")) == [f"i{n}.json.gz" for n in range(3)]


def test_a_bug_that_was_made_before_is_a_duplicate(tmp_path: Path) -> None:
    settings = ExecuteSettings(injector_episodes=2, solver_episodes=0, workers=1)
    found = Collecting(settings, Collection.read(tmp_path), lambda _: None).run(
        planned_mutations(2), lambda planned, _: attempt_at(planned, "same")
    )
    assert [attempt.outcome for attempt in found.attempts] == ["validated", "duplicate"]
    assert found.injectors == ["i0"]


def test_episodes_of_another_tokenizer_are_not_gone_on_with(tmp_path: Path) -> None:
    settings = ExecuteSettings(injector_episodes=0, solver_episodes=0)
    for text in ("one", "two"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "tokenizer.json").write_text(text)
    collect(settings, tmp_path / "executed", tmp_path / "one", 1024, 0, lambda _: None)
    with pytest.raises(ConfigError, match="played with another tokenizer. Remove that folder to play anew"):
        collect(settings, tmp_path / "executed", tmp_path / "two", 1024, 0, lambda _: None)


# ---- what a person can get wrong


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """(exit code, what is said) of a warm-start command that does not begin."""
    monkeypatch.setattr(sys, "argv", ["selfplay", "warm-start", *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_stage_of_an_unknown_kind_ends_the_command_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "warm.toml"
    config.write_text('[[stages]]\nname = "one"\nsteps = 1\nmix = { poems = 1 }\n')
    code, said = refused(monkeypatch, capsys, "--config", str(config), "--output", str(tmp_path / "out"))
    assert (code, "stage 'one' draws 'poems'" in said) == (2, True)


def test_a_missing_recipe_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.toml")
    code, said = refused(monkeypatch, capsys, "--config", missing, "--output", str(tmp_path / "out"))
    assert (code, f"cannot read the warm-start settings {missing}" in said) == (2, True)
    code, said = refused(
        monkeypatch, capsys, "--set", f"executed.recipe={missing}", "--output", str(tmp_path / "out")
    )
    assert (code, "cannot read the configuration" in said, "missing.toml" in said) == (2, True, True)


def test_an_output_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, said = refused(monkeypatch, capsys, "--output", str(tmp_path / "file" / "policy"))
    assert (code, "cannot write to" in said, "--output" in said) == (2, True, True)


@pytest.mark.parametrize("setting", ["corpus", "executed.repositories"])
def test_a_repository_that_cannot_be_fetched_ends_the_command_with_1(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "warm.toml"
    kind = "source" if setting == "corpus" else "executed_solver"
    config.write_text(f'[[stages]]\nname = "one"\nsteps = 1\nmix = {{ {kind} = 1 }}\n')
    missing = str(tmp_path / "nowhere")
    code, said = refused(
        monkeypatch,
        capsys,
        "--config",
        str(config),
        "--set",
        f"{setting}=['{missing}']",
        "--output",
        str(tmp_path / "out"),
    )
    assert (code, f"there is no folder {missing}" in said) == (1, True)

"""A policy from nothing, at a size that a test can wait for."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay.chat import ChatFormat
from selfplay.errors import ConfigError
from selfplay.targets import is_held_out
from selfplay.tools import apply_edit, parse_action
from selfplay.training.copying import PolicyShape, build_policy
from selfplay.training.fabrication import EpisodeMaker, Package, PlayLimits, Transcript
from selfplay.trees import FileEntry, Tree
from selfplay.warm_start import CORPUS, HELD_OUT, WarmStartSettings, read_settings, train_tokenizer, warm_start
from tiny_policy import build_tiny_tokenizer
from tiny_repository import build_tiny_repository


def package() -> Package:
    source = "\n".join(f"def f{n}(a, b):\n    if a < b:\n        return a + {n}\n    return not b\n\n" for n in range(6))
    tests = "from m import *\n\n\ndef test_all():\n" + "".join(f"    assert f{n}(1, 2) == {n}\n" for n in range(6))
    tree = Tree({"m.py": FileEntry(source.encode()), "tests/test_m.py": FileEntry(tests.encode())})
    return Package("m==1", "MIT", tree, 22, 100)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


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
        transcript = getattr(maker, role)()
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
    transcript = EpisodeMaker([package()], chat, PlayLimits(), random.Random(1)).injector()
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
        "shape": {"vocabulary": 400, "hidden": 32, "layers": 1, "heads": 1, "head_dim": 16, "intermediate": 32},
        "rows": 1,
        "sequence_tokens": 1500,
        "context_tokens": 4000,
        "compile": False,
        "measured": 2,
        "stages": [{"name": "one", "steps": 2, "mix": {"injector": 1, "solver_drill": 1, "copy": 1}}],
    }
    return WarmStartSettings.model_validate(values | changes)


def test_one_call_makes_a_policy_folder_and_a_second_repeats_no_finished_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    output, said = tmp_path / "policy", list[str]()
    settings = tiny(tmp_path)
    warm_start(output, settings, said.append)
    ChatFormat(AutoTokenizer.from_pretrained(output)).check()
    AutoModelForCausalLM.from_pretrained(output)
    generation = json.loads((output / "generation_config.json").read_text())
    assert (generation.get("temperature", 1.0), generation.get("top_p", 1.0), generation.get("top_k")) == (1.0, 1.0, 0)
    assert "| one |" in (output / "MODEL_CARD.md").read_text()
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
    assert (settings.seed, settings.shape.layers, settings.shape.hidden, settings.held_out) == (3, 2, 64, "x==1")
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
    recipe = Path(__file__).parents[2] / "runs" / "recipes" / "warm-start.toml"
    assert read_settings(recipe, []) == WarmStartSettings()

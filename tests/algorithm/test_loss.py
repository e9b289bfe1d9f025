import math

import pytest
import torch

from selfplay.algorithm.loss import (
    Clipping,
    OffPolicy,
    aggregation_weights,
    kl_divergence,
    policy_loss,
    token_losses,
)


def loss_at(ratio: float, advantage: float) -> tuple[float, float]:
    """A token's loss and its gradient with respect to the log-probability."""
    logprob = torch.tensor([ratio]).log().requires_grad_()
    losses, _, _ = token_losses(logprob, torch.zeros(1), torch.tensor([advantage]), Clipping(0.2, 0.25, 3.0))
    losses.sum().backward()
    assert logprob.grad is not None
    return losses.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.25, 0.0),  # above 1 + ε_h
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),  # below 1 - ε_l
        (1.5, -1.0, 1.5, 1.5),
        (4.0, -2.0, 6.0, 0.0),  # capped at c·|A|
    ],
)
def test_each_region_of_the_clipped_loss(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    assert loss_at(ratio, advantage) == pytest.approx((loss, gradient), rel=1e-5)


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64)
    tokens, advantages, weights = (
        torch.randint(9, (6,)),
        torch.randn(6, dtype=torch.float64),
        torch.rand(6, dtype=torch.float64),
    )

    def gradient(kind: str) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        logprobs = torch.log_softmax(leaf, -1).gather(1, tokens[:, None])[:, 0]
        if kind == "reinforce":
            total = -(advantages * weights * logprobs).sum()
        else:
            total = policy_loss(logprobs, logprobs.detach(), advantages, weights, Clipping())[0].sum()
        total.backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient("clipped"), gradient("reinforce"))


def test_clipped_tokens_are_counted() -> None:
    ratio = torch.tensor([1.0, 2.0, 0.5, 5.0])
    _, _, clipped = token_losses(ratio.log(), torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, -1.0]), Clipping())
    assert clipped.tolist() == [False, True, False, True]


def test_the_three_aggregations_differ_as_their_formulas_say() -> None:
    lengths = torch.tensor([2, 6])
    assert aggregation_weights("constant", lengths, 100).tolist() == pytest.approx([1 / 200, 1 / 200])
    assert aggregation_weights("token", lengths, 100).tolist() == pytest.approx([1 / 8, 1 / 8])
    assert aggregation_weights("sequence", lengths, 100).tolist() == pytest.approx([1 / 4, 1 / 12])


def test_the_kl_is_the_sum_over_the_whole_vocabulary() -> None:
    policy, reference = (
        torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]),
        torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.2, 0.7]]),
    )
    expected = [0.5 * math.log(2.0) - 0.25 * math.log(2.0), 0.0]
    assert kl_divergence(policy.log() + 3.0, reference.log()).tolist() == pytest.approx(expected, abs=1e-6)


def test_clipping_without_the_dual_bound_leaves_large_ratios_of_bad_actions_alone() -> None:
    ratio, bad = torch.tensor([10.0]), torch.tensor([-1.0])
    dual, plain = (
        token_losses(ratio.log(), torch.zeros(1), bad, Clipping(kind=kind))[0]
        for kind in ("dual_clip", "clip")
    )
    assert (dual.item(), plain.item()) == (3.0, 10.0)


def off_policy_loss(
    kind: OffPolicy, behaviour: float, proximal: float, current: float, advantage: float, cap: float
) -> tuple[float, float, bool]:
    """A token's loss, its gradient, and whether a bound applied, from three policies' probabilities."""
    logprob = torch.tensor([current]).log().requires_grad_()
    losses, ratio, is_bounded = token_losses(
        logprob,
        torch.tensor([behaviour]).log(),
        torch.tensor([advantage]),
        Clipping(0.2, 0.25, 3.0, "clip", kind, cap),
        torch.tensor([proximal]).log(),
    )
    losses.sum().backward()
    assert logprob.grad is not None
    assert ratio.item() == pytest.approx(current / behaviour, rel=1e-5)  # the metric is always this one
    return losses.item(), logprob.grad.item(), bool(is_bounded.item())


@pytest.mark.parametrize(
    ("kind", "current", "advantage", "cap", "expected"),
    [
        # behaviour 0.2, proximal 0.3: w = 1.5
        ("ratio", 0.36, 1.0, 2.0, (-1.25, 0.0, True)),  # ρ = 1.8, above 1 + ε_h
        ("truncated", 0.36, 1.0, 2.0, (-1.8, -1.8, False)),  # -w · u, u = 1.2
        ("truncated", 0.36, 1.0, 1.25, (-1.5, -1.5, True)),  # -C · u
        ("truncated", 0.42, 1.0, 2.0, (-1.875, 0.0, True)),  # u = 1.4 is clipped at 1.25: -w · 1.25
        ("decoupled", 0.36, 1.0, 2.0, (-1.8, -1.8, False)),
        ("decoupled", 0.36, 1.0, 1.25, (0.0, 0.0, True)),  # w above the cap: no loss
        ("decoupled", 0.21, -1.0, 2.0, (1.2, 0.0, True)),  # u = 0.7 is clipped at 0.8: w · 0.8
        ("decoupled", 0.3, -1.0, 2.0, (1.5, 1.5, False)),  # u = 1
    ],
)
def test_stale_tokens_are_weighed_by_hand_computed_cases(
    kind: OffPolicy, current: float, advantage: float, cap: float, expected: tuple[float, float, bool]
) -> None:
    assert off_policy_loss(kind, 0.2, 0.3, current, advantage, cap) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["truncated", "decoupled"])
def test_without_other_weights_the_proximal_policy_is_the_current_one_and_nothing_is_clipped(
    kind: OffPolicy,
) -> None:
    logprobs = torch.tensor([0.9, 0.15]).log().requires_grad_()
    rollout, advantages = torch.tensor([0.6, 0.6]).log(), torch.tensor([1.0, -2.0])
    bounds = Clipping(0.2, 0.25, 3.0, "clip", kind, 5.0)
    losses, _, is_bounded = token_losses(logprobs, rollout, advantages, bounds)
    losses.sum().backward()
    assert logprobs.grad is not None
    assert losses.tolist() == pytest.approx([-1.5, 0.5])  # -w·A, w = 1.5 and 0.25: "ratio" clips both
    assert logprobs.grad.tolist() == pytest.approx([-1.5, 0.5])
    assert is_bounded.tolist() == [False, False]

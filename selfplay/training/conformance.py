"""Checks that every trainer must pass. The tests run them on each implementation.

A check gets a function that opens a trainer, a model folder and an empty folder. It opens one trainer at a
time, since the next one may reuse its processes. It raises AssertionError with what it saw. Invariant: checks
rely on the contract in base.py alone.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from selfplay.errors import RunError
from selfplay.settings.learning import TrainerSettings
from selfplay.training.base import Trainer
from selfplay.training.batch import Sample

Opener = Callable[[Path, TrainerSettings], Trainer]
Check = Callable[[Opener, Path, Path], None]

SETTINGS = TrainerSettings(
    learning_rate=1e-2, warmup_updates=3, bf16=False, batch_tokens=256, weight_decay=0.1, max_grad_norm=0.05
)
CONTEXT_TOKENS = 128


def made_samples(seed: int, vocabulary: int = 50, count: int = 6) -> list[Sample]:
    """Return samples of both roles and signs, of 10 to 110 tokens, with ratios beyond the clipping bounds.

    Some have one advantage for the episode, some one for each token.
    """
    rng = random.Random(seed)
    samples = []
    for number in range(count):
        length = rng.randint(10, 110)
        mask = [0] * 4 + [rng.choice((0, 1, 1)) for _ in range(length - 5)] + [1]
        logprobs = [-rng.uniform(2.0, 5.0) for _ in range(length)]
        ids = [rng.randrange(vocabulary) for _ in range(length)]
        advantage = rng.choice((-1.5, -0.5, 0.5, 2.0))
        advantages = [advantage + index % 3 for index in range(length)] if number % 3 == 2 else advantage
        samples.append(Sample(ids, mask, logprobs, advantages, "injector" if number < 2 else "solver"))
    return samples


@contextmanager
def opened(open_trainer: Opener, model: Path, settings: TrainerSettings = SETTINGS) -> Iterator[Trainer]:
    trainer = open_trainer(model, settings)
    try:
        yield trainer
    finally:
        trainer.close()


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest difference of any two weights. The names must agree."""
    assert first.keys() == second.keys(), f"names differ: {sorted(first.keys() ^ second.keys())}"
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def makes_rewarded_tokens_likelier(open_trainer: Opener, model: Path, folder: Path) -> None:
    ids = list(range(1, 20))
    good = Sample(ids, [0] + [1] * 18, [-3.9] * 19, 1.0, "solver")
    with opened(open_trainer, model) as trainer:
        ratios = [trainer.step([good])["solver/ratio"] for _ in range(4)]
        assert ratios[-1] > ratios[0], f"ratios {ratios}"
        assert trainer.weight_version == 4


def reports_metrics_per_role(open_trainer: Opener, model: Path, folder: Path) -> None:
    samples = made_samples(0)
    with opened(open_trainer, model) as trainer:
        metrics = trainer.step(samples)
    for role in ("injector", "solver"):
        wanted = {
            f"{role}/{name}"
            for name in ("loss", "entropy", "ratio", "clip_share", "rollout_logprob_diff", "action_tokens")
        }
        assert wanted <= metrics.keys(), f"missing {sorted(wanted - metrics.keys())}"
        tokens = sum(s.action_tokens for s in samples if s.role == role)
        assert metrics[f"{role}/action_tokens"] == tokens, (
            f"{metrics[f'{role}/action_tokens']} of {tokens} action tokens of {role}"
        )
    assert metrics["clip_share"] > 0, "nothing was clipped, so clipping is not tried"
    assert abs(metrics["lr"] - 1e-2 / 3) < 1e-9, f"lr {metrics['lr']} in the first of 3 updates of warm-up"
    assert metrics["grad_norm"] > SETTINGS.max_grad_norm, (
        "the gradient was not clipped, so clipping is not tried"
    )


def gives_the_ratio_of_each_token(open_trainer: Opener, model: Path, folder: Path) -> None:
    samples = made_samples(0)
    with opened(open_trainer, model) as trainer:
        metrics = trainer.step(samples)
        ratios = trainer.ratios
    assert [len(some) for some in ratios] == [len(sample.token_ids) for sample in samples]
    found = torch.cat([some[~some.isnan()] for some in ratios])
    assert len(found) == metrics["action_tokens"], f"{len(found)} of {metrics['action_tokens']} have one"
    assert abs(float(found.mean()) - metrics["ratio"]) < 1e-4 * metrics["ratio"]
    for sample, some in zip(samples, ratios, strict=True):
        masked = torch.tensor(sample.loss_mask) == 0
        assert bool(some[masked].isnan().all()), "a token that the policy did not sample has a ratio"


def changes_nothing_without_a_gradient(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        before = trainer.export_weights()
        trainer.step([Sample([1, 2], [0, 1], [0.0, -1.0], 0.0, "solver")])
        assert trainer.weight_version == 1
        assert largest_difference(before, trainer.export_weights()) == 0


def learns_the_same_however_an_update_is_cut(open_trainer: Opener, model: Path, folder: Path) -> None:
    reached = []
    for tokens in (256, 4096):
        with opened(open_trainer, model, SETTINGS.model_copy(update={"batch_tokens": tokens})) as trainer:
            norms = [trainer.step(made_samples(seed))["grad_norm"] for seed in range(2)]
            reached.append((trainer.export_weights(), norms))
    (first, norms), (second, other_norms) = reached
    assert all(abs(a - b) <= 1e-4 * b for a, b in zip(norms, other_norms, strict=True)), (
        f"norms {norms} and {other_norms}"
    )
    assert largest_difference(first, second) < 2e-4, f"weights differ by {largest_difference(first, second)}"


def does_not_let_one_role_dilute_the_other(open_trainer: Opener, model: Path, folder: Path) -> None:
    samples = made_samples(0)
    losses = []
    for chosen in (samples, [s for s in samples if s.role == "injector"]):
        with opened(open_trainer, model) as trainer:
            losses.append(trainer.step(chosen)["injector/loss"])
    assert abs(losses[0] - losses[1]) <= 1e-4 * abs(losses[1]), (
        f"injector loss {losses[0]} beside solvers, {losses[1]} alone"
    )


def learns_from_a_single_sample(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        before = trainer.export_weights()
        trainer.step(made_samples(0)[:1])
        assert largest_difference(before, trainer.export_weights()) > 0


def continues_as_if_never_stopped(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        trainer.step(made_samples(0))
        trainer.save(folder / "checkpoint")
        trainer.step(made_samples(1))
        straight = trainer.export_weights()
    with opened(open_trainer, model) as trainer:
        trainer.load(folder / "checkpoint")
        assert trainer.weight_version == 1
        trainer.step(made_samples(1))
        assert trainer.weight_version == 2
        assert largest_difference(straight, trainer.export_weights()) == 0


def writes_a_model_folder(open_trainer: Opener, model: Path, folder: Path) -> None:
    """transformers loads it with exactly the exported weights, and the companion files are there."""
    from selfplay.engines.models import load_causal_model

    (model / "tokenizer.json").write_text("{}")
    with opened(open_trainer, model) as trainer:
        trainer.step(made_samples(0))
        trainer.save(folder / "checkpoint")
        exported = trainer.export_weights()
    names = {path.name for path in (folder / "checkpoint").iterdir()}
    assert {"config.json", "tokenizer.json"} <= names, f"the folder holds {sorted(names)}"
    assert [path.name for path in folder.iterdir()] == ["checkpoint"], (
        "something is left beside the checkpoint"
    )
    loaded = load_causal_model(folder / "checkpoint", torch.float32).state_dict()
    assert largest_difference(exported, {name: loaded[name] for name in exported}) == 0
    with opened(open_trainer, folder / "checkpoint") as trainer:
        assert largest_difference(exported, trainer.export_weights()) == 0


def keeps_companion_files(open_trainer: Opener, model: Path, folder: Path) -> None:
    """Also after a checkpoint was loaded and then removed: a run keeps only the last few."""
    (model / "tokenizer.json").write_text("{}")
    with opened(open_trainer, model) as trainer:
        trainer.save(folder / "first")
    with opened(open_trainer, model) as trainer:
        trainer.load(folder / "first")
        shutil.rmtree(folder / "first")
        trainer.save(folder / "second")
    names = {path.name for path in (folder / "second").iterdir()}
    assert "tokenizer.json" in names, f"the folder holds {sorted(names)}"


def saves_before_the_first_update(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        trainer.save(folder / "checkpoint")
        trainer.step(made_samples(0))
        straight = trainer.export_weights()
    with opened(open_trainer, model) as trainer:
        trainer.load(folder / "checkpoint")
        trainer.step(made_samples(0))
        assert largest_difference(straight, trainer.export_weights()) == 0


def goes_back_to_a_checkpoint(open_trainer: Opener, model: Path, folder: Path) -> None:
    """A trainer that has continued takes everything from the checkpoint, also moments and number of steps."""
    with opened(open_trainer, model) as trainer:
        trainer.step(made_samples(0))
        trainer.save(folder / "checkpoint")
        trainer.step(made_samples(1))
        straight = trainer.export_weights()
        trainer.step(made_samples(2))
        trainer.load(folder / "checkpoint")
        trainer.step(made_samples(1))
        assert largest_difference(straight, trainer.export_weights()) == 0


def writes_a_checkpoint_once(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        trainer.save(folder / "checkpoint")
        raises(RunError, "exists already", lambda: trainer.save(folder / "checkpoint"))


def refuses_a_checkpoint_with_other_weights(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        trainer.save(folder / "first")
        trainer.step(made_samples(0))
        trainer.save(folder / "second")
        for file in (folder / "second").glob("*.safetensors"):
            file.replace(folder / "first" / file.name)
        raises(RunError, "do not belong", lambda: trainer.load(folder / "first"))
        raises(RunError, "cannot continue from the checkpoint", lambda: trainer.load(folder / "nowhere"))
        trainer.step(made_samples(1))


def drops_a_gradient_that_is_not_finite(open_trainer: Opener, model: Path, folder: Path) -> None:
    poisoned = [replace(made_samples(0)[0], advantage=float("nan")), *made_samples(0)[1:]]
    with opened(open_trainer, model) as trainer:
        trainer.step(made_samples(1))
        before = trainer.export_weights()
        raises(RunError, "the gradient of update 2 is", lambda: trainer.step(poisoned))
        assert trainer.weight_version == 1
        assert largest_difference(before, trainer.export_weights()) == 0
        trainer.step(made_samples(2))
        assert all(bool(value.isfinite().all()) for value in trainer.export_weights().values())


def refuses_a_sample_beyond_the_context(open_trainer: Opener, model: Path, folder: Path) -> None:
    long = Sample(
        [1] * (CONTEXT_TOKENS + 1), [0] + [1] * CONTEXT_TOKENS, [-1.0] * (CONTEXT_TOKENS + 1), 1.0, "solver"
    )
    with opened(open_trainer, model) as trainer:
        raises(ValueError, "129 tokens, the context 128", lambda: trainer.step([long]))


def exports_copies_on_the_cpu(open_trainer: Opener, model: Path, folder: Path) -> None:
    with opened(open_trainer, model) as trainer:
        for value in trainer.export_weights().values():
            assert value.device.type == "cpu", f"on {value.device}"
            assert value.dtype == torch.float32, f"of {value.dtype}"
            value.zero_()
        assert any(bool(value.any()) for value in trainer.export_weights().values()), (
            "the exported weights are the trainer's own"
        )


def raises(kind: type[Exception], words: str, act: Callable[[], object]) -> None:
    try:
        act()
    except kind as error:
        assert words in str(error), f"{kind.__name__} says {str(error)!r}, not {words!r}"
    else:
        raise AssertionError(f"no {kind.__name__} with {words!r}")


ALL_CHECKS: tuple[Check, ...] = (
    makes_rewarded_tokens_likelier,
    reports_metrics_per_role,
    gives_the_ratio_of_each_token,
    changes_nothing_without_a_gradient,
    learns_the_same_however_an_update_is_cut,
    does_not_let_one_role_dilute_the_other,
    learns_from_a_single_sample,
    continues_as_if_never_stopped,
    writes_a_model_folder,
    keeps_companion_files,
    saves_before_the_first_update,
    goes_back_to_a_checkpoint,
    writes_a_checkpoint_once,
    refuses_a_checkpoint_with_other_weights,
    drops_a_gradient_that_is_not_finite,
    refuses_a_sample_beyond_the_context,
    exports_copies_on_the_cpu,
)

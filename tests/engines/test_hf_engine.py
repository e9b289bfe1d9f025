import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from selfplay.engines import drafts, hf_engine
from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.drafts import DraftTable, RowDrafts
from selfplay.engines.hf_engine import HFEngine
from selfplay.engines.models import load_causal_model
from selfplay.engines.sampling import draw_tokens, top_shares
from selfplay.errors import EngineError
from tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def engine(model_folder: Path) -> Iterator[HFEngine]:
    opened = HFEngine(model_folder, max_batch=4, max_tokens_context=200)
    yield opened
    opened.close()


def request(seed: int, length: int, new: int = 12, stop: frozenset[int] = frozenset()) -> GenerationRequest:
    generator = torch.Generator().manual_seed(seed)
    return GenerationRequest(
        tuple(torch.randint(50, (length,), generator=generator).tolist()), new, seed, stop, f"turn {seed}"
    )


def logprobs_by_full_forward(model: Any, prompt: tuple[int, ...], new: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([prompt + new])
    with torch.inference_mode():
        scores = torch.log_softmax(model(ids).logits[0].float(), -1)
    return scores[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


def test_logprobs_equal_a_plain_forward_pass_for_any_batch(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    requests = [
        request(i, length, new)
        for i, (length, new) in enumerate([(3, 20), (40, 5), (17, 9), (1, 14), (60, 3), (25, 11), (9, 30)])
    ]
    for asked, done in zip(requests, engine.generate(requests, Sampling()), strict=True):
        assert len(done.token_ids) == asked.max_new_tokens
        expected = logprobs_by_full_forward(model, asked.prompt_ids, done.token_ids)
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=1e-3, atol=1e-4)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(engine: HFEngine) -> None:
    asked = request(5, 20)
    alone = engine.generate([asked], Sampling())[0]
    crowd = engine.generate([request(1, 33), request(2, 4), asked, request(3, 50)], Sampling())[2]
    assert crowd.token_ids == alone.token_ids


def test_equal_prompts_with_different_seeds_differ(engine: HFEngine) -> None:
    prompt = request(0, 20).prompt_ids
    done = engine.generate(
        [GenerationRequest(prompt, 12, seed, frozenset()) for seed in range(4)], Sampling()
    )
    assert len({d.token_ids for d in done}) == 4


def test_a_stop_id_ends_the_answer_and_is_part_of_it(engine: HFEngine) -> None:
    free = engine.generate([request(7, 10)], Sampling())[0]
    stop = free.token_ids[4]
    done = engine.generate([request(7, 10, stop=frozenset({stop}))], Sampling())[0]
    assert done.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert done.stopped and not free.stopped


def test_temperature_zero_is_greedy(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    asked = request(3, 8, new=1)
    with torch.inference_mode():
        best = int(model(torch.tensor([asked.prompt_ids])).logits[0, -1].argmax())
    assert engine.generate([asked], Sampling(temperature=0))[0].token_ids == (best,)


def test_sampled_tokens_follow_the_models_distribution(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    prompt = (1, 2, 3)
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
    done = engine.generate(
        [GenerationRequest(prompt, 1, seed, frozenset()) for seed in range(1000)], Sampling()
    )
    counts = torch.bincount(torch.tensor([d.token_ids[0] for d in done]), minlength=50) / 1000
    assert 0.5 * (counts - expected).abs().sum() < 0.12


def test_many_threads_are_served_at_once(engine: HFEngine) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: engine.generate([request(i, 10 + i)], Sampling())[0], range(8)))
    assert max(d.metadata["batch"] for d in done) > 1
    assert [d.token_ids for d in done] == [
        engine.generate([request(i, 10 + i)], Sampling())[0].token_ids for i in range(8)
    ]


def test_new_weights_change_the_answers_and_the_version(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    before = engine.generate([request(1, 10)], Sampling())[0]
    changed = {name: value * 1.5 for name, value in model.state_dict().items() if name != "lm_head.weight"}
    engine.load_weights(changed, 7)
    after = engine.generate([request(1, 10)], Sampling())[0]
    assert (before.weight_version, after.weight_version, engine.weight_version) == (0, 7, 7)
    assert after.logprobs != before.logprobs


def continued(asked: GenerationRequest, done: Completion, seed: int) -> GenerationRequest:
    """The next turn of the same conversation, some observed tokens after the answer."""
    return GenerationRequest(
        (*asked.prompt_ids, *done.token_ids, 7, 8, 9), asked.max_new_tokens, seed, frozenset()
    )


def test_a_next_turn_computes_only_what_is_new(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    first = request(1, 60)
    second = continued(first, engine.generate([first], Sampling())[0], seed=2)
    done = engine.generate([second], Sampling())[0]
    # The last sampled token and the three observed ones are new.
    assert done.metadata["reused"] == len(second.prompt_ids) - 4
    expected = logprobs_by_full_forward(model, second.prompt_ids, done.token_ids)
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=1e-3, atol=1e-4)


def test_a_group_computes_its_common_prompt_once(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    prompt = request(0, 80).prompt_ids
    done = engine.generate(
        [GenerationRequest(prompt, 10, seed, frozenset()) for seed in range(4)], Sampling()
    )
    assert sorted(d.metadata["reused"] for d in done) == [0, 79, 79, 79]
    for answer in done:
        expected = logprobs_by_full_forward(model, prompt, answer.token_ids)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-3, atol=1e-4)


def test_an_update_drops_what_old_weights_computed(engine: HFEngine, model_folder: Path) -> None:
    model = load_causal_model(model_folder, torch.float32)
    first = request(1, 60)
    second = continued(first, engine.generate([first], Sampling())[0], seed=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    engine.load_weights(
        {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}, 1
    )
    done = engine.generate([second], Sampling())[0]
    assert done.metadata["reused"] == 0
    expected = logprobs_by_full_forward(model, second.prompt_ids, done.token_ids)
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=1e-3, atol=1e-4)


def test_without_memory_no_conversation_is_cached(model_folder: Path) -> None:
    opened = HFEngine(model_folder, max_batch=4, max_tokens_context=200, cache_mb=0)
    first = request(1, 60)
    second = continued(first, opened.generate([first], Sampling())[0], seed=2)
    assert opened.generate([second], Sampling())[0].metadata["reused"] == 0
    opened.close()


def test_correct_drafts_save_passes_and_change_no_token(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Greedy answers of an untrained model repeat themselves, sampled ones seldom do: drafts are right and
    # wrong.
    asked = [request(seed, 30, new=100) for seed in range(3)]
    answers = []
    for most in (0, 10):
        monkeypatch.setattr(hf_engine, "_MAX_DRAFT_TOKENS", most)
        opened = HFEngine(model_folder, max_batch=4, max_tokens_context=200)
        answers.append([opened.generate(asked, Sampling(temperature=heat)) for heat in (0.0, 0.7)])
        opened.close()
    plain, drafted = answers
    assert [[d.token_ids for d in done] for done in drafted] == [
        [d.token_ids for d in done] for done in plain
    ]
    assert all(d.metadata["passes"] == 100 for d in plain[0])
    passes = [d.metadata["passes"] for d in drafted[0]]
    assert min(passes) < 80, passes


def test_prompts_longer_than_a_pass_are_computed_in_parts(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_engine, "_MAX_PREFILL_TOKENS", 16)
    model = load_causal_model(model_folder, torch.float32)
    opened = HFEngine(model_folder, max_batch=4, max_tokens_context=200)
    requests = [request(i, length) for i, length in enumerate((50, 3, 33))]
    for asked, done in zip(requests, opened.generate(requests, Sampling()), strict=True):
        expected = logprobs_by_full_forward(model, asked.prompt_ids, done.token_ids)
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=1e-3, atol=1e-4)
    opened.close()


def test_drafts_come_from_the_row_itself_then_from_earlier_texts() -> None:
    table = DraftTable()
    row = RowDrafts(table, [1, 2, 3, 4, 5, 1, 2, 3])
    assert row.guess(3) == [4, 5, 1]
    other = RowDrafts(table, [9, 1, 2, 3])
    assert other.guess(3) == []
    table.learn([7, 1, 2, 3, 8, 8])
    assert other.guess(3) == [8, 8]


def test_weights_of_another_model_are_refused(engine: HFEngine) -> None:
    with pytest.raises(EngineError, match="do not fit"):
        engine.load_weights({"nonsense": torch.zeros(1)}, 1)


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0), Sampling(top_k=5), Sampling(min_p=0.1), Sampling(temperature=-1)]
)
def test_filters_that_reshape_the_distribution_are_refused(engine: HFEngine, sampling: Sampling) -> None:
    with pytest.raises(EngineError, match="importance ratio"):
        engine.generate([request(0, 5)], sampling)


def test_top_p_takes_the_likeliest_tokens_that_reach_it() -> None:
    shares = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4]], dtype=torch.float64)
    kept = top_shares(shares, torch.tensor([0.5, 0.6, 0.95], dtype=torch.float64)) > 0
    assert kept.tolist() == [[False, True, False], [False, True, True], [True, True, True]]


def test_a_small_top_p_samples_what_greedy_decoding_does(engine: HFEngine) -> None:
    requests = [request(number, 5) for number in range(4)]
    narrow = engine.generate(requests, Sampling(top_p=1e-9))
    greedy = engine.generate(requests, Sampling(temperature=0.0))
    assert [one.token_ids for one in narrow] == [one.token_ids for one in greedy]


def test_a_request_beyond_the_context_is_refused(engine: HFEngine) -> None:
    with pytest.raises(EngineError, match="wants 205 tokens"):
        engine.generate([request(0, 193)], Sampling())


def test_a_closed_engine_says_so(model_folder: Path) -> None:
    opened = HFEngine(model_folder)
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.generate([request(0, 5)], Sampling())


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no model folder"):
        HFEngine(tmp_path / "nowhere")


def test_a_broken_model_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="cannot load the model"):
        HFEngine(tmp_path)


def test_the_table_of_drafts_is_bounded_and_holds_no_conversation_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafts, "_MAX_ENTRIES", 50)
    table = DraftTable()
    for number in range(20):
        text = list(range(100 * number, 100 * number + 40))
        table.learn(text, first=30)
        assert table.guess((text[30], text[31], text[32]), 2) == text[33:35]
        assert table.guess((text[20], text[21], text[22]), 2) == []
        assert len(table._ends) <= 60


def test_a_request_without_memory_gets_an_error(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no room for keys and values")

    errors: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            engine.generate([request(1, 5), request(2, 5)], Sampling())
        except EngineError as error:
            errors.put(str(error))

    monkeypatch.setattr(hf_engine, "CachedSequence", refuse)
    threading.Thread(target=ask, daemon=True).start()  # a request without an answer must not block the suite
    assert "no room for keys and values" in errors.get(timeout=20)
    monkeypatch.undo()
    assert engine.generate([request(1, 5)], Sampling())[0].token_ids


@pytest.mark.parametrize("vocabulary", [50, 256, 1000])
def test_a_draw_inverts_the_distribution_at_its_number(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, vocabulary, generator=generator)
    logits[:, 7] = -torch.inf  # a word of share 0 is never drawn
    draws = [0.0, 1.0, *torch.rand(398, generator=generator, dtype=torch.float64).tolist()]
    temperatures = [(1.0, 0.5, 0.0)[row % 3] for row in range(400)]
    tokens, logprobs = draw_tokens(logits, draws, temperatures, [1.0] * 400)
    for row, token in enumerate(tokens):
        scaled = logits[row].double() / (temperatures[row] or 1.0)
        sums = torch.softmax(scaled, -1).cumsum(-1)
        if temperatures[row] == 0:
            assert token == int(logits[row].argmax())
        else:
            before = float(sums[token - 1]) if token else 0.0
            assert before - 1e-5 <= draws[row] <= float(sums[token]) + 1e-5
            assert token != 7 and token < vocabulary
        assert logprobs[row] == pytest.approx(float(torch.log_softmax(logits[row], -1)[token]), abs=1e-5)
    alone = [draw_tokens(logits[r : r + 1], [draws[r]], [temperatures[r]], [1.0])[0][0] for r in range(400)]
    assert alone == tokens

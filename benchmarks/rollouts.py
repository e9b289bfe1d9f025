"""New tokens/s of the `hf` engine against `model.generate`, or of our vLLM servers against vLLM alone.

Both run in one call. Conversations (the default) are what an update plays: groups share a prompt, and each
turn adds an answer and an observation. With --independent no two prompts share a prefix. The reference gets
the same prompts and lengths, one batched call for each turn.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import at_least_one
from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.engines.hf_engine import HFEngine
from selfplay.engines.vllm_launch import Launch
from selfplay.source.trees import FileEntry, Tree
from selfplay.warm_start.fabrication import EpisodeMaker
from selfplay.warm_start.packages import Package
from selfplay.warm_start.transcripts import PlayLimits


def make_model(folder: Path, vocabulary: int = 1024) -> Path:
    """An untrained Qwen3-shaped model of about the carried policy's size (4.2M parameters)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def own_sources() -> Tree:
    """This repository's Python files: prompts to play with that need no network."""
    root = Path(__file__).parents[1]
    return Tree(
        {
            str(p.relative_to(root)): FileEntry(p.read_bytes())
            for part in ("selfplay", "tests")
            for p in root.glob(f"{part}/**/*.py")
        }
    )


Turn = tuple[GenerationRequest, Completion]


def converse(engine: Engine, model: str, options: argparse.Namespace) -> tuple[list[list[Turn]], float]:
    """Play all conversations turn by turn. Returns the turns of each round, and the seconds of generation."""
    chat = ChatFormat(load_tokenizer(model))
    generator = random.Random(0)
    maker = EpisodeMaker([Package("selfplay", "", own_sources(), 22, 500)], chat, PlayLimits(), generator)
    rounds: list[list[Turn]] = []
    prompts = [
        tuple(ids)
        for _ in range(options.groups)
        for ids in [first_prompt(maker)]
        for _ in range(options.group_size)
    ]
    seconds = 0.0
    for number in range(options.turns):
        requests = [
            GenerationRequest(
                p,
                options.new_tokens,
                1000 * number + i,
                chat.stop_ids,
                f"solver/g{i // options.group_size}/{i}/{number}",
            )
            for i, p in enumerate(prompts)
        ]
        started = time.monotonic()
        done = engine.generate(requests, Sampling())
        seconds += time.monotonic() - started
        rounds.append(list(zip(requests, done, strict=True)))
        prompts = [(*r.prompt_ids, *c.token_ids, *chat.extend(observation(maker))) for r, c in rounds[-1]]
    return rounds, seconds


def first_prompt(maker: EpisodeMaker) -> Sequence[int]:
    """The tokens before the policy's first answer."""
    transcript = maker.transcript("solver")
    return transcript.ids[: next(i for i, weight in enumerate(transcript.weight) if weight >= 1)]


def observation(maker: EpisodeMaker) -> str:
    package, function, _ = maker.functions.sample()
    lines = package.lines(function.path)
    return "\n".join(
        f"{n}-{lines[n - 1]}"
        for n in range(function.first_line, min(function.first_line + 6, function.last_line + 1))
    )


def reference(model: Any, rounds: Sequence[Sequence[Turn]]) -> float:
    """Return the seconds of `model.generate` for the same prompts and lengths, one padded batch a round."""
    started = time.monotonic()
    with torch.inference_mode():
        for turns in rounds:
            longest = max(len(r.prompt_ids) for r, _ in turns)
            ids = torch.tensor([[0] * (longest - len(r.prompt_ids)) + list(r.prompt_ids) for r, _ in turns])
            mask = torch.tensor(
                [[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r, _ in turns]
            )
            new = max(len(c.token_ids) for _, c in turns)
            model.generate(
                ids,
                attention_mask=mask,
                min_new_tokens=new,
                max_new_tokens=new,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                pad_token_id=0,
            )
    return time.monotonic() - started


def independent(engine: Engine, options: argparse.Namespace) -> tuple[list[list[Turn]], float]:
    """Play one round of random prompts: no two share a prefix, and drafts are useless."""
    generator = torch.Generator().manual_seed(0)
    count = options.groups * options.group_size
    prompts = torch.randint(5, 1000, (count, options.prompt_tokens), generator=generator).tolist()
    requests = [
        GenerationRequest(tuple(prompt), options.new_tokens, seed, frozenset())
        for seed, prompt in enumerate(prompts)
    ]
    started = time.monotonic()
    done = engine.generate(requests, Sampling())
    return [list(zip(requests, done, strict=True))], time.monotonic() - started


def rollout_logprob_diff(model: Any, turns: Sequence[Turn]) -> float:
    """Return the mean difference of the log-probabilities from the trainer's (one pass in bf16 autocast)."""
    gaps = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for request, done in turns:
            ids = torch.tensor([[*request.prompt_ids, *done.token_ids]])
            logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
            trainer = torch.log_softmax(logits.float(), -1).gather(
                1, ids[0, len(request.prompt_ids) :, None]
            )[:, 0]
            gaps.append((trainer - torch.tensor(done.logprobs)).abs().mean().item())
    return sum(gaps) / len(gaps)


def bare_vllm(folder: str, rounds: Sequence[Sequence[Turn]], scratch: Path) -> float:
    """Return the seconds of vLLM's LLM class for the same prompts, seeds and lengths, one call a round."""
    from selfplay.engines.vllm_launch import on_gpu, variables

    launch = vllm_launch(folder, len(rounds[0]), scratch)
    settings: dict[str, Any] = {
        "model": folder,
        "dtype": launch.dtype,
        "max_model_len": launch.context_tokens,
        "max_num_seqs": launch.max_batch,
        "generation_config": "vllm",
    }
    if not on_gpu():
        settings |= {
            "enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192,
            "kv_cache_memory_bytes": launch.cache_mb << 20,
        }  # fmt: skip
    requests = [
        [{"prompt": r.prompt_ids, "seed": r.seed, "new": len(c.token_ids)} for r, c in turns]
        for turns in rounds
    ]
    file = scratch / "requests.json"
    file.write_text(json.dumps({"settings": settings, "rounds": requests}))
    command = [sys.executable, "-m", "benchmarks.bare_vllm", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables(launch))
    # vLLM's own log is in the output too.
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"seconds"'))
    return float(json.loads(line)["seconds"])


def vllm_launch(folder: str, max_batch: int, scratch: Path) -> Launch:
    return Launch(folder, 4096, max_batch, logs=scratch)


def beside_vllm(folder: str, options: argparse.Namespace, scratch: Path) -> None:
    from selfplay.engines.vllm_engine import VllmEngine
    from selfplay.weights.weight_sync import FileWeightSync

    launch = vllm_launch(folder, options.groups * options.group_size, scratch)
    engine = VllmEngine(launch, FileWeightSync(folder, getattr(torch, launch.dtype)))
    engine.generate([GenerationRequest((5, 6, 7), 8, 0, frozenset())], Sampling())
    rounds, ours = independent(engine, options) if options.independent else converse(engine, folder, options)
    engine.close()
    print(describe(rounds, ours, "vLLM alone", bare_vllm(folder, rounds, scratch)))


def describe(rounds: Sequence[Sequence[Turn]], ours_s: float, peer: str, peer_s: float) -> str:
    turns = [turn for turns in rounds for turn in turns]
    new = sum(len(c.token_ids) for _, c in turns)
    prompt = sum(len(r.prompt_ids) for r, _ in turns)
    reused = sum(c.metadata["reused"] for _, c in turns) / prompt
    return (
        f"{len(turns)} turns, {prompt / len(turns):.0f} prompt tokens each, {new} new tokens: "
        f"engine {new / ours_s:.0f} new tokens/s, {peer} {new / peer_s:.0f}, ratio {peer_s / ours_s:.2f}\n"
        f"{reused:.0%} of prompt tokens were cached"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        default="carried",
        help="a model folder; 'untrained' for one of 4.2M random parameters (with --independent)",
    )
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument(
        "--independent", action="store_true", help="random prompts that share nothing, one turn"
    )
    parser.add_argument("--groups", type=at_least_one, default=3)
    parser.add_argument("--group-size", type=at_least_one, default=8)
    parser.add_argument("--turns", type=at_least_one, default=5)
    parser.add_argument("--prompt-tokens", type=at_least_one, default=800, help="of an independent prompt")
    parser.add_argument("--new-tokens", type=at_least_one, default=48)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            str(make_model(Path(scratch))) if options.model == "untrained" else policy_path(options.model)
        )
        if options.engine == "vllm":
            beside_vllm(folder, options, Path(scratch))
            return
        engine = HFEngine(folder, max_batch=options.groups * options.group_size)
        engine.generate([GenerationRequest((5, 6, 7), 8, 0, frozenset())], Sampling())
        rounds, ours = (
            independent(engine, options) if options.independent else converse(engine, folder, options)
        )
        engine.close()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.set_num_threads(engine.threads)  # as many as the engine used last
        plain = reference(model, rounds)
        difference = rollout_logprob_diff(model, rounds[-1][:4])
    completions = [completion for turns in rounds for _, completion in turns]
    per_pass = sum(len(c.token_ids) for c in completions) / sum(c.metadata["passes"] for c in completions)
    print(describe(rounds, ours, "model.generate", plain))
    print(
        f"{per_pass:.1f} new tokens per pass and row; "
        f"log-probabilities {difference:.4g} from the trainer's (bf16 autocast)"
    )


if __name__ == "__main__":
    main()

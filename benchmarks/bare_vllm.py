"""Seconds that vLLM alone (its LLM class, no server and nothing of selfplay around it) takes for rounds of requests from a file.

Run by benchmarks.rollouts; the model, its settings and the requests are those of the engine that it is set beside.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(**told["settings"])
    drawn = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=0, detokenize=False, seed=0)
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], drawn, use_tqdm=False)
    seconds = 0.0
    for requests in told["rounds"]:
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        sampling = [
            SamplingParams(
                temperature=1.0, max_tokens=request["new"], ignore_eos=True, seed=request["seed"], logprobs=0, detokenize=False
            )
            for request in requests
        ]  # fmt: skip
        started = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds += time.monotonic() - started
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()

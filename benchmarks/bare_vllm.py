"""Measures vLLM alone: seconds that its LLM class takes for rounds of requests from a file, without a server.

`benchmarks.rollouts` runs it with the model, settings and requests of the engine that it compares.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    work = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(**work["settings"])
    common = {"ignore_eos": True, "logprobs": 0, "detokenize": False}
    warm_up = SamplingParams(max_tokens=8, seed=0, **common)
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], warm_up, use_tqdm=False)
    seconds = 0.0
    for requests in work["rounds"]:
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        sampling = [
            SamplingParams(temperature=1.0, max_tokens=request["new"], seed=request["seed"], **common)
            for request in requests
        ]
        started = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds += time.monotonic() - started
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()

"""Tests the properties in tests/*/test_properties_*.py with new random examples for a given time.

    make fuzz SECONDS=600

It prints a line for each round. A counterexample ends it with exit code 1; hypothesis stores the example in
.hypothesis for the next run.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PYTEST = (
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "--timeout=0",
    "--tb=short",
    "--hypothesis-show-statistics",
)
EXAMPLES = 200  # per property and round


def main() -> int:
    options = argparse.ArgumentParser(description="Test the properties with new random examples.")
    options.add_argument(
        "--seconds", type=float, default=300.0, help="start no round after so many seconds (default 300)"
    )
    options.add_argument(
        "--seed",
        type=int,
        default=secrets.randbelow(2**31),
        help="seed of the first round; each later round adds 1",
    )
    options.add_argument("-k", default="", help="only properties whose names match, as with pytest's -k")
    chosen = options.parse_args()
    files = sorted(str(path.relative_to(HERE.parent)) for path in HERE.glob("*/test_properties_*.py"))
    print(
        f"{', '.join(files)}: {EXAMPLES} examples per property and round, for {chosen.seconds:g} s",
        flush=True,
    )
    started, rounds, tried = time.monotonic(), 0, 0
    while rounds == 0 or time.monotonic() - started < chosen.seconds:
        seed, began = chosen.seed + rounds, time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", *PYTEST, f"--hypothesis-seed={seed}", "-k", chosen.k, *files],
            cwd=HERE.parent,
            env={**os.environ, "HYPOTHESIS_PROFILE": "fuzz", "FUZZ_EXAMPLES": str(EXAMPLES)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        rounds += 1
        counts = [int(count) for count in re.findall(r"(\d+) passing", done.stdout)]
        tried += sum(counts)
        properties = len(re.findall(r"^tests/\S+::\S+:$", done.stdout, re.MULTILINE))
        verdict = "held" if done.returncode == 0 else "FAILED"
        print(
            f"round {rounds}, seed {seed}: {properties} properties {verdict}, {sum(counts)} examples, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        if done.returncode:
            print(done.stdout.partition("Hypothesis Statistics")[0])
            return 1
    print(f"{rounds} rounds, {tried} examples, {time.monotonic() - started:.0f} s, no counterexample")
    return 0


if __name__ == "__main__":
    sys.exit(main())

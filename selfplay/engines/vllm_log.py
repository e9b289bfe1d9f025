"""Explains from a vLLM server's log why the server ended, and what to do about it. Pure text work."""

from __future__ import annotations

import re

# Pattern in the log, remedy. The first pattern that is found wins.
_REMEDIES = (
    (
        r"(?i)address already in use",
        "Another program has taken the port. Start again: selfplay then takes another free port.",
    ),
    (
        r"(?i)repo id must|not a valid model identifier|not a local folder|Invalid repository ID|"
        r"does not appear to have a file named|Can't load the configuration|couldn't connect to|"
        r"Cannot find an appropriate cached snapshot",
        "Set policy.model to a model folder, or to the id of a model that transformers finds.",
    ),
    (
        r"(?i)larger than the available KV cache|No available memory for the cache|"
        r"estimated maximum model length",
        "Raise engine.cache_mb (on a GPU engine.gpu_memory), or lower agent.context_tokens.",
    ),
    (
        r"max_model_len.*is greater than the derived",
        "Lower agent.context_tokens to what the model's config.json allows.",
    ),
    (
        r"(?i)less than (desired|requested)|out of memory|Cannot allocate memory",
        "Lower engine.cache_mb (on a GPU engine.gpu_memory) or engine.servers, or end other programs.",
    ),
    (
        r"torchvision::nms",
        "torchvision and torch are of different builds: "
        "pip uninstall torchvision torchaudio torchcodec, or install torch's own build.",
    ),
    (r"unrecognized arguments", "Fix engine.options."),
)
_PREFIX = re.compile(r"^(\([\w-]+ pid=\d+\)\s*)?((INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s*)?")
_RAISED = re.compile(r"[\w.]*(Error|Exception|error)\b.*: \S")


def explain(log: str) -> str:
    """Return the line of the log that says why the server ended, with the remedy if there is a known one."""
    lines = [_PREFIX.sub("", line.strip()) for line in log.splitlines() if line.strip()]
    for pattern, remedy in _REMEDIES:
        if found := [line for line in lines if re.search(pattern, line)]:
            return f"{_sentence(found[-1])} {remedy}"
    # Errors that say "root cause" only point to another line.
    raised = [line for line in lines if _RAISED.match(line) and "root cause" not in line]
    return _sentence((raised or lines or ["its log is empty"])[-1])


def _sentence(line: str) -> str:
    return line[:500] if line.endswith((".", "!", "?")) else f"{line[:500]}."

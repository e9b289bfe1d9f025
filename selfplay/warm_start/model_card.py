"""The model card of a warm start: what the policy is, how it was made, and its figures."""

from __future__ import annotations

import json
import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.runtime.cores import usable_cores
from selfplay.warm_start.settings import WarmStartSettings, read_settings

if TYPE_CHECKING:
    from selfplay.warm_start.attempts import Collection
    from selfplay.warm_start.figures import StageResult
    from selfplay.warm_start.packages import Package


def model_card(
    settings: WarmStartSettings,
    packages: Sequence[Package],
    results: Sequence[StageResult],
    parameters: int,
    played: Collection | None,
) -> str:
    """Markdown. `played` are the teacher's episodes, None if no stage trained on them."""
    return "\n".join(
        [
            *_what(settings, parameters),
            'It plays both roles with `prompt_style = "terse"`.',
            "",
            *_making(settings, results),
            *(_played_episodes(settings, played) if played else ()),
            *_figures(results),
            *_sources(settings, packages),
        ]
    )


def _what(settings: WarmStartSettings, parameters: int) -> list[str]:
    size = f"{parameters / 1e6:.2f}M parameters"
    if not settings.base:
        return [
            "# A small self-play policy",
            "",
            f"{size}, Qwen3 architecture, {settings.shape.vocabulary} tokens, made from nothing; no other "
            "model's weights or outputs are in it.",
        ]
    what = f"An adapter of rank {settings.lora_rank}" if settings.lora_rank else "All weights"
    kept = "" if settings.train_embeddings or settings.lora_rank else " but the embeddings"
    return [
        "# A self-play policy",
        "",
        f"{size}. {what}{kept} of `{settings.base}` was trained on episodes of both roles. The licence of "
        "that model holds for this one.",
    ]


def _making(settings: WarmStartSettings, results: Sequence[StageResult]) -> list[str]:
    stages = [f"| {r.name} | {r.tokens / 1e6:.1f}M | {_time(r)} | {r.copied:.0%} |" for r in results]
    seconds = sum(result.seconds for result in results)
    return [
        "## How it was made",
        "",
        f"By one command (seed {settings.seed}), {time.strftime('%Y-%m-%d')}, on {machine()}:",
        "",
        f"    {_command(settings)}",
        "",
        f"Supervised steps of {settings.rows} x {settings.sequence_tokens} tokens, "
        f"{seconds / 60:.0f} minutes of them.",
        "copied: of identifiers that the corpus does not have, in a shown line that an edit begins with, "
        "the share copied exactly from",
        "their first token on.",
        "",
        "| stage | tokens, padding included | time | copied |",
        "|---|---|---|---|",
        *stages,
        "",
        f"Left out of all of it: {settings.held_out.partition('==')[0]}, and a quarter of all functions, "
        "chosen by the hash of their",
        "name (`selfplay.repositories.targets.is_held_out`), in every package: no bug is in them, and "
        "nothing shows them but a neighbour's listing.",
        "",
    ]


def _figures(results: Sequence[StageResult]) -> list[str]:
    rows = [
        f"| {result.name} | {kind} | {f['edit']:.0%} | {f['line']:.0%} | {f['rest']:.0%} "
        f"| {f['chance']:.1%} |"
        for result in results
        for kind, f in result.figures.items()
    ]
    return [
        "## Measured on that package and on held-out functions of the favoured packages",
        "",
        "Shares of fabricated texts, each token predicted greedily from the true text before it: the edit "
        "whole, its path and line,",
        "all other calls whole; and the mean probability of the true edit at temperature 1.",
        "",
        "| after | text | edit | line | rest | chance |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _sources(settings: WarmStartSettings, packages: Sequence[Package]) -> list[str]:
    rows = [
        f"| {p.name} | {p.licence} | {'held out' if p.name == settings.held_out else len(p.functions)} |"
        for p in packages
    ]
    return [
        "## Made of",
        "",
        "Source distributions, read and (but for the played episodes) never run; functions of each that "
        "were mutated:",
        "",
        "| package | licence | functions |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _time(result: StageResult) -> str:
    return (
        f"{result.seconds / 60:.0f} min, {result.tokens / result.seconds:.0f} tokens/s"
        if result.seconds
        else "not kept"
    )


def _command(settings: WarmStartSettings) -> str:
    """The call of `selfplay warm-start` with these settings: the recipe that it takes, and what differs."""
    words = ["selfplay", "warm-start"]
    recipe = "warm-start"
    if settings.base:
        words += ["--from", settings.base]
        recipe = "warm-start-from"
    if settings.lora_rank:
        words += ["--adapter"]
        recipe = "warm-start-adapter"
    usual = _flat(read_settings(Path(recipe), []))
    words += [
        word
        for key, value in _flat(settings).items()
        if key != "base" and value != usual[key]
        for word in ("--set", f"{key}={_inline(value)}")
    ]
    return shlex.join([*words, "--output", "DIR"])


def _flat(settings: WarmStartSettings) -> dict[str, Any]:
    """The settings by key, those of sections too. Of stages only what differs from the defaults."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        flat |= (
            {f"{name}.{key}": held for key, held in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    flat["stages"] = [stage.model_dump(mode="json", exclude_defaults=True) for stage in settings.stages]
    return flat


def _inline(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_inline(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)


def _played_episodes(settings: WarmStartSettings, played: Collection) -> list[str]:
    return [
        "## Episodes that were played",
        "",
        "The teacher played both roles in sandboxes, each bug with a mutation of its own. Kept are injector "
        "episodes whose artifact the",
        "validator accepted, and solver episodes whose repair passed, of at most "
        f"{settings.sequence_tokens} tokens; turns that caused an",
        f"error count nothing. {len(played.attempts)} mutations took {played.seconds / 60:.0f} minutes; most "
        "of those that no test",
        "notices were not played. A bug got up to two solver episodes, each shown another failing test that "
        "leads to the function.",
        "",
        "| repository | functions | not played | injector played | validated | solver played | repaired |",
        "|---|---|---|---|---|---|---|",
        *played.table(),
        "",
    ]


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
    except OSError:
        found = None
    return f"{usable_cores()} core(s) of {found[1] if found else platform.processor() or platform.machine()}"

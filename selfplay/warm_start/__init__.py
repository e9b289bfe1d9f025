"""A cold-started policy from nothing: corpus, tokenizer, a model that can copy, then stages of texts of both roles.

Leaves the texts to training.fabrication and `executed`, the steps to training.sft. Invariant: equal settings, corpus and played episodes
give equal batches; a finished stage is not repeated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.episode import Role
from selfplay.errors import ConfigError, UsageError
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.warm_start.executed import Collection, Machine, collect, read_recipe
from selfplay.warm_start.figures import (
    LEAST_COPIED,
    CopyTest,
    StageResult,
    copy_tests,
    measure,
    measure_copying,
    measured_texts,
    model_card,
)
from selfplay.warm_start.settings import (
    CORPUS,
    EXECUTED,
    HELD_OUT,
    KINDS,
    ExecuteSettings,
    Progress,
    StageSettings,
    WarmStartSettings,
    read_settings,
)
from selfplay.warm_start.texts import Batches, Played, tokenizer_texts
from selfplay.warm_start.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from selfplay.agent.chat import ChatFormat
    from selfplay.warm_start.fabrication import EpisodeMaker, Package, PlayLimits, Transcript

__all__ = [
    "CORPUS",
    "HELD_OUT",
    "ExecuteSettings",
    "StageSettings",
    "WarmStartSettings",
    "read_settings",
    "run_warm_start",
    "warm_start",
]


def warm_start(output: Path, settings: WarmStartSettings, progress: Progress = lambda _: None) -> None:
    """Make a policy in `output`: a folder that transformers loads, with MODEL_CARD.md. What an earlier call finished is kept.

    Raises UsageError when `output` cannot be written, ConfigError for a kind of text that there is none of, and what the corpus and the
    played episodes can lack: RepositoryError, EnvironmentBuildError, PrerequisiteError, SandboxUnavailable.
    """
    for stage in settings.stages:
        for kind in stage.mix:
            if kind not in KINDS:
                raise ConfigError(
                    f"stage {stage.name!r} draws {kind!r}, and there is only {', '.join(KINDS)}."
                )
    if settings.draws_executed:
        read_recipe(settings.executed)
    _WarmStart(output, settings, progress).run()


@dataclass(frozen=True)
class _Measures:
    """What every stage is measured on."""

    texts: Mapping[str, Sequence[Transcript]]
    copies: Sequence[CopyTest]


@dataclass
class _WarmStart:
    output: Path
    settings: WarmStartSettings
    progress: Progress

    def run(self) -> None:
        from selfplay.agent.chat import ChatFormat
        from selfplay.warm_start.copying import build_policy
        from selfplay.warm_start.fabrication import PlayLimits

        settings = self.settings
        self._make_folder()
        machine = self._machine()  # first, since it may be what is missing
        packages = [
            self._package(name, 3.0 if at < settings.favoured else 1.0)
            for at, name in enumerate(settings.corpus)
        ]
        held_out = [self._package(settings.held_out)]
        self.progress(
            f"corpus: {len(packages)} packages, {sum(len(p.functions) for p in packages)} functions that can be mutated"
        )
        limits = PlayLimits(settings.context_tokens, settings.observation_tokens, settings.turns)
        tokenizer = self._tokenizer(packages, limits)
        chat = ChatFormat(tokenizer)
        chat.check()
        model = build_policy(
            self._shape(len(tokenizer)), settings.seed, tokenizer.eos_token_id, tokenizer.pad_token_id
        )
        measures = self._measures(packages, held_out, chat, limits)
        played: Collection | None = None
        results: list[StageResult] = []
        for number, stage in enumerate(settings.stages):
            texts: Played = {}
            if any(kind in EXECUTED for kind in stage.mix):
                played = played or collect(
                    settings.executed,
                    self.episodes,
                    self.work,
                    settings.sequence_tokens,
                    settings.seed,
                    self.progress,
                    machine,
                )
                texts = self._played_texts(stage, played)
            maker_seed = settings.seed * 1000 + number
            batches = Batches(
                lambda s: self._maker(packages, chat, limits, s), stage.mix, settings, maker_seed, texts
            )
            so_far = sum(result.tokens for result in results)
            results.append(self._stage(number, stage, model, tokenizer, batches, measures, chat, so_far))
        parameters = sum(p.numel() for p in model.parameters())
        card = model_card(settings, [*packages, *held_out], results, parameters, played)
        (self.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        self.progress(f"a policy of {parameters / 1e6:.2f}M parameters is in {self.output}")

    @property
    def work(self) -> Path:
        return self.output / "stages"

    @property
    def episodes(self) -> Path:
        return self.work / "executed"

    def _make_folder(self) -> None:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / ".writable").touch()
            (self.work / ".writable").unlink()
        except OSError as error:
            raise UsageError(
                f"cannot write to {self.output}: {error}. Name another folder with --output."
            ) from error

    def _machine(self) -> Machine | None:
        """Where episodes are played, unless none has to be."""
        settings = self.settings
        if not settings.draws_executed or Collection.read(self.episodes).is_complete(settings.executed):
            return None
        return Machine(settings.executed, self.progress)

    def _package(self, name: str, share: float = 1.0) -> Package:
        from selfplay.warm_start.fabrication import Package

        checkout = fetch(
            parse_spec(name if name.startswith((".", "/", "pypi:")) else f"pypi:{name}"), cache_root()
        )
        return Package(
            name,
            checkout.licence,
            checkout.tree,
            self.settings.max_lines,
            self.settings.functions_per_package,
            share,
        )

    def _maker(
        self, packages: Sequence[Package], chat: ChatFormat, limits: PlayLimits, seed: int
    ) -> EpisodeMaker:
        from selfplay.warm_start.fabrication import EpisodeMaker

        return EpisodeMaker(packages, chat, limits, random.Random(seed))

    def _shape(self, vocabulary: int) -> Any:
        from selfplay.warm_start.copying import PolicyShape

        shape = self.settings.shape
        return PolicyShape(
            vocabulary, shape.hidden, shape.layers, shape.heads, shape.head_dim, shape.intermediate
        )

    def _tokenizer(self, packages: Sequence[Package], limits: PlayLimits) -> Any:
        from transformers import AutoTokenizer

        if (self.work / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(self.work)
        generator = random.Random(self.settings.seed)
        texts = list(tokenizer_texts(packages, limits, self.settings.tokenizer_texts, generator))
        tokenizer = train_tokenizer(iter(texts), self.settings.shape.vocabulary)
        tokenizer.save_pretrained(self.work)
        self.progress(f"tokenizer: {len(tokenizer)} tokens from {sum(map(len, texts))} characters")
        return AutoTokenizer.from_pretrained(self.work)

    def _measures(
        self, packages: Sequence[Package], held_out: Sequence[Package], chat: ChatFormat, limits: PlayLimits
    ) -> _Measures:
        settings = self.settings
        unseen = {
            settings.held_out: held_out,
            "held-out functions": [
                replace(package, held_out=True) for package in packages[: settings.favoured or None]
            ],
        }
        texts = {
            f"{kind}, {name}": found
            for name, some in unseen.items()
            for kind, found in measured_texts(
                self._maker(some, chat, limits, settings.seed + 777),
                settings.measured,
                settings.sequence_tokens,
            ).items()
        }
        return _Measures(
            texts,
            copy_tests(self._maker(held_out, chat, limits, settings.seed + 778), packages, settings.measured),
        )

    def _played_texts(self, stage: StageSettings, played: Collection) -> Played:
        """The kept episodes that the stage draws. Raises ConfigError when there is none of a kind."""
        roles = {"executed_injector": Role.INJECTOR, "executed_solver": Role.SOLVER}
        texts = {kind: played.documents(role) for kind, role in roles.items() if stage.mix.get(kind)}
        for kind, found in texts.items():
            if not found:
                raise ConfigError(
                    f"stage {stage.name!r} draws {kind!r}, and none was kept of {len(played.attempts)} mutations. "
                    "Raise executed.injector_episodes and executed.solver_episodes, add to executed.repositories, or leave the kind out."
                )
        return texts

    # ---- one stage

    def _stage(
        self,
        number: int,
        stage: StageSettings,
        model: Any,
        tokenizer: Any,
        batches: Batches,
        measures: _Measures,
        chat: ChatFormat,
        so_far: int,
    ) -> StageResult:
        """Train it, or load it where it is done, then save and measure the policy. so_far: tokens of the stages before."""
        import torch

        done = self.work / f"{number}-{stage.name}.pt"
        if done.exists():
            state = torch.load(done, weights_only=True)
            model.load_state_dict(state["model"])
            self.progress(f"{stage.name}: done before")
        else:
            tokens, seconds = self._train(model, batches, stage)
            state = {"model": model.state_dict(), "tokens": so_far + tokens, "seconds": seconds}
            torch.save(state, done)
        saved = self._save(model, tokenizer)
        copied = measure_copying(saved, measures.copies)
        self.progress(f"{stage.name}: {copied:.0%} of unseen identifiers are copied exactly")
        if number == 0 and copied < LEAST_COPIED:
            self.progress(
                f"warning: {stage.name} should leave {LEAST_COPIED:.0%} of unseen identifiers copied exactly: a policy that cannot copy "
                "edits nothing. Raise shape.hidden, shape.layers or the steps of this stage."
            )
        tokens, seconds = int(state["tokens"]) - so_far, float(state.get("seconds", 0.0))
        return StageResult(stage.name, tokens, seconds, measure(saved, measures.texts, chat), copied)

    def _train(self, model: Any, batches: Batches, stage: StageSettings) -> tuple[int, float]:
        """Returns the tokens seen, padding included, and the seconds that took."""
        from selfplay.warm_start.sft import SftProgress, SftSettings, train

        def report(step: SftProgress) -> None:
            if step.step % 25 == 0:
                rate = f"{step.tokens_per_s:.0f} tokens/s"
                self.progress(
                    f"{stage.name}: step {step.step}, loss {step.loss:.3f}, {step.accuracy:.1%} of action tokens right, {rate}"
                )

        checkpoint = self.work / f"{stage.name}.partial.pt"
        last = train(
            model,
            batches,
            SftSettings(
                steps=stage.steps,
                max_seconds=stage.seconds,
                learning_rate=stage.learning_rate,
                warmup_steps=min(40, stage.steps),
                weight_decay=0.05,
                compile=self.settings.compile,
                checkpoint=checkpoint,
            ),
            report,
        )
        checkpoint.unlink(missing_ok=True)
        return last.step * self.settings.rows * self.settings.sequence_tokens, last.seconds

    def _save(self, model: Any, tokenizer: Any) -> Any:
        """Returns the model as it was saved."""
        import copy

        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        saved = copy.deepcopy(model)
        with torch.no_grad():
            # The norm stands right before the (tied) output, so its gain is an inverse temperature that lives in the weights.
            saved.model.norm.weight.mul_(self.settings.sharpen)
        saved.to(torch.bfloat16).save_pretrained(self.output)
        tokenizer.save_pretrained(self.output)
        return saved


# ---- the command


def run_warm_start(output: Path, config: Path | None, overrides: Sequence[str]) -> None:
    """The `warm-start` command."""
    warm_start(output, read_settings(config, overrides), lambda line: print(line, flush=True))

"""Makes a policy, from nothing or from a model: corpus, tokenizer, model, then stages of training on texts.

Leaves the texts to `fabrication` and `executed`, and the training steps to `stages`. Invariant: equal
settings, corpus, played episodes and PYTHONHASHSEED give equal batches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.episode import Role
from selfplay.agent.tools import toolbox
from selfplay.config import Config
from selfplay.errors import ConfigError, UsageError
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.teacher.player import check_tools
from selfplay.warm_start.attempts import Collection
from selfplay.warm_start.executed import Machine, collect, read_recipe
from selfplay.warm_start.figures import StageResult, measured_texts
from selfplay.warm_start.model_card import model_card
from selfplay.warm_start.recorded import recorded_texts
from selfplay.warm_start.settings import (
    EXECUTED,
    KINDS,
    Progress,
    StageSettings,
    WarmStartSettings,
    read_settings,
)
from selfplay.warm_start.texts import Batches, Played, tokenizer_texts
from selfplay.warm_start.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from selfplay.agent.chat import ChatFormat
    from selfplay.training.adapter import Adapter
    from selfplay.warm_start.documents import Document
    from selfplay.warm_start.fabrication import EpisodeMaker
    from selfplay.warm_start.packages import Package
    from selfplay.warm_start.stages import Measures
    from selfplay.warm_start.transcripts import PlayLimits, Transcript

FAVOURED_SHARE = 3.0  # how often favoured packages are sampled, relative to others


ADAPTER_RANK = 24  # of --adapter: 15 MB for SmolLM2-135M in bfloat16
FROM_MODEL, ADAPTER = (
    Path("warm-start-from"),
    Path("warm-start-adapter"),
)  # recipes of --from, and with --adapter


def run_warm_start(
    output: Path,
    config: Path | None,
    overrides: Sequence[str],
    *,
    base: str | None = None,
    adapter: bool = False,
    episodes: Sequence[Path] = (),
) -> None:
    """The `warm-start` command. base, adapter, episodes: its own options, which the overrides follow."""
    given = [f"base={json.dumps(base)}"] if base is not None else []
    given += [f"lora_rank={ADAPTER_RANK}"] if adapter else []
    given += [f"episodes={json.dumps([str(run) for run in episodes])}"] if episodes else []
    recipe = (ADAPTER if adapter else FROM_MODEL) if base else None
    settings = read_settings(config or recipe, [*given, *overrides])
    warm_start(output, settings, lambda line: print(line, flush=True))


def warm_start(output: Path, settings: WarmStartSettings, progress: Progress = lambda _: None) -> None:
    """Make a policy in `output`: a folder that transformers loads, with MODEL_CARD.md.

    Repeats nothing that an earlier call finished. Raises UsageError if `output` cannot be written, and
    ConfigError for a kind of text that does not exist or has no episodes. Fetching the corpus and playing
    episodes raise RepositoryError, EnvironmentBuildError, PrerequisiteError and SandboxUnavailable.
    """
    for stage in settings.stages:
        for kind in stage.mix:
            if kind not in KINDS:
                raise ConfigError(
                    f"stage {stage.name!r} has {kind!r} in its mix, which is no kind of text. "
                    f"The kinds are {', '.join(KINDS)}."
                )
    config = read_recipe(settings.executed)
    check_tools(toolbox(config.agent))
    _WarmStart(output, settings, progress, config).run()


@dataclass
class _WarmStart:
    output: Path
    settings: WarmStartSettings
    progress: Progress
    config: Config  # that the policy is made for

    def run(self) -> None:
        from selfplay.agent.chat import chat_format
        from selfplay.warm_start.stages import StageTrainer
        from selfplay.warm_start.transcripts import PlayLimits

        settings = self.settings
        self._make_folder()
        recorded = self._recorded()  # first, because the base or the machine may lack something
        machine = self._machine()
        packages = self._packages()
        held_out = [self._package(settings.held_out)]
        self.progress(
            f"corpus: {len(packages)} packages, "
            f"{sum(len(p.functions) for p in packages)} functions that can be mutated"
        )
        limits = PlayLimits(
            settings.context_tokens,
            settings.observation_tokens,
            settings.turns,
            settings.executed.whole_lines,
        )
        tokenizer = self._tokenizer(packages, limits)
        chat = chat_format(tokenizer, self.config.policy, self.config.agent)
        chat.check()
        model, adapter = self._model(tokenizer)
        measures = self._measures(packages, held_out, chat, limits)
        trainer = StageTrainer(
            self.output, self.work, settings, self.progress, model, tokenizer, measures, adapter
        )
        played: Collection | None = None
        results: list[StageResult] = []
        for number, stage in enumerate(settings.stages):
            texts: Played = {}
            if any(kind in EXECUTED for kind in stage.mix):
                played = played or self._collect(machine)
                texts = self._played_texts(stage, played, recorded)
            batches = Batches(
                lambda seed: self._maker(packages, chat, limits, seed, settings.new_names),
                stage.mix,
                settings,
                settings.seed * 1000 + number,
                texts,
            )
            tokens_before = sum(result.tokens for result in results)
            results.append(trainer.run(number, stage, batches, tokens_before))
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

    # ---- played episodes

    def _machine(self) -> Machine | None:
        """What episodes are played with; None if none has to be played."""
        settings = self.settings
        if not settings.draws_executed or Collection.read(self.episodes).is_complete(settings.executed):
            return None
        return Machine(settings.executed, self.progress)

    def _collect(self, machine: Machine | None) -> Collection:
        settings = self.settings
        return collect(
            settings.executed,
            self.episodes,
            self.work,
            settings.sequence_tokens,
            settings.seed,
            self.progress,
            machine,
        )

    def _recorded(self) -> Mapping[Role, list[Document]]:
        """The proven episodes of the base's runs. Checks the base too."""
        from selfplay.agent.chat import chat_format, load_tokenizer

        if not self.settings.base:
            return {}
        tokenizer = load_tokenizer(self._base, "--from")
        chat_format(tokenizer, self.config.policy, self.config.agent).check()
        return recorded_texts(self.settings.episodes, tokenizer, self.config)

    @cached_property
    def _base(self) -> str:
        """The folder or id of the model to start from, with the template that it is played with."""
        from selfplay.agent.chat import policy_path
        from selfplay.engines.templated_models import templated_folder

        model, template = policy_path(self.settings.base, "--from"), self.config.policy.chat_template
        return templated_folder(model, template) if template else model

    def _played_texts(
        self, stage: StageSettings, played: Collection, recorded: Mapping[Role, list[Document]]
    ) -> Played:
        """Kept episodes of the kinds in the stage's mix. Raises ConfigError if a kind has none."""
        roles = {"executed_injector": Role.INJECTOR, "executed_solver": Role.SOLVER}
        texts = {
            kind: [*played.documents(role), *recorded.get(role, ())]
            for kind, role in roles.items()
            if stage.mix.get(kind)
        }
        for kind, found in texts.items():
            if not found:
                raise ConfigError(
                    f"stage {stage.name!r} has {kind!r} in its mix, and {len(played.attempts)} mutations "
                    "gave no such episode. Raise executed.injector_episodes and executed.solver_episodes, "
                    "add to executed.repositories, or leave the kind out."
                )
        return texts

    # ---- corpus, tokenizer and measures

    def _packages(self) -> list[Package]:
        settings = self.settings
        return [
            self._package(name, FAVOURED_SHARE if number < settings.favoured else 1.0)
            for number, name in enumerate(settings.corpus)
        ]

    def _package(self, name: str, share: float = 1.0) -> Package:
        from selfplay.warm_start.packages import Package

        spec = parse_spec(name if name.startswith((".", "/", "pypi:")) else f"pypi:{name}")
        checkout = fetch(spec, cache_root())
        settings = self.settings
        return Package(
            name,
            checkout.licence,
            checkout.tree,
            settings.max_lines,
            settings.functions_per_package,
            share,
        )

    def _maker(
        self,
        packages: Sequence[Package],
        chat: ChatFormat,
        limits: PlayLimits,
        seed: int,
        new_names: float = 0.0,
    ) -> EpisodeMaker:
        from selfplay.warm_start.fabrication import EpisodeMaker

        return EpisodeMaker(packages, chat, limits, random.Random(seed), new_names)

    def _model(self, tokenizer: Any) -> tuple[Any, Adapter | None]:
        """The model to train, in float32, with its adapter: the base, or a new one that can copy.

        A base that stays as it is, below an adapter, is in bfloat16.
        """
        import torch

        from selfplay.engines.models import load_causal_model
        from selfplay.settings.learning import TrainerSettings
        from selfplay.training.adapter import add_adapter
        from selfplay.warm_start.copying import PolicyShape, build_policy
        from selfplay.warm_start.factors import start_factors

        settings = self.settings
        if not settings.base:
            shape = settings.shape
            sizes = (shape.hidden, shape.layers, shape.heads, shape.head_dim, shape.intermediate)
            policy = PolicyShape(len(tokenizer), *sizes)
            return build_policy(policy, settings.seed, tokenizer.eos_token_id, tokenizer.pad_token_id), None
        kept = torch.bfloat16 if settings.lora_rank else torch.float32
        model = load_causal_model(self._base, kept)
        adapter = TrainerSettings(lora_rank=settings.lora_rank, lora_alpha=2.0 * settings.lora_rank or 1.0)
        added = add_adapter(model, adapter, settings.seed)
        if added is not None:
            start_factors(model, added, settings)
        if not settings.train_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        return model, added

    def _tokenizer(self, packages: Sequence[Package], limits: PlayLimits) -> Any:
        """The tokenizer of an earlier call, the base's, or a new one."""
        from transformers import AutoTokenizer

        from selfplay.agent.chat import load_tokenizer

        if self.settings.base:
            tokenizer = load_tokenizer(self._base)
            tokenizer.save_pretrained(self.work)
            return tokenizer
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
    ) -> Measures:
        """Texts of the held-out package, and of held-out functions in the favoured packages."""
        from selfplay.warm_start.copy_tests import copy_tests
        from selfplay.warm_start.stages import Measures

        settings = self.settings
        favoured = packages[: settings.favoured or None]
        unseen = {
            settings.held_out: held_out,
            "held-out functions": [replace(package, held_out=True) for package in favoured],
        }
        texts: dict[str, Sequence[Transcript]] = {}
        for name, some in unseen.items():
            maker = self._maker(some, chat, limits, settings.seed + 777)
            found = measured_texts(maker, settings.measured, settings.sequence_tokens)
            texts |= {f"{kind}, {name}": transcripts for kind, transcripts in found.items()}
        maker = self._maker(held_out, chat, limits, settings.seed + 778)
        return Measures(chat, texts, copy_tests(maker, packages, settings.measured))

"""Trains, saves and measures the policy, one stage after another.

Invariant: a stage that a file of the work folder holds is loaded, not trained again.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.utils import logging

from selfplay.engines.models import can_compile
from selfplay.training.adapter import FOLDER, Adapter, outer_name
from selfplay.warm_start.copy_tests import LEAST_COPIED, measure_copying
from selfplay.warm_start.figures import StageResult, measure
from selfplay.warm_start.settings import Progress, StageSettings, WarmStartSettings
from selfplay.warm_start.sft import SftProgress, SftSettings, train

if TYPE_CHECKING:
    from selfplay.agent.chat import ChatFormat
    from selfplay.warm_start.copy_tests import CopyTest
    from selfplay.warm_start.texts import Batches
    from selfplay.warm_start.transcripts import Transcript

REPORT_EVERY = 25  # steps
REPORT_EVERY_S = 60.0  # of training, where steps take long


@dataclass(frozen=True)
class Measures:
    """What every stage is measured on: texts by kind, and copy tests."""

    chat: ChatFormat
    texts: Mapping[str, Sequence[Transcript]]
    copies: Sequence[CopyTest]


@dataclass(frozen=True)
class StageTrainer:
    """Trains one model through all stages. Writes the policy to `output`, and finished stages to `work`."""

    output: Path
    work: Path
    settings: WarmStartSettings
    progress: Progress
    model: Any
    tokenizer: Any
    measures: Measures
    adapter: Adapter | None = None

    def run(self, number: int, stage: StageSettings, batches: Batches, tokens_before: int) -> StageResult:
        """Train the stage, or load it if it is finished. Then save and measure the policy.

        tokens_before: tokens of all earlier stages.
        """
        finished = self.work / f"{number}-{stage.name}.pt"
        if finished.exists():
            state = torch.load(finished, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.progress(f"{stage.name}: done before")
        else:
            tokens, seconds = self._train(stage, batches)
            state = {
                "model": self.model.state_dict(),
                "tokens": tokens_before + tokens,
                "seconds": seconds,
            }
            torch.save(state, finished)
        saved = self._save()
        copied = measure_copying(saved, self.measures.copies)
        self.progress(f"{stage.name}: {copied:.0%} of unseen identifiers are copied exactly")
        if number == 0 and copied < LEAST_COPIED:
            self.progress(
                f"warning: {stage.name} should leave {LEAST_COPIED:.0%} of unseen identifiers copied "
                "exactly: a policy that cannot copy edits nothing. Raise shape.hidden, shape.layers or the "
                "steps of this stage."
            )
        tokens, seconds = int(state["tokens"]) - tokens_before, float(state.get("seconds", 0.0))
        figures = measure(saved, self.measures.texts, self.measures.chat)
        return StageResult(stage.name, tokens, seconds, figures, copied)

    def _train(self, stage: StageSettings, batches: Batches) -> tuple[int, float]:
        """Returns (tokens, padding included; seconds of training)."""

        said_at = 0.0

        def report(step: SftProgress) -> None:
            nonlocal said_at
            if step.step % REPORT_EVERY == 0 or step.seconds - said_at >= REPORT_EVERY_S:
                said_at = step.seconds
                self.progress(
                    f"{stage.name}: step {step.step}, loss {step.loss:.3f}, "
                    f"{step.accuracy:.1%} of action tokens right, {step.tokens_per_s:.0f} tokens/s"
                )

        checkpoint = self.work / f"{stage.name}.partial.pt"
        last = train(
            self.model,
            batches,
            SftSettings(
                steps=stage.steps,
                max_seconds=stage.seconds,
                learning_rate=stage.learning_rate,
                warmup_steps=min(stage.warmup_steps, stage.steps),
                final_share=stage.final_share,
                weight_decay=stage.weight_decay,
                compile=self._compiled(),
                checkpoint=checkpoint,
                checkpoint_every_s=self.settings.checkpoint_every_s,
            ),
            report,
        )
        checkpoint.unlink(missing_ok=True)
        return last.step * self.settings.rows * self.settings.sequence_tokens, last.seconds

    def _compiled(self) -> Literal["step", "layers", ""]:
        """What is compiled. A whole step of a large model would compile for minutes."""
        if self.settings.compile and not can_compile():
            self.progress("there is no C++ compiler, so nothing is compiled: steps are slower")
            return ""
        return ("layers" if self.settings.base else "step") if self.settings.compile else ""

    def _save(self) -> Any:
        """Save policy and tokenizer, and the adapter beside them. Returns the model as it was saved."""
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        saved = copy.deepcopy(self.model) if self.adapter is None else self._merged(self.adapter)
        with torch.no_grad():
            # Only the output layer follows this norm, so its gain scales the logits like an inverse
            # temperature.
            saved.model.norm.weight.mul_(self.settings.sharpen)
        saved.to(torch.bfloat16).save_pretrained(self.output)
        self.tokenizer.save_pretrained(self.output)
        return saved

    def _merged(self, adapter: Adapter) -> Any:
        """The model with its adapter added to the weights. Writes the adapter too, in bfloat16."""
        tensors = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        folder = self.output / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        adapter.write(folder, {name: tensors[name].to(torch.bfloat16) for name in adapter.names})
        factors = {name: tensors[name] for name in adapter.names}
        weights = {
            outer_name(name): adapter.merged(outer_name(name), tensor, factors)
            for name, tensor in tensors.items()
            if name not in factors
        }
        plain = type(self.model)(copy.deepcopy(self.model.config))
        plain.load_state_dict(weights, strict=False)  # a head that shares its weights has no name of its own
        plain.tie_weights()
        return plain

"""TRL's GRPO trainer on recorded episodes: its own loss and precision, one optimiser step for each update.

It does not run TRL's generation, rewards and data loading. `benchmarks.training` measures those of no
trainer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from selfplay.agent.chat import load_tokenizer, policy_path
from selfplay.engines.precision import trains_in_bf16
from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import Sample, with_gradient


class TrlPeer:
    def __init__(self, folder: str, settings: TrainerSettings, context: int) -> None:
        from datasets import Dataset
        from datasets.table import InMemoryTable
        from trl import GRPOConfig, GRPOTrainer

        self._settings, self._context = settings, context
        self._scratch = tempfile.TemporaryDirectory(prefix="trl-")
        arguments = GRPOConfig(
            output_dir=self._scratch.name,
            loss_type="dr_grpo",
            beta=0.0,
            epsilon=settings.clip_low,
            epsilon_high=settings.clip_high,
            delta=settings.clip_negative,
            max_completion_length=context,
            learning_rate=settings.learning_rate,
            max_grad_norm=settings.max_grad_norm,
            adam_beta2=0.95,
            bf16=trains_in_bf16(settings.bf16, torch.cuda.is_available()),
            gradient_checkpointing=False,
            per_device_train_batch_size=2,
            num_generations=2,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            max_steps=1000,
            model_init_kwargs={"dtype": "float32"},
        )
        tokenizer = load_tokenizer(policy_path("carried"))
        # To make a fingerprint itself, datasets 5.2 would pickle the table, which fails with pyarrow 24 and
        # later.
        # Nothing reads these rows.
        rows = Dataset(InMemoryTable.from_pydict({"prompt": ["repair"] * 4}), fingerprint="unread")
        self._trainer: Any = GRPOTrainer(
            model=folder,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        self._trainer.create_optimizer()
        self._trainer.model.train()

    def step(self, samples: Sequence[Sample]) -> tuple[float, float]:
        """Make one update. Returns its loss and gradient norm.

        Micro-batches have as many rows as the longest sample leaves room for, longest first.
        """
        trainer, model = self._trainer, self._trainer.model
        order = sorted(with_gradient(samples), key=lambda i: -len(samples[i].token_ids))
        rows = max(1, self._settings.batch_tokens // len(samples[order[0]].token_ids))
        batches = [order[start : start + rows] for start in range(0, len(order), rows)]
        trainer.current_gradient_accumulation_steps = len(batches)
        total = 0.0
        for batch in batches:
            loss = trainer._compute_loss(model, self._inputs([samples[i] for i in batch]))
            trainer.accelerator.backward(loss)
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), self._settings.max_grad_norm))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return total, norm

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return TRL's inputs.

        Prompts are padded on the left, completions on the right; `tool_mask` hides observations.
        """
        device = self._trainer.accelerator.device
        prompts = [s.loss_mask.index(1) for s in samples]
        longest = max(prompts)
        completion = max(len(s.token_ids) - prompt for s, prompt in zip(samples, prompts, strict=True))

        def padded(rows: list[list[float]], width: int, left: bool) -> torch.Tensor:
            return torch.tensor(
                [[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows],
                device=device,
            )

        pairs = list(zip(samples, prompts, strict=True))
        return {
            "prompt_ids": padded([list(s.token_ids[:p]) for s, p in pairs], longest, True),
            "prompt_mask": padded([[1] * p for _, p in pairs], longest, True),
            "completion_ids": padded([list(s.token_ids[p:]) for s, p in pairs], completion, False),
            "completion_mask": padded([[1] * (len(s.token_ids) - p) for s, p in pairs], completion, False),
            "tool_mask": padded([list(s.loss_mask[p:]) for s, p in pairs], completion, False),
            "old_per_token_logps": padded([list(s.logprobs[p:]) for s, p in pairs], completion, False),
            "advantages": torch.tensor([s.advantages[0] for s in samples], device=device),
        }

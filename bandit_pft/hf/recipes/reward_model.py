"""A reward model from preferences: a sequence classifier with one output, by the Bradley-Terry likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from bandit_pft.errors import ConfigError
from bandit_pft.hf.rollout import as_text


class RewardTrainer(Trainer):
    """Learns `-mean log sigmoid(r(chosen) - r(rejected))` from columns prompt, chosen, rejected.

    What it reads is what it will judge: prompt and response without an end token. Texts longer than `max_length` lose
    their beginning.

    Args:
        args: a `PFTConfig`. processing_class: the tokenizer.
        model: a sequence classifier with one output.
    """

    def __init__(self, model: Any, *, args: Any, processing_class: Any, **options: Any):
        if model.config.num_labels != 1:
            raise ConfigError(f"the reward model has {model.config.num_labels} outputs; it must have 1: num_labels=1")
        if processing_class.pad_token_id is None:
            processing_class.pad_token = processing_class.eos_token
        processing_class.truncation_side = "left"
        model.config.pad_token_id = processing_class.pad_token_id

        def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            texts = [
                as_text(processing_class, row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows
            ]
            inputs = processing_class(
                texts, return_tensors="pt", padding=True, padding_side="right", truncation=True,
                max_length=args.max_length,
            )  # fmt: skip
            return {name: inputs[name] for name in ("input_ids", "attention_mask")}

        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=collate,
            compute_metrics=lambda found: {"accuracy": float((np.asarray(found.predictions) > 0).mean())},
            **options,
        )

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the pairs; with `return_outputs` also their margins."""
        chosen, rejected = model(**inputs).logits[:, 0].float().chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        return (loss, chosen - rejected) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss and margins; the label says that the chosen response is the better one."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, margins = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), margins.detach(), torch.ones_like(margins)

"""UltraFeedback with a Mistral-7B that was fine-tuned on UltraChat.

accelerate launch --config_file bandit_pft/hf/recipes/fsdp.yaml -m bandit_pft.hf.recipes.ultrafeedback --stage dpo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from bandit_pft.hf.data import anew
from bandit_pft.hf.recipes.launch import NEW, Recipe, Stage, main
from bandit_pft.hf.recipes.load import load_rows

PREFERENCES = "HuggingFaceH4/ultrafeedback_binarized"


def rows(what: str, data: str, split: str, small: bool) -> datasets.Dataset:
    """Pairs of conversations with scores, or prompts alone."""
    found = load_rows(PREFERENCES, "", f"{split}_prefs", small=small)
    made = found.map(_pair, remove_columns=found.column_names, **anew())
    return made if what == "pairs" else made.select_columns(["prompt"])


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """The column prompt is bare text; the conversations hold what was really asked."""
    scores = {name: row[name] for name in ("score_chosen", "score_rejected")}
    return {"prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:], **scores}


COMMON: dict[str, Any] = {
    "bf16": True, "gradient_checkpointing": True, "max_length": 1024, "max_completion_length": 512, "seed": 42,
    "learning_rate": 5e-7, "lr_scheduler_type": "linear", "warmup_steps": 150, "num_train_epochs": 1,
    "logging_steps": 10, "eval_strategy": "steps", "eval_steps": 200, "save_steps": 200, "save_total_limit": 2,
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 4,
}  # fmt: skip
STAGES = {
    "pref_ft": Stage("pairs", 32, "pref_ft", start=NEW, args=COMMON),
    "dpo": Stage("pairs", 32, "dpo", {"beta": 0.1}, start=NEW, args=COMMON),
}
RECIPE = Recipe(
    "ultrafeedback", "HuggingFaceH4/mistral-7b-sft-beta", rows, {"ultrafeedback": "openbmb/UltraRM-13b"}, 512,
    STAGES, "mistral", "ultrarm",
)  # fmt: skip

if __name__ == "__main__":
    main(RECIPE)

"""AlpacaFarm and the length problems with Pythia-1.4B.

accelerate launch --config_file bandit_pft/hf/recipes/multi_gpu.yaml -m bandit_pft.hf.recipes.alpacafarm --stage dpo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from bandit_pft.errors import DataError, shown
from bandit_pft.hf.data import anew
from bandit_pft.hf.recipes.launch import NEW, Recipe, Stage, main
from bandit_pft.hf.recipes.load import load_rows
from bandit_pft.objectives.core import with_kl

INSTRUCTIONS = ("tatsu-lab/alpaca_farm", "alpaca_instructions")
# Responses of an SFT Pythia; the labels are the gold reward's, or a rule's on length.
PREFERENCES = {
    "alpacafarm": "Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data",
    "minlength": "Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data_minlength",
    "modelength": "Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data_modelength",
    "skew": "Asap7772/alpaca_skewexp_minlength_merged",
}
GOLD = {"alpacafarm": None, "minlength": "min_length", "modelength": "mode_length", "skew": "min_length"}
# Pythia's end token, in the text of its prompts too.
END, ASSISTANT = "<|endoftext|>", "<|assistant|>"
SPLITS = {"sft": {"train": "sft", "test": "val"}, "prompts": {"train": "unlabeled", "test": "val"}}


def prompt_of(instruction: str, context: str | None) -> str:
    """The template that the SFT model, the reward model and all learners share."""
    return f"<|prompter|>{instruction}{chr(10) + context if context else ''}{END}{ASSISTANT}"


def rows(what: str, data: str, split: str, small: bool) -> datasets.Dataset:
    """prompt and completion of demonstrations, prompt alone, or pairs with scores.

    Raises:
        DataError: preferences in another template.
    """
    if what != "pairs":
        found = load_rows(*INSTRUCTIONS, SPLITS[what][split], small=small)
        make = lambda row: {"prompt": prompt_of(row["instruction"], row["input"]), "completion": row["output"]}
        made = found.map(make, remove_columns=found.column_names, **anew())
        return made if what == "sft" else made.select_columns(["prompt"])
    found = load_rows(PREFERENCES[data], "", split, small=small)
    made = found.map(_pair, remove_columns=found.column_names, **anew())
    return made.filter(lambda row: row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"], **anew())


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = [row["y_w"].rpartition(ASSISTANT), row["y_l"].rpartition(ASSISTANT)]
    if not row["prompt"].endswith(ASSISTANT) or not all(mark for _, mark, _ in texts):
        raise DataError(f"prompt, y_w and y_l must hold {ASSISTANT}; a row has {shown(row['prompt'])}")
    # A response ends once, with the token that the trainer adds.
    chosen, rejected = (text.removesuffix(END) for _, _, text in texts)
    scores = {"score_chosen": row["y_w_score"], "score_rejected": row["y_l_score"]}
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, **scores}


# --- settings ------------------------------------------------------------------------------------------------------
COMMON: dict[str, Any] = {
    "bf16": True, "max_length": 512, "seed": 42, "logging_steps": 10, "eval_strategy": "steps", "eval_steps": 100,
    "save_steps": 100, "save_total_limit": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 16,
}  # fmt: skip
# Cosine down to 1e-7, as released.
COSINE: dict[str, Any] = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}}
OFFLINE = COMMON | COSINE | {"num_train_epochs": 1}
# One response to a prompt, unless said otherwise.
ONLINE = COMMON | COSINE | {"num_train_epochs": 2, "num_generations": 1, "max_completion_length": 256}
PPO = with_kl("ppo_clip", "k1", "reward")

STAGES = {
    "sft": Stage("sft", 4, "sft", start=NEW, args=COMMON | {
        "learning_rate": 8e-6, "optim": "adafactor", "num_train_epochs": 10, "eval_strategy": "epoch",
        "save_strategy": "epoch", "per_device_train_batch_size": 1,
    }),
    "reward_model": Stage("pairs", 32, args=COMMON | {
        "learning_rate": 1e-5, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "num_train_epochs": 1,
    }),
    "pref_ft": Stage("pairs", 16, "pref_ft", args=OFFLINE | {"learning_rate": 1e-6}),
    "dpo": Stage("pairs", 16, "dpo", {"beta": 0.1}, args=OFFLINE | {"learning_rate": 5e-7}),
    "ipo": Stage("pairs", 16, "ipo", {"beta": 0.1}, args=OFFLINE | {"learning_rate": 5e-7}),
    "best_of_n": Stage("prompts", 16, "best_of_n", args=ONLINE | {
        "learning_rate": 1e-6, "num_generations": 4, "steps_per_collection": 8, "num_train_epochs": 1,
    }),
    "rwr": Stage("prompts", 64, "rwr", {"beta": 10.0}, args=ONLINE | {"learning_rate": 1e-5}),
    "reinforce": Stage("prompts", 64, "reinforce_running", args=ONLINE | {"learning_rate": 1e-5}),
    "ppo": Stage("prompts", 128, PPO, {"clip": 0.2, "kl_coef": 0.02}, args=ONLINE | {
        "learning_rate": 1e-5, "num_train_epochs": 4,
    }),
    "online_dpo": Stage("prompts", 64, "dpo", {"beta": 0.1}, args=ONLINE | {
        "learning_rate": 1e-5, "num_generations": 2,
    }),
}  # fmt: skip
RECIPE = Recipe("alpacafarm", "EleutherAI/pythia-1.4b", rows, GOLD, 128, STAGES, "pythia")

if __name__ == "__main__":
    main(RECIPE)

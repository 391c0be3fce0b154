"""Rows, policies and rewards by name; nothing that is loaded brings code of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bandit_pft.hf import rollout
from bandit_pft.hf.recipes import tiny
from bandit_pft.hf.scoring import load_model

SAFE = {"use_safetensors": True, "trust_remote_code": False}
# Mean length of the SFT model's responses, in tokens.
MODE = 203
# UltraRM's class is its own; the weights are those of a sequence classifier under another name.
RENAMED = {"LlamaRewardModel": {r"^regression_head\.": "score."}}
DIALOGUE = (
    "{% for m in messages %}{{ 'Human: ' if m['role'] == 'user' else 'Assistant: ' }}{{ m['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)


def load_rows(path: str, config: str, split: str, *, small: bool) -> datasets.Dataset:
    """A split of a data set of the Hub, or generated rows of the same columns if `small`.

    Args:
        config: empty unless the data set has several. Then its Parquet copy on the Hub is read: the loading script it
            came with is code, which `datasets` no longer runs.
    """
    if small:
        return tiny.rows(path, split)
    if config:
        files = f"hf://datasets/{path}@refs/convert/parquet/{config}/{split}/*.parquet"
        return datasets.load_dataset("parquet", data_files=files, split="train")
    return datasets.load_dataset(path, split=split)


def load_policy(name: str, options: dict[str, Any] | None = None, kind: Any = AutoModelForCausalLM) -> tuple[Any, Any]:
    """A model to train or to sample from, and its tokenizer.

    Weights are float32 however the checkpoint stores them.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return load_model(name, {**SAFE, **(options or {})}, kind), tokenizer


def load_classifier(name: str) -> tuple[Any, Any]:
    """A sequence classifier with one output, and its tokenizer.

    Raises:
        ConfigError: the checkpoint does not hold all weights of a classifier, so that its rewards would be random.
    """
    kind = (AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or [""])[0]
    model = rollout.load_classifier(name, key_mapping=RENAMED.get(kind), **SAFE)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if kind in RENAMED:
        tokenizer.chat_template = DIALOGUE
    return model.eval(), tokenizer


def min_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Minus the number of tokens, the end token included."""
    return [-float(len(ids)) for ids in completion_ids]


def mode_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Minus the distance from the mode of the SFT model's lengths, in tokens."""
    return [-float(abs(len(ids) - MODE)) for ids in completion_ids]


RULES: dict[str, Callable[..., list[float]]] = {"min_length": min_length, "mode_length": mode_length}


def load_reward(name: str, device: Any) -> Callable[..., list[float]]:
    """A reward function: one of `RULES`, or a sequence classifier by name or folder."""
    if name in RULES:
        return RULES[name]
    model, tokenizer = load_classifier(name)
    return rollout.classifier(model.to(device), tokenizer)

"""Language models, tokenizers and data sets made on the spot; nothing is downloaded."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import torch.distributed.fsdp
import transformers.trainer
from tokenizers import Tokenizer, models, pre_tokenizers

# What the adapter imports was read above, with Python's own compiled files: under the hook of the shape checks every
# module would be compiled anew. At the end of a run the Trainer looks for garbage, and need not look in there.
gc.freeze()
# For models this small, threads only wait for one another.
torch.set_num_threads(1)
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

WORDS = [chr(ord("a") + i) for i in range(20)]
VOCABULARY = 24
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] }}"
    "{% if m['role'] != 'user' %} <eos>{% endif %} {% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


def tokenizer(pad: str | None = "<pad>") -> Any:
    """Words are letters; pad may be the end token, or missing."""
    special = ["<pad>", "<eos>", "<user>", "<bot>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, eos_token="<eos>", unk_token="a", chat_template=TEMPLATE
    )


SIZE = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
SMALL = SIZE | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, **SIZE
    ),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(head_dim=8, **SMALL),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    # Its logits are capped after the head.
    "gemma2": lambda: transformers.Gemma2Config(head_dim=8, query_pre_attn_scalar=8, **SMALL),
}


def model(kind: str = "gpt2", seed: int = 0, layers: int = 2) -> Any:
    """A random model, in evaluation mode."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.num_hidden_layers = layers
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def text(rng: np.random.Generator, low: int = 1, high: int = 9) -> str:
    """Some letters."""
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def pairs(rows: int = 8, seed: int = 0) -> datasets.Dataset:
    """prompt, chosen, rejected, of very different lengths, with scores."""
    rng = np.random.default_rng(seed)
    return datasets.Dataset.from_list([
        {"prompt": text(rng, 1, 5), "chosen": " " + text(rng), "rejected": " " + text(rng),
         "score_chosen": float(rng.normal(1)), "score_rejected": float(rng.normal(-1))}
        for _ in range(rows)
    ])  # fmt: skip


def prompts(rows: int = 8, seed: int = 0) -> datasets.Dataset:
    """prompt."""
    rng = np.random.default_rng(seed)
    return datasets.Dataset.from_list([{"prompt": text(rng, 1, 5), "wanted": "a"} for _ in range(rows)])

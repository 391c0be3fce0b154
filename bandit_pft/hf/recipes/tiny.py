"""For `--tiny`: random models of a few thousand weights and generated rows, in the schema of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORDS = ("sun", "rain", "stone", "bird", "cloud", "river")
# Zephyr's.
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


def tokenizer(eos: str, chat_template: str | None = None) -> Any:
    """One token per byte."""
    vocabulary = {word: i for i, word in enumerate([eos, *sorted(bytes_to_unicode().values())])}
    special: dict[str, Any] = {"eos_token": eos, "unk_token": eos, "bos_token": None}
    return transformers.GPT2Tokenizer(vocab=vocabulary, merges=[], chat_template=chat_template, **special)


def make_base(kind: str, folder: Path) -> str:
    """A model without training, in a folder: "pythia", "mistral", or "ultrarm" with weights named as UltraRM's."""
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        words = tokenizer("<|endoftext|>") if kind == "pythia" else tokenizer("</s>", CHAT)
        size: dict[str, Any] = SIZE | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0}
        if kind == "pythia":
            # As Pythia's checkpoints are.
            model: Any = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**size)).half()
        elif kind == "mistral":
            model = transformers.MistralForCausalLM(transformers.MistralConfig(num_key_value_heads=2, **size))
        else:
            model = _UltraRM(transformers.LlamaConfig(**size))
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return str(folder)


class _UltraRM(transformers.LlamaPreTrainedModel):
    def __init__(self, config: Any):
        super().__init__(config)
        self.model = transformers.LlamaModel(config)
        self.regression_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()


_UltraRM.__name__ = "LlamaRewardModel"


def rows(path: str, split: str) -> datasets.Dataset:
    """Rows in the columns of a data set of the Hub; the preferred response says "sun" more often, or is shorter."""
    rng = np.random.default_rng(len(path + split))
    make = _ultrafeedback if "ultrafeedback" in path else _relabelled if "Asap7772" in path else _alpaca
    return datasets.Dataset.from_list([make(rng, path, split) for _ in range(24)])


def _say(rng: np.random.Generator, low: int = 1, high: int = 6) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def _two(rng: np.random.Generator, path: str) -> list[str]:
    worth = (lambda text: -len(text)) if "length" in path else (lambda text: text.count("sun"))
    while True:
        found = sorted([_say(rng), _say(rng)], key=worth, reverse=True)
        if worth(found[0]) > worth(found[1]):
            return found


def _alpaca(rng: np.random.Generator, path: str, split: str) -> dict[str, Any]:
    return {"instruction": _say(rng), "input": _say(rng, 0, 2), "output": _say(rng), "datasplit": split}


def _relabelled(rng: np.random.Generator, path: str, split: str) -> dict[str, Any]:
    instruction, (better, worse) = _say(rng), _two(rng, path)
    prompt, long_prompt = (
        f"<|prompter|>{instruction}<|endoftext|><|assistant|>",
        f"Instruction: {instruction} Response:",
    )
    text = {"y_ref": better, "y_1": better, "y_2": worse, "y_w": better, "y_l": worse}
    return {
        "output": better, "text": f"{prompt}{better}", "alpaca_text": f"{long_prompt}{better}",
        **{name: f"{prompt}{answer}" for name, answer in text.items()},
        "y_w_alpaca": f"{long_prompt}{better}", "y_l_alpaca": f"{long_prompt}{worse}",
        "y_w_score": 1.0, "y_l_score": -1.0, "score_diff": 2.0, "prompt": prompt, "alpaca_prompt": long_prompt,
    }  # fmt: skip


def _ultrafeedback(rng: np.random.Generator, path: str, split: str) -> dict[str, Any]:
    prompt, (better, worse) = _say(rng), _two(rng, path)
    talk = lambda answer: [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]
    return {
        "prompt": prompt, "prompt_id": str(rng.integers(1 << 30)), "chosen": talk(better), "rejected": talk(worse),
        "messages": talk(better), "score_chosen": 8.0, "score_rejected": 4.0,
    }  # fmt: skip

"""Responses of the learner's own: which prompts, drawn how, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from bandit_pft.errors import ConfigError, DataError, shown
from bandit_pft.hf.data import is_conversation
from bandit_pft.hf.scoring import evaluating


class CollectionSampler(torch.utils.data.Sampler[int]):
    """Shuffled prompts, `size` of them at a time, each such collection `repeats` times over.

    What does not fill a collection is left out of the epoch. Known to accelerate by `set_epoch`.
    """

    def __init__(self, rows: int, size: int, repeats: int, seed: int):
        if rows < size:
            raise DataError(f"the data set has {rows} prompts; one collection takes {size}: use smaller batches")
        self.rows, self.size, self.repeats, self.seed, self.epoch = rows, size, repeats, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The order of the prompts is a function of the seed and the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.size * self.size * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for first in range(0, self.rows // self.size * self.size, self.size):
            yield from order[first : first + self.size].tolist() * self.repeats


def cut(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """A response up to and with its first end token; what follows is padding."""
    for place, token in enumerate(ids):
        if token in ends:
            return list(ids[: place + 1])
    return list(ids)


@torch.no_grad()
def draw(
    model: Any, prompts: list[list[int]], number: int, config: GenerationConfig, seed: Sequence[int], **options: Any
) -> list[list[list[int]]]:
    """`number` completions of every prompt, up to and with the end token.

    Args:
        seed: makes the draw a function of its arguments; torch's own random state stays as it was.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), evaluating(model):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **options)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else []
    done = [cut(row, ends) for row in out[:, width:].tolist()]
    return [done[i : i + number] for i in range(0, len(done), number)]


class Judge:
    """Rewards of completions: a weighted sum of what functions and sequence classifiers say.

    A function is called as `f(prompts=, completions=, completion_ids=, trainer_state=, **columns)`, with the data
    set's other columns, and returns a number for every completion, or None where it cannot tell. A response that
    nothing can judge leaves its group.
    """

    def __init__(self, funcs: Any, tokenizers: Any, weights: Sequence[float] | None):
        funcs = list(funcs) if isinstance(funcs, list | tuple) else [funcs]
        tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(funcs)
        self.weights = [1.0] * len(funcs) if weights is None else list(weights)
        if len(self.weights) != len(funcs) or len(tokenizers) != len(funcs):
            raise ConfigError(
                f"there are {len(funcs)} reward_funcs, {len(self.weights)} reward_weights and {len(tokenizers)} "
                "reward_processing_classes; give one each"
            )
        self.funcs: list[Callable[..., Any]] = []
        self.names: list[str] = []
        self.models: list[torch.nn.Module] = []
        for func, tokenizer in zip(funcs, tokenizers, strict=True):
            name = getattr(func, "__name__", None) or type(func).__name__
            if isinstance(func, str):
                name = func.rsplit("/", 1)[-1]
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(func)
                func = load_classifier(func)
            if isinstance(func, torch.nn.Module):
                self.models.append(func)
                func = classifier(func, tokenizer)
            elif not callable(func):
                raise ConfigError(
                    f"reward_funcs holds {shown(func)}; it must hold functions, classifiers or their names"
                )
            self.funcs.append(func)
            self.names.append(f"{name}_{len(self.names)}" if name in self.names else name)

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        ids: list[list[int]],
        columns: Mapping[str, list[Any]],
        state: Any,
    ) -> tuple[list[float | None], dict[str, list[float | None]]]:
        """The reward of every completion, and what each function said.

        Raises:
            DataError: a reward that is no finite number, or not one for every completion.
        """
        said: dict[str, list[float | None]] = {}
        for name, func in zip(self.names, self.funcs, strict=True):
            given = func(prompts=prompts, completions=completions, completion_ids=ids, trainer_state=state, **columns)
            given = given.tolist() if hasattr(given, "tolist") else list(given)
            if len(given) != len(completions):
                raise DataError(f"reward {name} returned {len(given)} numbers for {len(completions)} completions")
            for value, completion in zip(given, completions, strict=True):
                if value is not None and (not isinstance(value, bool | int | float) or not math.isfinite(value)):
                    raise DataError(
                        f"reward {name} is {shown(value)} for {shown(completion)}; it must be a finite number, or None "
                        "where it cannot tell"
                    )
            said[name] = [None if value is None else float(value) for value in given]
        rows = zip(*said.values(), strict=True)
        weigh = lambda row: [w * x for w, x in zip(self.weights, row, strict=True) if x is not None]
        return [sum(found) if (found := weigh(row)) else None for row in rows], said


def sampling(args: Any, ends: Sequence[int], number: int = 1) -> GenerationConfig:
    """How `number` completions of a prompt are drawn with the settings of a `PFTConfig`."""
    # What fills up a row after its end is cut off again.
    return GenerationConfig(
        max_new_tokens=args.max_completion_length, do_sample=True, temperature=args.temperature, top_p=args.top_p,
        top_k=args.top_k, num_return_sequences=number, pad_token_id=(ends or [0])[0], eos_token_id=ends or None,
    )  # fmt: skip


def as_answer(prompt: Any, text: str) -> Any:
    """A completion as reward functions see it: text, or the messages that answer a conversation."""
    return [{"role": "assistant", "content": text}] if is_conversation(prompt) else text


def as_text(tokenizer: Any, prompt: Any, completion: Any) -> str:
    """A prompt and its completion as classifiers read them."""
    if is_conversation(prompt) or is_conversation(completion):
        return tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    return prompt + completion


def load_classifier(name: str, **options: Any) -> Any:
    """A sequence classifier with one output, by name or path.

    Args:
        options: of `from_pretrained`.

    Raises:
        ConfigError: it has no such output, which loading would have drawn at random.
    """
    options = {"num_labels": 1, "output_loading_info": True, **options}
    model, seen = AutoModelForSequenceClassification.from_pretrained(name, **options)
    if seen["missing_keys"]:
        raise ConfigError(
            f"{name} is no reward model: it lacks {', '.join(sorted(seen['missing_keys'])[:3])}, so its numbers "
            "would be random. Give a sequence classifier with one output"
        )
    return model


def classifier(model: Any, tokenizer: Any) -> Callable[..., list[float]]:
    """A reward function from a sequence classifier with one output."""
    if tokenizer is None:
        raise ConfigError("a classifier among reward_funcs needs its tokenizer: pass reward_processing_classes")
    if model.config.num_labels != 1:
        raise ConfigError(f"a classifier among reward_funcs has {model.config.num_labels} outputs; it must have 1")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    @torch.no_grad()
    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        texts = [as_text(tokenizer, *both) for both in zip(prompts, completions, strict=True)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, padding_side="right")
        with evaluating(model):
            found = model(**inputs.to(model.device)).logits
        return found[:, 0].float().tolist()

    return reward


def columns_of(examples: Sequence[Mapping[str, Any]], repeats: int) -> dict[str, list[Any]]:
    """The other columns of the prompts, every value as often as its prompt has completions."""
    skip = {"prompt", "completion", "completions", "prompt_ids", "completion_ids", "rewards", "scores"}
    names = [name for name in examples[0] if name not in skip]
    return {name: [example[name] for example in examples for _ in range(repeats)] for name in names}

"""A `transformers.Trainer` that learns by any objective of this package, or by your own function of the same kind.

    trainer = PFTTrainer("Qwen/Qwen3-0.6B", "ipo", hyper={"beta": 0.1}, args=PFTConfig("out"), train_dataset=pairs)
    trainer.train()

The model gives log-probabilities of tokens, the objective their force, torch the rest. Everything around the loss is
the Trainer's: accelerate, LoRA, checkpoints, loggers, schedules, pushing to the hub.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import (
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from bandit_pft.errors import ConfigError, DataError, NumericsError, StoreError, check_integer, check_number
from bandit_pft.groups import Group
from bandit_pft.hf.bridge import Batch, checked, described, needs, objective_loss, prepared, stack
from bandit_pft.hf.data import (
    READY,
    Limits,
    Part,
    as_part,
    check_columns,
    collate,
    end_tokens,
    prepare_dataset,
    spread,
    with_logps,
)
from bandit_pft.hf.rollout import CollectionSampler, Judge, as_answer, columns_of, draw, sampling
from bandit_pft.hf.scoring import Rows, core_of, evaluating, load_model, make_scorable, token_logps
from bandit_pft.methods import NEEDS_TWO
from bandit_pft.objectives import Objective

logger = logging.get_logger(__name__)
BOTH_FALL = (
    "Chosen and rejected responses are both less likely than under the reference. Contrastive objectives only widen "
    "the difference between them, so this is expected; where the freed mass goes is what matters: watch samples, and "
    "an evaluation reward."
)


@dataclass
class PFTConfig(TrainingArguments):
    """`TrainingArguments`, and what preference fine-tuning needs besides.

    `per_device_train_batch_size` counts prompts: a pair, or all responses to one prompt, is one.

    Attributes:
        max_length: longest prompt plus completion in tokens; longer completions are cut. None: the model's context.
        disable_dropout: in the learner; off, ratios to old and reference log-probabilities are exact.
        precompute_ref_log_probs: once, before training; the reference then takes no memory. For data sets with
            responses only.
        min_gap: pairs whose scores differ by less are not compared.
        threshold: a response that scores above it is desirable. None: the mean of its group, 0.5 for labels.
        num_generations: N, responses drawn for every prompt.
        num_iterations: passes over one collection of responses before the next (reuse).
        steps_per_collection: optimiser steps that one pass takes: with M prompts a step, B = M * steps_per_collection
            prompts are answered at once. More is further off-policy.
        max_completion_length: tokens drawn at most.
        temperature, top_p, top_k: of sampling. The logits are divided by the temperature when scoring too; top_p < 1
            and top_k > 0 draw from another policy than is scored. top_k = 0 is off.
        reward_weights: of the reward_funcs. Default 1 each.
        reward_memory: how much of the running reward mean and deviation is kept per collection, in [0, 1).
        model_init_kwargs: for loading a model by name, in float32 if they say nothing else.
    """

    learning_rate: float = field(default=1e-6)
    remove_unused_columns: bool | None = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)
    logging_steps: float = field(default=10)
    max_length: int | None = field(default=1024)
    disable_dropout: bool = field(default=True)
    precompute_ref_log_probs: bool = field(default=False)
    min_gap: float = field(default=0.0)
    threshold: float | None = field(default=None)
    num_generations: int = field(default=8)
    num_iterations: int = field(default=1)
    steps_per_collection: int = field(default=1)
    max_completion_length: int = field(default=256)
    temperature: float = field(default=1.0)
    top_p: float = field(default=1.0)
    top_k: int = field(default=0)
    reward_weights: list[float] | None = field(default=None)
    reward_memory: float = field(default=0.9)
    model_init_kwargs: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("learning_rate", self.learning_rate, at_least=0)
        check_number("temperature", self.temperature, above=0, advice="It divides the logits")
        check_number("top_p", self.top_p, above=0, at_most=1)
        check_number("min_gap", self.min_gap, at_least=0)
        check_number("reward_memory", self.reward_memory, at_least=0, below=1)
        for name in ("num_generations", "num_iterations", "steps_per_collection", "max_completion_length"):
            check_integer(name, getattr(self, name), at_least=1)
        check_integer("top_k", self.top_k, at_least=0)
        if self.max_length is not None:
            check_integer("max_length", self.max_length, at_least=2)
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process: start one process for each with `accelerate launch`, or show "
                "this one a single GPU with CUDA_VISIBLE_DEVICES"
            )


@dataclass(frozen=True)
class Window:
    """A part of a batch, with its groups as prepared for the whole batch of one optimiser step."""

    part: Part
    groups: Group


class PFTTrainer(Trainer):
    """Learn by an objective from responses that are given, or that the learner writes and `reward_funcs` judge.

    Args:
        model: a causal language model, or its name.
        objective: a name, an `Objective`, or your own function of `(logp, group, *, ...)`.
        hyper: its hyper-parameters; the others keep their defaults.
        train_dataset, eval_dataset: in one of the formats of `bandit_pft.hf.data`.
        processing_class: the tokenizer; default the one of the model's name.
        reward_funcs: one or a list of functions, sequence classifiers or their names; see `Judge`. Makes training
            on-policy.
        reward_processing_classes: the classifiers' tokenizers.
        ref_model: the reference policy. Default: the model without its adapter, or else a frozen copy if the objective
            looks at the reference.
        peft_config: makes adapters for the model, with the peft library.

    Raises:
        ConfigError, DomainError: an objective or option that does not exist or fit. DataError: a data set without what
        the objective looks at. NumericsError, while training: a loss or gradient that is not finite.
    """

    args: PFTConfig
    processing_class: Any

    def __init__(
        self,
        model: Any,
        objective: str | Objective | Callable[..., Any],
        *,
        hyper: Mapping[str, float] | None = None,
        args: PFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_funcs: Any = None,
        reward_processing_classes: Any = None,
        ref_model: Any = None,
        peft_config: Any = None,
        **options: Any,
    ):
        args = PFTConfig("trainer_output") if args is None else args
        if not isinstance(args, PFTConfig):
            raise TypeError(f"args is {type(args).__name__}; it must be a PFTConfig, which is a TrainingArguments")
        self.objective, self.hyper = checked(objective, hyper)
        # Otherwise it would be the width of the padding, which differs between batches.
        if self.hyper.get("max_length") == 0:
            longest = args.max_completion_length if reward_funcs is not None else args.max_length
            self.hyper["max_length"] = float(longest or 0)
        self.needs = needs(self.objective, self.hyper)
        self.judge = None
        if reward_funcs is not None:
            self.judge = Judge(reward_funcs, reward_processing_classes, args.reward_weights)
            least = 2 if self.objective.family == "preference" or self.objective.name in NEEDS_TWO else 1
            check_integer("num_generations", args.num_generations, at_least=least,
                          advice=f"{self.objective.name} compares the responses of a group")  # fmt: skip
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = load_model(model, args.model_init_kwargs)
        if isinstance(ref_model, str):
            ref_model = load_model(ref_model, args.model_init_kwargs)
        if processing_class is None:
            raise ConfigError("processing_class is None; pass the model's tokenizer")
        if peft_config is not None:
            model = _adapted(model, peft_config)
        if args.disable_dropout:
            _without_dropout(model)
        make_scorable(model)
        self.args = args
        self.reference = self._reference(model, ref_model, args)
        self._dress(model)
        core = core_of(model)
        self.ends = end_tokens(processing_class, core)
        self.context = getattr(core.config.get_text_config(), "max_position_embeddings", None)
        ready = [self._ready(data, processing_class, args) for data in (train_dataset, eval_dataset)]
        for classifier in self.judge.models if self.judge else ():
            classifier.to(args.device)
        super().__init__(
            model=model,
            args=args,
            train_dataset=ready[0],
            eval_dataset=ready[1],
            processing_class=processing_class,
            data_collator=_examples if self.judge else collate,
            # With a loss of its own, the Trainer of every version leaves the parts of a batch as they are.
            compute_loss_func=self.compute_loss,
            **options,
        )
        if self.reference is not None:
            self.reference.to(args.device)
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self._queue: list[list[Part]] = []
        self._skip = 0
        self._evaluated = 0
        self._stats = np.zeros(3)
        self.add_callback(_Keeper(self))
        if args.precompute_ref_log_probs and self._needs_reference():
            self._precompute()

    # --- what a subclass may change ---
    def _dress(self, model: Any) -> None:
        """Add to the model what is to learn beside it, after the reference was taken."""

    def _as_drawn(self, part: Part) -> Part:
        """With what the learner says of its own responses when it has drawn them."""
        return self._with(part, "old_logp", reference=False) if self.needs.old and self._is_reused() else part

    def _needs_reference(self) -> bool:
        # Given responses have no policy of their own: the reference stands in.
        return self.needs.reference or (self.judge is None and self.needs.old)

    # --- setting up --------------------------------------------------------------------------------------------------
    def _reference(self, model: Any, given: Any, args: PFTConfig) -> Any:
        """The frozen reference; None where there is none, or where it is the model without its adapter."""
        self.adapter_off = given is None and hasattr(model, "peft_config")
        if args.precompute_ref_log_probs and self.judge:
            raise ConfigError(
                "precompute_ref_log_probs is for given responses; with reward_funcs the learner writes them"
            )
        if given is model:
            raise ConfigError("ref_model is the model itself, and would learn too: leave it out for a frozen copy")
        if given is None:
            if not self._needs_reference() or self.adapter_off or args.precompute_ref_log_probs:
                return None
            return copy.deepcopy(model).requires_grad_(False).eval()
        own, other = (m.config.get_text_config().vocab_size for m in (core_of(model), core_of(given)))
        if own != other:
            raise ConfigError(f"ref_model has a vocabulary of {other}, the model one of {own}; they must be the same")
        make_scorable(given)
        return given.requires_grad_(False).eval()

    def _ready(self, data: Any, tokenizer: Any, args: PFTConfig) -> Any:
        if data is None or isinstance(data, dict):
            return data and {name: self._ready(part, tokenizer, args) for name, part in data.items()}
        if hasattr(data, "__len__") and len(data) == 0:
            raise DataError("the data set has no rows")
        columns = getattr(data, "column_names", None) or list(data[0])
        if set(READY) <= set(columns):
            return data
        kind = check_columns(self.objective, self.needs, columns, self.judge is not None)
        longest, source = args.max_length, "max_length"
        if self.judge:
            longest, source = None, "the context"
            if self.context is not None:
                longest = self.context - args.max_completion_length
                source = f"the context of {self.context} less max_completion_length={args.max_completion_length}"
                if longest < 1:
                    raise ConfigError(f"{source} leaves no room for a prompt")
        elif self.context is not None and (longest is None or self.context < longest):
            longest, source = self.context, "the model's context"
        if kind == "labels" and args.threshold is None:
            args.threshold = 0.5
        if kind == "single" and self.needs.score and args.threshold is None:
            raise ConfigError(f"{self.objective.name} learns from desirable responses: set PFTConfig(threshold=...)")
        return prepare_dataset(data, tokenizer, kind, self.ends, Limits(longest, source))

    def _precompute(self) -> None:
        """Reference log-probabilities as a column of the data sets, by the model as it is before training."""

        # Where the model will be sharded, it is not on the device yet.
        self.model.to(self.args.device)  # type: ignore[union-attr]

        def with_column(data: Any) -> Any:
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            size = self.args.per_device_eval_batch_size
            mine = range(rank, len(data), world)
            found: list[tuple[int, list[list[float]]]] = []
            for first in range(0, len(mine), size):
                numbers = list(mine[first : first + size])
                examples = [data[number] for number in numbers]
                part = collate(examples)["part"].to(self.args.device)
                rows = iter(self._score(part, reference=True).cpu().tolist())
                for number, example in zip(numbers, examples, strict=True):
                    found.append((number, [next(rows)[: len(ids)] for ids in example["completion_ids"]]))
            column = [logps for _, logps in sorted(gather_object(found))]
            return data.add_column("ref_logps", column)

        for name in ("train_dataset", "eval_dataset"):
            data = getattr(self, name)
            if isinstance(data, dict):
                setattr(self, name, {key: with_column(part) for key, part in data.items()})
            elif data is not None:
                setattr(self, name, with_column(data))
        self.reference = None

    # --- log-probabilities -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _score(self, part: Part, *, reference: bool) -> torch.Tensor:
        """[R, T] under the learner as it is, or under the reference."""
        model: Any = self.model_wrapped
        inner: Any = self.accelerator.unwrap_model(model)
        off: Any = contextlib.nullcontext()
        if reference and self.reference is not None:
            model = inner = self.reference
        elif reference and self.adapter_off:
            off = inner.disable_adapter()
        with evaluating(inner), off, self.accelerator.autocast():
            return token_logps(model, part.rows, self.args.temperature)

    def _with(self, part: Part, name: str, *, reference: bool) -> Part:
        return with_logps(part, name, self._score(part, reference=reference))

    # --- batches -----------------------------------------------------------------------------------------------------
    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """All parts of one optimiser step, each knowing its share of the whole."""
        if self.judge is None:
            parts = [batch["part"] for batch in itertools.islice(epoch_iterator, num_batches)]
        else:
            parts = self._next_window(epoch_iterator, num_batches)
        return self._windows(parts), None

    def _windows(self, parts: list[Part], *, together: bool = True) -> list[dict[str, Any]]:
        """Inputs of `compute_loss`; shares count the parts of all processes if `together`."""
        parts = [part.to(self.args.device) for part in parts]
        if self.judge is None:
            if self._needs_reference() and not self.args.precompute_ref_log_probs:
                parts = [self._with(part, "ref_logp", reference=True) for part in parts]
            parts = [p._replace(batch=p.batch._replace(old_logp=p.batch.ref_logp)) for p in parts]
        found = [(self._judged(part), self._dense(part) if self.needs.distance else None) for part in parts]
        world, rank = (self.accelerator.num_processes, self.accelerator.process_index) if together else (1, 0)
        everyone = gather_object(found) if world > 1 else found
        size = max(batch.mask.shape[0] for batch, _ in everyone)
        number = max(len(everyone), world * self.args.gradient_accumulation_steps if together else 1)
        whole = stack([stack([batch], size) for batch, _ in everyone], number * size)
        groups = self._prepared(whole, [logp for _, logp in everyone], size)
        first = rank * len(parts)
        cut = lambda i: Group(*(x[(first + i) * size : (first + i + 1) * size] for x in groups))
        return [{**part.rows._asdict(), "window": Window(part, cut(i))} for i, part in enumerate(parts)]

    def _judged(self, part: Part) -> Batch:
        """A part as the objective sees it."""
        return part.batch

    def _prepared(self, whole: Batch, logps: list[Any], size: int) -> Group:
        """Groups with the shares of the whole batch; `logps` are the learner's, if the objective needs its distance."""
        if not self.needs.distance:
            return prepared(whole, self._numbers())
        logp = np.zeros(whole.mask.shape, np.float32)
        for place, one in enumerate(logps):
            b, n, t = one.shape
            logp[place * size : place * size + b, :n, :t] = one
        # Importance weights of whole texts are all or nothing: responses that somebody else wrote count alike.
        written = whole if self.judge and self._is_reused() else whole._replace(old_logp=logp)
        return prepared(written, self._numbers(), logp)._replace(old_logp=whole.old_logp)

    def _dense(self, part: Part) -> np.ndarray:
        return spread(part, self._score(part, reference=False), part.batch.mask.shape).cpu().numpy()

    def _numbers(self) -> dict[str, float | None]:
        count, mean, square = self._stats
        baseline = mean / count if count else 0.0
        variance = square / count - baseline**2 if count else 1.0
        scale = math.sqrt(variance) if count and variance > 1e-6 * square / count else 1.0
        return {"min_gap": self.args.min_gap, "threshold": self.args.threshold, "baseline": baseline, "scale": scale}

    # --- responses of the learner's own ------------------------------------------------------------------------------
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.judge is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = args.seed if args.data_seed is None else args.data_seed
        return CollectionSampler(len(data), step * args.steps_per_collection, args.num_iterations, seed)

    def _next_window(self, epoch_iterator: Iterator[Any], num_batches: int) -> list[Part]:
        pull = lambda count: [next(epoch_iterator)["examples"] for _ in range(count)]
        pull(self._skip * num_batches)
        self._skip = 0
        if not self._queue:
            steps = self.args.steps_per_collection
            examples = pull(steps * num_batches)
            # The sampler says every prompt once per pass; the passes after the first read from the queue.
            pull(steps * num_batches * (self.args.num_iterations - 1))
            parts = [self._collect(part, place) for place, part in enumerate(examples)]
            self._remember(parts)
            windows = [parts[i : i + num_batches] for i in range(0, len(parts), num_batches)]
            self._queue = windows * self.args.num_iterations
        return self._queue.pop(0)

    def _collect(self, examples: list[dict[str, Any]], place: int, mode: str = "train") -> Part:
        """Draw, judge and score responses to some prompts."""
        assert self.judge is not None
        args, n, tokenizer = self.args, self.args.num_generations, self.processing_class
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        prompts = [example["prompt_ids"] for example in examples]
        config = sampling(args, self.ends, n)
        seed = [args.seed, self.accelerator.process_index, self.state.global_step, place, mode == "eval"]
        done = draw(model, prompts, n, config, seed, synced_gpus=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        flat = [ids for group in done for ids in group]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in flat]
        asked = [example["prompt"] for example in examples for _ in range(n)]
        answers = [as_answer(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
        rewards, said = self.judge(asked, answers, flat, columns_of(examples, n), self.state)
        grouped = [rewards[i : i + n] for i in range(0, len(rewards), n)]
        part = as_part(prompts, done, grouped, grouped).to(args.device)
        if self._needs_reference():
            part = self._with(part, "ref_logp", reference=True)
        self._note_rewards(mode, said, grouped, flat)
        return self._as_drawn(part).to("cpu")

    def _is_reused(self) -> bool:
        """Whether the learner moves between writing a response and the last time it learns from it."""
        return self.args.num_iterations * self.args.steps_per_collection > 1

    def _remember(self, parts: list[Part]) -> None:
        """Running moments of the rewards, up to and with this collection."""
        known = [part.batch.mask.any(-1) for part in parts]
        rewards = np.concatenate([part.batch.reward[k] for part, k in zip(parts, known, strict=True)])
        seen = np.array([rewards.size, rewards.sum(dtype=np.float64), (rewards.astype(np.float64) ** 2).sum()])
        if self.accelerator.num_processes > 1:
            seen = np.sum(gather_object([seen]), axis=0)
        if seen[0]:
            keep = self.args.reward_memory
            self._stats = keep * self._stats + (1 - keep) * seen / seen[0]

    # --- the loss ----------------------------------------------------------------------------------------------------
    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of one part, its gradient the objective's force on every token."""
        window: Window = inputs["window"]
        groups = window.groups
        logp = spread(window.part, token_logps(model, window.part.rows, self.args.temperature), groups.mask.shape)
        if self.judge and self.needs.old and not self._is_reused():
            groups = groups._replace(old_logp=logp.detach().cpu().numpy())
        loss = objective_loss(self.objective, logp, groups, self.hyper)
        labelled = self.args.threshold is not None
        mode = "train" if model.training else "eval"
        self._note(mode, described(logp.detach().cpu().numpy(), groups, self.hyper.get("beta", 1.0), labelled))
        return self._returned(loss, model, return_outputs)

    def _returned(self, loss: torch.Tensor, model: Any, return_outputs: bool) -> Any:
        """What the Trainer goes backward from.

        Raises:
            NumericsError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise NumericsError(
                f"the loss of {self.objective.name} is {loss.item()} at step {self.state.global_step}: use a smaller "
                f"learning rate than {self.args.learning_rate:g}, or max_grad_norm; the last checkpoint is from before"
            )
        if model.training:
            # Data parallelism takes the mean over processes, and this loss is a part of the sum.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of one evaluation batch; its rewards go to the log."""
        if "examples" in inputs:
            part = self._collect(inputs["examples"], self._evaluated, "eval")
            self._evaluated += 1
        else:
            part = inputs["part"]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._windows([part], together=False)[0])
        return loss.detach(), None, None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        """As the Trainer's; a data set in any of the formats may be given."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            columns = getattr(eval_dataset, "column_names", None)
            if self.args.precompute_ref_log_probs and "ref_logps" not in (columns or ()):
                raise ConfigError(
                    "precompute_ref_log_probs keeps no reference: give eval_dataset when making the trainer"
                )
            eval_dataset = self._ready(eval_dataset, self.processing_class, self.args)
        self._evaluated = 0
        return super().evaluate(cast(Any, eval_dataset), *args, **options)

    # --- what is logged ----------------------------------------------------------------------------------------------
    def _note(self, mode: str, found: Mapping[str, tuple[float, float]]) -> None:
        for name, (total, count) in found.items():
            old = self._sums[mode].setdefault(name, [0.0, 0.0])
            old[0] += total
            old[1] += count

    def _note_rewards(
        self, mode: str, said: Mapping[str, Any], grouped: list[list[Any]], done: list[list[int]]
    ) -> None:
        mean = lambda values: (float(sum(values)), float(len(values)))
        known = [[x for x in group if x is not None] for group in grouped]
        flat = [x for group in known for x in group]
        found = {f"rewards/{name}/mean": mean([x for x in values if x is not None]) for name, values in said.items()}
        found["reward"] = mean(flat)
        found["reward_std"] = mean([float(np.std(flat, ddof=1))] if len(flat) > 1 else [])
        found["frac_reward_zero_std"] = mean([float(np.ptp(group) == 0) for group in known if group])
        found["completions/mean_length"] = mean([len(ids) for ids in done])
        found["completions/clipped_ratio"] = mean([not ids or ids[-1] not in self.ends for ids in done])
        self._note(mode, found)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means, over all processes, since the last log. Names are TRL's."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        world = self.accelerator.num_processes
        mine, self._sums[mode] = [self._sums[mode]], {}
        everyone = gather_object(mine) if world > 1 else mine
        names = sorted({name for one in everyone for name in one})
        prefix = "eval_" if mode == "eval" else ""
        hidden = set() if self._needs_reference() else {"kl"}
        hidden |= set() if self.needs.old else {"logps/drift"}
        if not self._needs_reference() and self.objective.family != "preference":
            hidden |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
        for name in names:
            total, count = np.sum([one[name] for one in everyone if name in one], axis=0)
            if count and name not in hidden:
                logs[prefix + name] = float(total / count)
        if (
            self.objective.family == "preference"
            and self._needs_reference()
            and max(logs.get("rewards/chosen", 0.0), logs.get("rewards/rejected", 0.0)) < 0
        ):
            logger.warning_once(BOTH_FALL)
        norm = logs.get("grad_norm")
        super().log(logs, start_time)
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            raise NumericsError(
                f"the gradient's norm is {norm} at step {self.state.global_step}: use a smaller learning rate than "
                f"{self.args.learning_rate:g}; the last checkpoint is from before"
            )

    # --- resuming ----------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """As the Trainer's; resuming also takes up the collection of responses that was in hand."""
        where = resume_from_checkpoint
        if where is True:
            where = get_last_checkpoint(self.args.output_dir)
        if where:
            self._load(Path(where))
        return super().train(resume_from_checkpoint, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        core = core_of(self.model)
        if not (hasattr(self.model, "peft_config") or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Some models, such as GPT-NeoX, are saved under other names, which the Trainer does not translate.
            saved = type(core).from_pretrained(resume_from_checkpoint, dtype=core.dtype)
            core.load_state_dict(saved.state_dict(), strict=False)

    def _file(self, folder: Path) -> Path:
        return folder / f"responses_{self.accelerator.process_index}_of_{self.accelerator.num_processes}.pt"

    def _keep(self, folder: Path) -> None:
        if self.judge is None:
            return
        tensors = lambda named: {k: torch.as_tensor(v) for k, v in named._asdict().items()}
        kept = lambda p: {
            "rows": tensors(p.rows),
            "slot": torch.as_tensor(p.slot),
            "batch": tensors(p.batch),
            "extra": [torch.as_tensor(x) for x in p.extra],
        }
        queue = [[kept(part) for part in window] for window in self._queue]
        torch.save({"queue": queue, "stats": self._stats.tolist()}, self._file(folder))

    def _load(self, folder: Path) -> None:
        if self.judge is None:
            return
        path = self._file(folder)
        if not path.exists():
            raise StoreError(f"{path} does not exist: resume with as many processes as wrote the checkpoint")
        kept = torch.load(path, weights_only=True)
        arrays = lambda named: {k: v.numpy() for k, v in named.items()}
        part = lambda p: Part(
            Rows(**p["rows"]), p["slot"].numpy(), Batch(**arrays(p["batch"])), tuple(x.numpy() for x in p["extra"])
        )
        self._queue = [[part(p) for p in window] for window in kept["queue"]]
        self._stats = np.array(kept["stats"])
        self._skip = 0 if self.args.ignore_data_skip else len(self._queue)


class _Keeper(TrainerCallback):
    def __init__(self, trainer: PFTTrainer):
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._keep(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _examples(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"examples": examples}


def _without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _adapted(model: Any, config: Any) -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("peft_config needs the peft library: pip install 'bandit-pft[trl]'") from error
    return peft.get_peft_model(model, config)

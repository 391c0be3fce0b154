"""One command for every stage of a recipe: settings from its table, each open to change on the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModelForSequenceClassification, HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from bandit_pft.errors import ConfigError, DataError, check_choice, check_integer, check_names
from bandit_pft.hf.data import anew, prompt_tokens
from bandit_pft.hf.recipes.evaluate import evaluate, plot_training
from bandit_pft.hf.recipes.load import load_policy, load_reward
from bandit_pft.hf.recipes.reward_model import RewardTrainer
from bandit_pft.hf.recipes.tiny import make_base
from bandit_pft.hf.trainer import PFTConfig, PFTTrainer

logger = logging.get_logger(__name__)
NEW = "base"


@dataclass(frozen=True)
class Stage:
    """What one stage learns from, and how.

    Attributes:
        rows: "sft", "pairs" or "prompts", as the recipe's `rows` takes it.
        batch: prompts or pairs of one optimiser step, over all processes and accumulated parts.
        objective: of `PFTTrainer`; None for a stage that is not preference fine-tuning.
        start: the stage whose model it begins with, or "base".
        args: `PFTConfig` values.
    """

    rows: str
    batch: int
    objective: Any = None
    hyper: Mapping[str, float] = field(default_factory=dict)
    start: str = "sft"
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Models and data by name, and a table of stages.

    Attributes:
        base: the model that the first stage begins with.
        rows: `(what, data, split, small)` -> a data set in a format of `bandit_pft.hf.data`; split "train" or "test".
        data: what `--data` may be -> the default gold reward; None: the recipe's trained reward model.
        max_prompt_length: in tokens; longer prompts are left out, except of demonstrations.
        tiny: kind of the model that stands in for `base`, see `bandit_pft.hf.recipes.tiny.make_base`.
        tiny_gold: the same for a gold reward.
    """

    name: str
    base: str
    rows: Callable[..., datasets.Dataset]
    data: Mapping[str, str | None]
    max_prompt_length: int
    stages: Mapping[str, Stage]
    tiny: str
    tiny_gold: str | None = None


@dataclass
class Options:
    """Everything that is not a `PFTConfig` value."""

    stage: str = field(metadata={"help": "what to run; every stage writes into its own folder of --out"})
    data: str | None = field(default=None, metadata={"help": "which preferences; default: the recipe's first"})
    model: str | None = field(default=None, metadata={"help": "name or folder; default: the stage before it"})
    reward: str | None = field(default=None, metadata={"help": "classifier, min_length or mode_length to learn from"})
    gold: str | None = field(default=None, metadata={"help": "the same, to evaluate by"})
    reference: str | None = field(default=None, metadata={"help": "what an evaluation compares with; default: SFT"})
    out: str | None = field(default=None, metadata={"help": "folder of all stages; default: results/<recipe>"})
    hyper: list[str] = field(default_factory=list, metadata={"help": "of the objective, as beta=0.05"})
    batch: int | None = field(default=None, metadata={"help": "prompts or pairs of one optimiser step, in all"})
    num_rows: int | None = field(default=None, metadata={"help": "rows to train on; default: all"})
    num_eval_rows: int = field(default=256, metadata={"help": "held-out rows of an evaluation"})
    max_prompt_length: int = field(default=0, metadata={"help": "longer prompts are left out, in tokens"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint, if there is one"})
    tiny: bool = field(default=False, metadata={"help": "a random model, generated rows, a few steps on the CPU"})


TINY: Mapping[str, Any] = {
    "use_cpu": True, "bf16": False, "max_steps": 3, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 8,
    "logging_steps": 1, "eval_steps": 3, "save_steps": 3, "max_completion_length": 8, "disable_tqdm": True,
}  # fmt: skip
TINY_BATCH, TINY_ROWS = 4, 8


def parse(recipe: Recipe, argv: Sequence[str] | None = None) -> tuple[Options, PFTConfig]:
    """Options and settings: the recipe's, then those of `--tiny`, then the command line's.

    Raises:
        ConfigError: a name that does not exist, or sizes that do not divide one another.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    kinds: Any = (Options, PFTConfig)
    parser, first = (
        HfArgumentParser(
            kind, allow_abbrev=False, prog=f"python -m bandit_pft.hf.recipes.{recipe.name}", add_help=whole
        )
        for kind, whole in ((kinds, True), (kinds[0], False))
    )
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    chosen = first.parse_known_args(argv)[0]
    check_choice("--stage", chosen.stage, (*recipe.stages, "evaluate"))
    stage = recipe.stages.get(chosen.stage)
    out = Path(chosen.out or f"results/{recipe.name}{'_tiny' if chosen.tiny else ''}")
    parser.set_defaults(
        out=str(out), data=next(iter(recipe.data)), output_dir=str(out / chosen.stage), **(stage.args if stage else {})
    )
    # The parser would give None, which TrainingArguments does not allow.
    parser.set_defaults(debug=[], batch=stage.batch if stage else None, max_prompt_length=recipe.max_prompt_length)
    if chosen.tiny:
        parser.set_defaults(**TINY, batch=TINY_BATCH if stage else None, num_eval_rows=TINY_ROWS)
        if stage and stage.args.get("steps_per_collection", 1) > 2:
            parser.set_defaults(steps_per_collection=2)
    options, args, rest = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    known = [f"--{f.name}" for kind in kinds for f in fields(kind)]
    check_names("the command line", [word.split("=")[0] for word in rest], known)
    check_choice("--data", options.data, recipe.data)
    check_integer("--num_eval_rows", options.num_eval_rows, at_least=2)
    if stage:
        step = args.per_device_train_batch_size * args.world_size
        if args.gradient_accumulation_steps != 1 or options.batch % step:
            raise ConfigError(
                f"--batch is {options.batch}, the prompts of one optimiser step; it must be a multiple of "
                f"{step} = per_device_train_batch_size={args.per_device_train_batch_size} * {args.world_size} "
                "processes. gradient_accumulation_steps follows from them: do not set it"
            )
        args.gradient_accumulation_steps = options.batch // step
    return options, args


def numbers(given: Sequence[str]) -> dict[str, float]:
    """Hyper-parameters from text such as beta=0.05."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--hyper is {text!r}; it must be name=number, such as beta=0.05") from None
    return found


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Run one stage.

    Raises:
        ConfigError, DataError: what cannot be run as it was asked for.
    """
    options, args = parse(recipe, argv)
    datasets.utils.disable_progress_bars() if args.disable_tqdm else None
    run = {"evaluate": _evaluate, "reward_model": _reward_model}.get(options.stage, _train)
    run(recipe, options, args)


# --- stages --------------------------------------------------------------------------------------------------------
def _before(recipe: Recipe, options: Options, args: PFTConfig, stage: str) -> str:
    """The model that a stage wrote, or the base."""
    out = Path(str(options.out))
    if stage == NEW:
        with args.main_process_first():
            return make_base(recipe.tiny, out / "tiny_base") if options.tiny else recipe.base
    if not (out / stage / "config.json").exists():
        raise ConfigError(f"{out / stage} holds no model: run --stage {stage} first, or name one (see --help)")
    return str(out / stage)


def _rows(recipe: Recipe, options: Options, args: PFTConfig, tokenizer: Any, what: str, split: str) -> datasets.Dataset:
    """Rows whose prompts are not too long, as many as were asked for.

    Raises:
        DataError: none is left.
    """
    data = recipe.rows(what, options.data, split, options.tiny)
    longest = options.max_prompt_length if what != "sft" else (args.max_length or 1) - 1
    kept = data.filter(lambda row: len(prompt_tokens(tokenizer, row["prompt"])) <= longest, **anew())
    if len(kept) < len(data):
        logger.warning(f"{len(data) - len(kept)} of {len(data)} prompts are left out: longer than {longest} tokens")
    if not len(kept):
        raise DataError(f"all {len(data)} prompts are longer than {longest} tokens: raise --max_prompt_length")
    number = options.num_rows if split == "train" else options.num_eval_rows
    return kept if number is None else kept.select(range(min(number, len(kept))))


def _sets(recipe: Recipe, options: Options, args: PFTConfig, tokenizer: Any, what: str) -> dict[str, Any]:
    held_out = _rows(recipe, options, args, tokenizer, what, "test") if args.eval_strategy != "no" else None
    return {"train_dataset": _rows(recipe, options, args, tokenizer, what, "train"), "eval_dataset": held_out}


def _train(recipe: Recipe, options: Options, args: PFTConfig) -> None:
    stage, last = recipe.stages[options.stage], _last(options, args)
    model, tokenizer = load_policy(options.model or _before(recipe, options, args, stage.start), args.model_init_kwargs)
    hyper, reward = {**stage.hyper, **numbers(options.hyper)}, None
    if stage.rows == "prompts":
        reward = load_reward(options.reward or _before(recipe, options, args, "reward_model"), args.device)
    _finish(args, last, PFTTrainer(
        model, stage.objective, hyper=hyper, args=args, reward_funcs=reward, processing_class=tokenizer,
        **_sets(recipe, options, args, tokenizer, stage.rows),
    ))  # fmt: skip


def _reward_model(recipe: Recipe, options: Options, args: PFTConfig) -> None:
    stage, last = recipe.stages[options.stage], _last(options, args)
    model, tokenizer = load_policy(
        last or options.model or _before(recipe, options, args, stage.start),
        {"num_labels": 1, **(args.model_init_kwargs or {})},
        AutoModelForSequenceClassification,
    )
    sets = _sets(recipe, options, args, tokenizer, stage.rows)
    _finish(args, last, RewardTrainer(model, args=args, processing_class=tokenizer, **sets))


def _last(options: Options, args: PFTConfig) -> str | None:
    """The checkpoint to go on from."""
    folder = Path(str(args.output_dir))
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last and not options.resume:
        raise ConfigError(f"{folder} has checkpoints: --resume goes on with them, or choose another --out")
    return last


def _finish(args: PFTConfig, last: str | None, trainer: Any) -> None:
    trainer.train(resume_from_checkpoint=last)
    trainer.save_state()
    # Pushes as well, with --push_to_hub.
    trainer.save_model()
    if args.process_index == 0:
        plot_training(Path(str(args.output_dir)))


def _evaluate(recipe: Recipe, options: Options, args: PFTConfig) -> None:
    if options.model is None:
        raise ConfigError(f"--stage evaluate needs --model, such as {options.out}/dpo")
    sft = "sft" if "sft" in recipe.stages else NEW
    reference = options.reference or _before(recipe, options, args, sft)
    gold = options.gold or recipe.data[str(options.data)]
    if options.gold is None and options.tiny and recipe.tiny_gold:
        with args.main_process_first():
            gold = make_base(recipe.tiny_gold, Path(str(options.out)) / "tiny_gold")
    gold = gold or _before(recipe, options, args, "reward_model")
    model, tokenizer = load_policy(options.model, args.model_init_kwargs)
    prompts = _rows(recipe, options, args, tokenizer, "prompts", "test")["prompt"]
    found = evaluate(
        model, load_policy(reference, args.model_init_kwargs)[0], tokenizer, list(prompts),
        load_reward(gold, args.device), args,
    )  # fmt: skip
    names = {"model": options.model, "reference": reference, "gold": gold, "data": options.data, "seed": args.seed}
    if args.process_index == 0:
        path = Path(str(args.output_dir)) / f"{Path(options.model).name}.json"
        os.makedirs(path.parent, exist_ok=True)
        path.write_text(json.dumps({**names, **found}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"{path}: gold reward {found['gold_reward']['mean']:.3f} +- {found['gold_reward']['stderr']:.3f}, "
              f"win rate {found['win_rate']['mean']:.2f}, {found['length']['mean']:.0f} tokens")  # fmt: skip

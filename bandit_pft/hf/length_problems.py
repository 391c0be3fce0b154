"""The paper's length problems on a language model of 0.1 M parameters, trained on the spot.

    python -m bandit_pft.hf.length_problems [--quick]

A GPT-2 imitates texts on eight topics, of about 16 tokens. Three problems then ask for other lengths:

    min    the shorter response is preferred: the reference hardly ever writes the best one
    mode   the response nearer to 16 tokens is preferred: the reference often writes the best one
    skew   as min, but the responses of the data were cut short, so that they lie nearer to the best than the reference

All methods learn with `PFTTrainer` from the same reference, at equal gradient steps and prompts a step; those that
write their own responses see the true reward, or a reward model fitted to the pairs of the offline methods. What is
reported is always the true length.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
import transformers
from jax.nn import log_sigmoid
from matplotlib.figure import Figure
from scipy import stats
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bandit_pft import style
from bandit_pft.errors import check_choice, check_integer
from bandit_pft.groups import Group, safe_divide
from bandit_pft.hf.rollout import classifier, draw
from bandit_pft.hf.scoring import evaluating, make_scorable, pack, token_logps
from bandit_pft.hf.trainer import PFTConfig, PFTTrainer
from bandit_pft.objectives import Objective
from bandit_pft.objectives.core import Hyper, Logp, Loss, as_objective, get_objective
from bandit_pft.store import write_file

MODE = 16
SPREAD = 4.0
SHORTEST, LONGEST, ROOM = 2, 32, 36
TOPICS = "01234567"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPECIAL = ("<pad>", "<eos>", "<unk>")
PROMPT_LETTERS = 3
# Mean number of tokens after which a response of the skewed data is cut.
CUT = 4.0
N = 4
PROBLEMS = ("min", "mode", "skew")
TITLES = {"min": "Min Length", "mode": "Mode Length", "skew": "Skew Length", "distinct": "Distinct pairs"}
GOLD, PROXY = "gold reward", "reward model"
# Implicit rewards of all methods are in the same unit.
BETA = 0.1


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        steps: gradient steps of every method, evaluated every `every` steps.
        prompts: a gradient step.
        rows: prompts of the preference data; `held_out` more are kept for evaluation.
        sft_rows, sft_steps: texts and steps of supervised fine-tuning.
        rm_steps: gradient steps of the reward model.
        samples, final: responses drawn at an evaluation, and at the last.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 60
    every: int = 6
    prompts: int = 16
    rows: int = 768
    held_out: int = 128
    sft_rows: int = 4096
    sft_steps: int = 400
    rm_steps: int = 80
    samples: int = 128
    final: int = 512


FULL = Scale()
QUICK = Scale(seeds=(0,), steps=30, rows=256, sft_steps=250, rm_steps=60, final=256)


# --- the objectives of the paper's code ------------------------------------------------------------------------------
def _by_places(logp: Logp, group: Group, loss_of: Callable[[Any], Any]) -> Loss:
    """Mean over pairs of the mean, over places where both have a token, of a function of the winner's lead there."""
    gain = logp - group.ref_logp
    both = group.mask[:, None] & group.mask[None, :]
    loss = jnp.where(both, loss_of(gain[:, None] - gain[None, :]), 0).sum(-1)
    return group.pair_mean(safe_divide(loss, both.sum(-1).astype(loss.dtype)))


def dpo_per_token(logp: Logp, group: Group, *, beta: Hyper = BETA) -> Loss:
    """DPO on every token of the winner against the loser's token at the same place, as in the paper's released code.

    L = -mean over pairs, over places t that both have, log sigmoid(beta (gain_w,t - gain_l,t))

    Tokens beyond the end of the shorter response feel nothing.
    """
    return _by_places(logp, group, lambda lead: -log_sigmoid(beta * lead))


def ipo_per_token(logp: Logp, group: Group, *, beta: Hyper = BETA) -> Loss:
    """IPO on every token of the winner against the loser's token at the same place.

    L = mean over pairs, over places t that both have, (gain_w,t - gain_l,t - 1 / (2 beta))^2
    """
    return _by_places(logp, group, lambda lead: (lead - 0.5 / beta) ** 2)


# --- methods ---------------------------------------------------------------------------------------------------------
class Recipe(NamedTuple):
    """How a method learns.

    Attributes:
        objective: hyper-parameters keep their defaults.
        data: "pairs", "several" (N responses to a prompt with rewards), or "own" (the learner's responses).
        kind: its learning rate is that of its kind.
        reuse: passes over a collection of responses of its own.
    """

    objective: Objective
    data: str
    kind: str
    reuse: int = 1


def _recipe(objective: str | Callable[..., Any], data: str, kind: str, reuse: int = 1) -> Recipe:
    # Made once: programs are compiled for each objective, not for each equal function.
    made = as_objective(objective, family="preference") if callable(objective) else get_objective(objective)
    return Recipe(made, data, kind, reuse)


RECIPES: dict[str, Recipe] = {
    "pref_ft offline": _recipe("pref_ft", "pairs", "imitation, offline"),
    "best_of_n offline": _recipe("best_of_n", "several", "imitation, offline"),
    "dpo offline": _recipe("dpo", "pairs", "pairs, offline"),
    "ipo offline": _recipe("ipo", "pairs", "pairs, offline"),
    "dpo_per_token offline": _recipe(dpo_per_token, "pairs", "pairs, offline"),
    "ipo_per_token offline": _recipe(ipo_per_token, "pairs", "pairs, offline"),
    "rwr on-policy": _recipe("rwr", "own", "imitation, on-policy"),
    "best_of_n on-policy": _recipe("best_of_n", "own", "imitation, on-policy"),
    "ppo_clip on-policy": _recipe("ppo_clip", "own", "policy gradient", reuse=4),
    "reinforce_running on-policy": _recipe("reinforce_running", "own", "policy gradient"),
    "grpo on-policy": _recipe("grpo", "own", "policy gradient", reuse=2),
    "dpo on-policy": _recipe("dpo", "own", "pairs, on-policy"),
}
# The best of GRID for the first method of each kind: mean true reward after the full number of steps on all problems,
# learnt from the reward model (`--tune`). For pairs on-policy 8e-4 ties.
GRID = (5e-5, 2e-4, 8e-4, 3.2e-3, 1.28e-2)
TUNING_SEEDS = (100, 101)
RATES: dict[str, float] = {
    "imitation, offline": 8e-4,
    "pairs, offline": 2e-4,
    "imitation, on-policy": 8e-4,
    "policy gradient": 3.2e-3,
    "pairs, on-policy": 3.2e-3,
}
# At their best rates many methods reach the best length. At this one none does within the steps.
SLOW = GRID[0]


# --- texts -----------------------------------------------------------------------------------------------------------
def make_tokenizer() -> Any:
    """One token for each character."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *TOPICS, *LETTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def chains() -> np.ndarray:
    """[topic, letter, letter]: probabilities of the next letter. Every topic has 12 letters of its own choice."""
    rng = np.random.default_rng(0)
    size = len(LETTERS)
    made = np.zeros((len(TOPICS), size, size))
    for topic in made:
        letters = rng.choice(size, 12, replace=False)
        topic[:, letters] = rng.dirichlet(np.full(12, 0.3), size)
    return made


def text_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of tokens, the end token left out: normal around 16 with deviation 4, rounded, from 2 to 32."""
    return np.clip(np.rint(rng.normal(MODE, SPREAD, size)), SHORTEST, LONGEST).astype(int)


def texts(rng: np.random.Generator, size: int) -> list[dict[str, str]]:
    """prompt (topic and three letters), completion."""
    table, lengths = chains().cumsum(-1), PROMPT_LETTERS + text_lengths(rng, size)
    topics = rng.integers(len(TOPICS), size=size)
    letter = rng.integers(len(LETTERS), size=size)
    walk = []
    for _ in range(lengths.max()):
        letter = np.minimum((table[topics, letter] < rng.random(size)[:, None]).sum(1), len(LETTERS) - 1)
        walk.append(letter)
    rows = ["".join(LETTERS[x] for x in row) for row in np.stack(walk, 1)]
    return [
        {"prompt": TOPICS[topic] + row[:PROMPT_LETTERS], "completion": row[PROMPT_LETTERS:length]}
        for topic, row, length in zip(topics, rows, lengths, strict=True)
    ]


# --- problems --------------------------------------------------------------------------------------------------------
def gold(problem: str, length: int) -> float:
    """The true reward of a response of so many tokens, in units of 16 tokens; 0 is the best.

    Raises:
        ConfigError: no such problem.
    """
    check_choice("problem", problem, PROBLEMS)
    return -abs(length - MODE) / MODE if problem == "mode" else -length / MODE


def shown_as(problem: str, length: float | np.ndarray) -> Any:
    """What the figures show of lengths: tokens, or on mode the distance from 16 tokens."""
    return np.abs(np.subtract(length, MODE)) if problem == "mode" else np.asarray(length)


def cut_short(rng: np.random.Generator, text: str) -> str:
    """The beginning of a response; at least one letter, and exponentially seldom more."""
    return text[: 1 + int(rng.exponential(CUT))]


def several(problem: str, asked: Sequence[str], said: Sequence[Sequence[str]], seed: int) -> list[dict[str, Any]]:
    """prompt, completions, rewards: the reference's responses as the problem shows and judges them."""
    rng = np.random.default_rng([seed, 7])
    shown = [[cut_short(rng, text) for text in row] if problem == "skew" else list(row) for row in said]
    return [
        {"prompt": prompt, "completions": row, "rewards": [gold(problem, len(text)) for text in row]}
        for prompt, row in zip(asked, shown, strict=True)
    ]


def pairs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """prompt, chosen, rejected: the first two responses of every row whose rewards differ."""
    found = []
    for row in rows:
        judged = list(zip(row["rewards"], row["completions"], strict=True))
        other = next((one for one in judged[1:] if one[0] != judged[0][0]), None)
        if other is not None:
            (_, rejected), (_, chosen) = sorted([judged[0], other])
            found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return found


def distinct_pairs(asked: Sequence[str], said: Sequence[Sequence[str]], seed: int) -> list[dict[str, str]]:
    """prompt, chosen, rejected: a response to the prompt against one to a prompt on another topic."""
    rng = np.random.default_rng([seed, 8])
    found = []
    for prompt, row in zip(asked, said, strict=True):
        other = int(rng.integers(len(asked)))
        while asked[other][0] == prompt[0]:
            other = int(rng.integers(len(asked)))
        found.append({"prompt": prompt, "chosen": row[0], "rejected": said[other][1]})
    return found


def shuffled(rows: Iterable[Mapping[str, str]], seed: int) -> list[dict[str, str]]:
    """Pairs whose labels say nothing."""
    rng = np.random.default_rng([seed, 9])
    swap = {"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"}
    return [{name: row[swap[name] if flip else name] for name in swap} for row, flip in
            ((row, rng.random() < 0.5) for row in rows)]  # fmt: skip


# --- reference and reward models -------------------------------------------------------------------------------------
class World(NamedTuple):
    """What all runs of one seed share: the reference, its responses to prompts of both sets, fitted reward models."""

    model: Any
    tokenizer: Any
    prompts: list[str]
    said: list[list[str]]
    held_prompts: list[str]
    held_said: list[list[str]]
    rewards: dict[str, Callable[..., list[float]]]

    def texts(self, held: bool) -> tuple[list[str], list[list[str]]]:
        """Prompts for training or held out, and the reference's responses."""
        return (self.held_prompts, self.held_said) if held else (self.prompts, self.said)

    def data(self, problem: str, held: bool = False) -> list[dict[str, Any]]:
        """`several` of the problem's training or held-out prompts."""
        return several(problem, *self.texts(held), int(held))

    def pairs(self, problem: str, held: bool = False) -> list[dict[str, str]]:
        """The problem's pairs; of "distinct" too."""
        if problem == "distinct":
            return distinct_pairs(*self.texts(held), int(held))
        return pairs(self.data(problem, held))


def _train(
    model: Any, objective: str | Objective, tokenizer: Any, data: list[dict[str, Any]], scale: Scale,
    options: Mapping[str, Any], funcs: Any = None, callbacks: Sequence[Any] = (),
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        args = PFTConfig(
            out, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=scale.every,
            **{"per_device_train_batch_size": scale.prompts, "lr_scheduler_type": "constant", **options},
        )  # fmt: skip
        trainer = PFTTrainer(
            model, objective, args=args, train_dataset=data, processing_class=tokenizer, reward_funcs=funcs,
            callbacks=list(callbacks),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def _new_model(tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, activation_function="gelu", bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def respond(model: Any, tokenizer: Any, prompts: Sequence[str], number: int, seed: Sequence[int]) -> list[list[str]]:
    """`number` responses to every prompt."""
    config = transformers.GenerationConfig(
        max_new_tokens=ROOM, do_sample=True, top_k=0, num_return_sequences=number,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=[tokenizer.eos_token_id],
    )  # fmt: skip
    ids = [tokenizer(text=prompt)["input_ids"] for prompt in prompts]
    found = draw(model, ids, number, config, seed)
    return [[tokenizer.decode(one, skip_special_tokens=True) for one in group] for group in found]


def fit_reward(
    sft: Any, tokenizer: Any, rows: Sequence[Mapping[str, str]], steps: int, seed: int
) -> transformers.GPT2ForSequenceClassification:
    """A reward model that starts as the reference, fitted to pairs by Bradley-Terry maximum likelihood."""
    torch.manual_seed(seed)
    config = copy.deepcopy(sft.config)
    config.num_labels = 1
    model = transformers.GPT2ForSequenceClassification(config)
    model.transformer.load_state_dict(sft.transformer.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rng = np.random.default_rng([seed, 3])
    for _ in range(steps):
        batch = [rows[i] for i in rng.integers(len(rows), size=64)]
        both = [row["prompt"] + row[name] for name in ("chosen", "rejected") for row in batch]
        inputs = tokenizer(both, return_tensors="pt", padding=True, padding_side="right")
        chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False).eval()


def make_world(seed: int, scale: Scale, folder: Path) -> dict[str, float]:
    """Train and keep what all runs of one seed share; returns what is told of it."""
    tokenizer, rng = make_tokenizer(), np.random.default_rng([seed, 1])
    model = _new_model(tokenizer, seed)
    options = {"max_steps": scale.sft_steps, "learning_rate": 3e-3, "seed": seed, "lr_scheduler_type": "cosine",
               "per_device_train_batch_size": 64}  # fmt: skip
    _train(model, "sft", tokenizer, texts(rng, scale.sft_rows), scale, options)
    asked = [row["prompt"] for row in texts(rng, scale.rows + scale.held_out)]
    said = respond(model, tokenizer, asked, N, [seed, 2])
    kept = {"prompts": asked[: scale.rows], "said": said[: scale.rows],
            "held_prompts": asked[scale.rows :], "held_said": said[scale.rows :]}  # fmt: skip
    place = folder / str(seed)
    clean = transformers.GPT2LMHeadModel(model.config)
    clean.load_state_dict(model.state_dict())
    clean.save_pretrained(place / "sft")
    length = np.array([[len(text) for text in row] for row in kept["held_said"]])
    told = {"seed": seed, "length": float(length.mean()), "deviation": float(length.std())}
    moments = {}
    for problem in PROBLEMS:
        rows = pairs(several(problem, kept["prompts"], kept["said"], 0))
        fitted = fit_reward(clean, tokenizer, rows, scale.rm_steps, seed)
        torch.save(fitted.state_dict(), place / f"{problem}.pt")
        raw = classifier(fitted, tokenizer)
        flat = [(p, text) for p, row in zip(kept["held_prompts"], kept["held_said"], strict=True) for text in row]
        found = np.array(raw(prompts=[p for p, _ in flat], completions=[text for _, text in flat]))
        true = np.array([gold(problem, len(text)) for _, text in flat])
        # In the unit of the true reward, so that RWR's temperature means the same.
        moments[problem] = [float(found.mean()), float(found.std()), float(true.mean()), float(true.std())]
        held = pairs(several(problem, kept["held_prompts"], kept["held_said"], 1))
        score = lambda name, raw=raw, held=held: np.array(raw(
            prompts=[row["prompt"] for row in held], completions=[row[name] for row in held]))  # fmt: skip
        told[f"accuracy {problem}"] = float((score("chosen") > score("rejected")).mean())
        told[f"correlation {problem}"] = float(np.corrcoef(found, true)[0, 1])
    write_file(place / "kept.json", json.dumps({**kept, "moments": moments}).encode())
    return told


@functools.lru_cache(maxsize=4)
def load_world(seed: int, folder: Path) -> World:
    """What `make_world` kept."""
    place, tokenizer = folder / str(seed), make_tokenizer()
    kept = json.loads((place / "kept.json").read_text(encoding="utf-8"))
    model = transformers.GPT2LMHeadModel.from_pretrained(place / "sft").eval()

    def reward(problem: str) -> Callable[..., list[float]]:
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        fitted = transformers.GPT2ForSequenceClassification(config)
        fitted.load_state_dict(torch.load(place / f"{problem}.pt", weights_only=True))
        raw, (mean, deviation, to_mean, to_deviation) = classifier(fitted.eval(), tokenizer), kept["moments"][problem]

        def reward_model(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            found = np.array(raw(prompts=prompts, completions=completions))
            return (to_mean + to_deviation * (found - mean) / max(deviation, 1e-6)).tolist()

        return reward_model

    rewards = {problem: reward(problem) for problem in PROBLEMS}
    return World(model, tokenizer, kept["prompts"], kept["said"], kept["held_prompts"], kept["held_said"], rewards)


# --- one run ---------------------------------------------------------------------------------------------------------
class Job(NamedTuple):
    """One run. `labels` may be "shuffled"; `reward` is what responses of the learner's own are judged by."""

    problem: str
    method: str
    reward: str
    seed: int
    rate: float
    labels: str = "true"


class Recorder(transformers.TrainerCallback):
    """The learner's true lengths on held-out prompts, and its implicit rewards on fixed pairs."""

    def __init__(self, job: Job, world: World, scale: Scale):
        self.job, self.world, self.scale = job, world, scale
        self.history: dict[str, list[float]] = {}
        self.parts = {}
        tokenizer = world.tokenizer
        encode = lambda text: tokenizer(text=text)["input_ids"]
        if RECIPES[job.method].data != "own":
            rows = world.pairs(job.problem)[:64]
            for side in SIDES:
                done = [[*encode(row[side]), tokenizer.eos_token_id] for row in rows]
                self.parts[side] = pack([encode(row["prompt"]) for row in rows], done)
        reference = copy.deepcopy(world.model)
        make_scorable(reference)
        self.reference = {key: self._logps(reference, part) for key, part in self.parts.items()}

    @staticmethod
    @torch.no_grad()
    def _logps(model: Any, part: Any) -> np.ndarray:
        with evaluating(model):
            return token_logps(model, part).sum(1).numpy()

    def measure(self, model: Any, step: int) -> None:
        """One entry of the history."""
        job, world, scale = self.job, self.world, self.scale
        number = scale.final if step == scale.steps else scale.samples
        asked = world.held_prompts[: max(1, number // N)]
        said = respond(model, world.tokenizer, asked, N, [job.seed, 4, step])
        flat = [text for row in said for text in row]
        length = np.array([len(text) for text in flat])
        found = {"step": step, "length": length.mean(), "shown": shown_as(job.problem, length).mean()}
        if job.problem in PROBLEMS:
            found["gold"] = np.mean([gold(job.problem, n) for n in length.tolist()])
            found["proxy"] = np.mean(world.rewards[job.problem]([p for p in asked for _ in range(N)], flat))
        for side, part in self.parts.items():
            found[side] = (BETA * (self._logps(model, part) - self.reference[side])).mean()
        for key, value in found.items():
            self.history.setdefault(key, []).append(round(float(value), 5))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.measure(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.scale.every == 0 or state.global_step == self.scale.steps:
            self.measure(model, state.global_step)


def learn(job: Job, scale: Scale, folder: Path) -> dict[str, Any]:
    """Run one method on one problem."""
    begun = time.process_time()
    recipe, world = RECIPES[job.method], load_world(job.seed, folder)
    funcs: Any = None
    options: dict[str, Any] = {}
    if recipe.data == "own":
        data: list[dict[str, Any]] = [{"prompt": prompt} for prompt in world.prompts]
        true = lambda completions, **_: [gold(job.problem, len(text)) for text in completions]
        funcs = true if job.reward == GOLD else world.rewards[job.problem]
        options = {"num_generations": N, "num_iterations": recipe.reuse, "max_completion_length": ROOM}
    elif recipe.data == "several":
        data = world.data(job.problem)
    else:
        data = world.pairs(job.problem)
        data = shuffled(data, job.seed) if job.labels == "shuffled" else data
        options = {"precompute_ref_log_probs": True, "per_device_eval_batch_size": 64}
    recorder = Recorder(job, world, scale)
    options |= {"max_steps": scale.steps, "learning_rate": job.rate, "seed": job.seed}
    model = copy.deepcopy(world.model)
    _train(model, recipe.objective, world.tokenizer, data, scale, options, funcs, [recorder])
    return {**job._asdict(), "seconds": round(time.process_time() - begun, 1), "history": recorder.history}


def prepare_process() -> None:
    """One thread, because each learner is far too small for two, and no bars."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


# --- all runs --------------------------------------------------------------------------------------------------------
def jobs(scale: Scale, methods: Sequence[str]) -> list[Job]:
    """Every run of the experiment, seed by seed, the longest first."""
    found = []
    for method in methods:
        rate = RATES[RECIPES[method].kind]
        own = RECIPES[method].data == "own"
        for problem in PROBLEMS:
            for seed in scale.seeds:
                if own:
                    found.append(Job(problem, method, PROXY, seed, rate))
                # The true reward of skew is that of min, and the learner's own responses are not cut.
                if not own or (method in COMPARED and problem != "skew"):
                    found.append(Job(problem, method, GOLD, seed, rate))
        for seed in scale.seeds:
            if method in ("pref_ft offline", "dpo offline"):
                found.append(Job("distinct", method, GOLD, seed, rate))
            if method in COMPARED:
                found += [Job("min", method, reward, seed, SLOW) for reward in (REGIMES if own else REGIMES[:1])]
            if method == "dpo offline":
                found.append(Job("min", method, GOLD, seed, rate, "shuffled"))
    return sorted(found, key=lambda job: (job.seed, RECIPES[job.method].data != "own"))


def run_all(todo: Sequence[Job], scale: Scale, workers: int) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """What is told of the references and reward models, and every run's record."""
    seeds = sorted({job.seed for job in todo})
    pool: Any = contextlib.nullcontext()
    if workers > 1:
        pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_process
        )
    with pool as made, tempfile.TemporaryDirectory() as name:
        apply = made.map if made else map
        folder = Path(name)
        told = list(apply(functools.partial(make_world, scale=scale, folder=folder), seeds))
        records = []
        for record in apply(functools.partial(learn, scale=scale, folder=folder), todo):
            records.append(record)
            last = record["history"]["length"][-1]
            print(f"{len(records):4}/{len(todo)} {record['problem']:8} {record['method']:28} {record['reward']:12} "
                  f"seed {record['seed']} rate {record['rate']:g}: {last:5.2f} tokens, {record['seconds']} s",
                  file=sys.stderr, flush=True)  # fmt: skip
    # The same run under another name.
    also = [{**r, "problem": "skew"} for r in records
            if r["problem"] == "min" and r["reward"] == GOLD and RECIPES[r["method"]].data == "own"]  # fmt: skip
    return told, records + also


def tune(scale: Scale, workers: int) -> list[str]:
    """Lines that tell the mean true reward of each kind's first method at the rates of GRID."""
    first = {kind: next(name for name, recipe in RECIPES.items() if recipe.kind == kind) for kind in RATES}
    todo = [Job(problem, method, PROXY, seed, rate) for seed in TUNING_SEEDS for rate in GRID
            for method in first.values() for problem in PROBLEMS]  # fmt: skip
    records = run_all(todo, scale, workers)[1]
    lines = []
    for kind, method in first.items():
        mean = {rate: np.mean([r["history"]["gold"][-1] for r in records if (r["method"], r["rate"]) == (method, rate)])
                for rate in GRID}  # fmt: skip
        best = max(mean, key=lambda rate: mean[rate])
        lines.append(f"{kind}: {best:g}  (" + ", ".join(f"{rate:g}: {value:.3f}" for rate, value in mean.items()) + ")")
    return lines


# --- what would confirm the claims -----------------------------------------------------------------------------------
# The paper's lengths are around 200 tokens, where it calls 1 token a tie and 3 a difference; here they are around 16.
SCALED = MODE / 200
TIE, GAP = 1 * SCALED, 3 * SCALED
REGIMES = (GOLD, PROXY)


class Criterion(NamedTuple):
    """A measure's mean over seeds lies between two bounds, under one of the claim's conditions.

    Attributes:
        control: this shows that the experiment can tell, not that the claim holds.
    """

    claim: str
    where: str
    measure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    control: bool = False

    def __str__(self) -> str:
        low = [f"≥ {self.at_least:g}"] if self.at_least > -math.inf else []
        high = [f"≤ {self.at_most:g}"] if self.at_most < math.inf else []
        return f"{self.measure} {' and '.join(low + high)}"


SAYS = {
    "C26a": "Min Length, final tokens: on-policy DPO ≤ offline DPO ≤ PPO ≤ RWR.",
    "C26b": "Skew Length, final tokens: on-policy DPO ≤ offline DPO ≤ PPO ≤ RWR.",
    "C26c": "Mode Length: all methods end at about the same distance from the mode.",
    "C26d": "The same order in speed: mean tokens along training, on-policy DPO ≤ offline DPO ≤ PPO ≤ RWR.",
    "C26e": f"Min Length at the smallest rate of the grid, {SLOW:g}: the same order of final tokens.",
    "C29a": "Pref-FT raises the implicit rewards of chosen and rejected responses.",
    "C29b": "DPO lowers both where the responses of a pair are alike and the model is small.",
    "C29c": "DPO raises the chosen and lowers the rejected where the responses of a pair are distinct.",
    "B1": "DPO per token, as in the paper's released code, ends where DPO of whole responses ends.",
}
# Difference of two methods' lengths, and the least that confirms.
ORDER = (
    ("offline DPO - on-policy DPO", "dpo offline", "dpo on-policy", -TIE),
    ("PPO - offline DPO", "ppo_clip on-policy", "dpo offline", 0.0),
    ("RWR - PPO", "rwr on-policy", "ppo_clip on-policy", GAP),
)
SIDES = ("chosen", "rejected")
COMPARED = tuple(dict.fromkeys(method for _, a, b, _ in ORDER for method in (a, b)))
ALIKE = ("min", "mode", "skew")
CRITERIA = (
    *(Criterion(key, where, f"{name} on {problem}", at_least=least)
      for key, problem in (("C26a", "min"), ("C26b", "skew")) for where in REGIMES for name, _, _, least in ORDER),
    *(Criterion(key, "", "reference's tokens", MODE - 1, MODE + 1, control=True) for key in ("C26a", "C26b", "C26c")),
    Criterion("C26a", "", "offline DPO on min, shuffled labels", 0.75 * MODE, 1.25 * MODE, control=True),
    *(Criterion("C26c", where, "largest - smallest distance of the four", at_most=0.15 * MODE) for where in REGIMES),
    *(Criterion("C26d", f"{where}, {problem}", f"along training, {name} on {problem}", at_least=least)
      for problem in ("min", "skew") for where in REGIMES for name, _, _, least in ORDER),
    *(Criterion("C26e", where, f"at {SLOW:g}, {name} on min", at_least=least)
      for where in REGIMES for name, _, _, least in ORDER),
    *(Criterion("C29a", f"{problem} pairs", f"Pref-FT's {side} on {problem}", at_least=1e-9)
      for problem in ALIKE for side in SIDES),
    *(Criterion("C29b", f"{problem} pairs", f"DPO's {side} on {problem}", at_most=-1e-9)
      for problem in ALIKE for side in SIDES),
    Criterion("C29c", "", "DPO's chosen on distinct", at_least=1e-9),
    Criterion("C29c", "", "DPO's rejected on distinct", at_most=-1e-9),
    *(Criterion("B1", f"{problem} pairs", f"DPO per token - DPO on {problem}, tokens", -GAP, GAP) for problem in ALIKE),
)  # fmt: skip


def select(
    records: Iterable[Mapping[str, Any]], problem: str, method: str, reward: str, what: str, rate: float | None = None
) -> np.ndarray:  # fmt: skip
    """[seed, evaluation]: one entry of the histories. Offline methods see no reward, so they are found under any.

    Args:
        rate: default that of the method's kind.
    """
    own = RECIPES[method].data == "own"
    rate = RATES[RECIPES[method].kind] if rate is None else rate
    found = [r for r in records if r["problem"] == problem and r["method"] == method and r["labels"] == "true"
             and r["rate"] == rate
             and (not own or r["reward"] == reward)]  # fmt: skip
    return np.array([r["history"][what] for r in sorted(found, key=lambda r: r["seed"])], float)


def measures(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    """(condition, measure) -> one value for each seed; what was not run is left out."""
    found: dict[tuple[str, str], np.ndarray] = {}

    def note(where: str, name: str, value: Callable[..., np.ndarray], *parts: np.ndarray) -> None:
        if all(part.size for part in parts):
            found[where, name] = value(*parts)

    last = lambda *x: x[0][:, -1] if len(x) == 1 else x[0][:, -1] - x[1][:, -1]
    along = lambda a, b: a.mean(1) - b.mean(1)
    for where in REGIMES:
        get = lambda problem, method, where=where: select(records, problem, method, where, "shown")
        for problem in ("min", "skew"):
            for name, a, b, _ in ORDER:
                both = get(problem, a), get(problem, b)
                note(where, f"{name} on {problem}", last, *both)
                note(f"{where}, {problem}", f"along training, {name} on {problem}", along, *both)
        four = [get("mode", method) for method in COMPARED]
        note(where, "largest - smallest distance of the four", lambda *x: np.ptp([one[:, -1] for one in x], 0), *four)
        for name, a, b, _ in ORDER:
            note(where, f"at {SLOW:g}, {name} on min", last,
                 *(select(records, "min", method, where, "shown", SLOW) for method in (a, b)))  # fmt: skip
    for method, name in (("pref_ft offline", "Pref-FT"), ("dpo offline", "DPO")):
        for problem in (*ALIKE, "distinct"):
            where = "" if problem == "distinct" else f"{problem} pairs"
            for side in SIDES:
                note(where, f"{name}'s {side} on {problem}", last, select(records, problem, method, GOLD, side))
    for problem in ALIKE:
        pair = (select(records, problem, f"{name} offline", GOLD, "length") for name in ("dpo_per_token", "dpo"))
        note(f"{problem} pairs", f"DPO per token - DPO on {problem}, tokens", last, *pair)
    first = {r["seed"]: r["history"]["length"][0] for r in records}
    found["", "reference's tokens"] = np.array([first[seed] for seed in sorted(first)])
    noise = [r["history"]["length"][-1] for r in records if r["labels"] == "shuffled"]
    if noise:
        found["", "offline DPO on min, shuffled labels"] = np.array(noise)
    return found


def judge(found: Mapping[tuple[str, str], np.ndarray]) -> list[dict[str, Any]]:
    """A row for every claim: its criteria with what was measured, and the verdict that follows."""
    rows = []
    for key, says in SAYS.items():
        judged = []
        for one in (c for c in CRITERIA if c.claim == key):
            values = found.get((one.where, one.measure), np.array([]))
            mean = float(values.mean()) if values.size else math.nan
            half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else 0.0
            low, high = mean - half, mean + half
            judged.append({
                "criterion": str(one), "where": one.where, "control": one.control, "mean": mean, "low": low,
                "high": high, "seeds": len(values), "holds": bool(one.at_least <= mean <= one.at_most),
                "near": any(low < bound < high for bound in (one.at_least, one.at_most)),
            })  # fmt: skip
        asked = [j for j in judged if not j["control"]]
        places = list(dict.fromkeys(j["where"] for j in asked))
        sound = all(j["holds"] for j in judged if j["control"])
        good = [place for place in places if sound and all(j["holds"] for j in asked if j["where"] == place)]
        verdict = "reproduces" if good == places else "depends on" if good else "does not reproduce"
        if any(not j["seeds"] for j in judged):
            verdict = "not measured"
        rows.append({"claim": key, "says": says, "verdict": verdict, "holds_where": good, "criteria": judged})
    return rows


# --- what is written -------------------------------------------------------------------------------------------------
SHORT = {"dpo_per_token offline": "DPO per token", "ipo_per_token offline": "IPO per token",
         "pref_ft offline": "Pref-FT",
         "reinforce_running on-policy": "REINFORCE", "ppo_clip on-policy": "PPO-clip", "rwr on-policy": "RWR",
         "grpo on-policy": "GRPO"}  # fmt: skip


def label(method: str) -> str:
    """A method's name; the regime comes first where both exist."""
    head, _, regime = method.partition(" ")
    return SHORT.get(method) or f"{regime} {style.label(head)}"


def _cell(values: np.ndarray) -> str:
    return f"{values[:, -1].mean():.2f} ± {values[:, -1].std():.2f}" if values.size else "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _told(one: Mapping[str, Any]) -> str:
    where = "*control* " if one["control"] else f"*{one['where']}* " if one["where"] else ""
    spread = f" [{one['low']:.3f}, {one['high']:.3f}]" if one["seeds"] > 1 else ""
    number = f"{one['mean']:.3f}{spread} ({one['seeds']} seed{'s' if one['seeds'] > 1 else ''})"
    mark = ("✓" if one["holds"] else "✗") + ("~" if one["near"] else "")
    return f"{where}{one['criterion']}: " + (f"{mark} {number}" if one["seeds"] else "not measured")


def verdict_text(row: Mapping[str, Any]) -> str:
    """The verdict in words, with the conditions under which the claim holds."""
    if row["verdict"] == "depends on":
        return f"depends on the condition: holds with {'; '.join(row['holds_where'])}"
    return row["verdict"]


def markdown(
    rows: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, float]], records: Sequence[Mapping[str, Any]],
    scale: Scale, seconds: float,
) -> str:  # fmt: skip
    """Verdicts, final lengths, reward models against the truth, and implicit rewards."""
    wanted = set(jobs(scale, list(RECIPES)))
    done = {Job(*(r[name] for name in Job._fields)) for r in records}
    used = [method for method in RECIPES if any(r["method"] == method for r in records)]
    number = len(scale.seeds)
    final = lambda m, p, r: "" if r == PROXY and RECIPES[m].data != "own" else _cell(select(records, p, m, r, "shown"))
    lengths = [[label(m), *(final(m, p, r) for p in PROBLEMS for r in REGIMES)] for m in used]
    models = [[str(one["seed"]), f"{one['length']:.2f} ± {one['deviation']:.2f}",
               *(f"{one[f'accuracy {p}']:.3f}, {one[f'correlation {p}']:.2f}" for p in PROBLEMS)]
              for one in told]  # fmt: skip
    proxy = [[label(m), TITLES[p], *(_cell(select(records, p, m, PROXY, what)) for what in ("proxy", "gold")),
              _cell(select(records, p, m, GOLD, "gold"))]
             for m in used if RECIPES[m].data == "own" for p in PROBLEMS]  # fmt: skip
    implicit = [[label(m), TITLES[p], *(_cell(select(records, p, m, GOLD, side)) for side in SIDES)]
                for m in RECIPES if RECIPES[m].data == "pairs" for p in (*PROBLEMS, "distinct")
                if select(records, p, m, GOLD, "length").size]  # fmt: skip
    rates = [[kind, f"{rate:g}", ", ".join(label(m) for m in RECIPES if RECIPES[m].kind == kind)]
             for kind, rate in RATES.items()]  # fmt: skip
    return "\n".join([
        "# The length problems on a small language model",
        "",
        f"Written by `python -m bandit_pft.hf.length_problems`. A GPT-2 of 0.1 M parameters, {scale.steps} gradient "
        f"steps of {scale.prompts} prompts, {number} seed{'s' if number > 1 else ''}; learners of their own responses "
        f"draw {N} to each prompt, PPO-clip goes over them {RECIPES['ppo_clip on-policy'].reuse} times and GRPO "
        f"{RECIPES['grpo on-policy'].reuse} times. Hyper-parameters are the package's defaults, and Adam's rate is "
        "constant. Lengths are tokens without the end token. ✓ the criterion holds, ✗ it does not, ~ its bound lies "
        "inside the 95 % confidence interval (Student's t) in brackets. Criteria stand in the code: those of C26a to c "
        f"and C29 were set first, C26d and C26e after a pilot, which also led to fewer steps and rows, and B1 after a "
        f"full run. Theirs of 1 and 3 tokens at lengths around 200 are {TIE:g} and {GAP:g} tokens here.",
        "",
        *([f"**Unfinished: {len(done & wanted)} of {len(wanted)} runs.**", ""] if wanted - done else []),
        "![length problems](length_problems.png)",
        "",
        "## Verdicts",
        "",
        *_table(["claim", "statement", "criterion: measured", "verdict"],
                [[row["claim"], row["says"], "<br>".join(map(_told, row["criteria"])), f"**{verdict_text(row)}**"]
                 for row in rows]),
        "",
        "## Where they end",
        "",
        "Tokens, on mode the mean distance from 16; ± is the standard deviation over seeds. Skew with the true reward "
        "is min: only data are cut short, not what a learner writes.",
        "",
        *_table(["method", *(f"{p}, {r}" for p in PROBLEMS for r in REGIMES)], lengths),
        "",
        "## The reward model and the truth",
        "",
        f"Trained on the pairs for {scale.rm_steps} steps, and shifted and scaled to the true reward's mean and "
        "deviation on the reference's responses. Accuracy on held-out pairs, and correlation with the true reward on "
        "the reference's responses:",
        "",
        *_table(["seed", "reference's tokens", *PROBLEMS], models),
        "",
        "What learners of the reward model are worth by it and in truth, and those that saw the truth:",
        "",
        *_table(["method", "problem", "reward model says", "true", "true, learnt from the truth"], proxy),
        "",
        "## Implicit rewards",
        "",
        f"{BETA:g} (log π - log π_ref) of whole responses at the end, mean over 64 training pairs.",
        "",
        *_table(["method", "pairs", *SIDES], implicit),
        "",
        "## Learning rates",
        "",
        f"One for each kind of method and all problems: the best of {', '.join(f'{rate:g}' for rate in GRID)} for the "
        f"kind's first method by the mean true reward at the end, on seeds {' and '.join(map(str, TUNING_SEEDS))}, "
        "which are not used here (`--tune`).",
        "",
        *_table(["kind", "rate", "methods"], rates),
        "",
        "## Beware",
        "",
        f"Every order depends on the rate, and C26e shows another. The longest response has {ROOM} tokens: an offline "
        "DPO that ends there has fallen apart. "
        "PPO-clip collects less often than RWR, because it goes over each collection more than once.",
        "",
        f"{len(done & wanted)} runs in {seconds / 60:.0f} minutes.",
        "",
    ])  # fmt: skip


DRAWN = ("pref_ft offline", "best_of_n offline", "dpo offline", "best_of_n on-policy", "rwr on-policy",
         "reinforce_running on-policy", "ppo_clip on-policy", "grpo on-policy", "dpo on-policy")  # fmt: skip


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], right: float, line: float) -> None:
    """Names beside the ends of lines, moved apart to `line` of the axes' height, in the lines' order."""
    low, high = axes.get_ylim()
    wanted = sorted(ends)
    places = [(value - low) / (high - low) for value, _, _ in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    over = max(0.0, places[-1] - 1.0)
    for i in reversed(range(len(places))):
        top = 1.0 if i == len(places) - 1 else places[i + 1] - line
        places[i] = min(places[i], top) if over else places[i]
    for place, (value, name, colour) in zip(places, wanted, strict=True):
        axes.annotate(
            name, (right, value), (1.06, place), textcoords="axes fraction", color=colour, fontsize=14, va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip


def picture(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Lengths against gradient steps on each problem, and what happens to the implicit rewards."""
    shown = [method for method in DRAWN if any(r["method"] == method for r in records)]
    families = {method: RECIPES[method].objective.family for method in shown}
    dashes = style.line_styles(shown, families.values())
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(16, 11), layout=None)
        panels = figure.subplots(2, 2).ravel()
        figure.subplots_adjust(left=0.06, right=0.855, top=0.88, bottom=0.075, hspace=0.36, wspace=0.62)
        band = lambda axes, x, y, **look: (
            axes.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.15, lw=0),
            axes.plot(x, y.mean(0), **look),
        )  # fmt: skip
        for axes, problem in zip(panels, PROBLEMS, strict=False):
            ends = []
            for method in shown:
                y = select(records, problem, method, PROXY, "shown")
                if not y.size:
                    continue
                x, colour = select(records, problem, method, PROXY, "step")[0], style.colour(families[method])
                band(axes, x, y, color=colour, linestyle=(0, dashes[method] or (1, 0)))
                ends.append((float(y[:, -1].mean()), label(method), colour))
            axes.set_title(TITLES[problem], loc="left")
            axes.set_ylabel("distance from 16 (tokens)" if problem == "mode" else "length (tokens)")
            axes.set_xlabel("gradient steps")
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
            if ends:
                _label_ends(axes, ends, float(axes.get_xlim()[1]), 0.105)
        axes, ends = panels[3], []
        for method in ("pref_ft offline", "dpo offline"):
            for side, dash in (("chosen", (1, 0)), ("rejected", (2.5, 1.5))):
                y = select(records, "min", method, GOLD, side)
                if y.size:
                    colour = style.colour(RECIPES[method].objective.family)
                    band(axes, select(records, "min", method, GOLD, "step")[0], y, color=colour, linestyle=(0, dash))
                    ends.append((float(y[:, -1].mean()), f"{label(method)}, {side}", colour))
        axes.axhline(0, color=style.REFERENCE, lw=1.2)
        axes.set_title("Min Length: implicit reward of the pairs", loc="left")
        axes.set_ylabel(f"{BETA:g} (log π − log π_ref)")
        axes.set_xlabel("gradient steps")
        axes.margins(x=0)
        if ends:
            _label_ends(axes, ends, float(axes.get_xlim()[1]), 0.105)
        figure.suptitle(
            "Language model of 0.1 M parameters; on-policy methods learn from a reward model, lengths are true\n"
            "Lines: mean over seeds, bands: all seeds. Colours: "
            + ", ".join(f"{name} {colour}" for name, colour in
                        (("imitation", "blue"), ("policy gradient", "orange"), ("pairs", "green"))),
            x=0.06, ha="left", fontsize=17,
        )  # fmt: skip
    return figure


def write(
    told: Sequence[Mapping[str, float]], records: Sequence[Mapping[str, Any]], scale: Scale, seconds: float, out: Path
) -> list[dict[str, Any]]:
    """The picture, the table, and all numbers; returns the rows of the table."""
    rows = judge(measures(records))
    clean = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    plain = [{**row, "criteria": [{k: clean(v) for k, v in one.items()} for one in row["criteria"]]} for row in rows]
    kept = {"scale": dataclasses.asdict(scale), "rates": RATES, "seconds": round(seconds), "claims": plain,
            "worlds": list(told), "runs": list(records)}  # fmt: skip
    write_file(out / "length_problems.json", json.dumps(kept, ensure_ascii=False, allow_nan=False).encode())
    write_file(out / "length_problems.md", markdown(rows, told, records, scale, seconds).encode())
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style.RC):
        drawn = picture(records)
        for kind in ("png", "svg"):
            drawn.savefig(out / f"length_problems.{kind}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, and write length_problems.png, .md and .json."""
    parser = argparse.ArgumentParser(
        prog="python -m bandit_pft.hf.length_problems", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one seed and fewer steps")
    parser.add_argument("--tune", action="store_true", help="only print true rewards at each learning rate of the grid")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of what is written")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--methods", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), metavar="METHOD")
    options = parser.parse_args(argv)
    check_integer("workers", options.workers, at_least=1)
    if options.tune:
        print("\n".join(tune(FULL, options.workers)))
        return 0
    begun, scale = time.monotonic(), QUICK if options.quick else FULL
    told, records = run_all(jobs(scale, options.methods), scale, options.workers)
    for row in write(told, records, scale, time.monotonic() - begun, options.out):
        print(f"{row['claim']:5} {verdict_text(row)}: {row['says']}")
    return 0


if __name__ == "__main__":
    # Under the name by which other processes know it.
    from bandit_pft.hf.length_problems import main as _main

    sys.exit(_main())

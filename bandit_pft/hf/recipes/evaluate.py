"""What a policy became: gold reward, win rate, length, distance from the SFT model; and a picture of its training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from accelerate.utils import gather_object
from matplotlib.figure import Figure

from bandit_pft import style
from bandit_pft.hf.data import end_tokens, prompt_tokens
from bandit_pft.hf.rollout import as_answer, draw, sampling
from bandit_pft.hf.scoring import make_scorable, pack, token_logps


def mean(values: Any) -> dict[str, float]:
    """The mean of numbers, with its standard error over prompts."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "stderr": error}


def evaluate(
    model: Any, reference: Any, tokenizer: Any, prompts: Sequence[Any], judge: Callable[..., list[float]], args: Any
) -> dict[str, Any]:
    """One response of the model and one of the reference to every prompt, judged and compared.

    Args:
        prompts: text or conversations; every process takes its part of them.
        judge: called as a reward function, see `bandit_pft.hf.rollout.Judge`.
        args: a `PFTConfig`.

    Returns:
        gold_reward, reference_gold_reward, their difference `gain`, `win_rate` against the reference (a tie is half),
        `length` and `reference_length` in tokens with the end token, `log_ratio` = log pi - log pi_ref of the model's
        responses in nats, an estimate of KL(pi, pi_ref), each with mean and standard error over prompts; `unfinished`,
        the share of responses cut at max_completion_length; the first `samples`. The same on all processes.
    """
    models = [one.to(args.device).eval() for one in (model, reference)]
    for one in models:
        make_scorable(one)
    ends = end_tokens(tokenizer, model)
    config = sampling(args, ends)
    mine = list(range(len(prompts)))[args.process_index :: args.world_size]
    size, found = args.per_device_eval_batch_size, []
    for first in range(0, len(mine), size):
        places = mine[first : first + size]
        asked = [prompts[place] for place in places]
        ids = [prompt_tokens(tokenizer, prompt) for prompt in asked]
        said = []
        for who, one in enumerate(models):
            done = [group[0] for group in draw(one, ids, 1, config, [args.seed, places[0], who])]
            texts = [tokenizer.decode(row, skip_special_tokens=True) for row in done]
            answers = [as_answer(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
            said.append((done, texts, judge(prompts=asked, completions=answers, completion_ids=done)))
        rows = type(packed := pack(ids, said[0][0]))(*(x.to(args.device) for x in packed))
        with torch.no_grad():
            own, other = (token_logps(one, rows, args.temperature).sum(1).tolist() for one in models)
        for i, place in enumerate(places):
            found.append({
                "place": place, "prompt": asked[i], "response": said[0][1][i], "reference_response": said[1][1][i],
                "reward": said[0][2][i], "reference_reward": said[1][2][i], "length": len(said[0][0][i]),
                "reference_length": len(said[1][0][i]), "log_ratio": own[i] - other[i],
                "unfinished": said[0][0][i][-1] not in ends,
            })  # fmt: skip
    found = sorted(gather_object(found) if args.world_size > 1 else found, key=lambda row: row["place"])
    column = lambda name: np.array([row[name] for row in found], float)
    reward, other = column("reward"), column("reference_reward")
    return {
        "prompts": len(found),
        "gold_reward": mean(reward),
        "reference_gold_reward": mean(other),
        "gain": mean(reward - other),
        "win_rate": mean((reward > other) + (reward == other) / 2),
        "length": mean(column("length")),
        "reference_length": mean(column("reference_length")),
        "log_ratio": mean(column("log_ratio")),
        "unfinished": float(column("unfinished").mean()),
        "samples": found[:8],
    }


# --- the course of training ----------------------------------------------------------------------------------------
# Title, unit, and the curves with family and dashes.
PANELS: tuple[tuple[str, str, Mapping[str, tuple[str, str, int]]], ...] = (
    ("Reward of own responses", "reward", {
        "reward": ("training", "reward", 0), "eval_reward": ("held out", "reward", 1),
    }),
    ("Implicit reward", "beta log(pi / pi_ref)", {
        "rewards/chosen": ("chosen", "preference", 0), "rewards/rejected": ("rejected", "preference", 1),
    }),
    ("Length", "tokens", {"completions/mean_length": ("training", "supervised", 0)}),
    ("Accuracy on held-out pairs", "share", {"eval_accuracy": ("reward model", "unpaired", 0)}),
    ("Loss", "loss", {"loss": ("training", "penalty", 0), "eval_loss": ("held out", "penalty", 1)}),
)  # fmt: skip


def training_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """What the Trainer logged, a panel for each kind of number that is there."""
    logged = {name for row in history for name in row}
    if "kl" not in logged:
        # Without a reference, what goes by this name is no log-ratio.
        logged -= {"rewards/chosen", "rewards/rejected"}
    panels = [panel for panel in PANELS if logged & set(panel[2])]
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(1 + 5.5 * max(len(panels), 1), 4.5), layout="constrained")
        for axes, (title, unit, curves) in zip(np.ravel(figure.subplots(1, max(len(panels), 1))), panels, strict=False):
            for name, (label, family, dash) in curves.items():
                points = [(row["step"], row[name]) for row in history if name in row]
                if points:
                    # One point is no line.
                    look = {"color": style.colour(family), "marker": "o" if len(points) == 1 else ""}
                    line = axes.plot(*zip(*points, strict=True), label=label, **look)[0]
                    line.set_dashes(style.DASHES[dash]) if style.DASHES[dash] else None
            axes.set(title=title, ylabel=unit, xlabel="gradient steps")
            axes.legend(frameon=False)
    return figure


def plot_training(folder: Path) -> None:
    """`training.png` beside a finished training's `trainer_state.json`."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    with matplotlib.rc_context(style.RC):
        training_figure(history).savefig(folder / "training.png")

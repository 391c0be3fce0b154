"""Named comparisons: problems, methods and settings that show one claim of the paper each.

Source: Tajwar et al. (2024), "Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data". Where the
authors' runs differ between methods in learning rate or amount of data, these do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import xarray as xr

from bandit_pft.errors import ConfigError, nearest
from bandit_pft.methods import Method
from bandit_pft.policies import tabular_shared
from bandit_pft.probes import distribution_probe
from bandit_pft.problems import Problem, length_problem, paper_bandit, paper_sequences
from bandit_pft.sweep import sweep

CONTEXTS = 100
LENGTHS = ("min", "mode", "skew")
SEQUENCES = {"R6": "far peak", "R7": "near peak"}
TITLES = {"R4": "far peak (R4)", "R5": "near peak (R5)", "R8": "far, wide peak (R8)", "R9": "far, wider peak (R9)"}


class Preset(NamedTuple):
    """A comparison that `run_preset` runs.

    Attributes:
        claim: what is to be seen, in one sentence.
        steps: gradient steps. every: recorded at each of these.
    """

    claim: str
    problems: tuple[Problem, ...]
    methods: tuple[Method, ...]
    steps: int
    every: int


def problem_named(name: str, contexts: int = CONTEXTS) -> Problem:
    """A problem by its short name: the paper's R4 to R9, or the length problems min, mode and skew.

    Args:
        contexts: of the bandits; the paper's sequences have 100, the length problems 1.

    Raises:
        ConfigError: no such problem, with the nearest names.
    """
    if name in LENGTHS:
        return length_problem(name)
    if name in SEQUENCES:
        return paper_sequences(name)
    if name not in TITLES:
        raise ConfigError(f"no problem is named {name!r}: {nearest(name, (*TITLES, *SEQUENCES, *LENGTHS))}")
    return paper_bandit(name, contexts, key=jax.random.key(0))


def _titled(name: str) -> Problem:
    return dataclasses.replace(problem_named(name), name=TITLES[name])


def offline(objective: str, **settings: Any) -> Method:
    """Learns from 10 responses of the reference to each of 100 contexts, drawn once: 1,000 rewards."""
    return _method(objective, "offline", on_policy=0.0, prompts=CONTEXTS, **settings)


def on_policy(objective: str, **settings: Any) -> Method:
    """Learns from 10 responses of its own to each of 10 contexts, drawn anew for each step: 100 rewards a step."""
    return _method(objective, "on-policy", on_policy=1.0, prompts=10, **settings)


def _method(objective: str, regime: str, **settings: Any) -> Method:
    # One row of logits for all contexts: what is learnt in one context counts in all, as in the paper's network.
    name = f"{objective.removesuffix('_normalized')} {regime}"
    return Method(objective, name=name, policy=tabular_shared, **settings)


# IPO's target is a lead of 10 nats. Offline, pairs with nearly equal rewards are left out, as the authors do.
IPO: Mapping[str, Any] = {"hyper": {"beta": 0.05}}
GAP = 0.2


def headline() -> Preset:
    """Supervised, policy-gradient and contrastive learning, offline and on-policy, near and far peak."""
    return Preset(
        claim="Near the reference, imitating offline data is almost enough. Far from it, a contrastive loss gets "
        "further than Best-of-N on the same offline data, and on-policy sampling reaches the peak.",
        problems=(_titled("R5"), _titled("R4")),
        methods=(
            offline("best_of_n"),
            on_policy("best_of_n"),
            offline("reinforce_normalized"),
            on_policy("reinforce_normalized"),
            offline("ipo", min_gap=GAP, **IPO),
            on_policy("ipo", **IPO),
        ),
        steps=200,
        every=5,
    )


def misalignment() -> Preset:
    """Offline Best-of-N against offline IPO on the same data, from the near peak to the farthest."""
    return Preset(
        claim="The farther the peak from the reference, the more a contrastive loss gains over Best-of-N offline.",
        problems=tuple(_titled(name) for name in ("R5", "R9", "R8", "R4")),
        methods=(offline("best_of_n"), offline("ipo", min_gap=GAP, **IPO)),
        steps=200,
        every=5,
    )


PRESETS: Mapping[str, Callable[[], Preset]] = {"headline": headline, "misalignment": misalignment}


def preset_named(name: str) -> Preset:
    """A preset by name.

    Raises:
        ConfigError: no such preset, with the nearest names.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset is named {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]()


def run_preset(name: str, *, seeds: int = 5, steps: int | None = None, **how: Any) -> xr.Dataset:
    """Run a preset for seeds 0, 1, ..., with the final distributions recorded too.

    Args:
        steps: instead of the preset's own. how: `progress`, `store` and `grid` of `sweep`.
    """
    preset = preset_named(name)
    run = partial(sweep, preset.problems, preset.methods, seeds=range(seeds), probe=distribution_probe)
    return run(steps=preset.steps if steps is None else steps, every=preset.every, **how)

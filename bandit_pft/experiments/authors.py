"""The authors' runs as their scripts leave them, and what their code computes where it differs from the formulas.

Their log-probabilities of sequences are `transformer(authors_log_prob=True)`. `paper_sequences` averages the reward
over the prompt token too, as their code does, and a "k1" penalty in the loss (`with_kl`) is their KL term, which has no
gradient in expectation. The rewards of their REINFORCE and PPO are `running_scores`, on sequences with
`authors_count=True`, which ends a run at its second collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bandit_pft.errors import as_floats
from bandit_pft.groups import Group
from bandit_pft.methods import ADAM, Method
from bandit_pft.objectives.core import Hyper, Logp, Loss, Objective
from bandit_pft.paper import SEQUENCES, TITLES
from bandit_pft.policies import context_network, transformer
from bandit_pft.problems import Problem, paper_bandit, paper_sequences

NETWORK = context_network()
NANO, NANO_AS_SHIPPED = transformer(), transformer(authors_log_prob=True)


def network_bandit(name: str, contexts: int = 100) -> Problem:
    """R4, R5, R8 or R9 with its title; the same features at every call."""
    return dataclasses.replace(paper_bandit(name, contexts, key=jax.random.key(0)), name=TITLES[name])


def network(objective: str, name: str, rate: float, *, offline: bool = False, **settings: Any) -> Method:
    """A method as the authors run it: network, Adam, 10 responses, IPO's target at a lead of 10 nats."""
    hyper = {"beta": 0.05} if objective == "ipo" else {}
    how = {"hyper": hyper, "on_policy": 0.0 if offline else 1.0, "policy": NETWORK, "optimizer": ADAM}
    return Method(objective, name=name, learning_rate=rate, **{**how, **settings})


def nano(objective: str, name: str, rate: float, **settings: Any) -> Method:
    """The same on sequences: gpt-nano, held to the policy that it starts from."""
    return network(objective, name, rate, **{"policy": NANO, "reference": "initial", **settings})


class Script(NamedTuple):
    """One of the authors' scripts: method, number of training contexts and of gradient steps, their reward."""

    method: Method
    contexts: int
    steps: int
    reward: str

    def problem(self, reward: str | None = None) -> Problem:
        """What it trains on; `reward` instead of the script's own. Sequences come with all their 100 prompts."""
        name = reward or self.reward
        return paper_sequences(name) if name in SEQUENCES else network_bandit(name, self.contexts)


def _scripts() -> dict[str, Script]:
    still: dict[str, Any] = {"policy": NANO_AS_SHIPPED, "offline": True}
    moving: dict[str, Any] = {"policy": NANO_AS_SHIPPED, "prompts": 10, "reuse": 10}
    return {
        "best_of_n": Script(network("best_of_n", "Best-of-N offline", 0.01, offline=True), 5, 200, "R5"),
        "ipo": Script(network("ipo", "IPO offline", 0.003, offline=True, min_gap=0.2), 100, 200, "R5"),
        "onpolicy_best_of_n": Script(network("best_of_n", "Best-of-N on-policy", 0.001, reuse=15), 10, 1500, "R5"),
        "onpolicy_ipo": Script(network("ipo", "IPO on-policy", 0.01, reuse=15), 10, 1500, "R5"),
        "transformer_best_of_n": Script(
            nano("best_of_n", "Best-of-N offline", 1e-4, prompts=10, **still), 100, 100, "R7"),
        "transformer_ipo": Script(nano("ipo", "IPO offline", 0.01, prompts=100, **still), 100, 100, "R7"),
        "onpolicy_transformer_best_of_n": Script(
            nano("best_of_n", "Best-of-N on-policy", 3e-5, **moving), 100, 1000, "R7"),
        "onpolicy_transformer_ipo": Script(
            nano("ipo", "IPO on-policy", 0.01, **moving), 100, 1000, "R7"),
    }  # fmt: skip


SCRIPTS: Mapping[str, Script] = _scripts()
"""By the names of the scripts. Methods that are compared differ in learning rate and number of contexts."""


def _ipo_as_shipped(logp: Logp, group: Group, *, beta: Hyper) -> Loss:
    """Bring the winner's scaled lead to a target that is not IPO's.

    L = mean over pairs (beta * lead - 1 / (2 beta))^2

    IPO rests at a lead of 1 / (2 beta), this at 1 / (2 beta^2): at beta 0.1 at 50 nats instead of 5.
    """
    gain = group.total(logp - group.ref_logp)
    return group.pair_mean((beta * (gain[:, None] - gain[None, :]) - 1 / (2 * beta)) ** 2)


IPO_AS_SHIPPED = Objective(_ipo_as_shipped, "ipo_as_shipped", "preference", "tajwar2024preference", {"beta": 0.1})
"""IPO as in the authors' language-model code."""


def running_scores(reward: Any, authors_count: bool = False) -> np.ndarray:
    """Rewards less their mean so far, over their deviation so far; each reward counts in its own mean and deviation.

    REINFORCE and PPO of the authors' bandit code, unless it normalises per context, learn from these instead of rewards
    (`reinforce` on them is their loss).

    Args:
        reward: [collections, samples] in the order of collection.
        authors_count: count as their code for sequences does: the update sets the number of rewards back to 0, but not
            their sum and their sum of squares. After m whole collections of equal mean the running mean is m times that
            mean. A negative variance is an error there ("math domain error"): from it on scores are nan. With rewards
            of one sign it comes with the first reward of the second collection, as (sum r)^2 exceeds sum r^2.

    Raises:
        ShapeError: another shape of rewards.
    """
    reward = np.asarray(as_floats("reward", reward, shape=(None, None)), np.float64)
    flat = reward.ravel()
    seen = np.arange(flat.size)
    count = (seen % reward.shape[1] if authors_count else seen) + 1
    sums = flat.cumsum()
    variance = ((flat**2).cumsum() - sums**2 / count) / count
    if authors_count:
        variance[np.logical_or.accumulate(variance < 0)] = np.nan
    return ((flat - sums / count) / (np.sqrt(np.maximum(variance, 0)) + 1e-12)).reshape(reward.shape)

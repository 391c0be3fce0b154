"""What is computed, independent of who computes it: the shared definition that every peer must reproduce.

A task moves `rates` x `seeds` independent softmax policies over `actions` for `steps` of SGD on one objective, from the
reference policy, and returns each policy's final expected reward, learning rates outermost. With `force`
f = -d loss / d log pi, one step is `logits += rate * (f - sum(f) * pi)`.

Objectives, with r the reward, d = log pi - log pi_ref, N draws from the current policy, and A actions enumerated:

  name        sampled: one number per draw            exact: one number per action
  forward_kl  -                                       q = softmax(log pi_ref + r / BETA)
  reverse_kl  -                                       pi (g - E g),   g = r / BETA - d
  rwr         exp(r / TEMPERATURE) / N                pi exp(r / TEMPERATURE)
  reinforce   r / N                                   pi r
  rloo        (r - mean r) / (N - 1)                  -
  grpo        (r - mean r) / (std + EPS) / N          pi (r - E r) / (std + EPS) (N - 1) / N
  best_of_n   1 for the best draw                     probability of being the best of N
  pref_ft     wins of the draw / all wins             -
  dpo, ipo    mean over pairs with r_i > r_j of +slope for i and -slope for j; exact: pairs weighted by pi_i pi_j.
              dpo: slope = BETA sigmoid(-BETA (d_i - d_j));   ipo: slope = 2 (1 / (2 BETA) - (d_i - d_j))

A sampled standard deviation has N - 1 in its denominator, the exact one is that of the distribution. With Adam, the
direction f - sum(f) * pi goes through Adam's rule (0.9, 0.999, 1e-8) before it is multiplied by the rate.

A `Network` task is the paper's own bandit: a network of contexts in place of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BETA = 0.1
TEMPERATURE = 0.5
MANY = 2048  # actions above which a pass over all of them is what a step costs
EPS = 1e-4  # in group z-scores
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}

# Learning rates at which 500 steps on 100 actions go a good part of the way, so that agreement means something.
RATES = {
    "forward_kl": 0.2,
    "reverse_kl": 0.5,
    "rwr": 0.1,
    "reinforce": 0.7,
    "rloo": 0.7,
    "grpo": 0.2,
    "best_of_n": 0.2,
    "pref_ft": 0.3,
    "dpo": 1.5,
    "ipo": 0.05,
}

Run = Callable[..., np.ndarray]  # seed -> final expected reward of each row; capped peers take fewer steps as well


class Task(NamedTuple):
    """One cell of the table."""

    workload: str
    objective: str
    sampled: bool
    actions: int
    rates: int
    seeds: int
    steps: int
    draws: int = 16
    rate: float = 0.0  # 0: from RATES, larger for shorter runs
    adam: bool = False

    @property
    def rows(self) -> int:
        return self.rates * self.seeds

    @property
    def label(self) -> str:
        return f"{self.objective}{' (sampled)' if self.sampled else ''}{' (Adam)' if self.adam else ''}"


class Network(NamedTuple):
    """The paper's bandit: a network sees a context's features, and Adam moves it on few prompts.

    The network is Linear(features, 50) - LayerNorm - ReLU, then Linear - ReLU to 256 and 256, then Linear to the
    logits; Xavier-uniform weights of gain 0.01, fitted to the reference by 100 full-batch Adam steps of rate 0.01 on
    the mean KL(pi || ref). Every `reuse` steps each context draws `draws` responses from the learner; offline, all are
    drawn once from the reference. Expected reward and KL are taken before each step and after the last. A run gives
    its final expected reward, averaged over contexts; one row for each seed.
    """

    workload: str
    objective: str  # best_of_n, or ipo with pairs at least `min_gap` apart, averaged over all contexts' pairs
    contexts: int
    seeds: int
    steps: int
    rate: float
    offline: bool = False
    reuse: int = 15
    min_gap: float = 0.0
    actions: int = 100
    draws: int = 10
    beta: float = 0.05
    rates: int = 1
    sampled: bool = True

    @property
    def rows(self) -> int:
        return self.seeds

    @property
    def label(self) -> str:
        return f"{self.objective}, {'offline' if self.offline else 'on-policy'}, {self.contexts} prompts"

    @property
    def table(self) -> Task:
        """The task with the same reference and reward."""
        return Task(self.workload, self.objective, True, self.actions, 1, self.seeds, self.steps, self.draws)

    @property
    def features(self) -> np.ndarray:
        """[contexts, 100], uniform in [0, 1]."""
        return np.random.default_rng(0).random((self.contexts, 100), np.float32)


class Arrays(NamedTuple):
    ref_logp: np.ndarray  # [A] nats
    reward: np.ndarray  # [A]
    rate: np.ndarray  # [rows]
    target: np.ndarray  # [A] probabilities, softmax(ref_logp + reward / BETA)


def arrays(task: Task) -> Arrays:
    """The problem and the learning rates, float32."""
    a = np.arange(task.actions)
    reward = np.exp(-(((a - 0.7 * task.actions) / (0.1 * task.actions)) ** 2))
    if task.actions == 100:
        # tanh of a Cauchy(-0.7, 0.4), in 100 equal bins of [-1, 1].
        edge = np.arctanh(np.linspace(-1, 1, 101)[1:-1])
        upto = np.concatenate([[0], 0.5 + np.arctan((edge + 0.7) / 0.4) / np.pi, [1]])
        logits = np.log(np.diff(upto))
    else:
        rng = np.random.default_rng(0)
        wave = np.arange(1, 9)
        phase = 2 * np.pi * (np.outer(wave, a / task.actions) + rng.random((8, 1)))
        logits = (rng.normal(size=8) / wave) @ np.sin(phase)
    ref_logp = log_softmax(logits)
    scale = task.rate or RATES[task.objective] * min(10, 500 / task.steps)
    rates = scale * np.linspace(0.5, 1.5, task.rates) if task.rates > 1 else np.full(1, scale)
    rate = np.repeat(rates, task.seeds)
    single = lambda x: np.ascontiguousarray(x, np.float32)
    return Arrays(single(ref_logp), single(reward), single(rate), single(np.exp(log_softmax(ref_logp + reward / BETA))))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


EXACT = ("forward_kl", "rwr", "reinforce", "reverse_kl")
SAMPLED = ("best_of_n", "grpo", "dpo", "ipo")
ALL_EXACT = EXACT + SAMPLED
ALL_SAMPLED = ("rwr", "reinforce", "rloo", "best_of_n", "grpo", "pref_ft", "dpo", "ipo")


def workloads(quick: bool = False) -> dict[str, list[Task | Network]]:
    """The tasks of W1 to W5."""
    rates = (4, 2, 1, 1) if quick else (32, 4, 1, 1)
    seeds = (16, 4, 4, 16) if quick else (32, 8, 1, 32)
    steps = (10, 5, 5, 10) if quick else (500, 200, 100, 200)
    actions = (100, 3000, 20000, 100) if quick else (100, 50257, 1000000, 100)
    cell = lambda name, k, objective, sampled, rate=0.0, adam=False: Task(
        name, objective, sampled, actions[k], rates[k], seeds[k], steps[k], rate=rate, adam=adam
    )
    large = lambda name, k: [
        cell(name, k, "reinforce", False, 0.05 * actions[k]),
        cell(name, k, "forward_kl", False, 0.002 * actions[k]),
        cell(name, k, "reinforce", False, 1.0 / steps[k], adam=True),
        cell(name, k, "grpo", True, 100.0),
    ]
    small = lambda name, names, sampled, k: [cell(name, k, objective, sampled) for objective in names]
    # The authors run 1,500 steps on-policy, 5 prompts and 100 prompts offline; both methods see the same here.
    runs, most = (2, 20) if quick else (5, 300)
    network = lambda *what, **more: Network("W5", what[0], what[1], runs, min(what[2], most), what[3], **more)
    return {
        "W1": small("W1", EXACT, False, 0) + small("W1", SAMPLED, True, 0),
        "W2": large("W2", 1),
        "W3": [*large("W3", 2), cell("W3", 2, "rloo", True, 100.0), cell("W3", 2, "dpo", True, 300.0)],
        "W4 exact": small("W4 exact", ALL_EXACT, False, 3),
        "W4 sampled": small("W4 sampled", ALL_SAMPLED, True, 3),
        "W5": [
            network("best_of_n", 10, 300, 0.001),
            network("ipo", 10, 150, 0.003),
            network("ipo", 100, 200, 0.003, offline=True, min_gap=0.2),
        ],
    }


TITLES = {
    "W1": "K = 100, 1,024 policies, 500 steps; four exact objectives, four with 16 fresh draws a step",
    "W2": "K = 50,257, 32 policies, 200 steps",
    "W3": "K = 1,000,000, 1 policy, 100 steps",
    "W4 exact": "latency of eight methods x 200 steps x 32 seeds, K = 100, every action enumerated",
    "W4 sampled": "latency of eight methods x 200 steps x 32 seeds, K = 100, 16 draws a step",
    "W5": "the paper's bandit: its network, Adam, 10 responses to each prompt; five seeds, one run after the other",
}

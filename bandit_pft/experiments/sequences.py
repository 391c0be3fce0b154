"""The paper's sequences: nine tokens of 100 from a small transformer, with log-probabilities right and as shipped."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bandit_pft.claims import Criterion, Outcome, claim, experiment, figure
from bandit_pft.experiments.authors import NANO_AS_SHIPPED, nano
from bandit_pft.experiments.bandits import REWARD, STEPS, at, curve, seeds
from bandit_pft.experiments.drawing import lines
from bandit_pft.paper import SEQUENCES
from bandit_pft.problems import paper_sequences
from bandit_pft.sweep import sweep


@experiment(
    "R6, 9 tokens of 100, gpt-nano, held to the policy after its fit: offline 100 x 10 draws, 100 steps; IPO with "
    "learning rate 0.01, Best-of-N with 0.001 and 0.01.",
    equal="gradient steps", seconds=165,
)  # fmt: skip
def sequences_offline(quick: bool) -> Outcome:
    methods = [
        nano("ipo", "IPO", 0.01, offline=True),
        nano("best_of_n", "Best-of-N 0.001", 0.001, offline=True),
        nano("best_of_n", "Best-of-N 0.01", 0.01, offline=True),
    ]
    ds = sweep(paper_sequences("R6"), methods, seeds=seeds(quick, 3), steps=100, every=20)
    gap = lambda rate: at(ds, "R6", "IPO") - at(ds, "R6", f"Best-of-N {rate}")
    return Outcome(
        {
            "IPO - Best-of-N with its own learning rate, 0.001": gap("0.001"),
            "IPO - Best-of-N, both 0.01": gap("0.01"),
        },
        {"sequences_offline": pd.concat([curve(ds, "R6", m.name) for m in methods])},
    )


claim(
    "C21", "Offline, IPO is far ahead of Best-of-N on sequences too.", sequences_offline,
    [
        Criterion("IPO - Best-of-N with its own learning rate, 0.001", at_least=0.5,
                  where="learning rates of their own"),
        Criterion("IPO - Best-of-N, both 0.01", at_least=0.5, where="the same learning rate"),
    ],
    why="The best of 10 whole sequences is hardly better than the others: its tokens average.",
    depends_on="the learning rates",
)  # fmt: skip


@figure("sequences_offline", of=sequences_offline)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Sequences of 9 tokens, far peak, offline")


@experiment(
    "R6 and R7, gpt-nano, on-policy Best-of-N and (R6) IPO: 10 x 10 own sequences, 10 passes, learning rate 0.001 "
    "(IPO: 0.01), 300 steps; log-probabilities right, and as shipped: not shifted by one token.",
    equal="gradient steps", seconds=400,
)  # fmt: skip
def sequences_on_policy(quick: bool) -> Outcome:
    how: dict[str, Any] = {"prompts": 10, "reuse": 10}
    methods = [
        nano("best_of_n", "Best-of-N", 0.001, **how),
        nano("best_of_n", "Best-of-N as shipped", 0.001, policy=NANO_AS_SHIPPED, **how),
    ]
    problems = [paper_sequences(name) for name in SEQUENCES]
    ds = sweep(problems, methods, seeds=seeds(quick, 3), steps=300, every=20)
    contrast = [nano("ipo", "IPO", 0.01, **how), nano("ipo", "IPO as shipped", 0.01, policy=NANO_AS_SHIPPED, **how)]
    other = sweep(problems[0], contrast, seeds=seeds(quick, 3), steps=300, every=20)
    measures: dict[str, Any] = {}
    for name in SEQUENCES:
        measures[f"Best-of-N on {name} at step 200"] = at(ds, name, "Best-of-N", 200)
        measures[f"Best-of-N as shipped on {name} at step 200"] = at(ds, name, "Best-of-N as shipped", 200)
    measures["IPO - Best-of-N on R6 at step 300"] = at(other, "R6", "IPO") - at(ds, "R6", "Best-of-N")
    measures["as shipped: IPO - Best-of-N on R6 at step 300"] = at(other, "R6", "IPO as shipped") - at(
        ds, "R6", "Best-of-N as shipped"
    )
    drawn = [curve(ds, name, m.name).assign(panel=f"{SEQUENCES[name]} ({name})") for name in SEQUENCES for m in methods]
    drawn += [curve(other, "R6", m.name).assign(panel=f"{SEQUENCES['R6']} (R6)") for m in contrast]
    return Outcome(measures, {"sequences": pd.concat(drawn)})


claim(
    "C22", "On-policy Best-of-N reaches the ceiling of 0.918 on sequences.", sequences_on_policy,
    [
        *(Criterion(f"Best-of-N on {name} at step 200", at_least=0.9, where="right log-probabilities")
          for name in SEQUENCES),
        *(Criterion(f"Best-of-N as shipped on {name} at step 200", at_least=0.9, where="log-probabilities as shipped")
          for name in SEQUENCES),
    ],
    why="As shipped, the logits after a token are trained to give that token again: the policy learns to copy.",
    depends_on="the log-probabilities",
)  # fmt: skip
claim(
    "C22b", "On-policy IPO beats on-policy Best-of-N on sequences.", sequences_on_policy,
    [
        Criterion("IPO - Best-of-N on R6 at step 300", at_least=0.05, where="right log-probabilities"),
        Criterion("as shipped: IPO - Best-of-N on R6 at step 300", at_least=0.05, where="log-probabilities as shipped"),
    ],
    why="A lead of 10 nats over nine tokens is reached long before the best sequence, and then IPO stops.",
    depends_on="the log-probabilities",
)  # fmt: skip


@figure("sequences", of=sequences_on_policy)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Sequences of 9 tokens, on-policy, log-probabilities right and as shipped")

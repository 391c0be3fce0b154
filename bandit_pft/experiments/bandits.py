"""The paper's bandit of 100 actions: the claims about coverage, on-policy sampling, reuse and negative gradients.

A network of the paper's size reads 100 random features, which the reward ignores, and starts fitted to the reference.
Offline methods draw from the reference once, on-policy ones from the learner, 10 responses to each context.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from bandit_pft import metrics, style
from bandit_pft.claims import Criterion, Outcome, claim, experiment, figure
from bandit_pft.experiments.authors import NETWORK, SCRIPTS, network, network_bandit
from bandit_pft.experiments.drawing import lines, points
from bandit_pft.groups import best_of_n_weights
from bandit_pft.methods import Method
from bandit_pft.paper import GAP, TITLES
from bandit_pft.plots import SlideFigure
from bandit_pft.policies import tabular_shared
from bandit_pft.probes import State
from bandit_pft.problems import Problem, bandit, paper_bandit, paper_reference, peaks
from bandit_pft.simulate import seed_keys
from bandit_pft.sweep import sweep

FAR_TO_NEAR = ("R4", "R8", "R9", "R5")
# A labeller of this temperature chooses at random: the same draws, and labels that say nothing.
SHUFFLED = 1e6
REWARD, STEPS = "expected reward", "gradient step"
AT_LEAST_SOME = 1e-9


def seeds(quick: bool, full: int = 5) -> range:
    """Fewer in a quick run."""
    return range(2 if quick else full)


def at(ds: xr.Dataset, problem: str, method: str, step: int | None = None, y: str = "expected_reward") -> np.ndarray:
    """[seeds] after so many gradient steps, by default all."""
    runs = ds[y].sel(problem=TITLES.get(problem, problem), algorithm=method)
    return (runs.isel(step=-1) if step is None else runs.sel(step=step)).values.astype(np.float64)


def curve(ds: xr.Dataset, problem: str, method: str, label: str = "", y: str = "expected_reward") -> pd.DataFrame:
    """A method's runs on a problem as one line of a figure."""
    runs = ds[y].sel(problem=TITLES.get(problem, problem), algorithm=method).transpose("seed", "step")
    family = str(ds["family"].sel(algorithm=method).values)
    title = TITLES.get(problem, problem)
    return points(label or method, ds["step"], runs, family=family, panel=title)


def best_of(name: str, n: float) -> float:
    """Expected reward of the best of n draws from the reference, exactly."""
    problem = paper_bandit(name)
    with jax.enable_x64(True):
        ref, reward = (jnp.asarray(np.asarray(x), jnp.float64) for x in (problem.ref_table(0), problem.reward_table(0)))
        weight = best_of_n_weights(jnp.exp(ref - jax.nn.logsumexp(ref)), reward, n)
        return float(weight @ reward)


# --- constants -------------------------------------------------------------------------------------------------------
CONSTANTS = {  # E under the reference, under the uniform policy, and of the best of 2, 4, 10, 20, 50 and 100.
    "R4": (0.0390, 0.1772, 0.0761, 0.1446, 0.3135, 0.5080, 0.7811, 0.9153),
    "R5": (0.3772, 0.1769, 0.5843, 0.7846, 0.9401, 0.9815, 0.9963, 0.9991),
    "R8": (0.0955, 0.3479, 0.1764, 0.3065, 0.5504, 0.7451, 0.9206, 0.9751),
    "R9": (0.1876, 0.4878, 0.3121, 0.4774, 0.7135, 0.8566, 0.9611, 0.9885),
}
OPTIMA = {  # beta: expected reward of ref exp(r / beta) / Z, and its KL to the reference.
    "R4": {0.2: (0.653, 1.951), 0.1: (0.941, 3.794), 0.05: (0.974, 4.237)},
    "R5": {0.2: (0.877, 0.963), 0.1: (0.947, 1.441), 0.05: (0.974, 1.817)},
}


@experiment(
    "The paper's reference and rewards, and its network after 100 Adam steps of fitting the reference.",
    equal="exact", seconds=5,
)  # fmt: skip
def constants(quick: bool) -> Outcome:
    off, off_optimum, tables = [], [], []
    for name, (under_ref, uniform, *bests) in CONSTANTS.items():
        problem = paper_bandit(name)
        ref, reward = (np.asarray(x, np.float64) for x in (problem.ref_table(0), problem.reward_table(0)))
        found = [np.exp(ref) @ reward, reward.mean(), *(best_of(name, n) for n in (2, 4, 10, 20, 50, 100))]
        off += list(np.abs(np.asarray(found) - [under_ref, uniform, *bests]))
        for beta, wanted in OPTIMA.get(name, {}).items():
            best = problem.optimum(beta)[0]
            got = metrics.expected_reward(best, problem.reward_table(0)), metrics.kl(best, problem.ref_table(0))
            off_optimum += list(np.abs(np.asarray(got) - wanted))
        tables.append(points(TITLES[name], range(100), reward, panel="rewards"))
    tables.append(points("reference", range(100), np.exp(np.asarray(paper_reference(), np.float64)), panel="reference"))
    contexts = jnp.arange(100)

    assert NETWORK.table is not None
    table = NETWORK.table

    @jax.jit
    def fitted(key: Any, problem: Problem) -> Any:
        logp = jax.vmap(lambda c: table(NETWORK.init(key, problem), problem, c))(contexts)
        each = lambda f: jax.vmap(f)(contexts)
        reward, ref = each(problem.reward_table), each(problem.ref_table)
        return metrics.expected_reward(logp, reward).mean(), metrics.kl(logp, ref).mean()

    keys = seed_keys(list(seeds(quick)))
    far, near = ([fitted(key, network_bandit(name)) for key in keys] for name in ("R4", "R5"))
    return Outcome(
        {
            "largest deviation of 32 expected rewards": max(off),
            "largest deviation of 12 values of the optimum": max(off_optimum),
            "E[R4] after the fit": [reward for reward, _ in far],
            "E[R5] after the fit": [reward for reward, _ in near],
            "KL(π ‖ reference) after the fit (nats)": [kl for _, kl in far],
        },
        {"reference_and_rewards": pd.concat(tables[::-1])},
    )


claim(
    "C1",
    "The bandit is the paper's: reference, rewards, best of n draws, optima, a network that starts as the reference.",
    constants,
    [
        Criterion("largest deviation of 32 expected rewards", at_most=1e-4),
        Criterion("largest deviation of 12 values of the optimum", at_most=6e-4),
        Criterion("E[R4] after the fit", 0.035, 0.045),
        Criterion("E[R5] after the fit", 0.367, 0.387),
        Criterion("KL(π ‖ reference) after the fit (nats)", at_most=0.01),
    ],
    why="The values compared with are known to four digits (optima: three); the reference has spikes at both ends.",
)  # fmt: skip


@figure("reference_and_rewards", of=constants)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "action", "probability, reward", "The paper's reference policy and its rewards", share_y=False)


# --- offline ---------------------------------------------------------------------------------------------------------
@experiment(
    "Offline Best-of-N and IPO on the same 100 x 10 draws from the reference, learning rate 0.003, 200 steps; as "
    "shipped: Best-of-N with 5 x 10 draws and learning rate 0.01.",
    equal="gradient steps", seconds=170,
)  # fmt: skip
def offline(quick: bool) -> Outcome:
    best, ipo = (
        network("best_of_n", "Best-of-N", 0.003, offline=True),
        network("ipo", "IPO", 0.003, offline=True, min_gap=GAP),
    )
    replace = dataclasses.replace
    methods = [
        best, ipo,
        replace(best, name="Best-of-N shuffled", label_noise=SHUFFLED),
        replace(ipo, name="IPO shuffled", label_noise=SHUFFLED),
        replace(best, name="Best-of-N shipped", prompts=5, learning_rate=0.01),
    ]  # fmt: skip
    ds = sweep([network_bandit(name) for name in FAR_TO_NEAR], methods, seeds=seeds(quick, 20), steps=200, every=20)
    gap = {name: at(ds, name, "IPO") - at(ds, name, "Best-of-N") for name in FAR_TO_NEAR}
    measures: dict[str, Any] = {f"IPO - Best-of-N on {name}": values for name, values in gap.items()}
    for far, near in itertools.pairwise(FAR_TO_NEAR):
        measures[f"gap on {far} - gap on {near}"] = gap[far] - gap[near]
    for name in FAR_TO_NEAR:
        measures[f"Best-of-N - best of 10 draws on {name}"] = at(ds, name, "Best-of-N") - best_of(name, 10)
    measures["KL of IPO - KL of Best-of-N on R4 (nats)"] = at(ds, "R4", "IPO", y="kl") - at(
        ds, "R4", "Best-of-N", y="kl"
    )
    for name in ("R4", "R5"):
        measures[f"shipped IPO - Best-of-N on {name}"] = at(ds, name, "IPO") - at(ds, name, "Best-of-N shipped")
    measures["IPO on R4, shuffled labels"] = at(ds, "R4", "IPO shuffled")
    measures["Best-of-N on R4, shuffled labels"] = at(ds, "R4", "Best-of-N shuffled")
    drawn = [curve(ds, name, method) for name in FAR_TO_NEAR for method in ("IPO", "Best-of-N")]
    drawn += [points("best of 10 draws", [0, 200], [best_of(name, 10)] * 2, panel=TITLES[name]) for name in FAR_TO_NEAR]
    return Outcome(measures, {"negative_gradient": pd.concat(drawn)})


NO_LABELS = (
    Criterion("IPO on R4, shuffled labels", at_most=0.3, control=True),
    Criterion("Best-of-N on R4, shuffled labels", at_most=0.1, control=True),
)
claim(
    "C2", "Offline Best-of-N covers: it ends at the distribution of the best of n draws and gets no further.", offline,
    [*(Criterion(f"Best-of-N - best of 10 draws on {name}", -0.03, 0.03) for name in FAR_TO_NEAR), NO_LABELS[1]],
    why=(
        "Maximum likelihood on the winners is the forward KL to the best of 10 draws, whose optimum is that "
        "distribution itself."
    ),
)  # fmt: skip
claim(
    "C3", "Offline, a negative gradient beats supervised learning when the peak is far from the reference.", offline,
    [
        *(Criterion(f"IPO - Best-of-N on {name}", at_least=least, where="matched data and learning rate")
          for name, least in (("R4", 0.3), ("R8", 0.15), ("R9", 0.08))),
        Criterion("shipped IPO - Best-of-N on R4", at_least=0.3, where="the settings as shipped"),
        *NO_LABELS,
    ],
    why="Pushing what was drawn and lost moves mass beyond the best of the draws.", depends_on="the settings",
)  # fmt: skip
claim(
    "C4", "It makes no difference when the peak is near.", offline,
    [Criterion("IPO - Best-of-N on R5", -0.02, 0.02, where="matched data and learning rate"),
     Criterion("shipped IPO - Best-of-N on R5", -0.02, 0.02, where="the settings as shipped")],
    why="The best of 10 draws is nearly the peak itself.", depends_on="the settings",
)  # fmt: skip
claim(
    "C5", "The gain from a negative gradient grows with the distance of the peak: R4 > R8 > R9 > R5.", offline,
    [Criterion(f"gap on {far} - gap on {near}", at_least=AT_LEAST_SOME)
     for far, near in itertools.pairwise(FAR_TO_NEAR)],
    why="The less of the peak the draws hold, the more there is to gain beyond them.",
)  # fmt: skip
claim(
    "C6", "A negative gradient moves further from the reference.", offline,
    [Criterion("KL of IPO - KL of Best-of-N on R4 (nats)", at_least=0.8)],
    why="Its pairs ask for a lead of 10 nats; imitation stops at the best of 10 draws.",
)  # fmt: skip


@figure("negative_gradient", of=offline)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Offline, same data and learning rate: a negative gradient helps when far")


# --- where the peak is -----------------------------------------------------------------------------------------------
PLACES = tuple(range(5, 100, 5))


def table_method(objective: str, name: str, on_policy: bool) -> Method:
    """One row of logits for all contexts, at the learning rate that `paper.headline` uses."""
    hyper, gap = ({"beta": 0.05}, GAP) if objective == "ipo" else ({}, 0.0)
    return Method(
        objective, hyper, name=name, policy=tabular_shared, on_policy=float(on_policy),
        prompts=10 if on_policy else None, min_gap=0.0 if on_policy else gap,
    )  # fmt: skip


@experiment(
    "A reward peak of width 10 at 19 places, shared table of logits, learning rate 0.2, 200 steps; offline 100 x "
    "10 draws from the reference, on-policy 10 x 10 own draws a step.",
    equal="gradient steps", seconds=15,
)  # fmt: skip
def places(quick: bool) -> Outcome:
    reference = jnp.tile(paper_reference(), (100, 1))
    problems = [bandit(jnp.tile(peaks(100, p, 10.0), (100, 1)), reference, name=f"peak at {p}") for p in PLACES]
    kinds = {"best_of_n": "Best-of-N", "rwr_normalized": "RWR", "reinforce_normalized": "REINFORCE", "ipo": "IPO"}
    methods = [
        table_method(objective, f"{label} {regime}", regime == "on-policy")
        for objective, label in kinds.items()
        for regime in ("offline", "on-policy")
    ]
    ds = sweep(problems, methods, seeds=seeds(quick, 3), steps=200, every=200)
    reached = ds["expected_reward"].isel(step=-1).transpose("algorithm", "seed", "problem")
    gap = (reached.sel(algorithm="IPO offline") - reached.sel(algorithm="Best-of-N offline")).values
    near = np.asarray([np.exp(np.asarray(paper_reference()))[max(p - 10, 0) : p + 11].sum() for p in PLACES])
    rank = lambda x: np.argsort(np.argsort(x))
    order = [np.corrcoef(rank(one), rank(-near))[0, 1] for one in gap]
    spread = reached.mean("seed")
    on = spread.sel(algorithm=[f"{label} on-policy" for label in kinds.values()])
    rows = [
        points(str(name), PLACES, runs, family=str(family))
        for name, family, runs in zip(ds["algorithm"].values, ds["family"].values, reached.values, strict=True)
    ]
    drawn = [
        points("IPO - Best-of-N", PLACES, gap, family="preference", panel="offline, gain in expected reward"),
        points("reference", PLACES, near, panel="probability within 10 of the peak"),
    ]
    return Outcome(
        {
            "rank correlation of gap and rareness of the peak": order,
            "worst on-policy reward over all places and methods": float(on.min()),
        },
        {"misalignment": pd.concat(drawn), "map": pd.concat(rows)},
    )


claim(
    "C5b", "Over all places of the peak, the gain from a negative gradient follows how rare the peak is under the "
    "reference.", places, [Criterion("rank correlation of gap and rareness of the peak", at_least=0.8)],
    why="What the reference seldom draws, imitation of the best draw cannot reach.",
)  # fmt: skip
claim(
    "C7b", "On-policy sampling reaches the peak wherever it is, with any of the losses.", places,
    [Criterion("worst on-policy reward over all places and methods", at_least=0.95)],
    why=(
        "Each collection starts from where the last one led, so rareness under the reference costs steps, not "
        "reward."
    ),
)  # fmt: skip


@figure("misalignment", of=places)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "place of the peak (action)", "reward or probability",
                 "The rarer the peak, the more a negative gradient gains", share_y=False)  # fmt: skip


@figure("map", of=places)
def _(table: pd.DataFrame) -> Figure:
    """Method and regime against the place of the peak; the colour is the reward reached."""
    grid = table.pivot(index="line", columns="x", values="y").reindex(dict.fromkeys(table["line"]))
    with matplotlib.rc_context(style.RC):
        made = SlideFigure(figsize=style.SLIDE, layout="constrained")
        ax = made.subplots()
        shown = ax.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        ax.grid(False)
        ax.set_xticks(range(0, grid.shape[1], 2), [f"{x:.0f}" for x in grid.columns[::2]])
        ax.set_yticks(range(len(grid)), list(grid.index))
        for (i, j), value in np.ndenumerate(grid.to_numpy()):
            paint = "white" if value < 0.55 else "black"
            ax.text(j, i, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=12, color=paint)
        ax.set_xlabel("place of the reward's peak (action); the reference's interior mode is at 15")
        made.colorbar(shown, label="expected reward after 200 steps")
        made.suptitle("Who reaches which peak, offline and on-policy")
    return made


# --- on-policy -------------------------------------------------------------------------------------------------------
RATES = (0.001, 0.003, 0.01)


def shuffled(problem: Problem) -> Problem:
    """The same rewards, on other actions."""
    order = np.random.default_rng(0).permutation(problem.num_tokens)
    return dataclasses.replace(problem, token_reward=problem.token_reward[..., order], name="rewards shuffled")


@experiment(
    "On-policy: 20 collections of 10 own responses to the same 10 contexts, 15 passes each, learning rates 0.001, "
    "0.003, 0.01; offline: 100 x 10 draws, learning rate 0.003; 300 steps.",
    equal="gradient steps", seconds=60,
)  # fmt: skip
def on_policy(quick: bool) -> Outcome:
    problems = [network_bandit(name, 10) for name in ("R4", "R5")]
    objectives = {"best_of_n": "Best-of-N", "ipo": "IPO", "reinforce_normalized": "REINFORCE", "ppo_clip": "PPO"}
    online = [
        network(objective, f"{label} {rate:g}", rate, reuse=15)
        for objective, label in objectives.items()
        for rate in RATES
    ]
    still = [
        network("best_of_n", "Best-of-N offline", 0.003, offline=True),
        network("ipo", "IPO offline", 0.003, offline=True, min_gap=GAP),
        network("reinforce_normalized", "REINFORCE offline", 0.003, offline=True),
    ]
    ds = sweep(problems, online, seeds=seeds(quick), steps=300, every=15)
    off = sweep([network_bandit(name) for name in ("R4", "R5")], still, seeds=seeds(quick), steps=300, every=15)
    control = sweep(shuffled(problems[0]), online[5], seeds=seeds(quick), steps=300, every=300, probe=_true_reward)
    tuned = lambda name, label, step: np.max([at(ds, name, f"{label} {rate:g}", step) for rate in RATES], axis=0)
    off_ipo, off_best = at(off, "R4", "IPO offline"), at(off, "R4", "Best-of-N offline")
    measures: dict[str, Any] = {
        f"on-policy {label} on R4 at step 150, best rate": tuned("R4", label, 150) for label in objectives.values()
    }
    for label, values in (("IPO", off_ipo), ("Best-of-N", off_best)):
        measures[f"offline {label} on R4"] = values
        measures[f"on-policy - offline {label} on R5"] = tuned("R5", label, 300) - at(off, "R5", f"{label} offline")
        measures[f"on-policy IPO - offline {label} on R4"] = at(ds, "R4", "IPO 0.003") - values
    at_75 = lambda method: at(ds, "R4", method, 75)
    measures["IPO - Best-of-N at step 75, both at 0.01"] = at_75("IPO 0.01") - at_75("Best-of-N 0.01")
    measures["IPO - Best-of-N at step 75, both at 0.003"] = at_75("IPO 0.003") - at_75("Best-of-N 0.003")
    measures["IPO at 0.01 - Best-of-N at 0.001 at step 75"] = at_75("IPO 0.01") - at_75("Best-of-N 0.001")
    for label in ("REINFORCE", "PPO"):
        measures[f"on-policy {label} on R4 at step 300, rate 0.003"] = at(ds, "R4", f"{label} 0.003")
    measures["true reward after learning shuffled rewards"] = control["true_reward"].isel(step=-1).values.ravel()
    shown = ("IPO 0.003", "Best-of-N 0.003", "REINFORCE 0.003", "PPO 0.003", "IPO offline", "Best-of-N offline")
    word = lambda name: name.replace("0.003", "on-policy")
    of = lambda method: off if method.endswith("offline") else ds
    drawn = [curve(of(method), name, method, word(method)) for name in ("R4", "R5") for method in shown]
    rates = [curve(ds, "R4", f"{label} {rate:g}").assign(panel=f"learning rate {rate:g}")
             .assign(line=label) for rate in RATES for label in ("IPO", "Best-of-N", "REINFORCE")]  # fmt: skip
    return Outcome(measures, {"complementarity": pd.concat(drawn), "learning_rates": pd.concat(rates)})


def _true_reward(problem: Problem, state: State) -> dict[str, Any]:
    assert state.log_probs is not None
    true = jnp.broadcast_to(peaks(100, 70.0, 10.0), state.log_probs.shape)
    return {
        "true_reward": metrics.expected_reward(state.log_probs, true).mean(),
        "expected_reward": metrics.expected_reward(state.log_probs, state.rewards).mean(),  # type: ignore[arg-type]
    }


SHUFFLED_REWARDS = Criterion("true reward after learning shuffled rewards", at_most=0.5, control=True)
claim(
    "C7", "On-policy sampling helps when the peak is far.", on_policy,
    [
        Criterion("on-policy Best-of-N on R4 at step 150, best rate", at_least=0.95),
        Criterion("on-policy IPO on R4 at step 150, best rate", at_least=0.95),
        Criterion("offline IPO on R4", at_most=0.8), Criterion("offline Best-of-N on R4", at_most=0.4),
        SHUFFLED_REWARDS,
    ],
    why="Responses are drawn from where the mass has moved, so what is rare under the reference becomes common.",
)  # fmt: skip
claim(
    "C8", "It matters little when the peak is near.", on_policy,
    [Criterion(f"on-policy - offline {label} on R5", at_most=0.08) for label in ("Best-of-N", "IPO")],
    why="Offline learning is already close to the maximum.",
)  # fmt: skip
claim(
    "C17", "On-policy sampling and a negative gradient together beat a negative gradient or imitation offline.",
    on_policy,
    [Criterion(f"on-policy IPO - offline {label} on R4", at_least=0.2) for label in ("IPO", "Best-of-N")],
    why="On R4 every on-policy method is ahead of every offline one; the sampling does most of it.",
)  # fmt: skip
claim(
    "C18", "On-policy IPO learns faster than on-policy Best-of-N.", on_policy,
    [
        Criterion("IPO - Best-of-N at step 75, both at 0.01", at_least=0.05, where="both at learning rate 0.01"),
        Criterion("IPO - Best-of-N at step 75, both at 0.003", at_least=0.05, where="both at learning rate 0.003"),
        Criterion("IPO at 0.01 - Best-of-N at 0.001 at step 75", at_least=0.5, where="the learning rates as shipped"),
    ],
    why="As shipped, IPO's learning rate is ten times that of Best-of-N; at the same rate the difference is gone.",
    depends_on="the learning rates",
)  # fmt: skip
claim(
    "C19", "Policy gradients belong to the same class: on-policy with a negative gradient, they reach the far peak.",
    on_policy,
    [
        Criterion(f"on-policy {label} on R4 at step 300, rate 0.003", at_least=0.95) for label in ("REINFORCE", "PPO")
    ],
    why="A response below the mean reward is pushed, as a loser is.",
)  # fmt: skip


@figure("complementarity", of=on_policy)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Learning rate 0.003 for all: on-policy against offline")


@figure("learning_rates", of=on_policy)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "On-policy on the far peak: who is ahead is a matter of the learning rate")


@experiment(
    "The authors' network scripts as shipped, on R4 and R5: offline Best-of-N (5 contexts, rate 0.01) and IPO (100, "
    "0.003), on-policy Best-of-N (10, 0.001) and IPO (10, 0.01), 15 passes.",
    equal="gradient steps", seconds=30,
)  # fmt: skip
def as_shipped(quick: bool) -> Outcome:
    runs = {}
    for key in ("best_of_n", "ipo", "onpolicy_best_of_n", "onpolicy_ipo"):
        script = SCRIPTS[key]
        problems = [script.problem(name) for name in ("R4", "R5")]
        runs[script.method.name] = sweep(problems, script.method, seeds=seeds(quick), steps=300, every=15)
    gap = lambda one, other: at(runs[one], "R4", one) - at(runs[other], "R4", other)
    return Outcome(
        {f"on-policy IPO - {name} on R4": gap("IPO on-policy", name) for name in runs if name != "IPO on-policy"},
        {"as_shipped": pd.concat([curve(ds, name, key) for name in ("R4", "R5") for key, ds in runs.items()])},
    )


claim(
    "C17b", "With the settings as shipped, on-policy sampling with a negative gradient beats each alone.", as_shipped,
    [
        Criterion("on-policy IPO - IPO offline on R4", at_least=0.2),
        Criterion("on-policy IPO - Best-of-N offline on R4", at_least=0.2),
        Criterion("on-policy IPO - Best-of-N on-policy on R4", at_least=0.05),
    ],
    why="After 300 of its 1,500 steps on-policy Best-of-N is behind for its learning rate, a tenth of IPO's: see C18.",
)  # fmt: skip


@figure("as_shipped", of=as_shipped)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "The settings as shipped: learning rates and data differ")


# --- how old the samples are -----------------------------------------------------------------------------------------
BATCHES = (10, 100, 2000)


@experiment(
    "Collections of 10, 100 or 2,000 contexts x 10 responses, one pass in minibatches of 10 contexts, learning "
    "rate 0.003, 200 steps; 2,000 is offline.",
    equal="reward queries", seconds=180,
)  # fmt: skip
def batch_size(quick: bool) -> Outcome:
    problems = [network_bandit(name, max(BATCHES)) for name in ("R4", "R5")]
    methods = [
        network(objective, f"{label}, {size}", 0.003, prompts=size, minibatch=10, reuse=1)
        for objective, label in (("best_of_n", "Best-of-N"), ("ipo", "IPO"))
        for size in BATCHES
    ]
    blind = network("best_of_n", "shuffled", 0.003, prompts=10, minibatch=10, label_noise=SHUFFLED)
    ds = sweep(problems, [*methods, blind], seeds=seeds(quick), steps=200, every=50)
    loss = lambda name, label, step: at(ds, name, f"{label}, 10", step) - at(ds, name, f"{label}, 2000", step)
    steps = lambda small, large: at(ds, "R4", f"Best-of-N, {small}", 100) - at(ds, "R4", f"Best-of-N, {large}", 100)
    measures = {
        "Best-of-N on R4 at step 200, B = 10 - offline": loss("R4", "Best-of-N", 200),
        "Best-of-N on R5 at step 200, B = 10 - offline": loss("R5", "Best-of-N", 200),
        "IPO on R4 at step 200, B = 10 - offline": loss("R4", "IPO", 200),
        "Best-of-N on R4 at step 100, B = 10 - B = 100": steps(10, 100),
        "Best-of-N on R4 at step 100, B = 100 - offline": steps(100, 2000),
        "Best-of-N on R4 with shuffled labels": at(ds, "R4", "shuffled"),
    }
    label = lambda size: "offline" if size == max(BATCHES) else f"B = {size}"
    drawn = [
        curve(ds, name, f"{objective}, {size}", f"{objective}, {label(size)}")
        for name in ("R4", "R5") for objective in ("Best-of-N", "IPO") for size in BATCHES
    ]  # fmt: skip
    return Outcome(measures, {"batch_size": pd.concat(drawn)})


claim(
    "C9", "Smaller, more frequent batches are better, far more so when the peak is far.", batch_size,
    [
        Criterion("Best-of-N on R4 at step 200, B = 10 - offline", at_least=0.5),
        Criterion("Best-of-N on R5 at step 200, B = 10 - offline", at_most=0.1),
        Criterion("Best-of-N on R4 at step 100, B = 10 - B = 100", at_least=-0.03),
        Criterion("Best-of-N on R4 at step 100, B = 100 - offline", at_least=-0.03),
        Criterion("Best-of-N on R4 with shuffled labels", at_most=0.2, control=True),
    ],
    why="Within a large batch the responses come from a policy that has been left behind.",
)  # fmt: skip


@figure("batch_size", of=batch_size)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Fresh samples help where the peak is far", markers=True)


# --- how often they are used -----------------------------------------------------------------------------------------
PASSES = (1, 2, 5, 7, 10, 20, 50)
REUSED = {
    "best_of_n": ("Best-of-N", 0.001), "ipo": ("IPO", 0.003), "reinforce_normalized": ("REINFORCE", 0.001),
}  # fmt: skip


@experiment(
    "R4, 50 collections of 10 own responses to the same 10 contexts, 1 to 50 passes over each; learning rate 0.001"
    " (IPO: 0.003); for IPO also with 10 new contexts at each collection.",
    equal="reward queries", seconds=75,
)  # fmt: skip
def reuse(quick: bool) -> Outcome:
    problem, runs = network_bandit("R4", 10), {}
    for group in ((1, 2), (5, 7, 10), (20,), (50,)):
        steps = 50 * group[-1]
        methods = [
            network(objective, f"{label} {passes}", rate, reuse=passes)
            for objective, (label, rate) in REUSED.items()
            for passes in group
        ]
        if 10 in group:
            methods.append(network("best_of_n", "shuffled", 0.001, reuse=10, label_noise=SHUFFLED))
        ds = sweep(problem, methods, seeds=seeds(quick), steps=steps, every=50)
        runs |= {
            str(name): ds["expected_reward"].sel(algorithm=name).squeeze("problem") for name in ds["algorithm"].values
        }
    new = {
        passes: sweep(network_bandit("R4"), network("ipo", "IPO", 0.003, prompts=10, reuse=passes), seeds=seeds(quick),
                      steps=50 * passes, every=50 * passes)["expected_reward"].isel(step=-1).values.ravel()
        for passes in (20, 50)
    }  # fmt: skip
    collected = lambda name, passes, count: runs[f"{name} {passes}"].sel(step=count * passes).values
    measures: dict[str, Any] = {}
    for label, _ in REUSED.values():
        for few, many in itertools.pairwise(PASSES[:5]):
            measures[f"{label} after 50 collections, T = {many} - T = {few}"] = collected(label, many, 50) - collected(
                label, few, 50
            )
    for few, many in ((2, 5), (7, 10)):
        at_100 = {passes: runs[f"Best-of-N {passes}"].sel(step=100).values for passes in (few, many)}
        measures[f"Best-of-N at step 100, T = {many} - T = {few}"] = at_100[many] - at_100[few]
        measures[f"Best-of-N after 50 collections, T = {many} - T = {few}, again"] = collected(
            "Best-of-N", many, 50
        ) - collected("Best-of-N", few, 50)
    measures["IPO after 50 collections, T = 50 - T = 20"] = collected("IPO", 50, 50) - collected("IPO", 20, 50)
    measures["new contexts: IPO after 50 collections, T = 50 - T = 20"] = new[50] - new[20]
    measures["Best-of-N with shuffled labels, T = 10"] = runs["shuffled"].isel(step=-1).values
    family = {"Best-of-N": "supervised", "IPO": "preference", "REINFORCE": "reward"}
    drawn = [
        points(label, PASSES, np.stack([collected(label, passes, 50) for passes in PASSES], -1), family=family[label],
               panel="after 50 collections (5,000 rewards)")
        for label, _ in REUSED.values()
    ]  # fmt: skip
    few = PASSES[1:6]
    drawn += [
        points(label, few, np.stack([runs[f"{label} {passes}"].sel(step=100).values for passes in few], -1),
               family=family[label], panel="after 100 gradient steps")
        for label, _ in REUSED.values()
    ]  # fmt: skip
    return Outcome(measures, {"reuse": pd.concat(drawn)})


claim(
    "C10", "Using samples more than once makes more of each reward.", reuse,
    [
        *(Criterion(f"{label} after 50 collections, T = {many} - T = {few}", at_least=AT_LEAST_SOME)
          for label, _ in REUSED.values() for few, many in itertools.pairwise(PASSES[:5])),
        Criterion("Best-of-N with shuffled labels, T = 10", at_most=0.2, control=True),
    ],
    why="Up to 10 passes, old samples still point the right way.",
)  # fmt: skip
claim(
    "C12", "On-policy Best-of-N with T = 5 learns faster than with T = 2, and T = 10 faster than T = 7.", reuse,
    [
        *(Criterion(f"Best-of-N at step 100, T = {many} - T = {few}", at_least=0.03, where="equal gradient steps")
          for few, many in ((2, 5), (7, 10))),
        *(Criterion(f"Best-of-N after 50 collections, T = {many} - T = {few}, again", at_least=0.03,
                    where="equal reward queries") for few, many in ((2, 5), (7, 10))),
    ],
    why="A gradient step on old samples is worth one on new samples here, so only the number of steps counts.",
    depends_on="what is held equal",
)  # fmt: skip


@figure("reuse", of=reuse)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "passes over each collection, T", REWARD, "Reuse: a gain per reward, not per step (far peak)",
                 log_x=True, markers=True)  # fmt: skip


CLIPPED = {
    "clipped": ("dapo", {"clip_low": 0.2, "clip_high": 0.2}), "ratio": ("dapo", {"clip_low": 0.999, "clip_high": 1e6}),
    "plain": ("reinforce_normalized", {}),
}  # fmt: skip


@experiment(
    "Group z-scores of 10 own responses to the same 10 contexts as pull, learning rate 0.003: clipped ratio (0.2),"
    " ratio without clipping, no ratio; R4: 10 collections of 20 passes (also at 0.01), R5: 50 collections of 10 "
    "or 50 passes.",
    equal="reward queries", seconds=25,
)  # fmt: skip
def clipping(quick: bool) -> Outcome:
    def run(name: str, passes: int, collections: int, every: int, rate: float = 0.003) -> xr.Dataset:
        methods = [
            network(objective, kind, rate, hyper=hyper, reuse=passes) for kind, (objective, hyper) in CLIPPED.items()
        ]
        problem = network_bandit(name, 10)
        return sweep(problem, methods, seeds=seeds(quick), steps=passes * collections, every=every)

    far, near, few = run("R4", 20, 10, 20), run("R5", 50, 50, 250), run("R5", 10, 50, 50)
    fast = run("R4", 20, 10, 20, rate=0.01)
    measures = {
        "R5, T = 50: clipped": at(near, "R5", "clipped"), "R5, T = 50: ratio not clipped": at(near, "R5", "ratio"),
        "R4, T = 20, 10 collections: clipped - not clipped": at(far, "R4", "clipped") - at(far, "R4", "ratio"),
        "R4, T = 20, rate 0.01: clipped - not clipped": at(fast, "R4", "clipped") - at(fast, "R4", "ratio"),
        "R4, T = 20, 10 collections: clipped - no ratio": at(far, "R4", "clipped") - at(far, "R4", "plain"),
        "R5, no ratio: T = 10 - T = 50": at(few, "R5", "plain") - at(near, "R5", "plain"),
    }  # fmt: skip
    names = {"clipped": "clipped ratio", "ratio": "ratio, not clipped", "plain": "no ratio"}
    drawn = [curve(ds, name, kind, label).assign(panel=f"{name}, T = {passes}", family="reward")
             for ds, name, passes in ((far, "R4", 20), (near, "R5", 50)) for kind, label in names.items()]  # fmt: skip
    return Outcome(measures, {"clipping": pd.concat(drawn)})


@figure("clipping", of=clipping)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Does clipping make reuse safe?")


claim(
    "C11", "Too much reuse hurts.", reuse,
    [
        Criterion("IPO after 50 collections, T = 50 - T = 20", at_most=-0.02, where="the same contexts"),
        Criterion("new contexts: IPO after 50 collections, T = 50 - T = 20", at_most=-0.02, where="new contexts"),
    ],
    why="With 50 passes IPO learns the sample; the next collection puts that right where its contexts are new.",
    depends_on="the contexts",
)  # fmt: skip
claim(
    "C11b", "Too much reuse hurts policy gradients, near the reference too.", clipping,
    [Criterion("R5, no ratio: T = 10 - T = 50", at_least=0.02)],
    why="Without a ratio, the same push is repeated on responses that have already lost their mass.",
)  # fmt: skip
claim(
    "C13", "Clipping makes reuse safe.", clipping,
    [
        Criterion("R5, T = 50: clipped", at_least=0.99, where="near peak, T = 50"),
        Criterion("R5, T = 50: ratio not clipped", at_most=0.95, where="near peak, T = 50"),
        Criterion("R4, T = 20, 10 collections: clipped - not clipped", at_least=0.2, where="far peak, T = 20"),
        Criterion("R4, T = 20, rate 0.01: clipped - not clipped", at_least=0.2, where="the same at learning rate 0.01"),
    ],
    why=(
        "A response whose probability has changed by the clip range is let go, so that a collection can be used up"
        " but not overused."
    ), depends_on="problem and number of passes",
)  # fmt: skip


# --- where the winner's mass goes ------------------------------------------------------------------------------------
NUMBERS = (2, 5, 10, 20, 50, 100, 200, 500)


def gains_probe(problem: Problem, state: State) -> dict[str, Any]:
    """Mean log pi / ref over the training contexts: of each group's best response, and of the others' mean [nats]."""
    assert state.log_probs is not None
    gain = (state.logp - state.groups.ref_logp).sum(-1)
    best = jax.nn.one_hot(state.groups.reward.argmax(-1), gain.shape[-1])
    others = (1 - best) / (gain.shape[-1] - 1)
    return {
        "winner": (best * gain).sum(-1).mean(),
        "losers": (others * gain).sum(-1).mean(),
        "expected_reward": metrics.expected_reward(state.log_probs, state.rewards).mean(),  # type: ignore[arg-type]
    }


@experiment(
    "Offline on R4, n contexts x 10 draws from the reference with n from 2 to 500, learning rate 0.003, 200 steps:"
    " log-ratios of each group's best response and of the others, mean over the training contexts.",
    equal="gradient steps", seconds=100,
)  # fmt: skip
def displacement(quick: bool) -> Outcome:
    numbers = (5, 10, 50, 100) if quick else NUMBERS
    problem = network_bandit("R4", max(numbers))
    kinds = {"IPO": "ipo", "Best-of-N": "best_of_n"}
    methods = [
        network(objective, f"{label} {n}", 0.003, offline=True, prompts=n, min_gap=GAP if label == "IPO" else 0.0)
        for label, objective in kinds.items()
        for n in numbers
    ]
    methods += [network(name, f"{name} {n}", 0.003, offline=True, prompts=n)
                for name in ("pref_ft", "dpo") for n in (5, 100)]  # fmt: skip
    ds = sweep(problem, methods, seeds=seeds(quick), steps=200, every=10, probe=gains_probe)
    get = lambda kind, n, y: at(ds, "R4", f"{kind} {n}", y=y)
    rewards = np.stack([get("IPO", n, "expected_reward") for n in numbers])
    measures = {
        "IPO, n = 5: winner (nats)": get("IPO", 5, "winner"),
        "IPO, n = 50: winner (nats)": get("IPO", 50, "winner"),
        "IPO: losers, largest over n (nats)": np.max([get("IPO", n, "losers") for n in numbers], axis=0),
        "IPO: winner - losers, smallest over n (nats)": np.min(
            [get("IPO", n, "winner") - get("IPO", n, "losers") for n in numbers], axis=0),
        "IPO: smallest gain in mean reward from one n to the next": float(np.diff(rewards.mean(1)).min()),
        "Best-of-N: winner, smallest over n (nats)": np.min([get("Best-of-N", n, "winner") for n in numbers], axis=0),
        "Pref-FT, n = 100: winner (nats)": get("pref_ft", 100, "winner"),
        "Pref-FT, n = 100: losers (nats)": get("pref_ft", 100, "losers"),
        "DPO, n = 100: winner (nats)": get("dpo", 100, "winner"),
        "DPO, n = 100: losers (nats)": get("dpo", 100, "losers"),
        "DPO, n = 5: winner (nats)": get("dpo", 5, "winner"),
        "DPO, n = 5: losers (nats)": get("dpo", 5, "losers"),
    }  # fmt: skip
    runs = lambda kind, y: np.stack([get(kind, n, y) for n in numbers], -1)
    paint = {"IPO": "preference", "Best-of-N": "supervised"}
    drawn = [
        points(f"{kind}: {y}", numbers, runs(kind, y), family=paint[kind], panel="log-ratio of training data (nats)")
        for kind in kinds for y in ("winner", "losers")
    ] + [points(kind, numbers, runs(kind, "expected_reward"), family=paint[kind], panel="expected reward")
         for kind in kinds]  # fmt: skip
    return Outcome(measures, {"displacement": pd.concat(drawn)})


claim(
    "C14",
    "With few prompts a contrastive loss raises its winners; with more it lowers them too, while lead and reward grow.",
    displacement,
    [
        Criterion("IPO, n = 5: winner (nats)", at_least=AT_LEAST_SOME),
        Criterion("IPO, n = 50: winner (nats)", at_most=-0.5),
        Criterion("IPO: losers, largest over n (nats)", at_most=0),
        Criterion("IPO: winner - losers, smallest over n (nats)", at_least=3),
        Criterion("IPO: smallest gain in mean reward from one n to the next", at_least=0),
    ],
    why="Logits are shared among contexts: the mass of all losers goes to the actions that win everywhere.",
)  # fmt: skip
claim(
    "C15", "Best-of-N never lowers its winners.", displacement,
    [Criterion("Best-of-N: winner, smallest over n (nats)", at_least=AT_LEAST_SOME)],
    why="Nothing is pushed; what is not imitated pays.",
)  # fmt: skip
claim(
    "C29",
    "Signatures of implicit rewards: imitation of winners raises winner and loser, DPO lowers both where capacity is "
    "short and splits them where pairs are distinct.", displacement,
    [
        Criterion("Pref-FT, n = 100: winner (nats)", at_least=0, where="Pref-FT, both rise"),
        Criterion("Pref-FT, n = 100: losers (nats)", at_least=0, where="Pref-FT, both rise"),
        Criterion("DPO, n = 100: winner (nats)", at_most=0, where="DPO on 100 prompts, both fall"),
        Criterion("DPO, n = 100: losers (nats)", at_most=0, where="DPO on 100 prompts, both fall"),
        Criterion("DPO, n = 5: winner (nats)", at_least=0, where="DPO on 5 prompts, they split"),
        Criterion("DPO, n = 5: losers (nats)", at_most=0, where="DPO on 5 prompts, they split"),
    ],
    why="A bandit's responses share no tokens, so that what imitation adds to winners is missing elsewhere.",
    depends_on="method and number of prompts",
)  # fmt: skip


@figure("displacement", of=displacement)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, "training contexts, n", "nats, reward", "Offline, far peak: winners fall, the reward does not",
                 log_x=True, markers=True, share_y=False)  # fmt: skip


@experiment(
    "Offline on R4, 10 contexts x 10 draws, learning rate 0.003, 200 steps: Best-of-N with the mean log-"
    "probability of the others pushed, coefficients 0.5 and 4.",
    equal="gradient steps", seconds=7,
)  # fmt: skip
def explicit_negative(quick: bool) -> Outcome:
    methods = [
        network("best_of_n", "Best-of-N", 0.003, offline=True, prompts=10),
        *(network("best_of_n_negative", f"negative {c:g}", 0.003, offline=True, prompts=10, hyper={"negative": c})
          for c in (0.5, 4.0)),
    ]  # fmt: skip
    ds = sweep(network_bandit("R4"), methods, seeds=seeds(quick, 10), steps=200, every=10, probe=gains_probe)
    return Outcome(
        {
            "coefficient 0.5 - Best-of-N on R4": at(ds, "R4", "negative 0.5") - at(ds, "R4", "Best-of-N"),
            "coefficient 4: winner (nats)": at(ds, "R4", "negative 4", y="winner"),
        },
        {"explicit_negative": pd.concat([curve(ds, "R4", m.name) for m in methods])},
    )


claim(
    "C16", "Best-of-N with an explicit negative term finds a better solution.", explicit_negative,
    [
        Criterion("coefficient 0.5 - Best-of-N on R4", at_least=AT_LEAST_SOME, where="coefficient 0.5"),
        Criterion("coefficient 4: winner (nats)", at_least=-20, where="coefficient 4, which must not diverge"),
    ],
    why=(
        "The term is unbounded below: a small coefficient frees mass for the winner, a large one drives all "
        "training responses out."
    ), depends_on="the coefficient",
)  # fmt: skip


@figure("explicit_negative", of=explicit_negative)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Best-of-N with an explicit negative term, 10 contexts, far peak")


# --- weights that compare across prompts -----------------------------------------------------------------------------
@experiment(
    "Offline on R4, 100 x 10 draws, learning rate 0.003, 200 steps: weights exp(r / 0.1); the same normalised "
    "within each prompt; exp(z / 0.1) with z the score within a prompt, (r - mean) / (std + 1e-4).",
    equal="gradient steps", seconds=11,
)  # fmt: skip
def weights(quick: bool) -> Outcome:
    kinds = {"rwr": "across prompts", "rwr_normalized": "within a prompt", "awr": "by z-score"}
    methods = [
        *(network(name, label, 0.003, offline=True, hyper={"beta": 0.1}) for name, label in kinds.items()),
        network("best_of_n", "Best-of-N", 0.003, offline=True),
        network("ipo", "IPO", 0.003, offline=True, min_gap=GAP),
    ]
    ds = sweep(network_bandit("R4"), methods, seeds=seeds(quick), steps=200, every=20)
    measures = {f"weights {label}": at(ds, "R4", label) for label in kinds.values()}
    measures |= {f"weights {label} - IPO": at(ds, "R4", label) - at(ds, "R4", "IPO") for label in kinds.values()}
    names = {label: f"RWR, {label}" for label in kinds.values()}
    return Outcome(measures, {"weights": pd.concat([curve(ds, "R4", m.name, names.get(m.name, "")) for m in methods])})


claim(
    "C20", "Offline supervised methods lose on a far peak.", weights,
    [
        criterion
        for label in ("across prompts", "within a prompt", "by z-score")
        for criterion in (Criterion(f"weights {label} - IPO", at_most=-AT_LEAST_SOME, where=f"weights {label}"),
                          Criterion(f"weights {label}", at_most=0.4, where=f"weights {label}"))
    ],
    why=(
        "The reward ignores the context, so that a small temperature picks the best of all 1,000 draws and not of "
        "each 10; z-scores do so too through the 1e-4 in their denominator, which mutes prompts whose rewards are "
        "all tiny (0.31 without it)."
    ), depends_on="the weights",
)  # fmt: skip


@figure("weights", of=weights)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, REWARD, "Offline, far peak: weights across prompts select among all 1,000 draws")


# --- a reward that was learnt ----------------------------------------------------------------------------------------
@experiment(
    "R4: a reward model fitted to the offline learner's own 100 x 10 draws (network or table; labels without "
    "noise, or Bradley-Terry with temperature 0.2); on-policy methods optimise it, 100 x 10 own responses, 15 "
    "passes, learning rate 0.003, 300 steps.",
    equal="gradient steps", seconds=40,
)  # fmt: skip
def proxies(quick: bool) -> Outcome:
    kinds = {"best_of_n": "Best-of-N", "ipo": "IPO", "reinforce_normalized": "REINFORCE"}
    noises = {"": None, ", noisy labels": 0.2}
    methods = [
        network(objective, f"{label}, {proxy}{word}", 0.003, reuse=15, proxy=proxy, label_noise=noise)
        for objective, label in kinds.items() for proxy in ("network", "table") for word, noise in noises.items()
        if noise is None or (proxy == "network" and objective == "ipo")
    ] + [
        network("ipo", "IPO offline", 0.003, offline=True, min_gap=GAP),
        network("best_of_n", "Best-of-N offline", 0.003, offline=True),
        network("ipo", "IPO offline, noisy labels", 0.003, offline=True, min_gap=GAP, label_noise=0.2),
    ]  # fmt: skip
    ds = sweep(network_bandit("R4"), methods, seeds=seeds(quick), steps=300, every=15)
    measures: dict[str, Any] = {
        f"{label} with the {proxy}'s reward": at(ds, "R4", f"{label}, {proxy}")
        for label in kinds.values() for proxy in ("network", "table")
    }  # fmt: skip
    measures |= {"offline IPO": at(ds, "R4", "IPO offline"), "offline Best-of-N": at(ds, "R4", "Best-of-N offline")}
    measures["noisy labels: IPO with the network's reward - offline IPO"] = at(
        ds, "R4", "IPO, network, noisy labels"
    ) - at(ds, "R4", "IPO offline, noisy labels")
    shown = (
        "IPO, network",
        "REINFORCE, network",
        "Best-of-N, network",
        "IPO, table",
        "IPO offline",
        "Best-of-N offline",
    )
    return Outcome(measures, {"proxy_rewards": pd.concat([curve(ds, "R4", name) for name in shown])})


OFFLINE_ONLY = [
    Criterion("offline IPO", at_most=0.75, where=f"a {kind} as reward model") for kind in ("network", "table")
] + [Criterion("offline Best-of-N", at_most=0.4, where=f"a {kind} as reward model") for kind in ("network", "table")]
claim(
    "C27", "On-policy learning from a reward model beats offline learning from the same labels.", proxies,
    [
        *(Criterion(f"{label} with the {kind}'s reward", at_least=0.85, where=f"a {kind} as reward model")
          for label in ("Best-of-N", "IPO", "REINFORCE") for kind in ("network", "table")),
        *OFFLINE_ONLY,
        Criterion("noisy labels: IPO with the network's reward - offline IPO", at_least=0.1,
                  where="a network and noisy labels"),
    ],
    why="The reward model carries what it saw over to neighbours that the draws hold rarely.",
    depends_on="the reward model",
)  # fmt: skip


@figure("proxy_rewards", of=proxies)
def _(table: pd.DataFrame) -> Figure:
    return lines(table, STEPS, "expected true reward", "On-policy with a learnt reward, offline with its labels")

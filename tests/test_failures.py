"""What users get wrong, row by row: refused at the door, in words that help, before anything is compiled.

The rows are those of the catalogue of failures that the package was designed against: 1 to 32 data, 33 to 53 options,
54 to 61 randomness, 62 to 78 the machine, 79 to 94 results. Rows x1, x2, ... were found later by trying.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pandas as pd
import pytest

import bandit_pft
from bandit_pft import (
    ExactGroup,
    Group,
    Method,
    bandit,
    context_network,
    contextual_bandit,
    distribution_probe,
    errors,
    factorised,
    force,
    kernels,
    length_problem,
    measure,
    paper_bandit,
    paper_reference,
    paper_sequences,
    peaks,
    prepare,
    sequences,
    simulate,
    sweep,
    transformer,
    with_kl,
)
from bandit_pft.errors import (
    UNCHECKED,
    ConfigError,
    DomainError,
    ResourceError,
    ShapeError,
    available_memory,
    check_memory,
    host_memory,
    is_traced,
)
from bandit_pft.groups import best_of_n_weights
from bandit_pft.objectives.core import OBJECTIVES, _measure, as_objective
from bandit_pft.store import Store, as_json, machine
from bandit_pft.sweep import describe

TESTS = Path(__file__).parent
SOURCES = [path.read_text() for path in sorted((TESTS.parent / "bandit_pft").rglob("*.py"))]
NAN, INF, MANY = float("nan"), float("inf"), 10**12

R4 = paper_bandit("R4")
FOUR = paper_bandit("R4", 4, key=jax.random.key(0))
GRPO = Method("grpo")
REWARD, LOGP = np.array([1.0, 0.0, 0.2]), np.log([[0.4], [0.4], [0.2]])
GROUP = Group.of(reward=REWARD, ref_logp=LOGP)


def group(**given: Any) -> Group:
    return Group.of(**{"reward": REWARD, "ref_logp": LOGP, **given})


def method_of(body: Callable[..., Any], **options: Any) -> Method:
    """A method whose objective has this body, as a user writes one in a notebook."""

    def mine(logp: Any, group: Any) -> Any:
        """Mine.

        L = 1
        """
        return body(logp, group)

    return Method(as_objective(mine), **options)


def objective_with(default: Any) -> Any:
    def mine(logp: Any, group: Any, *, beta: Any = default) -> Any:
        """Mine."""
        return beta * logp.sum()

    return as_objective(mine)


def rewarded(reward_fn: Any) -> Any:
    return sequences(np.zeros((1, 2, 3)), reward_fn=reward_fn)


# Row, what goes wrong, the call, the class of the error, and words of its message: argument, value found, way out.
TABLE: list[tuple[Any, str, Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    # --- data ------------------------------------------------------------------------------------------------------
    (7, "more actions than memory", lambda: peaks(MANY, 1.0, 1.0), ResourceError,
     ("num_actions = 1000000000000", "needs 4000.0 GB", "take fewer actions")),
    (14, "rewards as a column", lambda: bandit(np.zeros((5, 1)), np.zeros(5)), ShapeError,
     ("ref has shape (5,)", "it must be (5, 1)", "never broadcast")),
    (19, "a reference that cannot give what was drawn", lambda: group(ref_logp=[-1.0, -INF, -1.0]), DomainError,
     ("ref_logp[1, 0] is -inf", "finite", "mask")),
    (21, "probabilities as logits", lambda: bandit(np.zeros(100_000), jax.nn.softmax(jnp.arange(100_000) / 1e4)),
     DomainError, ("ref holds probabilities", "sum 1", "must hold logits", "probs=")),
    (23, "a temperature without end", lambda: Method("dpo", label_noise=INF), DomainError,
     ("label_noise is inf", "finite and at least 0", "It is a temperature")),
    (25, "an action that does not exist", lambda: R4.index_of(np.array([[3], [100]])), DomainError,
     ("response[1, 0] is 100", "0 to 99")),
    # --- options ---------------------------------------------------------------------------------------------------
    (36, "a learning rate that is no number", lambda: Method("dpo", learning_rate=NAN), DomainError,
     ("learning_rate is nan", "finite and at least 0")),
    (39, "an empty batch", lambda: Method("grpo", prompts=0), ConfigError, ("prompts is 0", "at least 1")),
    (41, "the best of none", lambda: Method("best_of_n", num_responses=0), ConfigError,
     ("num_responses is 0", "at least 1")),
    (44, "a batch that its parts do not fill", lambda: simulate(FOUR, Method("grpo", minibatch=3), 0, steps=1),
     ConfigError, ("minibatch is 3", "must divide prompts = 4")),
    (51, "nan in a configuration", lambda: Method("kto", threshold=NAN), DomainError, ("threshold is nan", "finite")),
    # --- randomness, the machine -----------------------------------------------------------------------------------
    (55, "a seed that would be cut off", lambda: simulate(R4, GRPO, 2**32, steps=1), ConfigError,
     ("seed is 4294967296", "from 0 to 4294967295")),
    (58, "more steps than can be counted", lambda: simulate(R4, GRPO, 0, steps=2**31), ConfigError,
     ("steps is 2147483648", "below 1073741824")),
    (72, "an objective that fails", lambda: simulate(R4, method_of(lambda logp, group: 1 / 0), 0, steps=1), ConfigError,
     ("objective mine fails", "ZeroDivisionError", "division by zero")),
    (74, "a Python if on a traced number",
     lambda: simulate(R4, method_of(lambda logp, group: logp.sum() if logp.sum() > 0 else 0.0), 0, steps=1),
     ConfigError, ("objective mine fails", "if", "jnp.where")),
    # --- found by trying: data -------------------------------------------------------------------------------------
    ("x1", "a masked array", lambda: bandit(np.ma.array([1.0, 2.0], mask=[0, 1])), DomainError,
     ("reward is a masked array", "fill or drop")),
    ("x2", "a number too large for the array type", lambda: bandit([0.0, 1e39]), DomainError,
     ("reward[1] is 1e+39", "too large for float32", "unit")),
    ("x3", "a random key as data", lambda: bandit(jax.random.key(0)), TypeError,
     ("reward holds key", "pass an array or list of int or float")),
    ("x4", "a generator", lambda: bandit(x for x in (1.0, 2.0)), TypeError,
     ("reward holds generator", "pass an array or list")),
    ("x5", "numbers and None", lambda: bandit(np.array([None, 1.0])), TypeError,
     ("reward holds NoneType", "pass an array or list")),
    ("x6", "a missing number of pandas", lambda: bandit(pd.array([0, None, 2], dtype="Int64")), DomainError,
     ("reward is a masked array", "fill or drop")),
    ("x7", "probabilities as logits of the data", lambda: bandit(np.zeros(2), data=[0.5, 0.5]), DomainError,
     ("data holds probabilities", "np.log")),
    ("x8", "probabilities as logits of tokens", lambda: sequences(np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.5)),
     DomainError, ("ref holds probabilities", "np.log")),
    ("x9", "probabilities as log-probabilities", lambda: group(ref_logp=[0.4, 0.4, 0.2]), DomainError,
     ("ref_logp holds probabilities", "up to 0.4", "at most 0", "logarithm")),
    ("x10", "the learner's probabilities as log-probabilities", lambda: force("dpo", np.exp(LOGP), GROUP), DomainError,
     ("logp holds probabilities", "up to 0.4", "logarithm")),
    ("x11", "a learner that is nan", lambda: force("dpo", LOGP * NAN, GROUP), DomainError,
     ("logp[0, 0] is nan", "finite")),
    ("x12", "log-probabilities without the token axis", lambda: force("dpo", LOGP[:, 0], GROUP), ShapeError,
     ("logp has shape (3,)", "(any, any)")),
    ("x13", "no group", lambda: force("dpo", LOGP, {"reward": REWARD}), TypeError, ("group is {", "Group.of(")),
    ("x14", "a list of groups", lambda: prepare([GROUP, GROUP]), TypeError, ("groups must be one Group", "jnp.stack")),
    ("x15", "a mask of weights", lambda: group(mask=[[1.0], [0.5], [0.0]]), TypeError,
     ("mask holds float64", "whole numbers")),
    ("x16", "tokens that are no numbers", lambda: group(response=["a", "b", "c"]), TypeError,
     ("response holds <U1", "whole numbers")),
    ("x17", "padding that is not masked", lambda: group(response=[0, 1, -100]), DomainError,
     ("response holds -100", "at least 0", "mask the padding")),
    ("x18", "a temperature for each response", lambda: group(temperature=[0.1, 0.2, 0.3]), TypeError,
     ("temperature is [0.1, 0.2, 0.3]", "real number")),
    ("x19", "a threshold as an array", lambda: group(threshold=np.zeros(3)), ShapeError,
     ("threshold has shape (3,)", "one number")),
    ("x20", "the best of half a draw", lambda: best_of_n_weights(jnp.ones(2) / 2, jnp.arange(2.0), 0.5), DomainError,
     ("n is 0.5", "at least 1")),
    ("x21", "a peak at nan", lambda: peaks(10, NAN, 1.0), DomainError, ("places[0] is nan", "finite")),
    ("x22", "a peak without a place", lambda: peaks(10, None, 1.0), TypeError,
     ("places holds NoneType", "int or float")),
    ("x23", "a width that float32 takes for 0", lambda: contextual_bandit(jax.random.key(0), 1, 1, 9, width=1e-39),
     DomainError, ("width is", "which compiled code holds as 0", "greater than 0")),
    ("x24", "sequences longer than memory", lambda: paper_sequences("R6", MANY), ResourceError,
     ("length = 1000000000000", "take shorter sequences")),
    ("x25", "a vocabulary larger than memory", lambda: length_problem("min", MANY), ResourceError,
     ("vocabulary = 1000000000000", "take fewer")),
    ("x26", "more contexts than memory", lambda: paper_bandit("R4", MANY, key=jax.random.key(0)), ResourceError,
     ("contexts = 1000000000000", "take fewer contexts")),
    ("x27", "more draws than memory", lambda: paper_reference(10, key=jax.random.key(0), samples=MANY), ResourceError,
     ("samples = 1000000000000", "take fewer samples")),
    ("x28", "a list in the place of a name", lambda: paper_bandit(["R4"]), ConfigError, ("which is ['R4']", "R4")),
    ("x29", "an array in the place of a name", lambda: length_problem(np.array(["min", "max"])), ConfigError,
     ("kind is array(", "choose from min, mode, skew")),
    ("x30", "a title that is no text", lambda: bandit(np.zeros(2), name=["a"]), TypeError, ("name is ['a']", "string")),
    ("x31", "a reward that is nan", lambda: rewarded(lambda x, y, m: NAN * y[0]), DomainError,
     ("reward_fn <lambda>", "is nan", "finite")),
    ("x32", "a reward with a Python if", lambda: rewarded(lambda x, y, m: 1.0 if y[0] > 0 else 0.0), ConfigError,
     ("reward_fn <lambda> fails", "if", "jnp.where")),
    ("x33", "a reward in NumPy", lambda: rewarded(lambda x, y, m: np.asarray(y).sum() * 1.0), ConfigError,
     ("reward_fn <lambda> fails", "jax.numpy")),
    ("x34", "a context beyond the last, as an array", lambda: R4.ref_table(jnp.asarray(5)), DomainError,
     ("context is 5", "run from 0 to 0")),
    ("x35", "no context", lambda: R4.reward_table(None), TypeError, ("context is None", "whole number")),
    ("x36", "several contexts", lambda: FOUR.ref_table(np.array([0, 1])), ShapeError,
     ("context has shape (2,)", "vmap over several")),
    ("x37", "the place of a response beyond the last", lambda: R4.response_at([0, 100]), DomainError,
     ("index is 100", "run from 0 to 99")),
    ("x38", "logits of fewer tokens", lambda: R4.log_prob(np.zeros((1, 50)), [70]), ShapeError,
     ("logits has shape (1, 50)", "(1, 100)")),
    ("x39", "fewer draws than none", lambda: R4.sample_ref(0, jax.random.key(0), -1), ConfigError,
     ("n is -1", "at least 0")),
    ("x40", "more draws at a time than memory", lambda: R4.sample_ref(0, jax.random.key(0), MANY), ResourceError,
     ("n = 1000000000000", "draw fewer")),
    ("x41", "a seed in the place of a key", lambda: paper_bandit("R4", 2, key=7), TypeError,
     ("key is 7", "jax.random.key(0)")),
    ("x42", "a key of the old kind", lambda: contextual_bandit(jax.random.PRNGKey(0), 2), TypeError,
     ("key is an array of uint32", "jax.random.key(0)")),
    ("x43", "several keys", lambda: paper_reference(10, key=jax.random.split(jax.random.key(0))), ShapeError,
     ("key has shape (2,)", "one key", "vmap")),
    ("x44", "several temperatures of the optimum", lambda: R4.optimum(np.array([0.1, 0.2])), ShapeError,
     ("beta has shape (2,)", "one number", "vmap")),
    # --- found by trying: options ----------------------------------------------------------------------------------
    ("x45", "a beta that float32 takes for 0", lambda: Method("dpo", {"beta": 1e-39}), DomainError,
     ("dpo: beta is 1e-39", "which compiled code holds as 0", "greater than 0")),
    ("x46", "a learning rate that float32 takes for inf", lambda: Method("dpo", learning_rate=1e39), DomainError,
     ("learning_rate is 1e+39", "which compiled code holds as inf", "finite")),
    ("x47", "a smoothing that float32 takes for its limit", lambda: measure("cdpo", label_smoothing=0.5 - 1e-9),
     DomainError, ("cdpo: label_smoothing is 0.499999999", "which compiled code holds as 0.5", "below 0.5")),
    ("x48", "a learning rate for each action", lambda: Method("grpo", learning_rate=np.ones(100)), ShapeError,
     ("learning_rate has shape (100,)", "one number", "vmap")),
    ("x49", "a hyper-parameter as a list", lambda: force("dpo", LOGP, GROUP, beta=[0.1]), TypeError,
     ("dpo: beta is [0.1]", "real number")),
    ("x50", "yes in the place of a number", lambda: Method("dpo", learning_rate=np.True_), TypeError,
     ("learning_rate is np.True_", "real number")),
    ("x51", "an axis with a value out of range", lambda: sweep(R4, GRPO, seeds=[0], steps=1, grid={"clip": [0.2, 2.0]}),
     DomainError, ("grpo: clip is 2.0", "below 1")),
    ("x52", "a rate in the place of a schedule", lambda: Method("dpo", schedule=0.1), TypeError,
     ("schedule is 0.1", "function of the step")),
    ("x53", "a schedule with a Python if", lambda: Method("dpo", schedule=lambda t: 1.0 if t > 5 else 0.5), ConfigError,
     ("schedule fails", "if", "jnp.where")),
    ("x54", "a schedule for each action", lambda: Method("dpo", schedule=lambda t: jnp.ones(100)), ShapeError,
     ("schedule returns shape (100,)", "one number")),
    ("x55", "an optimiser that was not made", lambda: Method("dpo", optimizer=optax.adam), TypeError,
     ("optimizer is <function adam", "optax.adam(1.0)")),
    ("x56", "a policy that was not made", lambda: Method("dpo", policy=transformer), TypeError,
     ("policy is <function transformer", "tabular")),
    ("x57", "an array in the place of a choice", lambda: Method("dpo", data=np.array(["exact"])), ConfigError,
     ("data is array(", "did you mean exact")),
    ("x58", "a name that is no text", lambda: Method("dpo", name=3), TypeError, ("name is 3", "string")),
    ("x59", "widths as a list", lambda: context_network([50, 50]), TypeError, ("hidden is [50, 50]", "tuple")),
    ("x60", "one width", lambda: context_network(50), TypeError, ("hidden is 50", "tuple", "(50, 256)")),
    ("x61", "an array for a size", lambda: transformer(layers=np.array(2)), TypeError,
     ("layers is array(2)", "number")),
    ("x62", "a place of a penalty that is an array", lambda: with_kl("dpo", "k2", np.array(["loss"])), ConfigError,
     ("place is array(", "did you mean loss")),
    # --- found by trying: functions of the user --------------------------------------------------------------------
    ("x63", "a loss for each response", lambda: simulate(R4, method_of(lambda logp, group: logp[:, 0]), 0, steps=1),
     ShapeError, ("objective mine returns float32 of shape (10,)", "one float", "group.mean")),
    ("x64", "a loss that is a whole number", lambda: force(method_of(lambda logp, group: 1).objective, LOGP, GROUP),
     ShapeError, ("objective mine returns int32", "one float")),
    ("x65", "a forgotten return", lambda: simulate(R4, method_of(lambda logp, group: None), 0, steps=1), ConfigError,
     ("objective mine fails", "None")),
    ("x66", "a mistyped field of the group",
     lambda: simulate(R4, method_of(lambda logp, group: group.rewards.sum()), 0, steps=1), ConfigError,
     ("objective mine fails", "AttributeError", "rewards")),
    ("x67", "a default out of range", lambda: objective_with(-1.0), DomainError,
     ("mine: beta is -1.0", "greater than 0")),
    ("x68", "a default that is text", lambda: objective_with("0.1"), TypeError, ("mine: beta is '0.1'", "real number")),
    ("x69", "a function of C", lambda: as_objective(max), TypeError,
     ("objective is <built-in function max>", "(logp, group, *, ...)")),
    ("x70", "a module without a name", lambda: Method(":"), ConfigError, ("objective ':'", "cannot be loaded")),
    ("x78", "more features than memory", lambda: contextual_bandit(jax.random.key(0), 2, MANY), ResourceError,
     ("contexts = 2", "take fewer")),
    ("x79", "more bins than memory", lambda: paper_reference(MANY), ResourceError,
     ("num_actions = 1000000000000", "take fewer actions")),
    ("x80", "a seed for a draw", lambda: R4.sample_ref(0, 7, 3), TypeError, ("key is 7", "jax.random.key(0)")),
    ("x81", "a number of a module", lambda: Method("math:pi"), ConfigError,
     ("objective 'math:pi'", "cannot be loaded", "(logp, group, *, ...)")),
    ("x82", "a peak that moves to nan", lambda: contextual_bandit(jax.random.key(0), 2, 2, 9, shift=NAN), DomainError,
     ("shift is nan", "finite")),
    ("x83", "no context", lambda: contextual_bandit(jax.random.key(0), 0), ConfigError,
     ("contexts is 0", "at least 1")),
    ("x84", "lengths that do not vary", lambda: length_problem("min", spread=0), DomainError,
     ("spread is 0", "greater than 0")),
    ("x85", "an empirical reference without data", lambda: paper_reference(10, key=jax.random.key(0), samples=0),
     ConfigError, ("samples is 0", "at least 1")),
    ("x86", "sequences of no token", lambda: paper_sequences("R7", 0), ConfigError, ("length is 0", "at least 1")),
    ("x87", "a memory that float32 takes for all", lambda: Method("ppo_clip", memory=1 - 1e-9), DomainError,
     ("memory is 0.999999999", "which compiled code holds as 1", "below 1")),
    ("x88", "a gap below 0", lambda: Method("dpo", min_gap=-0.1), DomainError, ("min_gap is -0.1", "at least 0")),
    ("x89", "another reference", lambda: Method("dpo", reference="first"), ConfigError,
     ("reference is 'first'", "initial")),
    ("x71", "a mask of counts", lambda: group(mask=[[2], [1], [0]]), DomainError, ("mask holds 2", "from 0 to 1")),
    ("x72", "a batch of another shape",
     lambda: prepare(jax.tree.map(lambda x: x[None], GROUP), np.zeros((2, 3, 1))), ShapeError,
     ("logp has shape (2, 3, 1)", "(1, 3, 1)")),
    ("x73", "whole distributions of what cannot be listed",
     lambda: simulate(paper_sequences("R6"), Method("sft", policy=factorised), 0, steps=1, probe=distribution_probe),
     ConfigError, ("distribution_probe", "enumerated", "standard_probe")),
    ("x74", "a problem in the place of a number", lambda: Method("dpo", learning_rate=FOUR), TypeError,
     ("learning_rate is Problem(", "...; it must be a real number")),
]  # fmt: skip


# --- what is allowed -------------------------------------------------------------------------------------------------
def forbidden_actions_leave_the_problem_of_the_others() -> None:
    reward, ref = np.array([1.0, 0.3, -2.0, 0.7]), np.array([0.1, 0.5, 2.0, -1.0])
    some = np.array([True, False, True, True])
    whole = bandit(reward, np.where(some, ref, -INF)).optimum(0.5)[0]
    np.testing.assert_allclose(whole[some], bandit(reward[some], ref[some]).optimum(0.5)[0], atol=1e-6)
    assert np.isneginf(whole[~some]).all()


def lists_frames_and_series_are_arrays() -> None:
    rows = [[0.0, 1.0], [2.0, 3.0]]
    for given in (rows, tuple(rows), np.array(rows), jnp.array(rows), pd.DataFrame(rows)):
        np.testing.assert_array_equal(bandit(given).reward_table(1), [2, 3])
    np.testing.assert_array_equal(bandit(pd.Series([0.0, 1.0], index=[7, 3])).reward_table(0), [0, 1])


def a_ratio_beyond_two_to_the_31_stays_finite_when_compiled() -> None:
    optimum = jax.jit(lambda reward, beta: bandit(reward).optimum(beta)[0])
    for size, beta in itertools.product((1e-3, 1.0, 1e10, 1e30), (1e-12, 1e-3, 1.0)):
        logp = np.asarray(optimum(size * jnp.array([0.0, 1.0, -1.0, 0.5]), beta))
        assert not np.isnan(logp).any() and abs(np.exp(logp).sum() - 1) < 1e-6 and logp[1] == logp.max()


def a_tiny_beta_pulls_with_finite_forces() -> None:
    for name in ("rwr", "rwr_normalized", "awr", "dpo", "ipo", "kto"):
        assert np.isfinite(force(name, LOGP - 0.3, GROUP, beta=1e-8)).all(), name
    every = ExactGroup.of(reward=REWARD, ref_logp=LOGP, weight=np.exp(LOGP[:, 0]), draws=4)
    for name in ("reverse_kl", "forward_kl"):
        assert np.isfinite(force(name, LOGP, every, beta=1e-8)).all(), name


def numbers_of_numpy_and_jax_are_numbers() -> None:
    made = Method("grpo", {"clip": jnp.asarray(0.25)}, np.float32(0.5), num_responses=np.int64(6), reuse=np.array(2))
    plain = Method("grpo", {"clip": 0.25}, 0.5, num_responses=6, reuse=2)
    assert jax.tree.leaves(made) == jax.tree.leaves(plain)
    text = json.dumps(as_json(describe(made)), allow_nan=False)
    assert json.loads(text) == json.loads(json.dumps(as_json(describe(plain)))) == as_json(describe(plain))


def two_threads_get_what_one_gets() -> None:
    from concurrent.futures import ThreadPoolExecutor

    problem = bandit([0.0, 1.0, 0.5])
    run = lambda seed: np.asarray(simulate(problem, GRPO, seed, steps=3).record["kl"])
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (0, 1)))
    np.testing.assert_array_equal(together, [run(0), run(1)])
    assert (together[0] != together[1]).any()


def a_column_of_rewards_is_contexts_of_one_action_and_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"one action: nothing to learn \(reward has shape \(5, 1\); .*reward\[:, 0\]"):
        assert bandit(np.zeros((5, 1))).num_contexts == 5


def more_draws_than_actions_are_drawn_with_replacement() -> None:
    assert R4.sample_ref(0, jax.random.key(0), 300).shape == (300, 1)
    assert Method("best_of_n", num_responses=300).num_responses == 300


def a_traced_number_is_not_looked_at() -> None:
    """What is refused in the open passes where it is not known yet: no check turns a tracer into a number."""
    traced = jax.vmap(lambda beta: force("dpo", jnp.asarray(LOGP, jnp.float32), GROUP, beta=beta))
    assert traced(jnp.array([-1.0, 0.0, 1.0])).shape == (3, 3, 1)

    @jax.jit
    def made(reward: Any, logp: Any, weight: Any, mask: Any, response: Any, number: Any) -> Any:
        inside = Group.of(reward=reward, ref_logp=logp, old_logp=logp, weight=weight, mask=mask, response=response,
                          temperature=number, threshold=number, scale=number, draws=number)  # fmt: skip
        Method("dpo", {"beta": number}, number, on_policy=number, label_noise=number, memory=number)
        problem = bandit(reward, reward)
        where = peaks(3, number, number, number) + problem.ref_table(response[0, 0]) + problem.optimum(number)[0]
        return inside.weight.sum(), where.sum(), problem.log_prob(logp.T, response)

    bad = jnp.full(3, jnp.nan), jnp.full((3, 1), 0.5), -jnp.ones(3), jnp.ones((3, 1), bool), jnp.full((3, 1), 9)
    assert jax.tree.map(jnp.shape, made(*bad, jnp.asarray(-1.0))) == ((), (), (3, 1))


ALLOWED: dict[Any, Callable[[], None]] = {
    3: forbidden_actions_leave_the_problem_of_the_others,
    12: lists_frames_and_series_are_arrays,
    24: a_ratio_beyond_two_to_the_31_stays_finite_when_compiled,
    34: a_tiny_beta_pulls_with_finite_forces,
    52: numbers_of_numpy_and_jax_are_numbers,
    77: two_threads_get_what_one_gets,
    "x75": a_column_of_rewards_is_contexts_of_one_action_and_a_warning,
    "x76": more_draws_than_actions_are_drawn_with_replacement,
    "x77": a_traced_number_is_not_looked_at,
}


# --- what the design makes impossible --------------------------------------------------------------------------------
def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def nothing_warns_of_float64() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = bandit(np.zeros(3), np.zeros(3))
    return made.ref_logits.dtype == jnp.float32 and machine()["jax_enable_x64"] is False


def nowhere(*words: str) -> bool:
    return bool(SOURCES) and not any(word in source for word in words for source in SOURCES)


# Row, why there is nothing to refuse, and what shows it.
STRUCK: list[tuple[int, str, Callable[[], bool]]] = [
    (9, "NumPy's numbers are float64: a warning for each would hide the others. Results name the precision.",
     nothing_warns_of_float64),
    (29, "Pairs are made of scores, never listed by the user; a tie is no pair, so no response meets itself.",
     lambda: float(group(score=[1.0, 1.0, 1.0]).pair_count().sum()) == 0 and "pair" not in arguments(Group.of)),
    (30, "Pairs are made of scores, and any two that differ are one: without a min_gap the graph cannot fall apart.",
     lambda: bool((GROUP.preferred() + GROUP.preferred().T == 1 - np.eye(3)).all())),
    (31, "A run ends after its steps, at a finite lead; `cdpo` and `ipo` are there to have an optimum.",
     lambda: "finite" in OBJECTIVES["cdpo"].summary and "target" in OBJECTIVES["ipo"].summary),
    (48, "Axes are the keys of one dictionary and always a full product: none has a twin, none is zipped.",
     lambda: "grid" in arguments(sweep) and not {"zip", "zipped"} & arguments(sweep)),
    (54, "A sweep takes seeds alone, and a run draws every step's key from its own by fold_in.",
     lambda: "seeds" in arguments(sweep) and not {"key", "keys"} & arguments(sweep)),
    (66, "The package sets neither precision nor devices, so it cannot be too late for it.",
     lambda: nowhere('update("jax_enable_x64"', 'update("jax_platforms"', "jax_num_cpu_devices", "XLA_FLAGS")),
    (71, "Nothing measures by the clock of the wall.", lambda: nowhere("time.time(", "datetime.now(")),
    (76, "Every process the package starts is a fresh one, so nothing is forked after JAX has started.",
     lambda: nowhere("os.fork", "multiprocessing.Pool", "multiprocessing.Process")
     and all('get_context("spawn")' in source for source in SOURCES if "ProcessPool" in source)),
    (78, "How many kernels share the cores is for who serves them to say.", lambda: nowhere("OMP_NUM_THREADS")),
    (89, "Tiles are named by their number alone, in one width: no name is long, or differs from another by its case.",
     lambda: Store(Path("runs"), {}).path(7).name == "000007.npz"),
]  # fmt: skip

# --- what other files check ------------------------------------------------------------------------------------------
BANDIT = "test_problems.py::test_bandit_refuses_and_says_why"
PROBLEM = "test_problems.py::test_other_wrong_input_is_refused_and_says_why"
RUN = "test_simulate.py::test_bad_input_is_refused_with_its_name_and_a_way_out"
SWEEP = "test_sweep.py::test_bad_input_is_refused_with_its_name_and_a_way_out"
RANGE = "test_laws.py::test_a_value_outside_its_range_is_refused_by_every_objective_that_has_it"
BITS = "test_store.py::test_other_versions_or_another_machine_warn_and_are_refused_when_strict"
TILE = "test_store.py::test_a_damaged_or_foreign_tile_is_refused_with_its_path_and_redone_once_deleted"
MANIFEST = "test_store.py::test_a_damaged_newer_or_older_manifest_is_refused_with_its_path"
WRITER = (
    "test_store.py::"
    "test_a_second_writer_is_refused_with_the_process_and_host_of_the_first_and_let_in_when_that_has_ended"
)
STOP = "test_store.py::test_ctrl_c_and_sigterm_stop_between_segments_and_say_how_to_go_on"
ELSEWHERE: dict[int, str] = {
    **dict.fromkeys((1, 2, 4, 5, 10, 11, 13, 15, 28), BANDIT),
    6: "test_problems.py::test_one_action_is_allowed_with_a_warning",
    8: "test_problems.py::test_outside_numbers_of_several_kinds_are_accepted",
    16: "test_laws.py::test_equal_rewards_give_exactly_no_force",
    17: "test_sweep.py::test_diverging_runs_are_reported_in_one_line_and_the_others_survive",
    18: "test_groups.py::test_best_and_worst_share_ties_and_ignore_padding",
    20: "test_metrics.py::test_a_forbidden_action_adds_nothing_and_an_impossible_reference_gives_infinity",
    22: "test_problems.py::test_probabilities_below_the_smallest_float32_keep_their_logarithm",
    26: "test_problems.py::test_outside_responses_are_read_as_whole_numbers_and_padded_after_the_end",
    27: PROBLEM,
    32: "test_laws.py::test_a_response_of_weight_0_has_no_force_and_changes_no_other",
    33: RANGE,
    35: RANGE,
    37: "test_simulate.py::test_a_diverging_run_is_frozen_and_says_at_which_step",
    38: "test_simulate.py::test_zero_steps_give_the_reference",
    40: "test_simulate.py::test_a_record_larger_than_memory_is_refused_before_it_runs",
    42: "test_groups.py::test_best_of_a_million_keeps_its_relative_precision",
    43: RUN,
    45: "test_trl.py::test_group_objective_is_that_of_the_grpo_trainer",
    46: RUN,
    47: "test_laws.py::test_a_mistyped_hyper_parameter_is_refused_with_the_nearest_name",
    49: "test_store.py::test_a_sweep_of_a_billion_runs_is_refused_by_its_count",
    50: SWEEP,
    53: "test_exact.py::test_in_the_loss_k1_has_no_expected_gradient_k2_the_reverse_and_k3_the_forward_one",
    56: RUN,
    57: SWEEP,
    **dict.fromkeys((59, 61), BITS),
    60: "test_simulate.py::test_a_seed_is_the_key_that_jax_makes_of_it",
    62: "test_store.py::test_a_missing_device_is_named_with_what_to_install",
    63: "test_store.py::test_results_say_where_they_come_from",
    64: "test_store.py::test_a_device_that_runs_out_of_memory_is_reported_with_what_to_change",
    65: "test_store.py::test_a_program_that_needs_more_memory_than_is_free_is_refused_by_the_compilers_figures",
    **dict.fromkeys((67, 68), STOP),
    69: "test_store.py::test_a_sweep_killed_at_any_moment_goes_on_with_the_same_bits_and_keeps_every_finished_tile",
    70: "test_store.py::test_a_full_disk_leaves_every_finished_tile_whole_and_nothing_half_written",
    73: PROBLEM,
    75: "test_simulate.py::test_one_compilation_serves_all_numbers_of_a_method",
    79: WRITER,
    80: "test_store.py::test_another_configuration_is_refused_with_the_keys_that_differ",
    81: "test_store.py::test_a_disk_that_cannot_hold_the_sweep_is_refused_before_it_runs",
    **dict.fromkeys((82, 83, 84), TILE),
    **dict.fromkeys((85, 91), MANIFEST),
    86: "test_store.py::test_what_a_killed_writer_left_half_written_is_swept_up_by_the_worker_it_belonged_to",
    87: "test_store.py::test_tiles_without_a_manifest_and_places_that_are_no_folder_are_refused",
    88: "test_store.py::test_without_locks_a_file_stands_for_the_writer_and_says_how_to_remove_it",
    90: "test_store.py::test_a_folder_is_read_while_it_grows_and_says_how_much_there_is",
    92: "test_store.py::test_the_state_of_the_source_is_its_commit_and_whether_it_was_changed",
    93: "test_store.py::test_an_export_that_fails_leaves_the_older_file_as_it_was",
    94: "test_plots.py::test_files_of_the_same_figure_are_the_same_bytes",
}


# --- before anything is compiled -------------------------------------------------------------------------------------
class Compiled(BaseException):
    """A program was about to be compiled. Nothing in the package catches it."""


class Uncompiled:
    """In the place of a jitted function: refuses to run what is not traced, and to prepare for that."""

    def __init__(self, jitted: Any) -> None:
        self.jitted, self.eval_shape = jitted, jitted.eval_shape

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not is_traced(args, options):
            raise Compiled(self.jitted)
        return self.jitted(*args, **options)

    def lower(self, *args: Any, **options: Any) -> Any:
        raise Compiled(self.jitted)

    def trace(self, *args: Any, **options: Any) -> Any:
        traced = self.jitted.trace(*args, **options)
        return SimpleNamespace(jaxpr=traced.jaxpr, out_info=traced.out_info, lower=self.lower)


@pytest.fixture(autouse=True)
def as_users_see_it(monkeypatch):
    """The tests' type checker, which would speak first, is off."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Every jitted function of the package, and what is jitted from now on, stops where it would be compiled."""
    _measure.cache_clear()  # What an earlier test has measured needs no program.
    jit, jitted = jax.jit, type(jax.jit(len))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "bandit_pft":
            for attribute, value in list(vars(module).items()):
                if isinstance(value, (jitted, kernels.Compiled)):
                    monkeypatch.setattr(module, attribute, Uncompiled(value))
    monkeypatch.setattr(jax, "jit", lambda *args, **options: Uncompiled(jit(*args, **options)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate(R4, GRPO, 0, steps=1),
        lambda: sweep(R4, GRPO, seeds=[0], steps=1),
        lambda: measure("kl_k1"),
        lambda: group(),
        lambda: jax.jit(jnp.sin)(1.0),
    ],
)
def test_what_would_be_compiled_is_seen(call, nothing_compiles):
    with pytest.raises(Compiled):
        call()


@pytest.mark.parametrize(("row", "what", "call", "kind", "words"), TABLE, ids=[str(entry[0]) for entry in TABLE])
def test_wrong_input_is_refused_in_words_that_help_before_anything_is_compiled(
    row, what, call, kind, words, nothing_compiles
):
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("row", ALLOWED)
def test_what_only_looks_wrong_works(row):
    ALLOWED[row]()


@pytest.mark.parametrize(("row", "why", "shown"), STRUCK, ids=[str(entry[0]) for entry in STRUCK])
def test_what_the_design_makes_impossible_is(row, why, shown):
    assert shown(), why


@pytest.mark.parametrize("node", sorted(set(ELSEWHERE.values())))
def test_what_another_file_checks_is_there(node):
    file, _, name = node.partition("::")
    found = ast.parse((TESTS / file).read_text()).body
    assert name in {part.name for part in found if isinstance(part, ast.FunctionDef)}


def test_every_row_of_the_catalogue_is_in_exactly_one_place():
    rows = [*(entry[0] for entry in (*TABLE, *STRUCK)), *ALLOWED, *ELSEWHERE]
    assert sorted(row for row in rows if isinstance(row, int)) == list(range(1, 95))
    extra = [row for row in rows if isinstance(row, str)]
    assert sorted(extra, key=lambda row: int(row[1:])) == [f"x{i}" for i in range(1, len(extra) + 1)]


def test_an_error_of_the_users_own_function_keeps_its_cause():
    with pytest.raises(ConfigError) as error:
        force(method_of(lambda logp, group: 1 / 0).objective, LOGP, GROUP)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_the_errors_of_the_package_are_a_handful_and_pythons_own():
    errors = [x for x in vars(bandit_pft.errors).values() if isinstance(x, type) and issubclass(x, Exception)]
    assert len(errors) <= 8 and all(issubclass(x, (ValueError, TypeError, RuntimeError)) for x in errors)


# --- how much memory there is ----------------------------------------------------------------------------------------
GIB, MANY_KB = 2**30, "MemTotal:       25000000 kB\nMemAvailable:   20000000 kB\nActive(file):     9 kB\n"
MACHINE = 20_000_000 * 1024.0
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


def group_1(path: str, limit: Any, used: int = 0, cache: tuple[int, int] = (0, 0)) -> dict[str, str]:
    """A control group's files, as version 1 of them names and fills these."""
    stat = f"cache 7\ninactive_file 7\ntotal_inactive_file {cache[0]}\ntotal_active_file {cache[1]}\n"
    told = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n", "stat": stat}
    return {f"{V1}{path}/memory.{name}": text for name, text in told.items()}


def group_2(path: str, limit: Any, used: int = 0, cache: tuple[int, int] = (0, 0)) -> dict[str, str]:
    told = {"max": f"{limit}\n", "current": f"{used}\n",
            "stat": f"anon 7\ninactive_file {cache[0]}\nactive_file {cache[1]}\nunevictable 0\n"}  # fmt: skip
    return {f"{V2}{path}/memory.{name}": text for name, text in told.items()}


def inside(*lines: str) -> dict[str, str]:
    return {"proc/self/cgroup": "\n".join(lines) + "\n"}


NO_LIMIT = 2**63 - 4096
CACHE = GIB, 13 * GIB // 20  # Of 2 GiB, 0.35 are taken and the rest is page cache, but for 38 MB.
FULL = 2 * GIB, 2 * GIB - 38_000_000, CACHE
MEMORY: dict[str, tuple[dict[str, str], float]] = {
    "no group": ({}, MACHINE),
    "version 2, no limit": (inside("0::/") | group_2("", "max", 5 * GIB), MACHINE),
    "version 1, no limit": (inside("4:memory:/") | group_1("", NO_LIMIT, 5 * GIB), MACHINE),
    "version 2, page cache": (inside("0::/") | group_2("", *FULL), 38_000_000 + sum(CACHE)),
    "version 1, page cache": (inside("7:cpu,memory:/", "0::/") | group_1("", *FULL), 38_000_000 + sum(CACHE)),
    "version 2, the tightest is in the middle": (
        inside("0::/job/step/task")
        | group_2("", "max") | group_2("/job", 4 * GIB, 3 * GIB) | group_2("/job/step", GIB, GIB // 2)
        | group_2("/job/step/task", "max", 1), GIB // 2,
    ),
    "version 2, the tightest is the outermost, for its other tasks": (
        inside("0::/job/task") | group_2("/job", 4 * GIB, 3 * GIB, (5, 6)) | group_2("/job/task", 3 * GIB, 9),
        GIB + 11,
    ),
    "version 1, the tightest is the innermost": (
        inside("9:name=systemd:/", "4:memory:/slurm/job 7", "0::/")
        | group_1("", NO_LIMIT) | group_1("/slurm", NO_LIMIT) | group_1("/slurm/job 7", 3 * GIB, GIB), 2 * GIB,
    ),
    "in a container, a path that only the host has": (inside("0::/docker/3f5c") | group_2("", GIB, 5), GIB - 5),
    "without a list of groups": (group_2("", GIB, 5), GIB - 5),
    "a limit alone": ({f"{V2}/memory.max": f"{GIB}"}, GIB),
    "more page cache than use": (inside("0::/") | group_2("", GIB, 5, (7, 7)), GIB),
    "garbage": (
        inside("", "0::", "memory", "0:/:", "\0\xff") | group_2("", "-1", 5) | {f"{V2}/memory.stat": "inactive_file x"},
        MACHINE,
    ),
    "nothing in the files": (inside() | group_1("", "") | group_2("", "x12"), MACHINE),
}  # fmt: skip


@pytest.mark.parametrize("case", MEMORY)
def test_what_a_process_may_still_use_is_what_the_tightest_group_around_it_can_give_back_or_has_left(tmp_path, case):
    files, wanted = MEMORY[case]
    for name, text in ({"proc/meminfo": MANY_KB} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert host_memory(tmp_path) == wanted


def test_a_system_without_such_files_says_nothing_and_this_machine_has_no_more_than_all_of_its_memory(tmp_path):
    assert host_memory(tmp_path) == host_memory(tmp_path / "nowhere") == INF
    (tmp_path / "proc" / "meminfo").mkdir(parents=True)
    assert host_memory(tmp_path) == INF
    assert 0 < available_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def card(stats: Any) -> Any:
    """A GPU that tells this of its memory."""
    return SimpleNamespace(platform="gpu", memory_stats=stats)


def untold() -> Any:
    raise RuntimeError("UNIMPLEMENTED")


@pytest.mark.parametrize(
    ("stats", "free"),
    [
        (lambda: {"bytes_limit": 60 * GIB, "bytes_in_use": GIB, "num_allocs": 3}, 59 * GIB),
        (lambda: {"bytes_limit": -1, "bytes_in_use": GIB}, INF),
        (lambda: {"bytes_limit": GIB, "bytes_in_use": -1}, INF),
        (lambda: {"bytes_in_use": GIB}, INF),
        (dict, INF),
        (lambda: None, INF),
        (untold, INF),
    ],
)
def test_a_device_has_what_it_says_and_one_that_does_not_say_is_not_judged(stats, free, monkeypatch):
    monkeypatch.setattr(errors, "host_memory", lambda root: 1.0)
    assert available_memory(card(stats)) == free
    assert available_memory(jax.devices("cpu")[0]) == available_memory() == 0.7


def enumerated() -> Any:
    """A run whose pairs of responses would take 30 GB."""
    return simulate(bandit(np.zeros(50_000)), Method("dpo", data="exact"), 0, steps=1)


def test_what_runs_on_a_device_is_compared_with_the_memory_of_that_device(monkeypatch, nothing_compiles):
    simulating = sys.modules["bandit_pft.simulate"]
    monkeypatch.setattr(errors, "host_memory", lambda root: 50e9)
    monkeypatch.setattr(simulating, "default_device", lambda: card(lambda: {"bytes_limit": 20e9, "bytes_in_use": 0}))
    with pytest.raises(ResourceError, match=r"all pairs of 50000 responses needs 30.0 GB and may take 20.0 GB"):
        enumerated()
    monkeypatch.setattr(errors, "host_memory", lambda root: 1e9)
    monkeypatch.setattr(simulating, "default_device", lambda: card(lambda: None))
    with pytest.raises(Compiled):
        enumerated()


def test_the_device_is_the_one_that_was_chosen():
    (cpu, *_) = jax.devices("cpu")
    for chosen in (None, "cpu", cpu):
        with jax.default_device(chosen):
            assert errors.default_device() == cpu


@pytest.mark.parametrize(
    ("needed", "free", "words"),
    [
        (3e9, 2e9, "needs 3.0 GB and may take 2.0 GB"),
        (300e6, 38e6, "needs 300.0 MB and may take 38.0 MB"),
        (1.04e9, 0.96e9, "needs 1.04 GB and may take 0.96 GB"),
        (4_000_000_001, 4_000_000_000, "needs 4.000000001 GB and may take 4.000000000 GB"),
        (4_000_000_000, 3_999_999_999.9, "needs 4.000000000 GB and may take 3.999999999 GB"),
        (300e6, -5e9, "needs 300.0 MB and may take 0.0 MB"),
    ],
)
def test_a_refusal_shows_two_sizes_of_which_the_first_is_larger_and_two_ways_out(needed, free, words, monkeypatch):
    monkeypatch.setattr(errors, "available_memory", lambda device: free)
    with pytest.raises(ResourceError) as error:
        check_memory("this", needed, "use less")
    assert str(error.value) == f"this {words} of the free memory: use less, or set {UNCHECKED}=1 to try all the same"


@pytest.mark.parametrize(("said", "refused"), [(None, True), ("", True), ("0", True), ("1", False)])
def test_a_quarter_of_a_gigabyte_is_never_refused_and_the_guard_stands_aside_where_it_is_told_to(
    said, refused, monkeypatch, nothing_compiles
):
    monkeypatch.setattr(errors, "available_memory", lambda device: 0.0)
    monkeypatch.delenv(UNCHECKED, raising=False)
    check_memory("a program", 256e6 - 1, "")
    if said is not None:
        monkeypatch.setenv(UNCHECKED, said)
    with pytest.raises(ResourceError if refused else Compiled):
        enumerated()

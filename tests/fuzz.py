"""Configurations made by hypothesis for every public function: python tests/fuzz.py --examples 2000.

Whatever is asked for either works, with numbers that are finite or reported as not, or is refused by this package: an
error whose last frame lies in `bandit_pft`, of a class that callers can expect. Nothing ends inside JAX or NumPy.
"""

import argparse
import inspect
import math
import os
import random
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import bandit_pft
from bandit_pft import Method, Problem, bandit, paper_bandit, paper_sequences, simulate, sweep
from bandit_pft.objectives import OBJECTIVES

PACKAGE = str(Path(bandit_pft.__file__).parent)
EXPECTED = (ValueError, TypeError, RuntimeError)
SMALL = bandit(np.asarray([0.1, 0.5, 1.0]), name="small")

NUMBERS = st.one_of(
    st.integers(-3, 12), st.floats(), st.sampled_from([0, 1, 2**31, 2**64, 1e-40, 1e30, math.nan, math.inf])
)
ARRAYS = st.one_of(
    st.lists(st.floats(-1e4, 1e4), max_size=6).map(np.asarray),
    st.lists(st.floats(), max_size=4),
    st.tuples(st.integers(0, 3), st.integers(0, 4)).map(np.ones),
    st.sampled_from(
        [np.asarray(1.0), np.ones((2, 3), np.int64), np.asarray([True]), np.asarray(["a"]), [[1.0], [1.0, 2.0]]]
    ),
)
THINGS = st.one_of(
    NUMBERS, ARRAYS, st.none(), st.booleans(), st.text(max_size=5), st.just({}), st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(["R4", "R6", "min", "ipo", "exact", "sampled", "table", "initial"]),
    st.sampled_from([SMALL, jax.random.key(0), jax.random.PRNGKey(0), bandit_pft.tabular, bandit_pft.ADAM, len]),
)  # fmt: skip
# Plain values, which functions below make and check, and functions of what only the engine makes.
PLAIN = ("Problem", "Group", "ExactGroup", "State", "standard_probe", "distribution_probe", "prepare")
# These run for as long as they are asked to: only whole configurations are made for them.
ENGINE = ("simulate", "sweep", "measure", "save", "load")


def public() -> list[Any]:
    """Functions and classes to be given anything at all."""
    names = [name for name in bandit_pft.__all__ if name not in (*PLAIN, *ENGINE)]
    made = [bandit_pft.Group.of, bandit_pft.ExactGroup.of, Problem.optimum, Problem.reward, Problem.sample_ref]
    return [*filter(callable, (getattr(bandit_pft, name) for name in names)), *made]


def refused_well(error: BaseException) -> bool:
    """Whether the package itself refused."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    mine = (
        frames[-1].startswith(PACKAGE)
        or "jaxtyping" in frames[-1]
        or (len(frames) == 1 and isinstance(error, TypeError))
    )
    return isinstance(error, EXPECTED) and mine and bool(str(error))


def call(function, *arguments, **named):
    """The result, or None where it was refused well."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **named)
    except Exception as error:
        if not refused_well(error):
            raise AssertionError(
                f"{function.__qualname__}{arguments}{named}: {type(error).__name__}: {error}"
            ) from error
        return None


@st.composite
def doors(draw):
    """A public function with arguments of any kind for its parameters."""
    function = draw(st.sampled_from(public()))
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    chosen = [p for p in parameters if p.default is p.empty or draw(st.integers(0, 2)) == 0]
    return function, {p.name: SMALL if p.name == "self" else draw(THINGS) for p in chosen}


PROBLEMS = [SMALL, paper_bandit("R5"), paper_bandit("R4", 3, key=jax.random.key(1)), paper_sequences("R6")]


@st.composite
def runs(draw):
    """A problem and a method that look reasonable one by one."""
    numbers = {
        "learning_rate": st.floats(0, 1e3), "on_policy": st.floats(0, 1), "reuse": st.integers(1, 4),
        "min_gap": st.floats(0, 2), "memory": st.floats(0, 0.99), "label_noise": st.one_of(st.none(), st.floats(0, 3)),
        "data": st.sampled_from(["sampled", "exact"]), "num_responses": st.integers(1, 2),
        "prompts": st.sampled_from([None, 1, 2]), "minibatch": st.sampled_from([None, 1]),
        "proxy": st.sampled_from([None, "table", "network"]), "reference": st.sampled_from(["problem", "initial"]),
        "policy": st.sampled_from([bandit_pft.tabular, bandit_pft.tabular_shared, bandit_pft.factorised]),
        "optimizer": st.sampled_from([bandit_pft.SGD, bandit_pft.ADAM]),
    }  # fmt: skip
    settings = {name: draw(values) for name, values in numbers.items() if draw(st.booleans())}
    return draw(st.sampled_from(PROBLEMS)), draw(st.sampled_from(sorted(OBJECTIVES))), settings


def run_one(problem, name, method_settings, steps=6):
    """A run whose numbers are finite up to the step at which it says that they stopped being so."""
    method = call(Method, name, **method_settings)
    if method is None:
        return
    result = call(simulate, problem, method, 0, steps=steps)
    if result is not None:
        good = steps + 1 if int(result.first_bad_step) < 0 else int(result.first_bad_step)
        for metric, values in result.record.items():
            values = np.asarray(values)[:good]
            # A reference that cannot give what the learner can is infinitely far away, and says so.
            assert np.isfinite(values).all() or (metric.startswith("kl") and not np.isnan(values).any()), (
                metric,
                values,
            )
    data = call(sweep, problem, method, seeds=[0], steps=steps)
    assert (data is None) == (result is None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=3000, help="calls of public functions with anything")
    parser.add_argument("--runs", type=int, default=150, help="runs of a random method, each compiled")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    how = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": True}

    @seed(options.seed)
    @settings(max_examples=options.examples, **how)
    @given(doors())
    def any_arguments(example):
        function, arguments = example
        made = call(function, **arguments)
        if isinstance(made, Problem):
            assert not np.isnan(made.ref_logits).any()
            assert np.isfinite(made.token_reward).all()

    @seed(options.seed)
    @settings(max_examples=options.runs, **how)
    @given(runs())
    def any_run(example):
        run_one(*example)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        any_arguments()
        any_run()
    told = f"{options.examples} calls of {len(public())} public functions and {options.runs} runs"
    print(f"{told}: all worked or were refused")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A run's numbers depend on what it is, not on what else is in the sweep; results are labelled, saved and resumed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from refusals import check_refusal

from bandit_pft import SGD, Method, bandit, load, objective, paper_bandit, peaks, save, simulate, sweep
from bandit_pft.errors import ConfigError, NumericsError, ResourceError, ShapeError, StoreError
from bandit_pft.objectives import OBJECTIVES

R4, R5 = paper_bandit("R4"), paper_bandit("R5")
# Plain gradient descent: Adam would make full steps of a force of 0 up to rounding, which differs between programs.
PLAIN = {"optimizer": SGD, "learning_rate": 1.0, "num_responses": 4}
ON = Method("grpo", **PLAIN, name="on")
OFF = Method("grpo", **PLAIN, on_policy=0.0, name="off")
DPO = Method("dpo", **PLAIN)


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return sweep([R4, R5], [ON, OFF, DPO], seeds=[3, 1, 2], steps=10)


def test_every_run_is_the_run_that_simulate_gives(data):
    for problem in (R4, R5):
        for method in (ON, DPO):
            alone = simulate(problem, method, 1, steps=10).record["expected_reward"]
            here = data.expected_reward.sel(problem=problem.name, algorithm=method.name, seed=1)
            np.testing.assert_allclose(here, alone, rtol=2e-5)


def test_a_run_has_the_same_bits_whatever_else_is_in_the_sweep_and_in_which_order(data):
    alone = sweep(R5, DPO, seeds=[2], steps=10)
    crowd = sweep([R5, R4], [DPO, ON], seeds=range(40), steps=10)
    for name in ("expected_reward", "kl", "kl_reverse", "entropy", "mass_near_peak"):
        wanted = alone[name].sel(seed=2).values.ravel()
        for other in (data, crowd):
            place = {"problem": R5.name, "algorithm": "dpo", "seed": 2}
            np.testing.assert_array_equal(other[name].sel(place).values, wanted)


def test_methods_see_the_same_randomness_under_one_seed():
    same = sweep(R5, [ON, Method("grpo", **PLAIN, name="twin")], seeds=[1, 2], steps=5)
    np.testing.assert_array_equal(same.kl.sel(algorithm="on"), same.kl.sel(algorithm="twin"))
    assert (same.kl.sel(seed=1, step=5) != same.kl.sel(seed=2, step=5)).all()


def test_results_carry_units_versions_seeds_and_configuration(data):
    assert data.kl.attrs["units"] == "nats" and data.step.attrs["units"] == "gradient steps"
    assert list(data.seed.values) == [3, 1, 2] and list(data.algorithm.values) == ["on", "off", "dpo"]
    assert dict(zip(data.algorithm.values, data.family.values, strict=True))["dpo"] == "preference"
    assert "jax" in json.loads(data.attrs["versions"])
    methods = json.loads(data.attrs["configuration"])["methods"]
    assert methods["off"]["on_policy"] == 0 and methods["dpo"]["hyper"] == {"beta": 0.1}
    assert methods["off"]["reuse"] == "inf"


def test_reward_queries_count_what_was_labelled(data):
    on, off = (data.reward_queries.sel(problem="R4", algorithm=name).values for name in ("on", "off"))
    np.testing.assert_array_equal(on, 4 * np.arange(11))
    np.testing.assert_array_equal(off, [0] + 10 * [4])
    reused = sweep(R5, Method("grpo", reuse=3, num_responses=4), seeds=[0], steps=7).reward_queries.values.ravel()
    np.testing.assert_array_equal(reused, [0, 4, 4, 4, 8, 8, 8, 12])


def test_a_grid_gives_one_axis_for_each_name_and_matches_single_runs():
    grid = sweep(R5, DPO, seeds=[0, 1], steps=4, grid={"learning_rate": [0.5, 2.0], "beta": [0.1, 1.0, 5.0]})
    assert dict(grid.kl.sizes) == {"problem": 1, "algorithm": 1, "learning_rate": 2, "beta": 3, "seed": 2, "step": 5}
    one = sweep(R5, replace(DPO, learning_rate=2.0, hyper={"beta": 5.0}), seeds=[1], steps=4)
    place = {"learning_rate": 2.0, "beta": 5.0, "seed": 1}
    np.testing.assert_array_equal(grid.kl.sel(place).values, one.kl.sel(seed=1).values)


def test_an_axis_over_reuse_and_on_policy_keeps_runs_apart():
    grid = sweep(R5, ON, seeds=[0], steps=6, grid={"reuse": [1, 3], "on_policy": [0.0, 0.5, 1.0]})
    one = sweep(R5, replace(ON, reuse=3, on_policy=0.5), seeds=[0], steps=6)
    np.testing.assert_array_equal(grid.kl.sel(reuse=3, on_policy=0.5).values, one.kl.values)
    assert len(np.unique(grid.kl.isel(step=-1))) == 6


def test_an_objective_defined_outside_the_package_takes_part():
    @objective(family="preference")
    def my_margin(logp, group, *, margin: float = 1.0):
        """Push apart until the margin is reached.

        L = mean over pairs of max(0, margin - (gain_w - gain_l))
        """
        gain = group.total(logp - group.ref_logp)
        return group.pair_mean(np.maximum(0, 1) * (margin - gain[:, None] + gain[None, :]))

    try:
        result = sweep(R5, Method("my_margin", learning_rate=0.5), seeds=[0], steps=5)
        assert result.expected_reward.isel(step=-1) > result.expected_reward.isel(step=0)
        assert sweep(R5, Method(my_margin), seeds=[0], steps=5).equals(
            sweep(R5, Method("my_margin"), seeds=[0], steps=5)
        )
    finally:
        del OBJECTIVES["my_margin"]


# --- saving -----------------------------------------------------------------------------------------------------
def test_saved_results_come_back_identical(tmp_path, data):
    path = save(data, tmp_path / "deep" / "result.nc")
    assert load(path).identical(data)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match="cannot be read"):
        load(path)
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path / "nothing.nc")


# --- what can go wrong --------------------------------------------------------------------------------------------
def test_diverging_runs_are_reported_in_one_line_and_the_others_survive():
    huge = bandit(np.asarray([0.0, 1e30, 2e30]), name="huge")
    methods = [
        Method("reinforce", learning_rate=1e10, optimizer=SGD, name="wild"),
        Method("reinforce", learning_rate=1e-31, optimizer=SGD, name="tame"),
    ]
    with pytest.warns(UserWarning, match=r"2 of 4 runs diverged \(first: problem=huge, algorithm=wild, seed=0, step"):
        data = sweep(huge, methods, seeds=[0, 1], steps=8)
    assert np.isfinite(data.kl.sel(algorithm="tame")).all()
    assert (data.first_bad_step.sel(algorithm="tame") == -1).all()
    with pytest.raises(NumericsError, match="lower the learning rate"):
        sweep(huge, methods, seeds=[0], steps=8, on_nonfinite="raise")
    with pytest.warns(UserWarning, match="they were kept going"):
        sweep(huge, methods, seeds=[0], steps=8, on_nonfinite="keep")


BAD = [
    (lambda: sweep([], [ON], seeds=[0], steps=1), ConfigError, "problems is empty"),
    (lambda: sweep(R4, [], seeds=[0], steps=1), ConfigError, "methods is empty"),
    (lambda: sweep(R4, ON, seeds=[], steps=1), ConfigError, "seeds is empty"),
    (lambda: sweep(R4, ON, seeds=[1, 1], steps=1), ConfigError, "twice"),
    (lambda: sweep(R4, ON, seeds=[1.5], steps=1), ConfigError, "seed is 1.5"),
    (lambda: sweep(R4, ON, seeds=[2**32], steps=1), ConfigError, "4294967295"),
    (lambda: sweep(R4, [ON, ON], seeds=[0], steps=1), ConfigError, "name="),
    (lambda: sweep([R4, R4], ON, seeds=[0], steps=1), ConfigError, "name="),
    (lambda: sweep(R4, "dpo", seeds=[0], steps=1), TypeError, "Method('dpo')"),
    (lambda: sweep(R4, ON, seeds=[0], steps=1, grid={"learning_rat": [1]}), ConfigError, "did you mean learning_rate"),
    (lambda: sweep(R4, ON, seeds=[0], steps=1, grid={"clip": []}), ConfigError, "clip is empty"),
    (lambda: sweep(R4, ON, seeds=[0], steps=1, grid={"seed": [1]}), ConfigError, "rename that hyper-parameter"),
    (lambda: sweep(R4, ON, seeds=[0], steps=1, tile=0), ConfigError, "tile"),
    (lambda: sweep(R4, ON, seeds=[0], steps=1, on_nonfinite="ignore"), ConfigError, "freeze"),
    (lambda: sweep([R4, bandit(peaks(50, [9], [3]), name="small")], ON, seeds=[0], steps=1,
                   probe=whole), ShapeError, "separately"),
    (lambda: sweep(R4, ON, seeds=range(2000), steps=10**6, probe=whole), ResourceError, "fewer seeds"),
]  # fmt: skip


def whole(problem, state):
    return {"log_prob": state.log_probs[0]}


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_refused_with_its_name_and_a_way_out(case, monkeypatch):
    check_refusal(*BAD[case], monkeypatch)

"""The sampler draws what it should, up to a million actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frequencies import p_value
from scipy import special, stats

from bandit_pft import kernels
from bandit_pft.kernels import (
    levels,
    logsumexp,
    mass_tree,
    replace_in_tree,
    sample_categorical,
    sample_from_tree,
    sample_from_uniform,
)

# Where there are blocks, each draw reads one of 1,024 actions: 4 KB.
DRAWS = 40_000


def log_probs(count: int, seed: int = 0) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal(count)
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


@pytest.mark.parametrize("count", [2, 7, 100, 2048, 2049, 5000])
def test_frequencies_are_the_probabilities(count):
    logp = log_probs(count)
    drawn = jax.jit(lambda key: sample_categorical(key, jnp.asarray(logp), DRAWS))(jax.random.key(1))
    assert p_value(drawn, logp) > 1e-4


def test_frequencies_are_right_for_a_million_actions_whose_mass_sits_in_the_tail():
    count = 1_000_000
    # Half of the mass lies in the last tenth: a single float32 cumulative sum has lost its digits by then.
    logp = np.where(np.arange(count) < 0.9 * count, np.log(0.5 / 0.9e6), np.log(0.5 / 0.1e6)).astype(np.float32)
    drawn = np.asarray(jax.jit(lambda key: sample_categorical(key, jnp.asarray(logp), DRAWS))(jax.random.key(2)))
    edges = np.linspace(0, count, 201)
    observed = np.histogram(drawn, edges)[0]
    wanted = np.add.reduceat(np.exp(logp.astype(np.float64)), edges[:-1].astype(int))
    assert stats.chisquare(observed, wanted * DRAWS / wanted.sum()).pvalue > 1e-4


def test_every_one_of_a_million_actions_can_be_reached():
    """For each action there are uniforms that lead to it: 2^-23 steps at both levels separate all neighbours."""
    count = 1_000_000
    logp = jnp.full(count, -np.log(count), jnp.float32)
    target = np.random.default_rng(0).choice(count, 4096, replace=False)
    block, inside = divmod(target, 1024)
    blocks = -(-count // 1024)
    size = np.full(blocks, 1024.0)
    size[-1] = count - 1024 * (blocks - 1)
    upper = (np.cumsum(size)[block] - 0.5 * size[block]) / count
    lower = (inside + 0.5) / size[block]
    assert levels(count) == 2
    drawn = sample_from_uniform(jnp.asarray(np.stack([lower, upper]), jnp.float32), logp)
    np.testing.assert_array_equal(drawn, target)


@pytest.mark.parametrize("count", [3, 300, 5000])
def test_a_forbidden_action_is_never_drawn_even_at_the_ends(count):
    logp = log_probs(count)
    logp[[0, -1]] = -np.inf
    for uniform in (0.0, 1 - 2**-24):
        drawn = sample_from_uniform(jnp.full((levels(count), 8), uniform, jnp.float32), jnp.asarray(logp))
        assert np.isfinite(logp[np.asarray(drawn)]).all()


@pytest.mark.parametrize("count", [12, 300, 5000])
def test_the_smallest_uniform_draws_the_first_action_that_is_allowed(count):
    """Also where a whole row of the search, or a whole block, is forbidden before it."""
    logp = np.full(count, -np.log(count), np.float32)
    for first in (1, count // 2, count - 1):
        logp[:first] = -np.inf
        drawn = sample_from_uniform(jnp.zeros((levels(count), 1), jnp.float32), jnp.asarray(logp))
        assert int(drawn[0]) == first


@pytest.mark.parametrize("count", [10, 101, 2000])
def test_no_quantile_leads_to_a_forbidden_action_or_backwards(count):
    """Also at the seams between the rows of the search, where sums are rounded."""
    logp = log_probs(count)
    logp[np.random.default_rng(1).random(count) < 0.5] = -np.inf
    uniform = np.arange(2**16, dtype=np.float32) / 2**16
    drawn = np.asarray(sample_from_uniform(jnp.asarray(uniform[None]), jnp.asarray(logp)))
    assert np.isfinite(logp[drawn]).all() and (np.diff(drawn) >= 0).all()
    mass = np.exp(logp.astype(np.float64))
    exact = np.searchsorted(np.cumsum(mass), uniform * mass.sum(), side="right")
    assert (drawn != exact).mean() < 1e-3


def test_a_peak_of_a_thousand_nats_is_drawn_always():
    logp = jnp.asarray([-1000.0, 0.0, -1000.0])
    assert (sample_categorical(jax.random.key(0), logp, 1000) == 1).all()


def test_the_same_uniforms_give_nearly_the_same_draws_under_a_nearby_policy():
    uniform = jax.random.uniform(jax.random.key(0), (1, 2000))
    first = sample_from_uniform(uniform, jnp.asarray(log_probs(100)))
    second = sample_from_uniform(uniform, jnp.asarray(log_probs(100)) + 1e-3 * jnp.arange(100) / 100)
    assert (first == second).mean() > 0.98


def test_the_logarithm_of_a_sum_survives_huge_logits_and_rows_without_any_mass():
    x = np.random.default_rng(3).normal(0, 3, (4, 50)).astype(np.float32)
    x[1] += 1e4
    x[2, ::2] = x[3] = -np.inf
    np.testing.assert_allclose(logsumexp(jnp.asarray(x)), np.logaddexp.reduce(x.astype(float), -1), rtol=1e-6)
    slope = jax.grad(lambda x: logsumexp(x).sum())(jnp.asarray(x[:3]))
    np.testing.assert_allclose(slope, special.softmax(x[:3].astype(float), -1), atol=1e-6)


@pytest.mark.parametrize("count", [2000, 5000, 3_000_000])
def test_a_tree_whose_masses_were_replaced_is_the_tree_of_the_new_masses(count):
    """To the last bit, however often: what an action's old mass was does not matter."""
    rng = np.random.default_rng(0)
    mass = rng.random(count).astype(np.float32)
    tree = mass_tree(jnp.asarray(mass))
    assert len(tree) == levels(count)
    replace = jax.jit(replace_in_tree)
    for _ in range(20):
        action = rng.integers(count, size=16)
        action[1] = action[0]
        mass[action] = np.float32(10.0 ** rng.uniform(-8, 8, 16))
        tree = replace(tree, jnp.asarray(action), jnp.asarray(mass[action]))
    for found, wanted in zip(tree, mass_tree(jnp.asarray(mass)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_draws_follow_masses_that_were_replaced():
    logp = log_probs(5000)
    rng = np.random.default_rng(1)
    tree, mass = mass_tree(jnp.ones(5000)), np.exp(logp)
    for action in np.split(rng.permutation(5000), 50):
        tree = replace_in_tree(tree, jnp.asarray(action), jnp.asarray(mass[action]))
    uniform = jax.random.uniform(jax.random.key(3), (levels(5000), DRAWS))
    assert p_value(jax.jit(sample_from_tree)(uniform, tree), logp) > 1e-4


def test_less_effort_goes_into_compiling_on_a_cpu_and_nowhere_else(monkeypatch):
    """Also where a later call is for another platform than the first."""
    monkeypatch.setattr(jax, "jit", lambda f, **how: lambda *_, **__: how)
    light = {"xla_backend_optimization_level": 1}
    unsplit = {**light, "xla_disable_hlo_passes": "cpu-parallel-task-assigner", "xla_cpu_prefer_vector_width": 512}
    for many, options in ((False, light), (True, unsplit)):
        made = kernels.Compiled(lambda x, times: x * times, many=many, static_argnames="times")
        for platform, wanted in (("cpu", {"compiler_options": options}), ("gpu", {})):
            with jax.default_device(platform):
                assert made(3, times=2) == {**wanted, "static_argnames": "times"}


def test_a_compiled_function_is_that_function_and_has_all_that_jit_gives():
    f = lambda x: jnp.exp(x).sum()
    made, x = kernels.Compiled(f), jnp.linspace(-3, 2, 50)
    wanted = np.exp(np.asarray(x, np.float64)).sum()
    for found in (made(x), made.lower(x).compile()(x), jax.jit(made)(x), jax.vmap(made)(x[None])[0]):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert made.eval_shape(x).shape == ()


@pytest.mark.parametrize("shape", [(2,), (3, 1, 5), (1, 2, 1000)])
@pytest.mark.parametrize("step", [0, 7, 2**29])
def test_the_uniform_numbers_of_a_step_are_those_of_jax(shape, step):
    key = jax.random.key(5)
    wanted = jax.random.uniform(jax.random.fold_in(key, step), shape)
    np.testing.assert_array_equal(kernels.uniform_at(key, jnp.asarray(step), shape), wanted)

"""The candidate kernel of the benchmarks computes what plain XLA, NumPy in float64 and autodiff compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frequencies import p_value

from bandit_pft.kernels import levels, sample_from_uniform
from benchmarks import device_check
from benchmarks.pallas_step import begin, draw, log_prob, normaliser, run, traffic

COUNT = 9000  # Fills neither the last row of 1,024 nor the last block of rows.
BOTH = pytest.mark.parametrize("force", ["own", "data"])
# From 0.11 on, lowering a Triton kernel also compiles it, and that takes the plugin of a GPU.
PLATFORMS = {"tpu": "tpu", **({"gpu": "cuda"} if jax.__version_info__ < (0, 11) else {})}
OPTIMISERS = pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])


def problem(force: str) -> tuple[np.ndarray, np.ndarray]:
    """Reference logits, some of them -inf, also a whole row, and rewards or a target that knows nothing of them."""
    rng = np.random.default_rng(0)
    ref = (2 * rng.standard_normal(COUNT)).astype(np.float32)
    ref[::7] = ref[2048:3072] = -np.inf
    weight = rng.random(COUNT)
    return ref, (weight if force == "own" else weight / weight.sum()).astype(np.float32)


def in_float64(ref, weight, rate, steps, force, adam):
    """Log-probabilities [nats] and lead, by the formulas and without blocks or sums that are carried along."""
    ref, weight = ref.astype(np.float64), np.where(np.isneginf(ref), 0, weight.astype(np.float64))
    lead, first, second = np.zeros((3, ref.size))
    logp = lambda: ref + lead - np.logaddexp.reduce(ref + lead)
    for count in range(1, steps + 1):
        prob = np.exp(logp())
        pull = prob * weight if force == "own" else weight
        move = pull - prob * pull.sum()
        if adam:
            first, second = 0.9 * first + 0.1 * move, 0.999 * second + 0.001 * move**2
            move = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        lead += rate * move
    return logp(), lead


@BOTH
@OPTIMISERS
def test_fifty_steps_in_one_pass_are_those_of_xla_and_of_numpy(force, adam):
    """To 1e-4 nats in float32, where log-probabilities moved by several nats."""
    ref, weight = problem(force)
    rate = 0.1 if adam else 200.0
    constants, start = begin(jnp.asarray(ref), jnp.asarray(weight), adam=adam)
    wanted, _ = in_float64(ref, weight, rate, 50, force, adam)
    states = [run(constants, start, rate, steps=50, force=force, platform=platform) for platform in ("cpu", None)]
    before, *found = (np.asarray(log_prob(constants, state, COUNT), np.float64) for state in (start, *states))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    allowed = np.isfinite(ref)
    assert np.abs(found[0][allowed] - before[allowed]).max() > 2


@BOTH
@OPTIMISERS
def test_a_forbidden_action_has_no_mass_and_never_moves(force, adam):
    ref, weight = problem(force)
    made = begin(jnp.asarray(ref), jnp.asarray(weight), adam=adam)
    state = run(*made, 200.0, steps=5, force=force, platform="cpu")
    forbidden = np.isneginf(ref)
    lead = np.asarray(state.lead).reshape(-1)
    assert (lead[:COUNT][forbidden] == 0).all() and (lead[COUNT:] == 0).all()
    assert (np.asarray(log_prob(made[0], state, COUNT))[forbidden] == -np.inf).all()
    assert np.isneginf(state.top[2]) and state.mass[2] == 0, "a whole row is forbidden"
    assert np.abs(lead[:COUNT][~forbidden]).max() > 1


def test_a_step_of_thousands_of_nats_leaves_the_right_normaliser():
    """Far beyond what a sum of exponentials near the last normaliser could hold."""
    ref, weight = problem("own")
    constants, state = begin(jnp.asarray(ref), jnp.asarray(weight), adam=False)
    for rate in (1e6, 1e7):
        state = run(constants, state, rate, steps=1, force="own", platform="cpu")
        logits = ref.astype(np.float64) + np.asarray(state.lead, np.float64).reshape(-1)[:COUNT]
        np.testing.assert_allclose(normaliser(state)[0], np.logaddexp.reduce(logits), rtol=1e-6)
        assert np.abs(np.asarray(state.lead)).max() > 1000


@BOTH
def test_a_step_goes_down_the_gradient_of_the_loss(force):
    ref, weight = problem(force)
    made = begin(jnp.asarray(ref), jnp.asarray(weight), adam=False)
    # Away from the start, where both are simplest.
    state = run(*made, 50.0, steps=3, force=force, platform="cpu")
    new = run(made[0], state, 1.0, steps=1, force=force, platform="cpu")
    allowed = np.isfinite(ref)

    def loss(lead):
        logp = jax.nn.log_softmax(ref[allowed] + lead)
        return -(jnp.exp(logp) @ weight[allowed] if force == "own" else weight[allowed] @ logp)

    flat = lambda x: np.asarray(x, np.float64).reshape(-1)[:COUNT][allowed]
    with jax.enable_x64(True):
        slope = np.asarray(jax.grad(loss)(flat(state.lead)))
    # The step is a difference of leads, so it has their rounding.
    np.testing.assert_allclose(flat(new.lead) - flat(state.lead), -slope, atol=4e-7 * np.abs(flat(new.lead)).max())
    assert np.abs(slope).max() > 1e-3


def test_the_moments_are_those_of_optax():
    ref, weight = problem("own")
    made = begin(jnp.asarray(ref), jnp.asarray(weight), adam=True)
    state = run(*made, 0.1, steps=20, force="own", platform="cpu")
    finite, optimizer = jnp.where(jnp.isneginf(ref), -1e30, ref), optax.adam(0.1)
    loss = lambda lead: -jax.nn.softmax(finite + lead) @ jnp.asarray(weight)

    def move(_, both):
        update, kept = optimizer.update(jax.grad(loss)(both[0]), both[1])
        return both[0] + update, kept

    zero = jnp.zeros(COUNT)
    wanted, _ = jax.lax.fori_loop(0, 20, move, (zero, optimizer.init(zero)))
    np.testing.assert_allclose(np.asarray(state.lead).reshape(-1)[:COUNT], wanted, atol=1e-4)


def test_the_rows_sums_are_the_upper_level_of_the_samplers_tree():
    """The same uniforms give the sampler's draws, up to rounding at the ends of actions, and the right frequencies."""
    ref, weight = problem("own")
    made = begin(jnp.asarray(ref), jnp.asarray(weight), adam=False)
    state = run(*made, 200.0, steps=5, force="own", platform="cpu")
    logp = log_prob(made[0], state, COUNT)
    uniform = jax.random.uniform(jax.random.key(0), (levels(COUNT), 4000))
    drawn = draw(made[0], state, uniform)
    assert (np.asarray(drawn) == np.asarray(sample_from_uniform(uniform, logp))).mean() > 0.999
    assert p_value(drawn, logp) > 1e-3


def test_constants_in_bfloat16_are_read_as_they_are_rounded_and_cost_half():
    ref, weight = problem("own")
    made = [begin(jnp.asarray(ref), jnp.asarray(weight), adam=False, half=half) for half in (False, True)]
    rounded = [np.asarray(x.astype(jnp.float32)).reshape(-1)[:COUNT] for x in made[1][0][:2]]
    state = run(*made[1], 50.0, steps=20, force="own", platform="cpu")
    wanted, _ = in_float64(*rounded, 50.0, 20, "own", False)
    np.testing.assert_allclose(log_prob(made[1][0], state, COUNT), wanted, atol=1e-4)

    allowed = np.isfinite(ref)
    exact, coarse = (np.asarray(log_prob(*each, COUNT))[allowed] for each in made)
    reach = ref[allowed].max() - ref[allowed].min()
    assert 2**-12 * reach < np.abs(exact - coarse).max() < 2**-8 * reach, "the error that `begin` states"
    assert np.abs(rounded[1] / np.where(allowed, weight, np.inf) - allowed).max() < 2**-8
    adam = [begin(jnp.asarray(ref), jnp.asarray(weight), adam=True, half=half) for half in (False, True)]
    assert [traffic(*each) for each in (*made, *adam)] == [(16, 28), (12, 20), (32, 44), (28, 36)]


@pytest.mark.parametrize("platform", PLATFORMS)
@OPTIMISERS
def test_the_kernel_lowers_for_devices_that_are_not_here(platform, adam):
    ref, weight = problem("own")
    for half in (False, True):
        constants, state = begin(jnp.asarray(ref), jnp.asarray(weight), adam=adam, half=half)
        traced = run.trace(constants, state, 0.1, steps=3, force="own", platform=platform)
        text = traced.lower(lowering_platforms=(PLATFORMS[platform],)).as_text()
        assert {"tpu": "tpu_custom_call", "gpu": "triton"}[platform] in text


def test_the_device_check_compares_and_times_the_candidate():
    cpu = jax.devices("cpu")[0]
    text, right = device_check.candidate(5000, 2, adam=True, half=True, device=cpu, cpu=cpu)
    assert right and "bytes" in text


def test_the_device_check_compares_steps_on_few():
    cpu = jax.devices("cpu")[0]
    text, right = device_check.few(5000, 4, cpu, cpu)
    assert right, text

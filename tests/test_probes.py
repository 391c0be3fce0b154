"""What is kept of a run: the top of a policy and the mass of the rest."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import check_refusal

from bandit_pft import (
    Method,
    State,
    bandit,
    distribution_probe,
    errors,
    paper_bandit,
    simulate,
    sweep,
    top_probe,
)
from bandit_pft.errors import ConfigError, ResourceError
from bandit_pft.sweep import load

R5 = paper_bandit("R5")
RUN = Method("reinforce", learning_rate=5.0, data="exact")


def recorded(problem, probe, method=RUN, steps=0):
    return {name: np.asarray(x) for name, x in simulate(problem, method, 0, steps=steps, probe=probe).record.items()}


def table(count: int, seed: int = 0) -> np.ndarray:
    return 5 * np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@pytest.mark.parametrize("count", [30, 5000])
def test_the_top_is_what_numpy_sorts_to_the_front_at_every_step(count):
    problem = bandit(np.linspace(0, 1, count), table(count))
    whole, kept = (recorded(problem, probe, steps=3) for probe in (distribution_probe, top_probe(7)))
    for row, logp in enumerate(whole["log_prob"]):
        order = np.argsort(-logp, kind="stable")
        np.testing.assert_array_equal(kept["top_action"][row], order[:7])
        np.testing.assert_allclose(kept["top_log_prob"][row], logp[order[:7]], atol=1e-6)
        tail = np.logaddexp.reduce(logp[order[7:]].astype(np.float64))
        np.testing.assert_allclose(kept["tail_log_prob"][row], tail, rtol=1e-5, atol=1e-6)
    assert {*kept} - {*whole} == {"top_action", "top_log_prob", "tail_log_prob"}


@pytest.mark.parametrize("depth", [1, 50, 75])
def test_top_and_tail_are_all_the_mass_however_small_the_tail(depth):
    """e^-50 is 2e-22: one minus the mass of the top would be 0, or the rounding of the top."""
    logits = np.append(np.zeros(4), np.full(1000, -depth)).astype(np.float32)
    kept = recorded(bandit(np.linspace(0, 1, 1004), logits), top_probe(4))
    tail = np.log(250) - depth - np.log1p(250 * np.exp(-depth))
    np.testing.assert_allclose(kept["tail_log_prob"][0], tail, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.exp(kept["top_log_prob"]).sum() + np.exp(kept["tail_log_prob"]), 1, atol=2e-6)


def test_of_equal_actions_the_lower_comes_first_and_forbidden_ones_last():
    logits = np.array([0.0, -np.inf, 1.0, 0.0, 1.0, -np.inf], np.float32)
    kept = recorded(bandit(np.arange(6.0), logits), top_probe(5))
    np.testing.assert_array_equal(kept["top_action"][0], [2, 4, 0, 3, 1])
    assert kept["top_log_prob"][0, -1] == -np.inf and np.isneginf(kept["tail_log_prob"][0])
    everything = recorded(bandit(np.arange(6.0), logits), top_probe(6))
    np.testing.assert_allclose(np.exp(everything["top_log_prob"][0]).sum(), 1, atol=1e-6)
    assert np.isneginf(everything["tail_log_prob"][0])


def test_the_policy_is_the_mean_over_contexts():
    """Averaged as probabilities, not as logarithms."""
    problem = bandit(np.zeros((3, 8)), table(24).reshape(3, 8))
    whole, kept = (recorded(problem, probe) for probe in (distribution_probe, top_probe(3)))
    np.testing.assert_allclose(kept["top_log_prob"], -np.sort(-whole["log_prob"])[:, :3], atol=1e-6)


def test_the_same_k_is_the_same_probe():
    assert top_probe(4) is top_probe(4) is not top_probe(5)
    assert top_probe(4).__qualname__ == "top_probe(4)"


def test_a_sweep_names_ranks_and_units_and_a_store_tells_one_k_from_another(tmp_path):
    settings = {"seeds": range(2), "steps": 2, "store": tmp_path / "runs"}
    data = sweep(R5, RUN, probe=top_probe(3), **settings)
    assert data["top_action"].dims == data["top_log_prob"].dims == (*data["kl"].dims, "rank")
    assert data["tail_log_prob"].dims == data["kl"].dims
    assert [data[name].attrs["units"] for name in ("top_action", "top_log_prob", "tail_log_prob")] == [
        "action", "nats", "nats",
    ]  # fmt: skip
    assert data["top_action"].dtype.kind == "i" and load(tmp_path / "runs").identical(data)
    with pytest.raises(Exception, match=r"top_probe\(3\)"):
        sweep(R5, RUN, probe=top_probe(4), **settings)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: top_probe(0), ConfigError, "k is 0; it must be at least 1"),
        (lambda: top_probe(2.5), TypeError, "k is 2.5; it must be a whole number"),
        (lambda: top_probe(True), TypeError, "k is True"),
        (lambda: recorded(R5, top_probe(101)), ConfigError, "top_probe(101): the problem has 100 responses"),
        (lambda: top_probe(2)(R5, State(log_probs=None)), ConfigError, "top_probe(2) needs responses that can be enum"),
    ],
    ids=["none", "half", "bool", "more than there are", "no table"],
)
def test_what_cannot_be_kept_is_refused(call, kind, words, monkeypatch):
    check_refusal(call, kind, words, monkeypatch)


def test_a_record_of_whole_distributions_that_does_not_fit_is_refused_by_naming_the_probe_that_does(monkeypatch):
    problem = bandit(jnp.zeros(1000), jnp.zeros(1000))
    monkeypatch.setattr(errors, "available_memory", lambda device: 500_000)
    with pytest.raises(ResourceError, match=r"such as top_probe\(10\)"):
        simulate(problem, RUN, 0, steps=100_000, probe=distribution_probe)

"""Laws that hold for the force of every registered objective, and what each is measured to do."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandit_pft.experiments  # noqa: F401  registers the claims
from bandit_pft import claims
from bandit_pft.errors import ConfigError, DomainError, ShapeError
from bandit_pft.groups import ExactGroup, Group, prepare
from bandit_pft.objectives import HYPER, OBJECTIVES, Properties, batch_loss, core, force, measure

NAMES = sorted(name for name, made in OBJECTIVES.items() if made.function.__module__.startswith("bandit_pft."))
every_objective = pytest.mark.parametrize("name", NAMES)
B, N, T = 8, 5, 3

SUPERVISED = {"sft", "pref_ft", "best_of_n", "rwr", "rwr_normalized", "awr", "filtered"}
GROUP_Z_SCORE = {"reinforce_normalized", "grpo", "dapo", "gspo", "gspo_token", "cispo"}
LEAD_ONLY = {"dpo", "dpo_mean", "cdpo", "robust_dpo", "ipo", "ipo_mean", "hinge", "exo", "discopop", "simpo"}
PAIRS = LEAD_ONLY | {
    *("dpop", "chi2_po", "fdpo_forward", "fdpo_js", "fdpo_alpha", "nca", "bco_pair", "sppo", "apo_zero", "apo_down"),
    *("slic", "cpo", "orpo", "pref_ft"),
}
DISTRIBUTION = {
    *("forward_kl", "reverse_kl", "jensen_shannon", "alpha_divergence", "bond_forward", "bond_backward"),
    "bond_jeffreys",
}
BOND = {"bond_forward", "bond_backward", "bond_jeffreys"}
BEST = {"best_of_n", "best_of_n_negative", "best_of_n_worst", "best_of_n_complement"}
PENALTY = {"kl_k1", "kl_k2", "kl_k3"}
UNPAIRED = {"kto", "bco"}


# --- batches ---------------------------------------------------------------------------------------------------------
def is_exact(name: str) -> bool:
    return OBJECTIVES[name].family == "distribution"


@functools.cache
def sample(exact: bool, kind: str = "plain") -> tuple[np.ndarray, Group]:
    """Log-probabilities [B, N, T] and a prepared batch: ragged, and learner, reference and old policy differ."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal
    length = rng.integers(1, T + 1, (B, N))
    if kind == "bandit":
        length[:] = 1
    if kind == "padded":
        length[:, 3:] = 0
    reward = normal((B, N))
    score = reward + 0.5 * normal((B, N))
    logits = normal((B, N, T))
    log = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))
    logp, ref, old = log(logits), log(logits + 0.5 * normal((B, N, T))), log(logits + 0.2 * normal((B, N, T)))
    if kind == "equal":
        reward[:] = np.float32(0.1) * np.arange(1, B + 1)[:, None]
        score[:] = reward
    if kind == "hostile":
        reward[0] = score[0] = 0.3  # all tie
        length[1, 2:] = 0  # two responses
        length[2, 1:] = 0  # one response
        length[3] = 0  # none
        logp[4, ::2] = ref[4, 1::2] = old[4, 2:] = -1e4
        logp[5] = -1e4
        reward[6] = score[6] = [1e3, -1e3, 1e3, 0, 1e-30]
        logp[7] = ref[7] = old[7] = 0.0  # certain
    mask = np.arange(T) < length[..., None]
    if kind == "hostile":
        logp, ref, old = (np.where(mask, x, np.nan) for x in (logp, ref, old))
    groups = []
    for b in range(B):
        finite = lambda x: np.where(mask[b], x, 0)  # noqa: B023
        numbers: dict[str, Any] = {
            "reward": reward[b],
            "score": score[b],
            "ref_logp": finite(ref[b]),
            "old_logp": finite(old[b]),
            "mask": mask[b],
            "baseline": 0.2,
            "scale": 1.5,
        }
        if exact:
            weight = np.exp(finite(old[b]).sum(-1)) * mask[b].any(-1)
            numbers |= {"weight": weight / max(weight.sum(), 1e-30), "draws": 4.0}
        groups.append((ExactGroup if exact else Group).of(**numbers))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *groups)
    stacked = stacked._replace(ref_logp=jnp.asarray(ref, jnp.float32), old_logp=jnp.asarray(old, jnp.float32))
    return np.asarray(logp, np.float32), prepare(stacked, jnp.asarray(logp, jnp.float32))


TRACED: Counter[str] = Counter()


@functools.cache
def batched(name: str) -> Any:
    """(logp, groups, hyper) -> loss, force; one compilation for everything that this file asks."""
    made = OBJECTIVES[name]

    def run(logp: Any, groups: Group, hyper: dict[str, Any]) -> Any:
        TRACED[name] += 1
        loss, gradient = jax.value_and_grad(lambda x: batch_loss(made, x, groups, **hyper))(logp)
        return loss, -gradient

    return jax.jit(run)


@functools.cache
def alone(name: str) -> Any:
    """(logp, group, hyper) -> force of one group, vmapped over settings of the hyper-parameters."""
    made = OBJECTIVES[name]
    run = lambda _, logp, group, hyper: force(made, logp, group, **hyper)
    return jax.jit(jax.vmap(run, in_axes=(0, None, None, 0)))


def defaults(name: str) -> dict[str, np.float32]:
    return {key: np.float32(value) for key, value in OBJECTIVES[name].hyper.items()}


def others(name: str) -> dict[str, np.float32]:
    """Every hyper-parameter elsewhere in its range."""
    return {key: np.float32(1.5 * value or 0.5) for key, value in OBJECTIVES[name].hyper.items()}


def run(name: str, kind: str = "plain", change: Any = None, hyper: Any = None) -> tuple[float, np.ndarray]:
    logp, groups = sample(is_exact(name), kind)
    if change is not None:
        logp, groups = change(logp, groups)
    loss, pull = batched(name)(jnp.asarray(logp), groups, defaults(name) if hyper is None else hyper)
    return float(loss), np.asarray(pull)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


# --- finite everywhere -----------------------------------------------------------------------------------------------
@every_objective
def test_loss_and_force_are_finite_on_ties_small_groups_logp_of_minus_1e4_and_nan_in_masked_tokens(name: str) -> None:
    loss, pull = run(name, "hostile")
    assert np.isfinite(loss)
    assert np.isfinite(pull).all()


@every_objective
def test_a_masked_token_feels_no_force_and_its_number_does_not_matter(name: str) -> None:
    def spoil(logp: Any, groups: Group) -> tuple[Any, Group]:
        hide = lambda x: jnp.where(groups.mask, x, jnp.nan)
        return hide(logp), groups._replace(ref_logp=hide(groups.ref_logp), old_logp=hide(groups.old_logp))

    loss, pull = run(name)
    spoilt_loss, spoilt = run(name, change=spoil)
    assert spoilt_loss == loss
    np.testing.assert_array_equal(spoilt, pull)
    assert not spoilt[~np.asarray(sample(is_exact(name))[1].mask)].any()


# --- symmetries ------------------------------------------------------------------------------------------------------
@every_objective
def test_permuting_the_responses_permutes_the_force(name: str) -> None:
    order = np.array([3, 0, 4, 2, 1])

    def permute(logp: np.ndarray, groups: Group) -> tuple[np.ndarray, Group]:
        return logp[:, order], jax.tree.map(lambda x: x[:, order] if x.ndim > 1 else x, groups)

    loss, pull = run(name)
    permuted_loss, permuted = run(name, change=permute)
    np.testing.assert_allclose(permuted_loss, loss, rtol=1e-5, atol=1e-6)
    close(permuted, pull[:, order])


@every_objective
def test_splitting_a_batch_into_groups_and_cutting_off_the_padding_leaves_every_force_as_it_was(name: str) -> None:
    logp, groups = sample(is_exact(name), "padded")
    _, together = run(name, "padded")
    settings = {key: np.stack([value] * 2) for key, value in defaults(name).items()}
    for b in range(B):
        group = jax.tree.map(lambda x: x[b][:3] if x[b].ndim else x[b], groups)  # noqa: B023
        apart = np.asarray(alone(name)(np.arange(2), logp[b, :3], group, settings))
        np.testing.assert_allclose(apart[0], together[b, :3], rtol=1e-5, atol=1e-6 * np.abs(together).max())
    assert not together[:, 3:].any()


@pytest.mark.parametrize("name", sorted(set(NAMES) - DISTRIBUTION))
def test_a_response_of_weight_0_has_no_force_and_changes_no_other(name: str) -> None:
    def hide(value: float) -> Any:
        def change(logp: Any, groups: Group) -> tuple[Any, Group]:
            # In place of an empty mask, a weight of 0 and numbers that would matter otherwise.
            pad = np.zeros((B, N), bool)
            pad[:, 3:] = True
            fill = lambda x: jnp.where(pad.reshape(pad.shape + (1,) * (x.ndim - 2)), value, x)
            filled = groups._replace(mask=groups.mask | pad[..., None], reward=fill(groups.reward))
            filled = filled._replace(score=fill(groups.score), ref_logp=fill(groups.ref_logp))
            return fill(logp), filled

        return change

    _, plain = run(name, "padded")
    for value in (-7.0, -0.5):
        _, filled = run(name, "padded", hide(value))
        assert not filled[:, 3:].any()
        close(filled, plain, 1e-6)


# --- hyper-parameters ------------------------------------------------------------------------------------------------
@every_objective
def test_every_setting_of_the_hyper_parameters_runs_in_one_compilation_and_vmap_equals_a_loop(name: str) -> None:
    logp, groups = sample(is_exact(name), "padded")
    _, first = run(name, "padded", hyper=defaults(name))
    traced = TRACED[name]
    _, second = run(name, "padded", hyper=others(name))
    assert TRACED[name] == traced
    settings = {key: np.stack([defaults(name)[key], others(name)[key]]) for key in OBJECTIVES[name].hyper}
    group = jax.tree.map(lambda x: x[0][:3] if x[0].ndim else x[0], groups)
    vmapped = np.asarray(alone(name)(np.arange(2), logp[0, :3], group, settings))
    for one, many in zip((first, second), vmapped, strict=True):
        np.testing.assert_allclose(many, one[0, :3], rtol=1e-5, atol=1e-6 * np.abs(one).max())


def test_every_hyper_parameter_is_in_the_table_with_its_default_in_range() -> None:
    used = set()
    for name in NAMES:
        OBJECTIVES[name].check(OBJECTIVES[name].hyper)
        OBJECTIVES[name].check(others(name))
        used |= set(OBJECTIVES[name].hyper)
    assert used == set(HYPER)


@pytest.mark.parametrize("key", sorted(HYPER))
def test_a_value_outside_its_range_is_refused_by_every_objective_that_has_it(key: str) -> None:
    limits = HYPER[key]
    bad = [np.nan, np.inf]
    bad += [] if limits.above is None else [limits.above]
    bad += [] if limits.at_least is None else [limits.at_least - 1]
    bad += [] if limits.at_most is None else [limits.at_most + 1]
    bad += [] if limits.below is None else [limits.below]
    for name in (name for name in NAMES if key in OBJECTIVES[name].hyper):
        for value in bad:
            with pytest.raises(DomainError, match=key):
                OBJECTIVES[name].check({key: float(value)})


def test_a_mistyped_hyper_parameter_is_refused_with_the_nearest_name() -> None:
    logp, groups = sample(False)
    group = jax.tree.map(lambda x: x[0], groups)
    with pytest.raises(ConfigError, match="did you mean beta"):
        force("dpo", jnp.asarray(logp[0]), group, bta=0.1)
    with pytest.raises(ShapeError, match="vmap"):
        OBJECTIVES["dpo"](jnp.asarray(logp[0]), group, beta=np.array([0.1, 0.2]))


# --- direction and sum of the forces ---------------------------------------------------------------------------------
def numbers(group: Group) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(group.reward, np.float64), np.asarray(group.weight, np.float64)


@pytest.mark.parametrize("name", sorted(SUPERVISED))
def test_supervised_objectives_never_push_and_their_forces_sum_to_the_mean_weight(name: str) -> None:
    _, pull = run(name, "bandit")
    reward, weight = numbers(sample(False, "bandit")[1])
    z = (reward - reward.mean(1, keepdims=True)) / (reward.std(1, ddof=1, keepdims=True) + 1e-4)
    expected = {"rwr": (weight * np.exp(reward / 0.5)).sum(1).mean(), "awr": (weight * np.exp(z)).sum(1).mean()}
    assert (pull >= 0).all()
    np.testing.assert_allclose(pull.sum(), expected.get(name, 1.0), rtol=1e-5)


@every_objective
def test_forces_sum_to_0_exactly_where_only_differences_between_responses_count(name: str) -> None:
    _, pull = run(name, "bandit")
    total = abs(pull.sum()) / np.abs(pull).sum()
    if name in LEAD_ONLY | {"reinforce_group", "reinforce_normalized"}:
        assert total < 1e-6
    else:
        assert total > 1e-5


@every_objective
def test_only_imitation_and_forward_divergences_never_push(name: str) -> None:
    _, pull = run(name, "bandit")
    assert (pull.min() < 0) == (name not in SUPERVISED | {"forward_kl", "bond_forward"})
    assert (pull.max() > 0) == (name not in {"kl_k1", "apo_down"})


# --- no signal, no force ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(GROUP_Z_SCORE | PAIRS))
def test_equal_rewards_give_exactly_no_force(name: str) -> None:
    _, pull = run(name, "equal")
    assert not pull.any()


@pytest.mark.parametrize("name", ["reinforce_group", "rloo", "dr_grpo"])
def test_equal_rewards_give_no_more_force_than_their_rounding(name: str) -> None:
    _, pull = run(name, "equal")
    assert np.abs(pull).max() < 1e-6


@pytest.mark.parametrize("name", sorted(GROUP_Z_SCORE | PAIRS | {"reinforce_group", "rloo", "dr_grpo"}))
def test_a_single_response_cannot_be_better_than_itself(name: str) -> None:
    _, pull = run(name, "hostile")
    assert not pull[2].any()


# --- measured properties ---------------------------------------------------------------------------------------------
MEASURED: dict[str, set[str]] = {
    "reads_reward": {
        *("rwr", "rwr_normalized", "awr", "reinforce", "reinforce_running", "reinforce_group", "rloo", "ppo_clip"),
        *("dr_grpo", "asymre", *GROUP_Z_SCORE, *(DISTRIBUTION - BOND)),
    },
    "reads_score": {*PAIRS, *BEST, *BOND, *UNPAIRED, "filtered", "xpo", "nash_md"},
    "reads_reference": {
        *(PAIRS - {"pref_ft", "slic", "simpo", "cpo", "orpo"}),
        *(UNPAIRED | DISTRIBUTION | {"kl_k2", "kl_k3", "xpo", "nash_md"}),
    },
    "reads_old": {
        *("rloo", "ppo_clip", "dr_grpo", "xpo", "nash_md", *(GROUP_Z_SCORE - {"reinforce_normalized"})),
    },
    "token_level": {"ppo_clip", "grpo", "dr_grpo", "dapo", "cispo"},
}


@functools.cache
def measured() -> dict[str, Properties]:
    return {name: measure(name) for name in NAMES}


@pytest.mark.parametrize("which", sorted(MEASURED))
def test_measured_properties_are_those_that_the_formulas_imply(which: str) -> None:
    assert {name for name, found in measured().items() if getattr(found, which)} == MEASURED[which]


def test_a_shift_of_all_rewards_matters_only_without_a_baseline_of_the_same_group() -> None:
    shifted = {name for name, found in measured().items() if not found.reward_shift_invariant}
    assert shifted == {"reinforce", "reinforce_running", "ppo_clip", "rwr", "filtered", "kto", "bco"}


def test_the_measured_negative_gradient_reproduces_table_1_of_the_paper() -> None:
    table = {
        "ppo_clip": True,
        "reinforce": True,
        "dpo": True,
        "ipo": True,
        "pref_ft": False,
        "rwr": False,
        "best_of_n": False,
        "filtered": False,
    }
    assert {name: measured()[name].pushes for name in table} == table
    assert all(measured()[name].pulls for name in table)


def test_measure_takes_hyper_parameters_and_refuses_bad_ones() -> None:
    assert measure("asymre", delta=-10.0).pushes is False
    assert measure("best_of_n_negative", negative=0.0).pushes is False
    with pytest.raises(DomainError, match="beta"):
        measure("dpo", beta=0.0)


# --- documentation ---------------------------------------------------------------------------------------------------
@every_objective
def test_every_objective_has_a_summary_a_formula_and_a_paper_in_the_bibliography(name: str) -> None:
    made = OBJECTIVES[name]
    assert made.summary.endswith(".")
    assert made.formula.startswith("L = ")
    bib = (Path(core.__file__).parents[1] / "papers.bib").read_text()
    assert re.search(rf"^@\w+{{{made.paper},$", bib, re.MULTILINE)


def test_every_paper_in_the_bibliography_is_used_and_has_a_title_an_author_and_a_year() -> None:
    bib = (Path(core.__file__).parents[1] / "papers.bib").read_text()
    entries = re.split(r"^@", bib, flags=re.MULTILINE)[1:]
    keys = [re.match(r"\w+{(\w+),", entry) for entry in entries]
    used = {OBJECTIVES[name].paper for name in NAMES} | {made.source for made in claims.CLAIMS.values()}
    assert {key.group(1) for key in keys if key} == used
    for entry in entries:
        assert all(re.search(rf"^  {field} = ", entry, re.MULTILINE) for field in ("title", "author", "year")), entry

"""Every objective that TRL has gives TRL's loss and gradient; the numbers on TRL's side come from its own code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
import torch
import trl_reference as trl
from trl_reference import Batch

from bandit_pft.groups import Group, prepare
from bandit_pft.objectives import OBJECTIVES, Objective, batch_force, batch_loss, with_kl

THRESHOLD = 1.2  # of desirable responses
Answer = tuple[float, np.ndarray]


def make_batch(seed: int, groups: int = 4, n: int = 4, t: int = 5, *, noise: float = 0.3, ties: bool = True) -> Batch:
    """Responses of 1 to T tokens, ties among the rewards, and three policies that differ by `noise` nats per token."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, t + 1, (groups, n))
    length[0, 0] = t
    mask = np.arange(t) < length[..., None]
    ref = -rng.uniform(0.3, 2, mask.shape)
    near = lambda: np.minimum(ref + rng.normal(0, noise, mask.shape), -0.1).astype(np.float32)
    reward = rng.integers(0, 4, (groups, n)) if ties else rng.permuted(np.tile(np.arange(n), (groups, 1)), axis=1)
    return Batch(near(), ref.astype(np.float32), near(), mask, reward.astype(np.float32))


RAGGED = make_batch(0)
SINGLE = make_batch(1, t=1)
DUELS = make_batch(2, groups=6, n=2, ties=False)
ON_POLICY = RAGGED._replace(old_logp=RAGGED.logp)
FREE = RAGGED._replace(ref_logp=np.zeros_like(RAGGED.ref_logp))


def stacked(batch: Batch) -> Group:
    groups = [
        Group.of(reward=r, ref_logp=f, old_logp=o, mask=m, threshold=THRESHOLD)
        for r, f, o, m in zip(batch.reward, batch.ref_logp, batch.old_logp, batch.mask, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *groups)


@functools.cache
def compiled(objective: Objective) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(lambda x, g, h: (batch_loss(objective, x, g, **h), -batch_force(objective, x, g, **h)))


def ours(objective: Objective, batch: Batch, hyper: dict[str, float], groups: Group | None = None) -> Answer:
    """Loss of the whole batch, and d loss / d logp."""
    logp = jnp.asarray(batch.logp)
    groups = prepare(stacked(batch), logp) if groups is None else groups
    loss, gradient = compiled(objective)(logp, groups, hyper)
    return float(loss), np.asarray(gradient)


def assert_equal(got: Answer, want: Answer) -> None:
    """To 1e-5 of the loss, and of the largest gradient."""
    assert np.abs(want[1]).max() > 1e-4
    assert got[0] == pytest.approx(want[0], rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-5 * np.abs(want[1]).max())


def pair_by_pair(reference: Callable[..., Answer], batch: Batch, **options: Any) -> Answer:
    """Mean over the pairs of the batch of what TRL gives for each alone."""
    loss, gradient = 0.0, np.zeros_like(batch.logp)
    pairs = batch.pairs()
    for group, winner, loser in pairs:
        index = np.array([winner, loser])
        alone = Batch(*(x[group][None, index] for x in batch))
        value, slope = reference(alone, **options)
        loss += value / len(pairs)
        gradient[group, index] += slope[0] / len(pairs)
    return loss, gradient


def test_the_batches_are_as_hard_as_they_claim() -> None:
    ratio = np.exp(RAGGED.logp - RAGGED.old_logp)[RAGGED.mask]
    assert ratio.min() < 0.7
    assert ratio.max() > 1.4
    assert len(np.unique(RAGGED.mask.sum(-1))) == 5
    pairs = np.bincount(RAGGED.pairs()[:, 0], minlength=4)
    assert pairs.min() < pairs.max() <= 6
    assert 0 < (RAGGED.reward > THRESHOLD).mean() < 1


DPO: list[tuple[str, dict[str, float], dict[str, Any]]] = [
    ("dpo", {"beta": 0.1}, {"loss_type": "sigmoid"}),
    ("dpo", {"beta": 2.0}, {"loss_type": "sigmoid"}),
    ("dpo_mean", {"beta": 2.0}, {"loss_type": "sigmoid_norm"}),
    ("hinge", {"beta": 0.7}, {"loss_type": "hinge"}),
    ("ipo_mean", {"beta": 0.2}, {"loss_type": "ipo"}),
    ("exo", {"beta": 0.5, "label_smoothing": 0.05}, {"loss_type": "exo_pair"}),
    ("exo", {"beta": 0.5, "label_smoothing": 1e-3}, {"loss_type": "exo_pair"}),
    ("nca", {"beta": 0.5}, {"loss_type": "nca_pair"}),
    ("robust_dpo", {"beta": 0.5, "label_smoothing": 0.2}, {"loss_type": "robust"}),
    ("bco_pair", {"beta": 0.5}, {"loss_type": "bco_pair"}),
    ("sppo", {"beta": 0.5}, {"loss_type": "sppo_hard"}),
    ("apo_zero", {"beta": 0.5}, {"loss_type": "apo_zero"}),
    ("apo_down", {"beta": 0.5}, {"loss_type": "apo_down"}),
    ("discopop", {"beta": 0.1}, {"loss_type": "discopop", "discopop_tau": 0.05}),
    ("fdpo_forward", {"beta": 0.5}, {"f_divergence_type": "forward_kl"}),
    ("fdpo_js", {"beta": 0.5}, {"f_divergence_type": "js_divergence"}),
    ("fdpo_alpha", {"beta": 0.5, "alpha": 0.5}, {"f_divergence_type": "alpha_divergence"}),
    ("fdpo_alpha", {"beta": 0.5, "alpha": 1.0}, {"f_divergence_type": "alpha_divergence"}),
    ("fdpo_alpha", {"beta": 0.5, "alpha": 0.1}, {"f_divergence_type": "alpha_divergence"}),
]


@pytest.mark.parametrize(("name", "hyper", "options"), DPO)
def test_pair_objective_is_that_of_the_dpo_trainer(name: str, hyper: dict[str, float], options: dict[str, Any]) -> None:
    renamed = {{"alpha": "f_alpha_divergence_coef"}.get(k, k): v for k, v in hyper.items()}
    assert_equal(ours(OBJECTIVES[name], RAGGED, hyper), trl.dpo(RAGGED, **options, **renamed))


def test_cdpo_is_the_smoothed_loss_of_the_dpo_trainer_for_one_pair() -> None:
    # TRL keeps the smoothed logistic loss in AOT only, which sorts the batch first: a single pair is sorted.
    hyper = {"beta": 0.5, "label_smoothing": 0.2}
    assert_equal(ours(OBJECTIVES["cdpo"], RAGGED, hyper), pair_by_pair(trl.dpo, RAGGED, loss_type="aot", **hyper))


def test_sft_is_that_of_its_trainer_for_single_tokens_and_otherwise_per_response() -> None:
    assert_equal(ours(OBJECTIVES["sft"], SINGLE, {}), trl.sft(SINGLE))
    assert_equal(ours(OBJECTIVES["sft"], RAGGED, {}), trl.sft(RAGGED, items=RAGGED.reward.size))


def test_imitating_the_winner_is_the_sft_term_of_the_dpo_trainer_for_single_tokens() -> None:
    assert_equal(ours(OBJECTIVES["pref_ft"], SINGLE, {}), trl.dpo(SINGLE, loss_type="sft"))


@pytest.mark.parametrize(("name", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_a_training_step_of_the_online_dpo_trainer(name: str, loss_type: str) -> None:
    got = ours(OBJECTIVES[name], DUELS, {"beta": 0.3})
    assert_equal(got, trl.online_dpo(DUELS, loss_type=loss_type, beta=0.3))


CPO: list[tuple[str, Batch, dict[str, float], dict[str, Any]]] = [
    ("simpo", RAGGED, {"beta": 2.0, "margin": 1.0}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
    ("simpo", RAGGED, {"beta": 10.0, "margin": 3.0}, {"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 3.0}),
    ("cpo", RAGGED, {"beta": 0.3, "sft_coef": 0.0}, {"beta": 0.3}),
    ("cpo", SINGLE, {"beta": 0.3, "sft_coef": 1.0}, {"beta": 0.3, "cpo_alpha": 1.0}),
    ("slic", RAGGED, {"margin": 1.0, "sft_coef": 0.0}, {"loss_type": "hinge", "beta": 1.0}),
    ("slic", SINGLE, {"margin": 1.0, "sft_coef": 0.1}, {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.1}),
    ("dpo", FREE, {"beta": 0.3}, {"beta": 0.3}),
    ("hinge", FREE, {"beta": 0.3}, {"loss_type": "hinge", "beta": 0.3}),
    ("cdpo", FREE, {"beta": 0.3, "label_smoothing": 0.2}, {"beta": 0.3, "label_smoothing": 0.2}),
    ("ipo_mean", FREE, {"beta": 0.3}, {"loss_type": "ipo", "beta": 0.3}),
]


@pytest.mark.parametrize(("name", "batch", "hyper", "options"), CPO, ids=lambda x: "" if isinstance(x, Batch) else None)
def test_objective_without_reference_is_that_of_the_cpo_trainer(
    name: str, batch: Batch, hyper: dict[str, float], options: dict[str, Any]
) -> None:
    assert_equal(ours(OBJECTIVES[name], batch, hyper), trl.cpo(batch, **{"cpo_alpha": 0.0, **options}))


def test_cpo_and_orpo_imitate_as_their_trainers_do_one_pair_at_a_time() -> None:
    # TRL's imitation is the mean over the tokens of a batch of pairs, ours over those of each winner.
    want = pair_by_pair(trl.cpo, RAGGED, beta=0.3, cpo_alpha=0.7)
    assert_equal(ours(OBJECTIVES["cpo"], RAGGED, {"beta": 0.3, "sft_coef": 0.7}), want)
    want = pair_by_pair(trl.orpo, RAGGED, beta=0.3)
    assert_equal(ours(OBJECTIVES["orpo"], RAGGED, {"odds_coef": 0.3}), want)


def test_orpo_is_that_of_its_trainer_for_single_tokens() -> None:
    assert_equal(ours(OBJECTIVES["orpo"], SINGLE, {"odds_coef": 0.3}), trl.orpo(SINGLE, beta=0.3))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kto_is_that_of_its_trainer(shift: float) -> None:
    batch = ON_POLICY._replace(logp=RAGGED.logp + shift, old_logp=RAGGED.logp + shift)
    hyper = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    assert_equal(ours(OBJECTIVES["kto"], batch, hyper), trl.kto(batch, batch.reward > THRESHOLD, **hyper))
    kl = float(prepare(stacked(batch), jnp.asarray(batch.logp)).kl[0])
    assert (kl > 0.1) == (shift > 0)


def test_kto_without_a_reference_point_is_the_unpaired_apo_of_the_kto_trainer() -> None:
    want = trl.kto(RAGGED, RAGGED.reward > THRESHOLD, loss_type="apo_zero_unpaired", beta=0.3)
    assert_equal(ours(OBJECTIVES["kto"], RAGGED, {"beta": 0.3}, prepare(stacked(RAGGED))), want)


GRPO: list[tuple[str, dict[str, float], dict[str, Any]]] = [
    ("grpo", {"clip": 0.2}, {"loss_type": "grpo"}),
    # By default TRL multiplies the KL term by the ratio; the paper, and ours, do not.
    ("grpo", {"clip": 0.3, "kl_coef": 0.1}, {"epsilon": 0.3, "beta": 0.1, "use_bias_correction_kl": False}),
    ("dr_grpo", {"clip": 0.2}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    ("dr_grpo", {"max_length": 9.0}, {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 9}),
    ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("dapo", {"clip_low": 0.1, "clip_high": 0.5}, {"loss_type": "bnpo", "epsilon": 0.1, "epsilon_high": 0.5}),
    ("gspo", {}, {"epsilon": 3e-4, "epsilon_high": 4e-4}),
    ("gspo", {"clip_low": 0.1, "clip_high": 0.2}, {"epsilon": 0.1, "epsilon_high": 0.2}),
    ("gspo_token", {"clip_low": 0.1, "clip_high": 0.2}, {"epsilon": 0.1, "epsilon_high": 0.2}),
    ("cispo", {"max_ratio": 1.2}, {"loss_type": "cispo", "epsilon_high": 1.2}),
]


@pytest.mark.parametrize(("name", "hyper", "options"), GRPO)
def test_group_objective_is_that_of_the_grpo_trainer(
    name: str, hyper: dict[str, float], options: dict[str, Any]
) -> None:
    level = "sequence" if name.startswith("gspo") else "token"
    options = {"loss_type": "grpo", "importance_sampling_level": level, **options}
    assert_equal(ours(OBJECTIVES[name], RAGGED, hyper), trl.grpo(RAGGED, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {"loss_type": "grpo"}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("dapo", {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("cispo", {"loss_type": "cispo", "epsilon_high": 5.0}),
    ],
)
@pytest.mark.parametrize("steps", [2, 4])
def test_denominators_are_those_of_all_micro_batches_of_the_trainer(
    name: str, options: dict[str, Any], steps: int
) -> None:
    tokens = RAGGED.mask.reshape(steps, -1).sum(-1)
    assert len(np.unique(tokens)) == steps
    assert_equal(ours(OBJECTIVES[name], RAGGED, {}), trl.grpo(RAGGED, gradient_accumulation_steps=steps, **options))


def test_rloo_is_that_of_its_trainer() -> None:
    assert_equal(ours(OBJECTIVES["rloo"], RAGGED, {"clip": 0.4}), trl.rloo(RAGGED, epsilon=0.4, beta=0.0))


def test_rloo_with_k1_in_the_reward_is_that_of_its_trainer_on_policy() -> None:
    made = with_kl("rloo", kl="k1", place="reward")
    assert_equal(ours(made, ON_POLICY, {"kl_coef": 0.5}), trl.rloo(ON_POLICY, beta=0.5))


@pytest.mark.parametrize("clip", [0.1, 0.5])
def test_ppo_clip_is_rlaxs_over_all_tokens_of_the_batch(clip: float) -> None:
    mask, baseline, scale = RAGGED.mask, 1.5, 0.8
    advantage = np.broadcast_to((RAGGED.reward[..., None] - baseline) / scale, mask.shape)[mask]

    def theirs(logp: jax.Array) -> jax.Array:
        ratio = jnp.exp(logp - RAGGED.old_logp)[mask]
        return jnp.asarray(rlax.clipped_surrogate_pg_loss(ratio, jnp.asarray(advantage), clip))

    loss, gradient = jax.value_and_grad(theirs)(jnp.asarray(RAGGED.logp))
    groups = prepare(stacked(RAGGED)._replace(baseline=jnp.full(4, baseline), scale=jnp.full(4, scale)))
    assert_equal(ours(OBJECTIVES["ppo_clip"], RAGGED, {"clip": clip}, groups), (float(loss), np.asarray(gradient)))


@pytest.mark.parametrize(("name", "hyper"), [("dpo", {"beta": 0.5}), ("sppo", {"beta": 0.5})])
def test_the_force_moves_a_language_models_weights_as_the_dpo_trainer_does(name: str, hyper: dict[str, float]) -> None:
    loss_type = {"dpo": "sigmoid", "sppo": "sppo_hard"}[name]
    model, inputs, want = trl.dpo_weights(DUELS, loss_type=loss_type, **hyper)
    logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    logp = torch.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    number, n, t = DUELS.mask.shape
    # Rows are all winners, then all losers.
    shape = lambda x: np.asarray(x.detach()).reshape(n, number, t).swapaxes(0, 1)
    mask = shape(inputs["completion_mask"][:, 1:] == 1)
    reward = np.tile(np.array([1, 0], np.float32), (number, 1))
    batch = Batch(shape(logp), shape(inputs["ref_logp"]), shape(logp), mask, reward)
    _, gradient = ours(OBJECTIVES[name], batch, hyper)
    logp.backward(torch.tensor(gradient.swapaxes(0, 1).reshape(n * number, t)))
    largest = max(float(g.abs().max()) for g in want.values())
    assert largest > 1e-3
    for key, weight in model.named_parameters():
        np.testing.assert_allclose(weight.grad, want[key], rtol=0, atol=2e-5 * largest, err_msg=key)

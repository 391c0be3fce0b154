"""Weights, pairs, baselines and denominators, against enumeration and plain NumPy over the whole batch."""

from __future__ import annotations

import functools
import itertools
from decimal import Decimal, getcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandit_pft.errors import DomainError, ShapeError
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights, prepare, weighted_mean

best_of_n = jax.jit(best_of_n_weights)


def stack(groups: list[Group]) -> Group:
    return jax.tree.map(lambda *x: jnp.stack(x), *groups)


def ragged(seed: int) -> tuple[Group, dict[str, np.ndarray]]:
    """A prepared batch of 8 groups of 4 responses of 3 tokens, with ties, missing responses and an empty group."""
    rng = np.random.default_rng(seed)
    groups, n, t = 8, 4, 3
    length = rng.integers(0, t + 1, (groups, n))
    length[0] = 0
    length[1] = np.maximum(length[1], 1)
    mask = np.arange(t) < length[..., None]
    reward = rng.integers(0, 4, (groups, n)) / 2.0
    logp = rng.normal(-1, 0.3, (3, groups, n, t))
    logp = np.where(mask, logp, 0)
    reward = np.where(mask.any(-1), reward, 0)
    made = [
        Group.of(reward=reward[b], ref_logp=logp[0, b], old_logp=logp[1, b], mask=mask[b], threshold=0.7)
        for b in range(groups)
    ]
    facts = {"mask": mask, "reward": reward, "logp": logp[2], "ref_logp": logp[0], "real": mask.any(-1)}
    return stack(made), facts


def grow(batch: Group, *, groups: int, n: int, t: int) -> Group:
    """The same batch in larger arrays, whose new places hold rubbish under a false mask and weight 0."""

    def fill(name: str, x: jax.Array) -> jax.Array:
        extra = (groups, n, t)[: x.ndim]
        rubbish = {"mask": False, "weight": 0, "draws": 0, "scale": 1}.get(name, 7)
        return jnp.pad(x, [(0, more) for more in extra], constant_values=rubbish)

    return type(batch)(*(fill(name, x) for name, x in zip(batch._fields, batch, strict=True)))


@jax.jit
def reductions(batch: Group, x: jax.Array) -> dict[str, jax.Array]:
    """Each group's part of every batch mean, of functions of x [B, N, T]."""

    def one(group: Group, x: jax.Array) -> dict[str, jax.Array]:
        total = group.total(x)
        return {
            "response": group.mean(total),
            "token": group.token_mean(x),
            "kept": group.kept_mean(total),
            "pair": group.pair_mean(total[:, None] - 2 * total[None, :]),
        }

    return jax.vmap(one)(batch, x)


def exact(weight: Any, score: Any, n: int) -> list[Decimal]:
    """F^n - F_^n with sixty digits, shared among ties by weight."""
    getcontext().prec = 60
    weight = [Decimal(float(w)) for w in weight]
    weight = [w / sum(weight) for w in weight]
    upto = lambda s: sum((w for w, x in zip(weight, score, strict=True) if x <= s), Decimal(0))
    tie = lambda s: sum((w for w, x in zip(weight, score, strict=True) if x == s), Decimal(0))
    won = {s: upto(s) ** n - (upto(s) - tie(s)) ** n for s in score}
    return [won[s] * w / tie(s) if w else w for w, s in zip(weight, score, strict=True)]


# --- best of n -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("score", [[0, 1, 2, 3], [1, 1, 0, 2], [2, 0, 2, 2], [5, 5, 5, 5]])
def test_best_of_n_is_what_enumerating_all_draws_gives(score: list[int], n: int) -> None:
    weight = np.array([0.1, 0.4, 0.3, 0.2])
    want = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        top = [a for a in draws if score[a] == max(score[a] for a in draws)]
        for a in top:
            want[a] += np.prod(weight[list(draws)]) / len(top)
    got = best_of_n(jnp.asarray(weight, jnp.float32), jnp.asarray(score, jnp.float32), n)
    np.testing.assert_allclose(got, want, atol=2e-7)


@pytest.mark.parametrize("n", [1, 64, 10**6, 10**9])
@pytest.mark.parametrize("ties", [False, True])
def test_best_of_a_million_keeps_its_relative_precision(n: int, ties: bool) -> None:
    rng = np.random.default_rng(n % 97)
    weight = np.exp(rng.normal(0, 6, 60)).astype(np.float32)
    score = rng.integers(0, 12, 60) if ties else rng.permutation(60)
    want = np.array([float(x) for x in exact(weight, score.tolist(), n)])
    got = np.asarray(best_of_n(jnp.asarray(weight), jnp.asarray(score, jnp.float32), float(n)))
    seen = want > 1e-35
    assert seen.any()
    np.testing.assert_allclose(got[seen], want[seen], rtol=3e-5)
    np.testing.assert_allclose(got[~seen], 0, atol=2e-35)


def test_best_of_n_finds_rare_winners_among_a_million_actions() -> None:
    rng = np.random.default_rng(0)
    weight = np.exp(rng.normal(0, 2, 10**6)).astype(np.float32).astype(float)
    weight /= weight.sum()
    score = rng.permutation(10**6)
    order = np.argsort(score)
    above = np.append(np.cumsum(weight[order][::-1])[::-1], 0)[1:]
    with np.errstate(divide="ignore"):
        log_upto = np.log1p(-np.minimum(above, 1))
        fraction = np.minimum(weight[order] / np.maximum(1 - above, 1e-300), 1)
        want = np.exp(1e6 * log_upto) * -np.expm1(1e6 * np.log1p(-fraction))
    got = np.asarray(best_of_n(jnp.asarray(weight, jnp.float32), jnp.asarray(score, jnp.float32), 1e6), float)[order]
    assert abs(got.sum() - 1) < 1e-6
    assert np.abs(got - want).sum() / 2 < 1e-6
    common = want > 1e-12
    np.testing.assert_allclose(got[common], want[common], rtol=1e-4)


def test_a_tie_of_thirty_decimal_places_down_is_n_times_likelier_to_win() -> None:
    weight = jnp.asarray([1e-30, 3e-30, 0.5, 0.5, 0.0])
    got = best_of_n(weight, jnp.asarray([9.0, 9.0, 1.0, 0.0, 9.0]), 4.0)
    np.testing.assert_allclose(got, [4e-30, 12e-30, 1 - 1 / 16, 1 / 16, 0], rtol=1e-6)


# --- pairs, best, worst --------------------------------------------------------------------------------------------
def test_ties_and_small_gaps_are_not_compared() -> None:
    group = Group.of(reward=[0.0, 1.0, 1.0, 1.5], ref_logp=np.zeros(4))
    np.testing.assert_array_equal(group.preferred(), [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    assert float(group.pair_share) == pytest.approx(1 / 5)
    far = Group.of(reward=[0.0, 1.0, 1.0, 1.5], ref_logp=np.zeros(4), min_gap=1.0)
    np.testing.assert_array_equal(far.preferred(), [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])


def test_best_and_worst_share_ties_and_ignore_padding() -> None:
    mask = np.array([[1], [1], [1], [1], [0]], bool)
    group = Group.of(reward=np.zeros(5), score=[2.0, 3.0, 3.0, 2.0, 9.0], ref_logp=np.zeros(5), mask=mask)
    np.testing.assert_allclose(group.best(), [0, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(group.worst(), [0.5, 0, 0, 0.5, 0])
    weighted = Group.of(reward=[1.0, 1.0, 0.0], ref_logp=np.zeros(3), weight=[0.1, 0.3, 0.6])
    np.testing.assert_allclose(weighted.best(), [0.25, 0.75, 0], rtol=1e-6)


@pytest.mark.parametrize("n", [2, 4])
def test_exact_group_is_the_expectation_over_all_sampled_groups(n: int) -> None:
    weight = np.array([0.5, 0.2, 0.3])
    reward = np.array([1.0, 0.0, 1.0])
    draws = np.array(list(itertools.product(range(3), repeat=n)))
    chance = np.prod(weight[draws], -1)
    one = Group.of(reward=reward[draws[0]], ref_logp=np.zeros(n))
    sampled = jax.vmap(lambda r: one._replace(reward=r, score=r))(jnp.asarray(reward[draws], jnp.float32))
    hot = np.eye(3)[draws]  # [groups, n, actions]
    average = lambda stat: np.einsum("g,gi,gia->a", chance, np.asarray(stat), hot)
    table = ExactGroup.of(reward=reward, ref_logp=np.zeros(3), weight=weight, draws=n)
    names = ["best", "worst", "group_advantage", "leave_one_out_advantage", "pair_count"]
    stats = jax.jit(jax.vmap(lambda g: {name: getattr(g, name)() for name in names}))(sampled)
    for name in ["best", "worst"]:
        np.testing.assert_allclose(getattr(table, name)(), average(stats[name]), atol=1e-6)
    for name in ["group_advantage", "leave_one_out_advantage"]:
        np.testing.assert_allclose(weight * getattr(table, name)(), average(stats[name]) / n, atol=1e-6)
    pairs = np.einsum("g,gij,gia,gjb->ab", chance, np.asarray(stats["pair_count"]), hot, hot)
    exact_pairs = np.asarray(table.pair_count() * table.pair_share)
    np.testing.assert_allclose(exact_pairs, pairs / pairs.sum(), atol=1e-6)


def test_gumbel_scores_prefer_with_the_logistic_of_the_gap() -> None:
    reward, temperature, gap = np.array([0.0, 0.4]), 0.5, 0.3
    table = ExactGroup.of(reward=reward, ref_logp=np.zeros(2), weight=[0.5, 0.5], temperature=temperature, min_gap=gap)
    score = reward + temperature * np.random.default_rng(0).gumbel(size=(40_000, 2))
    group = Group.of(reward=reward, ref_logp=np.zeros(2), min_gap=gap)
    sampled = jax.vmap(lambda s: group._replace(score=s).preferred())(jnp.asarray(score, jnp.float32)).mean(0)
    got = np.asarray(table.preferred())
    for i, j in [(0, 1), (1, 0)]:
        assert abs(sampled[i, j] - got[i, j]) < 5 * np.sqrt(0.25 / 40_000)


def test_exact_labels_without_noise_are_the_sampled_ones() -> None:
    for gap in (0.0, 0.2):
        given = {"reward": [0.3, 0.3, 1.0], "ref_logp": np.zeros(3), "min_gap": gap}
        np.testing.assert_array_equal(ExactGroup.of(**given).preferred(), Group.of(**given).preferred())


def test_desirable_is_what_scores_above_a_threshold_that_is_the_mean_score_by_default() -> None:
    mask = np.array([[1], [1], [1], [0]], bool)
    given: dict[str, Any] = {
        "reward": np.zeros(4),
        "score": [0.0, 1.0, 2.0, 9.0],
        "ref_logp": np.zeros(4),
        "mask": mask,
    }
    group = Group.of(**given)
    assert float(group.threshold) == 1
    np.testing.assert_array_equal(group.desirable()[:3], [0, 0, 1])
    np.testing.assert_allclose(Group.of(**given, weight=[1, 1, 2, 0]).threshold, 1.25)


@pytest.mark.parametrize("how", ["one by one", "compiled"])
def test_equal_rewards_are_neither_above_nor_below_their_mean(how: str) -> None:
    """Whatever the reward, the size of the group, its weights and its padding."""
    rng = np.random.default_rng(0)

    def judged(reward: Any, weight: Any) -> tuple[Any, Any]:
        group = Group.of(reward=reward, ref_logp=jnp.zeros(reward.shape), weight=weight)
        return group.desirable(), group.group_advantage()

    batch, sizes = (100, (1, 2, 3, 6, 7, 8, 10)) if how == "compiled" else (4, (6, 10))
    for n in sizes:
        equal = np.repeat(rng.normal(size=(batch, 1)) * 10.0 ** rng.integers(-20, 20, (batch, 1)), n, 1)
        weight = np.where(np.arange(n) % 3 == 2, 0, rng.uniform(0.1, 1, (batch, n)))
        equal[:, np.arange(n) % 3 == 2] = 7.0  # Padding.
        f = (
            jax.jit(jax.vmap(judged))
            if how == "compiled"
            else lambda r, w: [jnp.stack(x) for x in zip(*map(judged, r, w), strict=True)]
        )
        good, advantage = f(jnp.asarray(equal, jnp.float32), jnp.asarray(weight, jnp.float32))
        assert not (np.asarray(good) * (weight > 0)).any(), n
        assert not (np.asarray(advantage) * (weight > 0)).any(), n


def test_a_mean_is_that_of_numpy_in_double_precision() -> None:
    rng = np.random.default_rng(1)
    reward, weight = (rng.normal(size=(50, 10)) + 3).astype(np.float32), rng.dirichlet(np.ones(10), 50)
    found = jax.jit(weighted_mean)(jnp.asarray(weight, jnp.float32), jnp.asarray(reward))
    np.testing.assert_allclose(found, (weight * reward).sum(-1), rtol=1e-6)


def test_weights_count_in_proportion_whatever_they_sum_to() -> None:
    group = Group.of(reward=[1.0, 0.0], ref_logp=np.zeros(2), weight=[3.0, 1.0])
    np.testing.assert_allclose(group.weight, [0.75, 0.25])
    assert float(group.expect(group.reward)) == 0.75


# --- baselines -----------------------------------------------------------------------------------------------------
def test_baselines_are_the_mean_of_the_others_and_the_bessel_corrected_deviation() -> None:
    batch, facts = ragged(1)
    loo = np.asarray(jax.vmap(Group.leave_one_out_advantage)(batch))
    own = np.asarray(jax.vmap(Group.group_advantage)(batch))
    deviation = np.asarray(jax.vmap(Group.standard_deviation)(batch))
    checked = 0
    for b, real in enumerate(facts["real"]):
        rewards = facts["reward"][b, real]
        if len(rewards) < 2:
            continue
        checked += 1
        others = [np.delete(rewards, i).mean() for i in range(len(rewards))]
        np.testing.assert_allclose(loo[b, real], rewards - others, atol=1e-6)
        np.testing.assert_allclose(own[b, real], rewards - rewards.mean(), atol=1e-6)
        np.testing.assert_allclose(deviation[b], rewards.std(ddof=1), atol=1e-6)
    assert checked >= 4


def test_the_deviation_of_a_distribution_has_no_correction_for_the_size_of_a_sample() -> None:
    reward, weight = np.array([1.0, 0.0, 4.0]), np.array([0.5, 0.2, 0.3])
    table = ExactGroup.of(reward=reward, ref_logp=np.zeros(3), weight=weight, draws=3)
    deviation = np.sqrt(weight @ (reward - weight @ reward) ** 2)
    np.testing.assert_allclose(table.standard_deviation(), deviation, rtol=1e-6)


def test_a_single_response_has_no_advantage_no_pair_and_no_nan() -> None:
    group = Group.of(reward=[3.0], ref_logp=[[-1.0, -2.0]])
    stats = [group.group_advantage(), group.leave_one_out_advantage(), group.standard_deviation(), group.pair_share]
    for stat in stats:
        np.testing.assert_array_equal(stat, np.zeros_like(stat))
    assert float(group.pair_mean(jnp.ones((1, 1)))) == 0
    np.testing.assert_array_equal(group.best(), [1.0])
    np.testing.assert_array_equal(group.worst(), [1.0])
    assert float(group.mean(group.total(group.ref_logp))) == -3
    assert float(group.token_mean(group.ref_logp)) == -1.5


def test_an_empty_group_is_zero_everywhere_and_so_are_its_gradients() -> None:
    empty = Group.of(reward=np.zeros(3), ref_logp=np.zeros((3, 2)), mask=np.zeros((3, 2), bool))
    batch = jax.tree.map(lambda x: x[None], empty)

    def everything(x: jax.Array) -> jax.Array:
        parts = reductions(batch, x)
        return sum(part.sum() for part in parts.values()) + empty.average(x[0]).sum() + prepare(batch, x).kl.sum()

    value, gradient = jax.value_and_grad(everything)(jnp.full((1, 3, 2), jnp.nan))
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros((1, 3, 2)))
    for stat in [empty.best(), empty.worst(), empty.leave_one_out_advantage(), empty.standard_deviation()]:
        np.testing.assert_array_equal(stat, np.zeros_like(stat))


# --- batches -------------------------------------------------------------------------------------------------------
def test_the_parts_add_up_to_the_mean_over_all_responses_tokens_pairs_of_the_batch() -> None:
    batch, facts = ragged(2)
    x = facts["logp"]
    got = {name: float(part.sum()) for name, part in reductions(prepare(batch), jnp.asarray(x, jnp.float32)).items()}
    total = np.where(facts["mask"], x, 0).sum(-1)
    real, reward = facts["real"], facts["reward"]
    pairs = [
        total[b, i] - 2 * total[b, j]
        for b in range(8)
        for i, j in itertools.permutations(np.flatnonzero(real[b]), 2)
        if reward[b, i] > reward[b, j]
    ]
    want = {
        "response": np.mean([total[b, real[b]].mean() for b in range(8) if real[b].any()]),
        "token": x[facts["mask"]].mean(),
        "kept": total[real & (reward > 0.7)].mean(),
        "pair": np.mean(pairs),
    }
    assert not real[0].any()
    assert len({len(p) for p in map(np.flatnonzero, real)}) > 2
    assert got == pytest.approx(want, abs=2e-6)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=1)
def some_loss(batch: Group, x: jax.Array) -> jax.Array:
    curved = sum((part**2).sum() + part.sum() for part in reductions(batch, x).values())
    return curved + (batch.kl * x[..., 0, 0]).sum()


@pytest.mark.parametrize("parts", [[4, 4], [1, 6, 1], [1] * 8])
def test_splitting_a_prepared_batch_changes_no_loss_and_no_gradient(parts: list[int]) -> None:
    batch, facts = ragged(3)
    logp = jnp.asarray(facts["logp"], jnp.float32)
    prepared = prepare(batch, logp)
    whole, gradient = some_loss(prepared, logp)
    pieces = [
        some_loss(jax.tree.map(lambda x, where=slice(a, b): x[where], prepared), logp[a:b])
        for a, b in itertools.pairwise(np.cumsum([0, *parts]))
    ]
    assert float(sum(value for value, _ in pieces)) == pytest.approx(float(whole), abs=1e-6)
    np.testing.assert_allclose(np.concatenate([g for _, g in pieces]), gradient, atol=1e-7)


def test_preparing_each_part_for_itself_is_not_the_same() -> None:
    batch, facts = ragged(3)
    logp = jnp.asarray(facts["logp"], jnp.float32)
    whole = reductions(prepare(batch), logp)
    part = lambda where: reductions(prepare(jax.tree.map(lambda x: x[where], batch)), logp[where])
    halves = [part(slice(4)), part(slice(4, 8))]
    for name in ["token", "kept", "pair"]:
        assert abs(float(whole[name].sum()) - float(sum(h[name].sum() for h in halves)) / 2) > 1e-3


def test_rubbish_in_the_padding_changes_nothing() -> None:
    batch, facts = ragged(4)
    logp = jnp.asarray(facts["logp"], jnp.float32)
    big = grow(batch, groups=2, n=3, t=2)
    wide = jnp.pad(logp, [(0, 2), (0, 3), (0, 2)], constant_values=jnp.nan)
    wide = jnp.where(jnp.pad(jnp.asarray(facts["mask"]), [(0, 2), (0, 3), (0, 2)]), wide, jnp.nan)
    want, got = reductions(prepare(batch, logp), logp), reductions(prepare(big, wide), wide)
    for name, value in want.items():
        np.testing.assert_allclose(got[name][:8], value, atol=1e-6)
        np.testing.assert_array_equal(got[name][8:], [0, 0])
    for name in ["kl", "mean_gain"]:
        np.testing.assert_allclose(
            getattr(prepare(big, wide), name)[0], getattr(prepare(batch, logp), name)[0], atol=1e-6
        )
    for method in [Group.best, Group.worst, Group.group_advantage, Group.leave_one_out_advantage]:
        inside = np.where(facts["real"], jax.vmap(method)(big)[:8, :4], 0)
        np.testing.assert_allclose(inside, np.where(facts["real"], jax.vmap(method)(batch), 0), atol=1e-6)


# --- the learner's distance ----------------------------------------------------------------------------------------
def test_kl_is_the_exact_one_when_every_response_is_listed_under_an_older_policy() -> None:
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.normal(0, 1.5, (3, 2, 6)), jnp.float32)  # learner, old, reference; two contexts
    learner, old, ref = jax.nn.log_softmax(logits)
    batch = stack(
        [
            ExactGroup.of(reward=np.zeros(6), ref_logp=ref[b], old_logp=old[b], weight=jnp.exp(old[b]), draws=4)
            for b in range(2)
        ]
    )
    got = prepare(batch, learner[..., None])
    p, q, o = (np.asarray(jnp.exp(x), float) for x in (learner, ref, old))
    np.testing.assert_allclose(got.kl, (p * np.log(p / q)).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(got.mean_gain, (o * np.log(p / q)).sum(-1).mean(), rtol=1e-4)


def test_no_gradient_flows_through_the_prepared_statistics() -> None:
    batch, facts = ragged(6)
    logp = jnp.asarray(facts["logp"] + np.where(facts["mask"], 0.5, 0), jnp.float32)
    assert float(prepare(batch, logp).kl[0]) > 0.1
    gradient = jax.grad(lambda x: prepare(batch, x).kl.sum() + prepare(batch, x).mean_gain.sum())(logp)
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_an_estimated_kl_is_never_negative() -> None:
    batch, facts = ragged(6)
    logp = jnp.asarray(facts["ref_logp"] - np.where(facts["mask"], 0.5, 0), jnp.float32)
    prepared = prepare(batch._replace(old_logp=jnp.asarray(logp)), logp)
    assert float(prepared.kl[0]) == 0
    assert float(prepared.mean_gain[0]) < -0.1


# --- what is refused -----------------------------------------------------------------------------------------------
GOOD: dict[str, Any] = {"reward": [1.0, 0.0], "ref_logp": [[-1.0, -2.0], [-1.0, -3.0]]}
BAD: list[tuple[str, Any, type[Exception]]] = [
    ("reward", [], ShapeError),
    ("reward", 1.0, ShapeError),
    ("reward", [[1.0, 0.0]], ShapeError),
    ("reward", [1.0, np.nan], DomainError),
    ("reward", [1.0, np.inf], DomainError),
    ("reward", ["good", "bad"], TypeError),
    ("reward", [[1.0], [1.0, 2.0]], ShapeError),
    ("ref_logp", [[-1.0, -2.0]], ShapeError),
    ("ref_logp", -1.0, ShapeError),
    ("ref_logp", [[-1.0, -np.inf], [-1.0, -3.0]], DomainError),
    ("ref_logp", np.zeros((2, 2), np.float16), DomainError),
    ("old_logp", [[-1.0], [-1.0]], ShapeError),
    ("old_logp", [[-1.0, np.nan], [-1.0, -3.0]], DomainError),
    ("mask", [[True, True]], ShapeError),
    ("response", [0, 1], ShapeError),
    ("response", [[0, 1]], ShapeError),
    ("weight", [0.5], ShapeError),
    ("weight", [1.5, -0.5], DomainError),
    ("weight", [np.nan, 0.5], DomainError),
    ("score", [0.5, 1.0, 2.0], ShapeError),
    ("score", [0.5, np.nan], DomainError),
    ("draws", 0, DomainError),
    ("temperature", -1.0, DomainError),
    ("min_gap", -0.1, DomainError),
    ("threshold", np.nan, DomainError),
    ("baseline", np.inf, DomainError),
    ("scale", 0.0, DomainError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=lambda x: str(x)[:24])
def test_bad_input_is_refused_by_its_name(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        Group.of(**{**GOOD, name: value})


def test_masked_tokens_may_hold_anything() -> None:
    mask = np.array([[True, False], [True, True]])
    group = Group.of(reward=[1.0, 0.0], ref_logp=[[-1.0, np.nan], [-1.0, -3.0]], mask=mask)
    np.testing.assert_array_equal(group.total(group.ref_logp), [-1, -4])
    np.testing.assert_array_equal(group.average(group.ref_logp), [-1, -2])
    np.testing.assert_array_equal(group.length(), [1, 2])

"""Policies against sums over all sequences, against PyTorch, and against draws."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frequencies import p_value

from bandit_pft.errors import ConfigError, DomainError, ResourceError
from bandit_pft.policies import context_network, factorised, tabular, tabular_shared, transformer
from bandit_pft.problems import (
    bandit,
    length_problem,
    paper_bandit,
    paper_sequences,
    peaks,
    sequences,
)

INF = float("inf")
SMALL_NETWORK = context_network((8, 7), 0)
SMALL_TRANSFORMER = transformer(2, 2, 8, 0)
ZEROS = jnp.zeros((1, 3), int)
POLICIES = (tabular, tabular_shared, factorised, SMALL_NETWORK, SMALL_TRANSFORMER)
DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(size=(2, 3, 4))
LOGITS[:, 1, 2] = -INF
PROBLEMS = {
    "actions": bandit(np.zeros((2, 6)), [[0, 1, -INF, 2, -1, 0.5], [1, 0, -INF, 0, 0, -2]]),
    "sequences": sequences(np.zeros((2, 3, 4)), LOGITS),
    "ending sequences": sequences(np.zeros((2, 3, 4)), LOGITS, end=1),
    "prompts from the vocabulary": sequences(np.zeros((4, 3, 4)), np.tile(LOGITS, (2, 1, 1)), end=3),
}
CASES = list(itertools.product(POLICIES, PROBLEMS.values()))
each_case = pytest.mark.parametrize(
    ("policy", "problem"), CASES, ids=[f"{p.name}-{name}" for p, name in itertools.product(POLICIES, PROBLEMS)]
)


def moved(policy, problem, scale=0.5):
    """Parameters away from the start."""
    params = jax.jit(policy.init)(jax.random.key(0), problem)
    return jax.tree.map(lambda x: x + jnp.asarray(scale * DRAW.normal(size=x.shape), x.dtype), params)


def table_of(policy, params, problem, context):
    assert policy.table is not None
    return policy.table(params, problem, context)


def conditionals(table, problem, response):
    """Log-probability of each token given those before it, by summing whole responses that share a prefix."""
    rows, mask = problem.responses()
    prob = np.exp(np.asarray(table, np.float64))
    out = np.zeros(response.shape)
    for i, row in enumerate(response):
        mass = [prob[(rows[:, :t] == row[:t]).all(-1)].sum() for t in range(problem.length + 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            out[i] = np.where(mask[(rows == row).all(-1)][0], np.diff(np.log(mass)), 0)
    return out


# --- one distribution, seen three ways -------------------------------------------------------------------------------
@each_case
def test_table_token_log_probs_and_draws_are_one_distribution(policy, problem):
    params = moved(policy, problem)
    response, mask = problem.responses()

    @jax.jit
    def both(params, problem, context):
        given = jnp.asarray(response)
        table, each = table_of(policy, params, problem, context), policy.log_prob(params, problem, context, given)
        return table, each, policy.sample(params, problem, context, jax.random.key(5), 4000)

    for context in range(2):
        table, each, drawn = (np.asarray(x) for x in both(params, problem, jnp.asarray(context)))
        assert np.exp(table.astype(np.float64)).sum() == pytest.approx(1, abs=2e-6)
        assert not each[~mask].any()
        np.testing.assert_allclose(each.sum(-1), table, atol=4e-6)
        possible = np.isfinite(table)
        expected = conditionals(table, problem, response[possible])
        np.testing.assert_allclose(each[possible], expected, atol=1e-5)
        assert p_value(problem.index_of(jnp.asarray(drawn)), table) > 1e-3
        # What the reference forbids stays forbidden, whatever the parameters.
        np.testing.assert_array_equal(possible, np.isfinite(np.asarray(problem.ref_table(context))))


@pytest.mark.parametrize("name", ["actions", "ending sequences"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_gradients_are_finite_where_actions_are_forbidden(policy, name):
    problem = PROBLEMS[name]
    params = moved(policy, problem)
    response, mask = (jnp.asarray(x) for x in problem.responses())

    @jax.jit
    def slopes(params):
        possible = jnp.isfinite(problem.ref_table(0))
        whole = lambda p: jnp.where(possible, table_of(policy, p, problem, 0), 0).sum()
        tokens = lambda p: jnp.where(possible[:, None] & mask, policy.log_prob(p, problem, 0, response), 0).sum()
        return jax.grad(whole)(params), jax.grad(tokens)(params)

    for whole, tokens in zip(*(jax.tree.leaves(x) for x in slopes(params)), strict=True):
        assert np.isfinite(whole).all()
        np.testing.assert_allclose(whole, tokens, atol=2e-4 * (1 + abs(whole).max()))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_contexts_can_be_mapped_over(policy):
    problem = PROBLEMS["ending sequences"]
    params = moved(policy, problem)
    response = jnp.asarray(problem.responses()[0])

    def all_three(context, key):
        each = policy.log_prob(params, problem, context, response)
        return table_of(policy, params, problem, context), each, policy.sample(params, problem, context, key, 3)

    keys = jax.random.split(jax.random.key(0))
    mapped, alone = jax.jit(jax.vmap(all_three))(jnp.arange(2), keys), jax.jit(all_three)
    for context in range(2):
        table, each, drawn = alone(jnp.asarray(context), keys[context])
        np.testing.assert_allclose(mapped[0][context], table, atol=2e-6)
        np.testing.assert_allclose(mapped[1][context], each, atol=2e-6)
        np.testing.assert_array_equal(mapped[2][context], drawn)
        assert drawn.dtype == jnp.int32


# --- tables ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", [tabular, tabular_shared, factorised], ids=lambda p: p.name)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_difference_of_zero_is_the_reference(policy, name):
    problem = PROBLEMS[name]
    params = policy.init(jax.random.key(0), problem)
    assert not any(np.any(x) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(table_of(policy, params, problem, 1), problem.ref_table(1), atol=1e-6)


def test_slope_of_a_tabular_log_prob_is_the_action_minus_the_policy():
    problem = PROBLEMS["actions"]
    params = moved(tabular, problem)
    actions = np.array([0, 1, 3, 4, 5])
    slope = jax.jacobian(lambda p: tabular.log_prob(p, problem, 1, jnp.asarray(actions)[:, None])[:, 0])(params)
    pi = np.exp(np.asarray(table_of(tabular, params, problem, 1)))
    np.testing.assert_allclose(slope[:, 1], np.eye(6)[actions] - pi, atol=1e-6)
    assert not np.asarray(slope[:, 0]).any()  # The other context has parameters of its own.
    assert not np.asarray(slope[:, :, 2]).any()  # The forbidden action's parameter is never pulled.


def test_a_shared_table_moves_all_contexts_by_the_same_odds():
    problem = PROBLEMS["sequences"]
    params = moved(tabular_shared, problem)
    possible = np.isfinite(np.asarray(problem.ref_table(0)))
    gain = [np.asarray(table_of(tabular_shared, params, problem, s) - problem.ref_table(s))[possible] for s in range(2)]
    np.testing.assert_allclose(gain[0] - gain[0][0], gain[1] - gain[1][0], atol=4e-6)
    assert not np.allclose(gain[0], gain[1], atol=1e-3)
    own = table_of(tabular, jnp.stack([params, params]), problem, 1)
    np.testing.assert_allclose(own, table_of(tabular_shared, params, problem, 1), atol=1e-6)


@pytest.mark.parametrize("policy", [tabular, factorised], ids=lambda p: p.name)
def test_log_ratios_of_tiny_probabilities_are_exact(policy):
    ref = np.array([-70.0, -200.0, -500.0, 0.0, -0.5])
    problem = bandit(np.zeros(5), ref)
    lead = np.array([3.0, -1.0, 7.0, 0.25, 0.5])
    params = jnp.asarray(lead.reshape((1, 5) if policy is tabular else (1, 1, 5)), jnp.float32)
    exact = ref - np.log(np.exp(ref).sum()) + lead
    gain = exact - np.log(np.exp(exact).sum()) - (ref - np.log(np.exp(ref).sum()))
    table, start = (np.asarray(x, np.float64) for x in (table_of(policy, params, problem, 0), problem.ref_table(0)))
    # Half a unit in the last place of the log-probabilities themselves, and of what is added to them.
    np.testing.assert_allclose(table - start, gain, rtol=0, atol=2 * np.spacing(np.float32(500)))
    np.testing.assert_allclose((table - start)[3:], gain[3:], atol=3e-7)


def test_policies_of_independent_tokens_agree_with_one_table_on_actions():
    problem = PROBLEMS["actions"]
    params = moved(tabular, problem)
    np.testing.assert_allclose(
        table_of(factorised, params[:, None], problem, 0), table_of(tabular, params, problem, 0), atol=1e-6
    )


def test_a_table_over_sequences_can_hold_what_independent_tokens_cannot():
    problem = sequences(np.zeros((1, 2, 2)))
    only_equal = jnp.log(jnp.array([[0.5, 1e-12, 1e-12, 0.5]]))
    drawn = np.asarray(jax.jit(lambda key: tabular.sample(only_equal, problem, 0, key, 500))(jax.random.key(0)))
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert 0.4 < drawn.mean() < 0.6
    each = tabular.log_prob(only_equal, problem, 0, jnp.array([[1, 1], [1, 0]]))
    np.testing.assert_allclose(each, [[math.log(0.5), 0], [math.log(0.5), math.log(2e-12)]], rtol=1e-5, atol=1e-6)


def test_a_table_over_too_many_sequences_is_refused_and_its_factorised_form_is_not():
    problem = paper_sequences("R6")
    with pytest.raises(ResourceError, match=r"tabular policy.*factorised or transformer"):
        tabular.init(jax.random.key(0), problem)
    params = factorised.init(jax.random.key(0), problem)
    with pytest.raises(ResourceError):
        table_of(factorised, params, problem, 0)

    @jax.jit
    def draw(key):
        response = factorised.sample(params, problem, 3, key, 6)
        return factorised.log_prob(params, problem, 3, response), problem.ref_log_prob(3, response)

    np.testing.assert_allclose(*draw(jax.random.key(1)), atol=1e-5)


# --- networks --------------------------------------------------------------------------------------------------------
def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_paper_network_has_its_size_and_starts_at_the_reference():
    problem = paper_bandit("R4", 100, key=jax.random.key(0))
    policy = context_network()
    params = jax.jit(policy.init)(jax.random.key(1), problem)
    assert count(params) == 109_698
    contexts = jnp.arange(100)
    table = np.asarray(jax.vmap(lambda s: table_of(policy, params, problem, s))(contexts), np.float64)
    ref = np.asarray(problem.ref_table(0), np.float64)
    kl = (np.exp(table) * (table - ref)).sum(-1)
    assert kl.mean() < 0.01
    assert (np.exp(table) @ np.asarray(problem.reward_table(0))).mean() == pytest.approx(0.040, abs=0.005)
    assert (np.exp(table) @ np.asarray(peaks(100, 20, 10))).mean() == pytest.approx(0.377, abs=0.01)


def test_paper_network_without_its_first_fit_is_almost_uniform():
    problem = paper_bandit("R4", 3, key=jax.random.key(0))
    policy = context_network(pretrain_steps=0)
    params = policy.init(jax.random.key(1), problem)
    np.testing.assert_allclose(table_of(policy, params, problem, 0), -math.log(100), atol=1e-3)
    for layer in params["layers"]:
        bound = 0.01 * math.sqrt(6 / sum(layer["w"].shape))
        assert 0.97 * bound < float(abs(layer["w"]).max()) <= bound
        assert not layer["b"].any()


@pytest.mark.torch
def test_context_network_is_the_one_that_pytorch_computes():
    import torch

    functional = torch.nn.functional
    problem = bandit(np.zeros((5, 9)), features=DRAW.uniform(size=(5, 6)))
    policy = context_network((8, 7, 5), 0)
    params = moved(policy, problem)
    tensor = lambda x: torch.from_numpy(np.array(x))
    linear = lambda x, layer: functional.linear(x, tensor(layer["w"]).T, tensor(layer["b"]))
    first, second, third, last = params["layers"]
    x = linear(tensor(problem.features), first)
    x = functional.layer_norm(x, (8,), tensor(params["norm"]["scale"]), tensor(params["norm"]["shift"])).relu()
    x = linear(linear(linear(x, second).relu(), third).relu(), last).log_softmax(-1)
    table = jax.jit(jax.vmap(lambda s: table_of(policy, params, problem, s)))(jnp.arange(5))
    np.testing.assert_allclose(table, x.numpy(), atol=1e-5)


def test_context_network_tells_contexts_apart_only_by_their_features():
    features = np.array([[0.1, 0.9], [0.7, 0.2], [0.1, 0.9]])
    problem = bandit(np.zeros((3, 4)), features=features)
    policy = context_network((6,), 0)
    params = moved(policy, problem)
    table = np.asarray(jax.jit(jax.vmap(lambda s: table_of(policy, params, problem, s)))(jnp.arange(3)))
    np.testing.assert_allclose(table[0], table[2], atol=1e-6)
    assert abs(table[0] - table[1]).max() > 1e-3


def test_paper_transformer_has_its_size_and_starts_at_the_reference():
    problem = paper_sequences("R6")
    policy = transformer()
    params = jax.jit(policy.init)(jax.random.key(1), problem)
    assert count(params) - params["head"].size == 90_192
    assert params["head"].size == 4_800
    contexts = jnp.arange(100)
    keys = jax.random.split(jax.random.key(2), 100)

    @jax.jit
    @jax.vmap
    def draw(context, key):
        response = policy.sample(params, problem, context, key, 32)
        logp = policy.log_prob(params, problem, context, response)
        return problem.reward(context, response), logp - problem.ref_log_prob(context, response)

    reward, gain = draw(contexts, keys)
    assert float(reward.mean()) == pytest.approx(0.0528, abs=0.004)
    # An estimate of KL(pi || ref) per token without negative terms.
    gain = np.asarray(gain, np.float64)
    assert 0 <= (np.exp(-gain) - 1 + gain).mean() < 0.002


@pytest.mark.torch
def test_transformer_is_the_one_that_pytorch_computes():
    import torch

    functional = torch.nn.functional
    problem = sequences(np.zeros((2, 5, 6)))
    policy = transformer(2, 3, 12, 0)
    params = jax.tree.map(
        lambda x: x + 0.2 * jnp.asarray(DRAW.normal(size=x.shape), x.dtype), policy.init(jax.random.key(0), problem)
    )
    weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params)
    response = DRAW.integers(0, 6, (7, 5))
    linear = lambda x, layer: functional.linear(x, layer["w"].T, layer["b"])
    norm = lambda x, layer: functional.layer_norm(x, (12,), layer["scale"], layer["shift"])
    heads = lambda x: x.reshape(7, 5, 3, 4).transpose(1, 2)
    # Tokens 6 and 7 of the embedding are the two contexts.
    read = torch.from_numpy(np.concatenate([np.full((7, 1), 6 + 1), response[:, :-1]], 1))
    x = weights["token"][read] + weights["place"][:5]
    for i in range(2):
        block = jax.tree.map(lambda w: w[i], weights["blocks"])  # noqa: B023
        query, key, value = (heads(part) for part in linear(norm(x, block["norm1"]), block["qkv"]).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).reshape(7, 5, 12), block["proj"])
        x = x + linear(functional.gelu(linear(norm(x, block["norm2"]), block["fc"]), approximate="tanh"), block["out"])
    logp = functional.linear(norm(x, weights["norm"]), weights["head"].T).log_softmax(-1)
    expected = logp.gather(-1, torch.from_numpy(response)[..., None])[..., 0]
    log_prob = jax.jit(lambda y: policy.log_prob(params, problem, 1, y))
    np.testing.assert_allclose(log_prob(jnp.asarray(response)), expected.numpy(), atol=2e-5)


def test_transformer_reads_only_the_tokens_before_and_its_prompt():
    problem = PROBLEMS["sequences"]
    params = moved(SMALL_TRANSFORMER, problem)
    response = jnp.array([[0, 1, 3], [0, 1, 0], [0, 3, 3], [3, 1, 3]])
    log_prob = jax.jit(lambda s: SMALL_TRANSFORMER.log_prob(params, problem, s, response))
    each = np.asarray(log_prob(0))
    np.testing.assert_allclose(each[0, :2], each[1, :2], atol=1e-6)
    assert each[0, 0] == pytest.approx(each[2, 0], abs=1e-6)
    assert abs(each[0, 2] - each[2, 2]) > 1e-3
    assert abs(each[0, 1] - each[3, 1]) > 1e-3
    other = np.asarray(log_prob(1))
    ref = np.asarray(problem.ref_log_prob(1, response) - problem.ref_log_prob(0, response))
    assert abs(other - each).max() > 1e-3
    assert not np.allclose(other - each, ref, atol=1e-3)


def test_the_authors_log_probability_of_a_token_is_that_of_reading_it_and_giving_it_again():
    problem, shipped = sequences(np.zeros((5, 3, 5))), transformer(2, 2, 8, 0, authors_log_prob=True)
    params = moved(SMALL_TRANSFORMER, problem)
    prompt, response = 4, DRAW.integers(0, 5, (6, 3))
    right = jax.jit(lambda y: SMALL_TRANSFORMER.log_prob(params, problem, prompt, y))
    found = np.asarray(shipped.log_prob(params, problem, prompt, jnp.asarray(response)))
    again = [np.column_stack([response[:, :t], response[:, t - 1 : t], response[:, t:2]]) for t in (1, 2)]
    copied = np.full((6, 3), prompt)
    first = np.asarray(right(jnp.asarray(copied)))[:, 0] + np.asarray(right(jnp.asarray(again[0])))[:, 1]
    np.testing.assert_allclose(found[:, 0], first, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], np.asarray(right(jnp.asarray(again[1])))[:, 2], atol=1e-5)
    assert abs(found - np.asarray(right(jnp.asarray(response)))).max() > 0.1


def test_learning_from_the_authors_log_probabilities_teaches_to_copy():
    problem, shipped = sequences(np.zeros((5, 3, 5))), transformer(2, 2, 8, 0, authors_log_prob=True)
    params = shipped.init(jax.random.key(0), problem)
    responses = jnp.asarray(problem.responses()[0])
    repeats = np.asarray(responses[:, 1:] == responses[:, :-1]).mean(1)

    @partial(jax.jit, static_argnums=0)
    def after_imitation(policy, params):
        data = jnp.asarray([[1, 2, 3], [2, 4, 0], [3, 1, 4]])
        loss = lambda p: -policy.log_prob(p, problem, 0, data).mean()
        descend = lambda _, p: jax.tree.map(lambda x, slope: x - 0.3 * slope, p, jax.grad(loss)(p))
        return SMALL_TRANSFORMER.table(jax.lax.fori_loop(0, 200, descend, params), problem, 0)

    copies = [np.exp(np.asarray(after_imitation(p, params))) @ repeats for p in (shipped, SMALL_TRANSFORMER)]
    assert copies[0] > 0.5 > 0.2 > copies[1]


def test_first_fit_brings_networks_closer_to_an_uneven_reference():
    problem = length_problem("mode", 3, 5)
    ref = np.asarray(problem.ref_table(0), np.float64)

    def distance(policy):
        fit = jax.jit(lambda key: table_of(policy, policy.init(key, problem), problem, 0))
        table = np.asarray(fit(jax.random.key(3)), np.float64)
        return (np.exp(table) * (table - ref)).sum()

    assert distance(transformer(1, 2, 8, 0)) > 10 * distance(transformer(1, 2, 8, 100))
    assert distance(context_network((8,), 0)) > 10 * distance(context_network((8,), 100))


# --- the door --------------------------------------------------------------------------------------------------------
def test_equal_arguments_give_the_same_policy():
    assert context_network() is context_network()
    assert context_network((50, 256, 256)) is context_network((50, 256, 256))
    assert transformer(pretrain_steps=5) is transformer(pretrain_steps=5) is not transformer(pretrain_steps=6)


REFUSED = [
    (lambda: context_network(()), ConfigError, "hidden is empty"),
    (lambda: context_network((0,)), ConfigError, "hidden is 0"),
    (lambda: context_network(pretrain_steps=-1), ConfigError, "pretrain_steps is -1"),
    (lambda: context_network(pretrain_lr=0.0), DomainError, "pretrain_lr is 0"),
    (lambda: transformer(heads=5), ConfigError, "width is 48; it must be a multiple of heads = 5"),
    (lambda: transformer(layers=0), ConfigError, "layers is 0"),
    (lambda: transformer(authors_log_prob="yes"), TypeError, "authors_log_prob"),
    (
        lambda: transformer(1, 1, 4, 0, authors_log_prob=True).log_prob({}, PROBLEMS["sequences"], 0, ZEROS),
        ConfigError,
        "take as many contexts as tokens",
    ),
    (lambda: transformer(pretrain_lr=INF), DomainError, "pretrain_lr is inf"),
    (
        lambda: context_network().init(jax.random.key(0), bandit(np.zeros(2), features=np.zeros((1, 0)))),
        ConfigError,
        "no features",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_wrong_sizes_are_refused_and_say_why(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_a_response_or_context_that_does_not_exist_is_refused(policy):
    problem = PROBLEMS["actions"]
    params = moved(policy, problem)
    with pytest.raises(DomainError, match=r"response\[0, 0\] is 6; tokens run from 0 to 5"):
        policy.log_prob(params, problem, 0, jnp.array([[6]]))
    with pytest.raises(DomainError, match="context is 2; contexts run from 0 to 1"):
        table_of(policy, params, problem, 2)

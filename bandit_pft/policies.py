"""Learners: what turns parameters into log-probabilities of responses, and draws from them.

A policy is four pure functions of one context. Policies are compared by identity, so make one once: the instances
and cached factories below always give the same object for the same arguments.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from bandit_pft.errors import ConfigError, check_integer, check_number, shown
from bandit_pft.kernels import logsumexp, sample_categorical
from bandit_pft.problems import Context, Problem, log_softmax

BATCH = 4096  # Sequences per forward pass when a transformer's whole table is listed.
PRETRAIN_ROWS = 32  # Sequences per step of the transformer's first fit to the reference.
NEVER = -1e30  # Finite stand-in for log 0 inside sums of logarithms, whose gradient at -inf is nan.

P = ParamSpec("P")


class Policy(NamedTuple):
    """A learner, one context at a time; every function may be jitted and vmapped.

    Attributes:
        name: for titles.
        init: (key, problem) -> params, at the reference, or fitted to it.
        table: (params, problem, context) -> [A] log-probability [nats] of every response, in the order of
            `problem.responses()`. Raises ResourceError if there are too many. None for a policy that has none.
        log_prob: (params, problem, context, response [N, T]) -> [N, T] log-probability of every token given those
            before it [nats]; 0 where masked.
        sample: (params, problem, context, key, n) -> [n, T].
        lead: where `table` is softmax(reference + lead): (params, problem, context) -> [A]. Its gradient is then had in
            closed form from the table. None elsewhere.
    """

    name: str
    init: Callable[[Key[Array, ""], Problem], PyTree]
    table: Callable[[PyTree, Problem, Context], Float[Array, " A"]] | None
    log_prob: Callable[[PyTree, Problem, Context, Int[Array, "N T"]], Float[Array, "N T"]]
    sample: Callable[[PyTree, Problem, Context, Key[Array, ""], int], Int[Array, "n T"]]
    lead: Callable[[PyTree, Problem, Context], Float[Array, " A"]] | None = None


def softmax_table(
    ref: Float[Array, "*B A"], lead: Float[Array, "*B A"], norm: Float[Array, "*B"], masked: bool = True
) -> Float[Array, "*B A"]:
    """ref + lead - norm, with norm = logsumexp(ref + lead); what the reference forbids stays forbidden.

    Args:
        masked: False where the reference is known to forbid nothing.
    """
    # The lead is normalised before it is added: next to a log-probability of -70 it would lose its last digits.
    table = ref + (lead - norm[..., None])
    return jnp.where(jnp.isneginf(ref), -jnp.inf, table) if masked else table


# --- one number per response -----------------------------------------------------------------------------------------
def _make_tabular(name: str, shared: bool) -> Policy:
    def init(key: Key[Array, ""], problem: Problem) -> Array:
        problem.require_enumerable(f"the {name} policy")
        shape = (problem.num_responses,) if shared else (problem.num_contexts, problem.num_responses)
        return jnp.zeros(shape, problem.ref_logits.dtype)

    def own_lead(params: Array, problem: Problem, context: Context) -> Float[Array, " A"]:
        return params if shared else problem.at(params, context)

    def table(params: Array, problem: Problem, context: Context) -> Float[Array, " A"]:
        ref, lead = problem.ref_table(context), own_lead(params, problem, context)
        return softmax_table(ref, lead, logsumexp(ref + lead))

    def log_prob(params: Array, problem: Problem, context: Context, response: Int[Array, "N T"]) -> Float[Array, "N T"]:
        whole = table(params, problem, context)
        if problem.length == 1:
            return whole[problem.as_response(response)]
        return _conditionals(whole, problem, problem.as_response(response))

    def sample(params: Array, problem: Problem, context: Context, key: Key[Array, ""], n: int) -> Int[Array, "n T"]:
        return problem.response_at(sample_categorical(key, table(params, problem, context), n))

    return Policy(name, init, table, log_prob, sample, own_lead)


tabular = _make_tabular("tabular", shared=False)
"""Softmax over all responses of each context: log pi = ref + d - logsumexp(ref + d), `params` d [S, A], zeros at first.

Keeping the difference from the reference makes `log pi / ref` exact to float rounding for the rarest response.
A response that the reference forbids keeps no mass and gets no gradient.
"""

tabular_shared = _make_tabular("tabular_shared", shared=True)
"""`tabular` with one table d [A] for all contexts: what one context teaches, every context does."""


def _conditionals(table: Float[Array, " A"], problem: Problem, response: Int[Array, "N T"]) -> Float[Array, "N T"]:
    """Log-probability of every token given those before it, from the log-probabilities of whole responses."""
    length, tokens, stop = problem.length, problem.num_tokens, problem.end
    table = jnp.maximum(table, NEVER)
    going = tokens if stop is None else tokens - 1
    bounds = list(itertools.accumulate(going**t for t in range(length))) if stop is not None else []
    *ended, inside = jnp.split(table, bounds)
    # mass[t]: of every prefix of t tokens, none of them `end`.
    mass = [inside]
    for t in reversed(range(length)):
        total = jax.nn.logsumexp(mass[0].reshape(-1, going), axis=-1)
        mass.insert(0, total if stop is None else jnp.logaddexp(total, ended[t]))
    prefix, logp = jnp.zeros(response.shape[0], jnp.int32), []
    for t in range(length):
        token = response[:, t]
        longer = prefix * going + (token if stop is None else jnp.minimum(token - (token > stop), going - 1))
        after = mass[t + 1][longer] if stop is None else jnp.where(token == stop, ended[t][prefix], mass[t + 1][longer])
        logp.append(jnp.where(after > NEVER / 2, after - mass[t][prefix], -jnp.inf))
        prefix = longer
    return jnp.where(problem.mask_of(response), jnp.stack(logp, -1), 0)


# --- independent tokens ----------------------------------------------------------------------------------------------
def _independent(
    name: str,
    init: Callable[[Key[Array, ""], Problem], PyTree],
    logits: Callable[[Any, Problem, Context], Float[Array, "T V"]],
) -> Policy:
    return Policy(
        name,
        init,
        lambda params, problem, context: problem.table(logits(params, problem, context)),
        lambda params, problem, context, response: problem.log_prob(logits(params, problem, context), response),
        lambda params, problem, context, key, n: problem.sample(logits(params, problem, context), key, n),
    )


factorised = _independent(
    "factorised",
    lambda key, problem: jnp.zeros_like(problem.ref_logits),
    lambda params, problem, context: log_softmax(problem.at(problem.ref_logits, context)) + problem.at(params, context),
)
"""Independent tokens for each context: logits are the reference's plus d, `params` d [S, T, V], zeros at first.

For bandits the same as `tabular` with another shape; for sequences it needs no list of them.
"""


def _draw(sampler: Callable[..., Array], key: Key[Array, ""], shapes: list[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes from one draw: a draw for each would take a second longer to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(sampler(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _layer_norm(params: dict[str, Array], x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    centred = x - x.mean(-1, keepdims=True)
    return params["scale"] * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + params["shift"]


def _affine(params: dict[str, Array], x: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
    return x @ params["w"] + params["b"]


def _adam(
    loss: Callable[[Any, Array], Array], params: PyTree, key: Key[Array, ""], steps: int, learning_rate: float
) -> PyTree:
    if steps == 0:
        return params
    optimizer = optax.adam(learning_rate)

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, state = carry
        update, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


def _token_kl(logits: Float[Array, "*B T V"], ref_logits: Float[Array, "*B T V"]) -> Float[Array, "*B T"]:
    """KL(pi || ref) of each token's distribution [nats]; what the reference forbids is forbidden in `logits` too."""
    logp, ref = log_softmax(logits), log_softmax(ref_logits)
    return jnp.where(jnp.isneginf(ref), 0, jnp.exp(logp) * (logp - jnp.where(jnp.isneginf(ref), 0, ref))).sum(-1)


def _allow(logits: Float[Array, "*B V"], ref_logits: Float[Array, "... V"]) -> Float[Array, "*B V"]:
    return jnp.where(jnp.isneginf(ref_logits), -jnp.inf, logits)


def _once(make: Callable[P, Policy]) -> Callable[P, Policy]:
    """`functools.cache` that names the argument which cannot be compared."""
    made = functools.cache(make)

    @functools.wraps(make)
    def policy(*args: P.args, **settings: P.kwargs) -> Policy:
        for name, value in inspect.signature(make).bind(*args, **settings).arguments.items():
            try:
                hash(value)
            except TypeError:
                raise TypeError(f"{name} is {shown(value)}; it must be a number, or a tuple for hidden") from None
        return made(*args, **settings)

    return policy


@_once
def context_network(
    hidden: tuple[int, ...] = (50, 256, 256), pretrain_steps: int = 100, pretrain_lr: float = 0.01
) -> Policy:
    """The paper's network: Linear - LayerNorm - ReLU, then Linear - ReLU per hidden layer, then Linear to the logits.

    109,698 parameters for 100 features and 100 actions. `init` starts from Xavier-uniform weights of gain 0.01, almost
    a uniform policy, and fits the reference in `pretrain_steps` full-batch Adam steps on the mean over contexts of
    KL(pi || ref). A sequence's tokens are independent, given the context.

    Args:
        hidden: widths of the hidden layers; the first one has the LayerNorm.

    Raises:
        ConfigError, DomainError, TypeError: sizes or rates that do not exist; a problem without features (in `init`).

    Source: Tajwar et al. (2024), authors' code of the bandit experiments.
    """
    if not isinstance(hidden, tuple):
        raise TypeError(f"hidden is {shown(hidden)}; it must be a tuple of widths, such as (50, 256)")
    for width in hidden:
        check_integer("hidden", width, at_least=1)
    if not hidden:
        raise ConfigError("hidden is empty; it must hold at least one width")
    check_integer("pretrain_steps", pretrain_steps, at_least=0)
    check_number("pretrain_lr", pretrain_lr, above=0)

    def forward(params: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
        first, *others = params["layers"]
        x = jax.nn.relu(_layer_norm(params["norm"], _affine(first, x)))
        for layer in others[:-1]:
            x = jax.nn.relu(_affine(layer, x))
        return _affine(others[-1], x)

    def logits(params: dict[str, Any], problem: Problem, context: Context) -> Float[Array, "T V"]:
        flat = forward(params, problem.at(problem.features, context))
        return _allow(flat.reshape(problem.length, problem.num_tokens), problem.at(problem.ref_logits, context))

    def init(key: Key[Array, ""], problem: Problem) -> dict[str, Any]:
        if not problem.features.shape[-1]:
            raise ConfigError("the problem has no features for a network to see: pass features= when you make it")
        sizes = (problem.features.shape[-1], *hidden, problem.length * problem.num_tokens)
        weight_key, fit_key = jax.random.split(key)
        layers = [
            {"w": 0.01 * math.sqrt(6 / sum(w.shape)) * w, "b": jnp.zeros(w.shape[1])}
            for w in _draw(
                functools.partial(jax.random.uniform, minval=-1), weight_key, list(itertools.pairwise(sizes))
            )
        ]
        params = {"layers": layers, "norm": {"scale": jnp.ones(hidden[0]), "shift": jnp.zeros(hidden[0])}}

        def loss(params: dict[str, Any], _: Array) -> Array:
            flat = forward(params, problem.features).reshape(problem.ref_logits.shape)
            return _token_kl(_allow(flat, problem.ref_logits), problem.ref_logits).sum(-1).mean()

        return _adam(loss, params, fit_key, pretrain_steps, pretrain_lr)

    return _independent("context_network", init, logits)


# --- autoregressive --------------------------------------------------------------------------------------------------
@_once
def transformer(
    layers: int = 3,
    heads: int = 3,
    width: int = 48,
    pretrain_steps: int = 100,
    pretrain_lr: float = 0.01,
    authors_log_prob: bool = False,
) -> Policy:
    """minGPT's decoder, gpt-nano by default: learned positions, LayerNorm first, tanh-GELU, untied head, no dropout.

    The prompt is one token. With as many contexts as tokens it is the token of that number (the paper's setting:
    90,192 parameters and a head of 4,800 for 100 tokens and 9 places); otherwise each context has a token of its own.
    The logits that follow token t predict token t + 1. `init` fits the reference with `pretrain_steps` Adam steps, each
    on 32 prefixes drawn from the *reference*, minimising sum_t KL(pi(. | prefix) || ref) over the tokens that exist.

    Args:
        authors_log_prob: log-probabilities as the authors' code takes them, not shifted by one token: the logits that
            follow token t are read at token t itself, the prompt's among them (its share is in the first token). They
            are not those of what `sample` draws, and learning from them teaches to copy.

    Raises:
        ConfigError, DomainError, TypeError: sizes or rates that do not exist; heads that do not divide the width.

    Source: minGPT by A. Karpathy; Tajwar et al. (2024), authors' code.
    """
    for argument, value in (("layers", layers), ("heads", heads), ("width", width)):
        check_integer(argument, value, at_least=1)
    if width % heads:
        raise ConfigError(f"width is {width}; it must be a multiple of heads = {heads}")
    check_integer("pretrain_steps", pretrain_steps, at_least=0)
    check_number("pretrain_lr", pretrain_lr, above=0)
    if not isinstance(authors_log_prob, bool):
        raise TypeError(f"authors_log_prob is {shown(authors_log_prob)}; it must be True or False")

    def prompt(problem: Problem, context: Any) -> Any:
        return context if problem.num_contexts == problem.num_tokens else problem.num_tokens + context

    def block(params: dict[str, Any], x: Float[Array, "*B D"], mix: Callable[..., Array]) -> Float[Array, "*B D"]:
        query, key, value = jnp.split(_affine(params["qkv"], _layer_norm(params["norm1"], x)), 3, axis=-1)
        split = lambda y: y.reshape(*y.shape[:-1], heads, width // heads)
        x = x + _affine(params["proj"], mix(split(query), split(key), split(value)).reshape(x.shape))
        inner = jax.nn.gelu(_affine(params["fc"], _layer_norm(params["norm2"], x)), approximate=True)
        return x + _affine(params["out"], inner)

    def attend(
        query: Float[Array, "N Q H D"], key: Float[Array, "N K H D"], value: Float[Array, "N K H D"], seen: Array
    ) -> Float[Array, "N Q H D"]:
        score = jnp.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(width // heads)
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(jnp.where(seen, score, -jnp.inf), axis=-1), value)

    def head(params: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        return _layer_norm(params["norm"], x) @ params["head"]

    def after_prompt(problem: Problem, context: Any, response: Int[Array, "N T"]) -> Int[Array, "N T+1"]:
        start = jnp.broadcast_to(jnp.asarray(prompt(problem, context)), response.shape[:1])
        return jnp.concatenate([start[:, None], response], axis=1)

    def forward(params: dict[str, Any], read: Int[Array, "N L"]) -> Float[Array, "N L V"]:
        """Logits that follow each token."""
        length = read.shape[1]
        x = params["token"][read] + params["place"][:length]
        seen = jnp.tril(jnp.ones((length, length), bool))
        mix = lambda q, k, v: attend(q, k, v, seen)
        x, _ = jax.lax.scan(lambda x, layer: (block(layer, x, mix), None), x, params["blocks"])
        return head(params, x)

    def log_prob(
        params: dict[str, Any], problem: Problem, context: Context, response: Int[Array, "N T"]
    ) -> Float[Array, "N T"]:
        response = problem.as_response(response)
        read = after_prompt(problem, context, response)
        take = lambda logp, token: jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]
        if authors_log_prob:
            if problem.num_contexts != problem.num_tokens:
                raise ConfigError(
                    f"authors_log_prob asks for the prompt's own probability; the prompts of {problem.num_contexts} "
                    f"contexts are none of the {problem.num_tokens} tokens: take as many contexts as tokens"
                )
            whole = take(log_softmax(forward(params, read)), read)
            chosen = whole[:, 1:].at[:, 0].add(whole[:, 0])
        else:
            logits = _allow(forward(params, read[:, :-1]), problem.at(problem.ref_logits, context))
            chosen = take(log_softmax(logits), response)
        return jnp.where(problem.mask_of(response), chosen, 0)

    def table(params: dict[str, Any], problem: Problem, context: Context) -> Float[Array, " A"]:
        each = lambda response: log_prob(params, problem, context, response[None]).sum()
        return jax.lax.map(each, jnp.asarray(problem.responses()[0]), batch_size=BATCH)

    def sample(
        params: dict[str, Any], problem: Problem, context: Context, key: Key[Array, ""], n: int
    ) -> Int[Array, "n T"]:
        ref = problem.at(problem.ref_logits, context)
        length = problem.length

        def step(carry: tuple, this: tuple) -> tuple[tuple, Array]:
            token, past = carry
            t, key = this

            def read(x: Array, layer: tuple) -> tuple[Array, Any]:
                weights, (keys, values) = layer
                kept: list[tuple[Array, Array]] = []

                def mix(q: Array, k: Array, v: Array) -> Array:
                    kept.append((keys.at[:, t].set(k), values.at[:, t].set(v)))
                    return attend(q[:, None], *kept[0], jnp.arange(length) <= t)[:, 0]

                return block(weights, x, mix), kept[0]

            x, past = jax.lax.scan(read, params["token"][token] + params["place"][t], (params["blocks"], past))
            logp = log_softmax(_allow(head(params, x), ref[t]))
            token = jax.random.categorical(key, logp, axis=-1).astype(jnp.int32)
            return (token, past), token

        empty = jnp.zeros((layers, n, length, heads, width // heads), params["head"].dtype)
        begin = jnp.broadcast_to(jnp.asarray(prompt(problem, context), jnp.int32), (n,))
        drawn = jax.lax.scan(step, (begin, (empty, empty)), (jnp.arange(length), jax.random.split(key, length)))[1].T
        return drawn if problem.end is None else jnp.where(problem.mask_of(drawn), drawn, problem.end)

    def new(key: Key[Array, ""], problem: Problem) -> dict[str, Any]:
        contexts, tokens, length = problem.num_contexts, problem.num_tokens, problem.length
        vocabulary = tokens if contexts == tokens else tokens + contexts
        # One array per kind of weight, layers stacked: `scan` over them compiles one block.
        pairs = {"qkv": (width, 3 * width), "proj": (width, width), "fc": (width, 4 * width), "out": (4 * width, width)}
        shapes = [
            (vocabulary, width),
            (length + 1, width),
            (width, tokens),
            *((layers, *pair) for pair in pairs.values()),
        ]
        token, place, head, *weights = (0.02 * x for x in _draw(jax.random.normal, key, shapes))
        # Branches that are added to the stream are scaled down with depth, as in GPT-2.
        deep = {"proj": 1 / math.sqrt(2 * layers), "out": 1 / math.sqrt(2 * layers)}
        norm = lambda *shape: {"scale": jnp.ones((*shape, width)), "shift": jnp.zeros((*shape, width))}
        blocks = {
            name: {"w": deep.get(name, 1) * w, "b": jnp.zeros((layers, w.shape[-1]))}
            for name, w in zip(pairs, weights, strict=True)
        }
        blocks |= {"norm1": norm(layers), "norm2": norm(layers)}
        return {"token": token, "place": place, "blocks": blocks, "norm": norm(), "head": head}

    def init(key: Key[Array, ""], problem: Problem) -> dict[str, Any]:
        new_key, fit_key = jax.random.split(key)

        def loss(params: dict[str, Any], key: Array) -> Array:
            context_key, token_key = jax.random.split(key)
            contexts = jax.random.randint(context_key, (PRETRAIN_ROWS,), 0, problem.num_contexts)
            ref = problem.ref_logits[contexts]
            response = jax.random.categorical(token_key, ref).astype(jnp.int32)
            read = after_prompt(problem, contexts, response)[:, :-1]
            kl = _token_kl(_allow(forward(params, read), ref), ref)
            return jnp.where(problem.mask_of(response), kl, 0).sum(-1).mean()

        return _adam(loss, new(new_key, problem), fit_key, pretrain_steps, pretrain_lr)

    return Policy("transformer", init, table, log_prob, sample)

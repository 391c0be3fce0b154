"""What is to be learnt: contexts, a reference policy and a reward over the same responses.

A response is a row of T tokens out of V; a bandit's action is T = 1. The reference draws its tokens independently,
from a distribution per context and position, and a response's reward is a sum over its tokens, so that every
expectation is exact wherever the responses can be listed, and for bandits costs O(A).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bandit_pft.errors import (
    ConfigError,
    DomainError,
    ResourceError,
    ShapeError,
    as_floats,
    as_numpy,
    check_choice,
    check_finite,
    check_integer,
    check_key,
    check_memory,
    check_number,
    is_traced,
    naming,
    shown,
)
from bandit_pft.kernels import sample_categorical

MOST_RESPONSES = 1_000_000  # Longest list of sequences; bandits have no limit.
MOST_ONE_HOT = 10_000  # Most contexts that get one-hot features when none are given.

Context = int | np.integer | Int[Array, ""]

_PEAKS = {"R4": (70.0, 10.0), "R5": (20.0, 10.0), "R8": (70.0, 20.0), "R9": (70.0, 30.0)}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ref_logits", "token_reward", "bonus", "features", "data_logits"],
    meta_fields=["end", "reward_fn", "name"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """S contexts, responses of T tokens out of V, a reference policy, where offline data come from, and a reward.

    Made by `bandit`, `sequences` and the functions below them, which check what they are given. Methods are written
    for one context, an index, and may be jitted and vmapped.

    Attributes:
        ref_logits: [S, T, V] reference policy, independent tokens [nats]; need not be normalised, -inf forbids.
        token_reward: [S, T, V] a response's reward is the sum over the tokens that exist.
        bonus: [S] added to every reward of a context, whatever the response.
        features: [S, D] what a network sees of a context.
        data_logits: [S, T, V] the policy that offline data come from; usually the reference.
        end: token that ends a response: its last real token. What follows is masked, and `end` as well.
        reward_fn: pure (features [D], response [T], mask [T]) -> scalar, in the place of `token_reward`.
        name: for titles. Static, so problems of different names have different tree structures.
    """

    ref_logits: Float[Array, "S T V"]
    token_reward: Float[Array, "S T V"]
    bonus: Float[Array, " S"]
    features: Float[Array, "S D"]
    data_logits: Float[Array, "S T V"]
    end: int | None = None
    reward_fn: Callable[[Array, Array, Array], Array] | None = None
    name: str = ""

    # JAX rebuilds a Problem around batched leaves and placeholders: its shapes are checked when it is made, not here.
    __no_type_check__ = True

    # --- sizes -----------------------------------------------------------------------------------------------------
    @property
    def num_contexts(self) -> int:
        """S."""
        return self.ref_logits.shape[-3]

    @property
    def length(self) -> int:
        """T, the largest number of tokens in a response."""
        return self.ref_logits.shape[-2]

    @property
    def num_tokens(self) -> int:
        """V; a bandit's number of actions."""
        return self.ref_logits.shape[-1]

    @property
    def num_responses(self) -> int:
        """A, the number of different responses."""
        return sum(_block_sizes(self.num_tokens, self.length, self.end))

    @property
    def enumerable(self) -> bool:
        """Whether the tables over all responses are available."""
        return self.length == 1 or self.num_responses <= MOST_RESPONSES

    def require_enumerable(self, what: str = "a table of all responses") -> None:
        """Raise ResourceError unless `enumerable`."""
        if not self.enumerable:
            raise ResourceError(
                f"{what} of {self.num_tokens} tokens in {self.length} places has about "
                f"10^{math.log10(self.num_responses):.0f} entries; at most {MOST_RESPONSES:,} are listed. "
                "Take fewer tokens or places, or work with samples (the factorised or transformer policy)"
            )

    # --- responses -------------------------------------------------------------------------------------------------
    def responses(self) -> tuple[Int[np.ndarray, "A T"], Bool[np.ndarray, "A T"]]:
        """Every response and its mask: shorter ones first, then in the order of their tokens.

        Raises:
            ResourceError: more than a million sequences.
        """
        self.require_enumerable("the list of responses")
        return _list_responses(self.num_tokens, self.length, self.end)

    def response_at(self, index: Int[Array, " N"]) -> Int[Array, "N T"]:
        """The responses that stand at these places of `responses()`."""
        self.require_enumerable("the list of responses")
        _check_index("index", index, self.num_responses, "responses")
        return _decode(jnp.asarray(index), self.num_tokens, self.length, self.end, jnp)

    def index_of(self, response: Int[Array, "N T"]) -> Int[Array, " N"]:
        """Places of responses in `responses()`."""
        self.require_enumerable("the list of responses")
        response = self.as_response(response)
        sizes = _block_sizes(self.num_tokens, self.length, self.end)
        stop = _stop(self.length, self.end)
        if stop is None:
            place = jnp.asarray(self.num_tokens ** np.arange(self.length)[::-1], jnp.int32)
            return (response * place).sum(-1, dtype=jnp.int32)
        before = (self.mask_of(response) & (response != stop)).sum(-1)
        power = before[:, None] - 1 - jnp.arange(self.length)
        place = jnp.where(power >= 0, (self.num_tokens - 1) ** jnp.maximum(power, 0), 0)
        start = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[before]
        return start + ((response - (response > stop)) * place).sum(-1, dtype=jnp.int32)

    def mask_of(self, response: Int[Array, "*N T"]) -> Bool[Array, "*N T"]:
        """The tokens that exist: all up to and including the first `end`."""
        response = jnp.asarray(response)
        stop = _stop(self.length, self.end)
        if stop is None:
            return jnp.ones(response.shape, bool)
        is_end = response == stop
        return jnp.cumsum(is_end, -1) - is_end == 0

    def as_response(self, response: Any) -> Int[Array, "N T"]:
        """Responses from outside, checked and padded with `end`: integers or whole floats, [N, T] or [N] for T = 1.

        Raises:
            TypeError: not whole numbers. ShapeError: not N rows of T tokens. DomainError: a token outside 0..V-1.
        """
        if is_traced(response):
            return response
        array = as_numpy("response", response)
        if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"response holds {array.dtype}; it must hold token numbers")
        array = array[:, None] if array.ndim == 1 and self.length == 1 else array
        if array.ndim != 2 or array.shape[1] != self.length:
            raise ShapeError(f"response has shape {np.shape(response)}; it must be (any, {self.length})")
        bad = (array < 0) | (array >= self.num_tokens)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise DomainError(
                f"response{list(place)} is {array[place]}; tokens run from 0 to {self.num_tokens - 1}. "
                "Pad with the end token, not with -1"
            )
        made = jnp.asarray(array, jnp.int32)
        return made if self.end is None else jnp.where(self.mask_of(made), made, self.end)

    # --- any policy of independent tokens ---------------------------------------------------------------------------
    def log_prob(self, logits: Float[Array, "T V"], response: Int[Array, "N T"]) -> Float[Array, "N T"]:
        """Log-probability of every token [nats] under independent tokens with these logits; 0 where masked."""
        response = self.as_response(response)
        logp = log_softmax(self._own(logits))[jnp.arange(self.length), response]
        return jnp.where(self.mask_of(response), logp, 0)

    def table(self, logits: Float[Array, "T V"]) -> Float[Array, " A"]:
        """Log-probability of every response [nats] under independent tokens with these logits."""
        return self.token_totals(log_softmax(self._own(logits)))

    def _own(self, logits: Array) -> Array:
        """Logits of this problem's tokens: an index beyond their end would be clamped in silence."""
        logits = jnp.asarray(logits)
        if logits.shape != (self.length, self.num_tokens):
            raise ShapeError(f"logits has shape {logits.shape}; it must be {(self.length, self.num_tokens)}")
        return logits

    def sample(self, logits: Float[Array, "T V"], key: Key[Array, ""], n: int) -> Int[Array, "n T"]:
        """n responses of independent tokens with these logits."""
        logits = self._own(logits)
        if self.length == 1:
            return sample_categorical(key, logits[0], n)[:, None]
        drawn = jax.vmap(lambda k, row: sample_categorical(k, row, n))(jax.random.split(key, self.length), logits).T
        return drawn if self.end is None else jnp.where(self.mask_of(drawn), drawn, self.end)

    def token_totals(self, x: Float[Array, "T V"]) -> Float[Array, " A"]:
        """Sum of x[t, token t] over the tokens that exist, for every response, in the order of `responses()`."""
        self.require_enumerable()
        stop = _stop(self.length, self.end)
        going = x if stop is None else jnp.delete(x, stop, axis=1, assume_unique_indices=True)
        prefix, ended = jnp.zeros((1,), x.dtype), []
        for t in range(self.length):
            if stop is not None:
                ended.append(prefix + x[t, stop])
            prefix = (prefix[:, None] + going[t]).ravel()
        return jnp.concatenate([*ended, prefix]) if ended else prefix

    # --- the reference, the data, the reward --------------------------------------------------------------------------
    def ref_log_prob(self, context: Context, response: Int[Array, "N T"]) -> Float[Array, "N T"]:
        """Log-probability of every token under the reference [nats]; 0 where masked."""
        return self.log_prob(self.at(self.ref_logits, context), response)

    def ref_table(self, context: Context) -> Float[Array, " A"]:
        """Log-probability of every response under the reference [nats].

        Raises:
            ResourceError: more than a million sequences (all tables do).
        """
        return self.table(self.at(self.ref_logits, context))

    def sample_ref(self, context: Context, key: Key[Array, ""], n: int) -> Int[Array, "n T"]:
        """n responses from the reference."""
        return self.sample(self.at(self.ref_logits, context), key, n)

    def data_log_prob(self, context: Context, response: Int[Array, "N T"]) -> Float[Array, "N T"]:
        """Log-probability of every token under the policy that offline data come from [nats]; 0 where masked."""
        return self.log_prob(self.at(self.data_logits, context), response)

    def data_table(self, context: Context) -> Float[Array, " A"]:
        """Log-probability of every response under the policy that offline data come from [nats]."""
        return self.table(self.at(self.data_logits, context))

    def sample_data(self, context: Context, key: Key[Array, ""], n: int) -> Int[Array, "n T"]:
        """n responses from the policy that offline data come from."""
        return self.sample(self.at(self.data_logits, context), key, n)

    def reward(
        self, context: Context, response: Int[Array, "N T"], mask: Bool[Array, "N T"] | None = None
    ) -> Float[Array, " N"]:
        """Reward of each response. `mask` defaults to `mask_of(response)`."""
        response = self.as_response(response)
        mask = self.mask_of(response) if mask is None else mask
        bonus = self.at(self.bonus, context)
        if self.reward_fn is not None:
            features = self.at(self.features, context)
            return jax.vmap(self.reward_fn, (None, 0, 0))(features, response, mask).astype(bonus.dtype) + bonus
        each = self.at(self.token_reward, context, jnp.arange(self.length), response)
        return jnp.where(mask, each, 0).sum(-1) + bonus

    def reward_table(self, context: Context) -> Float[Array, " A"]:
        """Reward of every response."""
        if self.reward_fn is not None:
            response, mask = self.responses()
            return self.reward(context, jnp.asarray(response), jnp.asarray(mask))
        return self.token_totals(self.at(self.token_reward, context)) + self.at(self.bonus, context)

    def optimum(self, beta: Any) -> Float[Array, "S A"]:
        """log pi* of max E[r] - beta KL(pi || ref): pi* ~ ref exp(r / beta), every context. `beta` > 0 is traced."""
        check_number("beta", beta, above=0, advice="beta -> 0 is the reward's maximum")
        beta = jnp.asarray(beta, self.bonus.dtype)
        tables = jax.vmap(lambda s: (self.ref_table(s), self.reward_table(s)))
        ref, reward = tables(jnp.arange(self.num_contexts))
        # Shifted before it is scaled: r / beta may overflow, (r - max r) / beta only underflows.
        best = jnp.where(jnp.isneginf(ref), -jnp.inf, reward).max(-1, keepdims=True)
        return log_softmax(ref + jnp.where(jnp.isneginf(ref), 0, reward - best) / beta)

    def at(self, x: Array, context: Context, *more: Array) -> Array:
        """x[context, ...], refusing a context that does not exist."""
        if np.shape(context):
            raise ShapeError(f"context has shape {np.shape(context)}; it must be one number: vmap over several")
        _check_index("context", context, self.num_contexts, "contexts")
        return x[(context, *more)]


def log_softmax(logits: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Normalised log-probabilities [nats]; -inf stays -inf and passes no gradient. nan spreads over its row."""
    return jnp.where(jnp.isneginf(logits), -jnp.inf, jax.nn.log_softmax(logits, axis=-1))


def _check_index(argument: str, index: Any, count: int, what: str) -> None:
    if is_traced(index):
        return
    array = as_numpy(argument, index)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{argument} is {shown(index)}; it must be a whole number: {what} run from 0 to {count - 1}")
    bad = (array < 0) | (array >= count)
    if bad.any():
        raise DomainError(f"{argument} is {array[bad].flat[0]}; {what} run from 0 to {count - 1}")


# --- the order of sequences ------------------------------------------------------------------------------------------
# Block k holds the responses that end in place k, after k tokens other than `end`; the last block those that never
# end. Inside a block the tokens are digits, so tables are built by broadcasting, without a list of sequences.
def _stop(length: int, end: int | None) -> int | None:
    return end if length > 1 else None


def _block_sizes(tokens: int, length: int, end: int | None) -> list[int]:
    if _stop(length, end) is None:
        return [tokens**length]
    return [(tokens - 1) ** k for k in range(length + 1)]


def _decode(index: Any, tokens: int, length: int, end: int | None, xp: Any) -> Any:
    sizes = _block_sizes(tokens, length, end)
    stop = _stop(length, end)
    if stop is None:
        return (index[:, None] // xp.asarray(tokens ** np.arange(length)[::-1], np.int32) % tokens).astype(np.int32)
    start = np.cumsum([0, *sizes[:-1]])
    before = (index[:, None] >= xp.asarray(start, np.int32)).sum(-1) - 1
    within = index - xp.asarray(start, np.int32)[before]
    power = before[:, None] - 1 - xp.arange(length)
    place = xp.asarray((tokens - 1) ** np.arange(length), np.int32)[xp.maximum(power, 0)]
    digit = within[:, None] // place % (tokens - 1)
    return xp.where(power >= 0, digit + (digit >= stop), stop).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _list_responses(tokens: int, length: int, end: int | None) -> tuple[np.ndarray, np.ndarray]:
    total = sum(_block_sizes(tokens, length, end))
    response = _decode(np.arange(total, dtype=np.int32), tokens, length, end, np)
    stop = _stop(length, end)
    is_end = np.zeros(response.shape, bool) if stop is None else response == stop
    mask = np.cumsum(is_end, -1) - is_end == 0
    response.setflags(write=False)
    mask.setflags(write=False)
    return response, mask


# --- constructors ----------------------------------------------------------------------------------------------------
def bandit(
    reward: Any,
    ref: Any = None,
    *,
    probs: Any = None,
    data: Any = None,
    features: Any = None,
    name: str = "",
) -> Problem:
    """A bandit from its table of rewards: one response is one action.

    Args:
        reward: [A], or [S, A] for S contexts.
        ref: reference *logits* of the same shape, -inf forbids an action; default uniform.
        probs: reference *probabilities* instead, converted in float64.
        data: logits of the policy that offline data come from; default the reference.
        features: [S, D]; default one-hot, so that a network can tell contexts apart.

    Raises:
        ShapeError: shapes that differ (nothing is broadcast), no action. DomainError: nan, infinities, probabilities
        that do not sum to 1 or that came as logits, a context without any action. TypeError: not numbers.
    """
    reward = as_floats("reward", reward)
    if reward.ndim not in (1, 2):
        raise ShapeError(f"reward has shape {reward.shape}; it must be (actions,) or (contexts, actions)")
    _require_some(reward)
    ref = _logits("ref", ref, probs, reward.shape)
    data = ref if data is None else _logits("data", data, None, reward.shape)
    rows = lambda x: x.reshape(-1, 1, x.shape[-1])
    return sequences(rows(reward), rows(ref), data=rows(data), features=features, name=name)


def sequences(
    token_reward: Any,
    ref: Any = None,
    *,
    end: int | None = None,
    bonus: Any = None,
    data: Any = None,
    features: Any = None,
    reward_fn: Callable[[Array, Array, Array], Array] | None = None,
    name: str = "",
) -> Problem:
    """A problem whose responses have up to T tokens out of V.

    Args:
        token_reward: [S, T, V].
        ref: [S, T, V] logits of the reference's independent tokens, -inf forbids a token; default uniform.
        end: the token that ends a response.
        bonus: [S], added to every reward of a context; default 0.
        data: [S, T, V] logits of the policy that offline data come from; default the reference.
        features: [S, D]; default one-hot.
        reward_fn: see `Problem`. It is called twice with the same response, and must agree with itself.

    Raises:
        ShapeError, DomainError, TypeError: as `bandit`. ConfigError: `end` is not a token, or `reward_fn` does not fit.
    """
    token_reward = as_floats("reward", token_reward, shape=(None, None, None))
    _require_some(token_reward)
    contexts, length, tokens = token_reward.shape
    check_finite("reward", token_reward)
    ref = _logits("ref", ref, None, token_reward.shape)
    data = ref if data is None else _logits("data", data, None, token_reward.shape)
    if bonus is None:
        bonus = jnp.zeros(contexts, token_reward.dtype)
    bonus = as_floats("bonus", bonus, shape=(contexts,))
    check_finite("bonus", bonus)
    if not isinstance(name, str):
        raise TypeError(f"name is {shown(name)}; it must be a string")
    if features is None:
        if contexts > MOST_ONE_HOT:
            raise ResourceError(f"{contexts} contexts are too many for one-hot features: pass features=")
        features = jnp.eye(contexts, dtype=token_reward.dtype)
    features = as_floats("features", features, shape=(contexts, None))
    check_finite("features", features)
    if end is not None:
        check_integer("end", end, at_least=0)
        if end >= tokens:
            raise ConfigError(f"end is {end}; it must be one of the {tokens} tokens, 0 to {tokens - 1}")
        if tokens < 2:
            raise ConfigError("end is the only token: add another one")
    if tokens == 1:
        what = f"; for {contexts} actions in one context pass reward[:, 0]" if contexts > 1 and length == 1 else ""
        warnings.warn(f"one action: nothing to learn (reward has shape {(contexts, tokens)}{what})", stacklevel=3)
    problem = Problem(ref, token_reward, bonus, features, data, end, reward_fn, name)
    if reward_fn is not None:
        _check_reward_fn(problem, reward_fn)
    return problem


def _require_some(reward: Array) -> None:
    if reward.size == 0:
        raise ShapeError(f"reward has shape {reward.shape}; a problem needs at least 1 action and 1 context")


def _check_reward_fn(problem: Problem, reward_fn: Callable[[Array, Array, Array], Array]) -> None:
    who = getattr(reward_fn, "__name__", repr(reward_fn))
    response = jnp.zeros(problem.length, jnp.int32)
    given = problem.features[0], response, problem.mask_of(response)
    with naming(f"reward_fn {who} fails on (features, response, mask) of one response"):
        first, second = (jnp.asarray(reward_fn(*given)) for _ in range(2))
        jax.eval_shape(reward_fn, *given)
    if first.shape != ():
        raise ConfigError(f"reward_fn {who} returns shape {first.shape}; it must return one number per response")
    check_finite(f"reward_fn {who} of response {response.tolist()}", first)
    if not is_traced(first, second) and not bool(first == second):
        raise ConfigError(f"reward_fn {who} returned {first}, then {second} for the same response: it must be pure")


def _logits(argument: str, logits: Any, probs: Any, shape: tuple[int, ...]) -> Array:
    if probs is not None:
        if logits is not None:
            raise ConfigError(f"{argument} and probs are both given: pass one of them")
        argument, logits = "probs", _log_of_probs(probs, shape)
    if logits is None:
        return jnp.zeros(shape, jax.dtypes.canonicalize_dtype(np.float64))
    exact = logits
    logits = as_floats(argument, logits, shape=shape)
    check_finite(argument, logits, allow_minus_inf=True)
    if is_traced(logits):
        return log_softmax(logits)
    exact = np.asarray(exact, np.float64)
    empty = np.isneginf(exact).all(-1)
    if empty.any():
        where = f" in context {int(np.argwhere(empty)[0][0])}" if empty.ndim else ""
        raise DomainError(f"{argument} allows no action{where}: every entry is -inf; leave at least one finite")
    if argument != "probs" and shape[-1] > 1 and (exact >= 0).all() and (abs(exact.sum(-1) - 1) < 1e-4).all():
        raise DomainError(
            f"{argument} holds probabilities (none negative, sum 1); it must hold logits. Pass np.log of them (a "
            "bandit's reference also as probs=), or subtract their maximum if they are logits"
        )
    # Normalised in float64: log-probabilities of 1e-30 keep every digit that the array type has.
    shifted = exact - exact.max(-1, keepdims=True)
    return as_floats(argument, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _log_of_probs(probs: Any, shape: tuple[int, ...]) -> Any:
    if is_traced(probs):
        return jnp.log(probs)
    check_finite("probs", as_floats("probs", probs, shape=shape))
    exact = np.asarray(probs, np.float64)
    if (exact < 0).any():
        place = tuple(int(i) for i in np.argwhere(exact < 0)[0])
        raise DomainError(f"probs{list(place)} is {exact[place]}; probabilities are at least 0. Logits go in ref")
    total = exact.sum(-1)
    if (abs(total - 1) > 1e-4).any():
        worst = np.ravel(total)[np.argmax(abs(np.ravel(total) - 1))]
        raise DomainError(f"probs sum to {worst:.6g}; they must sum to 1 within 1e-4: divide by the sum")
    with np.errstate(divide="ignore"):
        return np.log(exact)


def peaks(num_actions: int, places: Any, widths: Any, heights: Any = 1.0) -> Float[Array, " A"]:
    """Rewards with Gaussian peaks: r(a) = sum_i height_i exp(-((a - place_i) / width_i)^2), a = 0, 1, ..., A - 1.

    Args:
        places, widths: in actions; a number or one per peak, traced. heights: likewise, may be negative (valleys).

    Raises:
        ShapeError: lists of different lengths. DomainError: a width that is not above 0, nan. ResourceError: more
        actions than memory.
    """
    check_integer("num_actions", num_actions, at_least=1)
    check_memory(f"num_actions = {num_actions}", 4 * num_actions, "take fewer actions")
    lists = {"places": places, "widths": widths, "heights": heights}
    lists = {name: jnp.atleast_1d(as_floats(name, value)) for name, value in lists.items()}
    for name, value in lists.items():
        check_finite(name, value)
    if not is_traced(widths):
        for width in np.ravel(np.asarray(widths)):
            check_number("widths", width, above=0)
    number = max(value.shape[0] for value in lists.values())
    for name, value in lists.items():
        if value.ndim != 1 or value.shape[0] not in (1, number):
            raise ShapeError(f"{name} has shape {value.shape}; it must be a number or a list of {number}, one per peak")
    # A loop over peaks: [A] arrays only, also for a million actions.
    place, width, height = (jnp.broadcast_to(value, (number,)) for value in lists.values())
    action = jnp.arange(num_actions, dtype=place.dtype)
    bump = lambda i: height[i] * jnp.exp(-(((action - place[i]) / width[i]) ** 2))
    return sum((bump(i) for i in range(1, number)), start=bump(0))


def paper_reference(
    num_actions: int = 100, *, key: Key[Array, ""] | None = None, samples: int = 10_000
) -> Float[Array, " A"]:
    """Log-probabilities of tanh(X), X ~ Cauchy(-0.7, 0.4), in equal bins of [-1, 1]: the paper's reference.

    Not unimodal: next to the mode at bin 16 of 100, the Cauchy tails make spikes at both ends.

    Args:
        key: with it, the frequencies of `samples` draws, as in the authors' code. A bin that no draw hit is -inf and
            forbidden; at 100 bins and 10,000 draws the rarest bin expects 19, at 100 draws many stay empty.

    Source: Tajwar et al. (2024), section 4 and the authors' code; exact bin masses in float64.
    """
    check_integer("num_actions", num_actions, at_least=1)
    check_memory(f"num_actions = {num_actions}", 32 * num_actions, "take fewer actions")
    if key is not None:
        check_key("key", key)
        check_integer("samples", samples, at_least=1)
        check_memory(f"samples = {samples}", 16 * samples, "take fewer samples")
        place = jnp.tanh(jax.random.cauchy(key, (samples,)) * 0.4 - 0.7)
        count = jnp.bincount(
            jnp.clip((place + 1) / 2 * num_actions, 0, num_actions - 1).astype(jnp.int32), length=num_actions
        )
        return jnp.log(count / samples)
    with np.errstate(divide="ignore"):
        edge = np.arctanh(np.linspace(-1, 1, num_actions + 1))
    below = np.arctan((edge + 0.7) / 0.4) / np.pi + 0.5
    return as_floats("reference", np.log(np.diff(below)))


def paper_bandit(
    which: str, contexts: int = 1, *, key: Key[Array, ""] | None = None, empirical: bool = False
) -> Problem:
    """The paper's bandit of 100 actions: R4 far peak, R5 near peak, R8 and R9 far peaks 2 and 3 times as wide.

    The paper calls R4 and R5 "R1" and "R2"; these are the numbers in its code. The reward ignores the context.

    Args:
        contexts: how many; their 100 features are uniform on [0, 1].
        key: needed for several contexts or `empirical`.
        empirical: reference from 10,000 draws instead of the exact bins.

    Raises:
        ConfigError: an unknown reward, or no key where one is needed.
    """
    check_choice("which", which, _PEAKS)
    check_integer("contexts", contexts, at_least=1)
    check_memory(f"contexts = {contexts}", 2000 * contexts, "take fewer contexts")
    if key is None and (contexts > 1 or empirical):
        raise ConfigError("key is None; several contexts and the empirical reference need one: jax.random.key(0)")
    features = None
    reference = paper_reference()
    if key is not None:
        check_key("key", key)
        for_features, for_reference = jax.random.split(key)
        features = jax.random.uniform(for_features, (contexts, 100))
        reference = paper_reference(key=for_reference) if empirical else reference
    same = lambda x: jnp.tile(x, (contexts, 1))
    return bandit(same(peaks(100, *_PEAKS[which])), same(reference), features=features, name=which)


def contextual_bandit(
    key: Key[Array, ""],
    contexts: int,
    features: int = 100,
    num_actions: int = 100,
    *,
    centre: Any = None,
    shift: Any = None,
    width: Any = None,
    rule: str = "sign",
    name: str = "contextual",
) -> Problem:
    """A bandit whose peak moves with the context, so that a policy must read its features, uniform on [0, 1].

    With u = 2 x_0 - 1 of the first feature, the peak stands at `centre + shift * sign(u)` (rule "sign") or at
    `centre + shift * u` ("linear"). The reference is the paper's.

    Args:
        centre, shift, width: in actions, traced; default 0.7, 0.05 and 0.1 of the number of actions.

    Raises:
        ConfigError: an unknown rule, no context or no feature.
    """
    check_key("key", key)
    for argument, value in (("contexts", contexts), ("features", features), ("num_actions", num_actions)):
        check_integer(argument, value, at_least=1)
    check_memory(f"contexts = {contexts}", 4 * contexts * (features + 4 * num_actions), "take fewer of them")
    check_choice("rule", rule, ("sign", "linear"))

    def share(argument: str, value: Any, default: float) -> Array:
        value = default * num_actions if value is None else value
        check_number(argument, value)
        return as_floats(argument, value)

    centre, shift, width = share("centre", centre, 0.7), share("shift", shift, 0.05), share("width", width, 0.1)
    check_number("width", width, above=0)
    seen = jax.random.uniform(key, (contexts, features))
    lean = 2 * seen[:, 0] - 1
    place = centre + shift * (jnp.sign(lean) if rule == "sign" else lean)
    reward = jax.vmap(lambda where: peaks(num_actions, where, width))(place)
    return bandit(reward, jnp.tile(paper_reference(num_actions), (contexts, 1)), features=seen, name=name)


def paper_sequences(which: str, length: int = 9) -> Problem:
    """The paper's sequences: `length` tokens out of 100 after a random prompt token, R6 far and R7 near peak.

    Every one of the 100 prompts is a context. The reward averages over all tokens, the prompt's included, which no
    policy controls: with 9 tokens the ceiling is 0.9177. The reference is the exact one at every place (in the paper:
    a network fitted to it).

    Raises:
        ConfigError: an unknown reward.
    """
    places = {"R6": 70.0, "R7": 20.0}
    check_choice("which", which, places)
    check_integer("length", length, at_least=1)
    check_memory(f"length = {length}", 160_000 * length, "take shorter sequences")
    reward = peaks(100, places[which], 10.0) / (length + 1)
    everywhere = lambda x: jnp.tile(x, (100, length, 1))
    return sequences(everywhere(reward), everywhere(paper_reference()), bonus=reward, name=which)


def length_problem(
    kind: str,
    vocabulary: int = 4,
    length: int = 8,
    *,
    mode: float | None = None,
    spread: float | None = None,
    hazard: Any = None,
    data_hazard: Any = None,
) -> Problem:
    """Only the length counts: short is good ("min", "skew"), or close to the reference's mode ("mode").

    Reward -|y| or -| |y| - mode |, where |y| counts tokens, the end token (the last of the vocabulary) included. The
    reference ends at token t with probability `hazard[t]`; other tokens are equally likely. In "skew" the offline data
    are short: they come from a geometric length. Models of the Min, Mode and Skew Length problems of Tajwar et al.

    Args:
        mode, spread: of the reference's lengths, a rounded normal distribution; default 3/4 and 1/8 of `length`.
        hazard: [length] probability of ending at each token, in the place of `mode` and `spread`.
        data_hazard: the same for the offline data; default the reference's, and 0.4 everywhere in "skew".

    Raises:
        ConfigError: an unknown kind, fewer than 2 tokens. DomainError: a hazard outside (0, 1).
    """
    check_choice("kind", kind, ("min", "mode", "skew"))
    check_integer("vocabulary", vocabulary, at_least=2)
    check_integer("length", length, at_least=1)
    check_memory(f"vocabulary = {vocabulary} and length = {length}", 40 * vocabulary * length, "take fewer of them")
    mode = 0.75 * length if mode is None else mode
    spread = length / 8 if spread is None else spread
    check_number("mode", mode, at_least=0)
    check_number("spread", spread, above=0)
    place = np.arange(1, length + 1)
    if hazard is None:
        survival = np.asarray(jax.scipy.stats.norm.logsf(place + 0.5, mode, spread), np.float64)
        hazard = -np.expm1(np.diff(survival, prepend=0.0))
    if data_hazard is None:
        data_hazard = np.full(length, 0.4) if kind == "skew" else hazard
    ref, data = (
        _hazard_logits(argument, value, vocabulary, length)
        for argument, value in (("hazard", hazard), ("data_hazard", data_hazard))
    )
    target = mode if kind == "mode" else 0.0
    step = np.abs(place - 1 - target) - np.abs(place - target)  # Sums to target - | |y| - target |.
    reward = np.tile(step[:, None], (1, vocabulary))
    return sequences(
        reward[None], ref[None], end=vocabulary - 1, bonus=[-target], data=data[None], name=f"{kind}-length"
    )


def _hazard_logits(argument: str, hazard: Any, vocabulary: int, length: int) -> np.ndarray:
    as_floats(argument, hazard, shape=(length,))
    hazard = np.asarray(hazard, np.float64)
    outside = ~((hazard > 0) & (hazard < 1))
    if outside.any():
        place = int(np.argmax(outside))
        raise DomainError(f"{argument} is {hazard[place]} at token {place}; it must be greater than 0 and below 1")
    token = np.log1p(-hazard) - np.log(vocabulary - 1)
    return np.concatenate([np.tile(token[:, None], (1, vocabulary - 1)), np.log(hazard)[:, None]], axis=1)

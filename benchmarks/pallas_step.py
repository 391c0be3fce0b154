"""A candidate kernel: a gradient step of a softmax policy on one long table, in a single pass over its actions.

Pallas: Triton on NVIDIA GPUs, Mosaic on TPUs, interpreted elsewhere. It is no part of the package: `device_check`
measures it against the same arithmetic as plain XLA, its oracle, and only what wins on a device shall move.

The policy is softmax(ref + lead), over tables of rows of 1,024 actions. A step of rate eta is

    lead += eta (f - pi sum f),    f = pi w ("own", REINFORCE's expectation) or f = w ("data", forward KL to w),

or Adam on that direction. Each row also leaves its largest logit, and relative to it its mass and its mass times w:
all that the next step has to know of the whole table, so that no step reads it twice. These are the upper level of the
sampler's tree too. As each row is scaled by its own largest logit, no step is too long for float32: nothing lags behind
and nothing has to be repeated.

Bytes per action and step, counted from what a step has to read and write:

              ref and w in float32          in bfloat16
              one pass    two passes        one pass    two passes
    SGD         16          28                12          20
    Adam        32          44                28          36

One pass reads lead, ref and w and writes lead (and the moments); two, as XLA needs, read lead, ref and w once more for
the sums. Those are 12 bytes per row of 1,024, written and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from bandit_pft.kernels import BLOCK, sample_from_mass, total

Force = Literal["own", "data"]
ROWS = 8  # Tables have a multiple of so many rows: what a TPU needs, and the most that a program takes on a GPU.
DECAYS = 0.9, 0.999  # Adam's, as optax has them.


class Constants(NamedTuple):
    """What no step changes: reference logits and w, float32 or bfloat16, and the sum of w over all actions."""

    ref: Float[Array, "R 1024"]
    weight: Float[Array, "R 1024"]
    whole: Float[Array, ""]


class State(NamedTuple):
    """The learner before a step.

    Attributes:
        lead: logits minus those of the reference. moments: none for SGD, two for Adam.
        top: largest logit of each row; mass, weighted: sums of e^(logit - top), and of that times w.
        step: gradient steps taken.
    """

    lead: Float[Array, "R 1024"]
    moments: tuple[Float[Array, "R 1024"], ...]
    top: Float[Array, "R 1"]
    mass: Float[Array, "R 1"]
    weighted: Float[Array, "R 1"]
    step: Int[Array, ""]


def begin(
    ref: Float[Array, " K"], weight: Float[Array, " K"], *, adam: bool, half: bool = False
) -> tuple[Constants, State]:
    """The reference as first policy. Tables are filled up with forbidden actions to a multiple of `ROWS` rows, once.

    Args:
        half: keep ref and w in bfloat16, and compute in float32. That is another problem: log-probabilities are wrong
            by up to 2^-8 of the reference's range in nats, before the first step, and rewards by 2^-9 of their size.
            ACCELERATORS.md says what became of that in whole runs.
    """
    if half:
        # bfloat16 is finest near 0, where the likely actions shall be.
        ref, weight = (ref - ref.max()).astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    # What is forbidden pulls nothing, or a policy that cannot give it would be pulled there for ever.
    weight = jnp.where(jnp.isneginf(ref), 0, weight)
    fold = lambda x, fill: jnp.pad(x, (0, -x.size % (ROWS * BLOCK)), constant_values=fill).reshape(-1, BLOCK)
    constants = Constants(fold(ref, -jnp.inf), fold(weight, 0), total(weight.astype(jnp.float32)))
    lead = jnp.zeros(constants.ref.shape)
    moments = (lead, lead) if adam else ()
    return constants, State(lead, moments, *_sums(lead, constants.ref, constants.weight), jnp.asarray(0))


def normaliser(state: State) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """log sum exp of all logits, and the policy's mean of w, from the rows' sums."""
    top = state.top.max()
    scale = jnp.exp(state.top - top)[:, 0]
    mass = total(scale * state.mass[:, 0])
    return top + jnp.log(mass), total(scale * state.weighted[:, 0]) / mass


def log_prob(constants: Constants, state: State, actions: int) -> Float[Array, " K"]:
    """Of all actions, in nats."""
    norm, _ = normaliser(state)
    return (constants.ref + (state.lead - norm)).reshape(-1)[:actions]


def draw(constants: Constants, state: State, uniform: Float[Array, "levels n"]) -> Int[Array, " n"]:
    """Actions at these quantiles, as `kernels.sample_from_uniform`, by reading n rows and the rows' sums."""
    norm, _ = normaliser(state)
    row = sample_from_mass(uniform[1:], (state.mass * jnp.exp(state.top - norm))[:, 0])
    mass = jnp.exp(constants.ref[row] + (state.lead[row] - norm))
    return row * BLOCK + jax.vmap(lambda u, m: sample_from_mass(u[None, None], m)[0])(uniform[0], mass)


def _sums(lead: Array, ref: Array, weight: Array) -> tuple[Array, Array, Array]:
    logits = ref + lead
    top = logits.max(-1, keepdims=True)
    mass = jnp.exp(logits - jnp.where(top == -jnp.inf, 0, top))
    return top, mass.sum(-1, keepdims=True), (mass * weight).sum(-1, keepdims=True)


def _pass(force: Force, scalars: Sequence[Array], tables: Sequence[Array], ref: Array, weight: Array) -> list[Array]:
    """New tables (lead and moments) and the rows' sums: one formula for the kernel's block and XLA's whole table."""
    norm, mean, rate, *debias = scalars
    lead, *moments = tables
    prob = jnp.exp(ref + lead - norm)
    move = (prob * weight if force == "own" else weight) - mean * prob
    if moments:
        for i, x in enumerate((move, move * move)):
            moments[i] = DECAYS[i] * moments[i] + (1 - DECAYS[i]) * x
        move = moments[0] * debias[0] / (jnp.sqrt(moments[1] * debias[1]) + 1e-8)
    lead = lead + rate * move
    return [lead, *moments, *_sums(lead, ref, weight)]


def step(
    constants: Constants, state: State, rate: Array | float, *, force: Force, platform: str | None, rows: int = ROWS,
    warps: int = 8,
) -> State:  # fmt: skip
    """One gradient step.

    Args:
        platform: "gpu", "tpu" or "cpu" (interpreted) for the kernel; None: plain XLA.
        rows: of one program of the kernel: a power of two up to `ROWS`, and on a TPU 8.
        warps: of one program on a GPU.
    """
    norm, mean = normaliser(state)
    count = state.step + 1
    scalars = [norm, mean if force == "own" else constants.whole, jnp.asarray(rate, jnp.float32)]
    if state.moments:
        scalars += [1 / (1 - DECAYS[0] ** count), 1 / (1 - DECAYS[1] ** count)]
    scalars = [x.reshape(1, 1) for x in scalars]
    tables = [state.lead, *state.moments]

    def compute(*values: Array) -> list[Array]:
        *values, ref, weight = values
        own, fixed = values[: len(scalars)], (ref.astype(jnp.float32), weight.astype(jnp.float32))
        return _pass(force, own, values[len(scalars) :], *fixed)

    def kernel(*refs: Any) -> None:
        inputs = len(scalars) + len(tables) + 2
        for target, value in zip(refs[inputs:], compute(*(ref[...] for ref in refs[:inputs])), strict=True):
            target[...] = value

    options = {}
    if platform == "gpu":
        # JAX 0.11 announces that Triton will go: nothing else here shall depend on it.
        from jax.experimental.pallas import triton

        options = {"compiler_params": triton.CompilerParams(num_warps=warps, num_stages=1)}
    block = lambda shape, place: pl.BlockSpec(shape, lambda i: (place * i, 0))
    table, narrow, scalar = block((rows, BLOCK), 1), block((rows, 1), 1), block((1, 1), 0)
    one_pass = pl.pallas_call(
        kernel,
        grid=(state.lead.shape[0] // rows,),
        in_specs=[scalar] * len(scalars) + [table] * (len(tables) + 2),
        out_specs=[table] * len(tables) + [narrow] * 3,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in [*tables, state.top, state.mass, state.weighted]],
        input_output_aliases={len(scalars) + i: i for i in range(len(tables))},
        interpret=platform == "cpu",
        **options,
    )
    new = (compute if platform is None else one_pass)(*scalars, *tables, constants.ref, constants.weight)
    return State(new[0], tuple(new[1:-3]), *new[-3:], count)


@partial(jax.jit, static_argnames=("steps", "force", "platform", "rows", "warps"))
def run(constants: Constants, state: State, rate: Array | float, *, steps: int, **options: Any) -> State:
    """So many steps. Their number is static: a GPU asks its host before each step of a loop of unknown length."""
    return jax.lax.fori_loop(0, steps, lambda _, state: step(constants, state, rate, **options), state)


def traffic(constants: Constants, state: State) -> tuple[int, int]:
    """Bytes per action that a step moves in one pass, and in two."""
    fixed = constants.ref.dtype.itemsize + constants.weight.dtype.itemsize
    tables = 4 * (1 + len(state.moments))
    return 2 * tables + fixed, 2 * tables + fixed + 4 + fixed

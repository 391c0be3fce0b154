"""Numerics over large action spaces: drawing actions by inverse CDF, sums over long rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from bandit_pft.errors import check_integer, check_key, check_memory, is_traced

SPARSE = 1 << 15  # Actions from which on a step on a few of them is faster than a pass over all.
SHORT = 32  # Numbers whose sum costs less inside the kernel that makes them than as a product of its own.
BLOCK = 1024  # One float32 cumulative sum stays exact enough up to here; beyond, every level gets a fresh uniform.


# Of XLA's compiler for CPUs.
LIGHT = {"xla_backend_optimization_level": 1}
UNSPLIT = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner", "xla_cpu_prefer_vector_width": 512}


def on_cpu() -> bool:
    """Whether a loop may decide by its own numbers how to go on: an accelerator waits for its host each time.

    The platform is that of `jax.default_device`, also by the name of one that is not here: whoever lowers a program for
    a TPU traces it under `jax.default_device("tpu")`. JAX traces anew where that changes.
    """
    config: Any = jax.config
    device = config.jax_default_device or jax.default_backend()
    return getattr(device, "platform", device) == "cpu"


class Compiled:
    """`jax.jit(f)`, compiled with the effort that pays on the platform at hand.

    On a CPU LLVM's highest effort takes up to five times as long over these programs, and they run no faster for it.
    Options of the compiler are for whole programs: called while another is traced, f is a plain part of that one.

    Args:
        many: many small runs side by side. To split their kernels, of a microsecond each, among threads costs more
            than it gains; a lone run over many actions is faster split.
    """

    def __init__(self, f: Callable[..., Any], *, many: bool = False, **options: Any) -> None:
        self.part = jax.jit(f, **options)
        self.light = jax.jit(f, compiler_options=LIGHT | (UNSPLIT if many else {}), **options)

    @property
    def whole(self) -> Any:
        return self.light if on_cpu() else self.part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.part if is_traced((args, kwargs)) else self.whole)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def total(x: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    """Sum over the last axis, as a product with ones: for long rows XLA's CPU backend does that ten times faster."""
    if x.shape[-1] <= SHORT:
        return x.sum(-1)
    return jnp.matmul(x, jnp.ones(x.shape[-1], x.dtype), precision=jax.lax.Precision.HIGHEST)


def logsumexp(x: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    """log sum exp over the last axis; -inf where every entry is."""
    top = jax.lax.stop_gradient(x.max(-1))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.log(total(jnp.exp(x - top[..., None]))) + top


def levels(count: int) -> int:
    """How many uniforms one draw among `count` actions takes."""
    return 1 if count <= 2 * BLOCK else 1 + levels(-(-count // BLOCK))


def sample_categorical(key: Key[Array, ""], logp: Float[Array, " A"], n: int) -> Int[Array, " n"]:
    """Draw n actions with replacement. Errors and guarantees: see `sample_from_uniform`.

    Args:
        logp: log-probabilities, need not be normalised.
    """
    check_key("key", key)
    check_integer("n", n, at_least=0)
    check_memory(f"n = {n}", 4 * n, "draw fewer at a time")
    return sample_from_uniform(jax.random.uniform(key, (levels(logp.shape[0]), n)), logp)


def sample_from_uniform(uniform: Float[Array, "levels n"], logp: Float[Array, " A"]) -> Int[Array, " n"]:
    """Actions at the given quantiles: the same uniforms under a slightly different policy give nearly the same draws.

    One uniform and one cumulative sum cannot reach every action at A = 1e6 in float32. Here each level of a tree of
    blocks has its own uniform, so the error stays that of one block: at most 2^-23 per action and level. An action
    of probability 0 (log-probability -inf) is never drawn.
    """
    return sample_from_mass(uniform, jnp.exp(logp - jnp.max(logp)))


def sample_from_mass(uniform: Float[Array, "levels n"], mass: Float[Array, " A"]) -> Int[Array, " n"]:
    """The same for probabilities, up to a factor."""
    return sample_from_tree(uniform, mass_tree(mass))


def mass_tree(mass: Float[Array, " A"]) -> tuple[Float[Array, ...], ...]:
    """Masses in blocks of `BLOCK`, the blocks' sums in blocks, and so on; the last level is a plain row."""
    if levels(mass.shape[0]) == 1:
        return (mass,)
    blocks = jnp.pad(mass, (0, -mass.shape[0] % BLOCK)).reshape(-1, BLOCK)
    return blocks, *mass_tree(total(blocks))


def sample_from_tree(uniform: Float[Array, "levels n"], tree: tuple[Float[Array, ...], ...]) -> Int[Array, " n"]:
    """`sample_from_uniform` where the sums are known."""
    leaves, *above = tree
    if not above:
        return _invert(leaves, uniform[0])
    block = sample_from_tree(uniform[1:], tuple(above))
    inside = jax.vmap(lambda row, u: _invert(row, u[None])[0])(leaves[block], uniform[0])
    return block * BLOCK + inside


def replace_in_tree(
    tree: tuple[Float[Array, ...], ...], action: Int[Array, " n"], mass: Float[Array, " n"]
) -> tuple[Float[Array, ...], ...]:
    """The tree after these actions' masses became these; an action listed twice has the same mass twice.

    Sums of the blocks concerned are taken anew, so that no rounding piles up however often this is done.
    """
    leaves, *above = tree
    if not above:
        return (leaves.at[action].set(mass),)
    block = action // BLOCK
    leaves = leaves.at[block, action % BLOCK].set(mass)
    return leaves, *replace_in_tree(tuple(above), block, total(leaves[block]))


def _invert(mass: Array, uniform: Array) -> Array:
    """Inverse CDF in two levels of about sqrt(A): first the row of a table of masses, then the place in the row.

    All sums run in one fixed order, so that an action of mass 0 never moves the sum and is never chosen. Loops over
    rows and columns are unrolled: XLA vectorises them over draws and runs, as it does not a cumulative sum.
    """
    columns = math.isqrt(mass.shape[0] - 1) + 1
    table = jnp.pad(mass, (0, -mass.shape[0] % columns)).reshape(-1, columns)
    size = table[:, 0]
    for column in range(1, columns):
        size = size + table[:, column]
    ends = [size[0]]
    for row in range(1, table.shape[0]):
        ends.append(ends[-1] + size[row])
    # Strictly below the total, so that the first action whose sum exceeds it has mass.
    point = uniform * ends[-1]
    row, start = jnp.zeros(point.shape, jnp.int32), jnp.zeros_like(point)
    for end in ends[:-1]:
        row, start = row + (end <= point), jnp.where(end <= point, end, start)
    chosen = table[row].T
    place, inside = jnp.zeros(point.shape, jnp.int32), jnp.zeros_like(point)
    for column in range(columns - 1):
        inside = inside + chosen[column]
        place += start + inside <= point
    # row * columns + place, as a product: otherwise XLA repeats both searches for everything that reads the action.
    return jnp.stack([row, place], -1) @ jnp.array([columns, 1], row.dtype)


def uniform_at(key: Key[Array, ""], step: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*S"]:
    """`jax.random.uniform(jax.random.fold_in(key, step), shape)`, bit by bit, in one pass.

    On a CPU JAX hashes in loops of their own kernels, which take longer to compile and to run than a short step.
    """
    words = jax.random.key_data(key)
    first, second = threefry(words[0], words[1], jnp.zeros((), jnp.uint32), step.astype(jnp.uint32))
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    high, low = threefry(first, second, jnp.zeros_like(place), place)
    # 23 random bits as the fraction of a number from 1 to 2.
    number = jax.lax.bitcast_convert_type(((high ^ low) >> 9) | np.uint32(0x3F800000), jnp.float32) - 1
    return number.reshape(shape)


def threefry(first: Array, second: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: two words of a key, two of a counter (Salmon et al. 2011)."""
    keys = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    turns = (13, 15, 26, 6), (17, 29, 16, 24)
    high, low = high + keys[0], low + keys[1]
    for round in range(5):
        for turn in turns[round % 2]:
            high = high + low
            low = ((low << np.uint32(turn)) | (low >> np.uint32(32 - turn))) ^ high
        high, low = high + keys[(round + 1) % 3], low + keys[(round + 2) % 3] + np.uint32(round + 1)
    return high, low

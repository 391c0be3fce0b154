"""Errors for the reader: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.core
import numpy as np


class ConfigError(ValueError):
    """An option that does not exist or does not fit the others."""


class ShapeError(ValueError):
    """An array of the wrong shape; nothing is ever broadcast silently."""


class DomainError(ValueError):
    """A value outside the range in which the formula means something."""


class ResourceError(RuntimeError):
    """A request this machine cannot hold, refused before it runs."""


class NumericsError(RuntimeError):
    """A run that turned non-finite although the caller asked to stop there."""


class StoreError(RuntimeError):
    """A file of results that cannot be read, or does not belong here."""


def is_traced(*values: Any) -> bool:
    """Whether any value is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that helps with a mistyped name."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"


def check_names(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name in `given` that is not in `known`."""
    known = tuple(known)
    for name in given:
        if name not in known:
            what = nearest(name, known) if known else "it takes none"
            raise ConfigError(f"{argument} has no {name!r}: {what}")


def as_floats(argument: str, value: Any, *, shape: tuple[int | None, ...] | None = None) -> jax.Array:
    """A float array of exactly this shape (None: any size), finite or -inf-free as the caller checks."""
    if isinstance(value, jax.Array):
        array = value
    else:
        try:
            array = np.asarray(value)
        except RuntimeError as error:  # A torch tensor that tracks gradients.
            raise TypeError(f"{argument} cannot be read as numbers: {error}") from error
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"{argument} is not a rectangular array of numbers: {error}. "
                "Pad ragged rows and mask the padding with -inf logits."
            ) from error
    if array.dtype.kind not in "fiu" and not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
        raise TypeError(f"{argument} holds {array.dtype}; it must hold real numbers")
    if jax.numpy.issubdtype(array.dtype, jax.numpy.floating) and array.dtype.itemsize < 4:
        raise DomainError(
            f"{argument} holds {array.dtype}, which cannot carry small probabilities: convert it to float32"
        )
    if shape is not None and (
        len(shape) != array.ndim
        or any(want is not None and want != got for want, got in zip(shape, array.shape, strict=True))
    ):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ShapeError(f"{argument} has shape {array.shape}; it must be {wanted} and is never broadcast")
    return jax.numpy.asarray(array, dtype=jax.dtypes.canonicalize_dtype(np.float64))


def check_finite(argument: str, value: Any, *, allow_minus_inf: bool = False) -> None:
    """Refuse nan and infinities, naming the first bad place. Traced values pass."""
    if is_traced(value):
        return
    array = np.asarray(value)
    bad = ~np.isfinite(array)
    if allow_minus_inf:
        bad &= ~np.isneginf(array)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DomainError(
            f"{argument}{list(place)} is {array[place]}; it must be finite"
            + (" (or -inf to forbid an action)" if allow_minus_inf else "")
        )


def check_number(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    allow_inf: bool = False,
    advice: str = "",
) -> None:
    """Refuse a number outside its range. Arrays are checked entry by entry, traced values pass."""
    if is_traced(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)):
        raise TypeError(f"{argument} is {value!r}; it must be a number")
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{argument} is {value!r}; it must be a real number")
    rules = []
    good = ~np.isnan(array) if allow_inf else np.isfinite(array)
    if above is not None:
        good &= array > above
        rules.append(f"greater than {above:g}")
    if at_least is not None:
        good &= array >= at_least
        rules.append(f"at least {at_least:g}")
    if at_most is not None:
        good &= array <= at_most
        rules.append(f"at most {at_most:g}")
    if below is not None:
        good &= array < below
        rules.append(f"below {below:g}")
    if not good.all():
        worst = array if array.ndim == 0 else array[~good][0]
        rule = " and ".join(rules) or "finite"
        raise DomainError(f"{argument} is {worst}; it must be {rule}" + (f". {advice}" if advice else ""))


def check_integer(argument: str, value: Any, *, at_least: int, advice: str = "") -> None:
    """Refuse anything but a whole Python number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} is {value!r}; it must be a whole number of at least {at_least}")
    if value < at_least:
        raise ConfigError(f"{argument} is {value}; it must be at least {at_least}" + (f". {advice}" if advice else ""))


def check_hyper(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse unknown hyper-parameters, with the nearest names."""
    check_names(f"{owner}: hyper", given, known)

"""Errors for the reader: what was given, what is allowed, what to do."""

from __future__ import annotations

import itertools
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.core
import numpy as np

from bandit_pft.words import nearest


class ConfigError(ValueError):
    """An option that does not exist or does not fit the others."""


class ShapeError(ValueError):
    """An array of the wrong shape; nothing is ever broadcast silently."""


class DomainError(ValueError):
    """A value outside the range in which the formula means something."""


class DataError(ValueError):
    """A data set without what the objective needs, or with rows that cannot be learnt from."""


class ResourceError(RuntimeError):
    """A request this machine cannot hold, refused before it runs."""


class NumericsError(RuntimeError):
    """A run that turned non-finite although the caller asked to stop there."""


class StoreError(RuntimeError):
    """A file of results that cannot be read, or does not belong here."""


def devices() -> list[Any]:
    """The devices of this process.

    Raises:
        ResourceError: JAX finds none of the kind that was asked for.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ResourceError(
            f"JAX found no device for JAX_PLATFORMS={asked!r}: install its plugin, as `pip install 'jax[cuda12]'`, or "
            f"set JAX_PLATFORMS=cpu. JAX says: {str(error) or type(error).__name__}"
        ) from None


def is_traced(*values: Any) -> bool:
    """Whether any value is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def shown(value: Any) -> str:
    """A value as an error shows it: in one line, and not the whole of an array."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_names(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name in `given` that is not in `known`."""
    known = tuple(known)
    for name in given:
        if name not in known:
            what = nearest(name, known) if known else "it takes none"
            raise ConfigError(f"{argument} has no {name!r}: {what}")


def check_choice(argument: str, value: Any, known: Iterable[str]) -> None:
    """Refuse anything but one of the names in `known`."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{argument} is {shown(value)}: {nearest(value, known)}")


def _is_real(dtype: Any) -> bool:
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (jax.numpy.floating, jax.numpy.integer))


def as_numpy(argument: str, value: Any) -> np.ndarray:
    """A rectangular array of whatever it is that it holds."""
    if np.ma.is_masked(value):
        raise DomainError(f"{argument} is a masked array, whose hidden entries would count: fill or drop them first")
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.extended):
        raise TypeError(f"{argument} holds {value.dtype}; it must hold real numbers")
    try:
        return np.asarray(value)
    except RuntimeError as error:  # A torch tensor that tracks gradients.
        raise TypeError(f"{argument} cannot be read as numbers: {error}") from error
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{argument} is not a rectangular array of numbers: {error}. "
            "Pad ragged rows and mask the padding with -inf logits."
        ) from error


def as_floats(argument: str, value: Any, *, shape: tuple[int | None, ...] | None = None) -> jax.Array:
    """A float array of exactly this shape (None: any size), finite or -inf-free as the caller checks."""
    array = value if isinstance(value, jax.Array) else as_numpy(argument, value)
    if not _is_real(array.dtype):
        what = f"{array.dtype}"
        if array.dtype == object and array.size:
            what = f"{type(np.ravel(array)[0]).__name__} (object)"
        raise TypeError(f"{argument} holds {what}; it must hold real numbers: pass an array or list of int or float")
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
    devices()
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    if isinstance(array, np.ndarray) and array.dtype.itemsize > dtype.itemsize:
        large = np.isfinite(array) & (np.abs(array) > np.finfo(dtype).max)
        if large.any():
            place = tuple(int(i) for i in np.argwhere(large)[0])
            raise DomainError(f"{argument}{list(place)} is {array[place]}, too large for {dtype}: change its unit")
    return jax.numpy.asarray(array, dtype=dtype)


def check_finite(argument: str, value: Any, *, allow_minus_inf: bool = False, advice: str = "") -> None:
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
            + (f": {advice}" if advice else "")
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
    """Refuse all but one number in its range, as compiled code will hold it. A traced number passes."""
    if type(value) not in (int, float):  # The rest costs more than the check.
        kind = value.dtype if isinstance(value, (np.generic, np.ndarray, jax.Array)) else type(value)
        if not _is_real(kind):
            raise TypeError(f"{argument} is {shown(value)}; it must be a real number")
        if np.shape(value):
            raise ShapeError(f"{argument} has shape {np.shape(value)}; it must be one number: vmap over several")
        if is_traced(value):
            return
    held = _held(float(value))
    good = not math.isnan(held) and (allow_inf or math.isfinite(held))
    rules = [] if good else ["finite"]
    for limit, holds, words in (
        (above, operator.gt, "greater than"),
        (at_least, operator.ge, "at least"),
        (at_most, operator.le, "at most"),
        (below, operator.lt, "below"),
    ):
        if limit is not None:
            good &= holds(held, limit)
            rules.append(f"{words} {limit:g}")
    if not good:
        rounded = "" if math.isnan(held) or held == float(value) else f", which compiled code holds as {held:g}"
        rule = " and ".join(rules)
        raise DomainError(f"{argument} is {value}{rounded}; it must be {rule}" + (f". {advice}" if advice else ""))


def _held(number: float) -> float:
    """What compiled code makes of a number: rounded to the array type, and 0 below the smallest normal one."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    limits = np.finfo(dtype)
    if abs(number) < float(limits.tiny):
        return 0.0
    if abs(number) > float(limits.max):
        return math.copysign(math.inf, number)
    return float(dtype.type(number))


def check_integer(argument: str, value: Any, *, at_least: int, advice: str = "") -> None:
    """Refuse anything but a whole Python number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} is {shown(value)}; it must be a whole number of at least {at_least}")
    if value < at_least:
        raise ConfigError(f"{argument} is {value}; it must be at least {at_least}" + (f". {advice}" if advice else ""))


def check_key(argument: str, key: Any) -> None:
    """Refuse what is not one JAX key. A traced key passes."""
    if not isinstance(key, jax.Array) or not jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        what = f"an array of {key.dtype}" if isinstance(key, (np.ndarray, jax.Array)) else shown(key)
        raise TypeError(f"{argument} is {what}; it must be a JAX key: jax.random.key(0)")
    if key.shape:
        raise ShapeError(f"{argument} has shape {key.shape}; it must be one key: vmap over several")


FLOOR = 256e6  # Bytes. Estimates and readings are no better than that.
UNCHECKED = "BANDIT_PFT_NO_MEMORY_CHECK"


def check_memory(what: str, needed: float, advice: str, device: Any = None) -> None:
    """Refuse what needs more bytes than are free, before they are asked for.

    Less than 256 MB is never refused, and nothing where the environment says BANDIT_PFT_NO_MEMORY_CHECK=1.

    Args:
        device: is to hold them; None: this machine.
    """
    if needed < FLOOR or os.environ.get(UNCHECKED, "") not in ("", "0"):
        return
    if needed > (free := available_memory(device)):
        needed, free = math.ceil(needed), max(0, math.floor(free))
        unit, name = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        sizes = ((f"{needed / unit:.{digits}f}", f"{free / unit:.{digits}f}") for digits in range(1, 10))
        needs, has = next((needs, has) for needs, has in sizes if needs != has)
        raise ResourceError(f"{what} needs {needs} {name} and may take {has} {name} of the free memory: {advice}, or "
                            f"set {UNCHECKED}=1 to try all the same")  # fmt: skip


def default_device() -> Any:
    """The device that computes what nobody has placed."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


def available_memory(device: Any = None) -> float:
    """Bytes that may be asked for: all that a device has left, or 70 % of what this machine has; inf if none says."""
    if device is not None and device.platform != "cpu":
        stats: dict[str, int] = {}
        with suppress(RuntimeError):  # Not every platform tells.
            stats = device.memory_stats() or {}
        limit, used = stats.get("bytes_limit", 0), stats.get("bytes_in_use", -1)
        return float(limit - used) if limit > 0 and used >= 0 else math.inf
    free = host_memory(Path("/"))
    if free == math.inf and hasattr(os, "sysconf"):
        free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 0.7 * free


# Control groups, by their controller's name: their place, the limit, the use, and what of the use is page cache, which
# the kernel takes back before it refuses anything.
CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
               ("total_inactive_file", "total_active_file")),
}  # fmt: skip


def host_memory(root: Path) -> float:
    """Bytes that a process may still use, as the kernel's files below `root` say; inf if they say nothing.

    Page cache counts as free. Of the control groups around the process, of version 2 or 1, the tightest decides.
    """
    free = [1024 * _figures(root / "proc/meminfo").get("MemAvailable", math.inf)]
    lines = re.findall(r"^\d+:(.*?):(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    inside = {name: path for controllers, path in lines for name in controllers.split(",")}
    for controller, (place, most, used, cached) in CGROUPS.items():
        # In a container the outermost is its own, and the path may be one that only the host has.
        path = inside.get(controller, "").strip("/").split("/")
        for group in itertools.accumulate(path, operator.truediv, initial=root / place):
            limit, parts = _figures(group / most).get("", math.inf), _figures(group / "memory.stat")
            taken = _figures(group / used).get("", 0.0) - sum(parts.get(name, 0.0) for name in cached)
            free.append(limit - max(taken, 0.0))
    return min(free)


def _figures(path: Path) -> dict[str, float]:
    """The lines `name figure` of one of the kernel's files, without what is no figure; one alone has the name ""."""
    found = re.findall(r"^(?:(\w+):?[ \t]+)?(\d+)\b", _text(path), re.MULTILINE)
    return {name: float(figure) for name, figure in found}


def _text(path: Path) -> str:
    """Of a file that need not be there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


TRACING = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError,
)  # fmt: skip


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say which of the user's own functions failed, and what helps where the cause is tracing.

    Args:
        what: such as "objective my_loss fails".
    """
    try:
        yield
    except (ConfigError, ShapeError, DomainError, ResourceError):
        raise  # Says already what to do.
    except TRACING as error:
        raise ConfigError(
            f"{what}: it asks for a number that is not known yet, as `if reward > 0` does: use jnp.where in the place "
            "of if, and jax.numpy in the place of numpy, float() and int()"
        ) from error
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error


def check_hyper(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse unknown hyper-parameters, with the nearest names."""
    check_names(f"{owner}: hyper", given, known)

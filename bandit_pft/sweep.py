"""Problems x methods x hyper-parameter grid x seeds, as few compiled programs, into one labelled data set.

Runs of one static structure share a program. They go through it in tiles of fixed width: the bits of a run depend on
the width of the batch it sits in, so the width is fixed by the shapes of problem and policy and never by what else is
in the sweep, on which device a tile runs, or in which order.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bandit_pft.errors import ConfigError, NumericsError, ShapeError, StoreError, check_integer, nearest
from bandit_pft.methods import NUMERIC, Method
from bandit_pft.metrics import UNITS
from bandit_pft.probes import Probe, standard_probe
from bandit_pft.problems import Problem
from bandit_pft.simulate import Plan, check_run, check_seed, guard, plan, run_jit, seed_keys

FORMAT = 1


class Row(NamedTuple):
    """One run: where it stands in the result, and what it is."""

    place: tuple[int, ...]
    problem: Problem
    method: Method
    seed: int


def sweep(
    problems: Problem | Sequence[Problem],
    methods: Method | Sequence[Method],
    *,
    seeds: Iterable[int],
    steps: int,
    probe: Probe = standard_probe,
    every: int = 1,
    grid: Mapping[str, Sequence[float]] | None = None,
    tile: int | None = None,
    progress: bool = False,
    store: str | Path | None = None,
    on_nonfinite: Literal["freeze", "raise"] = "freeze",
) -> xr.Dataset:
    """Run every method on every problem, for every seed and every point of the grid.

    Args:
        problems, methods: with different names.
        seeds: whole numbers from 0 to 2^32 - 1. All methods see the same randomness under one seed.
        steps, probe, every: as in `simulate`.
        grid: axis -> values. An axis is a number of `Method` (learning_rate, on_policy, reuse, label_noise, min_gap,
            threshold, memory) or a hyper-parameter that every method's objective has. Nothing else changes with it:
            on_policy = 0 with reuse = 1 draws fresh data from the reference at every step.
        tile: runs per compiled batch; part of a run's identity. Default: by the size of the problem alone.
        progress: show a bar with the time left.
        store: folder for finished tiles; the same call again goes on where it was interrupted.
        on_nonfinite: runs that turn non-finite are frozen and reported in one warning, or raise.

    Returns:
        Dimensions problem, algorithm (the methods' names; xarray keeps the word `method` of `.sel` for itself), the
        grid's axes, seed, step, and whatever the probe's values have. `step` counts gradient steps taken.
        `first_bad_step` is -1 for healthy runs. `reward_queries` counts the responses labelled so far (nan for exact
        data). Attributes hold versions, seeds and the configuration.

    Raises:
        ConfigError, DomainError, TypeError, ResourceError: before anything runs. StoreError: `store` belongs to
        another sweep. NumericsError: a run turned non-finite and `on_nonfinite="raise"`.
    """
    problem_list, method_list, seed_list, axes = _door(problems, methods, seeds, grid)
    if on_nonfinite not in ("freeze", "raise"):
        raise ConfigError(f"on_nonfinite is {on_nonfinite!r}: {nearest(on_nonfinite, ('freeze', 'raise'))}")
    if tile is not None:
        check_integer("tile", tile, at_least=1)
    shape = (len(problem_list), len(method_list), *(len(values) for values in axes.values()), len(seed_list))
    jobs = _tiles(problem_list, method_list, seed_list, axes, shape, steps, probe, every, tile)
    results = _run_all(jobs, partial(_run_tile, steps=steps, probe=probe, every=every), progress, steps, store)

    arrays: dict[str, np.ndarray] = {}
    first_bad = np.full(shape, -1, np.int32)
    for job, (record, bad) in zip(jobs, results, strict=True):
        for lane, row in enumerate(job.rows):
            first_bad[row.place] = bad[lane]
            for name, values in record.items():
                here = values[:, lane]
                if name not in arrays:
                    # nan stands where a probe had no such value, as mass near the peak for some problems.
                    blank = np.nan if here.dtype.kind == "f" else 0
                    arrays[name] = np.full((*shape, *here.shape), blank, here.dtype)
                array = arrays[name]
                if array.shape[len(shape) :] != here.shape:
                    raise ShapeError(f"{name} has shape {here.shape} here and {array.shape[len(shape):]} elsewhere: "
                                     "sweep problems of different size separately")  # fmt: skip
                array[row.place] = here
    data = _dataset(arrays, first_bad, problem_list, method_list, seed_list, axes, steps, every)
    _report(data, on_nonfinite)
    return data


def _door(
    problems: Any, methods: Any, seeds: Any, grid: Any
) -> tuple[list[Problem], list[Method], list[int], dict[str, list[float]]]:
    problem_list = [problems] if isinstance(problems, Problem) else list(problems)
    method_list = [methods] if isinstance(methods, Method) else list(methods)
    seed_list = list(seeds)
    axes = {str(name): [float(v) for v in np.atleast_1d(values)] for name, values in (grid or {}).items()}
    for argument, values in (("problems", problem_list), ("methods", method_list), ("seeds", seed_list), *axes.items()):
        if not values:
            raise ConfigError(f"{argument} is empty; a sweep needs at least one")
    for kind, items, wanted in (("problems", problem_list, Problem), ("methods", method_list, Method)):
        for item in items:
            if not isinstance(item, wanted):
                raise TypeError(f"{kind} holds {item!r}; every entry must be a {wanted.__name__}")
        names = [item.name for item in items]
        if len(set(names)) < len(names):
            raise ConfigError(f"{kind} are named {', '.join(map(repr, names))}: give each its own name=...")
    if len(set(seed_list)) < len(seed_list):
        raise ConfigError(f"seeds holds a value twice, which would make the spread too narrow: {seed_list}")
    for name in axes:
        for method in method_list:
            if name not in NUMERIC and name not in method.objective.hyper:
                known = (*NUMERIC, *method.objective.hyper)
                raise ConfigError(f"grid: {method.name} has no {name!r}: {nearest(name, known)}")
    for seed in seed_list:
        check_seed(seed)
    return problem_list, method_list, seed_list, axes


class Tile(NamedTuple):
    """Runs that share a compiled program and a collection period, at most `width` of them."""

    rows: tuple[Row, ...]
    width: int


def _tiles(
    problems: list[Problem], methods: list[Method], seeds: list[int], axes: dict[str, list[float]],
    shape: tuple[int, ...], steps: int, probe: Probe, every: int, tile: int | None,
) -> list[Tile]:  # fmt: skip
    one_key = jax.ShapeDtypeStruct((), seed_keys([0]).dtype)
    # Names must not split a program; NumPy leaves are what tiles are stacked from.
    plain_problems = [jax.tree.map(np.asarray, dataclasses.replace(problem, name="-")) for problem in problems]
    groups: dict[Any, list[Row]] = {}
    for p, m, *point in itertools.product(*(range(n) for n in shape[:-1])):
        method = dataclasses.replace(methods[m], name="-", **_at(methods[m], axes, point))
        key = (
            jax.tree.structure((plain_problems[p], method)),
            tuple(x.shape for x in jax.tree.leaves(plain_problems[p])),
            plan(problems[p], method),
        )
        rows = [Row((p, m, *point, s), plain_problems[p], method, seed) for s, seed in enumerate(seeds)]
        groups.setdefault(key, []).extend(rows)
    jobs, total = [], 0
    for rows in groups.values():
        named = methods[rows[0].place[1]], problems[rows[0].place[0]]
        check_run(named[1], named[0], steps, every)
        params = jax.tree.leaves(jax.eval_shape(rows[0].method.policy.init, one_key, rows[0].problem))
        size = sum(x.size for x in params)
        width = tile or (32 if size <= 4096 else max(1, min(8, 65536 // size)))
        tiles = [Tile(tuple(rows[i : i + width]), width) for i in range(0, len(rows), width)]
        shape_of = lambda x, rows=width: jax.ShapeDtypeStruct(
            (rows, *np.shape(x)), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
        )
        problem, method = jax.tree.map(shape_of, (rows[0].problem, rows[0].method))
        keys = jax.ShapeDtypeStruct((width,), one_key.dtype)
        whole = jax.ShapeDtypeStruct((), np.int32)
        settings = {"steps": steps, "probe": probe, "every": every, "axis": 0}
        result = run_jit.eval_shape(problem, method, keys, Plan(whole, whole), **settings)
        total += len(tiles)
        guard(result.record, total, named[1], named[0])
        jobs += tiles
    return jobs


def _at(method: Method, axes: dict[str, list[float]], point: Sequence[int]) -> dict[str, Any]:
    """What a point of the grid changes in a method."""
    values = {name: axes[name][i] for name, i in zip(axes, point, strict=True)}
    own = {name: value for name, value in values.items() if name in NUMERIC}
    hyper = {name: value for name, value in values.items() if name not in NUMERIC}
    return {**own, "hyper": {**method.hyper, **hyper}}


def _inputs(job: Tile) -> tuple[Any, ...]:
    """The tile's problems, methods and keys, stacked; a short tile repeats its first run."""
    rows = [*job.rows, *[job.rows[0]] * (job.width - len(job.rows))]
    stack = lambda *leaves: np.stack([np.asarray(x) for x in leaves])
    problem = jax.tree.map(stack, *(row.problem for row in rows))
    method = jax.tree.map(stack, *(row.method for row in rows))
    keys = seed_keys([row.seed for row in rows])
    return problem, method, keys, Plan(*map(np.int32, plan(rows[0].problem, rows[0].method)))


def _run_tile(job: Tile, device: Any, *, steps: int, probe: Probe, every: int) -> tuple[dict[str, np.ndarray], Any]:
    with jax.default_device(device):
        result = run_jit(*_inputs(job), steps=steps, probe=probe, every=every, axis=0)
        return {name: np.asarray(x) for name, x in result.record.items()}, np.asarray(result.first_bad_step)


def _run_all(jobs: list[Tile], body: Any, progress: bool, steps: int, store: str | Path | None) -> list[Any]:
    """Every tile's result, in order. Two threads per device compile and run side by side."""
    devices = jax.local_devices()
    folder = None if store is None else _open_store(Path(store), jobs, body)
    bar = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=sum(len(job.rows) for job in jobs) * max(steps, 1), unit="step", unit_scale=True)

    def one(number: int) -> Any:
        path = None if folder is None else folder / "tiles" / f"{number:06d}.npz"
        if path is not None and path.exists():
            result = _load_tile(path)
        else:
            result = body(jobs[number], devices[number % len(devices)])
            if path is not None:
                _save_tile(path, result)
        if bar is not None:
            bar.update(len(jobs[number].rows) * max(steps, 1))
        return result

    pool = ThreadPoolExecutor(max_workers=max(len(devices), min(os.cpu_count() or 1, 4)))
    try:
        return list(pool.map(one, range(len(jobs))))
    finally:
        pool.shutdown(cancel_futures=True)
        if bar is not None:
            bar.close()


# --- finished tiles on disk ----------------------------------------------------------------------------------------
def _open_store(folder: Path, jobs: list[Tile], body: Any) -> Path:
    """Create or reopen the folder; what it holds must come from the same programs and inputs."""
    digest = hashlib.sha256(json.dumps([FORMAT, jax.__version__]).encode())
    programs: set[Any] = set()
    for job in jobs:
        inputs = _inputs(job)
        for leaf in jax.tree.leaves(inputs):
            array = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            digest.update(np.asarray(array).tobytes())
        key = jax.tree.structure(inputs)
        if key not in programs:
            programs.add(key)
            digest.update(run_jit.lower(*inputs, **body.keywords, axis=0).as_text().encode())
    manifest = {"format": FORMAT, "sweep": digest.hexdigest(), "tiles": len(jobs), "jax": jax.__version__}
    path = folder / "manifest.json"
    try:
        (folder / "tiles").mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = json.loads(path.read_text())
            differing = [key for key, value in manifest.items() if found.get(key) != value]
            if differing:
                raise StoreError(
                    f"{folder} holds another sweep (different: {', '.join(differing)}): choose another folder, or "
                    "delete this one"
                )
        else:
            _write(path, json.dumps(manifest, indent=1).encode())
    except (OSError, json.JSONDecodeError) as error:
        raise StoreError(f"{folder} cannot be used as a store: {error}") from error
    return folder


def _save_tile(path: Path, result: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"record.{name}": x for name, x in result[0].items()}
    np.savez(buffer, first_bad_step=result[1], **arrays)
    _write(path, buffer.getvalue())


def _load_tile(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            record = {name.removeprefix("record."): file[name] for name in file if name != "first_bad_step"}
            return record, file["first_bad_step"]
    except Exception as error:
        raise StoreError(f"{path} is damaged ({error}): delete it and run again") from error


def _write(path: Path, content: bytes) -> None:
    """All of the file or nothing, also when the process is killed or the power fails."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# --- the result ----------------------------------------------------------------------------------------------------
def _dataset(
    arrays: dict[str, np.ndarray], first_bad: np.ndarray, problems: list[Problem], methods: list[Method],
    seeds: list[int], axes: dict[str, list[float]], steps: int, every: int,
) -> xr.Dataset:  # fmt: skip
    dims = ("problem", "algorithm", *axes, "seed")
    recorded = np.arange(0, steps + 1, every)
    variables: dict[str, Any] = {"first_bad_step": (dims, first_bad, {"units": "gradient steps, -1: healthy"})}
    for name, array in arrays.items():
        extra = [f"{name}_{i}" for i in range(array.ndim - len(dims) - 1)]
        if name == "log_prob":
            extra = ["action"]
        variables[name] = ((*dims, "step", *extra), array, {"units": UNITS.get(name, "")})
    variables["reward_queries"] = (
        ("problem", "algorithm", *axes, "step"),
        _queries(problems, methods, axes, recorded),
        {"units": UNITS["reward_queries"]},
    )
    coords: dict[str, Any] = {
        "problem": [problem.name for problem in problems],
        "algorithm": [method.name for method in methods],
        "family": ("algorithm", [method.objective.family for method in methods]),
        **axes,
        "seed": np.asarray(seeds, np.int64),
        "step": ("step", recorded, {"units": "gradient steps"}),
    }
    attrs = {
        "title": "bandit_pft sweep",
        "versions": json.dumps(versions()),
        "platform": f"{platform.platform()} {jax.default_backend()}",
        "configuration": json.dumps({"methods": [describe(m) for m in methods], "steps": steps, "every": every}),
    }
    return xr.Dataset(variables, coords, attrs)


def _queries(problems: list[Problem], methods: list[Method], axes: dict[str, list[float]], steps: Any) -> np.ndarray:
    out = np.full((len(problems), len(methods), *(len(v) for v in axes.values()), len(steps)), np.nan)
    for p, m, *point in itertools.product(*(range(n) for n in out.shape[:-1])):
        method = methods[m]
        if method.data == "exact":
            continue
        method = dataclasses.replace(method, **_at(method, axes, point))
        each = (method.prompts or problems[p].num_contexts) * method.num_responses
        out[(p, m, *point)] = np.ceil(steps / plan(problems[p], method).period) * each
    return out


@functools.cache
def versions() -> dict[str, str]:
    """Of what decides a result's bits."""
    names = ("bandit-pft", "jax", "jaxlib", "numpy", "optax", "xarray")

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"  # A checkout that is used in place.

    return {name: version(name) for name in names}


def describe(method: Method) -> dict[str, Any]:
    """A method as plain JSON; what is not a number appears by its name."""
    objective = method.objective
    plain: dict[str, Any] = {
        name: None if (value := getattr(method, name)) is None else str(value) if math.isinf(value) else float(value)
        for name in NUMERIC
    }
    return plain | {
        "name": method.name,
        "objective": objective.name,
        "family": objective.family,
        "hyper": {k: float(v) for k, v in {**objective.hyper, **method.hyper}.items()},
        **{k: getattr(method, k) for k in ("num_responses", "prompts", "minibatch", "data", "proxy", "reference")},
        "policy": method.policy.name,
        "optimizer": getattr(method.optimizer.update, "__qualname__", "?").split(".")[0],
    }


def _report(data: xr.Dataset, on_nonfinite: str) -> None:
    steps = data.first_bad_step.values
    if (steps < 0).all():
        return
    places = np.argwhere(steps >= 0)
    place = tuple(min(places, key=lambda place: steps[tuple(place)]))
    dims = [str(dim) for dim in data.first_bad_step.dims]
    where = ", ".join(f"{dim}={data[dim].values[i]}" for dim, i in zip(dims, place, strict=True))
    count, first, total = len(places), steps[place], steps.size
    line = f"{count} of {total} runs diverged (first: {where}, step {first})"
    if on_nonfinite == "raise":
        raise NumericsError(f"{line}: lower the learning rate")
    warnings.warn(f"{line}; they were frozen there", stacklevel=3)


def save(data: xr.Dataset, path: str | Path) -> Path:
    """Write results as netCDF; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> xr.Dataset:
    """Results written by `save`.

    Raises:
        StoreError: no such file, or one that is not whole.
    """
    try:
        with xr.open_dataset(Path(path), engine="h5netcdf") as data:
            return data.load()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} cannot be read as a result of bandit_pft: {error}") from error

"""Problems x methods x hyper-parameter grid x seeds, as few compiled programs, into one labelled data set.

Runs of one static structure share a program. They go through it in tiles of fixed width: the bits of a run depend on
the width of the batch it sits in, so the width is fixed by the shapes of problem and policy and never by what else is
in the sweep, on which device a tile runs, in which process, in which order, or in how many pieces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr

from bandit_pft import store as files
from bandit_pft.engine.loop import begin_tile, go_tile
from bandit_pft.engine.state import OnNonfinite, Plan, Progress, collection_period, plan
from bandit_pft.errors import (
    ConfigError,
    ResourceError,
    ShapeError,
    StoreError,
    check_integer,
    check_number,
    default_device,
    devices,
    nearest,
    shown,
)
from bandit_pft.kernels import Compiled, on_cpu
from bandit_pft.methods import ADAM, NUMERIC, SGD, Method
from bandit_pft.metrics import UNITS
from bandit_pft.policies import Policy
from bandit_pft.probes import Probe, standard_probe
from bandit_pft.problems import Problem
from bandit_pft.simulate import (
    check_probe,
    check_run,
    check_seed,
    explained,
    guard,
    guard_program,
    report,
    seed_keys,
)
from bandit_pft.store import Store, Worker

MOST_RUNS = 1_000_000
OWN_LABELS = ("problem", "algorithm", "family", "seed", "step", "action", "rank")
DIMS = {"log_prob": ["action"], "top_action": ["rank"], "top_log_prob": ["rank"]}
SEGMENT = 0.5  # Seconds between two looks at whether to stop.
CHECKPOINT = 60.0  # Seconds of work that a killed writer may lose, about.


begin_jit = Compiled(begin_tile, static_argnames=("steps", "probe", "every"))
go_jit = Compiled(go_tile, static_argnames=("probe", "every"))
go_many_jit = Compiled(go_tile, many=True, static_argnames=("probe", "every"))


def going(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a program that goes on is compiled for."""
    return {name: settings[name] for name in ("probe", "every")}


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
    on_nonfinite: OnNonfinite = "freeze",
    store: str | Path | None = None,
    worker: str | tuple[int, int] = "0/1",
    strict: bool = False,
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
        on_nonfinite: as in `simulate`; all runs are reported in one line.
        store: folder for finished tiles. Interrupted in any way, the same call goes on and ends with the same bits.
        worker: "k/n" makes this call the k-th of n that share the store: it does every n-th tile. "auto" takes both
            numbers from `join_processes`, called before.
        strict: refuse to go on in a store that was begun with other versions or on another machine; otherwise warn.

    Returns:
        Dimensions problem, algorithm (the methods' names; xarray keeps the word `method` of `.sel` for itself), the
        grid's axes, seed, step, and whatever the probe's values have. `step` counts gradient steps taken.
        `first_bad_step` is -1 for healthy runs. `reward_queries` counts the responses labelled so far (nan for exact
        data). Attributes hold configuration and provenance. With a worker among several, runs of tiles that are not
        finished are nan, and the attribute `tiles` says how many there are.

    Raises:
        ConfigError, DomainError, TypeError, ResourceError: before anything runs. StoreError: `store` belongs to
        another sweep or writer, is damaged or full. NumericsError: a run turned non-finite and
        `on_nonfinite="raise"`. KeyboardInterrupt: on Ctrl-C, saying how to go on; SystemExit: on SIGTERM, likewise.
    """
    problem_list, method_list, seed_list, axes = _door(problems, methods, seeds, grid)
    here = Worker.of(worker)
    check_probe(probe)
    if not (store is None or isinstance(store, (str, Path))):
        raise TypeError(f"store is {shown(store)}; it must be the path of a folder")
    if here.count > 1 and store is None:
        raise ConfigError(f"worker is {worker!r} without a store: give all workers the same folder, store=...")
    if tile is not None:
        check_integer("tile", tile, at_least=1)
    shape = tuple(map(len, (problem_list, method_list, *axes.values(), seed_list)))
    if math.prod(shape) > MOST_RUNS:
        raise ResourceError(f"the sweep has {math.prod(shape):,} runs ({' x '.join(map(str, shape))}), and one takes "
                            f"at most {MOST_RUNS:,}: use fewer seeds or grid values, or several sweeps")  # fmt: skip
    settings = {"steps": steps, "probe": probe, "every": every}
    variants = _variants(method_list, axes)
    tiles, room = _tiles(problem_list, method_list, variants, seed_list, axes, settings, tile, on_nonfinite)
    frame = _frame(problem_list, method_list, variants, seed_list, axes, steps, every)
    configuration = _configuration(problem_list, method_list, frame, tiles, settings, on_nonfinite)
    if store is None:
        results = _run_all(tiles, settings, range(len(tiles)), None, progress)
        data = _dataset(frame, results, configuration, files.provenance())
    else:
        configuration["programs"] = _digests(tiles, settings)
        manifest = {"tiles": len(tiles), "configuration": configuration, "frame": frame}
        warn = _refuse if strict else lambda line: warnings.warn(line, stacklevel=6)
        with files.opened(Path(store), manifest, here, room=room, warn=warn) as opened:
            _run_all(tiles, settings, range(here.index, len(tiles), here.count), opened, progress)
            data = _loaded(opened)
    bad = data["first_bad_step"]
    report(bad.values, [str(dim) for dim in bad.dims], [list(data[dim].values) for dim in bad.dims], on_nonfinite)
    return data


def _refuse(line: str) -> None:
    raise StoreError(f"{line}. Choose another folder, or go on with strict=False")


def _listed(argument: str, values: Any, example: str) -> list[Any]:
    """A list of what can be listed, without walking through what nobody could run."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{argument} is {shown(values)}; it must be a list, such as {example}")
    found = list(itertools.islice(values, MOST_RUNS + 1))
    if len(found) > MOST_RUNS:
        raise ResourceError(f"{argument} holds more than {MOST_RUNS:,} values, and a sweep takes at most {MOST_RUNS:,} "
                            "runs: use fewer, or several sweeps")  # fmt: skip
    return found


def _door(
    problems: Any, methods: Any, seeds: Any, grid: Any
) -> tuple[list[Problem], list[Method], list[int], dict[str, list[float]]]:
    problem_list = (
        [problems] if isinstance(problems, Problem) else _listed("problems", problems, "[paper_bandit('R4')]")
    )
    method_list = [methods] if isinstance(methods, Method) else _listed("methods", methods, "[Method('dpo')]")
    seed_list = _listed("seeds", seeds, "range(5)")
    if not isinstance(grid or {}, Mapping):
        raise TypeError(f"grid is {shown(grid)}; it must be a dictionary such as {{'beta': [0.1, 1.0]}}")
    axes: dict[str, list[float]] = {}
    for name, values in (grid or {}).items():
        given = [values] if np.ndim(values) == 0 else _listed(f"grid: {name}", values, "[0.1, 1.0]")
        for value in given:
            check_number(f"grid: {name}", value, allow_inf=True)
        axes[str(name)] = [float(value) for value in given]
        if len(set(axes[str(name)])) < len(given):
            raise ConfigError(f"grid: {name} holds a value twice: {shown(given)}")
    for argument, values in (("problems", problem_list), ("methods", method_list), ("seeds", seed_list), *axes.items()):
        if not values:
            raise ConfigError(f"{argument} is empty; a sweep needs at least one")
    for seed in seed_list:
        check_seed(seed)
    for kind, items, wanted in (("problems", problem_list, Problem), ("methods", method_list, Method)):
        for item in items:
            if not isinstance(item, wanted):
                raise TypeError(f"{kind} holds {shown(item)}; every entry must be a {wanted.__name__}")
        names = [item.name for item in items]
        if len(set(names)) < len(names):
            raise ConfigError(f"{kind} are named {', '.join(map(repr, names))}: give each its own name=...")
    if len(set(seed_list)) < len(seed_list):
        raise ConfigError(f"seeds holds a value twice, which would make the spread too narrow: {seed_list}")
    for name in axes:
        if name in OWN_LABELS:
            raise ConfigError(f"grid has an axis {name!r}, which results use themselves: rename that hyper-parameter")
        for method in method_list:
            if name not in NUMERIC and name not in method.objective.hyper:
                known = (*NUMERIC, *method.objective.hyper)
                raise ConfigError(f"grid: {method.name} has no {name!r}: {nearest(name, known)}")
    return problem_list, method_list, seed_list, axes


class Tile(NamedTuple):
    """Runs that share a compiled program and a collection period, at most `width` of them."""

    rows: tuple[Row, ...]
    width: int
    plan: Plan
    program: str  # Named after the first run that it is for.

    @property
    def go(self) -> Any:
        """The program that goes on."""
        return go_jit if self.width == 1 else go_many_jit

    def inputs(self) -> tuple[Any, ...]:
        """The tile's problems, methods and keys, stacked, and their plan; a short tile repeats its first run."""
        rows = [*self.rows, *[self.rows[0]] * (self.width - len(self.rows))]
        problem, method = _side_by_side([row.problem for row in rows]), _side_by_side([row.method for row in rows])
        return problem, method, seed_keys([row.seed for row in rows]), self.plan

    def traced(self, settings: dict[str, Any]) -> tuple[Any, Any]:
        """The programs that begin and go on, for the shapes of `inputs`; traced once for each default device."""
        structure, shapes = _shape((self.rows[0].problem, self.rows[0].method))
        asked = tuple(settings.items())
        return _traced(begin_jit, self.go, structure, shapes, self.width, self.plan, asked, default_device())


@functools.lru_cache(maxsize=128)
def _traced(
    begin: Any, go: Any, structure: Any, shapes: tuple[Any, ...], width: int, plan: Plan, settings: tuple[Any, ...],
    device: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """JAX keeps programs too, but to ask it takes as long as a short run."""
    problem, method = jax.tree.unflatten(
        structure, [jax.ShapeDtypeStruct((width, *shape), dtype) for shape, dtype in shapes]
    )
    keys = jax.ShapeDtypeStruct((width,), seed_keys([0]).dtype)
    begun = begin.trace(problem, method, keys, plan, **dict(settings))
    return begun, go.trace(problem, method, plan, *begun.out_info, np.int32(0), **going(dict(settings)))


def _tiles(
    problems: list[Problem], methods: list[Method], variants: dict[tuple[int, ...], Method], seeds: list[int],
    axes: dict[str, list[float]], settings: dict[str, Any], tile: int | None, on_nonfinite: OnNonfinite,
) -> tuple[list[Tile], float]:  # fmt: skip
    """All runs, sorted into tiles, and the bytes that their results take on disk. Nothing is compiled."""
    # Names must not split a program; NumPy leaves are what tiles are stacked from.
    plain_problems = [jax.tree.map(np.asarray, dataclasses.replace(problem, name="-")) for problem in problems]
    groups: dict[Any, tuple[Plan, list[Row]]] = {}
    for p, (place, method) in itertools.product(range(len(problems)), variants.items()):
        its = plan(plain_problems[p], method, on_nonfinite)
        key = (
            jax.tree.structure((plain_problems[p], method)),
            tuple(x.shape for x in jax.tree.leaves(plain_problems[p])),
            (int(its.period), its.collects, its.regime, its.forbids),
        )
        rows = [Row((p, *place, s), plain_problems[p], method, seed) for s, seed in enumerate(seeds)]
        groups.setdefault(key, (its, []))[1].extend(rows)
    tiles: list[Tile] = []
    shapes: dict[str, tuple[int, ...]] = {}
    room = 0.0
    for its, rows in groups.values():
        p, m, *point = rows[0].place[:-1]
        problem, method = problems[p], methods[m]
        check_run(problem, method, settings["steps"], settings["every"], on_nonfinite)
        size = _size(rows[0].method.policy, *_shape(rows[0].problem))
        alone = settings["every"] > 1 and its.few and on_cpu()
        width = tile or (1 if alone else 32 if size <= 4096 else max(1, min(8, 204_800 // size)))
        at_point = [f"{axis}={values[i]!r}" for (axis, values), i in zip(axes.items(), point, strict=True)]
        program = "/".join([problem.name, method.name, *at_point])
        its = dataclasses.replace(its, few=its.few and width == 1)
        more = [Tile(tuple(rows[i : i + width]), width, its, program) for i in range(0, len(rows), width)]
        tiles += more
        with jax.default_device(devices()[0]):
            _, begun = more[0].traced(settings)[0].out_info
        guard(begun.record, len(tiles), problem, method)
        room += len(more) * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(begun))
        for name, x in begun.record.items():
            if shapes.setdefault(name, x.shape[2:]) != x.shape[2:]:
                raise ShapeError(f"{name} has shape {x.shape[2:]} for {problem.name} and {shapes[name]} elsewhere: "
                                 "sweep problems of different size separately")  # fmt: skip
    return tiles, room


def _shape(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(x), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)) for x in leaves)


@functools.lru_cache(maxsize=128)
def _size(policy: Policy, structure: Any, shapes: tuple[Any, ...]) -> int:
    """How many numbers a policy learns on problems of these shapes."""
    problem = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*x) for x in shapes])
    key = jax.ShapeDtypeStruct((), seed_keys([0]).dtype)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(policy.init, key, problem)))


def _side_by_side(trees: list[Any]) -> Any:
    """The trees' leaves stacked. A tile has few different trees, and stacking takes as long as a short run."""
    different = {id(tree): tree for tree in trees}
    if len(different) == 1:
        return jax.tree.map(lambda x: np.broadcast_to(x, (len(trees), *np.shape(x))), trees[0])
    place = {name: i for i, name in enumerate(different)}
    index = np.asarray([place[id(tree)] for tree in trees])
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves])[index], *different.values())


def _variants(methods: list[Method], axes: dict[str, list[float]]) -> dict[tuple[int, ...], Method]:
    """Every method at every point of the grid, by the places of both; without names, which must not split a program."""
    found = {}
    for m, *point in itertools.product(range(len(methods)), *(range(len(values)) for values in axes.values())):
        values = {name: axes[name][i] for name, i in zip(axes, point, strict=True)}
        own = {name: value for name, value in values.items() if name in NUMERIC}
        hyper = {name: value for name, value in values.items() if name not in NUMERIC}
        changed = {**own, "hyper": {**methods[m].hyper, **hyper}}
        found[(m, *point)] = dataclasses.replace(methods[m], name="-", **changed)
    return found


def _digests(tiles: list[Tile], settings: dict[str, Any]) -> dict[str, str]:
    """What each program computes, so that a changed objective is not taken for the one that was begun."""
    found: dict[str, str] = {}
    for tile in tiles:
        if tile.program not in found:
            with jax.default_device(devices()[0]):
                begun, going = tile.traced(settings)
            text = begun.lower().as_text() + going.lower().as_text()
            found[tile.program] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


# --- running ---------------------------------------------------------------------------------------------------------
def _run_all(
    tiles: list[Tile], settings: dict[str, Any], numbers: range, store: Store | None, progress: bool
) -> list[dict[str, np.ndarray]]:
    """Run the tiles of these numbers; the results in order, unless a store holds them.

    Threads compile and run tiles side by side, and look every so often whether to stop.
    """
    places = devices()
    todo = [n for n in numbers if store is None or not store.path(n).exists()]
    threads = max(1, min(len(todo), max(len(places), min(os.cpu_count() or 1, 4))))
    # The devices of a CPU share its memory.
    at_once = threads if places[0].platform == "cpu" else math.ceil(threads / len(places))
    stop = threading.Event()
    total = sum(len(tiles[n].rows) for n in numbers) * max(settings["steps"], 1)
    with _bar(total if progress else None) as tick, _terminable(store is not None):
        tick(total - sum(len(tiles[n].rows) for n in todo) * max(settings["steps"], 1))

        compiled: dict[str, Future[None]] = {}
        pace: dict[str, int] = {}

        def ready(number: int) -> None:
            """Compile, and compare what the compiler says it needs with what there is."""
            tile = tiles[number]
            with jax.default_device(places[number % len(places)]), explained(tile.program):
                for traced in tile.traced(settings):
                    guard_program(traced, at_once, tile.program)

        def one(number: int) -> dict[str, np.ndarray]:
            compiled[tiles[number].program].result()
            with jax.default_device(places[number % len(places)]), explained(tiles[number].program):
                return _run_tile(number, tiles[number], settings, store, stop, tick, pace)

        pool = ThreadPoolExecutor(max_workers=threads)
        try:
            for n in todo:
                if tiles[n].program not in compiled:
                    compiled[tiles[n].program] = pool.submit(ready, n)
            return [future.result() for future in [pool.submit(one, n) for n in todo]]
        except (KeyboardInterrupt, SystemExit) as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if store is None:
                how = "give sweep a store=... to be able to go on"
            else:
                how = (f"{len(store.done())} of {store.tiles} tiles are finished in {store.folder}, and the same again "
                       "goes on from there")  # fmt: skip
            if isinstance(error, SystemExit):
                print(f"stopped: {how}", file=sys.stderr)
                raise
            raise KeyboardInterrupt(f"stopped: {how}") from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _run_tile(
    number: int, tile: Tile, settings: dict[str, Any], store: Store | None, stop: threading.Event,
    tick: Callable[[float], None], pace: dict[str, int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Segments short enough to be stopped between them; their number and length change no bit of the result.

    `pace` holds the rows of a segment, by program.
    """
    problem, method, keys, its = tile.inputs()
    known, progress = begin_jit(problem, method, keys, its, **settings)
    rows, each = settings["steps"] // settings["every"] + 1, len(tile.rows) * max(settings["steps"], 1)
    if store is not None and store.path(number, part=True).exists():
        progress = _restored(store, number, progress)
    done, saved = int(progress.row), time.monotonic()
    tick(each * done / rows)
    while done < rows:
        if stop.is_set() or time.monotonic() - saved > CHECKPOINT:
            if store is not None and done:
                store.write(number, _leaves(progress), part=True)
            if stop.is_set():
                return {}
            saved = time.monotonic()
        until, begun = min(rows, done + pace.get(tile.program, 1)), time.monotonic()
        progress = tile.go(problem, method, its, known, progress, np.int32(until), **going(settings))
        jax.block_until_ready(progress)
        tick(each * (until - done) / rows)
        took = max(time.monotonic() - begun, 1e-6)
        pace[tile.program] = max(1, int((until - done) * min(16, SEGMENT / took)))
        done = until
    lanes = len(tile.rows)
    result = {
        "place": np.asarray([row.place for row in tile.rows], np.int32),
        "first_bad_step": np.asarray(progress.first_bad_step)[:lanes],
        **{f"record.{name}": np.asarray(x)[:lanes] for name, x in progress.record.items()},
    }
    if store is None:
        return result
    store.write(number, result)
    return {}


def _leaves(progress: Progress) -> dict[str, np.ndarray]:
    return {f"{i:04d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(progress))}


def _restored(store: Store, number: int, progress: Progress) -> Progress:
    """The checkpoint in the form of a fresh start."""
    fresh, found = jax.tree.leaves(progress), store.read(number, part=True)
    try:
        kept = [found[f"{i:04d}"] for i in range(len(fresh))]
        alike = all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(kept, fresh, strict=True))
    except KeyError:
        alike = False
    if not alike or len(found) != len(fresh):
        raise StoreError(f"{store.path(number, part=True)} is not a checkpoint of this sweep: delete it and run again")
    return jax.tree.unflatten(jax.tree.structure(progress), kept)


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[float], Any]]:
    if total is None:
        yield lambda steps: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="step", unit_scale=True) as bar:
        yield bar.update


@contextlib.contextmanager
def _terminable(wanted: bool) -> Iterator[None]:
    """Make SIGTERM end this program in good order, unless somebody handles it already."""
    main = threading.current_thread() is threading.main_thread()
    if not (wanted and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- the result ----------------------------------------------------------------------------------------------------
def _frame(
    problems: list[Problem], methods: list[Method], variants: dict[tuple[int, ...], Method], seeds: list[int],
    axes: dict[str, list[float]], steps: int, every: int,
) -> dict[str, Any]:  # fmt: skip
    """The labels of a result as plain JSON: all that is needed to put tiles together."""
    labelled = np.full((len(problems), len(methods), *(len(v) for v in axes.values()), 2), None)
    for p, (place, method) in itertools.product(range(len(problems)), variants.items()):
        if method.data != "exact":
            each = (method.prompts or problems[p].num_contexts) * method.num_responses
            labelled[(p, *place)] = collection_period(problems[p], method), each
    return files.as_json({
        "problem": [problem.name for problem in problems],
        "algorithm": [method.name for method in methods],
        "family": [method.objective.family for method in methods],
        "axes": axes,
        "seed": [int(seed) for seed in seeds],
        "steps": steps,
        "every": every,
        "labelled": labelled.tolist(),
    })  # fmt: skip


def _dataset(
    frame: dict[str, Any], tiles: Iterable[dict[str, np.ndarray]], configuration: dict[str, Any],
    provenance: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    dims = ("problem", "algorithm", *frame["axes"], "seed")
    shape = tuple(len(frame["axes"].get(dim) or frame[dim]) for dim in dims)
    first_bad = np.full(shape, -1, np.int32)
    arrays: dict[str, np.ndarray] = {}
    for tile in tiles:
        place = tuple(tile["place"].T)
        first_bad[place] = tile["first_bad_step"]
        for name, values in tile.items():
            if name.startswith("record."):
                name = name.removeprefix("record.")
                if name not in arrays:
                    # nan stands where a probe had no such value, as mass near the peak for some problems.
                    blank = np.nan if values.dtype.kind == "f" else 0
                    arrays[name] = np.full((*shape, *values.shape[1:]), blank, values.dtype)
                arrays[name][place] = values
    recorded = np.arange(0, frame["steps"] + 1, frame["every"])
    variables: dict[str, Any] = {"first_bad_step": (dims, first_bad, {"units": "gradient steps, -1: healthy"})}
    for name, array in arrays.items():
        extra = [f"{name}_{i}" for i in range(array.ndim - len(dims) - 1)]
        extra = DIMS.get(name, extra)
        variables[name] = ((*dims, "step", *extra), array, {"units": UNITS.get(name, "")})
    period, each = np.moveaxis(np.asarray(frame["labelled"], float)[..., None], -2, 0)
    variables["reward_queries"] = (
        (*dims[:-1], "step"), np.ceil(recorded / period) * each, {"units": UNITS["reward_queries"]},
    )  # fmt: skip
    coords: dict[str, Any] = {
        "problem": frame["problem"],
        "algorithm": frame["algorithm"],
        "family": ("algorithm", frame["family"]),
        **{name: [float(v) for v in values] for name, values in frame["axes"].items()},
        "seed": np.asarray(frame["seed"], np.int64),
        "step": ("step", recorded, {"units": "gradient steps"}),
    }
    attrs = {
        "title": "bandit_pft sweep",
        "versions": json.dumps(provenance["versions"]),
        "provenance": json.dumps(provenance),
        "configuration": json.dumps(configuration),
    }
    return xr.Dataset(variables, coords, attrs)


def _loaded(store: Store) -> xr.Dataset:
    """What a store holds by now."""
    manifest, done = store.manifest, store.done()
    data = _dataset(manifest["frame"], map(store.read, done), manifest["configuration"], manifest["provenance"])
    if len(done) < store.tiles:
        data.attrs["tiles"] = f"{len(done)} of {store.tiles}"
    return data


def _configuration(
    problems: list[Problem], methods: list[Method], frame: dict[str, Any], tiles: list[Tile], settings: dict[str, Any],
    on_nonfinite: OnNonfinite,
) -> dict[str, Any]:  # fmt: skip
    """What decides the numbers, as plain JSON, by names that a message can use."""

    def digest(problem: Problem) -> str:
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(problem):
            found.update(str(np.shape(leaf)).encode())
            found.update(np.asarray(leaf).ravel().view(np.uint8).data)
        return found.hexdigest()[:16]

    probe = settings["probe"]
    return files.as_json({
        "problems": {problem.name: digest(problem) for problem in problems},
        "methods": {method.name: describe(method) for method in methods},
        **{name: frame[name] for name in ("axes", "seed", "steps", "every")},
        "probe": f"{getattr(probe, '__module__', '?')}.{getattr(probe, '__qualname__', '?')}",
        "tile": sorted({tile.width for tile in tiles}),
        "on_nonfinite": on_nonfinite,
        "dtype": str(jax.dtypes.canonicalize_dtype(np.float64)),
    })  # fmt: skip


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
        "optimizer": {id(SGD): "sgd", id(ADAM): "adam"}.get(id(method.optimizer), "of your own"),
    }


def save(data: xr.Dataset, path: str | Path) -> Path:
    """Write results as netCDF, or, where the name ends in .parquet, one line per run with its last values.

    The file appears whole or not at all: its bytes are made in memory, since HDF5 cannot close a file that it could
    not write and ends the process.

    Raises:
        ConfigError: another ending. StoreError: it cannot be written.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        try:
            content = summary_table(data).to_parquet()
        except ImportError as error:
            raise ConfigError("parquet needs one more library: pip install pyarrow") from error
    elif path.suffix == ".nc":
        content = data.to_netcdf(engine="h5netcdf")
    else:
        raise ConfigError(f"path is {str(path)!r}; end it in .nc (everything), or .parquet (last values of each run)")
    files.write_file(path, content)
    return path


def summary_table(data: xr.Dataset) -> pd.DataFrame:
    """One line per run: its labels, `first_bad_step`, and the last value of each metric."""
    last = data.isel(step=-1)
    runs = set(data["first_bad_step"].dims)
    scalar = [name for name, array in last.data_vars.items() if set(array.dims) <= runs]
    return last[scalar].to_dataframe().reset_index()


def load(path: str | Path, *, partial: bool = False) -> xr.Dataset:
    """Results written by `save` as netCDF, or those of a sweep's store.

    Args:
        partial: take a store whose sweep has not ended; missing runs are nan, and the attribute `tiles` says how many
            are there.

    Raises:
        StoreError: nothing there, not whole, or tiles are missing and `partial` is False.
    """
    path = Path(path)
    if path.is_dir():
        data = _loaded(Store(path, files.read_manifest(path)))
        if "tiles" in data.attrs and not partial:
            raise StoreError(f"{path} holds {data.attrs['tiles']} tiles: run the same again to finish the sweep, or "
                             "take what there is with partial=True")  # fmt: skip
        return data
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return data.load()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} cannot be read as a result of bandit_pft: {error}") from error

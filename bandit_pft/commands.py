"""What the commands do that compute or start something; `listing` has those that tell what there is."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from bandit_pft import claims, explorer, listing, paper, plots
from bandit_pft.errors import (
    ConfigError,
    DomainError,
    NumericsError,
    ResourceError,
    ShapeError,
    StoreError,
    check_names,
)
from bandit_pft.methods import ADAM, SGD, Method
from bandit_pft.objectives import get_objective
from bandit_pft.objectives.core import Objective
from bandit_pft.policies import Policy, context_network, factorised, tabular, tabular_shared, transformer
from bandit_pft.probes import distribution_probe, standard_probe
from bandit_pft.problems import Problem
from bandit_pft.sharding import join_processes
from bandit_pft.simulate import keep_programs
from bandit_pft.store import Worker, write_file
from bandit_pft.sweep import save, sweep
from bandit_pft.words import fitted, terminal_width

WRONG_INPUT = (ConfigError, DomainError, ShapeError, ResourceError, NumericsError, StoreError)


def perform(options: argparse.Namespace) -> int:
    """Run the command that was parsed; the exit code. Wrong input and warnings become one line each."""
    keep_programs()
    if "" not in sys.path:  # As for `python -m`: module:function may lie in the working folder.
        sys.path.append("")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            code = COMMANDS[options.command](options)
            sys.stdout.flush()
            return code
        except WRONG_INPUT as error:
            print(f"bandit-pft: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # The reader, such as `head`, has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            print(f"bandit-pft: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2


def _say(text: str, indent: int = 0) -> None:
    print(fitted(text, terminal_width(), indent))


def _check_folders(*folders: Path) -> None:
    """Refuse a place where nothing can be written, before anything is computed for it. Nothing is left there."""
    for folder in folders:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ConfigError(f"{there} is a file; name a folder")
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise ConfigError(f"{there} cannot be written to ({error.strerror}); name another folder") from error


# --- running ---------------------------------------------------------------------------------------------------------
def _demo(options: argparse.Namespace) -> int:
    preset = paper.preset_named("headline")
    _check_folders(options.out, options.results)
    ds = paper.run_preset("headline", seeds=options.seeds, steps=options.steps, progress=sys.stderr.isatty())
    _say(preset.claim)
    return _report(ds, options.out, "headline", preset.problems, options.results)


def _run(options: argparse.Namespace) -> int:
    options.objectives, options.grid = _chosen(options), []
    _check_folders(options.out)
    return _compare(options, "_".join(get_objective(name).name for name in options.objectives[:4]))


def _chosen(options: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys((*options.objectives, *options.more)))
    if not names:
        raise ConfigError("no objective: name one or more of `bandit-pft list --brief`, or module:function")
    return names


def _sweep(options: argparse.Namespace) -> int:
    if bool(options.preset) == bool(options.objectives or options.more):
        raise ConfigError("say either --preset NAME or one objective or more")
    if options.worker == "auto":
        join_processes()
    store, worker = options.out / "runs", Worker.of(options.worker)
    if store.exists() and not options.resume and worker.count == 1:
        raise StoreError(f"{store} exists: add --resume to go on, or choose another folder with --out")
    _check_folders(options.out)
    keep = {"store": store, "worker": worker, "strict": options.strict}
    if options.preset:
        preset = paper.preset_named(options.preset)
        ds = paper.run_preset(options.preset, seeds=options.seeds, steps=options.steps, progress=True, **keep)
        return _report(ds, options.out, options.preset, preset.problems, options.out)
    options.objectives = _chosen(options)
    return _compare(options, "sweep", **keep)


def _compare(options: argparse.Namespace, name: str, **keep: Any) -> int:
    problems = [paper.problem_named(problem, options.contexts) for problem in dict.fromkeys(options.problems)]
    objectives = [get_objective(objective) for objective in options.objectives]
    hyper = _hyper(objectives, _numbers("--hyper", options.hyper))
    policy = _policy(options.policy, problems)
    methods = [
        Method(
            objective,
            hyper[objective.name],
            learning_rate=options.learning_rate,
            on_policy=options.on_policy,
            reuse=options.reuse,
            label_noise=options.label_noise,
            min_gap=options.min_gap,
            num_responses=options.responses,
            prompts=options.prompts,
            minibatch=options.minibatch,
            data=options.data or ("exact" if objective.family == "distribution" else "sampled"),
            policy=policy,
            optimizer=ADAM if options.optimizer == "adam" else SGD,
            proxy=options.proxy,
            reference=options.reference,
        )
        for objective in objectives
    ]
    # Whole distributions can be labelled together only where all problems have the same responses.
    whole = all(problem.length == 1 for problem in problems)
    ds = sweep(
        problems, methods, seeds=range(options.seeds), steps=options.steps, on_nonfinite=options.on_nonfinite,
        probe=distribution_probe if whole else standard_probe,
        grid=_grid(options.grid), progress=sys.stderr.isatty(), **keep,
    )  # fmt: skip
    return _report(ds, options.out, name, problems, options.out)


def _policy(name: str | None, problems: Sequence[Problem]) -> Policy:
    if name is None:
        name = "tabular_shared" if all(problem.enumerable for problem in problems) else "factorised"
    # The networks are made when asked for, with the sizes of the paper.
    return {
        "tabular": lambda: tabular,
        "tabular_shared": lambda: tabular_shared,
        "factorised": lambda: factorised,
        "context_network": context_network,
        "transformer": transformer,
    }[name]()


def _hyper(objectives: Sequence[Objective], given: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For each objective, its own `objective.name=x`, and every `name=x` that it has."""
    own = [f"{made.name}.{name}" for made in objectives for name in made.hyper]
    check_names("--hyper", given, dict.fromkeys((*(name for made in objectives for name in made.hyper), *own)))
    return {
        made.name: {
            name: given.get(f"{made.name}.{name}", given.get(name, 0.0))
            for name in made.hyper
            if f"{made.name}.{name}" in given or name in given
        }
        for made in objectives
    }


def _report(ds: xr.Dataset, folder: Path, name: str, problems: Sequence[Problem], data: Path) -> int:
    """Print the table, and leave table and figures in the folder, the data in another."""
    if "tiles" in ds.attrs:
        _say(f"this worker is done; {ds.attrs['tiles']} tiles are finished. The one that ends last makes the figures; "
             "or add --resume without --worker when all have ended.")  # fmt: skip
        return 0
    axes = [str(dim) for dim in ds["expected_reward"].dims if dim not in plots.DIMS]
    saved = save(ds, data / f"{name}.nc")
    tables, stems = [], []
    for point in _points(ds, axes):
        title = ", ".join(f"{axis} = {value:g}" for axis, value in point.items()) + "\n" * bool(point)
        suffix = "".join(f"_{axis}={value:g}" for axis, value in point.items())
        here = ds.sel(point)
        tables.append((title, here))
        figures = {name: plots.learning_curves(here)}
        if np.isfinite(here["reward_queries"]).any():
            figures[f"{name}_queries"] = plots.learning_curves(here, x="reward_queries")
        figures[f"{name}_frontier"] = plots.frontier(here, [problem for problem in problems if problem.enumerable])
        if "log_prob" in here:
            for problem in problems:
                stem = "_".join(re.findall(r"\w+", problem.name))
                figures[f"{name}_mass_{stem}"] = plots.mass_figure(here, problem)
        for stem, figure in figures.items():
            plots.save(figure, folder / f"{stem}{suffix}")
            stems.append(f"{stem}{suffix}")
    text = lambda width: "\n\n".join(title + plots.summary(here, width=width) for title, here in tables)
    write_file(folder / f"{name}.txt", f"{text(None)}\n".encode())
    print(f"\n{text(terminal_width())}\n")
    _say(f"figures (.svg and .png) in {folder}: {', '.join(stems)}")
    _say(f"this table: {folder / name}.txt, data: {saved}")
    return 0


def _points(ds: xr.Dataset, axes: list[str]) -> list[dict[str, float]]:
    points: list[dict[str, float]] = [{}]
    for axis in axes:
        points = [{**point, axis: float(value)} for point in points for value in ds[axis].values]
    return points


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for text, (name, equals, value) in zip(given, pairs, strict=True):
        if not (name and equals and value):
            raise ConfigError(f"{option} {text!r}: write name=value, without spaces")
        if [other for other, *_ in pairs].count(name) > 1:
            raise ConfigError(f"{option} has {name} more than once: give it one time, several numbers with commas")
    return {name: value for name, _, value in pairs}


def _grid(given: Sequence[str]) -> dict[str, list[float]]:
    grid = {axis: _list_of_numbers(axis, values) for axis, values in _pairs("--grid", given).items()}
    for axis, values in grid.items():
        names = [f"{axis}={value:g}" for value in values]  # Of files too.
        if twins := [value for value, name in zip(values, names, strict=True) if names.count(name) > 1]:
            raise ConfigError(f"--grid {axis} has {twins[0]!r} and {twins[1]!r}: numbers must differ in six digits")
    return grid


def _list_of_numbers(name: str, values: str) -> list[float]:
    try:
        return [float(value) for value in values.split(",")]
    except ValueError:
        raise ConfigError(f"{name}={values}: {values!r} must be a number, or numbers with commas between") from None


def _numbers(option: str, given: Sequence[str]) -> dict[str, float]:
    numbers = {name: _list_of_numbers(name, value) for name, value in _pairs(option, given).items()}
    for name, values in numbers.items():
        if len(values) > 1:
            raise ConfigError(f"{option} {name} takes one number; several go in --grid {name}=...")
    return {name: value for name, (value, *_) in numbers.items()}


# --- reproducing -----------------------------------------------------------------------------------------------------
def _reproduce(options: argparse.Namespace) -> int:
    import_module("bandit_pft.experiments")
    named = bool(options.claims or options.figure)
    # Only the whole table takes the place of the whole table.
    out = options.out or Path("results/quick" if options.quick else "results/reproduce" if named else "figures")
    results = options.results
    todo = claims.chosen(options.claims, options.figure, options.quick)
    path = lambda made: claims.result_path(made, results, options.quick)
    known = [made for made in todo if path(made).exists() and not options.again]
    for made in known:
        claims.measured(path(made))  # Refuses results of other code before anything runs.
    _check_folders(out, results)
    missing = [made for made in todo if made not in known]
    planned, spent = 0.0, 0.0
    for i, made in enumerate(missing):
        # How fast the machine is shows in what is done; a minute is taken as planned, for short ones tell little.
        left = sum(other.seconds for other in missing[i:]) * (60 + spent) / (60 + planned)
        print(f"[{i + 1}/{len(missing)}] {made.name}, about {left / 60:.1f} min left", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            claims.measure(made, results, options.quick)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped, {i} of {len(missing)} experiments done: the same command goes on"
            ) from None
        planned, spent = planned + made.seconds, spent + time.monotonic() - begun
    return _report_claims(options, todo, out)


def _report_claims(options: argparse.Namespace, done: Sequence[claims.Experiment], out: Path) -> int:
    """Draw what was asked for, and put all that is known into one table."""
    outcomes, stale = {}, []
    for made in claims.EXPERIMENTS.values():
        path = claims.result_path(made, options.results, options.quick)
        try:
            outcomes |= {made.name: claims.measured(path)} if path.exists() else {}
        except StoreError:
            stale.append(made.name)
    figures = [name for name, (made, _) in claims.FIGURES.items() if made in done]
    if options.figure and not options.claims:
        figures = [name for name in figures if name in options.figure]
    for name in figures:
        made, draw = claims.FIGURES[name]
        table = outcomes[made.name].tables[name]
        plots.save(draw(table), out / name)
        write_file(out / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())
    known = sorted(claims.CLAIMS.values(), key=claims.order)
    rows = [
        claims.judge(one, outcomes[one.experiment.name].measures) for one in known if one.experiment.name in outcomes
    ]
    drawn = claims.gallery(name for name in claims.FIGURES if (out / f"{name}.png").exists())
    write_file(out / "claims.md", (claims.markdown(rows, options.quick) + drawn).encode())
    write_file(out / "claims.json", json.dumps(claims.as_records(rows), indent=1, ensure_ascii=False).encode())
    for row in rows:
        if row.claim.experiment in done:
            _say(f"{row.claim.key:5} {claims.verdict_text(row)}: {row.claim.says}", indent=6)
    _say(f"\n{claims.summary(rows)} Table: {out / 'claims.md'}, figures and their data: {out}")
    unknown = len(claims.CLAIMS) - len(rows)
    if unknown:
        _say(f"{unknown} other claims are not measured{' in a quick run' if options.quick else ' yet'}"
             + (f"; left out, because measured by other code: {', '.join(stale)}" if stale else ""))  # fmt: skip
    return 0


# --- showing ---------------------------------------------------------------------------------------------------------
def _export(options: argparse.Namespace) -> int:
    check_names("--hide", options.hide, explorer.CONTROLS)
    if options.file.is_dir():
        raise ConfigError(f"{options.file} is a folder; name a file, such as {options.file / 'explorer.html'}")
    _check_folders(options.file.parent)
    with tqdm(unit="film", leave=False, disable=None) as bar:

        def tell(done: int, number: int) -> None:
            bar.total = number
            bar.update(done - bar.n)

        path = explorer.export(
            options.file, options.methods, actions=options.actions, hide=options.hide, title=options.title,
            progress=tell,
        )  # fmt: skip
    _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB. Open it in any browser; it needs nothing else.")
    return 0


def _serving() -> Any:
    """Its libraries come with an extra; whoever asks for no server does not need them."""
    try:
        return import_module("bandit_pft.serving")
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'bandit-pft[lab]'") from error


def _lab(options: argparse.Namespace) -> int:
    return _serving().lab(options.folder, *(["--no-browser"] if options.no_browser else []))


def _serve(options: argparse.Namespace) -> int:
    if options.kernels < 1:
        raise ConfigError(f"--kernels is {options.kernels}; every open page needs one, so it must be at least 1")
    if not 1 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}; it must be from 1 to 65535")
    return _serving().serve(port=options.port, most=options.kernels, open_browser=not options.no_browser)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo, "run": _run, "sweep": _sweep, "reproduce": _reproduce, "export": _export, "lab": _lab,
    "serve": _serve, "list": listing.show, "cite": listing.cite, "readme": listing.readme,
}  # fmt: skip

"""The command line: `bandit-pft` and demo, run, sweep, reproduce, export, lab, serve, list, cite or readme."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray as xr
from tqdm import tqdm

from bandit_pft import claims, explorer, paper, plots, style
from bandit_pft.errors import (
    ConfigError,
    DomainError,
    NumericsError,
    ResourceError,
    ShapeError,
    StoreError,
    check_names,
    nearest,
)
from bandit_pft.methods import ADAM, SGD, Method
from bandit_pft.objectives import OBJECTIVES, get_objective, measure
from bandit_pft.objectives.core import HYPER, Objective, Range
from bandit_pft.policies import Policy, context_network, factorised, tabular, tabular_shared, transformer
from bandit_pft.probes import distribution_probe, standard_probe
from bandit_pft.problems import Problem
from bandit_pft.sharding import join_processes
from bandit_pft.simulate import OnNonfinite, keep_programs
from bandit_pft.store import Worker, write_file
from bandit_pft.sweep import save, sweep

WRONG_INPUT = (ConfigError, DomainError, ShapeError, ResourceError, NumericsError, StoreError)
PAPER = "tajwar2024preference"
POLICIES = ("tabular", "tabular_shared", "context_network", "factorised", "transformer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 wrong input (explained in one line)."""
    options = _parser().parse_args(arguments)
    keep_programs()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            code = options.command(options)
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
        except KeyboardInterrupt as error:
            print(f"bandit-pft: {str(error) or 'stopped'}", file=sys.stderr)
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bandit-pft",
        description="Preference fine-tuning on bandits: run methods, compare them, see where the probability goes.",
        epilog="`bandit-pft COMMAND --help` explains a command. Start with `bandit-pft demo`.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the headline comparison: near and far peak, offline and on-policy")
    demo.set_defaults(command=_demo)
    _add_folder(demo, "--out", "figures", "for figures and the table")
    _add_folder(demo, "--results", "results", "for the data")
    demo.add_argument("--seeds", type=int, default=5, metavar="N", help="random repetitions (default: 5)")
    demo.add_argument("--steps", type=int, metavar="N", help="gradient steps (default: 200)")

    run = commands.add_parser("run", help="run objectives on problems: a table of all metrics, and figures")
    run.set_defaults(command=_run)
    _add_settings(run)
    _add_folder(run, "--out", "results/run", "for figures, table and data")

    many = commands.add_parser("sweep", help="the same over a grid of numbers, or a named comparison; can be resumed")
    many.set_defaults(command=_sweep)
    many.add_argument("--preset", help="a comparison from `bandit-pft list presets`, instead of objectives")
    _add_settings(many)
    many.add_argument(
        "--grid", nargs="+", default=[], metavar="AXIS=A,B,C",
        help="also vary a number, such as learning_rate=0.1,0.2 or beta=0.05,0.1,0.5",
    )  # fmt: skip
    _add_folder(many, "--out", "results/sweep", "for figures, table and data")
    many.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")
    many.add_argument(
        "--worker", default="0/1", metavar="K/N",
        help="share the work with N - 1 other processes, here or elsewhere, that see the same folder: 0/N to (N-1)/N; "
        "auto: with those that srun, Kubernetes or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name",
    )  # fmt: skip
    many.add_argument("--strict", action="store_true", help="refuse to go on with other versions or another machine")

    proof = commands.add_parser("reproduce", help="the claims of the paper and its successors: measured, judged, drawn")
    proof.set_defaults(command=_reproduce)
    proof.add_argument(
        "claims", nargs="*", metavar="CLAIM", help="of `bandit-pft list claims`, such as C7 (default: all)"
    )
    proof.add_argument(
        "--figure", action="append", default=[], metavar="NAME", help="what this figure draws; can be repeated"
    )
    proof.add_argument("--quick", action="store_true", help="few seeds, and without the experiments that take long")
    proof.add_argument("--again", action="store_true", help="measure anew what has been measured")
    proof.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for table and figures (default: figures; quick: results/quick; of named ones: results/reproduce)",
    )
    _add_folder(proof, "--results", "results/claims", "for what was measured")

    page = commands.add_parser("export", help="the explorer as one HTML file, for any browser, without a network")
    page.set_defaults(command=_export)
    page.add_argument("file", type=Path, nargs="?", default=Path("explorer.html"), help="(default: explorer.html)")
    page.add_argument("--methods", nargs="+", metavar="NAME", help="such as 'dpo offline' (default: all eight)")
    page.add_argument("--actions", type=int, default=50, metavar="N", help="(default: 50)")
    page.add_argument("--hide", nargs="+", default=[], metavar="PART", help="parts of the page that are left out")
    page.add_argument("--title", default="")

    lab = commands.add_parser("lab", help="JupyterLab on the notebooks")
    lab.set_defaults(command=_lab)
    lab.add_argument("folder", type=Path, nargs="?", help="of notebooks; made, with a copy, where it does not exist")
    lab.add_argument("--no-browser", action="store_true", help="only print the address")

    served = commands.add_parser("serve", help="the live explorer alone in a browser, for this machine")
    served.set_defaults(command=_serve)
    served.add_argument("--port", type=int, default=8866, metavar="N", help="(default: 8866)")
    served.add_argument("--kernels", type=int, default=8, metavar="N", help="open pages at the same time (default: 8)")
    served.add_argument("--no-browser", action="store_true", help="only print the address")

    names = commands.add_parser("list", help="what there is: objectives, problems, presets, claims")
    names.set_defaults(command=_list)
    names.add_argument("kind", choices=("objectives", "problems", "presets", "claims"), nargs="?", default="objectives")
    names.add_argument("names", nargs="*", metavar="NAME", help="only these objectives")
    names.add_argument("--brief", action="store_true", help="names and what they do, without formulas and measurements")

    cite = commands.add_parser("cite", help="BibTeX of the paper, and of the objectives you name")
    cite.set_defaults(command=_cite)
    cite.add_argument("objectives", nargs="*", metavar="OBJECTIVE")

    readme = commands.add_parser("readme", help="bring the tables in README.md up to date")
    readme.set_defaults(command=_readme)
    readme.add_argument("--file", type=Path, default=Path("README.md"))
    readme.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    problems = ", ".join((*paper.TITLES, *paper.SEQUENCES, *paper.LENGTHS))
    add = parser.add_argument
    add("objectives", nargs="*", metavar="OBJECTIVE", help="of `bandit-pft list`, or your own as module:function")
    add("--objective", action="append", default=[], dest="more", metavar="NAME", help="one more; can be repeated")
    add("--problems", nargs="+", default=["R5", "R4"], metavar="NAME", help=f"of {problems} (default: R5 R4)")
    add("--contexts", type=int, default=paper.CONTEXTS, metavar="S", help="contexts of a bandit (default: 100)")
    add("--hyper", nargs="+", default=[], metavar="NAME=X", help="beta=0.1 for all that have it, ipo.beta=0.05 for one")
    add("--learning-rate", type=float, default=paper.LEARNING_RATE, metavar="X", help="(default: 0.2)")
    add("--optimizer", choices=("adam", "sgd"), default="adam")
    add("--policy", choices=POLICIES, help="(default: tabular_shared; factorised where responses cannot be listed)")
    add("--data", choices=("sampled", "exact"), help="exact: infinite data (default: sampled, where that is possible)")
    add("--on-policy", type=float, default=1.0, metavar="X", help="1: own responses, 0: offline data (default: 1)")
    add("--reuse", type=float, metavar="N", help="passes over each collection (default: 1, offline: collect once)")
    add("--responses", type=int, default=10, metavar="N", help="per context (default: 10)")
    add("--prompts", type=int, metavar="N", help="contexts of a collection (default: all)")
    add("--minibatch", type=int, metavar="N", help="contexts of a gradient step (default: the collection)")
    add(
        "--label-noise",
        type=float,
        metavar="X",
        help="temperature of the labeller: Bradley-Terry pairs (default: none)",
    )
    add(
        "--min-gap", type=float, default=0.0, metavar="X", help="leave out pairs with a smaller difference (default: 0)"
    )
    add("--proxy", choices=("table", "network"), help="learn from a reward model fitted to pairs")
    add("--reference", choices=("problem", "initial"), default="problem", help="the policy that the learner is held to")
    add("--steps", type=int, default=200, metavar="N", help="gradient steps (default: 200)")
    add("--seeds", type=int, default=5, metavar="N", help="random repetitions (default: 5)")
    add(
        "--on-nonfinite", choices=get_args(OnNonfinite), default="freeze",
        help="what a run does that turns nan or infinite (default: freeze)",
    )  # fmt: skip


def _add_folder(parser: argparse.ArgumentParser, option: str, folder: str, what: str) -> None:
    parser.add_argument(option, type=Path, default=Path(folder), metavar="FOLDER", help=f"{what} (default: {folder})")


# --- running ---------------------------------------------------------------------------------------------------------
def _demo(options: argparse.Namespace) -> int:
    preset = paper.preset_named("headline")
    ds = paper.run_preset("headline", seeds=options.seeds, steps=options.steps, progress=sys.stderr.isatty())
    print(preset.claim)
    return _report(ds, options.out, "headline", preset.problems, options.results)


def _run(options: argparse.Namespace) -> int:
    options.objectives, options.grid = _chosen(options), []
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
        grid={axis: _list_of_numbers(axis, values) for axis, values in _pairs("--grid", options.grid).items()},
        progress=sys.stderr.isatty(), **keep,
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
        print(f"this worker is done; {ds.attrs['tiles']} tiles are finished. The one that ends last makes the figures; "
              "or add --resume without --worker when all have ended.")  # fmt: skip
        return 0
    axes = [str(dim) for dim in ds["expected_reward"].dims if dim not in plots.DIMS]
    saved = save(ds, data / f"{name}.nc")
    tables, stems = [], []
    for point in _points(ds, axes):
        title = ", ".join(f"{axis} = {value:g}" for axis, value in point.items())
        suffix = "".join(f"_{axis}={value:g}" for axis, value in point.items())
        here = ds.sel(point)
        tables.append(f"{title}\n{plots.summary(here)}" if title else plots.summary(here))
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
    text = "\n\n".join(tables)
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nfigures (.svg and .png) in {folder}: {', '.join(stems)}")
    print(f"this table: {folder / name}.txt, data: {saved}")
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
    return {name: value for name, _, value in pairs}


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
    for folder in (out, results):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
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
            print(f"{row.claim.key:5} {claims.verdict_text(row)}: {row.claim.says}")
    print(f"\n{claims.summary(rows)} Table: {out / 'claims.md'}, figures and their data: {out}")
    unknown = len(claims.CLAIMS) - len(rows)
    if unknown:
        print(f"{unknown} other claims are not measured{' in a quick run' if options.quick else ' yet'}"
              + (f"; left out, because measured by other code: {', '.join(stale)}" if stale else ""))  # fmt: skip
    return 0


# --- showing ---------------------------------------------------------------------------------------------------------
def _export(options: argparse.Namespace) -> int:
    with tqdm(unit="film", leave=False, disable=None) as bar:

        def tell(done: int, number: int) -> None:
            bar.total = number
            bar.update(done - bar.n)

        path = explorer.export(
            options.file, options.methods, actions=options.actions, hide=options.hide, title=options.title,
            progress=tell,
        )  # fmt: skip
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB. Open it in any browser; it needs nothing else.")
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
    return _serving().serve(port=options.port, most=options.kernels, open_browser=not options.no_browser)


# --- telling ---------------------------------------------------------------------------------------------------------
def _list(options: argparse.Namespace) -> int:
    if options.names and options.kind != "objectives":
        raise ConfigError(f"`list {options.kind}` takes no names")
    chosen = [get_objective(name) for name in options.names] or list(OBJECTIVES.values())
    if options.kind == "presets":
        rows = [(name, make().claim) for name, make in paper.PRESETS.items()]
    elif options.kind == "claims":
        import_module("bandit_pft.experiments")
        rows = [(made.key, made.says) for made in sorted(claims.CLAIMS.values(), key=claims.order)]
    elif options.kind == "problems":
        rows = [
            *((name, f"bandit of 100 actions: {title}") for name, title in paper.TITLES.items()),
            *((name, f"9 tokens of 100: {title}") for name, title in paper.SEQUENCES.items()),
            *((name, f"responses of up to 8 tokens: {name} length") for name in paper.LENGTHS),
        ]
    elif options.brief:
        rows = []
        for family, title in style.FAMILIES.items():
            members = [(f"  {made.name}", made.summary) for made in chosen if made.family == family]
            rows += [(f"\n{title}:", ""), *members] if members else []
    else:
        if len(chosen) > 5:
            print("measuring the forces: some seconds, the first time up to a minute", file=sys.stderr)
        print("\n\n".join(describe(made) for made in chosen))
        return 0
    width = max(len(name) for name, text in rows if text)
    print("\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows).lstrip("\n"))
    return 0


READS = {
    "reads_reward": "reward", "reads_score": "score (what the labeller saw)", "reads_reference": "reference",
    "reads_old": "old policy",
}  # fmt: skip


def describe(made: Objective) -> str:
    """What an objective is, what was measured on its force (see `measure`), and its hyper-parameters; several lines."""
    found = measure(made)
    acts = [verb for verb, does in (("pulls", found.pulls), ("pushes (negative gradient)", found.pushes)) if does]
    total = "0: only differences count" if abs(found.total) < 1e-4 else f"{found.total:.3g}"
    shift = "does not change" if found.reward_shift_invariant else "changes"
    lines = [
        f"{made.name}: {made.summary}",
        f"  {made.formula}",
        f"  family   {style.FAMILIES[made.family]}",
        f"  force    {' and '.join(acts) or 'none'}; total {total}; "
        f"{'differs between tokens of a response' if found.token_level else 'the same for all tokens of a response'}",
        f"  reads    {', '.join(word for name, word in READS.items() if getattr(found, name)) or 'nothing but logp'}; "
        f"{shift} when all rewards shift",
    ]
    for name, default in made.hyper.items():
        limits = HYPER.get(name, Range(""))
        lines.append(f"  {name} = {default:g}  ({allowed(limits)})  {limits.meaning}".rstrip())
    return "\n".join(lines)


def allowed(limits: Range) -> str:
    """The range of a hyper-parameter in words."""
    words = {"above": "above", "at_least": "at least", "at_most": "at most", "below": "below"}
    rules = [f"{text} {value:g}" for name, text in words.items() if (value := getattr(limits, name)) is not None]
    return ", ".join(rules) or "any number"


def bibliography() -> dict[str, str]:
    """BibTeX entries by key."""
    text = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,]+),.*?^\}", text, re.MULTILINE | re.DOTALL)
    bodies = re.findall(r"^@\w+\{.*?^\}", text, re.MULTILINE | re.DOTALL)
    return dict(zip(entries, bodies, strict=True))


def _cite(options: argparse.Namespace) -> int:
    known = bibliography()
    keys = [PAPER, *(get_objective(name).paper for name in options.objectives)]
    for key in dict.fromkeys(key for key in keys if key):
        if key not in known:
            raise ConfigError(f"papers.bib has no {key!r}: {nearest(key, known)}")
        print(known[key], end="\n\n")
    return 0


def objectives_table() -> str:
    """The README's table in Markdown. The negative gradient is measured on each objective's force, not declared."""
    papers = bibliography()
    lines = ["| objective | what it does | negative gradient | defaults | paper |", "|---|---|:-:|---|---|"]
    for family, title in style.FAMILIES.items():
        members = [made for made in OBJECTIVES.values() if made.family == family]
        lines += [f"| **{title}** | | | | |"] if members else []
        for made in members:
            push = "yes" if measure(made).pushes else ""
            defaults = ", ".join(f"{name} {value:g}" for name, value in made.hyper.items())
            summary = made.summary.replace("|", "\\|")
            lines.append(f"| `{made.name}` | {summary} | {push} | {defaults} | {_reference(made.paper, papers)} |")
    return "\n".join(lines)


def _reference(key: str, papers: Mapping[str, str]) -> str:
    """Author and year, linked to the preprint where there is one."""
    if key not in papers:
        return ""
    field = lambda name: (re.search(rf"^\s*{name}\s*=\s*\{{(.*)\}},?$", papers[key], re.MULTILINE) or ["", ""])[1]
    author = re.sub(r"\\.|[{}]", "", field("author").partition(",")[0])
    text = f"{author} {field('year')}"
    return f"[{text}](https://arxiv.org/abs/{field('eprint')})" if field("eprint") else text


def claims_table(path: Path) -> str:
    """The README's summary of the table that `reproduce` left: all counts, and the paper's own claims."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        own = [row for row in rows if row["source"] == PAPER]
        lines = [f"| {row['claim']} | {row['says']} | {row['text']} |" for row in own]
        others = claims.count_verdicts(row["verdict"] for row in rows if row not in own)
        counts = f"The paper, {claims.count_verdicts(row['verdict'] for row in own)} The literature after it, {others}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a table of claims ({error}): run `bandit-pft reproduce`") from error
    return "\n".join([counts, "", "| | the paper's claim | verdict |", "|---|---|---|", *lines])


def _readme(options: argparse.Namespace) -> int:
    old = new = options.file.read_text(encoding="utf-8") if options.file.exists() else ""
    tables = {"objectives": objectives_table}
    if "<!-- claims:begin -->" in old:
        tables["claims"] = lambda: claims_table(options.file.parent / "figures" / "claims.json")
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in new or end not in new:
            raise ConfigError(f"{options.file} has no lines {begin} and {end} to put the table between")
        head, rest = new.split(begin, 1)
        new = f"{head}{begin}\n{table()}\n{end}{rest.split(end, 1)[1]}"
    if options.check:
        if new != old:
            print(f"{options.file} is out of date: run `bandit-pft readme`", file=sys.stderr)
        return int(new != old)
    options.file.write_text(new, encoding="utf-8")
    print(f"{options.file}: {len(OBJECTIVES)} objectives")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

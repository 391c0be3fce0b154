"""The command line: `bandit-pft demo`, `run`, `sweep`, `list`, `cite` and `readme`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import xarray as xr

from bandit_pft import paper, plots, style
from bandit_pft.errors import (
    ConfigError,
    DomainError,
    NumericsError,
    ResourceError,
    ShapeError,
    StoreError,
    nearest,
)
from bandit_pft.methods import ADAM, SGD, Method
from bandit_pft.objectives import OBJECTIVES, get_objective, measure
from bandit_pft.policies import tabular_shared
from bandit_pft.sweep import save, sweep

WRONG_INPUT = (ConfigError, DomainError, ShapeError, ResourceError, NumericsError, StoreError)
PAPER = "tajwar2024preference"
BEGIN, END = "<!-- objectives:begin -->", "<!-- objectives:end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 wrong input (explained in one line)."""
    options = _parser().parse_args(arguments)
    _keep_programs()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            return options.command(options)
        except WRONG_INPUT as error:
            print(f"bandit-pft: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # The reader, such as `head`, has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _keep_programs() -> None:
    """Keep compiled programs in the user's cache, so that only the first start is slow."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "bandit_pft" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bandit-pft",
        description="Preference fine-tuning on bandits: run methods, compare them, see where the probability goes.",
        epilog="`bandit-pft COMMAND --help` explains a command. Start with `bandit-pft demo`.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="draw the headline comparison: near and far peak, offline and on-policy")
    demo.set_defaults(command=_demo)
    _add_output(demo, "results/demo")
    demo.add_argument("--seeds", type=int, default=5, metavar="N", help="random repetitions (default: 5)")
    demo.add_argument("--steps", type=int, metavar="N", help="gradient steps (default: 200)")

    run = commands.add_parser("run", help="run one objective and see its table and figures")
    run.set_defaults(command=_run)
    run.add_argument("objective", help="a name from `bandit-pft list objectives`, or module:function of your own")
    _add_settings(run)
    _add_output(run, "results/run")

    many = commands.add_parser("sweep", help="compare several objectives, or run a named comparison; can be resumed")
    many.set_defaults(command=_sweep)
    many.add_argument("--preset", help="a comparison from `bandit-pft list presets`, instead of --objectives")
    many.add_argument("--objectives", nargs="+", metavar="NAME", help="names, or module:function")
    _add_settings(many)
    many.add_argument(
        "--grid", nargs="+", default=[], metavar="AXIS=A,B,C",
        help="also vary a number, such as learning_rate=0.1,0.2 or beta=0.05,0.1,0.5",
    )  # fmt: skip
    _add_output(many, "results/sweep")
    many.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")

    names = commands.add_parser("list", help="what there is: objectives, problems, presets")
    names.set_defaults(command=_list)
    names.add_argument("kind", choices=("objectives", "problems", "presets"), nargs="?", default="objectives")

    cite = commands.add_parser("cite", help="BibTeX of the paper, and of the objectives you name")
    cite.set_defaults(command=_cite)
    cite.add_argument("objectives", nargs="*", metavar="OBJECTIVE")

    readme = commands.add_parser("readme", help="bring the table of objectives in README.md up to date")
    readme.set_defaults(command=_readme)
    readme.add_argument("--file", type=Path, default=Path("README.md"))
    readme.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    problems = ", ".join((*paper.TITLES, *paper.LENGTHS))
    add = parser.add_argument
    add("--problems", nargs="+", default=["R5", "R4"], metavar="NAME", help=f"of {problems} (default: R5 R4)")
    add("--contexts", type=int, default=paper.CONTEXTS, metavar="S", help="contexts of a bandit (default: 100)")
    add("--learning-rate", type=float, default=paper.LEARNING_RATE, metavar="X", help="(default: 0.2)")
    add("--optimizer", choices=("adam", "sgd"), default="adam")
    add("--on-policy", type=float, default=1.0, metavar="X", help="1: own responses, 0: offline data (default: 1)")
    add("--reuse", type=float, metavar="N", help="passes over each collection (default: 1, offline: collect once)")
    add("--responses", type=int, default=10, metavar="N", help="per context (default: 10)")
    add("--hyper", nargs="+", default=[], metavar="NAME=X", help="hyper-parameters, such as beta=0.1")
    add("--steps", type=int, default=200, metavar="N", help="gradient steps (default: 200)")
    add("--seeds", type=int, default=5, metavar="N", help="random repetitions (default: 5)")


def _add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(folder), metavar="FOLDER", help=f"for figures and data (default: {folder})"
    )


# --- running ---------------------------------------------------------------------------------------------------------
def _demo(options: argparse.Namespace) -> int:
    preset = paper.preset_named("headline")
    print(preset.claim)
    ds = paper.run_preset("headline", seeds=options.seeds, steps=options.steps, progress=sys.stderr.isatty())
    return _report(ds, options.out, "headline", preset)


def _run(options: argparse.Namespace) -> int:
    options.objectives, options.grid, options.preset, options.resume = [options.objective], [], None, True
    return _compare(options, get_objective(options.objective).name, store=None)


def _sweep(options: argparse.Namespace) -> int:
    if bool(options.preset) == bool(options.objectives):
        raise ConfigError("say either --preset NAME or --objectives NAME ...")
    store = options.out / "runs"
    if store.exists() and not options.resume:
        raise StoreError(f"{store} exists: add --resume to go on, or choose another folder with --out")
    if options.preset:
        preset = paper.preset_named(options.preset)
        ds = paper.run_preset(options.preset, seeds=options.seeds, steps=options.steps, store=store, progress=True)
        return _report(ds, options.out, options.preset, preset)
    return _compare(options, "sweep", store)


def _compare(options: argparse.Namespace, name: str, store: Path | None) -> int:
    problems = [paper.problem_named(problem, options.contexts) for problem in options.problems]
    methods = [
        Method(
            objective,
            _numbers("--hyper", options.hyper),
            learning_rate=options.learning_rate,
            on_policy=options.on_policy,
            reuse=options.reuse,
            num_responses=options.responses,
            optimizer=ADAM if options.optimizer == "adam" else SGD,
            policy=tabular_shared,
            data="exact" if get_objective(objective).family == "distribution" else "sampled",
        )
        for objective in options.objectives
    ]
    ds = sweep(
        problems, methods, seeds=range(options.seeds), steps=options.steps, store=store,
        grid={axis: _list_of_numbers(axis, values) for axis, values in _pairs("--grid", options.grid).items()},
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    return _report(ds, options.out, name)


def _report(ds: xr.Dataset, folder: Path, name: str, preset: paper.Preset | None = None) -> int:
    """Print the table, and leave data, table and figures in the folder."""
    axes = [str(dim) for dim in ds["expected_reward"].dims if dim not in plots.DIMS]
    written = [save(ds, folder / f"{name}.nc")]
    tables = []
    for point in _points(ds, axes):
        title = ", ".join(f"{axis} = {value:g}" for axis, value in point.items())
        suffix = "".join(f"_{axis}={value:g}" for axis, value in point.items())
        here = ds.sel(point)
        tables.append(f"{title}\n{plots.table(here)}" if title else plots.table(here))
        figures = {
            name: plots.learning_curves(here),
            f"{name}_queries": plots.learning_curves(here, x="reward_queries"),
        }
        problems = preset.problems if preset else ()
        figures[f"{name}_frontier"] = plots.frontier(here, problems)
        figures |= {f"{name}_mass_{i}": plots.mass_figure(here, problem) for i, problem in enumerate(problems)}
        for stem, figure in figures.items():
            written += plots.save(figure, folder / f"{stem}{suffix}")
    text = "\n\n".join(tables)
    (folder / f"{name}.txt").write_text(text + "\n")
    print(f"\n{text}\n\nwritten to {folder}: {', '.join(path.name for path in written)}, {name}.txt")
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


# --- telling ---------------------------------------------------------------------------------------------------------
def _list(options: argparse.Namespace) -> int:
    if options.kind == "presets":
        rows = [(name, make().claim) for name, make in paper.PRESETS.items()]
    elif options.kind == "problems":
        titles = {name: f"bandit of 100 actions: {title}" for name, title in paper.TITLES.items()}
        rows = [
            *titles.items(),
            *((name, f"responses of up to 8 tokens: {name} length") for name in paper.LENGTHS),
        ]
    else:
        rows = []
        for family, title in style.FAMILIES.items():
            rows.append((f"\n{title}:", ""))
            rows += [(f"  {made.name}", made.summary) for made in OBJECTIVES.values() if made.family == family]
    width = max(len(name) for name, text in rows if text)
    print("\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows).lstrip("\n"))
    return 0


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


def _readme(options: argparse.Namespace) -> int:
    old = options.file.read_text(encoding="utf-8") if options.file.exists() else ""
    if BEGIN not in old or END not in old:
        raise ConfigError(f"{options.file} has no lines {BEGIN} and {END} to put the table between")
    head, rest = old.split(BEGIN, 1)
    new = f"{head}{BEGIN}\n{objectives_table()}\n{END}{rest.split(END, 1)[1]}"
    if options.check:
        if new != old:
            print(f"{options.file} is out of date: run `bandit-pft readme`", file=sys.stderr)
        return int(new != old)
    options.file.write_text(new, encoding="utf-8")
    print(f"{options.file}: {len(OBJECTIVES)} objectives")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The command line: `bandit-pft` and demo, run, sweep, reproduce, export, lab, serve, list, cite or readme.

Only words are read here. The libraries that compute are imported with `commands`, when there is something to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from bandit_pft.version import __version__
from bandit_pft.words import nearest, speak_any_encoding

# As the modules that compute have them.
PROBLEMS = ("R4", "R5", "R8", "R9", "R6", "R7", "min", "mode", "skew")
POLICIES = ("tabular", "tabular_shared", "context_network", "factorised", "transformer")
ON_NONFINITE = ("freeze", "raise", "keep")
CONTEXTS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 wrong input (explained in one line)."""
    speak_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.error("say what to do, such as `bandit-pft demo`")
    try:
        return import_module("bandit_pft.commands").perform(options)
    except KeyboardInterrupt as error:
        print(f"bandit-pft: {str(error) or 'stopped'}", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Explains wrong input in one line, with the nearest of the words that are allowed."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        more = "" if message.endswith("?") else f"; see `{self.prog} --help`"
        self.exit(2, f"bandit-pft: {message}{more}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its parent, but no word is left over."""
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            name = word.partition("=")[0]
            known = f": {nearest(name, self._option_string_actions)}" if name.startswith("-") else ""
            self.error(f"`{self.prog}` takes no {name!r}{known}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or str(action.metavar)
            self.error(f"{name} is {value!r}: {nearest(value, action.choices)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bandit-pft",
        description="Preference fine-tuning on bandits: run methods, compare them, see where the probability goes.",
        epilog="`bandit-pft COMMAND --help` explains a command. Start with `bandit-pft demo`.",
    )
    parser.add_argument("--version", action="version", version=f"bandit-pft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser("demo", help="the headline comparison: near and far peak, offline and on-policy")
    _add_folder(demo, "--out", "figures", "for figures and the table")
    _add_folder(demo, "--results", "results", "for the data")
    demo.add_argument("--seeds", type=int, default=5, metavar="N", help="random repetitions (default: 5)")
    demo.add_argument("--steps", type=int, metavar="N", help="gradient steps (default: 200)")

    run = commands.add_parser("run", help="run objectives on problems: a table of all metrics, and figures")
    _add_settings(run)
    _add_folder(run, "--out", "results/run", "for figures, table and data")

    many = commands.add_parser("sweep", help="the same over a grid of numbers, or a named comparison; can be resumed")
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
    page.add_argument("file", type=Path, nargs="?", default=Path("explorer.html"), help="(default: explorer.html)")
    page.add_argument(
        "--methods", nargs="+", metavar="NAME", help="such as 'dpo offline', 'grpo on-policy' (default: eight of them)"
    )
    page.add_argument("--actions", type=int, default=50, metavar="N", help="(default: 50)")
    page.add_argument("--hide", nargs="+", default=[], metavar="PART", help="parts of the page that are left out")
    page.add_argument("--title", default="")

    lab = commands.add_parser("lab", help="JupyterLab on the notebooks")
    lab.add_argument("folder", type=Path, nargs="?", help="of notebooks; made, with a copy, where it does not exist")
    lab.add_argument("--no-browser", action="store_true", help="only print the address")

    served = commands.add_parser("serve", help="the live explorer alone in a browser, for this machine")
    served.add_argument("--port", type=int, default=8866, metavar="N", help="(default: 8866)")
    served.add_argument("--kernels", type=int, default=8, metavar="N", help="open pages at the same time (default: 8)")
    served.add_argument("--no-browser", action="store_true", help="only print the address")

    names = commands.add_parser("list", help="what there is: objectives, problems, presets, claims")
    names.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="objectives, problems, presets, claims, or some of them, such as dpo R4",
    )
    names.add_argument("--brief", action="store_true", help="names and what they do, without formulas and measurements")

    cite = commands.add_parser("cite", help="BibTeX of the paper, and of the objectives you name")
    cite.add_argument("objectives", nargs="*", metavar="OBJECTIVE")

    readme = commands.add_parser("readme", help="bring the tables in README.md up to date")
    readme.add_argument("--file", type=Path, default=Path("README.md"))
    readme.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("objectives", nargs="*", metavar="OBJECTIVE", help="of `bandit-pft list`, or your own as module:function")
    add("--objective", action="append", default=[], dest="more", metavar="NAME", help="one more; can be repeated")
    add(
        "--problems", nargs="+", default=["R5", "R4"], metavar="NAME", help=f"of {', '.join(PROBLEMS)} (default: R5 R4)"
    )
    add("--contexts", type=int, default=CONTEXTS, metavar="S", help="contexts of a bandit (default: 100)")
    add("--hyper", nargs="+", default=[], metavar="NAME=X", help="beta=0.1 for all that have it, ipo.beta=0.05 for one")
    add("--learning-rate", type=float, metavar="X", help="(default: 0.2)")
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
        "--on-nonfinite", choices=ON_NONFINITE, default="freeze",
        help="what a run does that turns nan or infinite (default: freeze)",
    )  # fmt: skip


def _add_folder(parser: argparse.ArgumentParser, option: str, folder: str, what: str) -> None:
    parser.add_argument(option, type=Path, default=Path(folder), metavar="FOLDER", help=f"{what} (default: {folder})")

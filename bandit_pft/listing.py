"""What there is: lists for the terminal, BibTeX, and the tables of the README."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from bandit_pft import claims, paper, style
from bandit_pft.errors import ConfigError
from bandit_pft.objectives import OBJECTIVES, get_objective, measure
from bandit_pft.objectives.core import HYPER, Objective, Range
from bandit_pft.words import fitted, nearest, terminal_width

KINDS = ("objectives", "problems", "presets", "claims")
PAPER = "tajwar2024preference"


def show(options: argparse.Namespace) -> int:
    """`list`: everything of a kind, or what is named."""
    first, *others = options.names or ["objectives"]
    kinds, names = ([first], others) if first in KINDS else (KINDS, options.names)
    chosen: dict[str, list[str]] = {} if names else {first: list(entries(first))}
    for name in names:
        chosen.setdefault(_kind_of(name, kinds), []).append(name)
    print("\n\n".join(_block(kind, chosen[kind], options.brief) for kind in chosen))
    return 0


def entries(kind: str) -> Mapping[str, str]:
    """Names, and what each is in one line."""
    if kind == "objectives":
        return {made.name: made.summary for made in OBJECTIVES.values()}
    if kind == "presets":
        return {name: make().claim for name, make in paper.PRESETS.items()}
    if kind == "claims":
        import_module("bandit_pft.experiments")
        return {made.key: made.says for made in sorted(claims.CLAIMS.values(), key=claims.order)}
    return {
        **{name: f"bandit of 100 actions: {title}" for name, title in paper.TITLES.items()},
        **{name: f"9 tokens of 100: {title}" for name, title in paper.SEQUENCES.items()},
        **{name: f"responses of up to 8 tokens: {name} length" for name in paper.LENGTHS},
    }


def _kind_of(name: str, kinds: Sequence[str]) -> str:
    if ":" in name:  # An objective of the reader's own.
        return "objectives"
    for kind in kinds:
        if name in entries(kind):
            return kind
    known = [name for kind in kinds for name in entries(kind)]
    words = KINDS if kinds == KINDS else ()
    raise ConfigError(f"nothing to list is named {name!r}: {nearest(name, (*words, *known), otherwise=words)}")


def _block(kind: str, names: Sequence[str], brief: bool) -> str:
    if kind != "objectives":
        return _lines({name: entries(kind)[name] for name in names})
    chosen = [get_objective(name) for name in names]
    if brief:
        members = {title: [made for made in chosen if made.family == name] for name, title in style.FAMILIES.items()}
        column = max(len(made.name) for made in chosen)
        block = lambda some: _lines({f"  {made.name:{column}}": made.summary for made in some})
        return "\n\n".join(f"{title}:\n{block(some)}" for title, some in members.items() if some)
    if len(chosen) > 5:
        print("measuring the forces: some seconds, the first time up to a minute", file=sys.stderr)
    return "\n\n".join(fitted(describe(made), terminal_width(), 11) for made in chosen)


def _lines(texts: Mapping[str, str]) -> str:
    column = max(map(len, texts)) + 2
    return "\n".join(fitted(f"{name:{column}}{text}", terminal_width(), column) for name, text in texts.items())


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


def cite(options: argparse.Namespace) -> int:
    """`cite`: BibTeX of the paper, and of the objectives that are named."""
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


def readme(options: argparse.Namespace) -> int:
    """`readme`: put new tables between the lines that mark their places, or only check them."""
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

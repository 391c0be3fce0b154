"""The one style table: colour is the family, line style is the method, and both always come with a label.

Plain data without any plotting library, so that Python figures and the browser draw from the same table
(`as_json`). Colours keep a contrast of 3:1 on white and stay apart under the three colour-vision deficiencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COLOURS: Mapping[str, str] = {
    "supervised": "#0072B2",
    "reward": "#D55E00",
    "preference": "#009E73",
    "unpaired": "#CC79A7",
    "distribution": "#000000",
    "penalty": "#000000",
}
FAMILIES: Mapping[str, str] = {
    "supervised": "supervised",
    "reward": "policy gradient",
    "preference": "pairwise preference",
    "unpaired": "unpaired preference",
    "distribution": "distribution matching",
    "penalty": "KL penalty",
}
REFERENCE = "#6B6B6B"
REWARD = "#F2C500"
REWARD_EDGE = "#A67C00"
OPTIMUM = "#000000"

# On and off lengths in line widths, as matplotlib and a canvas both take them; () is solid.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5.0, 2.0),
    (1.0, 1.5),
    (7.0, 2.0, 1.0, 2.0),
    (10.0, 3.0),
    (2.5, 1.5),
    (7.0, 2.0, 1.0, 2.0, 1.0, 2.0),
    (10.0, 2.0, 3.0, 2.0),
)
REFERENCE_DASHES: tuple[float, ...] = (4.0, 2.0)

# Line styles that hold in every picture. Whole names first, then what follows an objective's name.
METHOD_DASHES: Mapping[str, int] = {
    name: i
    for names in (
        ("best_of_n", "pref_ft", "rwr", "sft", "filtered", "awr", "rwr_normalized"),
        ("reinforce_group", "ppo_clip", "grpo", "rloo", "dr_grpo", "dapo", "gspo", "reinforce"),
        ("dpo", "ipo", "simpo", "orpo", "slic", "cdpo", "sppo", "chi2_po"),
        ("kto", "bco"),
        ("forward_kl", "reverse_kl", "jensen_shannon", "alpha_divergence"),
    )
    for i, name in enumerate(names)
}
REGIME_DASHES: Mapping[str, int] = {"on-policy": 0, "offline": 1}

_WORDS: Mapping[str, str] = {
    "asymre": "AsymRE",
    "best_of_n": "Best-of-N",
    "best_of_n_complement": "Best-of-N + complement",
    "best_of_n_negative": "Best-of-N + negatives",
    "best_of_n_worst": "Best-of-N + worst",
    "cdpo": "cDPO",
    "chi2_po": "χPO",
    "discopop": "DiscoPOP",
    "dpop": "DPO-Positive",
    "dr_grpo": "Dr. GRPO",
    "fdpo_alpha": "f-DPO alpha",
    "fdpo_forward": "f-DPO forward KL",
    "fdpo_js": "f-DPO JS",
    "jensen_shannon": "Jensen-Shannon",
    "nash_md": "Nash-MD",
    "ppo_clip": "PPO-clip",
    "pref_ft": "Pref-FT",
    "reinforce": "REINFORCE",
    "reinforce_group": "REINFORCE group",
    "reinforce_normalized": "REINFORCE z-score",
    "reinforce_running": "REINFORCE running",
    "simpo": "SimPO",
    "slic": "SLiC",
}
_ACRONYMS = frozenset({
    "sft", "rwr", "awr", "rloo", "grpo", "gspo", "cispo", "dapo", "dpo", "ipo", "orpo", "cpo", "exo", "nca", "sppo",
    "apo", "kto", "bco", "xpo", "bond", "kl", "k1", "k2", "k3",
})  # fmt: skip

# 14 points and more on a slide 13.33 inches wide can be read from the last row.
SLIDE = (13.33, 7.5)
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 16,
    "axes.titlesize": 18,
    "axes.labelsize": 16,
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "legend.fontsize": 14,
    "lines.linewidth": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "figure.facecolor": "white",
    "savefig.dpi": 120,
    "svg.fonttype": "path",
    "svg.hashsalt": "bandit_pft",
}


def colour(family: str) -> str:
    """Hex colour of a family; what belongs to none is drawn as a target, black."""
    return COLOURS.get(family, OPTIMUM)


def label(method: str) -> str:
    """A method's name as it is written in the field; what follows the name's first word stays as it is."""
    head, space, rest = method.partition(" ")
    if head in _WORDS:
        return _WORDS[head] + space + rest
    return " ".join(w.upper() if w in _ACRONYMS else w for w in head.split("_")) + space + rest


def line_styles(methods: Iterable[str], families: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Dashes of each method, different for every two methods of one colour.

    A method in `METHOD_DASHES` keeps its own. One whose name ends in a word of `REGIME_DASHES` has that word's if it
    is free, and the others the first that is free. Only beyond `len(DASHES)` methods of one colour do dashes repeat.
    """
    pairs = list(zip(methods, families, strict=True))
    taken: dict[str, dict[str, int]] = {}
    wanted = {method: METHOD_DASHES.get(method, REGIME_DASHES.get(method.rpartition(" ")[2])) for method, _ in pairs}
    for method, family in sorted(pairs, key=lambda pair: (pair[0] not in METHOD_DASHES, wanted[pair[0]] is None)):
        mates = taken.setdefault(colour(family), {})
        used = list(mates.values())
        own = wanted[method]
        mates[method] = min(range(len(DASHES)), key=used.count) if own is None or own in used else own
    return {method: DASHES[taken[colour(family)][method]] for method, family in pairs}


def as_json() -> dict[str, Any]:
    """The table for the browser: only strings, numbers, lists and objects."""
    return {
        "families": {name: {"colour": COLOURS[name], "label": FAMILIES[name]} for name in COLOURS},
        "reference": {"colour": REFERENCE, "dashes": list(REFERENCE_DASHES)},
        "reward": {"colour": REWARD, "edge": REWARD_EDGE},
        "optimum": {"colour": OPTIMUM},
        "dashes": [list(dashes) for dashes in DASHES],
        "methods": {name: {"dashes": i, "label": label(name)} for name, i in METHOD_DASHES.items()},
    }

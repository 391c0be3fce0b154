"""The style table can be read by people, whatever their eyes, and by the browser."""

import itertools
import json

import numpy as np
import pytest

from bandit_pft import style
from bandit_pft.objectives import OBJECTIVES

HUES = sorted(set(style.COLOURS.values()))
# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(hex_colour: str) -> np.ndarray:
    value = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(hex_colour: str) -> float:
    return float(linear(hex_colour) @ [0.2126, 0.7152, 0.0722])


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.asarray(to_xyz) @ rgb / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("hue", [*HUES, style.REFERENCE, style.REWARD_EDGE, style.OPTIMUM])
def test_every_line_colour_has_a_contrast_of_three_to_one_on_white(hue):
    assert 1.05 / (luminance(hue) + 0.05) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_families_stay_apart_in_every_colour_vision_type(vision):
    seen = {hue: lab(np.clip(VISION[vision] @ linear(hue), 0, 1)) for hue in HUES}
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(HUES, 2))
    assert nearest > 5 * 2.3  # 2.3 is just noticeable side by side; lines lie apart.


def test_every_family_of_an_objective_has_a_colour_and_a_label():
    assert {made.family for made in OBJECTIVES.values()} <= set(style.COLOURS) == set(style.FAMILIES)


def test_every_name_in_the_table_is_an_objective():
    assert set(style.METHOD_DASHES) <= set(OBJECTIVES)


def test_methods_of_one_colour_differ_in_line_style_until_styles_run_out():
    families = [(made.name, made.family) for made in OBJECTIVES.values()]
    for family in style.COLOURS:
        names = [name for name, its in families if style.colour(its) == style.colour(family)][: len(style.DASHES)]
        chosen = style.line_styles(names, [OBJECTIVES[name].family for name in names])
        assert len(set(chosen.values())) == len(names)


def test_a_known_method_looks_the_same_next_to_any_other():
    alone = style.line_styles(["ipo"], ["preference"])["ipo"]
    crowded = style.line_styles(["mine", "dpo offline", "ipo", "dpo"], ["preference"] * 4)["ipo"]
    assert alone == crowded == style.DASHES[1]


def test_offline_is_dashed_and_on_policy_solid_in_every_family():
    names = ["best_of_n offline", "best_of_n on-policy", "dpo on-policy", "dpo offline"]
    chosen = style.line_styles(names, ["supervised"] * 2 + ["preference"] * 2)
    assert chosen[names[0]] == chosen[names[3]] == style.DASHES[1]
    assert chosen[names[1]] == chosen[names[2]] == style.DASHES[0]


@pytest.mark.parametrize(
    ("name", "written"),
    [("dpo", "DPO"), ("best_of_n offline", "Best-of-N offline"), ("kl_k3", "KL K3"), ("my_loss", "my loss")],
)
def test_names_are_written_as_in_the_field(name, written):
    assert style.label(name) == written


def test_the_browser_gets_the_same_table_as_plain_json():
    assert json.loads(json.dumps(style.as_json())) == style.as_json()
    assert style.as_json()["families"]["reward"] == {"colour": style.COLOURS["reward"], "label": "policy gradient"}

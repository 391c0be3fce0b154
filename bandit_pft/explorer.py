"""Place the reward's peak, watch the mass move: the runs behind the explorer, and the three places where it is shown.

All mathematics is here and in the engine; `static/explorer.js` draws. A `Scene` says what is placed where, `film` runs
every method in it. `export` writes one HTML file with the films of every place of the peak, `explore` is the live
widget of a notebook, or sliders where its library is missing.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.util
import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key
from matplotlib import rc_context
from matplotlib.figure import Figure

from bandit_pft import paper, style
from bandit_pft.engine.state import Plan, plan
from bandit_pft.errors import (
    ConfigError,
    DomainError,
    as_floats,
    check_choice,
    check_finite,
    check_integer,
    check_names,
    check_number,
    shown,
)
from bandit_pft.kernels import Compiled
from bandit_pft.methods import Method
from bandit_pft.objectives import OBJECTIVES, measure
from bandit_pft.probes import State, standard_probe
from bandit_pft.problems import Problem, bandit, log_softmax, paper_reference, peaks
from bandit_pft.simulate import check_run, run, seed_keys
from bandit_pft.store import check_writable, write_file

STATIC = Path(__file__).with_name("static")
STEPS = 100
# The steps that are shown: dense where policies move fast.
FRAMES = (0, 1, 2, 3, 5, 7, 10, 14, 19, 25, 32, 40, 50, 64, 80, 100)
CONTEXTS, PROMPTS = 16, 4  # Of a sampled run, 10 responses each: 160 rewards once offline, 40 a step on-policy.
SEEDS = 32
# Of the optimum that is drawn, and the default of the objectives that have one. IPO's 0.05 says the same in its own
# words: a pair leads by 1 / (2 beta) = 10 nats, as two actions do in the optimum whose rewards differ by 1.
BETA = 0.1
REFERENCES = {"paper": "the paper's reference", "flat": "flat", "wrong": "wrong: the paper's, mirrored"}

QUANTITIES = (
    ("expected_reward", "Expected reward", ""),
    ("kl", "KL(policy ‖ reference)", "nats"),
    ("kl_reverse", "KL(reference ‖ policy)", "nats"),
    ("entropy", "Entropy", "nats"),
    ("mass_near_peak", "Mass near the peak", ""),
    ("queries", "Reward queries", ""),
)
CONTROLS = ("presets", "methods", "width", "height", "second", "reference", "view", "log", "forces", "samples",
            "sampled", "numbers", "curve", "pin", "predict", "share", "python", "export", "timeline", "present",
            "theme")  # fmt: skip


# --- what is placed where --------------------------------------------------------------------------------------------
class Peak(NamedTuple):
    """Gaussian bump of the reward: where its top stands (an action), how wide it is [actions], how high."""

    peak: int
    width: float
    height: float = 1.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that decides the runs of an explorer, apart from the methods.

    Attributes:
        peak, width, height: of the reward's peak, an action and actions.
        second: another peak, or None.
        reference: "paper", "flat", "wrong" (the paper's, mirrored), or one logit per action.
        learning_rate: multiplies every method's own.
        hyper: name -> factor on this hyper-parameter of every method that has it; a method's own where it is left out.
        seed: of the sampled runs; the first of `SEEDS`.
    """

    peak: int = 70
    width: float = 10.0
    height: float = 1.0
    second: Peak | None = None
    reference: str | Sequence[float] = "paper"
    learning_rate: float = 1.0
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @classmethod
    def of(cls, scene: Any) -> Scene:
        """A scene from the browser's plain one, where `hyper_beta` stands for `hyper["beta"]`.

        Raises:
            ConfigError, DomainError, TypeError: naming what does not fit.
        """
        if isinstance(scene, Scene):
            return scene
        if not isinstance(scene, Mapping):
            raise TypeError(f"scene is {shown(scene)}; it must be a Scene or a dictionary such as {{'peak': 70}}")
        plain = {name: value for name, value in scene.items() if not str(name).startswith("hyper_")}
        factors = {str(name)[6:]: value for name, value in scene.items() if str(name).startswith("hyper_")}
        check_names("scene", plain, (field.name for field in dataclasses.fields(cls)))
        plain["hyper"] = {**plain.get("hyper", {}), **factors}
        if isinstance(plain.get("second"), Mapping):
            check_names("second", plain["second"], Peak._fields)
            plain["second"] = Peak(**plain["second"])
        return cls(**plain)

    def check(self, actions: int) -> None:
        """Refuse what cannot be placed on this many actions."""
        for name, bump in (("", self), ("second ", self.second)):
            if bump is None:
                continue
            check_integer(f"{name}peak", bump.peak, at_least=0)
            if bump.peak >= actions:
                raise DomainError(f"{name}peak is {bump.peak}; the last of {actions} actions is {actions - 1}")
            check_number(f"{name}width", bump.width, above=0)
            check_number(f"{name}height", bump.height)
        check_number("learning_rate", self.learning_rate, above=0)
        for name, factor in self.hyper.items():
            check_number(f"hyper_{name}", factor, above=0)
        seed_keys([self.seed])
        if isinstance(self.reference, str):
            check_choice("reference", self.reference, REFERENCES)
        else:
            check_finite("reference", as_floats("reference", self.reference, shape=(actions,)), allow_minus_inf=True)

    def plain(self) -> dict[str, Any]:
        """The scene as the browser has it."""
        own = {name: getattr(self, name) for name in ("peak", "width", "height", "learning_rate", "seed")}
        reference = self.reference if isinstance(self.reference, str) else [float(x) for x in self.reference]
        second = None if self.second is None else self.second._asdict()
        return {**own, "second": second, "reference": reference, **{f"hyper_{k}": v for k, v in self.hyper.items()}}

    def reward(self, actions: int) -> Float[Array, " A"]:
        """One reward per action."""
        both = [self, *([] if self.second is None else [self.second])]
        return peaks(actions, *([float(getattr(bump, name)) for bump in both] for name in Peak._fields))

    def ref_log_prob(self, actions: int) -> Float[Array, " A"]:
        """log pi_ref of every action [nats]."""
        if not isinstance(self.reference, str):
            return log_softmax(as_floats("reference", self.reference))
        paper = log_softmax(paper_reference(actions))
        return {"paper": paper, "flat": log_softmax(jnp.zeros(actions)), "wrong": paper[::-1]}[self.reference]


def method_names() -> list[str]:
    """What `method_named` knows: every objective offline and on-policy; without either what looks at every response."""
    regimes = lambda family: [""] if family == "distribution" else [" offline", " on-policy"]
    return [name + regime for name, made in OBJECTIVES.items() for regime in regimes(made.family)]


def method_named(name: str) -> Method:
    """A method with README's settings, by its objective and how it learns: "ipo offline", "grpo on-policy".

    Raises:
        ConfigError: no such method, with the nearest names.
    """
    objective, _, regime = name.partition(" ")
    known = method_names()
    check_names("methods", [name], [one for one in known if one.split()[0] == objective] or known)
    own = paper.IPO if objective == "ipo" else {}
    if objective == "reinforce":  # README's divides by the spread of the group.
        objective = "reinforce_normalized"
    if regime == "offline":
        pairs = OBJECTIVES[objective].family == "preference"
        made = paper.offline(objective, min_gap=paper.GAP if pairs else 0.0, **own)
    else:
        made = paper.on_policy(objective, data="sampled" if regime else "exact", **own)
    return dataclasses.replace(made, name=name, prompts=PROMPTS if regime == "on-policy" else None)


def standard_methods() -> list[Method]:
    """The eight that an explorer starts with: README's, DPO, and two that see the whole target."""
    names = ("best_of_n offline", "best_of_n on-policy", "ipo offline", "ipo on-policy", "dpo offline",
             "reinforce on-policy", "forward_kl", "reverse_kl")  # fmt: skip
    return [method_named(name) for name in names]


def presets(actions: int = 100) -> dict[str, tuple[str, str, Scene]]:
    """Name -> label, the question that it asks, and the scene: places in shares of the actions."""
    at = lambda share: round(share * actions)
    wide, narrow = actions / 10, actions / 25
    far, near = Scene(at(0.7), wide), Scene(at(0.2), wide)
    also = lambda scene, **changes: dataclasses.replace(scene, **changes)
    # With the paper's 100 actions these are its bandits; with fewer they have their shape, and not their name.
    named = lambda label, name: f"{label} (paper's {name})" if actions == 100 else label
    return {
        "near": (named("Near peak", "R5"), "The reference already visits the peak. Is imitation enough?", near),
        "far": (named("Far peak", "R4"), "Offline imitation stops where its data end. Who gets further?", far),
        "narrow": ("Narrow peak", "A few good actions among many. Who finds them?", also(far, width=narrow)),
        "two_peaks": (
            "Two peaks", "A low peak where the mass is, a high one far away. Who gives up the first?",
            also(far, second=Peak(at(0.35), wide, 0.6)),
        ),
        "flat": (
            "Flat reference", "Every action is equally likely at first. Who still needs its own samples?",
            also(far, reference="flat"),
        ),
        "wrong": (
            "Wrong reference", "Nearly all mass is at the other end. Who repairs that?", also(near, reference="wrong"),
        ),
    }  # fmt: skip


# --- the runs --------------------------------------------------------------------------------------------------------
def _probe(problem: Problem, state: State) -> dict[str, Array]:
    """At the steps of `FRAMES`: the standard numbers, the policy, and the force on the first group of responses."""

    def see() -> dict[str, Array]:
        # All contexts are equal: one is enough.
        tables = {name: getattr(state, name)[:1] for name in ("log_probs", "ref_log_probs", "rewards")}
        numbers = standard_probe(problem, state.replace(**tables))
        return {
            "log_prob": tables["log_probs"][0],
            "response": state.groups.response[0, :, 0],
            "force": state.force[0, :, 0],
            "numbers": jnp.stack([numbers[name] for name, *_ in QUANTITIES[:-1]]),
        }

    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(see))
    return jax.lax.cond((state.step == jnp.asarray(FRAMES)).any(), see, lambda: blank)


def _frames(problem: Problem, method: Method, its_plan: Plan, key: Key[Array, ""]) -> dict[str, Array]:
    record = run(problem, method, key, its_plan, steps=STEPS, probe=_probe, every=1).record
    return jax.tree.map(lambda x: x[jnp.asarray(FRAMES)], record)


@Compiled
def _exact(problem: Problem, methods: list[Method], plans: list[Plan]) -> list[dict[str, Array]]:
    """Population dynamics of all methods, in one program."""
    return [_frames(problem, *one, jax.random.key(0)) for one in zip(methods, plans, strict=True)]


@Compiled
def _sampled(
    problems: list[Problem], methods: list[Method], plans: list[Plan], keys: Key[Array, " W"]
) -> list[dict[str, Array]]:
    """The first sampled run of each method, and the numbers of all, [W, F, Q - 1], as `seeds`."""
    found = []
    for one in zip(problems, methods, plans, strict=True):
        seen = jax.vmap(partial(_frames, *one))(keys)
        found.append({name: x[0] for name, x in seen.items()} | {"seeds": seen["numbers"]})
    return found


class Cast:
    """The methods of an explorer, made ready to run in any scene of `actions` actions.

    Raises:
        ConfigError: an unknown name, a name used twice, no method. TypeError: neither a name nor a Method.
    """

    def __init__(self, methods: Iterable[Any] | None = None, actions: int = 100) -> None:
        check_integer("actions", actions, at_least=2)
        self.actions, self.methods = actions, []
        for given in standard_methods() if methods is None else methods:
            if not isinstance(given, (str, Method)):
                raise TypeError(f"methods has {shown(given)}; give a Method, or a name such as 'dpo offline'")
            self.methods.append(method_named(given) if isinstance(given, str) else given)
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"methods are {names}; there must be at least one, and no name twice: pass name=...")
        # What cannot run is refused here, and not under the hand that drags.
        scene, flat = Scene(0, 1.0), jnp.zeros(actions)
        for method in self.methods:
            check_run(self.problem(flat, flat), self.run_as(method, True, scene), STEPS, 1)
            check_run(self.problem(flat, flat, method), method, STEPS, 1)

    @staticmethod
    def problem(reward: Array, reference: Array, method: Method | None = None) -> Problem:
        """One context for exact runs; for a sampled method as many equal ones as there are groups in a collection."""
        tiled = lambda x: jnp.tile(x, (1 if method is None else method.prompts or CONTEXTS, 1))
        return bandit(tiled(reward), tiled(reference))

    @staticmethod
    def is_target(method: Method) -> bool:
        """Whether a method has exact data only."""
        return method.data == "exact"

    @staticmethod
    def run_as(method: Method, exact: bool, scene: Scene) -> Method:
        """A method with exact or sampled data, its numbers multiplied by the scene's factors."""
        own = {**method.objective.hyper, **method.hyper}
        hyper = {**method.hyper, **{k: own[k] * factor for k, factor in scene.hyper.items() if k in own}}
        changes: dict[str, Any] = {"data": "exact", "prompts": None, "minibatch": None} if exact else {}
        rate = method.learning_rate * scene.learning_rate
        return dataclasses.replace(method, hyper=hyper, learning_rate=rate, **changes)

    def film(self, scene: Any, sampled: bool = True) -> dict[str, np.ndarray]:
        """All arrays of a scene by name, as `static/explorer.js` reads them.

        reward, ref_log_prob, optimum_log_prob [A]; log_prob, force [M, F, A]; numbers [M, F, Q]. With sampled runs also
        sampled_log_prob [M, F, A]; response (an action, -1: none), sampled_force [M, F, N]; sampled_numbers [M, F, Q];
        band [M, F, Q, 2], 10 and 90 % over `SEEDS` seeds. A target's sampled run is its exact one.
        """
        scene = Scene.of(scene)
        scene.check(self.actions)
        reward, reference = scene.reward(self.actions), scene.ref_log_prob(self.actions)
        beta = BETA * scene.hyper.get("beta", 1.0)
        arrays = {
            "reward": reward,
            "ref_log_prob": reference,
            "optimum_log_prob": log_softmax(reference + reward / beta),
        }
        problem = self.problem(reward, reference)
        methods = [self.run_as(method, True, scene) for method in self.methods]
        found = _exact(problem, methods, [plan(problem, method) for method in methods])
        arrays |= {name: np.stack([one[name] for one in found]) for name in ("log_prob", "force", "numbers")}
        arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
        # With infinite data there is no count of queries.
        endless = np.full((*arrays["numbers"].shape[:2], 1), np.inf, np.float32)
        arrays["numbers"] = np.concatenate([arrays["numbers"], endless], -1)
        return {**arrays, **self._sampled_film(scene, reward, reference, arrays)} if sampled else arrays

    def _sampled_film(
        self, scene: Scene, reward: Array, reference: Array, exact: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        places = [i for i, method in enumerate(self.methods) if not self.is_target(method)]
        methods = [self.run_as(self.methods[i], False, scene) for i in places]
        problems = [self.problem(reward, reference, method) for method in methods]
        plans = [plan(*one) for one in zip(problems, methods, strict=True)]
        found = _sampled(problems, methods, plans, seed_keys([(scene.seed + i) % 2**32 for i in range(SEEDS)]))
        widest = max([1, *(method.num_responses for method in methods)])
        shape = (*exact["numbers"].shape[:2], widest)
        film = {
            "sampled_log_prob": exact["log_prob"].copy(), "sampled_numbers": exact["numbers"].copy(),
            "response": np.full(shape, -1, np.float32), "sampled_force": np.zeros(shape, np.float32),
            "band": np.repeat(exact["numbers"][..., None], 2, -1),
        }  # fmt: skip
        for i, method, problem, its_plan, one in zip(places, methods, problems, plans, found, strict=True):
            one = jax.tree.map(np.asarray, one)
            rewards = problem.num_contexts * method.num_responses
            queries = np.ceil(np.asarray(FRAMES) / int(its_plan.period)) * rewards
            film["sampled_log_prob"][i] = one["log_prob"]
            film["response"][i, :, : method.num_responses] = one["response"]
            film["sampled_force"][i, :, : method.num_responses] = one["force"]
            film["sampled_numbers"][i] = np.concatenate([one["numbers"], queries[:, None]], -1)
            film["band"][i, :, :-1] = np.moveaxis(np.quantile(one["seeds"], [0.1, 0.9], axis=0), 0, -1)
            film["band"][i, :, -1] = queries[:, None]
        return film


def film(
    scene: Any,
    methods: Iterable[Any] | None = None,
    *,
    actions: int = 100,
    sampled: bool = True,
) -> xr.Dataset:
    """The runs that an explorer shows, with dims algorithm, step, action, response_number, quantity and bound.

    Args:
        scene: a `Scene`, or a dictionary as the explorer's "copy as Python" writes it.
        methods: methods, or names that `method_named` knows; default those of `standard_methods`.
        sampled: also sampled runs; otherwise the exact dynamics alone.

    Raises:
        ConfigError, DomainError, ShapeError, TypeError: what does not fit.
    """
    cast = Cast(methods, actions)
    dims = {
        **dict.fromkeys(("reward", "ref_log_prob", "optimum_log_prob"), ("action",)),
        **dict.fromkeys(("log_prob", "force", "sampled_log_prob"), ("algorithm", "step", "action")),
        **dict.fromkeys(("response", "sampled_force"), ("algorithm", "step", "response_number")),
        **dict.fromkeys(("numbers", "sampled_numbers"), ("algorithm", "step", "quantity")),
        "band": ("algorithm", "step", "quantity", "bound"),
    }
    arrays = {name: (dims[name], x) for name, x in cast.film(scene, sampled).items()}
    coords = {
        "algorithm": [method.name for method in cast.methods],
        "step": np.asarray(FRAMES),
        "quantity": [name for name, *_ in QUANTITIES],
        "bound": ["10 %", "90 %"],
    }
    return xr.Dataset(arrays, {k: v for k, v in coords.items() if any(k in d for d, _ in arrays.values())})


# --- what the browser is told ----------------------------------------------------------------------------------------
def meta(cast: Cast, scene: Scene, *, mode: str, hide: Sequence[str] = (), title: str = "") -> dict[str, Any]:
    """All that `static/explorer.js` knows besides films, as plain JSON.

    Raises:
        ConfigError: `hide` has a name that is none of `CONTROLS`.
    """
    check_names("hide", hide, CONTROLS)
    names = [method.name for method in cast.methods]
    dashes = style.line_styles(names, [method.objective.family for method in cast.methods])
    hypers = sorted({name for method in cast.methods for name in method.objective.hyper})
    factor = lambda label: {"label": f"{label} ×", "min": 0.1, "max": 10, "step": 0.1, "unit": "", "value": 1.0}
    drawn = {"drawn": "drawn by hand"} if mode == "live" else {}
    controls = {
        "width": {"label": "Width", "min": 1, "max": cast.actions / 2, "step": 1, "unit": "actions"},
        "height": {"label": "Height", "min": 0.1, "max": 2, "step": 0.1, "unit": "reward"},
        "learning_rate": factor("Learning rate"),
        **{f"hyper_{name}": factor(name) for name in hypers},
        "seed": {"label": "Seed", "min": 0, "max": 99, "step": 1, "unit": "", "value": 0},
    }
    return {
        "format": 1,
        "mode": mode,
        "title": title or "Place the peak, watch the mass move",
        "actions": cast.actions,
        "style": style.as_json(),
        "methods": [
            {
                "name": method.name,
                "label": style.label(method.name),
                "family": method.objective.family,
                "colour": style.colour(method.objective.family),
                "dashes": list(dashes[method.name]),
                "says": method.objective.summary
                + (f" Pairs closer than {method.min_gap:g} in reward are left out." if method.min_gap else ""),
                "data": "target" if cast.is_target(method) else "offline" if method.on_policy <= 0 else "on-policy",
                "pushes": measure(method.objective).pushes,
            }
            for method in cast.methods
        ],
        "shown": names[:6],
        "scene": {**dict.fromkeys((f"hyper_{name}" for name in hypers), 1.0), **scene.plain()},
        "presets": [
            {"name": name, "label": label, "says": says, "scene": its_scene.plain()}
            for name, (label, says, its_scene) in presets(cast.actions).items()
        ],
        "numbers": [{"name": name, "label": label, "unit": unit} for name, label, unit in QUANTITIES],
        "controls": controls if mode == "live" else {"width": controls["width"]},
        "references": [{"name": name, "label": label} for name, label in {**REFERENCES, **drawn}.items()],
        "hide": list(hide),
        "seeds": SEEDS,
        "responses": max(method.num_responses for method in cast.methods),
        "python": _PYTHON.replace("{{actions}}", str(cast.actions)),
    }


_PYTHON = """\
from bandit_pft.explorer import film

scene = {{scene}}
runs = film(scene, {{methods}}, actions={{actions}})
print(runs["numbers"].sel(step={{step}}).to_pandas())  # Exact; sampled_numbers: one run; band: over seeds.
"""


def packed(arrays: Mapping[str, np.ndarray], **header: Any) -> bytes:
    """One film for the live widget: length and text of a JSON header, then float32 arrays, little-endian."""
    header["arrays"] = [{"name": name, "shape": list(x.shape)} for name, x in arrays.items()]
    text = json.dumps({**header, "steps": list(FRAMES)}).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(np.ascontiguousarray(x, "<f4").tobytes() for x in arrays.values())
    return len(text).to_bytes(4, "little") + text + body


# --- one HTML file ---------------------------------------------------------------------------------------------------
FLOOR, CODE = -60.0, 1 / 512  # nats: the least log-probability in a file, and the steps between two.


def _differences(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Differences along these axes, wrapping around: small numbers, which compress well."""
    for axis in axes:
        first = np.take(x, [0], axis)
        x = np.concatenate([first, np.diff(x, axis=axis)], axis)
    return x


def shard(films: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Films of one scene with the peak at action 0, 1, ..., packed as text.

    Log-probabilities have 16 bits (8 would show in the logarithmic view), forces 8 bits on a scale of their own in each
    picture, numbers are off by 2e-6 at most.
    """
    parts, described = [], []

    def add(name: str, x: np.ndarray, **how: Any) -> None:
        described.append({"name": name, "shape": list(x.shape), "dtype": str(x.dtype), **how})
        x = _differences(x, how.get("delta", ()))
        low_high = np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8).reshape(-1, x.dtype.itemsize)
        parts.append((low_high.T if x.dtype.itemsize == 2 else low_high).tobytes())

    for name in films[0]:
        x = np.stack([one[name] for one in films])
        if name.endswith("log_prob"):
            last = x.ndim - 1
            coded = np.round(np.maximum(x, FLOOR) / CODE).astype("<i2")
            add(name, coded, scale=CODE, delta=[last - 1, last] if x.ndim == 4 else [last])
        elif name.endswith("force"):
            largest = np.abs(x).max(-1, keepdims=True)
            add(name, np.round(x / np.where(largest > 0, largest, 1) * 127).astype(np.int8))
            add(f"{name}_scale", (largest[..., 0] / 127).astype("<f4"))
        elif name == "response":
            add(name, np.where(x < 0, 255, x).astype(np.uint8))
        else:  # Bits beyond what is shown would not compress.
            step = 2.0**-12 if name == "band" else 2.0**-18
            add(name, (np.round(x / step) * step).astype("<f4"))
    data = base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()
    return {"steps": list(FRAMES), "arrays": described, "data": data}


def export(
    path: str | Path,
    methods: Iterable[Any] | None = None,
    *,
    actions: int = 50,
    hide: Sequence[str] = (),
    title: str = "",
    progress: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write an explorer as one HTML file that needs no network, no server and no Python.

    JAX makes the film of every place of the peak, for each width, second peak and reference among the presets; sampled
    runs for the width and reference of the paper.

    Args:
        actions: at most 255, one byte per drawn action. progress: is told how many films of how many are made.

    Raises:
        ConfigError, DomainError, TypeError: as `film`. StoreError: the file cannot be written; nothing is left of it.
    """
    cast = Cast(methods, actions)
    if actions > 255:
        raise DomainError(f"actions is {actions}; a file holds a film for every action, so at most 255: use explore()")
    told = meta(cast, presets(actions)["far"][2], mode="file", hide=hide, title=title)
    check_writable(Path(path))
    write_file(Path(path), _page(cast, told, progress))
    return Path(path)


def _page(cast: Cast, told: dict[str, Any], progress: Callable[[int, int], Any] | None) -> bytes:
    actions = cast.actions
    fixed = ("width", "second", "reference")
    grid = [{name: preset["scene"][name] for name in fixed} for preset in told["presets"]]
    grid = [one for i, one in enumerate(grid) if one not in grid[:i]]
    shards = []
    for one in grid:
        films = []
        for peak in range(actions):
            if progress:
                progress(len(shards) * actions + peak, len(grid) * actions)
            films.append(cast.film({**one, "peak": peak}, sampled=not shards))
        shards.append(shard(films))
    told = {**told, "grid": [{**one, "shard": i} for i, one in enumerate(grid)]}
    # No text may end the script that holds it.
    data = json.dumps({"meta": told, "shards": shards}).replace("<", "\\u003c")
    css, code = ((STATIC / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return _PAGE.format(title=html.escape(told["title"]), css=css, code=code, data=data).encode()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main id="explorer"><noscript>The explorer needs JavaScript.</noscript></main>
<script type="application/json" id="bandit-pft-data">{data}</script>
<script type="module">
{code}
boot(document.getElementById("explorer"));
</script>
</body>
</html>
"""


# --- in a notebook ---------------------------------------------------------------------------------------------------
def explore(
    methods: Iterable[Any] | None = None,
    preset: str = "far",
    *,
    scene: Any = None,
    actions: int = 100,
    hide: Sequence[str] = (),
    title: str = "",
) -> Any:
    """The explorer in a notebook: live, or with sliders where anywidget is not installed.

    Args:
        methods: methods, your own too, or names that `method_named` knows; default those of `standard_methods`.
        preset: the first scene, a name of `presets`. scene: instead of it.
        hide: parts that a lesson leaves out, of `CONTROLS`.

    Raises:
        ConfigError, DomainError, TypeError: as `film`. ImportError: neither anywidget nor ipywidgets is installed.
    """
    cast = Cast(methods, actions)
    known = presets(actions)
    check_choice("preset", preset, known)
    first = known[preset][2] if scene is None else Scene.of(scene)
    first.check(actions)
    told = meta(cast, first, mode="live", hide=hide, title=title)
    if importlib.util.find_spec("anywidget"):
        return _widget_class()(cast, told)
    if importlib.util.find_spec("ipywidgets"):
        return sliders(cast, first)
    raise ImportError("the explorer needs anywidget: pip install 'bandit-pft[lab]'")


@cache
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class Explorer(anywidget.AnyWidget):
        """Answers the browser's requests for films, the newest first."""

        _esm = STATIC / "explorer.js"
        _css = STATIC / "explorer.css"
        meta = traitlets.Dict().tag(sync=True)
        request = traitlets.Dict().tag(sync=True)
        film = traitlets.Bytes().tag(sync=True)

        def __init__(self, cast: Cast, told: dict[str, Any]) -> None:
            super().__init__(meta=told)
            self.cast = cast
            self.observe(self._answer, "request")

        def _answer(self, change: Mapping[str, Any]) -> None:
            asked = change["new"]
            try:
                arrays = self.cast.film(asked["scene"], asked["want"] == "sampled")
                self.film = packed(arrays, id=asked["id"], want=asked["want"])
            except (ValueError, TypeError, KeyError, RuntimeError) as error:
                self.send({"type": "error", "id": asked.get("id"), "text": str(error)})

    return Explorer


def sliders(cast: Cast, scene: Scene) -> Any:
    """The explorer with ipywidgets' sliders and matplotlib's pictures: exact runs, the distribution at one step."""
    import ipywidgets as widgets

    last = cast.actions - 1
    drag = lambda text, value, low, high: widgets.IntSlider(
        value, low, high, description=text, continuous_update=False, style={"description_width": "initial"}
    )
    controls = {
        "peak": drag("Peak", scene.peak, 0, last),
        "width": drag("Width", round(scene.width), 1, cast.actions // 2),
        "frame": widgets.SelectionSlider(options=[(str(step), i) for i, step in enumerate(FRAMES)], description="Step"),
        "log": widgets.Checkbox(False, description="Logarithmic"),
    }

    image = widgets.Image(format="png")

    def show(_: Any = None) -> None:
        at = dataclasses.replace(scene, peak=controls["peak"].value, width=float(controls["width"].value))
        figure, content = picture(cast, at, controls["frame"].value, log=controls["log"].value), io.BytesIO()
        figure.savefig(content, format="png", dpi=72)
        image.value = content.getvalue()

    for control in controls.values():
        control.observe(show, "value")
    show()
    return widgets.VBox([*controls.values(), image])


def picture(cast: Cast, scene: Scene, frame: int = -1, *, log: bool = False) -> Figure:
    """One frame of the exact film as a figure: small multiples with reference, reward and policy."""
    arrays, action = cast.film(scene, sampled=False), np.arange(cast.actions)
    with rc_context(style.RC):
        columns = min(4, len(cast.methods))
        figure = Figure(style.SLIDE, layout="constrained")
        axes = figure.subplots(-(-len(cast.methods) // columns), columns, sharex=True, sharey=True, squeeze=False)
        for ax, method, logp, numbers in zip(
            axes.flat, cast.methods, arrays["log_prob"][:, frame], arrays["numbers"][:, frame], strict=False
        ):
            top = max(np.exp(logp).max(), np.exp(arrays["ref_log_prob"]).max())
            reward = np.maximum(arrays["reward"], 0) / max(arrays["reward"].max(), 1e-30)
            ax.fill_between(action, reward * top, color=style.REWARD, alpha=0.35, linewidth=0)
            ax.plot(action, np.exp(arrays["ref_log_prob"]), color=style.REFERENCE, dashes=style.REFERENCE_DASHES)
            ax.plot(action, np.exp(logp), color=style.colour(method.objective.family))
            ax.set_title(f"{style.label(method.name)}: {numbers[0]:.2f}")
            if log:
                ax.set(yscale="log", ylim=(1e-12, 2))
        for ax in axes.flat[len(cast.methods) :]:
            ax.set_visible(False)
        figure.supxlabel("action")
        figure.supylabel("probability")
        figure.suptitle(f"Step {FRAMES[frame]}; expected reward above each picture; gold: the reward's shape")
    return figure

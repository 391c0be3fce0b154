"""Does the default JAX device compute what the CPU computes, and how fast? Made for a machine lent for minutes.

    python3 benchmarks/device_check.py [--seconds 270] [--only NAME ...] [--small]

Runs from a checkout, without an installation; needs jax, jaxtyping, numpy, optax and xarray. It also measures the
candidate kernel of pallas_step.py, which moves into the package only if it wins on a device. Ends with `ok` and exit
code 0, with what failed and 1, or with what the time did not suffice for and 3; 2: a package is missing. A check that
raises or crashes does not stop the others. Without an accelerator everything is small.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bandit_pft import SGD, Method, bandit, distribution_probe, paper_bandit, simulate, sweep
    from bandit_pft.kernels import mass_tree, replace_in_tree, sample_categorical
    from benchmarks import lent, pallas_step
    from benchmarks.lent import copy_of, seconds
    from benchmarks.peers import Peer, Worker, is_late
except ModuleNotFoundError as error:
    print(f"device_check needs {error.name}, which {sys.executable} does not have: pip install {error.name}")
    raise SystemExit(2) from None

TOLERANCE = 1e-4  # nats, after 50 steps in float32
EXACT = {"reinforce": 1.0, "dpo": 5.0}  # learning rates at which 50 steps move the policy by nats
BINS = 200
BATCH = 1 << 14  # draws at once: each reads a block of 1,024 actions


def on(device: Any, run: Callable[[], Any]) -> Any:
    """The result of `run` as NumPy arrays, and certain to come from this device."""
    with jax.default_device(device):
        result = jax.block_until_ready(run())
    places = {place for leaf in jax.tree.leaves(result) for place in leaf.devices()}
    if places != {device}:
        raise RuntimeError(f"meant for {device}, ran on {places}")
    return jax.tree.map(np.asarray, result)


# --- checks: each returns what it saw, and whether that is right -----------------------------------------------------
def exact_run(objective: str, device: Any, cpu: Any, precision: str | None = None) -> tuple[str, bool]:
    """50 population steps on 100 actions: final log-probabilities against the CPU's."""
    method = Method(objective, learning_rate=EXACT[objective], data="exact", optimizer=SGD)
    # The problem is made on the device as well.
    run = lambda: simulate(paper_bandit("R5"), method, 0, steps=50, every=50, probe=distribution_probe)
    with jax.default_matmul_precision(precision):
        ours, reference = (on(place, run).record["log_prob"] for place in (device, cpu))
    moved, gap = np.abs(reference[-1] - reference[0]).max(), np.abs(ours[-1] - reference[-1]).max()
    right = bool(gap <= TOLERANCE and moved > 0.1)
    text = f"moved by {moved:.2f} nats, largest difference {gap:.1e} nats"
    if not right and precision is None:
        text += f"; at the highest matmul precision: {exact_run(objective, device, cpu, 'highest')[0]}"
    return text, right


def responses_probe(problem: Any, state: Any) -> dict[str, Any]:
    return {"response": state.groups.response}


def first_draws(device: Any, cpu: Any) -> tuple[str, bool]:
    """Sampled GRPO under one seed: the draws before the first step must be the CPU's, later ones may drift."""
    steps = 50
    method = Method("grpo", learning_rate=0.2, num_responses=64, optimizer=SGD)
    run = lambda: simulate(paper_bandit("R5"), method, 1, steps=steps, probe=responses_probe)
    ours, reference = (on(place, run).record["response"] for place in (device, cpu))
    same = (ours == reference).reshape(steps + 1, -1).all(-1)
    distinct = len(np.unique(reference[0]))
    until = "all steps" if same.all() else f"step {int(np.argmin(same))}"
    return f"{ours[0].size} first draws, {distinct} distinct; equal until {until}", bool(same[0] and distinct > 1)


def sampler(actions: int, draws: int, device: Any, cpu: Any) -> tuple[str, bool]:
    """Frequencies in 200 bins against the exact masses, once in bins of neighbours and once of every 200th action."""
    place = np.arange(actions)
    logits = 2 * np.sin(14 * np.pi * place / actions) + np.sin(place % BINS)  # Uneven in either kind of bin.
    logits[3::1000] = -np.inf
    mass = np.exp(logits) / np.exp(logits).sum()

    def run() -> Any:
        keys = jax.random.split(jax.random.key(2, impl="threefry2x32"), draws // BATCH)
        each = lambda logp: jax.lax.map(lambda key: sample_categorical(key, logp, BATCH), keys)
        return jax.jit(each)(jnp.asarray(logits, jnp.float32))

    ours, reference = (on(where, run).reshape(-1) for where in (device, cpu))
    scores = []
    for label in (place * BINS // actions, place % BINS):
        expected = draws * np.bincount(label, mass, BINS)
        count = np.bincount(label[ours], minlength=BINS)
        statistic = ((count - expected) ** 2 / expected).sum() / (BINS - 1)
        # Wilson and Hilferty: the cube root of a chi-square over its degrees of freedom is nearly normal.
        spread = 2 / (9 * (BINS - 1))
        scores.append((math.cbrt(statistic) - 1 + spread) / math.sqrt(spread))
    forbidden = int((mass[ours] == 0).sum())
    text = f"A = {actions:,}, {draws:,} draws: chi-square {scores[0]:+.1f} and {scores[1]:+.1f} standard deviations, "
    text += f"{forbidden} of probability 0, {(ours == reference).mean():.4%} of the draws are the CPU's"
    return text, max(map(abs, scores)) < 5 and forbidden == 0


def few(actions: int, steps: int, device: Any, cpu: Any) -> tuple[str, bool]:
    """Steps on the drawn responses alone: the tree of sums after replacements, then offline DPO, against the CPU's."""
    random = np.random.default_rng(4)
    mass, new = random.random((2, actions), np.float32)
    action = random.integers(actions, size=64)
    replaced = lambda: jax.jit(replace_in_tree)(mass_tree(jnp.asarray(mass)), action, jnp.asarray(new[action]))
    ours, reference = (jax.tree.leaves(on(place, replaced)) for place in (device, cpu))
    rounding = max(np.abs(x / np.where(y == 0, 1, y) - (y != 0)).max() for x, y in zip(ours, reference, strict=True))
    reward, logits = random.random(actions), random.standard_normal(actions)
    # One fixed collection, so that rounding cannot change a draw half-way.
    method = Method("dpo", learning_rate=20.0, num_responses=16, on_policy=0.0, optimizer=SGD)
    run = lambda: simulate(bandit(reward, logits, name="large"), method, 0, steps=steps, every=steps).params
    ours, reference = (on(place, run) for place in (device, cpu))
    # The recorded steps go over all actions, and leave the rounding of a sum that should be 0 on each.
    drawn, moved = (np.abs(x) > 1e-3 for x in (reference, ours))
    gap, same = float(np.abs(ours - reference).max()), bool((drawn == moved).all())
    text = f"A = {actions:,}: sums equal to {rounding:.1e}; {drawn.sum()} logits moved, "
    text += f"{'' if same else 'not '}the CPU's, by up to {np.abs(reference).max():.1f}, largest difference {gap:.1e}"
    return text, rounding < 1e-5 and same and drawn.sum() > 1 and gap <= TOLERANCE


# --- timings: right whenever they run --------------------------------------------------------------------------------
def bandwidth(floats: int) -> tuple[str, bool]:
    return f"{8e-9 * floats / copy_of(8 * floats, 10):,.1f} GB/s read and written, {4e-6 * floats:,.0f} MB arrays", True


def candidate(actions: int, steps: int, adam: bool, half: bool, device: Any, cpu: Any) -> tuple[str, bool]:
    """The Pallas step: 50 steps against plain XLA's on device and CPU, and the time of both against a copy's.

    Args:
        half: whether the reference and the rewards are kept in bfloat16.
    """

    def made() -> tuple[pallas_step.Constants, pallas_step.State]:
        # Whole numbers that wrap: the same tables on every device.
        place = jnp.arange(actions, dtype=jnp.int32)
        ref, weight = ((place * 40503) & 4095) / 1024, (((place * 30011) >> 4) & 255) / 256
        return pallas_step.begin(ref.at[::1000].set(-jnp.inf), weight, adam=adam, half=half)

    rate = 0.1 if adam else 0.1 * actions

    def after(steps: int, constants: Any, state: Any, **options: Any) -> pallas_step.State:
        return pallas_step.run(constants, state, rate, steps=steps, force="own", **options)

    kernel = "cpu" if device.platform == "cpu" else device.platform
    checked = min(actions, 1_000_000)

    def policy(platform: str | None) -> Any:
        constants, state = made()
        new = after(50, constants, state, platform=platform)
        return pallas_step.log_prob(constants, new, checked), new.lead

    (ours, lead), (plain, _) = on(device, lambda: policy(kernel)), on(device, lambda: policy(None))
    forbidden = np.isneginf(ours)
    difference = lambda other: float(np.abs(np.where(forbidden, 0, ours) - np.where(forbidden, 0, other)).max())
    gap = difference(plain)
    right = (
        gap <= TOLERANCE and bool((forbidden == (np.arange(checked) % 1000 == 0)).all()) and np.abs(lead).max() > 0.1
    )
    text = f"moved by up to {np.abs(lead).max():.1f}, {gap:.1e} nats from XLA"
    if actions == checked:
        reference, _ = on(cpu, lambda: policy(None))
        text += f", {difference(reference):.1e} from the CPU"
        right = right and difference(reference) <= TOLERANCE

    with jax.default_device(device):
        constants, state = made()
        size, two = (actions * count for count in pallas_step.traffic(constants, state))
        copied = copy_of(size, steps)
        timed = lambda **options: seconds(lambda: after(steps, constants, state, **options)) / steps
        shapes = [(1, 4), (2, 4), (4, 8), (8, 8)] if device.platform == "gpu" else [(8, 8)]
        times = {(rows, warps): timed(platform=kernel, rows=rows, warps=warps) for rows, warps in shapes}
        rows, warps = min(times, key=times.__getitem__)
        one, xla = times[rows, warps], timed(platform=None)
    share = lambda took: f"{1e6 * took:,.1f} us, {took / copied * size / actions:.1f} bytes at the speed of a copy"
    text += f"; a copy of {size // actions} bytes per action {1e6 * copied:,.1f} us ({size / copied / 1e9:,.0f} GB/s); "
    text += f"one pass {share(one)} ({copied / one:.0%} of it, {rows} rows, {warps} warps); "
    text += f"XLA {share(xla)} (two passes are {two // actions}); the kernel takes {one / xla:.2f} of XLA's time"
    return text, bool(right)


def exact_step(actions: int, steps: int) -> tuple[str, bool]:
    place = np.arange(actions, dtype=np.float32) / actions
    problem = bandit(np.exp(-(((place - 0.8) / 0.1) ** 2)), np.sin(7 * place), name="large")
    method = Method("reinforce", learning_rate=0.5, data="exact", optimizer=SGD)
    run = lambda: simulate(problem, method, 0, steps=steps, every=steps)
    took = seconds(run) / steps
    # The number of copies is traced, or XLA would see through the loop.
    copies = jax.jit(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x + 1, x))
    copied = seconds(lambda: copies(steps, jnp.asarray(place))) / steps
    return f"A = {actions:,}: {1e6 * took:,.1f} us per step; a copy of its table {1e6 * copied:,.1f} us", True


def sweep_step(runs: int, steps: int, tile: int | None) -> tuple[str, bool]:
    problem = paper_bandit("R5")
    method = Method("reinforce", learning_rate=0.5, data="exact", optimizer=SGD)
    run = lambda: sweep(problem, method, seeds=range(runs), steps=steps, every=steps, tile=tile)["kl"].values
    took = seconds(run) / steps
    return f"{1e6 * took:,.1f} us per step of all {runs:,} runs, {1e6 * took / runs:,.3f} us per step and run", True


# --- all of them -----------------------------------------------------------------------------------------------------
def checks(small: bool) -> dict[str, Callable[[], tuple[str, bool]]]:
    """By name, what is right or wrong before what takes time."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    many, steps = (50_000, 10) if small else (1_000_000, 200)
    found: dict[str, Callable[[], tuple[str, bool]]] = {
        **{f"exact {name}": partial(exact_run, name, device, cpu) for name in EXACT},
        "sampled grpo": partial(first_draws, device, cpu),
        "sampler": partial(sampler, many, BATCH * (4 if small else 32), device, cpu),
        "steps on few": partial(few, many, 2 * steps if small else steps, device, cpu),
        "copy": partial(bandwidth, 1 << (22 if small else 28)),
        "exact step": partial(exact_step, many, steps),
        "sweep": partial(sweep_step, 64 if small else 1024, 10 if small else 500, None),
        "sweep, one tile": partial(sweep_step, 64 if small else 1024, 10 if small else 500, 1024),
    }
    long = 5000 if small else 100_000_000
    for name, adam, half in (("sgd", False, False), ("adam", True, False), ("sgd, half", False, True)):
        for actions in dict.fromkeys((min(long, 1_000_000), long)):
            steps = 2 if small else 200 if actions < long else 10
            found[f"pallas {name}, {actions:,}"] = partial(candidate, actions, steps, adam, half, device, cpu)
    return found


def started(small: bool) -> tuple[str, bool, list[str]]:
    """What runs here, whether sizes are small, and the names of the checks."""
    try:
        jax.devices("cpu")
    except RuntimeError as error:
        raise RuntimeError(f"no CPU backend to compare with: unset JAX_PLATFORMS, or add cpu to it ({error})") from None
    device = jax.devices()[0]
    small = small or device.platform == "cpu"
    text = f"{device.device_kind}, {lent.versions(device)}"
    return (
        f"{text}; only a CPU: it is compared with itself" if device.platform == "cpu" else text,
        small,
        [*checks(small)],
    )


def check(name: str, small: bool) -> tuple[str, bool]:
    return checks(small)[name]()


def main(
    arguments: list[str] | None = None, worker: Callable[[Peer], Any] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> int:  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=270.0, help="after which it ends (default 270)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="checks whose names begin so, as in: exact 'pallas sgd'"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, as without an accelerator")
    given = parser.parse_args(arguments)
    budget, failed, not_run = lent.Budget(given.seconds, clock), [], []
    # In a process of its own, which is ended where the time is.
    child = worker(Peer("device check", "device_check", environment=(("BENCHMARK_TRACEBACK", "1"),)))
    ask = lambda *what: child.ask("call", ("device_check", *what), budget.left())
    try:
        answer = ask("started", given.small)
        text, small, names = answer.value or (answer.reason, True, [])
        print(text, flush=True)
        if answer.reason:
            (not_run if is_late(answer.reason) else failed).append("everything")
        for name in given.only or ():
            if names and not any(known.startswith(name) for known in names):
                parser.error(f"no check begins with {name!r}: choose from {', '.join(map(repr, names))}")
        for name in names:
            if given.only and not name.startswith(tuple(given.only)):
                continue
            answer = ask("check", name, small)
            text, right = answer.value or (answer.reason, False)
            if not right:
                (not_run if is_late(text) else failed).append(name)
            mark = "" if right else "not run: " if is_late(text) else "FAILED: "
            print(f"{name:28} {mark}{text} [{answer.seconds:.0f} s]", flush=True)
    finally:
        child.stop()
    lines, code = lent.verdict(failed, not_run)
    print(*lines, sep="\n", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

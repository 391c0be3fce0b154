"""The compiled loop is one that a TPU or a GPU can run by itself.

Nothing in it asks the host, no shape is open, and no loop or branch goes on by what was computed in it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Literal

from bandit_pft import SGD, Method, bandit, paper_bandit, standard_probe, top_probe
from bandit_pft.engine.state import plan
from bandit_pft.kernels import on_cpu
from bandit_pft.simulate import run_jit, seed_key, seed_keys
from bandit_pft.sweep import begin_jit, go_many_jit

SHORT = paper_bandit("R5")
LONG = bandit(np.linspace(0, 1, 40_000), name="long")
ACCELERATORS = ("tpu", "cuda")  # as lowering calls them
PLAIN = {"optimizer": SGD, "learning_rate": 0.1}
RUNS = {
    "exact": (SHORT, Method("reinforce", data="exact", **PLAIN), standard_probe),
    "sampled": (SHORT, Method("grpo", num_responses=8, reuse=2, label_noise=0.1, **PLAIN), standard_probe),
    "offline": (SHORT, Method("ipo", on_policy=0.0, **PLAIN), standard_probe),
    "long, exact": (LONG, Method("reinforce", data="exact", **PLAIN), top_probe(5)),
    "long, sampled": (LONG, Method("dpo", num_responses=8, **PLAIN), top_probe(5)),
}
HOST = re.compile(r"callback|infeed|outfeed|stablehlo\.(send|recv)|tohost|fromhost", re.IGNORECASE)
OPEN = re.compile(r"tensor<[^>]*\?|dynamic_reshape|real_dynamic_slice|dynamic_broadcast_in_dim")


def traced(platform: str, name: str, probe=None):
    """A run as it is traced for a platform that need not be here."""
    problem, method, usual = RUNS[name]
    arguments = problem, method, seed_key(0), plan(problem, method)
    with jax.default_device(platform):
        return run_jit.trace(*arguments, steps=6, probe=probe or usual, every=3)


def wanted_of_the_host(traced, *platforms: str) -> set[str]:
    """Operations that wait for the host, and shapes that are not known; lowering itself needs no such device."""
    texts = [traced.lower(lowering_platforms=(platform,)).as_text() for platform in platforms]
    assert all("stablehlo.while" in text for text in texts)
    return {found.group() for text in texts for pattern in (HOST, OPEN) for found in pattern.finditer(text)}


def decided_by_numbers(program: ClosedJaxpr) -> set[str]:
    """Loops and branches that go on by more than counters: by what came from a float, a key or a table."""
    found: set[str] = set()
    counts = lambda x: x.aval.shape == () and jnp.issubdtype(x.aval.dtype, jnp.integer)
    follow(program, [not counts(x) for x in program.jaxpr.invars], found)
    return found


def follow(program: ClosedJaxpr, given: list[bool], found: set[str]) -> list[bool]:
    """Which results come from such numbers, if these arguments do."""
    numbers = dict(zip(program.jaxpr.invars, given, strict=True))
    reads = lambda variables: [not isinstance(x, Literal) and numbers.get(x, False) for x in variables]
    for equation in program.jaxpr.eqns:
        name, options, inputs = equation.primitive.name, equation.params, reads(equation.invars)
        if name == "while":
            asked, fixed = options["cond_nconsts"], options["cond_nconsts"] + options["body_nconsts"]
            outputs = settled(options["body_jaxpr"], inputs[asked:fixed], inputs[fixed:], [], found)
            if any(follow(options["cond_jaxpr"], inputs[:asked] + outputs, found)):
                found.add(name)
        elif name == "scan":
            # What goes round has the same shape inside and outside; rows lose their first axis.
            body = options["jaxpr"]
            moved = sum(map(alike, equation.outvars, body.jaxpr.outvars))
            fixed = sum(map(alike, equation.invars, body.jaxpr.invars)) - moved
            outputs = settled(body, inputs[:fixed], inputs[fixed:][:moved], inputs[fixed:][moved:], found)
        elif name == "cond":
            index, *rest = inputs
            branches = [follow(branch, rest, found) for branch in options["branches"]]
            outputs = [index or any(each) for each in zip(*branches, strict=True)]
            if index:
                found.add(name)
        elif isinstance(part := options.get("jaxpr", options.get("call_jaxpr")), ClosedJaxpr):
            outputs = follow(part, inputs, found)
        else:
            outputs = [any(inputs)] * len(equation.outvars)
        numbers.update(zip(equation.outvars, outputs, strict=True))
    return reads(program.jaxpr.outvars)


def alike(outer, inner) -> bool:
    return outer.aval.shape == inner.aval.shape


def settled(body: ClosedJaxpr, fixed: list[bool], carry: list[bool], rows: list[bool], found: set[str]) -> list[bool]:
    """The same for a loop: however often it goes round."""
    outputs = follow(body, fixed + carry + rows, found)
    wider = [a or b for a, b in zip(carry, outputs, strict=False)]
    return settled(body, fixed, wider, rows, found) if wider != carry else wider + outputs[len(carry) :]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_asks_nothing_of_the_host_and_decides_nothing_by_its_numbers(name):
    program = traced("tpu", name)
    assert wanted_of_the_host(program, *ACCELERATORS) == set()
    assert decided_by_numbers(program.jaxpr) == set()


def test_a_tile_of_a_sweep_asks_nothing_of_the_host_and_decides_nothing_by_its_numbers():
    problem, method, _ = RUNS["sampled"]
    stack = lambda tree: jax.tree.map(lambda x: np.stack([np.asarray(x)] * 4), tree)
    arguments = stack(problem), stack(method), seed_keys(range(4)), plan(problem, method)
    with jax.default_device("tpu"):
        begun = begin_jit.trace(*arguments, steps=6, probe=standard_probe, every=3)
        problem, method, _, its_plan = arguments
        program = go_many_jit.trace(
            problem, method, its_plan, *begun.out_info, np.int32(2), probe=standard_probe, every=3
        )
    assert wanted_of_the_host(program, *ACCELERATORS) == set()
    assert decided_by_numbers(program.jaxpr) == decided_by_numbers(begun.jaxpr) == set()


@pytest.mark.parametrize("name", RUNS)
def test_on_a_cpu_runs_over_many_actions_go_on_by_their_numbers(name):
    """So an accelerator's program is another one, and what is looked for is found where it is."""
    assert decided_by_numbers(traced("cpu", name).jaxpr) == ({"while"} if name.startswith("long") else set())


def test_a_probe_that_asks_the_host_is_found():
    """Where the device is not there, lowering such a program fails by itself."""

    def asking(problem, state):
        jax.debug.print("{x}", x=state.loss)
        return {"loss": state.loss}

    assert any("callback" in found for found in wanted_of_the_host(traced("cpu", "exact", asking), "cpu"))


@pytest.mark.parametrize(("decides", "found"), [
    (lambda x: jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, x), {"while"}),
    (lambda x: jax.lax.fori_loop(0, x.astype(int), lambda _, x: x / 2, x), {"while"}),
    (lambda x: jax.lax.cond(x > 1, jnp.sin, jnp.cos, x), {"cond"}),
    (lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.cond(i > 1, jnp.sin, jnp.cos, x), x), set()),
    (lambda x: jnp.where(x > 1, jnp.sin(x), jnp.cos(x)), set()),
])  # fmt: skip
def test_a_probe_that_decides_by_what_it_sees_is_found_and_one_that_counts_is_not(decides, found):
    probe = lambda problem, state: {"loss": decides(state.loss)}
    assert decided_by_numbers(traced("tpu", "exact", probe).jaxpr) == found


def test_the_platform_is_that_of_the_default_device():
    assert on_cpu() == (jax.default_backend() == "cpu")
    for device, cpu in ((jax.devices("cpu")[0], True), ("cpu", True), ("gpu", False), ("tpu", False)):
        with jax.default_device(device):
            assert on_cpu() == cpu

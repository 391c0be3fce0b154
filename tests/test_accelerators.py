"""The compiled loop is one that a TPU or a GPU can run by itself: nothing in it asks the host, and no shape is open."""

import re

import jax
import numpy as np
import pytest

from bandit_pft import SGD, Method, bandit, paper_bandit, standard_probe, top_probe
from bandit_pft.simulate import begin_jit, plan, proceed_jit, run_jit, seed_key, seed_keys

SHORT = paper_bandit("R5")
LONG = bandit(np.linspace(0, 1, 40_000), name="long")
PLATFORM = pytest.mark.parametrize("platform", ["tpu", "cuda"])
RUNS = {
    "exact": (SHORT, Method("reinforce", data="exact"), standard_probe),
    "sampled": (SHORT, Method("grpo", num_responses=8, reuse=2, label_noise=0.1), standard_probe),
    "offline": (SHORT, Method("ipo", on_policy=0.0), standard_probe),
    "long, exact": (LONG, Method("reinforce", data="exact"), top_probe(5)),
    "long, sampled": (LONG, Method("dpo", num_responses=8, optimizer=SGD), top_probe(5)),
}
HOST = re.compile(r"callback|infeed|outfeed|stablehlo\.(send|recv)|tohost|fromhost", re.IGNORECASE)
OPEN = re.compile(r"tensor<[^>]*\?|dynamic_reshape|real_dynamic_slice|dynamic_broadcast_in_dim")


def wanted_of_the_host(traced, platform: str) -> list[str]:
    """Operations that wait for the host, and shapes that are not known; lowering itself needs no such device."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    return sorted({found.group() for pattern in (HOST, OPEN) for found in pattern.finditer(text)})


@PLATFORM
@pytest.mark.parametrize("name", RUNS)
def test_a_run_asks_nothing_of_the_host(name, platform):
    problem, method, probe = RUNS[name]
    arguments = problem, method, seed_key(0), plan(problem, method)
    assert wanted_of_the_host(run_jit.trace(*arguments, steps=6, probe=probe, every=3), platform) == []


@PLATFORM
def test_a_tile_of_a_sweep_asks_nothing_of_the_host(platform):
    problem, method, _ = RUNS["sampled"]
    stack = lambda tree: jax.tree.map(lambda x: np.stack([np.asarray(x)] * 4), tree)
    arguments = stack(problem), stack(method), seed_keys(range(4)), plan(problem, method)
    begun = begin_jit(*arguments, steps=6, probe=standard_probe, every=3, batched=True)
    assert wanted_of_the_host(proceed_jit.trace(*begun, np.int32(2)), platform) == []


def test_a_probe_that_does_ask_is_found():
    """Where the device is not there, lowering such a program fails by itself."""

    def asking(problem, state):
        jax.debug.print("{x}", x=state.loss)
        return {"loss": state.loss}

    problem, method, _ = RUNS["exact"]
    traced = run_jit.trace(problem, method, seed_key(0), plan(problem, method), steps=6, probe=asking, every=3)
    assert any("callback" in found for found in wanted_of_the_host(traced, "cpu"))

"""Runs on split bandits in a process of its own, or as one of several: python tests/sharder.py OUT CASE...

Writes an npz with the record, the final parameters (whole) and the first bad step of each case, by
CASE/number of devices/name, and for one process what the compiler says of its program: bytes of temporary memory on
each device, and the entries of the largest array of the program on one.
"""

import argparse
import math
import os
import re

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from bandit_pft import ADAM, SGD, Method, bandit, join_processes, shard_actions, simulate, tabular_shared
from bandit_pft.engine.state import plan
from bandit_pft.simulate import run_jit, seed_key

METHODS = {
    # Slow enough that a rounding stays one: at rate 5 the run leaps, and multiplies it by ten.
    "exact sgd": Method("reverse_kl", learning_rate=1.0, data="exact", optimizer=SGD),
    "exact adam": Method("forward_kl", learning_rate=0.05, data="exact", optimizer=ADAM),
    "sampled adam": Method("grpo", learning_rate=0.1, num_responses=2, policy=tabular_shared, optimizer=ADAM),
    "mixture": Method("ipo", learning_rate=0.1, num_responses=2, on_policy=0.5, reuse=2, optimizer=ADAM),
    "few": Method("ipo", learning_rate=0.5, num_responses=2, optimizer=SGD),
}
ACTIONS = {"few": 1 << 15}  # As many as steps on the drawn responses alone need.


def problem(case, filled=True):
    """A bandit that forbids every 7th action; its last 200 actions are forbidden, or not there."""
    rng = np.random.default_rng(0)
    contexts, actions = 2 if case == "sampled adam" else 1, ACTIONS.get(case, 8192)
    reward, ref = rng.normal(size=(2, contexts, actions)).astype(np.float32)
    ref[:, ::7] = ref[:, -200:] = -np.inf
    reward[:, -200:] = 0
    own = actions if filled else actions - 200
    return bandit(reward[:, :own], ref[:, :own])


def probe(problem, state):
    """What was drawn, the loss, two numbers of the policy, and the mass of what is forbidden."""
    mass = jnp.exp(state.log_probs)
    return {
        # Of exact data every response is listed, and who asks for some of them gets the whole list of numbers.
        "drawn": state.groups.response[..., 0] if state.groups.response.shape[1] == 2 else jnp.zeros(()),
        "reward": (mass * state.rewards).sum(),
        "loss": state.loss,
        "total": mass.sum(-1),
        "forbidden": jnp.where(jnp.isneginf(state.ref_log_probs), mass, 0).sum(),
    }


def run(case, devices):
    """One case on these devices, or without any split where they are None."""
    given = problem(case, filled=devices is not None)
    given = given if devices is None else shard_actions(given, devices)
    method, every = METHODS[case], 4 if case == "few" else 1
    found = {}
    if jax.process_count() == 1:
        settings = {"steps": 12, "probe": probe, "every": every}
        program = run_jit.lower(given, method, seed_key(0), plan(given, method), **settings).compile()
        text = program.as_text()
        sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[(\d[\d,]*)\]", text)]
        found["temporary"] = program.memory_analysis().temp_size_in_bytes
        found["largest"] = max(sizes)
    result = simulate(given, method, 0, steps=12, every=every, probe=probe)
    for name, x in result.record.items():
        assert devices is None or x.is_fully_replicated, name
        found[name] = np.asarray(x)
    if devices is not None and len(devices) > 1:
        assert {shard.data.shape[-1] for shard in result.params.addressable_shards} == {given.num_tokens / len(devices)}
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        found["params"] = process_allgather(result.params, tiled=True)
    else:
        found["params"] = np.asarray(result.params)
    return {**found, "first_bad_step": np.asarray(result.first_bad_step)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--on", type=int, nargs="+", help="numbers of devices; 0: not split (default: all)")
    parser.add_argument("--devices", type=int, default=4, help="of this process")
    parser.add_argument("--join", action="store_true", help="the processes that the environment names")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.join:
        join_processes()
    devices = jax.devices()
    found = {
        f"{case}/{number}/{name}": x
        for case in options.cases
        for number in options.on or [len(devices)]
        for name, x in run(case, devices[:number] if number else None).items()
    }
    np.savez(options.out, **found)

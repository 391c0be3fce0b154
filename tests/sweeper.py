"""A small sweep in a process of its own, to be killed, shared and compared: python tests/sweeper.py FOLDER.

Prints the digest of the results when it is whole, and the number of finished tiles otherwise.
"""

import argparse
import hashlib
import importlib
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from bandit_pft import Method, join_processes, load, paper_bandit, sweep
from bandit_pft.methods import ADAM

sweeping = importlib.import_module("bandit_pft.sweep")  # The package calls its function by the same name.


def methods():
    """One of each kind of loop: fresh data, a mixture that is reused, one data set, and everything enumerated."""
    return [
        Method("grpo", learning_rate=0.1, num_responses=4, optimizer=ADAM),
        Method("best_of_n", learning_rate=0.3, on_policy=0.5, reuse=3, num_responses=4, label_noise=0.5),
        Method("dpo", learning_rate=0.5, on_policy=0.0, num_responses=4, optimizer=ADAM),
        Method("reverse_kl", learning_rate=0.5, data="exact"),
    ]


def digest(data) -> str:
    """Of every number in the results."""
    found = hashlib.sha256()
    for name in sorted(data.data_vars):
        found.update(name.encode() + data[name].values.tobytes())
    return found.hexdigest()


def run(store, worker="0/1", steps=400, tile=2, every=4):
    """The sweep: 2 problems, 4 methods, 3 seeds, 12 tiles."""
    problems = [paper_bandit("R4"), paper_bandit("R5")]
    return sweep(problems, methods(), seeds=range(3), steps=steps, every=every, tile=tile, store=store, worker=worker)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--worker", default="0/1", help="auto: joins the processes that the environment names")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint", type=float, default=sweeping.CHECKPOINT, help="seconds between checkpoints")
    parser.add_argument("--segment", type=float, default=sweeping.SEGMENT, help="seconds of a segment")
    given = parser.parse_args()
    # Where the tests run in the background of a script, their children would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_num_cpu_devices", given.devices)
    sweeping.CHECKPOINT, sweeping.SEGMENT = given.checkpoint, given.segment
    if given.worker == "auto":
        join_processes(patience=10)
    assert len(jax.local_devices()) == given.devices
    result = run(given.folder, given.worker, given.steps)
    print(result.attrs.get("tiles") or digest(load(given.folder)))

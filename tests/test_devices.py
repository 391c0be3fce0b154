"""A bandit whose actions are split over devices and processes is the bandit on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import sharder
from jax.sharding import PartitionSpec
from refusals import check_refusal

from bandit_pft import bandit, join_processes, paper_bandit, paper_sequences, shard_actions
from bandit_pft.errors import ConfigError, ShapeError

ROOT = Path(__file__).parents[1]
SPLIT = PartitionSpec(None, None, "actions")


def start(out, *arguments, **variables):
    command = [sys.executable, str(ROOT / "tests" / "sharder.py"), str(out), *map(str, arguments)]
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*processes):
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case in one process: {(case, number of devices): {name: value}}, 0 where nothing is split."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = {"a": (["exact sgd"], [0, 1, 2, 4]), "b": (["exact adam", "few"], [0, 4]),
            "c": (["mixture", "sampled adam"], [0, 4])}  # fmt: skip
    # Two at a time, the two halves of the longer ones side by side.
    first = [start(folder / f"{name}.npz", *jobs[name][0], "--on", *jobs[name][1]) for name in "bc"]
    finish(*first)
    finish(start(folder / "a.npz", *jobs["a"][0], "--on", *jobs["a"][1]))
    found = {}
    for path in folder.glob("*.npz"):
        for label, x in np.load(path, allow_pickle=False).items():
            case, number, name = label.split("/")
            found.setdefault((case, int(number)), {})[name] = x
    return found


def differences(got, want):
    """Where two runs draw or differ otherwise, beyond the rounding of float32 sums in another order."""
    assert np.array_equal(got["drawn"], want["drawn"])
    assert got["first_bad_step"] == want["first_bad_step"] == -1
    # Forbidden actions at the end may be there or not.
    params = got["params"][..., : want["params"].shape[-1]]
    np.testing.assert_allclose(params, want["params"], atol=5e-6 * np.abs(want["params"]).max(), rtol=0)
    for name in ("reward", "loss", "total"):
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("case", "devices"),
    [("exact sgd", 1), ("exact sgd", 2), *((case, 4) for case in sharder.METHODS)],
)
def test_a_split_bandit_draws_and_learns_what_the_whole_one_does(runs, case, devices):
    """Filled up with forbidden actions, which the whole one does not have."""
    whole = runs[case, 0]
    differences(runs[case, devices], whole)
    assert np.abs(whole["params"]).max() > 0.1 and not np.array_equal(whole["reward"][0], whole["reward"][-1])


@pytest.mark.parametrize("case", sharder.METHODS)
def test_no_device_ever_holds_all_actions(runs, case):
    whole, split = runs[case, 0], runs[case, 4]
    contexts, actions = sharder.problem(case).ref_logits[:, 0].shape
    assert whole["largest"] >= contexts * (actions - 200)  # So that one would be seen.
    assert split["largest"] <= contexts * actions / 4
    assert split["temporary"] < whole["temporary"] / 2  # Of 4 devices; they also hold what they exchange.


@pytest.mark.parametrize("case", sharder.METHODS)
def test_forbidden_actions_of_a_split_bandit_are_never_drawn_and_have_no_mass_and_no_gradient(runs, case):
    split, ref = runs[case, 4], np.asarray(sharder.problem(case).ref_logits[:, 0])
    forbidden = np.isneginf(ref)
    assert (split["forbidden"] == 0).all()
    assert (split["params"][..., forbidden[0]] == 0).all() and (split["params"][..., ~forbidden[0]] != 0).any()
    if sharder.METHODS[case].data == "sampled":
        assert not forbidden[0][split["drawn"]].any()


@pytest.mark.parametrize(
    ("processes", "devices", "cases"), [(2, 2, ["exact sgd", "sampled adam"]), (4, 1, ["exact sgd"])]
)
def test_processes_that_split_a_bandit_all_see_what_one_process_sees(tmp_path, runs, processes, devices, cases):
    known = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": processes}
    options = *cases, "--devices", devices, "--join"
    finish(*(start(tmp_path / f"{k}.npz", *options, **known, JAX_PROCESS_ID=k) for k in range(processes)))
    told = [dict(np.load(tmp_path / f"{k}.npz", allow_pickle=False)) for k in range(processes)]
    for case in cases:
        of = lambda k, case=case: {
            name: told[k][f"{case}/4/{name}"] for name in runs[case, 4] if name not in ("temporary", "largest")
        }
        differences(of(0), runs[case, 4])
        for k in range(1, processes):
            for name, x in of(k).items():
                assert np.array_equal(x, of(0)[name]), f"{name} of process {k}"


def test_all_that_has_an_axis_of_actions_is_split_and_the_rest_is_everywhere():
    offline = np.linspace(0, 1, 12).reshape(2, 6)
    given = bandit(np.arange(12.0).reshape(2, 6), -offline, data=offline)
    split = shard_actions(given, jax.devices()[:1])
    specs = {name: getattr(split, name).sharding.spec for name in ("ref_logits", "token_reward", "data_logits")}
    assert set(specs.values()) == {SPLIT}, specs
    assert {split.bonus.sharding.spec, split.features.sharding.spec} == {PartitionSpec()}
    for name in ("ref_logits", "token_reward", "data_logits", "bonus", "features"):
        assert np.array_equal(getattr(split, name), getattr(given, name)), name


def test_what_cannot_be_split_is_refused_with_the_sizes_that_can(monkeypatch):
    devices = jax.devices()[:1] * 4
    cases = [
        (lambda: shard_actions(bandit(np.zeros(10_000)), devices), ShapeError,
         "10,000 actions, and 4 devices take multiples of 4,096: use 12,288, filled up with 2,288 forbidden actions"),
        (lambda: shard_actions(bandit(np.zeros(10_000)), devices), ShapeError, "or 8,192"),
        (lambda: shard_actions(paper_bandit("R4"), devices), ShapeError, "use 4,096, filled up with 3,996"),
        (lambda: shard_actions(paper_sequences("R6")), ConfigError, "only bandits are split"),
        (lambda: shard_actions(bandit(np.zeros(4096)), []), ConfigError, "devices is empty"),
        (lambda: shard_actions("R4"), TypeError, "problem is 'R4'"),
    ]  # fmt: skip
    for call, kind, words in cases:
        check_refusal(call, kind, words, monkeypatch)


@pytest.mark.parametrize("variables", [{}, {"JAX_NUM_PROCESSES": "two"}, {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}])
def test_processes_that_do_not_know_of_others_are_told_what_to_set(monkeypatch, variables):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # JAX itself refuses as soon as a device was used, which other tests have done.
    from jax._src import distributed

    monkeypatch.setattr(jax.distributed, "initialize", distributed.global_state.initialize)
    check_refusal(join_processes, ConfigError, "no other processes are known", monkeypatch)

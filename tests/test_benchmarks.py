"""The peers of the benchmark compute the same thing; how fast they are is not tested."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest

from benchmarks.__main__ import disagreement, main
from benchmarks.peer_numpy import build
from benchmarks.peers import PEERS, builder
from benchmarks.tasks import ALL_EXACT, ALL_SAMPLED, Task, arrays, workloads

NEEDED = {"C": shutil.which("gcc") or shutil.which("cc"), "torch": importlib.util.find_spec("torch")}
REFERENCE = 0.0390  # E[r] of the paper's reference, far peak


def tiny(objective: str, sampled: bool, actions: int = 100) -> Task:
    return Task("", objective, sampled, actions, 2, 128 if sampled else 2, 60 if sampled else 30)


@pytest.mark.parametrize("peer", [p for p in PEERS if NEEDED.get(p.name)], ids=lambda p: p.name)
def test_another_language_reaches_the_same_policies_as_numpy(peer):
    for sampled, names in ((False, ALL_EXACT), (True, ALL_SAMPLED)):
        for objective in names:
            task = tiny(objective, sampled)
            ours, theirs = build(task)(0), builder(peer)(task)(1)
            assert disagreement(task, {"NumPy": [ours], peer.name: [theirs]}) == "", objective
            if not sampled:
                assert abs(ours - REFERENCE).max() > 4e-3, f"{objective} does not move: agreement would mean nothing"
    assert float.fromhex("0x1p-1074") != 0, "a run leaves subnormal numbers turned off in this process"


def test_many_actions_are_drawn_alike_by_c_and_numpy():
    task = tiny("grpo", True, actions=3000)._replace(rate=50.0, steps=20)
    runs = {"NumPy": [build(task)(0)]}
    runs |= {p.name: [builder(p)(task)(1)] for p in PEERS if NEEDED.get(p.name)}
    assert disagreement(task, runs) == ""
    assert runs["NumPy"][0].mean() > 0.3


def test_a_peer_that_computes_something_else_is_found():
    exact, sampled = tiny("reinforce", False), tiny("grpo", True)
    right = build(exact)(0)
    assert "wrong" in disagreement(exact, {"a": [right], "b": [right], "wrong": [right + 2e-3]})
    assert "wrong" in disagreement(exact, {"a": [right], "wrong": [np.full_like(right, np.nan)]})
    plus = sampled._replace(rate=2 * float(arrays(sampled).rate.mean()))
    runs = {name: [build(sampled)(seed)] for seed, name in enumerate("abc")}
    assert disagreement(sampled, runs) == ""
    assert "wrong" in disagreement(sampled, {**runs, "wrong": [build(plus)(3)]})


def test_the_paper_reference_has_the_expected_reward_that_the_paper_code_gives():
    table = arrays(tiny("reinforce", False))
    assert np.exp(table.ref_logp) @ table.reward == pytest.approx(REFERENCE, abs=5e-5)


def test_one_command_writes_a_report_in_which_the_package_agrees_with_its_peers(tmp_path, capsys):
    peers = ["bandit_pft", "NumPy", *(["C"] if NEEDED["C"] else [])]
    assert main(["--quick", "--only", "W1", "--repeats", "1", "--out", str(tmp_path), "--peers", *peers]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert [c["label"] for c in report["cells"]] == [task.label for task in workloads(True)["W1"]]
    for c in report["cells"]:
        assert not c["not_available"] and set(c["seconds"]) == set(peers)
        assert c["expected_reward"]["bandit_pft"] == pytest.approx(c["expected_reward"]["NumPy"], abs=0.2)
    written = (tmp_path / "RESULTS.md").read_text()
    assert "time over that of bandit_pft" in written and written.strip() in capsys.readouterr().out

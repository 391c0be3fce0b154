"""The peers of the benchmark compute the same thing; how fast they are is not tested."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bandit_pft.engine.state import plan
from bandit_pft.simulate import run_jit, seed_key
from benchmarks import __main__ as command
from benchmarks import device_check, figure, gpu, history, scaling
from benchmarks.__main__ import cell, disagreement, main
from benchmarks.peer_numpy import build
from benchmarks.peers import NO_TIME, PEERS, TOO_LONG, Answer, Peer, Worker, builder, is_late
from benchmarks.report import render, targets
from benchmarks.tasks import ALL_EXACT, ALL_SAMPLED, Network, Task, arrays, workloads

NEEDED = {"C": shutil.which("gcc") or shutil.which("cc"), "torch": importlib.util.find_spec("torch")}
# In one process more devices change nothing.
OTHERS = [
    p for p in PEERS
    if p.name not in ("NumPy", "bandit_pft, 2 devices")
    and NEEDED.get(p.name.partition(".")[0], True)
    and (p.name != "numba" or importlib.util.find_spec("numba"))
]  # fmt: skip
MACHINE = {"processor": "a processor", "cores": 2}
REFERENCE = 0.0390  # E[r] of the paper's reference, far peak


def tiny(objective: str, sampled: bool, actions: int = 100) -> Task:
    return Task("", objective, sampled, actions, 2, 128 if sampled else 2, 60 if sampled else 30)


@pytest.fixture
def one_thread():
    """Of PyTorch's: over arrays this small more only wait for one another, and burn time."""
    if not NEEDED["torch"]:
        yield
        return
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("peer", [p for p in PEERS if NEEDED.get(p.name)], ids=lambda p: p.name)
def test_another_language_reaches_the_same_policies_as_numpy(peer):
    for sampled, names in ((False, ALL_EXACT), (True, ALL_SAMPLED)):
        for objective in names:
            task = tiny(objective, sampled)
            ours, theirs = build(task)(0), builder(peer, task)(task)(1)
            assert disagreement(task, {"NumPy": [ours], peer.name: [theirs]}) == "", objective
            if not sampled:
                assert abs(ours - REFERENCE).max() > 4e-3, f"{objective} does not move: agreement would mean nothing"
    assert float.fromhex("0x1p-1074") != 0, "a run leaves subnormal numbers turned off in this process"


def test_many_actions_are_drawn_alike_by_c_and_numpy():
    task = tiny("grpo", True, actions=3000)._replace(rate=50.0, steps=20)
    runs = {"NumPy": [build(task)(0)]}
    runs |= {p.name: [builder(p, task)(task)(1)] for p in PEERS if NEEDED.get(p.name)}
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


def test_one_command_writes_a_report_in_which_the_package_agrees_with_its_peers(tmp_path, capsys, monkeypatch):
    # One that is enumerated, one of drawn pairs, and both with a constant of their own.
    tasks = [task for task in workloads(True)["W1"] if task.objective in ("rwr", "dpo")]
    monkeypatch.setattr(command, "workloads", lambda quick: {"W1": tasks})
    peers = ["bandit_pft", "NumPy", *(["C"] if NEEDED["C"] else [])]
    assert main(["--quick", "--only", "W1", "--repeats", "1", "--out", str(tmp_path), "--peers", *peers]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert [c["label"] for c in report["cells"]] == [task.label for task in tasks] == ["rwr", "dpo (sampled)"]
    for c in report["cells"]:
        assert not c["not_available"] and set(c["seconds"]) == set(peers)
        assert c["expected_reward"]["bandit_pft"] == pytest.approx(c["expected_reward"]["NumPy"], abs=0.2)
    assert not (tmp_path / "history.jsonl").exists(), "tiny sizes are no history"
    written = (tmp_path / "RESULTS.md").read_text()
    assert "time over that of bandit_pft" in written and written.strip() in capsys.readouterr().out


# --- Adam, networks --------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("peer", OTHERS, ids=lambda p: p.name)
def test_adam_takes_a_table_to_the_same_policies_in_every_library(peer):
    several = tiny("reinforce", False)._replace(adam=True, rate=0.03)
    one = several._replace(actions=3000, rates=1, seeds=1)
    for task in (several, one)[: 1 if peer.name == "torch.compile" else None]:
        ours, theirs = build(task)(0), builder(peer, task)(task)(1)
        assert disagreement(task, {"NumPy": [ours], peer.name: [theirs]}) == ""
        assert abs(ours - build(task._replace(steps=1))(0)).max() > 0.05, "nothing moves: agreement would mean nothing"


@pytest.mark.torch
def test_torch_trains_the_papers_network_to_the_rewards_of_the_package():
    how = {p.name: p for p in PEERS}
    for task in (
        Network("W5", "ipo", 20, 3, 60, 0.003, offline=True, min_gap=0.2),
        Network("W5", "best_of_n", 5, 3, 60, 0.003),
    ):
        built = {name: builder(how[name], task)(task) for name in ("bandit_pft", "torch")}
        runs = {name: [run(seed) for seed in (1, 2)] for name, run in built.items()}
        assert disagreement(task, runs) == ""
        assert np.mean(runs["torch"]) > 2 * REFERENCE
    with pytest.raises(NotImplementedError, match="no networks"):
        builder(how["NumPy"], task)


def test_a_peer_that_is_capped_runs_few_steps_and_is_not_compared():
    class Slow:
        peer = Peer("slow", "none", capped=5)
        asked = ()

        def build(self, task, limit):
            return Answer(None, 1.0)

        def ask(self, what, argument, limit):
            self.asked = argument
            return Answer(np.full(1, 9.0, np.float32), 2.0)

    slow = Slow()
    task = Task("W3", "grpo", True, 3000, 1, 1, 50, rate=1.0)
    found = cell(task, [slow], 1, 10.0, 10.0)
    assert slow.asked == (1, 5) and found["seconds"] == {"slow": 20.0} and found["scaled_from"] == {"slow": 5}
    assert found["expected_reward"] == {} and found["disagreement"] == ""
    assert cell(task._replace(actions=100), [slow], 1, 10.0, 10.0)["seconds"] == {"slow": 2.0}


# --- floors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 32] if NEEDED["C"] else [])
def test_a_floor_counts_actions_policies_and_steps(rows):
    from benchmarks.peer_c import floor

    small = Task("W3", "reinforce", False, 4096, 1, rows, 10)
    little, much = floor(small), floor(small._replace(actions=4096 * 64))
    assert all(much[part] > 8 * little[part] > 0 for part in ("traffic", "exponentials"))
    assert floor(small._replace(steps=1000))["exponentials"] > 10 * little["exponentials"]
    adam = floor(small._replace(adam=True))
    assert adam["Adam"] > 0 == little["Adam"]


# --- report, targets, figure, history --------------------------------------------------------------------------------
def made(**seconds: float) -> dict:
    """A report in which every cell takes these seconds, and 1 s is the floor."""
    cells = [
        {
            "workload": workload, "label": task.label, "task": task._asdict(), "seconds": dict(seconds),
            "setup_seconds": {}, "scaled_from": {}, "not_available": {}, "disagreement": "",
            "floor": {"traffic": 0.5, "exponentials": 0.5, "Adam": 0.0} if workload[:2] in ("W2", "W3")
            and not task.sampled else None,
        }
        for workload, tasks in workloads(True).items() for task in tasks
    ]  # fmt: skip
    host = {**MACHINE, "python": "3", "versions": {"jax": "1"}, "load_before": (0.5, 0, 0), "date": "2026-01-01"}
    return {
        "machine": host,
        "quick": False,
        "cells": cells,
        "load_at_end": (0.7, 0, 0),
        "scaling": curves(),
        "failed": {},
    }


def curves() -> dict:
    points = lambda name, *times: {
        "axis": "actions", "per_step": True,
        "points": [
            {**scaling.Point(actions=10 ** (3 + i))._asdict(), "seconds": 1.0, "first_seconds": 2.0, "peak_MB": 3.0,
             "nanoseconds_per_policy_step": 1000.0 * x, "nanoseconds_per_element": x}
            for i, x in enumerate(times)
        ],
    }  # fmt: skip
    return {
        scaling.EXACT: points("exact", 1.0, 1.2, 1.5),
        scaling.SPARSE: points("few", 20.0, 25.0, 30.0),
        scaling.DENSE: points("dense", 60.0, 500.0, 6000.0),
    }


def test_targets_are_ratios_of_what_was_measured():
    found = {t.name: t for t in targets(made(bandit_pft=2.0, C=2.0, torch=10.0, numba=10.0))}
    assert found["W1, time of C over ours"].met and found["W1, time of numba over ours"].met
    assert found["W1, time of torch over ours"].measured == 5.0 and not found["W1, time of torch over ours"].met
    assert found["W1, time of common JAX over ours"].met is None
    assert found["W3 exact, SGD, our time over the floor"].measured == 2.0
    assert found["W3 exact, SGD, our time over the floor"].met
    (flat,) = (t for name, t in found.items() if "per element" in name)
    assert flat.measured == 1.5 and not flat.met


def test_a_report_says_what_is_missing_and_what_failed():
    report = made(bandit_pft=2.0, C=1.0)
    text = render(report, ["C", "bandit_pft", "torch"])
    assert "| W1, time of C over ours | >= 1 | 0.50 | not met |" in text
    assert "n/a: torch: did not run" in text and "did not finish" not in text
    assert "| 10,000 | 25.0 | 500.0 | 20.0 |" in text, "drawn actions beside the dense step"
    del report["load_at_end"]
    report["failed"]["cold"] = "OSError: no room"
    text = render(report, ["C", "bandit_pft"])
    assert "did not finish" in text and "cold failed: OSError: no room" in text


def test_what_is_slower_than_its_yardsticks_is_a_regression_and_a_slow_machine_is_not():
    before = history.entry(made(bandit_pft=1.0, C=0.5, torch=2.0))
    assert history.regressions(before, before) == {}
    slow = history.entry(made(bandit_pft=3.0, C=1.5, torch=6.0))
    assert history.regressions(slow, before) == {}
    better_kernel = history.entry(made(bandit_pft=1.0, C=0.25, torch=2.0))
    assert history.regressions(better_kernel, before) == {}
    report = made(bandit_pft=3.0, C=1.5, torch=6.0)
    report["cells"][1]["seconds"]["bandit_pft"] = 4.0
    name = f"W1 {report['cells'][1]['label']}"
    found = history.regressions(history.entry(report), before)
    assert found == {name: pytest.approx(4 / 3)}
    assert any(name in line and "1.33 times" in line for line in history.compared(history.entry(report), before))


def test_runs_are_compared_with_the_last_one_of_the_same_machine(tmp_path):
    path = tmp_path / "history.jsonl"
    assert history.last(path, MACHINE) is None
    for date, machine in (("1", MACHINE), ("2", MACHINE), ("3", {**MACHINE, "cores": 64})):
        history.append(path, {"date": date, "machine": machine})
    found = history.last(path, MACHINE)
    assert found is not None and found["date"] == "2"


def test_the_picture_of_a_report_is_a_slide(tmp_path):
    report = made(**{p.name: 1.0 + 3 * i for i, p in enumerate(PEERS)})
    assert figure.draw(report, tmp_path) == "results.png"
    png = (tmp_path / "results.png").read_bytes()
    assert png[:4] == b"\x89PNG" and [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [1599, 900]
    assert "</svg>" in (tmp_path / "results.svg").read_text()
    figure.draw({**report, "cells": [], "scaling": {}}, tmp_path)


def test_a_full_run_is_one_line_of_history_and_a_killed_one_leaves_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PEERS", [p for p in PEERS if p.name == "NumPy"])
    monkeypatch.setattr(command, "workloads", lambda quick: {"W1": workloads(True)["W1"][:2]})
    monkeypatch.setattr(command, "machine", lambda: made()["machine"])
    monkeypatch.setattr(scaling, "measure", lambda *_: None)

    def no_room(*_):
        raise OSError("no room")

    monkeypatch.setattr(command.cold, "measure", no_room)
    assert main(["--out", str(tmp_path), "--repeats", "1"]) == 1
    assert "cold failed: OSError: no room" in (tmp_path / "RESULTS.md").read_text()
    assert main(["--out", str(tmp_path), "--repeats", "1"]) == 1
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 2 and list(json.loads(lines[0])["seconds"]) == ["W1 forward_kl", "W1 rwr"]
    assert "no row became more than 20% slower" in (tmp_path / "RESULTS.md").read_text()

    def killed(task, *_):
        if task.objective == "rwr":
            raise KeyboardInterrupt
        return cell(task, *_)

    monkeypatch.setattr(command, "cell", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["--out", str(tmp_path / "killed"), "--repeats", "1"])
    text = (tmp_path / "killed" / "RESULTS.md").read_text()
    assert "| forward_kl |" in text and "did not finish" in text


# --- scaling, accelerators -------------------------------------------------------------------------------------------
def test_exact_points_do_the_same_work_and_only_dense_ones_touch_every_action():
    curves = scaling.curves()
    exact = curves[scaling.EXACT].points
    assert {p.actions * p.seeds * p.steps for p in exact} == {scaling.WORK}
    assert [p.actions for p in exact] == [100, 1000, 10_000, 100_000, 1_000_000]
    for name, few in ((scaling.SPARSE, True), (scaling.DENSE, False)):
        problem, method, _ = scaling.setting(scaling.curves(True)[name].points[0])
        assert plan(problem, method).few == few


def test_longer_responses_are_points_as_well():
    longer = scaling.Point(policy="factorised", tokens=3, seeds=2, steps=4, draws=4)
    found = scaling.measure_point(longer, False)
    assert found["nanoseconds_per_element"] == pytest.approx(found["nanoseconds_per_policy_step"] / 300)
    assert found["seconds"] > 0
    # To compile a transformer takes longer than all of this.
    problem, method, probe = scaling.setting(longer._replace(policy="transformer"))
    arguments = problem, method, seed_key(0), plan(problem, method)
    record = run_jit.eval_shape(*arguments, steps=4, probe=probe, every=4).record
    assert method.policy.name.startswith("transformer") and {x.shape[0] for x in record.values()} == {2}


@pytest.mark.torch
def test_torch_and_the_package_agree_on_the_device_that_there_is(tmp_path):
    script, out = Path(command.__file__).with_name("gpu.py"), tmp_path / "new" / "report"
    which = ["--peers", "bandit_pft", "torch", "--only", "large", gpu.PARTS[2]]
    asked = [sys.executable, str(script), "--small", "--seconds", "600", *which, "--out", str(out)]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "ok", done.stdout + done.stderr
    assert out.with_suffix(".md").read_text() == done.stdout
    large, given = json.loads(out.with_suffix(".json").read_text())["cells"]
    assert set(large["seconds"]) == {"bandit_pft", "torch"} and len(given["seconds"]) == 1
    assert f"jax {jax.__version__}" in done.stdout


# --- a machine that is lent for minutes ------------------------------------------------------------------------------
class Lent:
    """Workers that compute nothing: each answer takes so many seconds, by a clock that nothing else moves."""

    def __init__(self, takes: float, value) -> None:
        self.now, self.takes, self.value, self.asked = 0.0, takes, value, []

    def worker(self, peer):
        return SimpleNamespace(
            peer=peer,
            ask=partial(self.ask, peer),
            build=lambda task, limit: self.ask(peer, "build", task, limit),
            stop=lambda: None,
        )

    def ask(self, peer, what, argument, limit):
        if limit <= 0:
            return Answer(None, 0.0, NO_TIME)
        self.asked.append((peer.name, what, argument))
        self.now += min(self.takes, limit)
        if self.takes > limit:
            return Answer(None, 0.0, f"{TOO_LONG} {limit:.0f} s")
        try:
            return Answer(self.value(peer, what, argument), self.takes)
        except RuntimeError as error:
            return Answer(None, 0.0, str(error))

    def run(self, main, *arguments):
        return main(list(map(str, arguments)), self.worker, lambda: self.now)

    @property
    def built(self) -> list[Task]:
        return list(dict.fromkeys(argument for _, what, argument in self.asked if what == "build"))


CARD = {"device": "Card 9", "platform": "gpu", "versions": "jax 7.5, driver 8.6", "copy": 1e12}


def answers(changed=lambda peer, what, argument, value: value):
    """What the workers of a card say: every policy ends at .5."""
    task = None

    def value(peer, what, argument):
        nonlocal task
        task = argument if what == "build" else task
        said = {"build": lambda: None, "run": lambda: np.full(task.rows, 0.5)}
        usual = "Card 9" if argument == ("peer_torch", "device") else said.get(what, lambda: CARD)()
        return changed(peer, what, argument, usual)

    return value


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "microseconds" not in line]


def label(task: Task) -> str:
    return f"{task.workload}, {task.label}"


@pytest.mark.parametrize("takes", [0.5, 4.0, 200.0])
def test_a_card_is_given_back_in_time_and_what_was_not_run_has_not_passed(takes, tmp_path, capsys):
    lent, out = Lent(takes, answers()), tmp_path / "report.md"
    assert lent.run(gpu.main, "--seconds", 60, "--out", out) == 3
    assert lent.now <= 60
    text = capsys.readouterr().out
    assert out.read_text() == text if takes < 60 else not rows_of(text)
    missing = text.splitlines()[-1]
    assert missing.startswith("not run: ") and "ok" not in text.splitlines()
    for task in gpu.tasks(False) if takes < 60 else ():
        complete = [row for row in rows_of(text) if row.startswith(f"| {label(task)}, ") and "n/a" not in row]
        assert complete or label(task) in missing or task.workload == gpu.PARTS[2], label(task)


def test_a_card_shows_the_largest_first_and_each_row_before_the_next_begins(capsys):
    printed = []

    def look(peer, what, argument, value):
        printed.append(capsys.readouterr().out)
        if what == "build":
            assert len(rows_of("".join(printed))) == len(lent.built) - 1
        return value

    lent = Lent(1e-3, answers(look))
    assert lent.run(gpu.main, "--seconds", 240) == 0
    text = "".join(printed) + capsys.readouterr().out
    assert text.splitlines()[-1] == "ok" and len(rows_of(text)) == len(gpu.tasks(False))
    assert "# Card 9" in text and CARD["versions"] in text and "1,000.0 GB/s" in text
    places = [gpu.PARTS.index(task.workload) for task in lent.built]
    assert places == sorted(places) and lent.built[0].actions == max(task.actions for task in lent.built)
    # 64 million logits, read and written, 50 times in 1 ms, at 1 TB/s.
    assert "| 2560% | met |" in rows_of(text)[0].replace(",", "")


def test_a_card_without_torch_says_so_and_runs_the_rest(capsys):
    def absent(peer, what, argument, value):
        if argument == ("peer_torch", "device"):
            raise RuntimeError("no CUDA here")
        return value

    lent = Lent(1e-3, answers(absent))
    assert lent.run(gpu.main) == 0
    text = capsys.readouterr().out
    assert "no CUDA here" in text and len(rows_of(text)) == len(gpu.tasks(False))
    assert not any(name.startswith("torch") for name, what, _ in lent.asked if what == "build")


def test_a_card_whose_peers_fail_or_disagree_has_not_passed(capsys):
    def broken(peer, what, argument, value):
        if what == "run" and peer.name == "torch.compile":
            raise RuntimeError("no compiler")
        return value + (peer.name == "torch") if what == "run" else value

    lent = Lent(1e-3, answers(broken))
    assert lent.run(gpu.main, "--only", "large") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("failed: ") and "torch.compile: no compiler" in last and "torch off by" in last
    assert lent.run(gpu.main, "--only", "large", "--peers", "bandit_pft") == 0
    with pytest.raises(SystemExit):
        gpu.main(["--peers", "nobody"])


def test_a_worker_whose_time_is_over_is_ended_and_one_without_time_never_starts():
    worker = Worker(Peer("any", "tasks"))
    assert worker.ask("call", ("tasks", "workloads"), 0.0).reason == NO_TIME and worker.process is None
    answer = worker.ask("call", ("tasks", "workloads"), 1e-9)
    assert answer.reason.startswith(TOO_LONG) and is_late(answer.reason) and worker.process is None


def checked(peer, what, argument):
    """Of four checks the second is wrong and the third crashes."""
    _, function, name, *_ = argument
    if function == "started":
        return "Card 9, jax 7.5, driver 8.6", False, ["one", "two", "three", "four"]
    if name == "three":
        raise RuntimeError("process ended with code -11")
    return f"saw {name}", name != "two"


def test_a_device_check_ends_in_time_and_names_what_failed_and_what_was_not_run(capsys):
    expected = {
        1000: (1, ["failed: two; three"]),
        35: (1, ["not run: three; four", "failed: two"]),
        25: (3, ["not run: two; three; four"]),
        5: (3, ["not run: everything"]),
    }
    for seconds, (code, last) in expected.items():
        lent = Lent(10.0, checked)
        assert lent.run(device_check.main, "--seconds", seconds) == code and lent.now <= seconds
        lines = capsys.readouterr().out.splitlines()
        assert lines[-len(last) :] == last and "ok" not in lines
        assert seconds < 10 or (lines[0] == "Card 9, jax 7.5, driver 8.6" and "saw one" in lines[1])
    lent = Lent(10.0, checked)
    assert lent.run(device_check.main, "--only", "one", "fo") == 0
    assert [argument[2] for _, _, argument in lent.asked[1:]] == ["one", "four"]
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
    with pytest.raises(SystemExit):
        lent.run(device_check.main, "--only", "nothing")
    assert "no check begins with 'nothing': choose from 'one'" in capsys.readouterr().err


def test_a_device_check_here_compares_this_device_with_the_cpu(capsys):
    here = lambda peer, what, argument: getattr(device_check, argument[1])(*argument[2:])
    assert Lent(0.0, here).run(device_check.main, "--only", "copy", "exact reinforce") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert f"jax {jax.__version__}" in first
    assert "moved by" in lines[0] and "GB/s" in lines[1] and lines[2:] == ["ok"]

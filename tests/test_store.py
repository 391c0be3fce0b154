"""A sweep's folder survives kills, full disks, second writers and damage, and its bits never depend on the way."""

import errno
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import sweeper
import yaml
from refusals import check_refusal

from bandit_pft import SGD, Method, cli, errors, factorised, load, paper_bandit, paper_sequences, save, sweep
from bandit_pft import store as files
from bandit_pft.errors import ConfigError, ResourceError, StoreError, is_traced
from bandit_pft.store import Worker

ROOT = Path(__file__).parents[1]
R4, R5 = paper_bandit("R4"), paper_bandit("R5")
ON = Method("grpo", learning_rate=1.0, num_responses=4)
sweeping = sweeper.sweeping


def small(store, *, steps=3, seeds=4, method=ON, **how):
    """Four tiles of one run, compiled in a moment."""
    return sweep(R4, method, seeds=range(seeds), steps=steps, tile=1, store=store, **how)


def start(folder, *arguments, **variables):
    command = [sys.executable, str(ROOT / "tests" / "sweeper.py"), str(folder), *map(str, arguments)]
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def start_joined(folder, count, *arguments):
    """Processes that jax.distributed numbers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    known = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count}
    return [start(folder, "--worker", "auto", *arguments, **known, JAX_PROCESS_ID=k) for k in range(count)]


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


def tiles(folder):
    """The finished tiles, with the times of their writing. A tile is never taken away, as half written files are."""
    names = [name for name in os.listdir(folder / "tiles") if re.fullmatch(r"\d+\.npz", name)]
    return {name: (folder / "tiles" / name).stat().st_mtime_ns for name in names}


def checkpoints(folder):
    return [name for name in os.listdir(folder / "tiles") if name.endswith(".part.npz")]


def begun(folder, enough):
    """Whether this many tiles are finished and another is on its way."""
    return (folder / "tiles").exists() and len(tiles(folder)) >= enough and bool(checkpoints(folder))


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Digest of the sweep in one process that nobody disturbs."""
    return sweeper.digest(sweeper.run(tmp_path_factory.mktemp("whole")))


# --- the bits ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (1, 4), (2, 2), (4, 1)])
def test_the_bits_are_the_same_on_1_2_and_4_devices_in_1_2_and_4_processes(tmp_path, whole, processes, devices):
    # The last worker first: the order must not matter either.
    workers = [f"{k}/{processes}" for k in reversed(range(processes))]
    running = [start(tmp_path, "--worker", worker, "--devices", devices) for worker in workers]
    told = [finish(process) for process in running]
    assert whole in told  # The one that ends last sees all tiles; the others count them.
    assert all(text == whole or re.fullmatch(r"\d+ of 12", text) for text in told)
    assert sweeper.digest(load(tmp_path)) == whole


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_joined_share_the_tiles_by_their_numbers(tmp_path, whole, processes):
    told = [finish(process) for process in start_joined(tmp_path, processes)]
    assert whole in told
    assert sorted(path.name for path in (tmp_path / "locks").glob("*-of-*")) == [
        f"{k}-of-{processes}" for k in range(processes)
    ]
    assert sweeper.digest(load(tmp_path)) == whole


LOOPS = {
    "table": sweeper.methods(),
    "noise, minibatches, a schedule": [
        Method("ipo", learning_rate=0.3, num_responses=4, label_noise=1.0, prompts=4, minibatch=2, reuse=2,
               schedule=lambda step: 1 / (1 + step), optimizer=sweeper.ADAM),
        Method("reinforce_running", learning_rate=0.3, num_responses=4, proxy="table"),
    ],
    "sequences": [Method("dapo", learning_rate=0.3, num_responses=4, policy=factorised, prompts=1, memory=0.5)],
}  # fmt: skip


@pytest.mark.parametrize("which", LOOPS)
def test_cutting_a_run_into_segments_changes_no_bit(monkeypatch, which):
    problem = paper_sequences("R6") if which == "sequences" else paper_bandit("R4", 4, key=jax.random.key(0))
    runs = []
    for segment in (1e-9, 1e9):  # One row at a time, and after the first all at once.
        monkeypatch.setattr(sweeping, "SEGMENT", segment)
        calls = count_calls(monkeypatch)
        runs.append(sweeper.digest(sweep(problem, LOOPS[which], seeds=[0], steps=12, every=2)))
        assert len(calls) == len(LOOPS[which]) * (7 if segment < 1 else 2)
        monkeypatch.undo()
    assert runs[0] == runs[1]


def count_calls(monkeypatch, interrupt_at=None):
    """Count the segments that run; stop the one with this number, as Ctrl-C between two segments would."""
    calls = []

    class Counting:
        def __init__(self, go):
            self.go, self.trace = go, go.trace

        def __call__(self, *arguments, **settings):
            if not is_traced(arguments):  # Being traced is not running.
                calls.append(arguments)
            if len(calls) == interrupt_at:
                raise KeyboardInterrupt
            return self.go(*arguments, **settings)

    for name in ("go_jit", "go_many_jit"):
        monkeypatch.setattr(sweeping, name, Counting(getattr(sweeping, name)))
    return calls


# --- ends that nobody planned --------------------------------------------------------------------------------------
def test_a_sweep_killed_at_any_moment_goes_on_with_the_same_bits_and_keeps_every_finished_tile(tmp_path, whole):
    # A checkpoint after each recorded row: many moments to die at.
    slow = ("--checkpoint", 0, "--segment", 1e-9)
    for moment in (0, 3, 8):
        process = start(tmp_path, *slow)
        wait_for(process, lambda enough=moment: begun(tmp_path, enough))
        process.kill()
        process.communicate()
        kept = tiles(tmp_path)
        for name in kept:
            with np.load(tmp_path / "tiles" / name, allow_pickle=False) as file:
                assert file["first_bad_step"].tolist() == [-1] * len(file["place"])
        assert len(kept) < 12
    assert finish(start(tmp_path)) == whole
    assert kept.items() <= tiles(tmp_path).items()  # Nothing that was finished has been done again.
    assert sorted(os.listdir(tmp_path / "tiles")) == [f"{n:06d}.npz" for n in range(12)]


def test_a_joined_process_that_dies_is_named_by_the_others_which_end_and_all_go_on_with_the_same_bits(tmp_path, whole):
    slow = ("--checkpoint", 0, "--segment", 1e-9, "--steps", 400)
    first, second = start_joined(tmp_path, 2, *slow)
    wait_for(first, lambda: begun(tmp_path, 1))
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=100)
    assert first.returncode == -signal.SIGABRT
    assert "Terminating process because the JAX distributed service detected fatal errors" in err
    assert re.search(r"stopped sending heartbeats\):\s*1\b|Task 1 heartbeat timeout", err), err
    kept = tiles(tmp_path)
    assert 0 < len(kept) < 12
    told = [finish(process) for process in start_joined(tmp_path, 2)]
    assert whole in told
    assert kept.items() <= tiles(tmp_path).items()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_stop_between_segments_and_say_how_to_go_on(tmp_path, whole, number, code):
    process = start(tmp_path, "--segment", 1e-9)
    wait_for(process, lambda: (tmp_path / "tiles").exists() and len(tiles(tmp_path)) >= 2)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode in (code, 130)
    assert re.search(r"stopped: \d+ of 12 tiles are finished in .*, and the same again goes on from there", err)
    assert finish(start(tmp_path)) == whole


def test_an_interrupted_tile_goes_on_at_its_checkpoint(tmp_path, monkeypatch):
    def run(store, interrupt_at=None):
        monkeypatch.undo()
        monkeypatch.setattr(sweeping, "SEGMENT", 1e-9)
        monkeypatch.setattr(sweeping, "CHECKPOINT", 0.0)
        calls = count_calls(monkeypatch, interrupt_at)
        return calls, sweep(R5, LOOPS["table"][0], seeds=[0, 1], steps=9, store=store)

    _, undisturbed = run(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt, match="0 of 1 tiles"):
        run(tmp_path / "two", interrupt_at=7)
    assert checkpoints(tmp_path / "two") == ["000000.part.npz"] and not tiles(tmp_path / "two")
    calls, resumed = run(tmp_path / "two")
    assert len(calls) == 10 - 6  # Ten rows, six of them before the interruption.
    assert sweeper.digest(resumed) == sweeper.digest(undisturbed)


def test_without_a_store_an_interruption_says_what_would_have_helped(monkeypatch):
    count_calls(monkeypatch, interrupt_at=1)
    with pytest.raises(KeyboardInterrupt, match="give sweep a store"):
        sweep(R4, ON, seeds=[0], steps=3)


def test_a_full_disk_leaves_every_finished_tile_whole_and_nothing_half_written(tmp_path, monkeypatch):
    fsync, left = os.fsync, [6]  # The manifest and its folder, two tiles and theirs: then the disk is full.

    def full(descriptor):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*make room and run the same again"):
        small(tmp_path)
    monkeypatch.undo()
    done = tiles(tmp_path)
    assert len(done) == 2 and not list(tmp_path.rglob("*.tmp.*"))
    assert sweeper.digest(small(tmp_path)) == sweeper.digest(sweep(R4, ON, seeds=range(4), steps=3, tile=1))
    assert done.items() <= tiles(tmp_path).items()


def test_a_disk_that_cannot_hold_the_sweep_is_refused_before_it_runs(tmp_path, monkeypatch):
    usage = lambda path: type("usage", (), {"free": 1000})()
    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    check_refusal(lambda: small(tmp_path), StoreError, "GB free", monkeypatch)
    assert not (tmp_path / "manifest.json").exists()


def test_what_a_killed_writer_left_half_written_is_swept_up_by_the_worker_it_belonged_to(tmp_path):
    small(tmp_path, worker="0/2")
    left = [tmp_path / "tiles" / f"{n:06d}.npz.tmp.1" for n in (1, 2)]
    left.append(tmp_path / "tiles" / "000000.part.npz")  # Killed between the tile and the end of its checkpoint.
    for path in left:
        path.write_bytes(b"half")
    small(tmp_path, worker="1/2")
    assert [path.exists() for path in left] == [False, True, True]
    small(tmp_path)
    assert not list(tmp_path.rglob("*.tmp.*")) and not checkpoints(tmp_path)


# --- several writers -----------------------------------------------------------------------------------------------
def manifest_of(folder):
    return {key: files.read_manifest(folder)[key] for key in ("tiles", "configuration", "frame")}


def opening(folder, worker, **how):
    return files.opened(folder, manifest_of(folder), Worker.of(worker), **{"room": 0.0, "warn": pytest.fail, **how})


def test_a_second_writer_is_refused_with_the_process_and_host_of_the_first_and_let_in_when_that_has_ended(tmp_path):
    small(tmp_path)
    mine = f"process {os.getpid()} on {socket.gethostname()}"
    with opening(tmp_path, "0/1"), pytest.raises(StoreError, match=f"is being written by {mine}: .*worker=k/n"):
        small(tmp_path)
    small(tmp_path)


def test_workers_of_one_count_work_side_by_side_and_another_count_is_refused(tmp_path):
    small(tmp_path)
    with opening(tmp_path, "0/2"):
        with opening(tmp_path, "1/2"), pytest.raises(StoreError, match="is being written by"):
            small(tmp_path, worker="2/3")
        small(tmp_path, worker="1/2")


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = start(tmp_path, "--segment", 1e-9)
    wait_for(process, lambda: (tmp_path / "tiles").exists() and tiles(tmp_path))
    with pytest.raises(StoreError, match=f"process {process.pid} on"), opening(tmp_path, "0/1"):
        pass
    process.kill()
    process.communicate()
    with opening(tmp_path, "0/1"):
        pass


@pytest.mark.parametrize("how", ["no module", "no support"])
def test_without_locks_a_file_stands_for_the_writer_and_says_how_to_remove_it(tmp_path, monkeypatch, how):
    if how == "no module":  # As on Windows.
        monkeypatch.setattr(files, "fcntl", None)
    else:  # As on some network file systems.
        unsupported = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available"))
        monkeypatch.setattr(files.fcntl, "flock", unsupported)
    small(tmp_path)
    claim = tmp_path / "locks" / "0-of-1.claim"
    assert not claim.exists()
    with opening(tmp_path, "0/1"):
        assert claim.read_text().startswith("process")
        with pytest.raises(StoreError, match=r"no locks.*delete .*0-of-1\.claim"):
            small(tmp_path)
    small(tmp_path)


@pytest.mark.parametrize("worker", ["", "1", "2/2", "-1/2", "0/0", "a/b", "0/2/3", 3, None, (1, 1)])
def test_a_worker_that_is_none_of_n_is_refused(worker, tmp_path, monkeypatch):
    check_refusal(lambda: small(tmp_path, worker=worker), ConfigError, "worker is", monkeypatch)


def test_a_worker_among_joined_processes_has_their_number_and_alone_it_does_everything(monkeypatch):
    assert Worker.of("auto") == (0, 1)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert Worker.of("auto") == (2, 3)


def test_workers_need_a_store(monkeypatch):
    check_refusal(lambda: small(None, worker="0/2"), ConfigError, "without a store", monkeypatch)


def test_the_array_script_runs_all_its_workers_here_and_makes_the_results(tmp_path):
    script = ROOT / "examples" / "array.sh"
    command = "sweep dpo best_of_n --problems R4 --contexts 5 --steps 4 --seeds 2 --grid learning_rate=0.1,0.2"
    settings = {
        "WORKERS": "2",
        "OUT": str(tmp_path),
        "SWEEP": command,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", str(script)], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "sweep.nc").sizes["learning_rate"] == 2
    assert "after 4 gradient steps" in (tmp_path / "sweep.txt").read_text()


def test_the_distributed_script_starts_processes_here_that_find_one_another(tmp_path):
    command = "sweep dpo best_of_n --problems R4 --contexts 2 --steps 2 --seeds 1 --resume --worker auto"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "JAX_COORDINATOR_ADDRESS": address,
        "COMMAND": f"{sys.executable} -m bandit_pft {command} --out {tmp_path}",
    }
    script = ROOT / "examples" / "distributed.sh"
    done = subprocess.run(["bash", str(script)], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "locks" / "1-of-2").exists()
    assert load(tmp_path / "runs").sizes["algorithm"] == 2


def test_on_slurm_the_script_hands_its_command_to_srun(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    script = ROOT / "examples" / "distributed.sh"
    done = subprocess.run(["bash", str(script)], env={**os.environ, **settings}, capture_output=True, text=True)
    _, *words = done.stdout.split()
    assert parsed(words).worker == "auto" and parsed(words).resume


def parsed(words):
    """The command's options, as the program understands them."""
    assert words[0] == "bandit-pft"
    return cli._parser().parse_args(words[1:])


def test_the_kubernetes_job_starts_as_many_pods_as_its_processes_expect_each_with_its_number():
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    known = {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in container["env"]}
    number = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert known["JAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": number}}
    assert int(known["JAX_NUM_PROCESSES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    # The first pod's name is its job's and -0, below the service that it belongs to.
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert known["JAX_COORDINATOR_ADDRESS"].split(":")[0] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    options = parsed([*container["command"], *container["args"]])
    assert options.worker == "auto" and options.resume
    assert any(options.out.is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"])


# --- what does not belong there ------------------------------------------------------------------------------------
def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path, monkeypatch):
    small(tmp_path)
    other = Method("grpo", {"clip": 0.3}, learning_rate=0.5, num_responses=4)
    cases = [
        (lambda: small(tmp_path, steps=4), "steps (3 there, 4 here)"),
        (lambda: small(tmp_path, method=other), "methods.grpo.learning_rate (1.0 there, 0.5 here)"),
        (lambda: small(tmp_path, method=other), "methods.grpo.hyper.clip (0.2 there, 0.3 here)"),
        (lambda: small(tmp_path, seeds=5), "seed ([0, 1, 2, 3] there, [0, 1, 2, 3, 4] here)"),
        (lambda: small(tmp_path, on_nonfinite="keep"), "on_nonfinite (freeze there, keep here)"),
        (lambda: small(tmp_path, method=Method("grpo", learning_rate=1.0, num_responses=4, optimizer=SGD)),
         "methods.grpo.optimizer (adam there, sgd here)"),
        (lambda: sweep(R4, ON, seeds=range(4), steps=3, tile=1, store=tmp_path, grid={"memory": [0.5]}), "axes.memory"),
    ]  # fmt: skip
    for call, words in cases:
        check_refusal(call, StoreError, words, monkeypatch)
    assert sweeper.digest(load(tmp_path)) == sweeper.digest(small(tmp_path))


def test_a_formula_that_was_changed_under_the_same_name_is_refused(tmp_path, monkeypatch):
    from bandit_pft import objective
    from bandit_pft.objectives import OBJECTIVES

    def define(factor):
        @objective(family="supervised")
        def my_pull(logp, group):
            """Imitate every response, harder.

            L = -factor * mean of log pi
            """
            return -factor * group.mean(group.total(logp))

        return my_pull

    try:
        small(tmp_path, method=Method(define(1.0)))
        small(tmp_path, method=Method(define(1.0)))  # The same again, although it is another function object.
        check_refusal(
            lambda: small(tmp_path, method=Method(define(2.0))), StoreError, "programs.R4/my_pull", monkeypatch
        )
    finally:
        del OBJECTIVES["my_pull"]


def rewrite(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_other_versions_or_another_machine_warn_and_are_refused_when_strict(tmp_path):
    small(tmp_path)
    (tmp_path / "tiles" / "000001.npz").unlink()

    def older(manifest):
        manifest["provenance"]["versions"]["jax"] = "0.4.1"
        manifest["configuration"]["programs"] = {"R4/grpo": "lowered otherwise"}

    rewrite(tmp_path, older)
    with pytest.raises(StoreError, match=r"versions.jax \(0.4.1 there, .* here\).*strict=False"):
        small(tmp_path, strict=True)
    with pytest.warns(UserWarning, match=r"last bits may differ .*versions.jax \(0.4.1 there"):
        small(tmp_path)
    rewrite(tmp_path, lambda manifest: manifest["provenance"]["machine"].update(instructions="sve2"))
    with pytest.warns(UserWarning, match=r"machine.instructions \(sve2 there"):
        small(tmp_path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 255  # One of the first array's numbers.
    path.write_bytes(content)


def pickled(path):
    np.savez(path, place=np.asarray([print], dtype=object), first_bad_step=[0])


def foreign(path):
    np.savez(path, place=np.zeros((1, 3), int), first_bad_step=np.zeros(1), sweep="another")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {"a flipped bit": (flip, "damaged"), "cut off": (cut, "damaged"),
          "empty": (lambda path: path.write_bytes(b""), "damaged"), "a pickle": (pickled, "damaged"),
          "no archive": (lambda path: path.write_text("hello"), "damaged"),
          "of another sweep": (foreign, "does not belong to this sweep")}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("part", [False, True])
def test_a_damaged_or_foreign_tile_is_refused_with_its_path_and_redone_once_deleted(tmp_path, kind, part):
    expected = sweeper.digest(small(tmp_path))
    path = tmp_path / "tiles" / "000002.npz"
    if part:
        path = path.rename(path.with_name("000002.part.npz"))
    damage, word = DAMAGE[kind]
    damage(path)
    with pytest.raises(
        StoreError, match=rf"{re.escape(str(path))} .*{word}.*|{re.escape(str(path))} {word}.*delete it"
    ):
        small(tmp_path)
    path.unlink()
    assert sweeper.digest(small(tmp_path)) == expected


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    small(tmp_path)
    tile = tmp_path / "tiles" / "000002.npz"
    with np.load(tile, allow_pickle=False) as file:
        marks = {"sweep": file["sweep"], "name": "000002.part.npz"}
    np.savez(tmp_path / "tiles" / "000002.part.npz", **marks, **{"0000": np.zeros(3)})
    tile.unlink()
    with pytest.raises(StoreError, match="not a checkpoint of this sweep: delete it"):
        small(tmp_path)


@pytest.mark.parametrize("there", ["000003.npz", "000001.npz", "000001.part.npz"])
def test_a_tile_under_the_name_of_another_is_refused_with_both_names_and_redone_once_deleted(tmp_path, there):
    expected = sweeper.digest(small(tmp_path))
    folder = tmp_path / "tiles"
    for left in ("000001.npz", "000003.npz"):
        (folder / left).unlink()
    (folder / there).write_bytes((folder / "000000.npz").read_bytes())
    words = rf"{re.escape(str(folder / there))} was written as 000000\.npz: delete it and run the same again"
    with pytest.raises(StoreError, match=words):
        small(tmp_path)
    if "part" not in there:  # Nobody but the sweep reads a checkpoint.
        with pytest.raises(StoreError, match=words):
            load(tmp_path, partial=True)
    (folder / there).unlink()
    assert sweeper.digest(small(tmp_path)) == expected


MANIFESTS = {
    "cut off": ("{", "damaged"), "no keys": ("{}", "damaged"), "a list": ("[1]", "damaged"),
    "parts missing": (f'{{"format": {files.FORMAT}}}', "damaged"), "newer": ('{"format": 99}', "upgrade bandit_pft"),
    "older": ('{"format": 2}', "run again in another folder, or read it with the older bandit_pft"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_newer_or_older_manifest_is_refused_with_its_path(tmp_path, kind):
    text, words = MANIFESTS[kind]
    small(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    for call in (lambda: small(tmp_path), lambda: load(tmp_path)):
        with pytest.raises(StoreError, match=rf"manifest\.json.*{words}"):
            call()


def test_tiles_without_a_manifest_and_places_that_are_no_folder_are_refused(tmp_path):
    small(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="no manifest"):
        small(tmp_path / "a")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be used as a store"):
            small(place)
    with pytest.raises(StoreError, match="holds no results"):
        load(tmp_path)


# --- reading -------------------------------------------------------------------------------------------------------
def test_a_folder_is_read_while_it_grows_and_says_how_much_there_is(tmp_path):
    part = small(tmp_path, worker="1/2")
    assert part.attrs["tiles"] == "2 of 4"
    assert np.isfinite(part.kl.isel(step=-1)).values.ravel().tolist() == [False, True, False, True]
    with pytest.raises(StoreError, match=r"2 of 4 tiles.*partial=True"):
        load(tmp_path)
    assert load(tmp_path, partial=True).identical(part)
    full = small(tmp_path, worker="0/2")
    assert "tiles" not in full.attrs and load(tmp_path).identical(full)
    assert sweeper.digest(full) == sweeper.digest(sweep(R4, ON, seeds=range(4), steps=3, tile=1))


def test_results_say_where_they_come_from(tmp_path):
    found = json.loads(small(tmp_path).attrs["provenance"])
    assert set(found) == {"versions", "machine", "python", "git"}
    assert found["versions"]["jax"] == importlib.metadata.version("jax")
    assert {"device", "platform", "instructions", "jax_threefry_partitionable"} <= set(found["machine"])


def test_the_state_of_the_source_is_its_commit_and_whether_it_was_changed(tmp_path):
    git = lambda *arguments: subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments],
        check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip
    assert files.source_state(tmp_path / "nowhere") is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    assert files.source_state(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert files.source_state(tmp_path) == git("rev-parse", "HEAD") + " + changes"


def test_a_parquet_file_holds_one_line_per_run_with_its_last_values(tmp_path):
    data = sweep([R4, R5], ON, seeds=range(3), steps=4, grid={"memory": [0.5, 0.9]})
    table = pd.read_parquet(save(data, tmp_path / "runs.parquet"))
    assert len(table) == 12 and {"problem", "algorithm", "memory", "seed", "first_bad_step", "kl"} <= set(table)
    line = table.query("problem == 'R5' and memory == 0.5 and seed == 2").iloc[0]
    assert line["kl"] == data.kl.sel(problem="R5", algorithm="grpo", memory=0.5, seed=2).values[-1]
    with pytest.raises(ConfigError, match=r"end it in \.nc .* or \.parquet"):
        save(data, tmp_path / "runs.csv")


def test_an_export_that_fails_leaves_the_older_file_as_it_was(tmp_path, monkeypatch):
    data, path = small(None), tmp_path / "result.nc"
    save(data, path)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        save(data, path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["result.nc"]


# No file may grow beyond 4 kB, as on a disk with so much room.
NO_ROOM = """
import gc, resource, signal, sys
from pathlib import Path
import numpy as np, xarray as xr
from bandit_pft import plots, save
from bandit_pft.errors import StoreError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
noise = np.random.default_rng(0).normal(size=(5000, 50))
data = xr.Dataset({"first_bad_step": ("seed", noise[:, 0]), "kl": (("seed", "step"), noise)})
figure = plots.SlideFigure()
figure.subplots().plot(noise[:, 0])
saving = {"x.nc": lambda path: save(data, path), "x.parquet": lambda path: save(data, path),
          "x.svg": lambda path: plots.save(figure, path.with_suffix(""))}
for name, write in saving.items():
    try:
        write(Path(sys.argv[1], name))
    except StoreError as error:
        assert f"{name} cannot be written" in str(error) and "make room" in str(error), error
        print("refused", name)
    gc.collect()
"""


def test_what_finds_no_room_is_refused_leaves_nothing_and_the_program_goes_on(tmp_path):
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused x.nc", "refused x.parquet", "refused x.svg"]
    assert not list(tmp_path.iterdir())


# --- machines that lack something ----------------------------------------------------------------------------------
def test_a_missing_device_is_named_with_what_to_install():
    code = "import bandit_pft as b; b.sweep(b.paper_bandit('R4'), b.Method('dpo'), seeds=[0], steps=1)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True
    )
    assert "JAX_PLATFORMS" in done.stderr.splitlines()[-1] and "jax[cuda12]" in done.stderr.splitlines()[-1], (
        done.stderr
    )


def test_a_program_that_needs_more_memory_than_is_free_is_refused_by_the_compilers_figures(monkeypatch):
    simulating = importlib.import_module("bandit_pft.simulate")
    method = Method("grpo", num_responses=50_000)
    here = jax.devices()[0]
    monkeypatch.setattr(errors, "available_memory", lambda device: 1e6 if device == here else np.inf)
    monkeypatch.setattr(errors, "FLOOR", 0)
    many = lambda: sweep(R4, method, seeds=[0], steps=1, tile=1)
    one = lambda: simulating.simulate(R4, method, 0, steps=1)
    # The second time, the figures are known.
    for call in (many, many, one, one):
        check_refusal(call, ResourceError, "the compiled program needs", monkeypatch)


def test_as_many_programs_are_counted_as_there_are_tiles_to_run_at_once(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(sweeping, "guard_program", lambda traced, at_once, name: counted.append(at_once))
    small(tmp_path)
    (tmp_path / "tiles" / "000002.npz").unlink()
    small(tmp_path)
    assert counted == [3, 3, 1, 1]


def test_a_device_that_runs_out_of_memory_is_reported_with_what_to_change():
    simulating = importlib.import_module("bandit_pft.simulate")
    with (
        pytest.raises(ResourceError, match=r"grpo: the device ran out of memory: use fewer"),
        simulating.explained("grpo"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), simulating.explained("grpo"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_sweep_of_a_billion_runs_is_refused_by_its_count(monkeypatch):
    grid = {"learning_rate": np.linspace(0.1, 1, 1000), "memory": np.linspace(0, 0.9, 1000)}
    call = lambda: sweep(R4, ON, seeds=range(1000), steps=1, grid=grid)
    check_refusal(call, ResourceError, "1,000,000,000 runs", monkeypatch)

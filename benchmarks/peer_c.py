"""C with OpenMP, compiled on the spot: the floor for the same work on this machine."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.tasks import BETA, EPS, TEMPERATURE, Run, Task, arrays

OBJECTIVES = (
    "forward_kl",
    "reverse_kl",
    "rwr",
    "reinforce",
    "rloo",
    "grpo",
    "best_of_n",
    "pref_ft",
    "dpo",
    "ipo",
)
_ints = ("objective", "sampled", "adam", "actions", "padded", "rows", "steps", "draws")
_floats = ("beta", "temperature", "eps")
_pointers = ("ref", "reward", "rate", "target", "order")


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in _ints),
        *((name, ctypes.c_float) for name in _floats),
        *((name, ctypes.c_void_p) for name in _pointers),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Raises:
        RuntimeError: there is no C compiler, or it refuses the file.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: install gcc")
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "kernel.so")
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
        if platform.machine() in ("x86_64", "AMD64"):
            flags.append("-mprefer-vector-width=512")
        source = str(Path(__file__).with_name("kernel.c"))
        # Linked without -ffast-math, which would turn subnormal numbers off in every process that loads the kernel.
        for step in (
            [*flags, "-c", source, "-o", target + ".o"],
            ["-shared", "-fopenmp", target + ".o", "-o", target, "-lm"],
        ):
            made = subprocess.run([compiler, *step], capture_output=True, text=True)
            if made.returncode:
                raise RuntimeError(f"{compiler} failed: {made.stderr[-300:]}")
        kernel = ctypes.CDLL(target)
    kernel.run.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
    kernel.run.restype = None
    kernel.triad.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 3]
    kernel.triad.restype = ctypes.c_double
    kernel.passes.argtypes = [ctypes.c_int] * 3
    kernel.passes.restype = ctypes.c_double
    kernel.threads.restype = ctypes.c_int
    return kernel


def build(task: Task) -> Run:
    kernel, problem = library(), arrays(task)
    order = np.argsort(problem.reward, kind="stable").astype(np.int32)
    extra = -task.actions % 16
    pad = lambda x, value: np.pad(x, (0, extra), constant_values=np.float32(value))
    tables = pad(problem.ref_logp, -1e30), pad(problem.reward, 0), problem.rate, pad(problem.target, 0), order
    sizes = (task.sampled, task.adam, task.actions, task.actions + extra, task.rows, task.steps, task.draws)
    given = _Task(OBJECTIVES.index(task.objective), *sizes, BETA, TEMPERATURE, EPS, *(x.ctypes.data for x in tables))

    def run(seed: int, tables=tables) -> np.ndarray:  # holds on to the arrays behind the pointers
        out = np.empty(task.rows, np.float32)
        kernel.run(ctypes.byref(given), seed, out.ctypes.data)
        return out

    return run


IN_CACHE = 2048  # floats
_kinds = ("copy", "exponentials", "Adam")


def seconds(kind: str, n: int) -> float:
    """One pass of every thread over n floats of its own."""
    once = max(library().passes(_kinds.index(kind), n, 1), 1e-7)
    return library().passes(_kinds.index(kind), n, 1 + min(100_000, int(0.01 / once)))


def floor(task: Task) -> dict[str, float]:
    """Seconds that an exact task cannot do without, measured now, one after the other.

    traffic: logits are read and written, with Adam its two moments as well, at the speed of a copy between arrays of
    the size that a core holds. exponentials: one per action. Adam: its arithmetic, in cache.
    """
    threads = library().threads()
    # As the kernel shares the work out: rows among threads, or one row among all.
    alone = task.rows >= threads
    length = task.actions if alone else task.actions // threads
    passes = task.steps * (task.rows / threads if alone else task.rows)
    in_cache = passes * length / IN_CACHE
    return {
        "traffic": passes * seconds("copy", length * (3 if task.adam else 1)),
        "exponentials": in_cache * seconds("exponentials", IN_CACHE),
        "Adam": in_cache * seconds("Adam", IN_CACHE) if task.adam else 0.0,
    }


def machine(repeats: int = 5) -> dict[str, float]:
    """Measured limits: memory bandwidth of a = b + s c [GB/s] and exponentials in cache [1/ns], all cores."""
    kernel = library()
    n = 1 << 24
    a, b, c = (np.ones(n, np.float32) for _ in range(3))
    triad = min(kernel.triad(n, *(x.ctypes.data for x in (a, b, c))) for _ in range(repeats + 1))
    exps = min(seconds("exponentials", IN_CACHE) for _ in range(repeats))
    return {
        "triad_GB_per_s": 12 * n / triad / 1e9,
        "exponentials_per_ns": IN_CACHE * kernel.threads() / exps / 1e9,
    }

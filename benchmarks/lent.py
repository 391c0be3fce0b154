"""For a machine that is lent for minutes: time that runs out, what it is that runs, and what became of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "torch", "numpy")
OK, FAILED, UNFINISHED = 0, 1, 3  # exit codes; 2 is that of wrong arguments and missing packages


class Budget:
    """Seconds from now on, of which less and less is left."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    def left(self) -> float:
        return self.end - self.clock()


def verdict(failed: Sequence[str], not_run: Sequence[str]) -> tuple[list[str], int]:
    """The last lines and the exit code: what was not run has not passed."""
    lines = [f"{what}: {'; '.join(names)}" for what, names in (("not run", not_run), ("failed", failed)) if names]
    return lines or ["ok"], FAILED if failed else UNFINISHED if not_run else OK


def described(small: bool) -> dict[str, Any]:
    """The default JAX device, its versions, and the bytes per second that a copy on it reads and writes."""
    import jax

    device = jax.devices()[0]
    size = 1 << (31 if device.platform != "cpu" and not small else 22)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "versions": versions(device),
        "copy": size / copy_of(size, 10),
    }


def versions(device: Any) -> str:
    """Of the driver, of what JAX reaches the device through, of the packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if device.platform == "gpu" and (tool := shutil.which("nvidia-smi")):
        asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20)
        found.append(f"driver {(answer.stdout.split() or ['unknown'])[0]}")
    return ", ".join([*found, " ".join(device.client.platform_version.split())])


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of some runs, after one that compiles."""
    import jax

    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def copy_of(size: int, steps: int) -> float:
    """Seconds for moving so many bytes, half of them read and half of them written, many times in a row."""
    import jax
    import jax.numpy as jnp

    # The barrier keeps XLA from making one copy of them all.
    once = lambda _, x: jax.lax.optimization_barrier(x + 1)
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, steps, once, x))
    x = jnp.ones(size // 8, jnp.float32)
    return seconds(lambda: copies(x)) / steps

"""Runs before anything imports the package: shapes are checked at every call, on the CPU, with compiled code kept."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("COLUMNS", None)  # Lines are whole where no test asks for a width.
os.environ.setdefault("MPLBACKEND", "Agg")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bandit_pft" / "test_programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# A test compiles far longer than it computes, and so do the processes that it starts, which inherit this. Optimised in
# full, as for users, with: XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_prefer_vector_width=128")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("bandit_pft", "checked.checked")

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Examples of all property tests together.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EXAMPLES = 100_000 if NIGHTLY else 3_000
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", deadline=None, database=None, print_blob=True)
settings.load_profile("nightly" if NIGHTLY else "repeatable")


# Files whose tests all need PyTorch, or are slow; single tests elsewhere say so themselves.
MARKED = {
    "torch": ("hf", "hf_length", "hf_mutants", "hf_recipes", "hf_trainer", "hf_trl", "trl"),
    "slow": (
        "benchmarks", "claims", "cli", "devices", "documents", "exact", "explorer", "explorer_browser", "explorer_live",
        "identities", "kernels", "literature_offline", "literature_online", "mutants", "notebooks", "packaging",
        "pallas", "paper", "plots", "policies", "probes", "properties", "reading", "simulate", "store", "sweep",
        "theory",
    ),
}  # fmt: skip


def marks_of(path):
    return [mark for mark, names in MARKED.items() if path.stem.removeprefix("test_") in names]


def pytest_ignore_collect(collection_path, config):
    """What a lane leaves out as a whole is not even imported: PyTorch may be missing."""
    return any(f"not {mark}" in config.option.markexpr for mark in marks_of(collection_path)) or None


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in marks_of(item.path):
            item.add_marker(mark)


MOST_MEMORY = 1.5e9  # Bytes of a worker, from which on it forgets its compiled programs after each further third.


def forget_programs():
    jax.clear_caches()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def memory():
    return psutil.Process().memory_info().rss


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_file():
    """Every compiled program maps memory, and Linux allows a process only so many maps."""
    yield
    forget_programs()


@pytest.fixture(scope="session")
def limit():
    return [MOST_MEMORY]


@pytest.fixture(autouse=True)
def workers_stay_small(limit):
    """Where forgetting frees little, it is not done again until there is more: every program would be compiled anew."""
    yield
    if memory() > limit[0]:
        forget_programs()
        limit[0] = max(MOST_MEMORY, 4 / 3 * memory())

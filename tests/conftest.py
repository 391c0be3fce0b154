"""Runs before anything imports the package: shapes are checked at every call, on the CPU, with compiled code kept."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bandit_pft" / "test_programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("bandit_pft", "checked.checked")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Examples of all property tests together.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EXAMPLES = 100_000 if NIGHTLY else 3_000
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", deadline=None, database=None, print_blob=True)
settings.load_profile("nightly" if NIGHTLY else "repeatable")


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_file():
    """Every compiled program maps memory, and Linux allows a process only so many maps."""
    yield
    jax.clear_caches()

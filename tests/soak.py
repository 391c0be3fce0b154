"""What takes too long for every push: python tests/soak.py. Ends in one table, and in exit code 1 if a check failed.

- SIGKILL at random moments of a sweep, alone and by two workers, until it is done: the results must be the same bits.
- Configurations made by hypothesis for every public function; 100,000 examples of the property tests.
- The lowest and newest versions of what the package needs.
- The notebooks and the benchmark at full size.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "sweeper.py"), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path) -> dict[str, int]:
    tiles = folder / "tiles"
    names = [name for name in os.listdir(tiles) if re.fullmatch(r"\d+\.npz", name)] if tiles.exists() else []
    return {name: (tiles / name).stat().st_mtime_ns for name in names}


def kills(wanted: int, seed: int) -> str:
    """Kill sweeps until `wanted` kills hit a living process; one worker or two, at moments from a seeded generator."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, err = start(Path(name)).communicate()
    assert re.fullmatch(r"[0-9a-f]{64}\n", whole), err
    hits = trials = 0
    while hits < wanted:
        trials += 1
        with tempfile.TemporaryDirectory() as name:
            folder, workers = Path(name), chance.choice([["0/1"], ["0/2", "1/2"]])
            alive = dict.fromkeys(workers, True)
            while any(alive.values()):
                slow = ("--checkpoint", chance.choice([0, 0.05]), "--segment", 1e-9)
                running = {worker: start(folder, "--worker", worker, *slow) for worker in workers if alive[worker]}
                # Most of a process's life is its start: let it work first, and then for a random while.
                kept = finished(folder)
                patience = time.monotonic() + 120
                while finished(folder) == kept and all(p.poll() is None for p in running.values()):
                    assert time.monotonic() < patience, "no tile in two minutes"
                    time.sleep(0.005)
                time.sleep(chance.uniform(0, 0.4))
                for worker, process in running.items():
                    if hits < wanted and process.poll() is None:
                        process.send_signal(signal.SIGKILL)
                    _, err = process.communicate()
                    hits += process.returncode == -signal.SIGKILL
                    alive[worker] = process.returncode != 0
                    assert process.returncode in (0, -signal.SIGKILL), err
                assert kept.items() <= finished(folder).items(), "a finished tile was done again"
                print(f"\r{hits} kills, {trials} sweeps", end="", file=sys.stderr, flush=True)
            told, err = start(folder).communicate()
            assert told == whole, f"other bits after {hits} kills: {told or err}"
            assert len(os.listdir(folder / "tiles")) == len(finished(folder)) == 12, "something half written is left"
    print(file=sys.stderr)
    return f"{hits} SIGKILLs in {trials} sweeps, all with equal digests"


def command(*words: str, **environment: str) -> Callable[[], str]:
    """A check that is a command: its last line that is not empty is what the table shows."""

    def check() -> str:
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE)
        lines = [line.strip("= ") for line in done.stdout.splitlines() if line.strip()]
        assert not done.returncode, f"exit code {done.returncode}: {' | '.join(lines[-3:])}"
        return lines[-1] if lines else "passed"

    return check


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the kills' moments"
    )
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names of the table's first column")
    given = parser.parse_args()
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    checks: dict[str, Callable[[], str]] = {
        "kills": lambda: kills(given.kills, given.seed),
        "properties": command(*pytest, "tests/test_properties.py", HYPOTHESIS_PROFILE="nightly"),
        "fuzzing": command(sys.executable, "tests/fuzz.py"),
        "lowest versions": command("make", "test-lowest"),
        "newest versions": command("make", "test-newest"),
        "notebooks": command("make", "notebooks"),
        "benchmark": command(sys.executable, "-m", "benchmarks", "--out", tempfile.mkdtemp()),
    }
    rows = []
    for name, check in checks.items():
        if given.only and name not in given.only:
            continue
        print(f"--- {name}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            outcome, told = "passed", check()
        except Exception as error:
            outcome, told = "FAILED", f"{type(error).__name__}: {error}"
        rows.append((name, outcome, f"{time.monotonic() - begun:,.0f} s", told))
    print(f"\nseed of the kills: {given.seed}")
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
    return int(any(row[1] == "FAILED" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())

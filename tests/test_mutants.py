"""Every wrong formula of `mutants.py` makes the test that it names fail, which passes on the formula as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "bandit_pft"


class Runner:
    """`mutant_runner.py`, started anew after some requests, since each leaves programs and classes in memory."""

    def __init__(self):
        self.process, self.left = None, 0

    def __call__(self, module, text, tests):
        if not self.left:
            self.stop()
            command = [sys.executable, str(TESTS / "mutant_runner.py")]
            plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=plain, cwd=TESTS.parent)
            self.left = 65
        self.left -= 1
        print(json.dumps({"module": module, "text": text, "tests": tests}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the runner died on {module}; what it said stands in the standard error"
        return json.loads(answer)

    def stop(self):
        if self.process:
            self.process.kill()  # It holds gigabytes, which it would give back one by one.
            self.process.communicate()


@pytest.fixture(scope="module")
def verdicts():
    runner = Runner()
    yield runner
    runner.stop()


def changed(mutant):
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    found = text.count(mutant.original)
    assert found == 1, (
        f"the source has moved: {mutant.file} holds {mutant.original!r} {found} times, not once. "
        f"Bring the entry {mutant.what!r} of tests/mutants.py up to date"
    )
    return text.replace(mutant.original, mutant.wrong)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_formula_fails_its_test(mutant, verdicts):
    verdict = verdicts(mutant.module, changed(mutant), [mutant.test])[mutant.test]
    assert verdict.startswith("failed"), f"{mutant.test} does not catch {mutant.name!r}: {verdict}"


def test_the_same_tests_pass_on_the_formulas_as_they_are(verdicts):
    found = verdicts("", "", sorted({mutant.test for mutant in MUTANTS}))
    assert not {test: verdict for test, verdict in found.items() if verdict != "passed"}


IPO = next(mutant for mutant in MUTANTS if mutant.what == "IPO's target is twice as far")


@pytest.mark.parametrize(
    ("mutant", "verdict"),
    [
        (IPO._replace(wrong=IPO.original + " * 1"), "passed"),
        (IPO._replace(wrong="undefined"), "error: call:"),
        (IPO._replace(original="import jax.numpy as jnp", wrong="import jax.nothing as jnp"), "error: collection"),
        (IPO._replace(test="test_objectives.py::test_of_nothing"), "error: the test was not run"),
        (Mutant("plots.py", "import math", "import cmath as math", "not reached", IPO.test), "error: no test imported"),
    ],
    ids=["no effect", "crash", "import error", "no such test", "other module"],
)
def test_only_a_failed_assertion_counts_as_caught(mutant, verdict, verdicts):
    assert verdicts(mutant.module, changed(mutant), [mutant.test])[mutant.test].startswith(verdict)


def test_every_module_with_formulas_has_wrong_ones_of_names_that_differ():
    objectives = {f"objectives/{path.name}" for path in (PACKAGE / "objectives").glob("[a-z]*.py")}
    others = {
        "groups.py",
        "kernels.py",
        "metrics.py",
        "policies.py",
        "probes.py",
        "problems.py",
        "proxy.py",
        "engine/collection.py",
        "engine/few.py",
        "engine/learners.py",
        "engine/loop.py",
        "engine/state.py",
        "engine/steps.py",
        "engine/tables.py",
    }
    assert objectives | others <= {mutant.file for mutant in MUTANTS}
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)

"""How much a reader has to visit to follow one step of learning."""

import sys
from functools import partial
from pathlib import Path

import jax
import pytest

import bandit_pft
from bandit_pft import SGD, Method, paper_bandit, tabular
from bandit_pft.engine.loop import begin, ready
from bandit_pft.engine.state import plan
from bandit_pft.engine.steps import Run, learn
from bandit_pft.probes import standard_probe

PACKAGE = Path(bandit_pft.__file__).parent
# The objective and its group are what one reads a step for.
SUBJECT = ("objectives/", "groups.py")


def entered(method: Method) -> list[tuple[str, str, int]]:
    """File, name and line of the package's functions, one for each time that tracing a step enters one."""
    problem = paper_bandit("R5")
    its = plan(problem, method)
    first = partial(begin, problem, method, plan=its, steps=1, probe=standard_probe, every=1)
    known, progress = jax.eval_shape(first, jax.random.key(0))
    calls: list[tuple[str, str, int]] = []

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = str(path.relative_to(PACKAGE))
            if not name.startswith(SUBJECT) and frame.f_code.co_name != "<genexpr>":
                calls.append((name, frame.f_code.co_name, frame.f_code.co_firstlineno))

    def step(known, progress):
        run = Run.of(problem, method, its, known)
        return learn(run, ready(run, progress), 0)

    jax.clear_caches()  # What has been traced already would not be entered.
    sys.setprofile(note)
    try:
        jax.make_jaxpr(step)(known, progress)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("method", "most"), [
    (Method("dpo", policy=tabular, optimizer=SGD), 80),
    (Method("reverse_kl", data="exact", policy=tabular, optimizer=SGD), 80),
])  # fmt: skip
def test_a_step_on_a_table_visits_few_functions(method, most):
    """What is said of the shapes is left out: with it, every call would count twice."""
    calls = entered(method)
    assert 15 < len(set(calls)) <= most, sorted(set(calls))

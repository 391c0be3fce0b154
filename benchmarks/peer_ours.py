"""This package, through its public interface: one `sweep` over learning rates and seeds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bandit_pft import Method, bandit, sweep
from bandit_pft.methods import ADAM, SGD
from bandit_pft.metrics import expected_reward, kl
from bandit_pft.policies import context_network
from benchmarks.tasks import BETA, MANY, TEMPERATURE, Network, Run, Task, arrays

HYPER = {
    "forward_kl": {"beta": BETA},
    "reverse_kl": {"beta": BETA},
    "rwr": {"beta": TEMPERATURE},
    "dpo": {"beta": BETA},
    "ipo": {"beta": BETA},
}


def expected_reward_probe(problem, state):
    return {"expected_reward": (jnp.exp(state.log_probs) * state.rewards).sum(-1).mean()}


def build(task: Task) -> Run:
    return build_many([task])


def build_many(tasks: list[Task]) -> Run:
    """All objectives in one call; the tasks differ in nothing else. Gives the mean over the tasks."""
    task = tasks[0]
    problems = [arrays(t) for t in tasks]
    problem = bandit(problems[0].reward, problems[0].ref_logp, name="benchmark")
    single = task.rates == 1
    methods = [
        Method(
            t.objective,
            hyper=HYPER.get(t.objective, {}),
            learning_rate=float(p.rate[0]),
            data="sampled" if t.sampled else "exact",
            num_responses=t.draws,
            optimizer=ADAM if t.adam else SGD,
        )
        for t, p in zip(tasks, problems, strict=True)
    ]
    # The widest batch for an accelerator; on a CPU tiles that still fit the caches share the cores.
    widest = 128 if jax.default_backend() == "cpu" else task.rows
    tile = min(task.rows, widest) if task.actions <= MANY else None
    grid = None if single else {"learning_rate": problems[0].rate[:: task.seeds].tolist()}

    def run(seed: int) -> np.ndarray:
        data = sweep(
            problem,
            methods,
            seeds=range(seed * task.seeds, (seed + 1) * task.seeds),
            steps=task.steps,
            every=task.steps,
            grid=grid,
            probe=expected_reward_probe,
            tile=tile,
        )
        return data.expected_reward.isel(step=-1).mean("algorithm").values.reshape(-1)

    run(0)
    return run


def build_as_given(task: Task) -> Run:
    """What a newcomer writes: a problem, an objective, seeds and steps, and nothing else is chosen."""
    table = arrays(task)
    problem, method = bandit(table.reward, table.ref_logp), Method(task.objective)

    def run(seed: int) -> np.ndarray:
        data = sweep(problem, method, seeds=range(seed * task.seeds, (seed + 1) * task.seeds), steps=task.steps)
        return data.expected_reward.isel(step=-1).values.reshape(-1)

    run(0)
    return run


def curves_probe(problem, state):
    logp = state.log_probs
    return {
        "expected_reward": expected_reward(logp, state.rewards).mean(),
        "kl": kl(logp, state.ref_log_probs).mean(),
    }


def build_network(task: Network) -> Run:
    table = arrays(task.table)
    rows = lambda x: np.tile(x, (task.contexts, 1))
    problem = bandit(rows(table.reward), rows(table.ref_logp), features=task.features, name="benchmark")
    method = Method(
        task.objective,
        hyper={"beta": task.beta} if task.objective == "ipo" else {},
        learning_rate=task.rate,
        on_policy=float(not task.offline),
        reuse=np.inf if task.offline else task.reuse,
        min_gap=task.min_gap,
        num_responses=task.draws,
        policy=context_network(),
        optimizer=ADAM,
    )

    def run(seed: int) -> np.ndarray:
        seeds = range(seed * task.seeds, (seed + 1) * task.seeds)
        data = sweep(problem, method, seeds=seeds, steps=task.steps, probe=curves_probe)
        return data.expected_reward.isel(step=-1).values.reshape(-1)

    run(0)
    return run

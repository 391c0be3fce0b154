"""NumPy: closed-form gradients, in place, blocks of rows that fit the cache on one thread per core."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.tasks import ADAM, BETA, EPS, TEMPERATURE, Run, Task, arrays


def build(task: Task) -> Run:
    problem = arrays(task)
    threads = min(os.cpu_count() or 1, task.rows)
    block = max(1, min(-(-task.rows // threads), 65536 // task.actions))
    blocks = [slice(i, min(i + block, task.rows)) for i in range(0, task.rows, block)]

    def run(seed: int) -> np.ndarray:
        rngs = np.random.default_rng(seed).spawn(len(blocks))
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate(list(pool.map(lambda rows, rng: _run_block(task, problem, rows, rng), blocks, rngs)))

    return run


def _run_block(task, problem, rows, rng):
    ref, reward, rate = problem.ref_logp, problem.reward, problem.rate[rows, None]
    x = np.broadcast_to(ref, (len(rate), task.actions)).copy()
    p = np.empty_like(x)
    move = _adam if task.adam else _sgd
    step = _sampled(task, problem, rng) if task.sampled else move(_exact(task, problem), x)
    for _ in range(task.steps):
        softmax(x, p)
        step(x, p, rate)
    return softmax(x, p) @ reward


def _sgd(force, x):
    def step(x, p, rate):
        x += force(x, p, rate)

    return step


def _adam(force, x):
    m, v, scratch, count = np.zeros_like(x), np.zeros_like(x), np.empty_like(x), 0
    b1, b2, eps = ADAM["b1"], ADAM["b2"], ADAM["eps"]

    def step(x, p, rate):
        nonlocal count, m, v
        count += 1
        g = force(x, p, np.float32(1))
        m *= b1
        m += np.multiply(g, 1 - b1, out=scratch)
        g *= g
        v *= b2
        v += np.multiply(g, 1 - b2, out=scratch)
        np.sqrt(np.multiply(v, 1 / (1 - b2**count), out=scratch), out=scratch)
        np.divide(m, np.add(scratch, eps, out=scratch), out=scratch)
        x += np.multiply(scratch, rate / np.float32(1 - b1**count), out=scratch)

    return step


def softmax(x, p):
    np.subtract(x, x.max(-1, keepdims=True), out=p)
    np.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    return p


def _exact(task, problem):
    """(logits, their probabilities, rate) -> rate times the force on the logits; may overwrite the probabilities."""
    ref, reward, n = problem.ref_logp, problem.reward, task.draws
    name = task.objective
    if name == "forward_kl":

        def force(x, p, rate):
            np.subtract(problem.target, p, out=p)
            p *= rate
            return p

    elif name in ("rwr", "reinforce", "grpo"):
        weight = np.exp(reward / TEMPERATURE) if name == "rwr" else reward
        moments = np.stack([weight, weight**2], 1)

        def force(x, p, rate):
            mean, square = (p @ moments).T[:, :, None]
            if name == "grpo":
                rate = rate * (n - 1) / n / (np.sqrt(np.maximum(square - mean**2, 0)) + EPS)
            p *= rate
            p *= weight - mean
            return p

    elif name == "reverse_kl":
        offset = reward / BETA + ref

        def force(x, p, rate):
            gain = offset - x
            gain -= np.einsum("ra,ra->r", p, gain)[:, None]
            p *= rate
            p *= gain
            return p

    elif name == "best_of_n":
        order = np.argsort(reward, kind="stable")
        score, tie = np.unique(reward, return_inverse=True)
        ends = np.searchsorted(reward[order], score, side="right") - 1

        def force(x, p, rate):
            upto = np.cumsum(p[:, order], -1, dtype=np.float64)[:, ends]
            mass = np.diff(upto, prepend=0)
            won = np.diff(upto**n, prepend=0)
            return rate * (p * (won / np.maximum(mass, 1e-300))[:, tie] - p).astype(np.float32)

    else:
        wins = reward[:, None] > reward[None, :]

        def force(x, p, rate):
            d = x - ref
            slope = p[:, :, None] * p[:, None, :]
            slope *= wins
            slope /= slope.sum((1, 2), keepdims=True)
            slope *= _slope(name, d[:, :, None] - d[:, None, :])
            return rate * (slope.sum(2) - slope.sum(1))

    return force


def _slope(name, lead):
    if name == "ipo":
        return 2 * (np.float32(0.5 / BETA) - lead)
    lead *= BETA
    np.exp(lead, out=lead)
    lead += 1
    return np.divide(np.float32(BETA), lead, out=lead)


def _sampled(task, problem, rng):
    ref, reward, n = problem.ref_logp, problem.reward, task.draws
    name = task.objective

    def draw(p):
        # One search for all rows: row i's cumulative probabilities lie in (i, i + 1].
        rows = len(p)
        if rows == 1:
            upto = np.cumsum(p[0], dtype=np.float64)
            return np.minimum(np.searchsorted(upto, rng.random((1, n)) * upto[-1], side="right"), task.actions - 1)
        upto = np.cumsum(p, -1, dtype=np.float64)
        upto /= upto[:, -1:]
        row = np.arange(rows)[:, None]
        upto += row
        flat = np.searchsorted(upto.ravel(), (rng.random((rows, n)) + row).ravel(), side="right")
        return np.minimum(flat.reshape(rows, n) - task.actions * row, task.actions - 1)

    def step(x, p, rate):
        action = draw(p)
        r = reward[action]
        row = np.arange(len(x))[:, None]
        if name == "best_of_n":
            force = (r.argmax(-1, keepdims=True) == np.arange(n)).astype(np.float32)
        elif name == "rwr":
            force = np.exp(r / TEMPERATURE) / n
        elif name == "reinforce":
            force = r / n
        elif name == "rloo":
            force = (r - r.mean(-1, keepdims=True)) / (n - 1)
        elif name == "grpo":
            force = (r - r.mean(-1, keepdims=True)) / ((r.std(-1, ddof=1, keepdims=True) + EPS) * n)
        else:
            pairs = (r[:, :, None] > r[:, None, :]).astype(np.float32)
            pairs /= np.maximum(pairs.sum((1, 2), keepdims=True), 1)
            if name == "pref_ft":
                force = pairs.sum(2)
            else:
                d = x[row, action] - ref[action]
                pairs *= _slope(name, d[:, :, None] - d[:, None, :])
                force = pairs.sum(2) - pairs.sum(1)
        if name in ("best_of_n", "rwr", "reinforce", "pref_ft"):
            p *= rate * force.sum(-1, keepdims=True)
            x -= p
        np.add.at(x.reshape(-1), (action + task.actions * row).ravel(), (rate * force).ravel())

    return step

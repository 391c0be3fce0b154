"""JAX the way it is usually written: a loss, `jax.grad`, `jax.random.categorical`, optax, a Python loop over steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.tasks import BETA, EPS, TEMPERATURE, Run, Task, arrays


def build(task: Task) -> Run:
    ref, reward, rate, target = (jnp.asarray(x) for x in arrays(task))
    loss = _sampled_loss if task.sampled else _exact_loss
    make = optax.adam if task.adam else optax.sgd

    def step(logits, opt_state, rate, key):
        optimizer = make(rate)
        grads = jax.grad(loss)(logits, key, ref, reward, target, task)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(logits, updates), opt_state

    @jax.jit
    def step_all(logits, opt_state, key):
        key, sub = jax.random.split(key)
        keys = jax.random.split(sub, task.rows)
        logits, opt_state = jax.vmap(step)(logits, opt_state, rate, keys)
        return logits, opt_state, key

    @jax.jit
    def expected_reward(logits):
        return jax.nn.softmax(logits) @ reward

    def run(seed: int, steps: int = task.steps) -> np.ndarray:
        key = jax.random.key(seed)
        logits = jnp.tile(ref, (task.rows, 1))
        opt_state = jax.vmap(make(1.0).init)(logits)
        for _ in range(steps):
            logits, opt_state, key = step_all(logits, opt_state, key)
        return np.asarray(expected_reward(logits))

    run(0, 2)
    return run


def _exact_loss(logits, key, ref, reward, target, task):
    logp = jax.nn.log_softmax(logits)
    p = jax.lax.stop_gradient(jnp.exp(logp))
    n, name = task.draws, task.objective
    if name == "forward_kl":
        return -(target * logp).sum()
    if name == "reverse_kl":
        return (jnp.exp(logp) * (logp - jnp.log(target))).sum()
    if name == "rwr":
        return -(p * jnp.exp(reward / TEMPERATURE) * logp).sum()
    if name == "reinforce":
        return -(jnp.exp(logp) * reward).sum()
    if name == "grpo":
        mean = (p * reward).sum()
        std = jnp.sqrt((p * (reward - mean) ** 2).sum())
        return -(p * (reward - mean) / (std + EPS) * (n - 1) / n * logp).sum()
    if name == "best_of_n":
        order = jnp.argsort(reward)
        ranked, upto = reward[order], jnp.cumsum(p[order])
        upper = upto[jnp.searchsorted(ranked, reward, side="right") - 1]
        first = jnp.searchsorted(ranked, reward, side="left")
        lower = jnp.where(first > 0, upto[first - 1], 0.0)
        won = p * (upper**n - lower**n) / jnp.maximum(upper - lower, 1e-30)
        return -(won * logp).sum()
    pairs = p[:, None] * p[None, :] * (reward[:, None] > reward[None, :])
    return (pairs * _pair_loss(name, logp - ref)).sum() / pairs.sum()


def _pair_loss(name, gain):
    lead = gain[:, None] - gain[None, :]
    return -jax.nn.log_sigmoid(BETA * lead) if name == "dpo" else (lead - 0.5 / BETA) ** 2


def _sampled_loss(logits, key, ref, reward, target, task):
    n, name = task.draws, task.objective
    action = jax.random.categorical(key, jax.lax.stop_gradient(logits), shape=(n,))
    logp = jax.nn.log_softmax(logits)[action]
    r = reward[action]
    if name == "best_of_n":
        return -logp[jnp.argmax(r)]
    if name == "rwr":
        return -(jnp.exp(r / TEMPERATURE) * logp).mean()
    if name == "reinforce":
        return -(r * logp).mean()
    if name == "rloo":
        return -((r - (r.sum() - r) / (n - 1)) * logp).mean()
    if name == "grpo":
        ratio = jnp.exp(logp - jax.lax.stop_gradient(logp))
        return -((r - r.mean()) / (r.std(ddof=1) + EPS) * ratio).mean()
    pairs = (r[:, None] > r[None, :]).astype(logp.dtype)
    total = jnp.maximum(pairs.sum(), 1)
    if name == "pref_ft":
        return -(pairs * logp[:, None]).sum() / total
    return (pairs * _pair_loss(name, logp - ref[action])).sum() / total

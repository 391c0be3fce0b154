"""PyTorch on CPU: closed-form gradients without autograd, in place; eager, or one compiled step."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.tasks import BETA, EPS, TEMPERATURE, Run, Task, arrays

torch.set_grad_enabled(False)


def build(task: Task) -> Run:
    return _build(task, _in_place)


def build_compiled(task: Task) -> Run:
    """The same step through `torch.compile`."""
    return _build(task, _compiled)


def _in_place(step):
    def moved(x):
        step(x)
        return x

    return moved


def _compiled(step):
    # Out of place: inductor of torch 2.13 fails on softmax with a mutated input (KeyError: 'buf1').
    return torch.compile(lambda x: _in_place(step)(x.clone()), dynamic=False)


def _build(task, transform) -> Run:
    ref, reward, rate, target = (torch.from_numpy(x) for x in arrays(task))
    rate = rate[:, None]
    step = transform(_sampled(task, ref, reward, rate) if task.sampled else _exact(task, ref, reward, rate, target))

    def run(seed: int, steps: int = task.steps) -> np.ndarray:
        torch.manual_seed(seed)
        x = ref.expand(task.rows, -1).clone()
        for _ in range(steps):
            x = step(x)
        return (torch.softmax(x, -1) @ reward).numpy()

    run(0, 3)
    return run


def _exact(task, ref, reward, rate, target):
    name, n = task.objective, task.draws
    weight = torch.exp(reward / TEMPERATURE) if name == "rwr" else reward
    offset = reward / BETA + ref
    if name == "forward_kl":

        def step(x):
            x.add_(rate * (target - torch.softmax(x, -1)))

    elif name in ("rwr", "reinforce"):

        def step(x):
            p = torch.softmax(x, -1)
            mean = (p @ weight)[:, None]
            x.add_(p.mul_(rate).mul_(weight - mean))

    elif name == "grpo":

        def step(x):
            p = torch.softmax(x, -1)
            mean, square = (p @ reward)[:, None], (p @ reward**2)[:, None]
            scale = rate * (n - 1) / n / ((square - mean**2).clamp(min=0).sqrt() + EPS)
            x.add_(p.mul_(scale).mul_(reward - mean))

    elif name == "reverse_kl":

        def step(x):
            p = torch.softmax(x, -1)
            gain = offset - x
            gain -= (p * gain).sum(-1, keepdim=True)
            x.add_(p.mul_(rate).mul_(gain))

    elif name == "best_of_n":
        order = torch.argsort(reward, stable=True)
        score, tie = torch.unique(reward, return_inverse=True)
        ends = torch.searchsorted(reward[order], score, right=True) - 1
        zero = torch.zeros(1, 1, dtype=torch.float64)

        def step(x):
            p = torch.softmax(x, -1)
            upto = torch.cumsum(p[:, order].double(), -1)[:, ends]
            start = zero.expand(len(x), 1)
            mass = torch.diff(upto, dim=-1, prepend=start)
            won = torch.diff(upto**n, dim=-1, prepend=start) / mass.clamp(min=1e-300)
            x.add_(rate * p * (won[:, tie] - 1).float())

    else:
        wins = (reward[:, None] > reward[None, :]).float()

        def step(x):
            p = torch.softmax(x, -1)
            d = x - ref
            pairs = p[:, :, None] * p[:, None, :] * wins
            pull = pairs * _slope(name, d[:, :, None] - d[:, None, :])
            x.add_(rate * (pull.sum(2) - pull.sum(1)) / pairs.sum((1, 2))[:, None])

    return step


def _slope(name, lead):
    return BETA * torch.sigmoid(-BETA * lead) if name == "dpo" else 2 * (0.5 / BETA - lead)


def _sampled(task, ref, reward, rate):
    name, n = task.objective, task.draws

    def draw(p):
        if task.actions < 1000:
            return torch.multinomial(p, n, replacement=True)
        # Large tables: a float64 cumulative sum reaches every action, and the search runs on all cores.
        upto = torch.cumsum(p, -1, dtype=torch.float64)
        u = torch.rand((len(p), n), dtype=torch.float64) * upto[:, -1:]
        return torch.searchsorted(upto, u, right=True).clamp_(max=task.actions - 1)

    def step(x):
        p = torch.softmax(x, -1)
        action = draw(p)
        r = reward[action]
        if name == "best_of_n":
            best = action.gather(1, r.argmax(-1, keepdim=True))
            x.sub_(p.mul_(rate))
            x.scatter_add_(1, best, rate)
            return
        if name == "rwr":
            force = torch.exp(r / TEMPERATURE) / n
        elif name == "reinforce":
            force = r / n
        elif name == "rloo":
            force = (r - r.mean(-1, keepdim=True)) / (n - 1)
        elif name == "grpo":
            force = (r - r.mean(-1, keepdim=True)) / ((r.std(-1, keepdim=True) + EPS) * n)
        else:
            pairs = (r[:, :, None] > r[:, None, :]).float()
            total = pairs.sum((1, 2))[:, None].clamp(min=1)
            if name == "pref_ft":
                force = pairs.sum(2) / total
            else:
                d = x.gather(1, action) - ref[action]
                pairs = pairs * _slope(name, d[:, :, None] - d[:, None, :])
                force = (pairs.sum(2) - pairs.sum(1)) / total
        if name in ("rwr", "reinforce", "pref_ft"):
            x.sub_(p.mul_(rate * force.sum(-1, keepdim=True)))
        x.scatter_add_(1, action, rate * force)

    return step

"""PyTorch: closed-form gradients without autograd, in place; eager, or one compiled step; networks with autograd."""

from __future__ import annotations

import itertools
import os

import numpy as np
import torch

from benchmarks.tasks import ADAM, BETA, EPS, TEMPERATURE, Network, Run, Task, arrays

DEVICE = os.environ.get("BENCHMARK_TORCH_DEVICE", "cpu")


def device() -> str:
    """Its name; an error where this torch cannot reach it."""
    torch.ones(1, device=DEVICE)
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


def build(task: Task) -> Run:
    return _build(task, lambda step: step, _fused_adam)


def build_compiled(task: Task) -> Run:
    """The same step through `torch.compile`."""
    # All tasks compile the same function; after eight programs for one, torch would go on without compiling.
    torch.compiler.reset()
    # Out of place: inductor of torch 2.13 fails on softmax with a mutated input (KeyError: 'buf1').
    copied = lambda step: lambda x, *state: step(x.clone(), *state)
    return _build(task, lambda step: torch.compile(copied(step), dynamic=False), _plain_adam)


@torch.no_grad()
def _build(task, transform, adam) -> Run:
    ref, reward, rate, target = (torch.from_numpy(x).to(DEVICE) for x in arrays(task))
    rate = rate[:, None]
    if task.sampled:
        sampled = _sampled(task, ref, reward, rate)
        step = transform(lambda x: (sampled(x),))
    elif task.adam:
        step = adam(task, _exact(task, ref, reward, torch.ones_like(rate), target), rate, transform)
    else:
        force = _exact(task, ref, reward, rate, target)
        step = transform(lambda x: (x.add_(force(x)),))

    @torch.no_grad()
    def run(seed: int, steps: int = task.steps) -> np.ndarray:
        torch.manual_seed(seed)
        state = (ref.expand(task.rows, -1).clone(),)
        for _ in range(steps):
            state = step(*state)
        return (torch.softmax(state[0], -1) @ reward).cpu().numpy()

    run(0, 3)
    return run


def _fused_adam(task, force, rate, transform):
    """torch's own fused optimiser, a parameter for each learning rate."""

    def step(x, optimizer=None):
        if optimizer is None:
            groups = [{"params": [part], "lr": float(r[0, 0])} for part, r in zip(parts(x), parts(rate), strict=True)]
            optimizer = torch.optim.Adam(groups, betas=(ADAM["b1"], ADAM["b2"]), eps=ADAM["eps"], fused=True)
        # Its parameters are views of x; it goes downhill.
        for group, slope in zip(optimizer.param_groups, parts(force(x).neg_()), strict=True):
            group["params"][0].grad = slope
        optimizer.step()
        return x, optimizer

    parts = lambda x: x.view(task.rates, task.seeds, -1)
    return step


def _plain_adam(task, force, rate, transform):
    b1, b2, eps = ADAM["b1"], ADAM["b2"], ADAM["eps"]

    def move(x, m, v, decay):
        g = force(x)
        m, v, decay = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, decay * decay.new_tensor([b1, b2])
        return x + rate / (1 - decay[0]) * m / ((v / (1 - decay[1])).sqrt() + eps), m, v, decay

    moved = transform(move)

    def step(x, *state):
        return moved(x, *(state or (torch.zeros_like(x), torch.zeros_like(x), torch.ones(2, device=DEVICE))))

    return step


def _exact(task, ref, reward, rate, target):
    """Logits -> rate times the force on them."""
    name, n = task.objective, task.draws
    weight = torch.exp(reward / TEMPERATURE) if name == "rwr" else reward
    offset = reward / BETA + ref
    if name == "forward_kl":

        def force(x):
            return rate * (target - torch.softmax(x, -1))

    elif name in ("rwr", "reinforce"):

        def force(x):
            p = torch.softmax(x, -1)
            mean = (p @ weight)[:, None]
            return p.mul_(rate).mul_(weight - mean)

    elif name == "grpo":

        def force(x):
            p = torch.softmax(x, -1)
            mean, square = (p @ reward)[:, None], (p @ reward**2)[:, None]
            scale = rate * (n - 1) / n / ((square - mean**2).clamp(min=0).sqrt() + EPS)
            return p.mul_(scale).mul_(reward - mean)

    elif name == "reverse_kl":

        def force(x):
            p = torch.softmax(x, -1)
            gain = offset - x
            gain -= (p * gain).sum(-1, keepdim=True)
            return p.mul_(rate).mul_(gain)

    elif name == "best_of_n":
        order = torch.argsort(reward, stable=True)
        score, tie = torch.unique(reward, return_inverse=True)
        ends = torch.searchsorted(reward[order], score, right=True) - 1
        zero = torch.zeros(1, 1, dtype=torch.float64, device=DEVICE)

        def force(x):
            p = torch.softmax(x, -1)
            upto = torch.cumsum(p[:, order].double(), -1)[:, ends]
            start = zero.expand(len(x), 1)
            mass = torch.diff(upto, dim=-1, prepend=start)
            won = torch.diff(upto**n, dim=-1, prepend=start) / mass.clamp(min=1e-300)
            return rate * p * (won[:, tie] - 1).float()

    else:
        wins = (reward[:, None] > reward[None, :]).float()

        def force(x):
            p = torch.softmax(x, -1)
            d = x - ref
            pairs = p[:, :, None] * p[:, None, :] * wins
            pull = pairs * _slope(name, d[:, :, None] - d[:, None, :])
            return rate * (pull.sum(2) - pull.sum(1)) / pairs.sum((1, 2))[:, None]

    return force


def _slope(name, lead):
    return BETA * torch.sigmoid(-BETA * lead) if name == "dpo" else 2 * (0.5 / BETA - lead)


def _sampled(task, ref, reward, rate):
    name, n = task.objective, task.draws

    def draw(p):
        if task.actions < 1000:
            return torch.multinomial(p, n, replacement=True)
        # Large tables: a float64 cumulative sum reaches every action, and the search runs on all cores.
        upto = torch.cumsum(p, -1, dtype=torch.float64)
        u = torch.rand((len(p), n), dtype=torch.float64, device=DEVICE) * upto[:, -1:]
        return torch.searchsorted(upto, u, right=True).clamp_(max=task.actions - 1)

    def step(x):
        p = torch.softmax(x, -1)
        action = draw(p)
        r = reward[action]
        if name == "best_of_n":
            best = action.gather(1, r.argmax(-1, keepdim=True))
            x.sub_(p.mul_(rate))
            return x.scatter_add_(1, best, rate)
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
        return x.scatter_add_(1, action, rate * force)

    return step


def build_network(task: Network) -> Run:
    """One run after the other, as the authors' code has it: autograd, an optimiser object, metrics after each step."""

    def run(seed: int, steps: int = task.steps) -> np.ndarray:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # matrices this small are not worth a second one
        try:
            return np.array([_train(task, seed * task.seeds + i, steps) for i in range(task.seeds)], np.float32)
        finally:
            torch.set_num_threads(threads)

    run(0, 3)
    return run


def _train(task: Network, seed: int, steps: int) -> float:
    torch.manual_seed(seed)
    table = arrays(task.table)
    ref_logp, reward = torch.from_numpy(table.ref_logp).to(DEVICE), torch.from_numpy(table.reward).to(DEVICE)
    features = torch.from_numpy(task.features).to(DEVICE)
    layer = torch.nn.Linear
    widths = (features.shape[1], 50, 256, 256, task.actions)
    first, *others = (layer(*pair) for pair in itertools.pairwise(widths))
    net = torch.nn.Sequential(first, torch.nn.LayerNorm(50), torch.nn.ReLU(), others[0], torch.nn.ReLU(), others[1],
                              torch.nn.ReLU(), others[2])  # fmt: skip
    for linear in (first, *others):
        torch.nn.init.xavier_uniform_(linear.weight, gain=0.01)
        torch.nn.init.zeros_(linear.bias)
    net.to(DEVICE)

    def divergence(logp):
        return (logp.exp() * (logp - ref_logp)).sum(-1).mean()

    def learn(loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def metrics():
        with torch.no_grad():
            logp = torch.log_softmax(net(features), -1)
            curve.append((float((logp.exp() @ reward).mean()), float(divergence(logp))))

    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(100):
        learn(divergence(torch.log_softmax(net(features), -1)), optimizer)
    optimizer = torch.optim.Adam(net.parameters(), lr=task.rate)
    curve: list[tuple[float, float]] = []
    metrics()
    for step in range(steps):
        if step % (steps if task.offline else task.reuse) == 0:
            with torch.no_grad():
                source = ref_logp.expand(task.contexts, -1) if task.offline else torch.log_softmax(net(features), -1)
                action = torch.multinomial(source.exp(), task.draws, replacement=True)
                r = reward[action]
                gap = r[:, :, None] - r[:, None, :]
                pairs = ((gap > 0) & (gap >= task.min_gap)).float()
        logp = torch.log_softmax(net(features), -1).gather(1, action)
        if task.objective == "best_of_n":
            loss = -logp.gather(1, r.argmax(-1, keepdim=True)).mean()
        else:
            gain = logp - ref_logp[action]
            lead = gain[:, :, None] - gain[:, None, :]
            loss = (pairs * (lead - 0.5 / task.beta) ** 2).sum() / pairs.sum().clamp(min=1)
        learn(loss, optimizer)
        metrics()
    return curve[-1][0]

"""Numba: rows in parallel over the cores, each row's whole run in cache, an exponential that LLVM can vectorise."""

from __future__ import annotations

import math
import os

import numba
import numpy as np

from benchmarks.tasks import BETA, EPS, TEMPERATURE, Run, Task, arrays

f32 = np.float32
_options = {"fastmath": True, "error_model": "numpy", "cache": bool(os.environ.get("NUMBA_CACHE_DIR"))}
_beta, _temperature, _eps, _margin = f32(BETA), f32(TEMPERATURE), f32(EPS), f32(0.5 / BETA)
BLOCK = 256


@numba.njit(inline="always", **_options)
def exp(x):
    # Cephes expf; np.exp on float32 stays scalar without Intel's vector library.
    x = min(max(x, f32(-87)), f32(88))
    k = math.floor(x * f32(1.44269504) + f32(0.5))
    y = (x - k * f32(0.693359375)) + k * f32(2.12194440e-4)
    z = f32(1.9875691500e-4)
    z = z * y + f32(1.3981999507e-3)
    z = z * y + f32(8.3334519073e-3)
    z = z * y + f32(4.1665795894e-2)
    z = z * y + f32(1.6666665459e-1)
    z = z * y + f32(5.0000001201e-1)
    z = z * y * y + y + f32(1)
    return z * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(**_options)
def softmax(x, shift, p):
    z = f32(0)
    for a in range(x.size):
        e = exp(x[a] - shift)
        p[a] = e
        z += e
    return z


@numba.njit(**_options)
def expected(x, reward):
    top = f32(-np.inf)
    for a in range(x.size):
        top = max(top, x[a])
    z, s = 0.0, 0.0
    for a in range(x.size):
        e = exp(x[a] - top)
        z += e
        s += e * reward[a]
    return s / z


@numba.njit(inline="always", **_options)
def adam(g, m, v, a, size, eps):
    """Change of a logit; `size` and `eps` hold the corrections of the step."""
    m[a] = f32(0.9) * m[a] + f32(0.1) * g
    v[a] = f32(0.999) * v[a] + f32(0.001) * g * g
    return size * m[a] / (math.sqrt(v[a]) + eps)


@numba.njit(**_options)
def corrections(rate, step):
    root = math.sqrt(1 - 0.999**step)
    return f32(rate * root / (1 - 0.9**step)), f32(1e-8 * root)


# --- every action enumerated -------------------------------------------------------------------------------------
@numba.njit(**_options)
def exact_linear(x, p, w, target, offset, rate, steps, name, n, use_adam):
    """Objectives whose force needs one weighted mean. The shift is the previous step's log-sum-exp."""
    shift = f32(0)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for step in range(steps):
        z = softmax(x, shift, p)
        scale = rate / z
        if name == 0:
            for a in range(x.size):
                x[a] += rate * target[a] - scale * p[a]
        elif name == 1:
            mean = f32(0)
            for a in range(x.size):
                mean += p[a] * (offset[a] - x[a])
            mean /= z
            for a in range(x.size):
                x[a] += scale * p[a] * (offset[a] - x[a] - mean)
        else:
            mean, square = f32(0), f32(0)
            for a in range(x.size):
                mean += p[a] * w[a]
                square += p[a] * w[a] * w[a]
            mean /= z
            if use_adam:
                size, eps = corrections(rate, step + 1)
                inverse = f32(1) / z
                for a in range(x.size):
                    x[a] += adam(inverse * p[a] * (w[a] - mean), m, v, a, size, eps)
                shift += math.log(z)
                continue
            if name == 5:
                scale *= f32((n - 1) / n) / (math.sqrt(max(square / z - mean * mean, f32(0))) + _eps)
            for a in range(x.size):
                x[a] += scale * p[a] * (w[a] - mean)
        shift += math.log(z)


@numba.njit(**_options)
def exact_ranked(x, p, ref, reward, order, rate, steps, name, n):
    """Best of n, and pairs."""
    k = x.size
    w, d, force = np.empty(k, np.float32), np.empty(k, np.float32), np.empty(k, np.float32)
    first = np.zeros(k, np.int64)
    for i in range(1, k):
        first[i] = first[i - 1] if reward[order[i]] == reward[order[i - 1]] else i
    shift = f32(0)
    for _ in range(steps):
        z = softmax(x, shift, p)
        shift += math.log(z)
        if name == 6:
            upto, before, i = 0.0, 0.0, 0
            while i < k:
                j, mass = i, 0.0
                while j < k and first[j] == i:
                    mass += p[order[j]] / z
                    j += 1
                upto += mass
                won = (upto**n - before) / max(mass, 1e-300)
                before = upto**n
                while i < j:
                    a = order[i]
                    x[a] += rate * p[a] / z * f32(won - 1)
                    i += 1
            continue
        for i in range(k):
            a = order[i]
            w[i], d[i], force[i] = p[a] / z, x[a] - ref[a], f32(0)
        total = f32(0)
        for i in range(k):
            pull, mass, wi, di = f32(0), f32(0), w[i], d[i]
            for j in range(first[i]):
                c = wi * w[j]
                mass += c
                lead = di - d[j]
                c *= _beta / (f32(1) + exp(_beta * lead)) if name == 8 else f32(2) * (_margin - lead)
                pull += c
                force[j] -= c
            force[i] += pull
            total += mass
        for i in range(k):
            x[order[i]] += rate * force[i] / total


@numba.njit(parallel=True, **_options)
def exact_rows(ref, reward, w, target, offset, order, rate, steps, name, n, use_adam, out):
    for row in numba.prange(rate.size):
        x, p = ref.copy(), np.empty_like(ref)
        if name == 6 or name >= 8:
            exact_ranked(x, p, ref, reward, order, rate[row], steps, name, n)
        else:
            exact_linear(x, p, w, target, offset, rate[row], steps, name, n, use_adam)
        out[row] = expected(x, reward)


@numba.njit(**_options)
def advance(x, p, g, shift, scale, mean, pull, name, sums):
    """Update and exponentiate again in one pass; a branch inside the loops would keep LLVM from vectorising them."""
    z, s, q = f32(0), f32(0), f32(0)
    if name == 0:
        for a in range(x.size):
            y = x[a] + pull * g[a] - scale * p[a]
            e = exp(y - shift)
            x[a], p[a] = y, e
            z += e
    elif name == 1:
        for a in range(x.size):
            y = x[a] + scale * p[a] * (g[a] - x[a] - mean)
            e = exp(y - shift)
            x[a], p[a] = y, e
            z += e
            s += e * (g[a] - y)
    else:
        for a in range(x.size):
            y = x[a] + scale * p[a] * (g[a] - mean)
            e = exp(y - shift)
            x[a], p[a] = y, e
            z += e
            s += e * g[a]
            q += e * g[a] * g[a]
    sums[0], sums[1], sums[2] = z, s, q


@numba.njit(**_options)
def advance_adam(x, p, g, m, v, shift, scale, mean, size, eps, sums):
    z, s = f32(0), f32(0)
    for a in range(x.size):
        y = x[a] + adam(scale * p[a] * (g[a] - mean), m, v, a, size, eps)
        e = exp(y - shift)
        x[a], p[a] = y, e
        z += e
        s += e * g[a]
    sums[0], sums[1] = z, s


@numba.njit(parallel=True, **_options)
def exact_one_row(ref, reward, g, rate, steps, name, n, use_adam, out, chunks):
    """The cores share one row, and meet once a step."""
    x, p, m, v = ref.copy(), np.zeros_like(ref), np.zeros_like(ref), np.zeros_like(ref)
    shift, scale, mean = f32(0), f32(0), f32(0)
    sums = np.zeros((chunks, 16), np.float32)
    size = (ref.size + chunks - 1) // chunks
    for step in range(steps + 1):
        change, eps = corrections(rate, step) if step else (f32(0), f32(1e-8))
        for c in numba.prange(chunks):
            part = slice(c * size, min((c + 1) * size, ref.size))
            pull = rate if step else f32(0)
            if use_adam:
                here = m[part], v[part], shift, scale, mean, change, eps, sums[c]
                advance_adam(x[part], p[part], g[part], *here)
            else:
                advance(x[part], p[part], g[part], shift, scale, mean, pull, name, sums[c])
        z, s, q = sums[:, 0].sum(), sums[:, 1].sum(), sums[:, 2].sum()
        mean = s / z
        scale = (f32(1) if use_adam else rate) / z
        if name == 5:
            scale *= f32((n - 1) / n) / (math.sqrt(max(q / z - mean * mean, f32(0))) + _eps)
        shift += math.log(z)
    out[0] = expected(x, reward)


# --- drawn actions -----------------------------------------------------------------------------------------------
@numba.njit(inline="always", **_options)
def uniform(state):
    state[0] ^= state[0] << np.uint64(13)
    state[0] ^= state[0] >> np.uint64(7)
    state[0] ^= state[0] << np.uint64(17)
    return (state[0] >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(**_options)
def draw(p, upto, action, state):
    """Inverse of the cumulative sum; over blocks first where there are many actions."""
    k = p.size
    blocks = (k + BLOCK - 1) // BLOCK
    if blocks == 1:
        s = f32(0)
        for a in range(k):
            s += p[a]
            upto[a] = s
        for i in range(action.size):
            u = f32(uniform(state)) * s
            below = np.int32(0)
            for a in range(k):
                below += np.int32(upto[a] <= u)
            action[i] = min(below, k - 1)
        return
    total = 0.0
    for b in range(blocks):
        s = f32(0)
        for a in range(b * BLOCK, min((b + 1) * BLOCK, k)):
            s += p[a]
        total += s
        upto[b] = total
    for i in range(action.size):
        u = uniform(state) * total
        lo, hi = 0, blocks - 1
        while lo < hi:
            mid = (lo + hi) // 2
            if upto[mid] <= u:
                lo = mid + 1
            else:
                hi = mid
        u = f32(uniform(state) * (upto[lo] - (upto[lo - 1] if lo else 0.0)))
        a, last = lo * BLOCK, min((lo + 1) * BLOCK, k) - 1
        while a < last and u >= p[a]:
            u -= p[a]
            a += 1
        action[i] = a


@numba.njit(**_options)
def sampled_force(r, d, force, name):
    """Fills `force` and returns its sum."""
    n = r.size
    one = f32(1) / f32(n)
    if name == 2 or name == 3:
        total = f32(0)
        for i in range(n):
            force[i] = (exp(r[i] / _temperature) if name == 2 else r[i]) * one
            total += force[i]
        return total
    if name == 6:
        best = 0
        for i in range(n):
            force[i] = f32(0)
            best = i if r[i] > r[best] else best
        force[best] = f32(1)
        return f32(1)
    if name == 4 or name == 5:
        mean, square = f32(0), f32(0)
        for i in range(n):
            mean += r[i] * one
        for i in range(n):
            square += (r[i] - mean) * (r[i] - mean)
        scale = f32(1) / f32(n - 1)
        if name == 5:
            scale = one / (math.sqrt(square / f32(n - 1)) + _eps)
        for i in range(n):
            force[i] = (r[i] - mean) * scale
        return f32(0)
    if name == 8:  # sigmoid(-beta (d_i - d_j)) = e_j / (e_i + e_j)
        for i in range(n):
            d[i] = exp(_beta * d[i])
    pairs = f32(0)
    for i in range(n):
        ri, di, win, pull = r[i], d[i], f32(0), f32(0)
        if name == 7:
            for j in range(n):
                win += f32(ri > r[j])
            pull = win
        elif name == 8:
            for j in range(n):
                win += f32(ri > r[j])
                pull += ((d[j] if ri > r[j] else f32(0)) - (di if r[j] > ri else f32(0))) / (di + d[j])
            pull *= _beta
        else:
            for j in range(n):
                lead = di - d[j]
                win += f32(ri > r[j])
                pull += (_margin - lead if ri > r[j] else f32(0)) - (_margin + lead if r[j] > ri else f32(0))
            pull *= f32(2)
        force[i] = pull
        pairs += win
    scale = f32(1) / pairs if pairs > 0 else f32(0)
    for i in range(n):
        force[i] *= scale
    return f32(1) if name == 7 and pairs > 0 else f32(0)


@numba.njit(parallel=True, **_options)
def sampled_rows(ref, reward, rate, steps, name, n, seed, out):
    for row in numba.prange(rate.size):
        x, p = ref.copy(), np.empty_like(ref)
        upto = np.empty(max(min(ref.size, BLOCK), (ref.size + BLOCK - 1) // BLOCK))
        near = np.empty(BLOCK, np.float32)
        action = np.empty(n, np.int64)
        r, d, force = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
        state = np.empty(1, np.uint64)
        state[0] = np.uint64(seed * 1000003 + row + 1) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(8):
            uniform(state)
        shift = f32(0)
        z = softmax(x, shift, p)
        for _ in range(steps):
            if ref.size <= BLOCK:
                draw(p, near, action, state)
            else:
                draw(p, upto, action, state)
            for i in range(n):
                r[i] = reward[action[i]]
                d[i] = x[action[i]] - ref[action[i]]
            total = sampled_force(r, d, force, name)
            if total != 0:
                scale = rate[row] * total / z
                for a in range(x.size):
                    x[a] -= scale * p[a]
            for i in range(n):
                x[action[i]] += rate[row] * force[i]
            shift += math.log(z)
            z = softmax(x, shift, p)
        out[row] = expected(x, reward)


NAMES = ("forward_kl", "reverse_kl", "rwr", "reinforce", "rloo", "grpo", "best_of_n", "pref_ft", "dpo", "ipo")


def build(task: Task) -> Run:
    if task.adam and task.objective not in ("rwr", "reinforce"):
        raise NotImplementedError("Adam is written for objectives with one weighted mean")
    ref, reward, rate, target = arrays(task)
    name = NAMES.index(task.objective)
    w = np.exp(reward / f32(TEMPERATURE)) if task.objective == "rwr" else reward
    offset = reward / f32(BETA) + ref
    order = np.argsort(reward, kind="stable")

    def run(seed: int, steps: int = task.steps) -> np.ndarray:
        out = np.empty(task.rows, np.float32)
        if task.sampled:
            sampled_rows(ref, reward, rate, steps, name, task.draws, seed, out)
        elif task.rows > 1:
            exact_rows(ref, reward, w, target, offset, order, rate, steps, name, task.draws, task.adam, out)
        else:
            chunks = numba.get_num_threads()
            g = {"forward_kl": target, "reverse_kl": offset}.get(task.objective, w)
            exact_one_row(ref, reward, g, rate[0], steps, name, task.draws, task.adam, out, chunks)
        return out

    run(0, 1)
    return run

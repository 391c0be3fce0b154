"""Weighted maximum likelihood: responses are pulled up, none is pushed down.

Each is the forward KL from pi to some re-weighting of the policy that the responses came from, so it covers modes.
"""

from __future__ import annotations

import jax.numpy as jnp

from bandit_pft.groups import Group, safe_divide
from bandit_pft.objectives.core import Hyper, Logp, Loss, objective, safe_exp
from bandit_pft.objectives.numerics import z_score


@objective(family="supervised", paper="ouyang2022training")
def sft(logp: Logp, group: Group) -> Loss:
    """Imitate every response.

    L = -mean log pi(y)   [nats]

    log pi of the whole response; language-model libraries take the mean over all tokens instead. Exact on an
    ExactGroup.
    """
    return -group.mean(group.total(logp))


@objective(family="supervised", paper="tajwar2024preference")
def pref_ft(logp: Logp, group: Group) -> Loss:
    """Imitate the winner of each pair (Pref-FT, Binary FeedMe).

    L = -mean over pairs log pi(y_w)

    Exact on an ExactGroup up to the number of compared pairs, which is random in a sample with ties.
    """
    return -group.pair_mean(jnp.broadcast_to(group.total(logp)[:, None], (logp.shape[0],) * 2))


@objective(family="supervised", paper="nakano2021webgpt")
def best_of_n(logp: Logp, group: Group) -> Loss:
    """Imitate the group's best response.

    L = -mean over groups log pi(y*),   y* = argmax score

    Ties share the pull. Exact on an ExactGroup: the target is the distribution of the best of `draws`.
    """
    return -group.share * (group.best() * group.total(logp)).sum()


@objective(family="supervised", paper="peters2007reinforcement")
def rwr(logp: Logp, group: Group, *, beta: Hyper = 0.5) -> Loss:
    """Imitate each response in proportion to its exponentiated reward, comparable across contexts.

    L = -mean exp(r / beta) log pi(y)

    The raw weights are not normalised: the total force is E[exp(r / beta)], constant in r above 40 * beta. The target
    is pi_old * exp(r / beta). Exact on an ExactGroup.
    """
    return -group.mean(safe_exp(group.reward / beta) * group.total(logp))


@objective(family="supervised", paper="peters2007reinforcement")
def rwr_normalized(logp: Logp, group: Group, *, beta: Hyper = 0.5) -> Loss:
    """Imitate each response in proportion to its exponentiated reward among its group.

    L = -mean over groups sum_i w_i log pi(y_i),   w = exp(r / beta) / sum exp(r / beta)

    Every group pulls with force 1, so a context without good responses counts as much as any. An ExactGroup gives the
    limit of large groups.
    """
    largest = jnp.where(group.real(), group.reward, -jnp.inf).max()
    weight = group.weight * jnp.exp(jnp.minimum(group.reward - largest, 0) / beta)
    return -group.share * safe_divide((weight * group.total(logp)).sum(), weight.sum())


@objective(family="supervised", paper="peng2019advantage")
def awr(logp: Logp, group: Group, *, beta: Hyper = 1.0) -> Loss:
    """Imitate each response in proportion to its exponentiated group z-score.

    L = -mean exp(z / beta) log pi(y),   z = (r - mean r) / (std r + 1e-4)

    A z-score forgets how good a context's best response is, where `rwr` compares across contexts. The paper's
    advantage is r - V(x) unscaled; the standard deviation has n - 1 in the denominator. An ExactGroup gives the limit
    of large groups.
    """
    return -group.mean(safe_exp(z_score(group) / beta) * group.total(logp))


@objective(family="supervised", paper="gulcehre2023reinforced")
def filtered(logp: Logp, group: Group) -> Loss:
    """Imitate the responses that score above the threshold (ReST, STaR, rejection sampling).

    L = -mean over {score > threshold} log pi(y)

    Exact on an ExactGroup up to the number of kept responses, which is random in a sample.
    """
    return -group.kept_mean(group.total(logp))

"""Good or bad, without pairs: each response is compared with the threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bandit_pft.groups import Group
from bandit_pft.objectives.core import Hyper, Logp, Loss, objective
from bandit_pft.objectives.numerics import log_sigmoid


@objective(family="unpaired", paper="ethayarajh2024kto")
def kto(
    logp: Logp,
    group: Group,
    *,
    beta: Hyper = 0.1,
    desirable_weight: Hyper = 1.0,
    undesirable_weight: Hyper = 1.0,
) -> Loss:
    """Pull desirable responses, push the others, most where the gain is near the reference point.

    L = mean w (1 - sigmoid(+-beta (gain - kl))),   + if score > threshold,   gain = log pi - log pi_ref

    `kl` is the batch's KL from the reference, without gradient, prepared once. TRL estimates it from mismatched pairs
    of prompt and response, here it comes from the responses themselves. Exact on an ExactGroup, given kl and threshold.
    """
    utility = beta * (group.total(logp - group.ref_logp) - group.kl)
    good = group.desirable() > 0
    weight = jnp.where(good, desirable_weight, undesirable_weight)
    return group.mean(weight * jax.nn.sigmoid(jnp.where(good, -utility, utility)))


@objective(family="unpaired", paper="jung2024binary")
def bco(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Classify desirable against undesirable by the gain.

    L = -mean log sigmoid(+-(beta gain - delta)),   + if score > threshold,   delta = beta * mean gain

    The shift `delta` is the batch's mean implicit reward, without gradient; the paper averages the means of both
    classes over time, and leaves out its density ratio here. Exact on an ExactGroup, given the mean gain and threshold.
    """
    implicit = beta * (group.total(logp - group.ref_logp) - group.mean_gain)
    return -group.mean(log_sigmoid(jnp.where(group.desirable() > 0, implicit, -implicit)))

"""Divergences between the whole policy and a target, and sampled penalties on the distance from the reference.

The divergences need every response of a context, an `ExactGroup`: they read its table, not its weights, so padding is a
response with an empty mask. The target is the regularised optimum q = pi_ref exp(r / beta) / Z, or the best of n.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bandit_pft.errors import ConfigError
from bandit_pft.groups import ExactGroup, Group, best_of_n_weights
from bandit_pft.kernels import logsumexp, total
from bandit_pft.objectives.core import KL_ESTIMATES, Hyper, Logp, Loss, objective, safe_exp

Table = Float[Array, " N"]


def _hide(group: Group, x: Table, value: float) -> Table:
    return jnp.where(group.mask.any(-1), x, value)


def _reference(group: Group) -> Table:
    """log pi_ref of every response; -1e30 where there is none."""
    if not isinstance(group, ExactGroup):
        raise ConfigError(
            f"a {type(group).__name__} holds sampled responses; divergences need every response of a context: "
            "use an ExactGroup, or with_kl for a sampled penalty"
        )
    return _hide(group, group.total(group.ref_logp), -1e30)


def _optimum(group: Group, beta: Hyper) -> Table:
    """log q, 0 on padding. Shifted before it is scaled: r / beta may be huge."""
    reference = _reference(group)
    reward = group.reward - _hide(group, group.reward, -jnp.inf).max()
    tilted = reference + _hide(group, reward, 0) / beta
    return _hide(group, tilted - logsumexp(tilted), 0)


def _best(group: Group) -> tuple[Table, Table]:
    """Distribution of the best of n draws from the reference, and its logarithm, at least -87 (float32's range)."""
    target = best_of_n_weights(jax.nn.softmax(_reference(group)), group.score, group.draws)
    return target, jnp.log(jnp.maximum(target, jnp.finfo(target.dtype).tiny))


def _kl(group: Group, p: Table, log_p: Table, log_q: Table) -> Loss:
    return group.share * total(_hide(group, p * (log_p - log_q), 0))


@objective(family="distribution", paper="tajwar2024preference")
def forward_kl(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Cover the optimum: KL(q, pi).

    L = sum q (log q - log pi),   q = pi_ref exp(r / beta) / Z   [nats]
    """
    log_q = _optimum(group, beta)
    return _kl(group, jnp.exp(log_q), log_q, group.total(logp))


@objective(family="distribution", paper="tajwar2024preference")
def reverse_kl(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Seek the optimum's modes: KL(pi, q).

    L = sum pi (log pi - log q),   q = pi_ref exp(r / beta) / Z   [nats]

    beta times this is log Z minus the KL-regularised reward, so its gradient is that of exact RLHF over beta.
    """
    log_pi = group.total(logp)
    return _kl(group, safe_exp(log_pi), log_pi, _optimum(group, beta))


@objective(family="distribution", paper="go2023aligning")
def jensen_shannon(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Jensen-Shannon divergence from the optimum, at most log 2.

    L = KL(pi, m) / 2 + KL(q, m) / 2,   m = (pi + q) / 2
    """
    log_pi, log_q = group.total(logp), _optimum(group, beta)
    log_m = jnp.logaddexp(log_pi, log_q) - jnp.log(2.0)
    return (_kl(group, safe_exp(log_pi), log_pi, log_m) + _kl(group, jnp.exp(log_q), log_q, log_m)) / 2


@objective(family="distribution", paper="go2023aligning")
def alpha_divergence(logp: Logp, group: Group, *, beta: Hyper = 0.1, alpha: Hyper = 0.5) -> Loss:
    """From mode covering (alpha near 0) to mode seeking (alpha = 1, the reverse KL).

    L = (sum pi^alpha q^(1 - alpha) - 1) / (alpha (alpha - 1))

    The f-divergence with f'(t) = (t^(alpha - 1) - 1) / (alpha - 1), as in `fdpo_alpha`.
    """
    log_pi, log_q = group.total(logp), _optimum(group, beta)
    flat = jnp.abs(alpha - 1) < 1e-6
    power = jnp.where(flat, 1.0, alpha - 1)
    gain = log_pi - log_q
    scaled = power * gain
    small = jnp.abs(scaled) < 1
    # pi * exp(power * gain) is finite where its second factor alone is not.
    grown = safe_exp(log_pi + scaled) - safe_exp(log_pi)
    near = safe_exp(log_pi) * jnp.expm1(jnp.where(small, scaled, 0))
    excess = jnp.where(flat, safe_exp(log_pi) * gain, jnp.where(small, near, grown) / power)
    return group.share * total(_hide(group, excess, 0)) / alpha


@objective(family="distribution", paper="sessa2024bond")
def bond_forward(logp: Logp, group: Group) -> Loss:
    """Distil the best of n draws from the reference, covering it.

    L = KL(p_n, pi),   p_n = F^n - F_^n, F the reference's mass that scores no more
    """
    target, log_target = _best(group)
    return _kl(group, target, log_target, group.total(logp))


@objective(family="distribution", paper="sessa2024bond")
def bond_backward(logp: Logp, group: Group) -> Loss:
    """Distil the best of n draws from the reference, seeking its modes.

    L = KL(pi, p_n),   p_n = F^n - F_^n, F the reference's mass that scores no more

    log p_n is at least -87.
    """
    log_pi = group.total(logp)
    return _kl(group, safe_exp(log_pi), log_pi, _best(group)[1])


@objective(family="distribution", paper="sessa2024bond")
def bond_jeffreys(logp: Logp, group: Group, *, jeffreys_weight: Hyper = 0.5) -> Loss:
    """Distil the best of n draws from the reference by both KLs.

    L = (1 - jeffreys_weight) KL(p_n, pi) + jeffreys_weight KL(pi, p_n)
    """
    log_pi = group.total(logp)
    target, log_target = _best(group)
    forward = _kl(group, target, log_target, log_pi)
    backward = _kl(group, safe_exp(log_pi), log_pi, log_target)
    return (1 - jeffreys_weight) * forward + jeffreys_weight * backward


@objective(family="penalty", paper="tang2025few")
def kl_k1(logp: Logp, group: Group) -> Loss:
    """Mean log-ratio as a loss: right in value, and on-policy no gradient at all in expectation.

    L = mean gain,   gain = log pi - log pi_ref of the whole response   [nats]

    Exact on an ExactGroup.
    """
    return group.mean(KL_ESTIMATES["k1"](group.total(logp - group.ref_logp)))


@objective(family="penalty", paper="tang2025few")
def kl_k2(logp: Logp, group: Group) -> Loss:
    """Half the mean square log-ratio: on-policy its gradient is that of KL(pi, pi_ref).

    L = mean gain^2 / 2,   gain = log pi - log pi_ref of the whole response

    Exact on an ExactGroup.
    """
    return group.mean(KL_ESTIMATES["k2"](group.total(logp - group.ref_logp)))


@objective(family="penalty", paper="schulman2020approximating")
def kl_k3(logp: Logp, group: Group) -> Loss:
    """Schulman's low-variance value; as a loss its on-policy gradient is that of KL(pi_ref, pi), the other KL.

    L = mean [exp(-gain) - 1 + gain],   gain = log pi - log pi_ref of the whole response   [nats]

    Exact on an ExactGroup.
    """
    return group.mean(KL_ESTIMATES["k3"](group.total(logp - group.ref_logp)))

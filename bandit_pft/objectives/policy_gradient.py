"""Policy gradients: the force on a response is its advantage, so below-average responses are pushed down.

An advantage is a reward minus a baseline. `clip` variants tolerate a few updates on the same responses.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bandit_pft.groups import Group
from bandit_pft.objectives.core import KL_ESTIMATES, Hyper, Logp, Loss, objective, safe_exp
from bandit_pft.objectives.numerics import clipped_gain, frozen, z_score


def _weighted(logp: Logp, group: Group, advantage: Float[Array, " N"]) -> Loss:
    return -group.mean(frozen(advantage) * group.total(logp))


@objective(family="reward", paper="williams1992simple")
def reinforce(logp: Logp, group: Group) -> Loss:
    """Pull each response by its reward.

    L = -mean r log pi(y)

    No baseline: pushes only where rewards are negative. Exact on an ExactGroup.
    """
    return _weighted(logp, group, group.reward)


@objective(family="reward", paper="williams1992simple")
def reinforce_running(logp: Logp, group: Group) -> Loss:
    """Pull each response by its reward above the running mean of all contexts.

    L = -mean (r - b) log pi(y),   b = running mean of the rewards

    Exact on an ExactGroup.
    """
    return _weighted(logp, group, group.reward - group.baseline)


@objective(family="reward", paper="williams1992simple")
def reinforce_group(logp: Logp, group: Group) -> Loss:
    """Pull each response by its reward above its group's mean.

    L = -mean (r - mean r) log pi(y)

    The response's own reward is in the mean: (n - 1) / n of the policy gradient in expectation. Exact on an ExactGroup.
    """
    return _weighted(logp, group, group.group_advantage())


@objective(family="reward", paper="tajwar2024preference")
def reinforce_normalized(logp: Logp, group: Group) -> Loss:
    """Pull each response by its group z-score, without correcting for reuse.

    L = -mean z log pi(y),   z = (r - mean r) / (std r + 1e-4)

    Standard deviation with n - 1 in the denominator. An ExactGroup gives the limit of large groups.
    """
    return _weighted(logp, group, z_score(group))


@objective(family="reward", paper="ahmadian2024back")
def rloo(logp: Logp, group: Group, *, clip: Hyper = 0.2) -> Loss:
    """Pull each response by its reward above the mean of the others, with a clipped ratio of whole responses.

    L = -mean min(rho A, clip(rho, 1 -+ clip) A),   A = r - mean of the other r,   rho = pi(y) / pi_old(y)

    On-policy the paper's REINFORCE leave-one-out, unbiased; the ratio of the whole response and its clipping are TRL's.
    Exact on an ExactGroup as long as no ratio is clipped.
    """
    log_ratio = group.total(logp - group.old_logp)
    return -group.mean(clipped_gain(log_ratio, group.leave_one_out_advantage(), clip, clip))


@objective(family="reward", paper="schulman2017proximal")
def ppo_clip(logp: Logp, group: Group, *, clip: Hyper = 0.2) -> Loss:
    """Pull each token by the reward's running z-score until its probability has changed by `clip`.

    L = -mean over tokens min(rho_t A, clip(rho_t, 1 -+ clip) A),   A = (r - running mean) / running std

    No value function: every token of a response has its advantage. Mean over all tokens of the batch, as TRL's PPO.
    Exact on an ExactGroup.
    """
    advantage = ((group.reward - group.baseline) / group.scale)[:, None]
    return -group.token_mean(clipped_gain(logp - group.old_logp, advantage, clip, clip))


@objective(family="reward", paper="shao2024deepseekmath")
def grpo(logp: Logp, group: Group, *, clip: Hyper = 0.2, kl_coef: Hyper = 0.0) -> Loss:
    """PPO's clipped pull by the group z-score, mean over each response's tokens.

    L = -mean over responses, over tokens [min(rho_t A, clip(rho_t, 1 -+ clip) A) - kl_coef k3_t],   A = z-score of r

    Standard deviation with n - 1 in the denominator and 1e-4 added outside the root; equal rewards give exactly 0. k3_t
    is per token, exp(-gain_t) - 1 + gain_t. The tokens of long responses weigh less. TRL's `loss_type="grpo"`.
    An ExactGroup gives the limit of large groups.
    """
    gain = clipped_gain(logp - group.old_logp, z_score(group)[:, None], clip, clip)
    return -group.mean(group.average(gain - kl_coef * KL_ESTIMATES["k3"](logp - group.ref_logp)))


@objective(family="reward", paper="liu2025understanding")
def dr_grpo(logp: Logp, group: Group, *, clip: Hyper = 0.2, max_length: Hyper = 0.0) -> Loss:
    """GRPO without its two biases: no division by the standard deviation or by the response's length.

    L = -mean over responses sum over tokens min(rho_t A, clip(rho_t, 1 -+ clip) A) / T,   A = r - mean r

    T is `max_length`, or the width of the group where that is 0. TRL's `loss_type="dr_grpo", scale_rewards="none"`.
    Exact on an ExactGroup as long as no ratio is clipped.
    """
    gain = clipped_gain(logp - group.old_logp, group.group_advantage()[:, None], clip, clip)
    return -group.mean(group.total(gain)) / jnp.where(max_length > 0, max_length, logp.shape[1])


@objective(family="reward", paper="yu2025dapo")
def dapo(logp: Logp, group: Group, *, clip_low: Hyper = 0.2, clip_high: Hyper = 0.28) -> Loss:
    """GRPO with more room upwards and every token of the batch weighing the same.

    L = -mean over tokens min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A),   A = z-score of r

    Mean over all tokens of the batch. Groups of equal rewards give no force; the paper resamples them, here they stay
    in the denominator. TRL's `loss_type="dapo"`. An ExactGroup gives the limit of large groups.
    """
    return -group.token_mean(clipped_gain(logp - group.old_logp, z_score(group)[:, None], clip_low, clip_high))


@objective(family="reward", paper="zheng2025group")
def gspo(logp: Logp, group: Group, *, clip_low: Hyper = 3e-4, clip_high: Hyper = 4e-4) -> Loss:
    """GRPO with one ratio per response, the geometric mean of its tokens'.

    L = -mean over responses min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),   s = (pi(y) / pi_old(y))^(1 / |y|)

    TRL's `importance_sampling_level="sequence", loss_type="grpo"`. An ExactGroup gives the limit of large groups.
    """
    log_ratio = group.average(logp - group.old_logp)
    return -group.mean(clipped_gain(log_ratio, z_score(group), clip_low, clip_high))


@objective(family="reward", paper="zheng2025group")
def gspo_token(logp: Logp, group: Group, *, clip_low: Hyper = 3e-4, clip_high: Hyper = 4e-4) -> Loss:
    """GSPO written per token, for advantages that differ among tokens.

    L = -mean over responses, over tokens min(s_t A, clip(s_t, ...) A),   s_t = [s] pi_t / [pi_t]

    [.] has no gradient. With one advantage per response, as here, value and force are GSPO's.
    """
    sequence = group.average(logp - group.old_logp)[:, None]
    log_ratio = frozen(sequence) + logp - frozen(logp)
    return -group.mean(group.average(clipped_gain(log_ratio, z_score(group)[:, None], clip_low, clip_high)))


@objective(family="reward", paper="minimax2025m1")
def cispo(logp: Logp, group: Group, *, max_ratio: Hyper = 5.0) -> Loss:
    """Pull every token by the group z-score, its importance weight capped instead of its force cut off.

    L = -mean over tokens [min(rho_t, max_ratio)] A log pi_t,   A = z-score of r

    [.] has no gradient. `max_ratio` is the cap itself (TRL's `epsilon_high`), 1 + epsilon in the paper's notation. Mean
    over all tokens of the batch. An ExactGroup gives the limit of large groups.
    """
    weight = frozen(jnp.minimum(safe_exp(logp - group.old_logp), max_ratio))
    return -group.token_mean(weight * z_score(group)[:, None] * logp)


@objective(family="reward", paper="arnal2025asymmetric")
def asymre(logp: Logp, group: Group, *, delta: Hyper = -0.1) -> Loss:
    """REINFORCE on old samples, safe as long as its baseline stays below their mean reward.

    L = -mean (r - mean r - delta) log pi(y)

    No importance weights. delta >= 0 lets the policy collapse off-policy. Exact on an ExactGroup.
    """
    return _weighted(logp, group, group.group_advantage() - delta)

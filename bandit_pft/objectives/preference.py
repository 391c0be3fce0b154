r"""Contrastive objectives: the winner is pulled up, the loser pushed down.

A pair objective is `group.pair_mean` of a matrix [winner, loser] over the pairs that the labels compare; ties give no
pair. Unless a docstring says otherwise a pair objective on an ExactGroup is the expectation of the sampled one up to
the number of compared pairs, which is random in a sample. `gain` is log pi - log pi_ref of the whole response, in nats,
and `lead` is the winner's value minus the loser's. Numbers agree with TRL 1.16 where it has the objective.

TRL's AOT is not here: it sorts the leads of a batch, so its loss is no sum over groups.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import relu, sigmoid
from jaxtyping import Array, Float

from bandit_pft.groups import Group, safe_divide
from bandit_pft.objectives.core import Hyper, Logp, Loss, objective, safe_exp
from bandit_pft.objectives.numerics import frozen, lead, log1mexp, log_sigmoid, others, q_log

Pairs = Float[Array, "N N"]


def _gain(logp: Logp, group: Group) -> Float[Array, " N"]:
    return group.total(logp - group.ref_logp)


def _logistic(x: Pairs, label_smoothing: Hyper = 0.0) -> Pairs:
    # (1 - e) log sigmoid(x) + e log sigmoid(-x), with one logarithm: log sigmoid(-x) = log sigmoid(x) - x.
    return label_smoothing * x - log_sigmoid(x)


# --- the logistic loss ---------------------------------------------------------------------------------------------
@objective(family="preference", paper="rafailov2023direct")
def dpo(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Widen the winner's lead over the loser, relative to the reference.

    L = -mean over pairs log sigmoid(beta (gain_w - gain_l)),   gain = log pi - log pi_ref   [nats]

    Only the difference counts, so both may fall together: watch where the freed mass goes.
    """
    return group.pair_mean(_logistic(beta * lead(_gain(logp, group))))


@objective(family="preference", paper="lambert2024tulu")
def dpo_mean(logp: Logp, group: Group, *, beta: Hyper = 5.0) -> Loss:
    """DPO on the mean gain per token, so that length does not count.

    L = -mean over pairs log sigmoid(beta (gain_w / |w| - gain_l / |l|))

    TRL's `loss_type="sigmoid_norm"`.
    """
    return group.pair_mean(_logistic(beta * lead(group.average(logp - group.ref_logp))))


@objective(family="preference", paper="mitchell2023note")
def cdpo(logp: Logp, group: Group, *, beta: Hyper = 0.1, label_smoothing: Hyper = 0.1) -> Loss:
    """DPO that expects some labels to be wrong, and so stops at a finite lead.

    L = -mean over pairs [(1 - e) log sigmoid(beta lead) + e log sigmoid(-beta lead)],   lead = gain_w - gain_l
    """
    return group.pair_mean(_logistic(beta * lead(_gain(logp, group)), label_smoothing))


@objective(family="preference", paper="chowdhury2024provably")
def robust_dpo(logp: Logp, group: Group, *, beta: Hyper = 0.1, label_smoothing: Hyper = 0.1) -> Loss:
    """DPO's loss made unbiased for labels that are wrong with known probability.

    L = -mean over pairs [(1 - e) log sigmoid(beta lead) - e log sigmoid(-beta lead)] / (1 - 2 e)
    """
    x = beta * lead(_gain(logp, group))
    return group.pair_mean(_logistic(x, -label_smoothing / (1 - 2 * label_smoothing)))


@objective(family="preference", paper="pal2024smaug")
def dpop(logp: Logp, group: Group, *, beta: Hyper = 0.1, penalty_coef: Hyper = 50.0) -> Loss:
    """DPO-Positive: DPO that pays when the winner falls below the reference.

    L = -mean over pairs log sigmoid(beta (gain_w - gain_l - penalty_coef max(0, -gain_w)))
    """
    gain = _gain(logp, group)
    return group.pair_mean(_logistic(beta * (lead(gain) - penalty_coef * relu(-gain)[:, None])))


@objective(family="preference", paper="huang2024correcting")
def chi2_po(logp: Logp, group: Group, *, beta: Hyper = 0.1, reward_range: Hyper = 1.0) -> Loss:
    """DPO under a chi-squared plus KL penalty: pessimistic where the data are thin.

    L = -mean over pairs log sigmoid(clip(beta (phi_w - phi_l), +-2 reward_range)),   phi = exp(gain) + gain

    Beyond the clip a pair has no force.
    """
    gain = _gain(logp, group)
    x = beta * lead(safe_exp(gain) + gain)
    return group.pair_mean(_logistic(jnp.clip(x, -2 * reward_range, 2 * reward_range)))


@objective(family="preference", paper="wang2024beyond")
def fdpo_forward(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """DPO regularised by the forward KL(pi_ref, pi).

    L = -mean over pairs log sigmoid(beta (u_w - u_l)),   u = 1 - exp(-gain)
    """
    return group.pair_mean(_logistic(beta * lead(q_log(_gain(logp, group), -1.0))))


@objective(family="preference", paper="wang2024beyond")
def fdpo_js(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """DPO regularised by the Jensen-Shannon divergence.

    L = -mean over pairs log sigmoid(beta (u_w - u_l)),   u = log sigmoid(gain) + log 2
    """
    return group.pair_mean(_logistic(beta * lead(log_sigmoid(_gain(logp, group)))))


@objective(family="preference", paper="wang2024beyond")
def fdpo_alpha(logp: Logp, group: Group, *, beta: Hyper = 0.1, alpha: Hyper = 0.5) -> Loss:
    """DPO regularised by an alpha-divergence; DPO itself at alpha = 1, the forward KL towards 0.

    L = -mean over pairs log sigmoid(beta (u_w - u_l)),   u = (exp((alpha - 1) gain) - 1) / (alpha - 1)

    TRL's `f_alpha_divergence_coef`; the paper's alpha is one minus this one.
    """
    return group.pair_mean(_logistic(beta * lead(q_log(_gain(logp, group), alpha - 1))))


@objective(family="preference", paper="lu2024discovering")
def discopop(logp: Logp, group: Group, *, beta: Hyper = 0.1, mix_temperature: Hyper = 0.05) -> Loss:
    """A loss found by a language model: logistic where the pair is wrong, exponential where it is right.

    L = mean over pairs [(1 - s) log(1 + exp(-x)) + s exp(-x)],   x = beta lead, s = sigmoid(x / mix_temperature)

    Not monotone: around x = 0 (-0.12 to 0.07 by default), so at the reference itself, winners are pushed.
    """
    x = beta * lead(_gain(logp, group))
    mix = sigmoid(x / mix_temperature)
    return group.pair_mean((1 - mix) * -log_sigmoid(x) + mix * safe_exp(-x))


# --- other losses of the lead --------------------------------------------------------------------------------------
@objective(family="preference", paper="azar2024general")
def ipo(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Bring the winner's lead to a fixed target, and no further.

    L = mean over pairs (lead - 1 / (2 beta))^2,   lead = gain_w - gain_l   [nats]

    Sums over tokens, as in the paper, where beta is tau. `ipo_mean` is TRL's. Some code passes the target itself as
    beta.
    """
    return group.pair_mean((lead(_gain(logp, group)) - 0.5 / beta) ** 2)


@objective(family="preference", paper="azar2024general")
def ipo_mean(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """IPO on the mean gain per token.

    L = mean over pairs (gain_w / |w| - gain_l / |l| - 1 / (2 beta))^2

    TRL's `loss_type="ipo"`.
    """
    return group.pair_mean((lead(group.average(logp - group.ref_logp)) - 0.5 / beta) ** 2)


@objective(family="preference", paper="liu2024statistical")
def hinge(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Push and pull at constant force until the lead is 1 / beta.

    L = mean over pairs max(0, 1 - beta lead),   lead = gain_w - gain_l

    SLiC's loss normalised by the reference, as in RSO; TRL's `loss_type="hinge"`. `slic` is the original.
    """
    return group.pair_mean(relu(1 - beta * lead(_gain(logp, group))))


@objective(family="preference", paper="ji2024towards")
def exo(logp: Logp, group: Group, *, beta: Hyper = 0.1, label_smoothing: Hyper = 1e-3) -> Loss:
    """Reverse KL between the policy's choice in a pair and the smoothed label.

    L = mean over pairs [q log(q / (1 - e)) + (1 - q) log((1 - q) / e)],   q = sigmoid(beta (gain_w - gain_l))

    Mode seeking where DPO, the forward KL, covers. A label_smoothing e below 1e-6 counts as 1e-6, since the loss is
    infinite at 0.
    """
    x = beta * lead(_gain(logp, group))
    smoothing = jnp.maximum(label_smoothing, 1e-6)
    won = sigmoid(x) * (log_sigmoid(x) - jnp.log1p(-smoothing))
    return group.pair_mean(won + sigmoid(-x) * (log_sigmoid(-x) - jnp.log(smoothing)))


# --- losses of both gains, not only of their difference -------------------------------------------------------------
@objective(family="preference", paper="chen2024noise")
def nca(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Tell each response from noise, so that winners do not fall with the losers.

    L = -mean over pairs [log sigmoid(x_w) + log sigmoid(-x_w) / 2 + log sigmoid(-x_l) / 2],   x = beta gain
    """
    x = beta * _gain(logp, group)
    winner = -log_sigmoid(x) - 0.5 * log_sigmoid(-x)
    return group.pair_mean(winner[:, None] - 0.5 * log_sigmoid(-x)[None, :])


@objective(family="preference", paper="jung2024binary")
def bco_pair(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Classify winners against losers by the gain.

    L = -mean over pairs [log sigmoid(beta gain_w) + log sigmoid(-beta gain_l)]

    Without the reward shift of `bco`; TRL's `loss_type="bco_pair"`.
    """
    x = beta * _gain(logp, group)
    return -group.pair_mean(log_sigmoid(x)[:, None] + log_sigmoid(-x)[None, :])


@objective(family="preference", paper="wu2024self")
def sppo(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Bring the winner's gain to 1 / (2 beta) and the loser's to minus that.

    L = mean over pairs [(gain_w - 1 / (2 beta))^2 + (gain_l + 1 / (2 beta))^2]

    Win probabilities taken as 1 and 0: TRL's `loss_type="sppo_hard"`, where beta is 1 / eta.
    """
    gain, target = _gain(logp, group), 0.5 / beta
    return group.pair_mean(((gain - target) ** 2)[:, None] + ((gain + target) ** 2)[None, :])


@objective(family="preference", paper="doosterlinck2024anchored")
def apo_zero(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Winner up, loser down, each by itself: for winners better than the policy.

    L = mean over pairs [sigmoid(-beta gain_w) + sigmoid(beta gain_l)]
    """
    x = beta * _gain(logp, group)
    return group.pair_mean(sigmoid(-x)[:, None] + sigmoid(x)[None, :])


@objective(family="preference", paper="doosterlinck2024anchored")
def apo_down(logp: Logp, group: Group, *, beta: Hyper = 0.1) -> Loss:
    """Both down, the loser more: for winners worse than the policy.

    L = mean over pairs [sigmoid(beta gain_w) + sigmoid(-beta (gain_w - gain_l))]
    """
    x = beta * _gain(logp, group)
    return group.pair_mean(sigmoid(x)[:, None] + sigmoid(-lead(x)))


# --- without a reference -------------------------------------------------------------------------------------------
@objective(family="preference", paper="zhao2023slic")
def slic(logp: Logp, group: Group, *, margin: Hyper = 1.0, sft_coef: Hyper = 0.1) -> Loss:
    """Lead of the winner's log-probability up to a margin, plus imitation of the winner.

    L = mean over pairs [max(0, margin - log pi(w) + log pi(l)) - sft_coef log pi(w)]

    The original SLiC-HF on whole responses; its regulariser imitates a supervised target, here the winner.
    """
    total = group.total(logp)
    return group.pair_mean(relu(margin - lead(total)) - sft_coef * total[:, None])


@objective(family="preference", paper="meng2024simpo")
def simpo(logp: Logp, group: Group, *, beta: Hyper = 2.0, margin: Hyper = 1.0) -> Loss:
    """Lead of the mean log-probability per token by a margin; no reference.

    L = -mean over pairs log sigmoid(beta (log pi(w) / |w| - log pi(l) / |l|) - margin)

    `margin` is the paper's gamma. TRL's CPO with `loss_type="simpo", cpo_alpha=0`.
    """
    return group.pair_mean(_logistic(beta * lead(group.average(logp)) - margin))


@objective(family="preference", paper="xu2024contrastive")
def cpo(logp: Logp, group: Group, *, beta: Hyper = 0.1, sft_coef: Hyper = 1.0) -> Loss:
    """DPO with a uniform reference, plus imitation of the winner.

    L = -mean over pairs [log sigmoid(beta (log pi(w) - log pi(l))) + sft_coef log pi(w) / |w|]

    The imitation is the mean over the winner's tokens, then over pairs: TRL's for one pair at a time.
    """
    x = beta * lead(group.total(logp))
    return group.pair_mean(_logistic(x) - sft_coef * group.average(logp)[:, None])


@objective(family="preference", paper="hong2024orpo")
def orpo(logp: Logp, group: Group, *, odds_coef: Hyper = 0.1) -> Loss:
    """Imitation of the winner, plus its odds against the loser's.

    L = -mean over pairs [a_w + odds_coef log sigmoid(odds_w - odds_l)],   a = log pi(y) / |y|, odds = a - log(1 - e^a)

    `odds_coef` is TRL's beta. TRL imitates the prompt as well, here only the response.
    """
    average = group.average(logp)
    loss = _logistic(lead(average - log1mexp(average)))
    return group.pair_mean(odds_coef * loss - average[:, None])


# --- the best of n with an explicit negative term -------------------------------------------------------------------
# These imitate, but they push too: the colour of a family tells whether mass is taken away.
@objective(family="preference", paper="tajwar2024preference")
def best_of_n_negative(logp: Logp, group: Group, *, negative: Hyper = 0.1) -> Loss:
    """Imitate the group's best response and push the others.

    L = -mean over groups [log pi(y*) - negative * mean of the others log pi(y)]

    Unbounded below: a large coefficient diverges. Exact on an ExactGroup.
    """
    return -group.share * ((group.best() - negative * others(group)) * group.total(logp)).sum()


@objective(family="preference", paper="tajwar2024preference")
def best_of_n_worst(logp: Logp, group: Group, *, negative: Hyper = 0.1) -> Loss:
    """Imitate the group's best response and push its worst.

    L = -mean over groups [log pi(y*) - negative * log pi(worst y)]

    Unbounded below: a large coefficient diverges. Exact on an ExactGroup.
    """
    return -group.share * ((group.best() - negative * group.worst()) * group.total(logp)).sum()


@objective(family="preference", paper="tajwar2024preference")
def best_of_n_complement(logp: Logp, group: Group, *, negative: Hyper = 1.0) -> Loss:
    """Imitate the group's best response and everything but the others.

    L = -mean over groups [log pi(y*) + negative * mean of the others log(1 - pi(y))]

    The push pi / (1 - pi) fades as a response disappears. Mean where the paper's code sums. Exact on an ExactGroup.
    """
    total = group.total(logp)
    return -group.share * (group.best() * total + negative * others(group) * log1mexp(total)).sum()


# --- games: the opponent is a policy --------------------------------------------------------------------------------
def _importance(group: Group, log_ratio: Float[Array, " N"]) -> Float[Array, " N"]:
    """Density ratio exp(log_ratio) to the responses' own policy, normalised to mean 1 in the group, no gradient."""
    log_ratio = jnp.where(group.real(), frozen(log_ratio), -jnp.inf)
    ratio = jnp.exp(log_ratio - log_ratio.max(initial=-1e30))
    return safe_divide(ratio, jnp.broadcast_to(group.expect(ratio), ratio.shape))


@objective(family="preference", paper="xie2024exploratory")
def xpo(logp: Logp, group: Group, *, beta: Hyper = 0.1, optimism: Hyper = 0.01) -> Loss:
    """DPO between a response of the policy and one of the reference, plus optimism: less mass where the reference is.

    L = -mean over pairs log sigmoid(beta lead) + optimism * mean over pi_ref log pi(y)

    Both reference expectations weight the group's own responses by pi_ref / pi_old, self-normalised: exact on an
    ExactGroup, where one of each pair comes from either policy. `optimism` is the paper's alpha.
    """
    ratio = _importance(group, group.total(group.ref_logp - group.old_logp))
    weight = (ratio[:, None] + ratio[None, :]) / 2
    count = group.pair_count()
    weight = weight * safe_divide(count.sum(), (count * weight).sum())
    pairs = group.pair_mean(weight * _logistic(beta * lead(_gain(logp, group))))
    return pairs + optimism * group.mean(ratio * group.total(logp))


@objective(family="preference", paper="munos2023nash")
def nash_md(logp: Logp, group: Group, *, beta: Hyper = 0.1, mixture: Hyper = 0.5) -> Loss:
    """Pull each response by its win rate against a mixture of policy and reference: a step of Nash mirror descent.

    L = -mean [P(y beats y') - 1/2 - beta gain] log pi(y),   y' ~ pi^(1 - mixture) pi_ref^mixture / Z

    [.] has no gradient; a tie is half a win. The opponent weights the group's own responses, self-normalised, the
    response itself included; exact on an ExactGroup of the learner's own probabilities. Responses of an older policy
    are not re-weighted as y.
    """
    total, gain = group.total(logp), _gain(logp, group)
    opponent = group.weight * _importance(group, total - mixture * gain - group.total(group.old_logp))
    wins = group.preferred()
    advantage = ((wins - wins.T) / 2 * safe_divide(opponent, opponent.sum())[None, :]).sum(1) - beta * gain
    return -group.mean(frozen(advantage) * total)

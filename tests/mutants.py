"""Wrong formulas, each with the test that must catch it: a check of the tests, which `test_mutants.py` runs.

Every entry changes one place of one module, whose original text occurs exactly once in its file: where the source
moves, the entry moves with it. The test is a quick one among those that fail. No entry needs PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One wrong change: the file, the text and its wrong replacement, what is wrong, and the test that fails."""

    file: str
    original: str
    wrong: str
    what: str
    test: str

    @property
    def name(self) -> str:
        return f"{self.file.removesuffix('.py')}: {self.what}"

    @property
    def module(self) -> str:
        return f"bandit_pft.{self.file.removesuffix('.py').replace('/', '.')}"


def pair(case: str) -> str:
    return f"test_objectives.py::test_a_pair_objective_is_the_mean_of_its_formula_over_the_pairs_of_the_batch[{case}]"


def response(case: str) -> str:
    return (
        f"test_objectives.py::test_a_response_objective_is_the_mean_of_its_formula_over_each_groups_responses[{case}]"
    )


def tokens(case: str) -> str:
    return f"test_objectives.py::test_a_token_objective_is_the_mean_of_its_formula_over_all_tokens_of_the_batch[{case}]"


def divergence(case: str) -> str:
    return (
        f"test_exact.py::test_a_divergence_and_its_gradient_in_the_logits_are_those_of_the_formula_and_vanish_"
        f"at_the_target[{case}]"
    )


def penalty(case: str) -> str:
    return f"test_exact.py::test_reinforce_with_the_reverse_kl_stands_still_at_the_optimum_and_only_there[{case}]"


TIES = "test_groups.py::test_ties_and_small_gaps_are_not_compared"
BEST = "test_groups.py::test_best_and_worst_share_ties_and_ignore_padding"
BEST_OF_N = "test_groups.py::test_best_of_n_is_what_enumerating_all_draws_gives[score1-3]"
BASELINES = "test_groups.py::test_baselines_are_the_mean_of_the_others_and_the_bessel_corrected_deviation"
ENUMERATED = "test_groups.py::test_exact_group_is_the_expectation_over_all_sampled_groups[2]"
DESIRABLE = "test_groups.py::test_desirable_is_what_scores_above_a_threshold_that_is_the_mean_score_by_default"
UNPAIRED = "test_objectives.py::test_kto_and_bco_measure_gains_from_the_batchs_reference_point"
CLIP = "test_exact.py::test_a_ratio_outside_the_clip_range_feels_force_only_back_into_it"
NASH = "test_exact.py::test_nash_md_pulls_by_the_win_rate_against_the_geometric_mixture"
SCIPY = "test_metrics.py::test_kl_and_entropy_are_scipys"
EXACT_METRICS = "test_gaps.py::test_exact_metrics_are_means_over_contexts_of_what_numpy_sums"
MIXED = "test_gaps.py::test_mixed_sequences_come_from_either_source_and_know_its_probability"
FEW = (
    "test_simulate.py::test_steps_on_the_drawn_responses_alone_are_those_on_the_whole_table"
    "[reinforce-options5-False-False]"
)
FAR = "test_simulate.py::test_steps_on_few_find_their_way_where_the_normaliser_has_moved_far"
KEYS = "test_simulate.py::test_offline_data_stay_and_on_policy_data_change_at_every_step"
FORCES = "test_gaps.py::test_a_probe_sees_forces_that_point_up_where_a_response_is_pulled"
MASKED = "test_groups.py::test_masked_tokens_may_hold_anything"

PLACED = "test_devices.py::test_all_that_has_an_axis_of_actions_is_split_and_the_rest_is_everywhere"

# fmt: off
ROWS: dict[str, list[tuple[str, str, str, str]]] = {
    "groups.py": [
        ("return jnp.where(y == 0, 0.0, x / jnp.where(y == 0, 1.0, y))", "return x / y", "an empty mean is nan",
         "test_groups.py::test_an_empty_group_is_zero_everywhere_and_so_are_its_gradients"),
        ("return jnp.where(self.mask, x, 0).sum(-1)", "return (x * self.mask.astype(x.dtype)).sum(-1)",
         "the mask multiplies, and nan in padding stays nan", MASKED),
        ("return safe_divide(self.total(x), self.length())", "return self.total(x) / x.shape[-1]",
         "the mean over tokens counts the padding", MASKED),
        ("return self.share * self.expect(x)", "return self.expect(x)", "1 / B is missing", response("sft")),
        ("return self.token_share * total(self.count() * self.total(x))", "return self.mean(self.average(x))",
         "mean over responses in the place of the mean over tokens", tokens("dapo")),
        ("total(self.count() * self.desirable() * x)", "total(self.count() * x)", "undesirable responses are kept",
         "test_objectives.py::test_filtered_is_the_mean_over_the_desirable_responses_of_the_batch"),
        ("return ((gap > 0) &", "return ((gap >= 0) &", "ties are compared", TIES),
        ("return ((gap > 0) & (gap >= self.min_gap))", "return ((gap > 0) & (gap <= self.min_gap))",
         "close pairs are compared in the place of distant ones", TIES),
        ("return ((gap > 0) & (gap >= self.min_gap))", "return ((gap < 0) & (-gap >= self.min_gap))",
         "winner and loser are swapped", pair("pref_ft")),
        ("(self.score > self.threshold)", "(self.score >= self.threshold)", "a score at the threshold is kept",
         DESIRABLE),
        ("return _top_share(self.weight, -self.score, self.real())",
         "return _top_share(self.weight, self.score, self.real())", "the worst is the best", BEST),
        ("jnp.where(real, score, -jnp.inf).max", "score.max", "padding may be the best", BEST),
        ("mass = jnp.where(top, weight, 0)", "mass = top.astype(weight.dtype)", "ties share whatever they weigh", BEST),
        ("return safe_divide(self.draws, self.draws - 1) * self.group_advantage()", "return self.group_advantage()",
         "the response's own reward is not left out", BASELINES),
        ("return jnp.sqrt(safe_divide(self.draws, self.draws - 1) * square)", "return jnp.sqrt(square)",
         "standard deviation with n in the denominator", BASELINES),
        ("weight = safe_divide(weight, weight.sum())", "pass", "given weights are not normalised",
         "test_groups.py::test_weights_count_in_proportion_whatever_they_sum_to"),
        ("number(weighted_mean(weight, score) if threshold is None", "number(score.mean() if threshold is None",
         "padding is in the default threshold", DESIRABLE),
        ("return low + total(weight * jnp.where(counts, x - low[..., None], 0))", "return total(weight * x)",
         "rounding puts equal rewards above their mean",
         "test_groups.py::test_equal_rewards_are_neither_above_nor_below_their_mean[compiled]"),
        ("hard = ((gap > 0) &", "hard = ((gap >= 0) &", "exact ties are compared",
         "test_groups.py::test_exact_labels_without_noise_are_the_sampled_ones"),
        ("return best_of_n_weights(self.weight, self.score, self.draws)",
         "return best_of_n_weights(self.weight, self.score, self.draws - 1)", "best of n - 1", ENUMERATED),
        ("return safe_divide(self.draws - 1, self.draws) * self.leave_one_out_advantage()",
         "return self.leave_one_out_advantage()", "exact group advantage without (n - 1) / n", ENUMERATED),
        ("return jnp.sqrt(self.expect((self.reward - self.expect(self.reward)) ** 2))",
         "return jnp.sqrt(self.draws / (self.draws - 1) * self.expect((self.reward - self.expect(self.reward)) ** 2))",
         "Bessel's correction where the distribution is known",
         "test_groups.py::test_the_deviation_of_a_distribution_has_no_correction_for_the_size_of_a_sample"),
        ('side="right") - 1', 'side="left")', "a tie has the mass below its first member", BEST_OF_N),
        ("-jnp.expm1(n * jnp.log1p(-fraction))", "(1 - (1 - fraction) ** n)", "best of n without expm1 and log1p",
         "test_groups.py::test_a_tie_of_thirty_decimal_places_down_is_n_times_likelier_to_win"),
        ("jnp.where(above < 0.5, jnp.log1p(-jnp.minimum(above, 0.5)), jnp.log(jnp.where(upto > 0, upto, 1)))",
         "jnp.log(jnp.where(upto > 0, upto, 1))", "the logarithm of a rounded F near 1, times n",
         "test_groups.py::test_best_of_n_finds_rare_winners_among_a_million_actions"),
        ("set(won * safe_divide(mass, tie))", "set(won)", "each tied response wins for all of them", BEST_OF_N),
        ("share=alive * one_over(alive.sum())", "share=alive / number", "empty groups are in the denominator",
         "test_groups.py::test_the_parts_add_up_to_the_mean_over_all_responses_tokens_pairs_of_the_batch"),
        ("jax.lax.stop_gradient(jnp.where(groups.mask, logp, 0))", "jnp.where(groups.mask, logp, 0)",
         "the reference point of KTO has a gradient",
         "test_groups.py::test_no_gradient_flows_through_the_prepared_statistics"),
        ("weight = group.weight * jnp.exp(lead - jnp.max(lead, initial=-1e30))", "weight = group.weight",
         "no importance weights in the KL",
         "test_groups.py::test_kl_is_the_exact_one_when_every_response_is_listed_under_an_older_policy"),
    ],
    "objectives/core.py": [
        ("safe_exp(-gain) - 1 + gain", "safe_exp(gain) - 1 - gain", "k3 of the other direction", response("kl_k3")),
        ('"k2": lambda gain: gain**2 / 2', '"k2": lambda gain: safe_exp(-gain) - 1 + gain', "k2 is k3",
         penalty("k2-loss-reinforce")),
        ("estimate(jax.lax.stop_gradient(gain))", "estimate(gain)", "the penalty in the reward has a gradient",
         "test_objectives.py::test_a_penalty_in_the_reward_has_no_gradient_of_its_own"),
        ("return -jax.grad(lambda x: made(x, group, **hyper))(logp)",
         "return jax.grad(lambda x: made(x, group, **hyper))(logp)", "forces point down",
         "test_exact.py::test_on_policy_the_force_is_the_gradient_of_the_expected_reward[reinforce-1]"),
        ("self.function(hide(logp), clean", "self.function(logp, clean", "padding reaches the loss",
         "test_objectives.py::test_what_stands_in_masked_tokens_never_reaches_the_function_of_an_objective"),
    ],
    "objectives/numerics.py": [
        ("jax.nn.sigmoid(-x) * change", "jax.nn.sigmoid(x) * change", "log sigmoid rises with its value",
         "test_objectives.py::test_the_slope_of_log_sigmoid_keeps_its_digits_far_from_0"),
        ("return x[:, None] - x[None, :]", "return x[None, :] - x[:, None]", "the loser leads", pair("dpo")),
        ("jnp.log(-jnp.expm1(jnp.where(small, x, -1.0)))", "jnp.log(1 - jnp.exp(jnp.where(small, x, -1.0)))",
         "log(1 - e^x) without expm1",
         "test_objectives.py::test_log1mexp_keeps_its_digits_near_certainty_and_far_from_it"),
        ("jnp.expm1(jnp.where(small, scaled, 0))", "jnp.exp(jnp.where(small, scaled, 0)) - 1",
         "q-logarithm without expm1",
         "test_objectives.py::test_q_log_is_exact_from_tiny_to_huge_arguments_and_passes_through_power_0"),
        ("group.group_advantage() / (deviation + epsilon)", "group.group_advantage() / deviation",
         "z-score without epsilon", response("reinforce_normalized")),
        ("jnp.where(deviation > noise,", "jnp.where(deviation > 0,", "rounding of equal rewards becomes an advantage",
         "test_objectives.py::test_the_z_score_of_equal_rewards_is_exactly_0_although_their_mean_is_rounded"),
        ("return jnp.minimum(ratio * advantage,", "return jnp.maximum(ratio * advantage,", "PPO's min is a max", CLIP),
        ("jnp.clip(ratio, 1 - low, 1 + high)", "jnp.clip(ratio, 1 - high, 1 + low)", "the clips change sides",
         tokens("dapo")),
        ("return jnp.minimum(ratio * advantage,", "return jnp.minimum(advantage,", "no importance ratio",
         response("rloo")),
    ],
    "objectives/policy_gradient.py": [
        ("return -group.mean(frozen(advantage) * group.total(logp))",
         "return group.mean(frozen(advantage) * group.total(logp))", "good responses are pushed",
         response("reinforce")),
        ("clipped_gain(log_ratio, group.leave_one_out_advantage(), clip, clip)",
         "clipped_gain(log_ratio, group.group_advantage(), clip, clip)", "RLOO leaves none out", response("rloo")),
        ("(group.reward - group.baseline) / group.scale", "(group.reward - group.baseline)",
         "PPO's advantage is not scaled", tokens("ppo_clip")),
        ("return -group.mean(group.average(gain - kl_coef", "return -group.token_mean((gain - kl_coef",
         "GRPO over all tokens of the batch", response("grpo")),
        ("-group.token_mean(clipped_gain(logp - group.old_logp, z_score(group)[:, None], clip_low, clip_high))",
         "-group.mean(group.average(clipped_gain(logp - group.old_logp, z_score(group)[:, None], clip_low, clip_high)"
         "))", "DAPO weighs responses in the place of tokens", tokens("dapo")),
        ("log_ratio = group.average(logp - group.old_logp)", "log_ratio = group.total(logp - group.old_logp)",
         "GSPO's ratio without the root of |y|", response("gspo")),
        ("log_ratio = frozen(sequence) + logp - frozen(logp)", "log_ratio = sequence + logp - frozen(logp)",
         "GSPO's sequence ratio has a gradient", "test_exact.py::test_gspo_and_its_token_form_have_the_same_force"),
        ("frozen(jnp.minimum(safe_exp(logp - group.old_logp), max_ratio))",
         "jnp.minimum(safe_exp(logp - group.old_logp), max_ratio)", "CISPO's weight has a gradient", CLIP),
    ],
    "objectives/preference.py": [
        ("return group.total(logp - group.ref_logp)", "return group.total(logp - group.old_logp)",
         "gains over the old policy", pair("dpo")),
        ("return label_smoothing * x - log_sigmoid(x)", "return -label_smoothing * x - log_sigmoid(x)",
         "label noise of the wrong sign", pair("cdpo")),
        ("return group.pair_mean(_logistic(beta * lead(_gain(logp, group))))",
         "return group.pair_mean(_logistic(lead(_gain(logp, group))))", "DPO without beta", pair("dpo")),
        ("-label_smoothing / (1 - 2 * label_smoothing)", "-label_smoothing / (1 - label_smoothing)",
         "robust DPO is biased",
         "test_objectives.py::test_robust_dpo_under_flipped_labels_is_dpo_under_clean_ones_on_average"),
        ("q_log(_gain(logp, group), alpha - 1)", "q_log(_gain(logp, group), -alpha)", "alpha is one minus alpha",
         pair("fdpo_alpha")),
        ("(lead(_gain(logp, group)) - 0.5 / beta) ** 2", "(lead(_gain(logp, group)) - 1 / beta) ** 2",
         "IPO's target is twice as far", pair("ipo")),
        ("beta * lead(group.average(logp)) - margin", "beta * (lead(group.average(logp)) - margin)",
         "SimPO's margin is times beta", pair("simpo")),
        ("_logistic(x) - sft_coef * group.average(logp)[:, None]",
         "_logistic(x) - sft_coef * group.total(logp)[:, None]", "CPO imitates the sum over tokens", pair("cpo")),
        ("(group.best() - negative * others(group)) * group.total(logp)",
         "(group.best() + negative * others(group)) * group.total(logp)", "the negative term pulls",
         response("best_of_n_negative")),
        ("group.total(group.ref_logp - group.old_logp))", "group.total(group.old_logp - group.ref_logp))",
         "XPO's density ratio is upside down",
         "test_exact.py::test_xpo_is_dpo_between_policy_and_reference_plus_the_references_mean_log_probability"),
        ("total - mixture * gain - group", "total - (1 - mixture) * gain - group", "Nash-MD's mixture is reversed",
         NASH),
        ("return -group.mean(frozen(advantage) * total)", "return -group.mean(advantage * total)",
         "Nash-MD's advantage has a gradient", NASH),
        ("weight = weight * safe_divide(count.sum(), (count * weight).sum())", "pass",
         "the weights of XPO have any mean",
         "test_objectives.py::test_xpo_and_nash_md_weight_each_groups_own_responses_by_self_normalised_density_ratios"),
    ],
    "objectives/supervised.py": [
        ("group.total(logp)[:, None], (logp", "group.total(logp)[None, :], (logp", "Pref-FT imitates the loser",
         pair("pref_ft")),
        ("safe_exp(group.reward / beta)", "safe_exp(group.reward * beta)", "RWR multiplies by its temperature",
         response("rwr")),
        ("safe_exp(z_score(group) / beta)", "safe_exp(group.group_advantage() / beta)",
         "AWR does not divide by the deviation", response("awr")),
    ],
    "objectives/unpaired.py": [
        ("(group.total(logp - group.ref_logp) - group.kl)", "(group.total(logp - group.ref_logp) + group.kl)",
         "KTO's reference point of the wrong sign", UNPAIRED),
        ("- group.mean_gain)", "- group.kl)", "BCO's shift is the KL", UNPAIRED),
    ],
    "objectives/distribution.py": [
        ("return _kl(group, jnp.exp(log_q), log_q, group.total(logp))",
         "return _kl(group, safe_exp(group.total(logp)), group.total(logp), log_q)",
         "the forward KL is the reverse one", divergence("forward_kl")),
        ("_hide(group, reward, 0) / beta", "_hide(group, reward, 0) * beta", "the optimum multiplies by beta",
         divergence("reverse_kl")),
        ("_hide(group, group.total(group.ref_logp), -1e30)", "_hide(group, group.total(group.old_logp), -1e30)",
         "the optimum starts from the old policy", divergence("reverse_kl")),
        ("(1 - jeffreys_weight) * forward + jeffreys_weight * backward",
         "jeffreys_weight * forward + (1 - jeffreys_weight) * backward", "Jeffreys' weights are exchanged",
         "test_exact.py::test_jeffreys_divergence_runs_from_the_forward_to_the_backward_kl"),
    ],
    "kernels.py": [
        ("(13, 15, 26, 6), (17, 29, 16, 24)", "(13, 15, 26, 6), (17, 29, 16, 23)", "a word turned by another number",
         "test_kernels.py::test_the_uniform_numbers_of_a_step_are_those_of_jax[7-shape1]"),
        ('return getattr(device, "platform", device) == "cpu"', "return True", "an accelerator gets the CPU's program",
         "test_accelerators.py::test_the_platform_is_that_of_the_default_device"),
        ("jnp.where(jnp.isfinite(top), top, 0)", "top", "log of an empty sum is nan",
         "test_kernels.py::test_the_logarithm_of_a_sum_survives_huge_logits_and_rows_without_any_mass"),
        ("point = uniform * ends[-1]", "point = uniform", "quantiles of masses that do not sum to 1",
         "test_kernels.py::test_frequencies_are_the_probabilities[7]"),
        ("row + (end <= point)", "row + (end < point)", "a row without mass is chosen",
         "test_kernels.py::test_the_smallest_uniform_draws_the_first_action_that_is_allowed[12]"),
        ("place += start + inside <= point", "place += start + inside < point", "an action without mass is chosen",
         "test_kernels.py::test_a_forbidden_action_is_never_drawn_even_at_the_ends[3]"),
    ],
    "metrics.py": [
        ("return _weighted(logp, logp - logq)", "return _weighted(logq, logq - logp)", "the KL is that of q from p",
         SCIPY),
        ("return _weighted(logp, -logp)", "return _weighted(logp, logp)", "the entropy has the wrong sign", SCIPY),
        ("jnp.where(jnp.isneginf(logp), 0, x)", "x", "0 log 0 is nan",
         "test_metrics.py::test_a_forbidden_action_adds_nothing_and_an_impossible_reference_gives_infinity"),
        ("return reward >= (low + high) / 2", "return reward > (low + high) / 2", "half-way does not count",
         "test_metrics.py::test_mass_near_the_peak_counts_the_upper_half_of_the_rewards"),
    ],
    "problems.py": [
        ("(((action - place[i]) / width[i]) ** 2)", "(((action - place[i]) / width[i]) ** 2 / 2)",
         "peaks are normal densities", "test_problems.py::test_peaks_are_the_papers_formula_added_up"),
        ("return self.token_totals(self.at(self.token_reward, context)) + self.at(self.bonus, context)",
         "return self.token_totals(self.at(self.token_reward, context))", "the table forgets the bonus",
         "test_problems.py::test_tables_are_sums_over_all_strings[4-1-None]"),
        ("reward - best) / beta)", "reward - best) * beta)", "the optimum multiplies by beta",
         "test_problems.py::test_regularised_optimum[R4-0.2-0.653-1.951]"),
        ("return jnp.cumsum(is_end, -1) - is_end == 0", "return jnp.cumsum(is_end, -1) == 0", "the end token is masked",
         "test_problems.py::test_responses_list_every_merged_string_once[4-3-3]"),
        ("return self.sample(self.at(self.data_logits, context), key, n)",
         "return self.sample(self.at(self.ref_logits, context), key, n)", "data are drawn from the reference",
         "test_problems.py::test_drawn_sequences_follow_the_table_and_avoid_forbidden_tokens[None]"),
        ("norm.logsf(place + 0.5, mode, spread)", "norm.logsf(place, mode, spread)", "lengths are rounded up",
         "test_problems.py::test_reference_lengths_are_a_rounded_normal_and_a_hazard_is_the_chance_to_end"),
    ],
    "policies.py": [
        ("softmax_table(ref, lead, logsumexp(ref + lead))", "softmax_table(ref, lead, jnp.zeros(()))",
         "the table is not normalised",
         "test_policies.py::test_log_ratios_of_tiny_probabilities_are_exact[tabular]"),
        ("logits = _allow(forward(params, read[:, :-1])", "logits = _allow(forward(params, read[:, 1:])",
         "log-probabilities are not shifted by one token",
         "test_policies.py::test_transformer_reads_only_the_tokens_before_and_its_prompt"),
        ("jnp.exp(logp) * (logp - jnp.where(jnp.isneginf(ref), 0, ref))",
         "jnp.exp(ref) * (jnp.where(jnp.isneginf(ref), 0, ref) - logp)", "the first fit minimises the other KL",
         "test_gaps.py::test_a_network_that_cannot_tell_contexts_apart_starts_at_the_geometric_mean_of_their_referenc"
         "es"),
    ],
    "methods.py": [
        ("where(self.on_policy > 0, 1.0, math.inf)", "where(self.on_policy > 0, math.inf, 1.0)",
         "offline data are drawn anew, on-policy data kept", KEYS),
    ],
    "proxy.py": [
        ("value[:, None] - value[None, :]", "value[None, :] - value[:, None]", "the reward model prefers losers",
         "test_gaps.py::test_a_reward_model_turns_wins_into_log_odds"),
    ],
    "probes.py": [
        ("metrics.kl(state.log_probs, state.ref_log_probs)", "metrics.kl(state.ref_log_probs, state.log_probs)",
         "the KL is the other one", EXACT_METRICS),
        ("metrics.kl(state.ref_log_probs, state.log_probs)", "metrics.kl(state.log_probs, state.ref_log_probs)",
         "the reverse KL is the other one", EXACT_METRICS),
        ("jax.nn.logsumexp(state.log_probs, axis=0) - math.log(state.log_probs.shape[0])",
         "jax.nn.logsumexp(state.log_probs, axis=0)", "a sum over contexts", EXACT_METRICS),
        ('"kl": own_gap.mean()', '"kl": -own_gap.mean()', "sampled KL of the wrong sign",
         "test_gaps.py::test_sampled_metrics_are_the_exact_ones_within_5_standard_errors"),
    ],
    "sharding.py": [
        ("token_reward=split(problem.token_reward)", "token_reward=put(problem.token_reward)",
         "every device holds all rewards", PLACED),
        ("data_logits=split(problem.data_logits)", "data_logits=split(problem.ref_logits)",
         "offline data come from the reference", PLACED),
    ],
    "store.py": [
        ("return cls(jax.process_index(), jax.process_count())", "return cls(0, jax.process_count())",
         "all joined processes are the first worker",
         "test_store.py::test_a_worker_among_joined_processes_has_their_number_and_alone_it_does_everything"),
    ],
    "sweep.py": [
        ("[place[id(tree)] for tree in trees]", "[0 for tree in trees]", "all runs of a tile are the first",
         "test_sweep.py::test_a_grid_gives_one_axis_for_each_name_and_matches_single_runs"),
    ],
    "engine/tables.py": [
        ("spread(slope)[0] - view.mass * sums[:, None]", "spread(slope)[0]", "logits move as log-probabilities do",
         "test_simulate.py::test_exact_dynamics_are_those_of_a_float64_loop_in_numpy[reinforce]"),
        ("jnp.where(jnp.abs(sums) <= BALANCED * sizes, 0, sums)", "sums", "what nobody drew moves by rounding",
         "test_simulate.py::test_adam_leaves_alone_what_nobody_drew_where_forces_cancel[dpo-0.0]"),
        ("found, jnp.abs(found) < 40", "found, jnp.isfinite(near)", "a normaliser from far away is trusted",
         "test_simulate.py::test_a_step_so_long_that_the_last_normaliser_is_of_no_use_is_taken_right"),
        ("return near + found, mass", "return near, mass", "the last normaliser is never renewed",
         "test_simulate.py::test_a_normaliser_is_that_of_its_step"),
        ("jnp.where(safe.reshape(safe.shape + (1,) * (new.ndim - safe.ndim)), old, new)", "new",
         "a context in distress moves the others",
         "test_simulate.py::test_a_context_whose_normaliser_is_found_anew_leaves_the_others_alone"),
        ("uniform_at(key, jnp.asarray(step), shape)", "uniform_at(key, jnp.asarray(0), shape)",
         "every collection has the same numbers", KEYS),
        ("weight = 1 / method.num_responses", "weight = 1.0", "1 / N is missing", FORCES),
    ],
    "engine/learners.py": [
        ("jax.random.uniform(key, (n, 1)))(mix_key) < method.on_policy",
         "jax.random.uniform(key, (n, 1)))(mix_key) > method.on_policy",
         "the on-policy share is the offline one", MIXED),
        ("jnp.where(mine, *scores)", "jnp.where(mine, *scores[::-1])", "old log-probabilities of the other source",
         MIXED),
    ],
    "engine/state.py": [
        ("bool(minus_inf(logits).any())", "False", "what is forbidden is overlooked",
         "test_simulate.py::test_only_a_reference_that_forbids_something_is_looked_through_for_it[exact-reinforce]"),
    ],
    "engine/collection.py": [
        ("reward + temperature * drawn.noise", "reward + drawn.noise", "label noise of one temperature",
         "test_simulate.py::test_label_noise_gives_bradley_terry_preferences"),
        ("jax.random.fold_in(jax.random.fold_in(key, step), 1)", "jax.random.fold_in(key, step)",
         "label noise from the key of the actions",
         "test_gaps.py::test_label_noise_does_not_depend_on_the_action_that_was_drawn"),
        ("memory * stats + (1 - memory) * seen", "(1 - memory) * stats + memory * seen",
         "the memory of the baseline is reversed",
         "test_gaps.py::test_the_running_baseline_keeps_its_share_and_corrects_for_its_start"),
        ("jnp.full(logp.shape[:1], 1 / logp.shape[0])", "jnp.ones(logp.shape[:1])", "gradients of contexts are added",
         "test_gaps.py::test_two_contexts_that_are_one_twice_teach_a_shared_table_what_one_does"),
        ("weighted_mean(weight, score) if method.threshold is None", "score.mean(-1) if method.threshold is None",
         "the exact threshold is a mean over the list",
         "test_gaps.py::test_the_threshold_of_exact_data_is_the_expected_score"),
    ],
    "engine/steps.py": [
        (".sum(-1) + groups.reward).sum()", ".sum(-1)).sum()", "a reward that is no number passes for healthy",
         "test_simulate.py::test_a_run_whose_reward_is_no_number_is_reported_as_one_that_diverged[sampled-dpo]"),
        ("jnp.abs(slope) + jnp.where(groups.mask, logp, 0)", "jnp.abs(slope)",
         "a policy that is nan passes for healthy",
         "test_sweep.py::test_diverging_runs_are_reported_in_one_line_and_the_others_survive"),
        ("(step % (prompts // minibatch)) * minibatch", "(step % (prompts // minibatch))", "minibatches overlap",
         "test_gaps.py::test_minibatches_are_the_parts_of_a_collection"),
        ("jnp.where((first_bad < 0) | ~run.plan.freeze, new, old)", "new", "a run that diverged goes on",
         "test_simulate.py::test_a_run_whose_loss_is_infinite_for_a_while_is_frozen_or_kept_going_or_raised"),
        ("run.chance(step + plan.period)", "run.chance(step)", "the next collection repeats this one's numbers",
         "test_simulate.py::test_what_the_next_collection_is_drawn_with_is_known_one_ahead_and_the_same_in_every_run"),
    ],
    "engine/loop.py": [
        ('"force": -slope}', '"force": slope}', "probes see forces that point down", FORCES),
        ('if "loss" in asked', 'if "loss" in ()', "an infinite loss passes for healthy",
         "test_simulate.py::test_a_run_whose_loss_is_infinite_for_a_while_is_frozen_or_kept_going_or_raised"),
    ],
    "engine/few.py": [
        ("(jnp.abs(total(slope)) <= BALANCED * total(jnp.abs(slope))).all()", "jnp.asarray(True)",
         "forces that do not cancel are taken to", FEW),
        ("more = lambda state: (state[0] < end) & state[2] & near(state[1].near)",
         "more = lambda state: (state[0] < end) & state[2]", "masses are never renewed", FAR),
        ("keep(-run.rate(step) * slope, 0)", "-run.rate(step) * slope", "a step not taken moves the logits", FEW),
    ],
}
# fmt: on

MUTANTS = [Mutant(file, *row) for file, rows in ROWS.items() for row in rows]

"""Any objective in TRL's own trainers: two mixins; data, generation with vLLM, tools and logs stay TRL's.

    class MyTrainer(ObjectiveDPO, trl.DPOTrainer): ...

    MyTrainer(model, args=trl.DPOConfig("out"), train_dataset=pairs, objective="ipo", hyper={"beta": 0.1}).train()

`ObjectiveGRPO` does the same for `trl.GRPOTrainer`. TRL computes its own loss too, for its logs, and drops it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from bandit_pft.errors import ConfigError, shown
from bandit_pft.groups import Group
from bandit_pft.hf.bridge import Batch, checked, needs, objective_loss, on_cpu, prepared, width
from bandit_pft.objectives import Objective, batch_force

# What only says how TRL makes its own loss.
DPO_LOSS = ("loss_type", "loss_weights", "ld_alpha", "f_divergence_type", "label_smoothing", "use_weighting")
GRPO_LOSS = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards",
    "multi_objective_aggregation", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
    "off_policy_mask_threshold",
)  # fmt: skip
# Stands for a trainer of TRL's, which the reader's own class names beside the mixin.
Trainer: Any = object


class ObjectiveDPO(Trainer):
    """For `trl.DPOTrainer`: the objective is given pairs, chosen before rejected, and no rewards.

    What an objective takes a mean over is a micro-batch, as in TRL's own losses. Logged rewards are
    `beta * (log pi - log pi_ref)` with the objective's `beta`, 1 where it has none.

    Args:
        objective: a name, an `Objective`, or your own function of `(logp, group, *, ...)`.
        hyper: its hyper-parameters; the others keep their defaults. All other arguments are TRL's.

    Raises:
        ConfigError: an objective that looks at rewards, precomputed reference log-probabilities where it looks at the
            reference, or options of TRL's own loss.
    """

    def __init__(self, *args: Any, objective: Any, hyper: Mapping[str, float] | None = None, **kwargs: Any):
        self.objective, self.hyper = checked(objective, hyper)
        self.needs = needs(self.objective, self.hyper)
        if self.needs.reward:
            raise ConfigError(
                f"{self.objective.name} looks at rewards, which DPOTrainer does not read: use PFTTrainer, with "
                "score_chosen and score_rejected"
            )
        super().__init__(*args, **kwargs)
        refuse_options(self.args, DPO_LOSS, self.objective)
        if self.needs.reference and self.precompute_ref_logps:
            raise ConfigError(
                "precompute_ref_log_probs=True keeps one sum for each response, and an objective is given its tokens: "
                "set it to False, or use PFTTrainer, which precomputes tokens"
            )
        self.beta = self.hyper.get("beta", 1.0)

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        said: list[Any] = []
        hooks = [one.register_forward_hook(lambda _module, _inputs, output: said.append(output))
                 for one in (self.model, self.ref_model) if one is not None]  # fmt: skip
        try:
            theirs = super()._compute_loss(model, inputs, return_outputs)
        finally:
            for hook in hooks:
                hook.remove()
        mask = inputs["completion_mask"][:, 1:]
        t = mask.shape[1]
        # Prompt tuning puts tokens in front. All chosen responses come first, then all rejected.
        dense = lambda x: _padded(x[:, -t:], width(t)).unflatten(0, (2, -1)).transpose(0, 1)
        logp = dense(said[0].log_probs)
        ref = _array(dense(said[1].log_probs)) if self.needs.reference else np.zeros(logp.shape, np.float32)
        score = np.tile(np.array([1, 0], np.float32), (len(logp), 1))
        # Who wrote the responses is not known; the reference stands in.
        batch = Batch(_array(dense(mask)) > 0, np.zeros_like(score), score, ref, ref)
        groups = prepared(batch, {}, _array(logp) if self.needs.distance else None)
        loss = objective_loss(self.objective, logp, groups, self.hyper)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * said[0].aux_loss
        return (loss, theirs[1]) if return_outputs else loss


class ObjectiveGRPO(Trainer):
    """For `trl.GRPOTrainer`: the objective is given the group's rewards, weighted and summed as TRL does.

    TRL splits a group over micro-batches, so every response comes alone, with the rewards of its whole group. The
    gradient is that of whole groups; the logged loss may differ from theirs by what does not depend on the learner.
    Where a hyper-parameter `max_length` is 0 it is `max_completion_length`, as in TRL. Set `GRPOConfig(beta=...)` to
    anything but 0 where the objective looks at the reference: TRL keeps one only then.

    Args:
        objective: a name, an `Objective`, or your own function of `(logp, group, *, ...)`.
        hyper: its hyper-parameters; the others keep their defaults. All other arguments are TRL's.

    Raises:
        ConfigError: an objective that compares log-probabilities of different responses or looks at running
            statistics, a `beta` that is 0 or is not where it should be, or options of TRL's own loss.
    """

    def __init__(self, *args: Any, objective: Any, hyper: Mapping[str, float] | None = None, **kwargs: Any):
        self.objective, self.hyper = checked(objective, hyper)
        if not splits(self.objective, tuple(sorted(self.hyper.items()))):
            raise ConfigError(
                f"{self.objective.name} needs whole groups or statistics of the whole batch, and GRPOTrainer splits "
                "groups over micro-batches: use PFTTrainer with reward_funcs"
            )
        super().__init__(*args, **kwargs)
        refuse_options(self.args, GRPO_LOSS, self.objective)
        reference = needs(self.objective, self.hyper).reference
        if reference and self.beta == 0:
            raise ConfigError(
                f"{self.objective.name} looks at the reference, which GRPOTrainer has only where beta is not 0: set "
                "GRPOConfig(beta=1.0); the objective replaces TRL's penalty"
            )
        if self.beta != 0 and not reference:
            raise ConfigError(
                f"beta={self.beta:g} is TRL's own KL penalty, which the objective replaces: leave it 0, and use an "
                "objective with a penalty, such as grpo with hyper={'kl_coef': ...}"
            )
        if self.hyper.get("max_length") == 0:
            self.hyper["max_length"] = float(self.max_completion_length or 0)

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        found = super()._calculate_rewards(*args)
        self._rewards = (found * self.reward_weights.to(found.device)).nansum(1)
        self._rewards[found.isnan().all(1)] = torch.nan
        return found

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        n = self.num_generations if self.model.training else self.num_generations_eval
        number = torch.arange(len(inputs), device=self._rewards.device) + len(inputs) * self.accelerator.process_index
        return {**out, "group_rewards": self._rewards.view(-1, n)[number // n], "member": number % n}

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self._seen = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._seen

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        super()._compute_loss(model, inputs)
        logp, _, aux_loss = self._seen
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        reward, member = _array(inputs["group_rewards"]), inputs["member"]
        old, ref = (inputs.get(f"{name}_per_token_logps") for name in ("old", "ref"))
        training = self.model.training
        steps = self.current_gradient_accumulation_steps if training else 1
        # TRL counts the tokens of all processes and of everything that was generated at once.
        tokens = inputs["num_items_in_batch"].item() / self.accelerator.num_processes
        tokens *= steps / self.args.steps_per_generation if training else 1
        at = lambda x: _placed(x, member, reward.shape)
        groups = alone(
            reward, _array(at(mask)) > 0, _array(at(logp.detach() if ref is None else ref)),
            _array(at(logp.detach() if old is None else old)), 1 / (len(reward) * steps), 1 / max(tokens, 1.0),
        )  # fmt: skip
        if "importance_sampling_ratio" in inputs:
            # vLLM's log-probabilities differ from the learner's: TRL's weights, on the force of every token.
            logp = logp.detach() + inputs["importance_sampling_ratio"] * (logp - logp.detach())
        loss = objective_loss(self.objective, at(logp), groups, self.hyper)
        return loss + self.router_aux_loss_coef * aux_loss / steps if self.aux_loss_enabled else loss


def refuse_options(args: Any, names: Iterable[str], objective: Objective) -> None:
    """Refuse options of TRL's own loss that are not at their defaults: they would change nothing."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(args)}
    for name in names:
        if getattr(args, name, None) != defaults.get(name):
            raise ConfigError(
                f"{name}={shown(getattr(args, name))} belongs to TRL's own loss, which {objective.name} replaces: "
                "leave it out, and set the objective and its hyper-parameters instead"
            )


def alone(
    reward: np.ndarray, mask: np.ndarray, ref: np.ndarray, old: np.ndarray, share: float, token_share: float
) -> Group:
    """R responses, each in a group of its own that has the statistics of the whole group.

    Args:
        reward: [R, N] of the group that the response is from; nan is not in the group.
        mask, ref, old: [R, N, T], empty for the other members.
        share: of one response in the mean over responses. token_share: of one token in the mean over tokens.
    """
    known = np.broadcast_to(~np.isnan(reward)[..., None], mask.shape)
    whole = prepared(Batch(known, np.nan_to_num(reward), np.nan_to_num(reward), ref, old), {})
    none = np.zeros_like(whole.draws)
    return whole._replace(
        mask=mask & known, share=share * whole.draws, token_share=none + np.float32(token_share),
        pair_share=none, kept_share=none,
    )  # fmt: skip


@functools.cache
def splits(objective: Objective, hyper: tuple[tuple[str, float], ...]) -> bool:
    """Whether the forces on the responses of a group are those on each of them `alone`, measured."""
    rng = np.random.default_rng(0)
    b, n, t = 3, 4, 2
    logp, ref, old = -rng.uniform(0.1, 2, (3, b, n, t)).astype(np.float32)
    reward = rng.normal(size=(b, n)).astype(np.float32)
    whole = prepared(Batch(np.ones((b, n, t), bool), reward, reward, ref, old), {})
    # What `alone` does not know.
    whole = whole._replace(**{x: getattr(whole, x) + 1 for x in ("baseline", "scale", "kl", "mean_gain")})
    each = lambda x: np.repeat(x, n, axis=0)
    own = np.tile(np.eye(n, dtype=bool)[..., None], (b, 1, t))
    hide = lambda x: np.where(own, each(x), 0)
    parts = alone(each(reward), own, hide(ref), hide(old), 1 / (b * n), 1 / (b * n * t))
    with on_cpu():
        force = lambda x, groups: np.asarray(batch_force(objective, jnp.asarray(x), groups, **dict(hyper)))
        want, got = force(logp, whole), force(hide(logp), parts)
    return np.allclose(got.reshape(b, n, n, t).sum(1), want, rtol=0, atol=1e-5 * np.abs(want).max())


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _padded(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, size - x.shape[1]))


def _placed(x: torch.Tensor, member: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[R, T] in the responses' own places among [R, N, T], wide enough for few compiled programs."""
    x = _padded(x, width(x.shape[1]))
    return x.new_zeros(*shape, x.shape[1]).index_put((torch.arange(len(x), device=x.device), member), x)

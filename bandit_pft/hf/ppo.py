"""PPO with a learnt value function, as language models are trained with it.

The objective is still `ppo_clip`. What a value head adds is an advantage for every token (generalised advantage
estimation), so every token becomes a response of its own, whose reward is its advantage; the objective's running mean
and deviation are those of the batch, which is PPO's whitening. The value head sits on the learner's last hidden state
and is fitted to the returns beside it; it is saved with the model, and loading the model for other uses ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bandit_pft.errors import ConfigError, check_number
from bandit_pft.groups import Group
from bandit_pft.hf.bridge import Batch, objective_loss, prepared, width
from bandit_pft.hf.data import Part, spread
from bandit_pft.hf.scoring import core_of, evaluating, token_logps_and_values
from bandit_pft.hf.trainer import PFTConfig, PFTTrainer, Window


def advantages(reward: np.ndarray, value: np.ndarray, mask: np.ndarray, discount: float, decay: float) -> np.ndarray:
    """Generalised advantage estimates of every token, [..., T].

    A_t = sum over k >= 0 of (discount * decay)^k delta_{t+k},   delta_t = r_t + discount * V_{t+1} - V_t

    Args:
        reward: of each token. value: expected before each token. mask: the tokens that exist, a prefix; V is 0 past it.
        discount: gamma. decay: lambda; 1 is the return less the value, 0 one step.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation".
    """
    reward, value = np.where(mask, reward, 0), np.where(mask, value, 0)
    following = np.concatenate([value[..., 1:], np.zeros_like(value[..., :1])], -1)
    delta = reward + discount * following - value
    out, later = np.zeros_like(delta), np.zeros_like(delta[..., 0])
    for t in reversed(range(delta.shape[-1])):
        later = delta[..., t] + discount * decay * later
        out[..., t] = later
    return np.where(mask, out, 0)


@dataclass
class PPOConfig(PFTConfig):
    """`PFTConfig` for `PPOTrainer`.

    Attributes:
        kl_coef: of the penalty log pi_old - log pi_ref that is taken from the reward of every token.
        discount, decay: gamma and lambda of the advantages.
        value_coef: weight of the value's squared error, half of it, mean over all tokens.
        value_clip: a value that has moved further than this since the responses were drawn no longer pays.
    """

    kl_coef: float = field(default=0.05)
    discount: float = field(default=1.0)
    decay: float = field(default=0.95)
    value_coef: float = field(default=0.1)
    value_clip: float = field(default=0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("kl_coef", self.kl_coef, at_least=0)
        check_number("discount", self.discount, at_least=0, at_most=1)
        check_number("decay", self.decay, at_least=0, at_most=1)
        check_number("value_coef", self.value_coef, at_least=0)
        check_number("value_clip", self.value_clip, above=0)


class PPOTrainer(PFTTrainer):
    """`PFTTrainer` with a value head: `PPOTrainer(model, args=PPOConfig(...), train_dataset=..., reward_funcs=...)`.

    Args:
        model: its head must be all that is between the last hidden state and the logits.
        objective: any of single responses and their rewards; "ppo_clip" by default.

    Raises:
        ConfigError: as `PFTTrainer`, no reward_funcs, or a model whose logits are more than its head's.
    """

    args: PPOConfig

    def __init__(self, model: Any, objective: Any = "ppo_clip", *, args: PPOConfig | None = None, **options: Any):
        args = PPOConfig("trainer_output") if args is None else args
        if not isinstance(args, PPOConfig):
            raise TypeError(f"args is {type(args).__name__}; it must be a PPOConfig")
        if options.get("reward_funcs") is None:
            raise ConfigError(
                "reward_funcs is None; PPO learns from responses of the learner's own: say what they are worth"
            )
        super().__init__(model, objective, args=args, **options)
        if self.needs.score or self.objective.family == "preference":
            raise ConfigError(f"{self.objective.name} compares responses; PPO's tokens have advantages: use ppo_clip")

    def _dress(self, model: Any) -> None:
        core = core_of(model)
        if not core._head_alone:
            raise ConfigError(
                f"{type(core).__name__} changes its logits after its head, so a value head cannot share it"
            )
        weight = core.get_output_embeddings().weight
        core.value_head = torch.nn.Linear(weight.shape[1], 1, dtype=weight.dtype, device=weight.device)
        # The first advantages are rewards.
        torch.nn.init.zeros_(core.value_head.weight)
        torch.nn.init.zeros_(core.value_head.bias)

    def _needs_reference(self) -> bool:
        return super()._needs_reference() or self.args.kl_coef > 0

    @torch.no_grad()
    def _as_drawn(self, part: Part) -> Part:
        model: Any = self.model_wrapped
        with evaluating(self.accelerator.unwrap_model(model)), self.accelerator.autocast():
            found = token_logps_and_values(model, part.rows, self.args.temperature)
        shape, mask = part.batch.mask.shape, part.batch.mask
        logp, value = (spread(part, x, shape).cpu().numpy() for x in found if x is not None)
        reward = -self.args.kl_coef * (logp - part.batch.ref_logp)
        last = mask & ~np.concatenate([mask[..., 1:], np.zeros_like(mask[..., :1])], -1)
        reward = np.where(last, reward + part.batch.reward[..., None], reward)
        gain = advantages(reward, value, mask, self.args.discount, self.args.decay).astype(np.float32)
        return part._replace(batch=part.batch._replace(old_logp=logp), extra=(gain, value, gain + value))

    def _judged(self, part: Part) -> Batch:
        wide = [(0, 0), (0, 0), (0, width(part.batch.mask.shape[2]) - part.batch.mask.shape[2])]
        each = lambda x: np.pad(x, wide).reshape(-1, 1, 1)
        gain, batch = each(part.extra[0])[..., 0], part.batch
        return Batch(each(batch.mask), gain, gain, each(batch.ref_logp), each(batch.old_logp))

    def _prepared(self, whole: Batch, logps: list[Any], size: int) -> Group:
        gain = whole.reward[whole.mask[..., 0]].astype(np.float64)
        numbers = self._numbers() | {"baseline": gain.mean() if gain.size else 0.0, "scale": gain.std() + 1e-8}
        return prepared(whole, numbers)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of all tokens of one part, and the value's squared error."""
        window: Window = inputs["window"]
        part, groups, args = window.part, window.groups, self.args
        found = token_logps_and_values(model, part.rows, args.temperature)
        b, n, t = part.batch.mask.shape
        logp, value = (spread(part, x, (b, n, width(t))) for x in found if x is not None)
        value = value[..., :t]
        # One group for each token; groups may be padded in every dimension.
        extra = [
            size
            for now, size in zip((1, 1, logp.numel()), groups.mask.shape[::-1], strict=True)
            for size in (0, size - now)
        ]
        as_groups = torch.nn.functional.pad(logp.reshape(-1, 1, 1), extra)
        loss = objective_loss(self.objective, as_groups, groups, self.hyper)
        mask, old, target = (torch.as_tensor(x, device=value.device) for x in (part.batch.mask, *part.extra[1:]))
        near = old + (value - old).clamp(-args.value_clip, args.value_clip)
        error = torch.maximum((value - target) ** 2, (near - target) ** 2)
        error = 0.5 * float(groups.token_share[0]) * torch.where(mask, error, 0.0).sum()
        mode = "train" if model.training else "eval"
        log_ratio = (part.batch.old_logp - part.batch.ref_logp)[part.batch.mask]
        squares = torch.where(mask, (value.detach() - target) ** 2, 0.0)
        found = {"kl": (log_ratio.sum(), part.batch.mask.any(-1).sum()), "value_error": (squares.sum(), mask.sum())}
        self._note(mode, {name: (float(total), float(count)) for name, (total, count) in found.items()})
        return self._returned(loss + args.value_coef * error, model, return_outputs)

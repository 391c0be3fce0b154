"""Training runs next to TRL's own trainers: the same data, the same seed, the same weights afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import trl
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from bandit_pft.errors import ConfigError
from bandit_pft.hf import PFTConfig, PFTTrainer
from bandit_pft.hf.in_trl import ObjectiveDPO, ObjectiveGRPO

COMMON = {
    "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "seed": 3,
    "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 0.01, "lr_scheduler_type": "constant",
    "optim": "sgd", "max_grad_norm": 0.0, "logging_steps": 1, "gradient_checkpointing": False,
}  # fmt: skip
Weights = dict[str, torch.Tensor]


class InDPO(ObjectiveDPO, trl.DPOTrainer):
    pass


class InGRPO(ObjectiveGRPO, trl.GRPOTrainer):
    pass


def weights(model: torch.nn.Module) -> Weights:
    return {name: x.detach().clone() for name, x in model.named_parameters()}


START = weights(tiny.model())


def other() -> Any:
    """A reference that is not the learner."""
    return tiny.model(seed=1)


def trained(
    kind: Any, config: Any, folder: Path, options: dict[str, Any] | None = None, **more: Any
) -> tuple[Weights, list[dict[str, Any]]]:
    """The weights after training, and the log."""
    args = config(output_dir=str(folder), **{**COMMON, **(options or {})})
    more = {"train_dataset": tiny.pairs(), "processing_class": tiny.tokenizer(), "model": tiny.model(), **more}
    trainer = kind(args=args, **more)
    trainer.train()
    return weights(trainer.model), [line for line in trainer.state.log_history if "loss" in line]


def assert_same(got: Weights, want: Weights, start: Weights = START) -> None:
    """To 1e-5 of the largest update."""
    largest = max(float((want[name] - x).abs().max()) for name, x in start.items())
    assert largest > 1e-2
    off = max(float((got[name] - want[name]).abs().max()) for name in start)
    assert off < 1e-5 * largest + 1e-7, f"{off / largest:.1e} of the largest update, {largest:.2g}"


def assert_logged(got: list[dict[str, Any]], want: list[dict[str, Any]], but: tuple[str, ...] = ()) -> None:
    """Every loss, gradient norm and mean that both log, `but` those whose names begin so."""
    assert len(got) == len(want) > 0
    for mine, theirs in zip(got, want, strict=True):
        names = [name for name in mine if name in theirs and not name.endswith("time") and not name.startswith(but)]
        assert "grad_norm" in names
        for name in names:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4, abs=2e-5), name


# --- objectives in TRL's trainers ----------------------------------------------------------------------------------
IN_DPO = [
    ("dpo", {"beta": 0.5}, {"beta": 0.5}, 0.03),
    ("ipo_mean", {"beta": 0.5}, {"loss_type": "ipo", "beta": 0.5}, 0.03),
    ("sppo", {"beta": 0.5}, {"loss_type": "sppo_hard", "beta": 0.5}, 3e-3),
]


@pytest.mark.parametrize(("name", "hyper", "options", "rate"), IN_DPO)
def test_an_objective_in_the_dpo_trainer_trains_as_its_own_loss(
    tmp_path: Path, name: str, hyper: dict[str, float], options: dict[str, Any], rate: float
) -> None:
    two = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "learning_rate": rate}
    want, theirs = trained(trl.DPOTrainer, trl.DPOConfig, tmp_path, two | options, ref_model=other())
    got, mine = trained(InDPO, trl.DPOConfig, tmp_path, two, ref_model=other(), objective=name, hyper=hyper)
    assert_same(got, want)
    assert_logged(mine, theirs)
    assert mine[0].keys() == theirs[0].keys()


GROUPS = {"num_generations": 4, "max_completion_length": 8, "per_device_train_batch_size": 4, "temperature": 1.3}
# Micro-batches that hold parts of groups, and responses that are older than the learner.
SPLIT = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
IN_GRPO = [
    ("grpo", {}, {"loss_type": "grpo"}),
    ("grpo", {"kl_coef": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
    ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    ("gspo", {"clip_low": 0.1, "clip_high": 0.2},
     {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.2}),
    ("cispo", {"max_ratio": 1.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
]  # fmt: skip


def shorter(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def sometimes(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Nothing to say of some completions."""
    return [None if ids[0] % 3 == 0 else float(ids[0] % 5) for ids in completion_ids]


def grouped(kind: Any, folder: Path, options: dict[str, Any], funcs: Any, **more: Any) -> Any:
    # TRL loads its reference by the model's name.
    model = more.pop("model", None) or tiny.model()
    model.save_pretrained(folder / "start")
    model.config._name_or_path = str(folder / "start")
    more = {"model": model, "train_dataset": tiny.prompts(), "reward_funcs": funcs, **more}
    return trained(kind, trl.GRPOConfig, folder, {**GROUPS, **options}, **more)


@pytest.mark.parametrize(
    ("name", "hyper", "options", "split"), [(*IN_GRPO[0], {}), *((*case, SPLIT) for case in IN_GRPO)]
)
def test_an_objective_in_the_grpo_trainer_trains_as_its_own_loss(
    tmp_path: Path, name: str, hyper: dict[str, float], options: dict[str, Any], split: dict[str, Any]
) -> None:
    split = {**split, "learning_rate": 0.3, "use_bias_correction_kl": False}
    funcs = [shorter, sometimes]
    weighed = {"reward_weights": [0.5, 2.0]}
    own = {"beta": 1.0} if "kl_coef" in hyper else {}
    want, theirs = grouped(trl.GRPOTrainer, tmp_path, split | weighed | options, funcs)
    got, mine = grouped(InGRPO, tmp_path, split | weighed | own, funcs, objective=name, hyper=hyper)
    assert_same(got, want)
    # TRL counts by its own clip bounds. A ratio of whole responses leaves a number in the loss.
    assert_logged(mine, theirs, but=("clip", "cispo", *(["loss"] if name == "gspo" else [])))


def test_the_weights_of_vllms_log_probabilities_scale_the_force_of_every_token(tmp_path: Path) -> None:
    forces = []
    for kind, more in [(trl.GRPOTrainer, {}), (InGRPO, {"objective": "dapo", "hyper": {"clip_high": 0.2}})]:
        args = trl.GRPOConfig(str(tmp_path), **{**COMMON, **GROUPS, "disable_dropout": True})
        trainer = kind(tiny.model(), [shorter], args, tiny.prompts(), processing_class=tiny.tokenizer(), **more)
        trainer.model.train()
        torch.manual_seed(0)
        inputs = trainer._generate_and_score_completions([tiny.prompts()[0]] * 4)
        trainer.use_vllm, trainer.current_gradient_accumulation_steps = True, 1
        inputs["importance_sampling_ratio"] = torch.rand(inputs["completion_ids"].shape)
        trainer.compute_loss(trainer.model, inputs).backward()
        forces.append(trainer.model.transformer.wte.weight.grad)
    assert float(forces[0].abs().max()) > 1e-3
    torch.testing.assert_close(forces[1], forces[0], rtol=1e-5, atol=1e-6)


def likelier(logp: Any, group: Any, *, rate: float = 1.0) -> Any:
    """Pull every response by its advantage among its group, or the chosen one.

    L = -rate mean A log pi(y)
    """
    return -rate * group.mean((group.score - group.expect(group.score)) * group.average(logp))


def duel(logp: Any, group: Any) -> Any:
    """Raise the better of two.

    L = -mean (log pi(w) - log pi(l))
    """
    return -group.pair_mean(group.total(logp)[:, None] - group.total(logp)[None, :])


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_researchers_own_function_trains_in_trls_trainers(tmp_path: Path, kind: str) -> None:
    runs = []
    for rate in (0.5, 1.0):
        more = {"objective": likelier, "hyper": {"rate": rate}}
        if kind == "dpo":
            runs.append(trained(InDPO, trl.DPOConfig, tmp_path, {"max_steps": 1}, ref_model=other(), **more)[0])
        else:
            runs.append(grouped(InGRPO, tmp_path, {"max_steps": 1}, [shorter], **more)[0])
    half, whole = ({name: x[name] - START[name] for name in START} for x in runs)
    assert max(float(x.abs().max()) for x in whole.values()) > 1e-3
    for name in START:
        torch.testing.assert_close(2 * half[name], whole[name], rtol=0, atol=1e-6)


REFUSED = [
    ("dpo", "rwr", {}, {}, "looks at rewards"),
    ("dpo", "ipo", {}, {"loss_type": ["ipo"]}, "loss_type=.*TRL's own loss"),
    ("dpo", "dpo", {}, {"precompute_ref_log_probs": True}, "one sum for each response"),
    ("dpo", "dpo", {"gamma": 1.0}, {}, "no 'gamma'"),
    ("dpo", "reverse_kl", {}, {}, "every response there is"),
    ("grpo", "dpo", {}, {}, "PFTTrainer with reward_funcs"),
    ("grpo", duel, {}, {}, "PFTTrainer with reward_funcs"),
    ("grpo", "best_of_n", {}, {}, "PFTTrainer with reward_funcs"),
    ("grpo", "ppo_clip", {}, {}, "statistics of the whole batch"),
    ("grpo", "grpo", {"kl_coef": 0.1}, {}, r"GRPOConfig\(beta=1.0\)"),
    ("grpo", "grpo", {}, {"beta": 0.1}, "TRL's own KL penalty"),
    ("grpo", "dr_grpo", {}, {"scale_rewards": "none"}, "scale_rewards='none' belongs to TRL"),
]


@pytest.mark.parametrize(("kind", "objective", "hyper", "options", "said"), REFUSED)
def test_what_a_trainer_of_trls_cannot_give_an_objective_is_refused(
    tmp_path: Path, kind: str, objective: Any, hyper: dict[str, float], options: dict[str, Any], said: str
) -> None:
    more = {"objective": objective, "hyper": hyper}
    on_pairs = lambda: trained(InDPO, trl.DPOConfig, tmp_path, options, ref_model=other(), **more)
    online = lambda: grouped(InGRPO, tmp_path, options, [shorter], **more)
    with pytest.raises(ConfigError, match=said):
        (on_pairs if kind == "dpo" else online)()


# --- PFTTrainer next to TRL's trainers -----------------------------------------------------------------------------
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-2}
SAME = [
    ("dpo", {"beta": 0.5}, {"beta": 0.5}, {}),
    ("dpo", {"beta": 0.5}, {"beta": 0.5}, ADAM),
    ("ipo_mean", {"beta": 0.5}, {"beta": 0.5, "loss_type": "ipo"}, {}),
    ("hinge", {"beta": 0.5}, {"beta": 0.5, "loss_type": "hinge"}, {}),
    ("robust_dpo", {"beta": 0.5, "label_smoothing": 0.1},
     {"beta": 0.5, "label_smoothing": 0.1, "loss_type": "robust"}, {}),
    ("sppo", {"beta": 0.5}, {"beta": 0.5, "loss_type": "sppo_hard"}, {"learning_rate": 3e-3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hyper", "options", "both"), SAME)
def test_training_on_pairs_is_that_of_the_dpo_trainer(
    tmp_path: Path, name: str, hyper: dict[str, float], options: dict[str, Any], both: dict[str, Any]
) -> None:
    both = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.03, **both}
    want, theirs = trained(trl.DPOTrainer, trl.DPOConfig, tmp_path, both | options, ref_model=other())
    got, mine = trained(PFTTrainer, PFTConfig, tmp_path, both, ref_model=other(), objective=name, hyper=hyper)
    assert_logged(mine[:1], theirs[:1])
    assert {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies"} <= set(mine[0]) & set(theirs[0])
    assert_logged(mine, theirs)
    assert_same(got, want)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_learner_that_is_the_reference_has_no_log_ratio_and_a_loss_of_log_2(tmp_path: Path, kind: str) -> None:
    _, logs = trained(PFTTrainer, PFTConfig, tmp_path, {"max_steps": 1}, model=tiny.model(kind), objective="dpo")
    assert logs[0]["rewards/margins"] == logs[0]["rewards/chosen"] == 0
    assert logs[0]["loss"] == float(np.float32(np.log(2)))


ROWS = tiny.pairs()
WITHOUT_REFERENCE = [
    ("simpo", {"beta": 2.0, "margin": 1.0}, CPOTrainer, CPOConfig,
     {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    ("cpo", {"beta": 0.3, "sft_coef": 0.7}, CPOTrainer, CPOConfig, {"beta": 0.3, "cpo_alpha": 0.7}),
]  # fmt: skip
# ORPOTrainer imitates the prompts as well.


@pytest.mark.parametrize(("name", "hyper", "kind", "config", "options"), WITHOUT_REFERENCE)
def test_training_without_a_reference_is_that_of_its_trainer_for_one_pair_at_a_time(
    tmp_path: Path, name: str, hyper: dict[str, float], kind: Any, config: Any, options: dict[str, Any]
) -> None:
    # TRL's imitation is the mean over the tokens of a batch, ours over those of each response.
    both = {"per_device_train_batch_size": 1, "learning_rate": 0.03}
    more = {"max_length": 64, "remove_unused_columns": False, "disable_dropout": True}
    want, theirs = trained(kind, config, tmp_path, both | more | options)
    got, mine = trained(PFTTrainer, PFTConfig, tmp_path, both, objective=name, hyper=hyper)
    assert_logged(mine, theirs, but=("rewards", "logps"))
    assert_same(got, want)


def test_imitation_is_that_of_the_sft_trainer_with_its_rate_times_the_mean_length(tmp_path: Path) -> None:
    # TRL takes the mean over the tokens of a batch, ours over its responses.
    lengths = (1, 2, 5, 9)
    rows = [{"prompt": "a b", "completion": " c" * n} for n in lengths]
    data = {"train_dataset": tiny.datasets.Dataset.from_list(rows)}
    longer = {"learning_rate": 0.01 * (np.mean(lengths) + 1)}
    model = tiny.model()
    disable_dropout_in_model(model)
    want, _ = trained(trl.SFTTrainer, trl.SFTConfig, tmp_path, longer, model=model, **data)
    got, _ = trained(PFTTrainer, PFTConfig, tmp_path, objective="sft", **data)
    assert_same(got, want)


def test_the_first_step_on_labels_is_that_of_the_kto_trainer(tmp_path: Path) -> None:
    # The learner is the reference yet: later, TRL's KL term is that of mismatched prompts.
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 == 0} for i, row in enumerate(ROWS)]
    one = {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1.0}
    data = {"train_dataset": tiny.datasets.Dataset.from_list(rows), "ref_model": tiny.model()}
    hyper = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    want, theirs = trained(trl.KTOTrainer, trl.KTOConfig, tmp_path, {**one, **hyper, "disable_dropout": True}, **data)
    got, mine = trained(PFTTrainer, PFTConfig, tmp_path, one, objective="kto", hyper=hyper, **data)
    assert_logged(mine, theirs, but=("kl", "num", "entropy"))
    assert_same(got, want)


PROMPTS = tiny.prompts(4)
ONLINE = [
    ("grpo", {"kl_coef": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
    ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("dr_grpo", {"max_length": 8.0}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
]


def written(prompt_ids: list[int], number: int) -> list[list[int]]:
    """Some responses to a prompt, always the same; they end, or are cut at 8 tokens."""
    rng = np.random.default_rng(prompt_ids)
    lengths = rng.integers(1, 12, number)
    return [[*rng.integers(4, tiny.VOCABULARY, min(n, 8)).tolist(), *([1] if n < 8 else [])][:8] for n in lengths]


@pytest.mark.parametrize(("name", "hyper", "options"), ONLINE)
def test_training_on_its_own_responses_is_that_of_the_grpo_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hyper: dict[str, float], options: dict[str, Any]
) -> None:
    both = {"num_generations": 4, "max_completion_length": 8, "num_iterations": 2, "learning_rate": 0.3, "max_steps": 4,
            "temperature": 1.3}  # fmt: skip

    def generate(self: Any, prompts: list[str]) -> Any:
        ids = [tiny.tokenizer()(text=prompt)["input_ids"] for prompt in prompts]
        place = [prompts[:i].count(prompt) for i, prompt in enumerate(prompts)]
        done = [written(p, 4)[i] for p, i in zip(ids, place, strict=True)]
        return ids, done, None, [""] * len(ids), None, {}, None, None

    monkeypatch.setattr(trl.GRPOTrainer, "_generate", generate)
    theirs = {"per_device_train_batch_size": 16, "disable_dropout": True, "use_bias_correction_kl": False}
    data = {"train_dataset": PROMPTS}
    # TRL pads prompts on the left and counts positions from the padding, which matters where they are absolute.
    # In double precision: single-precision gradients of four steps round to 2e-5 of the update on some processors.
    llama = lambda: tiny.model("llama").double()
    want, logs = grouped(trl.GRPOTrainer, tmp_path, both | theirs | options, [shorter], model=llama(), **data)
    given = lambda model, prompts, n, *_, **__: [written(prompt, n) for prompt in prompts]
    monkeypatch.setattr("bandit_pft.hf.trainer.draw", given)
    more = {"objective": name, "hyper": hyper, "reward_funcs": shorter, "model": llama(), **data}
    got, mine = trained(PFTTrainer, PFTConfig, tmp_path, both, **more)
    # TRL's deviation is that of all rewards, its KL estimate another.
    assert_logged(mine, logs, but=("kl", "reward_std"))
    assert_same(got, want, weights(llama()))

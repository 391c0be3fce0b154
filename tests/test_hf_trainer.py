"""Whole training runs on tiny models: the same update however it is split, interrupted, or wrapped."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models as tiny
import torch
from hf_process import learn, shorter, weights
from transformers import GPT2Config, GPT2ForSequenceClassification

from bandit_pft.errors import ConfigError, DataError, DomainError, NumericsError, StoreError
from bandit_pft.groups import Group
from bandit_pft.hf import PFTConfig, PFTTrainer
from bandit_pft.hf.ppo import PPOConfig, PPOTrainer

# Pairs; a mean over responses; a mean over tokens; two terms; the batch's distance from the reference.
SPLIT: list[tuple[str, dict[str, float]]] = [
    ("dpo", {"beta": 0.5}), ("sft", {}), ("dapo", {}), ("cpo", {"sft_coef": 0.5}), ("kto", {"beta": 0.5}),
]  # fmt: skip


@functools.cache
def at_once(name: str, hyper: tuple[tuple[str, float], ...] = ()) -> torch.Tensor:
    """All 8 pairs of a batch in one part."""
    return weights(learn(name, hyper=dict(hyper)))


def start(layers: int = 2) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in tiny.model(layers=layers).double().parameters()])


def assert_same_update(got: torch.Tensor, want: torch.Tensor, layers: int = 2) -> None:
    """To 1e-6 of the largest change."""
    change = float((want - start(layers)).abs().max())
    assert change > 1e-5
    assert float((got - want).abs().max()) < 1e-6 * max(change, 1e-2)


@pytest.mark.parametrize(("name", "hyper"), SPLIT)
@pytest.mark.parametrize(("size", "parts"), [(4, 2), (2, 4), (1, 8)])
def test_the_update_does_not_depend_on_how_the_batch_is_split(
    name: str, hyper: dict[str, float], size: int, parts: int
) -> None:
    got = learn(name, hyper=hyper, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
    assert_same_update(weights(got), at_once(name, tuple(hyper.items())))


TOGETHER = {
    name: {"objective": name, "hyper": hyper, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for name, hyper in (("dapo", {}), ("kto", {"beta": 0.5}))
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes of `hf_process` on this machine, over gloo, find together."""
    here, path = Path(__file__).parent, tmp_path_factory.mktemp("together") / "out.pt"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(here / "hf_process.py")]
    done = subprocess.run(
        [sys.executable, *command, str(path), json.dumps({**TOGETHER, "sharded": {"sharded": "llama"}})],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_make_the_update_of_one(name: str, two_processes: dict[str, Any]) -> None:
    found, alone = two_processes[name], learn(name, hyper=TOGETHER[name]["hyper"])
    assert_same_update(found["weights"], weights(alone))
    mine, theirs = alone.state.log_history[0], json.loads(found["log"])[0]
    for key in ("loss", "logps/chosen", "rewards/chosen"):
        assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-6)


def test_a_model_sharded_over_two_processes_has_the_same_scores_and_gradient(two_processes: dict[str, Any]) -> None:
    found = two_processes["sharded"]
    assert found["layers"] > 10
    assert found["logp"] < 1e-6
    assert found["gradient"] < 1e-5


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(on_policy: bool, tmp_path: Path) -> None:
    options = {
        "objective": "grpo" if on_policy else "dpo", "on_policy": on_policy, "double": False, "optim": "adamw_torch",
        "max_steps": 8, "rows": 64, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear",
    } | ({"num_iterations": 2, "steps_per_collection": 2} if on_policy else {})  # fmt: skip
    straight = learn(folder=str(tmp_path / "a"), **options)
    # Step 3 lies within the first collection, which ends after step 4.
    resumed = learn(folder=str(tmp_path / "b"), resume=str(tmp_path / "a" / "checkpoint-3"), **options)
    assert torch.equal(weights(straight), weights(resumed))
    assert resumed.state.global_step == 8
    last = lambda run: [entry for entry in run.state.log_history if "grad_norm" in entry][-1]
    skip = {"epoch", "step"}
    assert {k: v for k, v in last(straight).items() if k not in skip} == {
        k: v for k, v in last(resumed).items() if k not in skip
    }


def test_a_model_that_is_saved_under_other_names_is_resumed_whole(tmp_path: Path) -> None:
    options = {
        "kind": "gpt_neox",
        "double": False,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "rows": 64,
    }
    straight = learn("dpo", folder=str(tmp_path / "a"), **options)
    resumed = learn("dpo", folder=str(tmp_path / "b"), resume=str(tmp_path / "a" / "checkpoint-2"), **options)
    assert torch.equal(weights(straight), weights(resumed))


def test_responses_of_another_number_of_processes_are_not_taken_up(tmp_path: Path) -> None:
    options = {"objective": "grpo", "on_policy": True, "save_strategy": "steps", "save_steps": 1, "rows": 32}
    learn(folder=str(tmp_path), **options)
    (tmp_path / "checkpoint-1" / "responses_0_of_1.pt").rename(tmp_path / "checkpoint-1" / "responses_0_of_4.pt")
    with pytest.raises(StoreError, match="as many processes"):
        learn(folder=str(tmp_path), resume=str(tmp_path / "checkpoint-1"), **options)


def first(trained: Any) -> dict[str, float]:
    return trained.state.log_history[0]


def test_at_the_first_step_the_policy_is_the_reference() -> None:
    found = first(learn("dpo", double=False))
    assert found["rewards/chosen"] == 0
    assert found["rewards/rejected"] == 0
    assert found["loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_training_widens_the_lead_of_the_chosen(kind: str) -> None:
    trained = learn("dpo", kind=kind, hyper={"beta": 0.5}, max_steps=12, learning_rate=0.05, double=False)
    history = [entry["rewards/margins"] for entry in trained.state.log_history if "rewards/margins" in entry]
    assert history[0] == pytest.approx(0, abs=1e-5)
    assert history[-1] > 0.05


def test_a_researchers_own_function_is_an_objective() -> None:
    def lead_of_sums(logp, group: Group, *, beta: float = 0.5):
        """Widen the lead.

        L = -mean over pairs beta (log pi(w) - log pi(l))
        """
        total = group.total(logp)
        return -group.pair_mean(beta * (total[:, None] - total[None, :]))

    trained = learn(lead_of_sums, double=False, rows=8)
    assert trained.reference is None
    history = [x for x in trained.state.log_history if "loss" in x]
    assert history[-1]["loss"] < history[0]["loss"]


def test_precomputed_reference_log_probabilities_give_the_same_run() -> None:
    plain, ahead = learn("dpo"), learn("dpo", precompute_ref_log_probs=True)
    assert ahead.reference is None
    assert_same_update(weights(ahead), weights(plain))


def test_an_explicit_reference_is_used() -> None:
    other = tiny.model(seed=1).double()
    found = first(learn("dpo", more={"ref_model": other}))
    assert abs(found["rewards/chosen"]) > 0.01


def test_gradient_checkpointing_gives_the_same_update() -> None:
    assert_same_update(weights(learn("dpo", gradient_checkpointing=True)), at_once("dpo"))


# Saved tensors of the head's parts are asked for gradients that they do not have.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_model_gives_the_same_update() -> None:
    # Every layer takes seconds. The second step has other shapes.
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    plain, got = (learn("dpo", model=tiny.model(layers=1), max_steps=2, **more) for more in ({}, compiled))
    assert_same_update(weights(got), weights(plain), layers=1)


def test_bfloat16_learns_in_the_same_direction() -> None:
    got = learn("dpo", double=False, bf16=True)
    want, begin = at_once("dpo").float(), start().float()
    cosine = torch.nn.functional.cosine_similarity(weights(got) - begin, want - begin, dim=0)
    assert cosine > 0.98


@pytest.mark.parametrize("ahead", [False, True])
def test_in_bfloat16_too_the_policy_is_the_reference_at_the_first_step(ahead: bool) -> None:
    found = first(learn("dpo", double=False, bf16=True, precompute_ref_log_probs=ahead))
    assert found["rewards/chosen"] == 0
    assert found["rewards/rejected"] == 0


def test_given_responses_count_as_drawn_from_the_reference() -> None:
    trained = learn("grpo", double=False)
    history = [entry["logps/drift"] for entry in trained.state.log_history if "logps/drift" in entry]
    assert history[0] == 0
    assert history[1] > 0


def test_imitation_alone_has_neither_chosen_nor_rejected() -> None:
    rows = [{"prompt": "a b", "completion": " c d"}] * 8
    found = first(learn("sft", data=rows, double=False))
    assert found["loss"] == pytest.approx(-found["logps/mean"], rel=1e-5)
    assert not {"logps/chosen", "logps/rejected", "kl", "logps/drift"} & set(found)


def test_workers_of_the_data_loader_neither_hang_nor_change_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.context._default_context._actual_context", get_context("forkserver"))
    got = learn("dpo", dataloader_num_workers=2)
    assert_same_update(weights(got), at_once("dpo"))


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_forked_workers_of_the_data_loader_do_not_hang() -> None:
    got = learn("dpo", dataloader_num_workers=2)
    assert_same_update(weights(got), at_once("dpo"))


def test_only_the_adapter_learns_and_without_it_the_model_is_the_reference() -> None:
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    trained = learn("dpo", hyper={"beta": 0.5}, more={"peft_config": config}, double=False, learning_rate=0.1)
    assert trained.reference is None
    named = dict(trained.model.named_parameters())
    base = dict(tiny.model().named_parameters())
    plain = {
        n.replace("base_model.model.", "").replace(".base_layer", ""): p for n, p in named.items() if "lora" not in n
    }
    assert plain.keys() == base.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(weight, base[name], rtol=0, atol=0)
    # The adapter is not nothing at the start, so its reference is not the adapted model.
    assert abs(first(trained)["rewards/chosen"]) > 1e-3
    moved = [p for n, p in named.items() if "lora" in n]
    assert moved
    assert all(p.requires_grad for p in moved)


def test_dropout_is_off_unless_it_is_asked_for() -> None:
    losses = [first(learn("dpo", disable_dropout=off, double=False))["loss"] for off in (True, False)]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert abs(losses[1] - math.log(2)) > 1e-4


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_a_pad_that_is_the_end_token_or_missing_changes_nothing(pad: str | None) -> None:
    assert_same_update(weights(learn("dpo", tokenizer=tiny.tokenizer(pad))), at_once("dpo"))


def test_evaluation_reports_loss_and_margins_of_any_data_set() -> None:
    trained = learn("dpo", more={"eval_dataset": tiny.pairs(6, seed=3)}, per_device_eval_batch_size=3)
    found = trained.evaluate()
    assert found["eval_loss"] > 0
    assert "eval_rewards/margins" in trained.state.log_history[-1]
    other = trained.evaluate(tiny.pairs(6, seed=3))
    assert other["eval_loss"] == pytest.approx(found["eval_loss"])


def test_labels_and_rewards_serve_the_objectives_that_read_them() -> None:
    rng = np.random.default_rng(0)
    row = lambda i: {"prompt": tiny.text(rng), "completion": " " + tiny.text(rng), "label": i % 2 == 0}
    found = first(learn("kto", data=[row(i) for i in range(16)], double=False))
    assert found["logps/chosen"] < 0
    several = [
        {"prompt": "a b", "completions": [" c", " d e", " f"][: 2 + i % 2], "rewards": [0.0, 1.0, 2.0][: 2 + i % 2]}
        for i in range(16)
    ]
    for name in ("best_of_n", "grpo", "dpo", "rwr"):
        assert math.isfinite(first(learn(name, data=several, double=False))["loss"])
    with pytest.raises(ConfigError, match="threshold"):
        learn("kto", data=[{"prompt": "a", "completion": " b", "reward": 1.0}] * 8)


# --- responses of the learner's own ----------------------------------------------------------------------------------
ONLINE = ["best_of_n", "rwr", "reinforce_running", "rloo", "ppo_clip", "grpo", "dr_grpo", "dapo", "dpo", "ipo"]
BETA = {"dpo": {"beta": 1.0}, "rwr": {"beta": 1.0}, "ipo": {"beta": 0.2}}


@pytest.mark.parametrize("name", ONLINE)
def test_on_policy_learning_raises_the_reward(name: str) -> None:
    trained = learn(
        name, on_policy=True, double=False, rows=64, max_steps=15, learning_rate=0.02, optim="adamw_torch",
        num_iterations=2, hyper=BETA.get(name),
    )  # fmt: skip
    history = [entry["reward"] for entry in trained.state.log_history if "reward" in entry]
    assert np.mean(history[-3:]) > np.mean(history[:2]) + 0.7, history


def test_on_policy_batches_report_what_the_field_expects() -> None:
    found = first(learn("grpo", on_policy=True, hyper={"kl_coef": 0.1}, double=False))
    expected = {"reward", "reward_std", "rewards/shorter/mean", "completions/mean_length", "completions/clipped_ratio",
                "frac_reward_zero_std", "kl", "logps/chosen", "logps/rejected"}  # fmt: skip
    assert expected <= set(found)
    assert found["reward"] == pytest.approx(found["rewards/shorter/mean"])
    assert found["kl"] == pytest.approx(0, abs=1e-5)


def test_what_is_learnt_from_twice_was_scored_when_it_was_drawn() -> None:
    history = learn("grpo", on_policy=True, num_iterations=3, max_steps=3, double=False, rows=32).state.log_history
    drift = [entry["logps/drift"] for entry in history if "logps/drift" in entry]
    assert drift[0] == pytest.approx(0, abs=1e-6)
    assert drift[2] > drift[1] > 1e-6
    assert sum("reward" in entry for entry in history) == 1


def test_the_longest_response_is_what_dr_grpo_divides_by() -> None:
    told = learn("dr_grpo", on_policy=True, hyper={"max_length": 8.0})
    assert torch.equal(weights(learn("dr_grpo", on_policy=True)), weights(told))


def test_a_classifier_and_a_function_judge_together() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1, **tiny.SIZE)
    judge = GPT2ForSequenceClassification(config)
    more = {"reward_funcs": [judge, shorter], "reward_processing_classes": [tiny.tokenizer(), None]}
    found = first(learn("rloo", on_policy=True, more=more, reward_weights=[2.0, 1.0], double=False))
    parts = found["rewards/GPT2ForSequenceClassification/mean"], found["rewards/shorter/mean"]
    assert found["reward"] == pytest.approx(2 * parts[0] + parts[1], rel=1e-4)


def test_a_model_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no reward model: it lacks score"):
        learn("rloo", on_policy=True, more={"reward_funcs": str(tmp_path)}, double=False)


def test_a_model_by_name_learns_in_float32(tmp_path: Path) -> None:
    tiny.model().bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    args = PFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none")
    trainer = PFTTrainer(str(tmp_path), "dpo", args=args, train_dataset=tiny.pairs())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_a_reward_function_sees_the_other_columns_and_may_decline() -> None:
    seen: list[Any] = []

    def judge(prompts, completions, completion_ids, wanted, trainer_state, **_):
        seen.append((prompts, wanted, trainer_state.global_step))
        return [
            None if i % 4 == 0 else 1.0 * (word in text)
            for i, (word, text) in enumerate(zip(wanted, completions, strict=True))
        ]

    found = first(learn("grpo", on_policy=True, more={"reward_funcs": judge}, double=False))
    assert seen[0][1] == ["a"] * 32
    assert seen[0][0][:4] == [seen[0][0][0]] * 4
    assert math.isfinite(found["loss"])


def test_conversations_are_answered_by_messages() -> None:
    seen: list[Any] = []
    data = [{"prompt": [{"role": "user", "content": "a b"}]} for _ in range(16)]
    judge = lambda completions, **_: seen.extend(completions) or [float(len(c[0]["content"])) for c in completions]
    learn("rloo", data=data, on_policy=True, more={"reward_funcs": judge}, double=False, max_steps=1)
    assert seen[0][0]["role"] == "assistant"


def test_every_end_token_ends_a_response() -> None:
    model = tiny.model()
    model.generation_config.eos_token_id = [1, 7, 8, 9, 10, 11, 12]
    trained = learn("rloo", model=model, on_policy=True, double=False, max_steps=1)
    assert set(trained.ends) == {1, 7, 8, 9, 10, 11, 12}
    assert first(trained)["completions/clipped_ratio"] < 0.5


def test_ppo_with_a_value_head_learns_both() -> None:
    trained = learn(
        "ppo_clip", trainer=PPOTrainer, config=PPOConfig, on_policy=True, double=False, rows=64, max_steps=24,
        learning_rate=0.02, optim="adamw_torch", num_iterations=2, value_coef=1.0, kl_coef=0.01,
    )  # fmt: skip
    history = [entry for entry in trained.state.log_history if "reward" in entry]
    assert history[-1]["reward"] > history[0]["reward"] + 0.7
    errors = [entry["value_error"] for entry in trained.state.log_history if "value_error" in entry]
    assert np.mean(errors[-4:]) < np.mean(errors[:4])
    assert "kl" in history[-1]


def test_ppo_without_a_value_and_with_whole_returns_is_the_objective_itself() -> None:
    # Every token then has the advantage of its response, whitened over tokens instead of a running mean.
    options = {"on_policy": True, "max_steps": 1, "rows": 32}
    with_head = learn(
        "ppo_clip", trainer=PPOTrainer, config=PPOConfig, decay=1.0, kl_coef=0.0, value_coef=0.0, **options
    )

    def whitened(logp, group: Group):
        """The same by hand: on-policy the clipped objective's force is the advantage.

        L = -mean over tokens A log pi
        """
        return -group.token_mean(((group.reward - group.baseline) / group.scale)[:, None] * logp)

    class ByTokens(PFTTrainer):
        def _prepared(self, whole: Any, logps: Any, size: int) -> Any:
            tokens = np.repeat(whole.reward.ravel(), whole.mask.sum(-1).ravel()).astype(np.float64)
            groups = super()._prepared(whole, logps, size)
            full = lambda x: np.full_like(groups.baseline, x)
            return groups._replace(baseline=full(tokens.mean()), scale=full(tokens.std()))

    by_hand = learn(whitened, trainer=ByTokens, **options)
    mine = weights(with_head)[: len(weights(by_hand))]
    assert_same_update(mine, weights(by_hand))


# --- the example of the README --------------------------------------------------------------------------------------
def ultrafeedback() -> list[dict[str, Any]]:
    """Rows in the columns of HuggingFaceH4/ultrafeedback_binarized."""
    talk = lambda prompt, answer: [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]
    asked = [("a b", "c d", "e"), ("f", "g", "h i j"), ("k l m", "n", "o"), ("p", "q r s", "t")]
    return [
        {"prompt": prompt, "prompt_id": f"{i:064x}", "chosen": talk(prompt, good), "rejected": talk(prompt, bad),
         "messages": talk(prompt, good), "score_chosen": 8.5, "score_rejected": 4.0}
        for i, (prompt, good, bad) in enumerate(asked)
    ]  # fmt: skip


def test_conversations_that_begin_with_their_prompt_train_as_if_it_stood_beside_them() -> None:
    rows = ultrafeedback()
    beside = [
        {"prompt": row["chosen"][:1], "chosen": row["chosen"][1:], "rejected": row["rejected"][1:]} for row in rows
    ]
    runs = [learn("ipo", kind="qwen3", data=data, max_steps=1) for data in (rows, beside)]
    assert torch.equal(*map(weights, runs))
    # Its target is 1 / (2 beta), and the policy is still the reference.
    assert first(runs[0])["loss"] == pytest.approx(25, rel=1e-6)


# Said where there is no GPU.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_example_of_the_readme_runs_on_rows_of_its_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```py\n(.*?)^```", text, re.M | re.S) if "PFTTrainer" in block)
    (name,) = re.findall(r'PFTTrainer\("([^"]+)"', code)
    monkeypatch.chdir(tmp_path)
    # A folder that is called as the model is found first.
    tiny.model("qwen3").save_pretrained(name)
    tiny.tokenizer().save_pretrained(name)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_list(ultrafeedback())
    )
    space: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), space)
    assert asked == [(("HuggingFaceH4/ultrafeedback_binarized",), {"split": "train_prefs"})]
    trainer = space["trainer"]
    assert trainer.state.global_step == 3
    words = tiny.tokenizer()
    assert words.decode(trainer.train_dataset[0]["prompt_ids"]) == "<user> a b <bot>"
    assert [words.decode(ids) for ids in trainer.train_dataset[0]["completion_ids"]] == ["c d <eos>", "e <eos>"]
    learnt, begun = weights(trainer), torch.cat([p.detach().flatten() for p in tiny.model("qwen3").parameters()])
    assert torch.isfinite(learnt).all() and not torch.equal(learnt, begun)


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"objective": "dpoo"}, ConfigError, "dpo"),
        ({"objective": "dpo", "hyper": {"beta": -1.0}}, DomainError, "beta"),
        ({"objective": "dpo", "hyper": {"bta": 1.0}}, ConfigError, "beta"),
        ({"objective": "reverse_kl"}, ConfigError, "every response"),
        ({"objective": "grpo", "on_policy": True, "num_generations": 1}, ValueError, "num_generations"),
        ({"objective": "grpo", "on_policy": True, "precompute_ref_log_probs": True}, ConfigError, "given responses"),
        ({"objective": "grpo", "on_policy": True, "max_completion_length": 64}, ConfigError, "no room"),
        ({"objective": "grpo", "on_policy": True, "max_completion_length": 61}, DataError, "fill the 3 tokens"),
        ({"objective": "grpo", "on_policy": True, "rows": 4}, DataError, "one collection takes 8"),
        ({"objective": "dpo", "max_length": 3}, DataError, "max_length"),
        ({"objective": "dpo", "data": []}, DataError, "no rows"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        learn(**options)


def test_a_reference_with_another_vocabulary_or_the_model_itself_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(ConfigError, match="model itself"):
        learn("dpo", model=model, double=False, more={"ref_model": model})
    other = type(model)(GPT2Config(vocab_size=30, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="vocabulary of 30"):
        learn("dpo", more={"ref_model": other})


def test_a_run_that_is_no_longer_finite_stops_and_says_where() -> None:
    with pytest.raises(NumericsError, match=r"step [123]"):
        learn("sft", learning_rate=1e30, double=False)


def test_both_falling_is_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    from bandit_pft.hf import trainer

    trainer.logger.warning_once.cache_clear()

    def sink(logp, group: Group):
        """Push everything down.

        L = mean over pairs exp(gain_w / 10) + 2 exp(gain_l / 10)
        """
        pull = jnp.exp(group.total(logp - group.ref_logp) / 10)
        return group.pair_mean(pull[:, None] + 2 * pull[None, :])

    from bandit_pft.objectives import as_objective

    learn(as_objective(sink, family="preference"), double=False)
    assert len(re.findall("widen the difference", caplog.text)) == 1


def test_the_configuration_of_another_trainer_is_refused(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="PFTConfig"):
        PFTTrainer(tiny.model(), "dpo", args=TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ConfigError, match="tokenizer"):
        PFTTrainer(tiny.model(), "dpo", args=PFTConfig(str(tmp_path), use_cpu=True))

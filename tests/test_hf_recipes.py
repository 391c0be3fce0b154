"""The full-scale recipes, with tiny models and generated rows: every stage, what it writes, and what it refuses."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from refusals import check_refusal
from safetensors.torch import load_file

from bandit_pft import style
from bandit_pft.errors import ConfigError, DataError
from bandit_pft.hf import PFTConfig, make_scorable, pack, token_logps
from bandit_pft.hf.data import completion_tokens, prompt_tokens
from bandit_pft.hf.recipes import alpacafarm, launch, load, tiny, ultrafeedback
from bandit_pft.hf.recipes.evaluate import evaluate, training_figure
from bandit_pft.hf.recipes.reward_model import RewardTrainer
from bandit_pft.hf.rollout import classifier

FOLDER = Path(launch.__file__).parent
ONLINE = [name for name, stage in alpacafarm.STAGES.items() if stage.rows == "prompts"]
OFFLINE = ["pref_ft", "dpo", "ipo"]


def start(recipe, stage, out, *more):
    launch.main(recipe, ["--stage", stage, "--tiny", "--out", str(out), *more])
    return Path(out) / stage


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with an SFT model and a reward model."""
    folder = tmp_path_factory.mktemp("alpacafarm")
    start(alpacafarm.RECIPE, "sft", folder)
    start(alpacafarm.RECIPE, "reward_model", folder)
    return folder


@pytest.fixture
def copy(out, tmp_path):
    """The same models in a folder of the test's own."""
    for name in ("tiny_base", "sft", "reward_model"):
        shutil.copytree(out / name, tmp_path / name)
    return tmp_path


def weights(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()


def distance(one, other):
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


# --- stages ----------------------------------------------------------------------------------------------------------
def test_the_sft_model_is_float32_though_the_checkpoint_is_not_and_its_steps_are_not_rounded_away(out):
    base, learnt = weights(out / "tiny_base"), weights(out / "sft")
    assert {x.dtype for x in base.values()} == {torch.float16}
    assert {x.dtype for x in learnt.values()} == {torch.float32}
    # Three steps of at most 8e-6, for weights whose 16-bit rounding is 1e-4.
    assert 0 < distance(base, learnt) < 1e-3


@pytest.mark.parametrize("stage", OFFLINE + ONLINE)
def test_every_stage_moves_the_sft_model_and_leaves_a_model_its_log_and_a_picture(out, stage):
    folder = start(alpacafarm.RECIPE, stage, out)
    assert distance(weights(out / "sft"), weights(folder)) > 0
    log = json.loads((folder / "trainer_state.json").read_text())
    assert log["global_step"] == 3
    assert all(math.isfinite(x) for row in log["log_history"] for x in row.values())
    names = {name for row in log["log_history"] for name in row}
    assert ("reward" in names) == ("eval_reward" in names) == (stage in ONLINE)
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "checkpoint-3").is_dir()
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("stage", ["pref_ft", "dpo"])
def test_the_mistral_recipe_learns_from_conversations_with_gradient_checkpointing(tmp_path, stage):
    folder = start(ultrafeedback.RECIPE, stage, tmp_path)
    assert distance(weights(tmp_path / "tiny_base"), weights(folder)) > 0
    assert launch.parse(ultrafeedback.RECIPE, ["--stage", stage, "--tiny"])[1].gradient_checkpointing
    start(ultrafeedback.RECIPE, "evaluate", tmp_path, "--model", str(folder))
    found = json.loads((tmp_path / "evaluate" / f"{stage}.json").read_text())
    assert found["gold"].endswith("tiny_gold") and found["reference"].endswith("tiny_base")
    assert [m["role"] for m in found["samples"][0]["prompt"]] == ["user"]


def test_an_evaluation_says_what_its_samples_say(copy):
    start(alpacafarm.RECIPE, "pref_ft", copy, "--learning_rate", "0.01")
    start(alpacafarm.RECIPE, "evaluate", copy, "--model", str(copy / "pref_ft"))
    found = json.loads((copy / "evaluate" / "pref_ft.json").read_text())
    rows = found["samples"]
    assert found["prompts"] == len(rows) == launch.TINY_ROWS
    reward, other = (np.array([row[name] for row in rows]) for name in ("reward", "reference_reward"))
    assert found["gold_reward"]["mean"] == pytest.approx(reward.mean())
    assert found["gold_reward"]["stderr"] == pytest.approx(reward.std(ddof=1) / math.sqrt(len(rows)))
    assert found["gain"]["mean"] == pytest.approx(reward.mean() - other.mean())
    assert found["win_rate"]["mean"] == pytest.approx(np.mean(np.sign(reward - other) / 2 + 0.5))
    # The gold reward is the reward model, of prompt and response as text.
    model, words = load.load_classifier(str(copy / "reward_model"))
    with torch.no_grad():
        again = [float(model(**words(r["prompt"] + r["response"], return_tensors="pt")).logits) for r in rows]
    np.testing.assert_allclose(reward, again, rtol=1e-4, atol=1e-5)


def test_against_itself_a_model_wins_half_the_time_at_distance_zero_and_lengths_are_tokens():
    words, model = tiny_models.tokenizer(), tiny_models.model("gpt_neox")
    args = PFTConfig("unused", use_cpu=True, max_completion_length=8, per_device_eval_batch_size=3, seed=1)
    judge = lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids]
    found = evaluate(model, tiny_models.model("gpt_neox"), words, tiny_models.prompts(40)["prompt"], judge, args)
    assert found["log_ratio"] == {"mean": 0.0, "stderr": 0.0}
    assert found["gold_reward"] == found["length"] and 1 < found["length"]["mean"] <= 8
    assert abs(found["win_rate"]["mean"] - 0.5) < 4 * found["win_rate"]["stderr"]


def test_the_log_ratio_of_an_evaluation_is_that_of_its_own_responses():
    words, one, other = tiny_models.tokenizer(), tiny_models.model("gpt2", 0), tiny_models.model("gpt2", 1)
    args = PFTConfig("unused", use_cpu=True, max_completion_length=6)
    seen = []

    def judge(prompts, completion_ids, **_):
        seen.append((prompts, completion_ids))
        return [0.0] * len(prompts)

    found = evaluate(one, other, words, tiny_models.prompts(8)["prompt"], judge, args)
    prompts, done = seen[0]
    make_scorable(one), make_scorable(other)
    rows = pack([prompt_tokens(words, p) for p in prompts], done)
    with torch.no_grad():
        ratio = (token_logps(one, rows) - token_logps(other, rows)).sum(1)
    np.testing.assert_allclose([row["log_ratio"] for row in found["samples"]], ratio, rtol=1e-5, atol=1e-5)
    assert found["log_ratio"]["mean"] > 0
    # The end token is 1.
    assert found["unfinished"] == np.mean([ids[-1] != 1 for ids in done])
    assert found["length"]["mean"] == np.mean([len(ids) for ids in done])


# --- resuming and processes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["rwr", "dpo"])
def test_a_stage_that_was_interrupted_goes_on_to_the_same_weights(copy, stage):
    options = ["--max_steps", "4", "--save_steps", "2", "--seed", "3", "--learning_rate", "1e-3", "--eval_steps", "9"]
    whole = start(alpacafarm.RECIPE, stage, copy, *options)
    again = copy / "again"
    for name in ("sft", "reward_model"):
        shutil.copytree(copy / name, again / name)
    shutil.copytree(whole / "checkpoint-2", again / stage / "checkpoint-2")
    with pytest.raises(ConfigError, match="--resume goes on"):
        start(alpacafarm.RECIPE, stage, again, *options)
    resumed = start(alpacafarm.RECIPE, stage, again, *options, "--resume")
    # The head too, which transformers renames when it saves a GPT-NeoX.
    assert distance(weights(whole), weights(resumed)) == 0
    logs = [json.loads((one / "trainer_state.json").read_text())["log_history"] for one in (whole, resumed)]
    assert [row.get("kl") for row in logs[0]] == [row.get("kl") for row in logs[1]]


def test_two_processes_learn_what_one_learns_with_the_same_batch(copy):
    one = weights(start(alpacafarm.RECIPE, "dpo", copy, "--learning_rate", "1e-3", "--eval_strategy", "no"))
    two = copy / "two"
    shutil.copytree(copy / "sft", two / "sft")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone", "-m",
        "bandit_pft.hf.recipes.alpacafarm", "--stage", "dpo", "--tiny", "--out", str(two), "--learning_rate", "1e-3",
        "--eval_strategy", "no",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert distance(one, weights(two / "dpo")) < 1e-4 < distance(one, weights(copy / "sft")) / 10
    # Adam forgets the scale of a gradient; the log does not.
    for name in ("loss", "grad_norm", "rewards/margins"):
        logs = [
            json.loads((folder / "dpo" / "trainer_state.json").read_text())["log_history"] for folder in (copy, two)
        ]
        alone, together = ([row[name] for row in log if name in row] for log in logs)
        assert together == pytest.approx(alone, rel=1e-3) and len(alone) == 3


# --- reward model ----------------------------------------------------------------------------------------------------
def letters(rows, seed):
    """Pairs in which the better response has the letter a, of any length."""
    rng = np.random.default_rng(seed)
    say = lambda first: (
        " " + " ".join([*rng.permutation([first, *rng.choice(tiny_models.WORDS[1:], rng.integers(1, 6))])])
    )
    return [{"prompt": tiny_models.text(rng), "chosen": say("a"), "rejected": say("b")} for _ in range(rows)]


def reward_trainer(folder, rows, **options):
    config = tiny_models.CONFIGS["gpt_neox"]()
    config.num_labels = 1
    torch.manual_seed(0)
    settings = {"use_cpu": True, "max_length": 64, "disable_tqdm": True, "save_strategy": "no", **options}
    return RewardTrainer(
        transformers.AutoModelForSequenceClassification.from_config(config), args=PFTConfig(str(folder), **settings),
        processing_class=tiny_models.tokenizer(None), train_dataset=rows, eval_dataset=letters(64, 9),
    )  # fmt: skip


def test_the_reward_model_learns_to_rank_pairs_it_has_not_seen_and_judges_as_it_was_trained(tmp_path):
    trainer = reward_trainer(
        tmp_path, letters(256, 0), learning_rate=3e-3, max_steps=60, per_device_train_batch_size=32
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 0.75 and after["eval_accuracy"] > 0.9
    trainer.save_model()
    reward = load.load_reward(str(tmp_path), "cpu")
    rows = letters(64, 9)
    say = lambda side: reward([row["prompt"] for row in rows], [row[side] for row in rows])
    margin = np.subtract(say("chosen"), say("rejected"))
    assert (margin > 0).mean() == after["eval_accuracy"]
    assert np.logaddexp(0, -margin).mean() == pytest.approx(after["eval_loss"], rel=1e-4)


def test_a_reward_models_batch_in_parts_is_the_same_batch(tmp_path):
    learnt = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = reward_trainer(
            tmp_path, letters(64, 0), learning_rate=1e-3, optim="sgd", max_steps=4, per_device_train_batch_size=size,
            gradient_accumulation_steps=parts, max_grad_norm=0,
        )  # fmt: skip
        first = {name: x.clone() for name, x in trainer.model.state_dict().items()}
        trainer.train()
        learnt.append(trainer.model.state_dict())
    assert distance(*learnt) < 1e-5 < distance(first, learnt[0]) / 10


def test_a_long_text_loses_its_beginning_not_the_response(tmp_path):
    trainer = reward_trainer(tmp_path, letters(2, 0), max_length=4)
    batch = trainer.data_collator([{"prompt": "a b c d", "chosen": " e f", "rejected": " g h"}])
    ids = tiny_models.tokenizer()
    assert batch["input_ids"].tolist() == [ids("c d e f")["input_ids"], ids("c d g h")["input_ids"]]


def test_ultrarm_is_read_as_the_classifier_that_it_is_and_as_its_dialogue(tmp_path):
    folder = tiny.make_base("ultrarm", tmp_path / "rm")
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).model.state_dict()
    model, words = load.load_classifier(folder)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert all(torch.equal(model.model.state_dict()[name], x) for name, x in state.items())
    talk = [{"role": "user", "content": "Hello?"}], [{"role": "assistant", "content": "Yes."}]
    assert words.apply_chat_template([*talk[0], *talk[1]], tokenize=False) == "Human: Hello?\n\nAssistant: Yes."
    # By hand: the head on the last token.
    head = load_file(Path(folder) / "model.safetensors")["regression_head.weight"]
    with torch.no_grad():
        last = model.model(**words("Human: Hello?\n\nAssistant: Yes.", return_tensors="pt")).last_hidden_state[0, -1]
    assert classifier(model, words)([talk[0]], [talk[1]])[0] == pytest.approx(float(head[0] @ last), rel=1e-4)


def test_a_language_model_is_refused_as_a_reward_since_its_head_would_be_random(out, monkeypatch):
    check_refusal(lambda: load.load_reward(str(out / "sft"), "cpu"), ConfigError, "would be random", monkeypatch)


def test_the_rules_on_length_count_tokens():
    ids = [[1] * n for n in (1, 203, 256)]
    assert load.RULES["min_length"](completion_ids=ids) == [-1, -203, -256]
    assert load.RULES["mode_length"](completion_ids=ids) == [-202, 0, -53]


# --- data ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", alpacafarm.PREFERENCES)
def test_preferences_become_pairs_in_the_paper_s_template(data):
    pairs = alpacafarm.rows("pairs", data, "train", True)
    words = tiny.tokenizer("<|endoftext|>")
    for row in pairs:
        assert row["prompt"].startswith("<|prompter|>") and row["prompt"].endswith("<|endoftext|><|assistant|>")
        assert row["score_chosen"] > row["score_rejected"]
        if data != "alpacafarm":
            assert len(row["chosen"]) < len(row["rejected"])
        for side in ("chosen", "rejected"):
            prompt, answer = completion_tokens(words, row["prompt"], row[side], [0])
            assert words.decode(prompt) == row["prompt"]
            assert words.decode(answer) == row[side] + "<|endoftext|>"


def test_an_end_token_in_the_data_is_not_doubled_and_what_cannot_be_compared_is_left_out(monkeypatch):
    row = tiny.rows(alpacafarm.PREFERENCES["alpacafarm"], "train")[0]
    ended = {**row, "y_w": row["y_w"] + "<|endoftext|>"}
    empty, same = {**row, "y_l": row["prompt"]}, {**row, "y_l": row["y_w"]}
    monkeypatch.setattr(alpacafarm, "load_rows", lambda *_, **__: datasets.Dataset.from_list([ended, empty, same]))
    (pair,) = alpacafarm.rows("pairs", "alpacafarm", "train", False)
    assert pair["chosen"] == row["output"]
    other = {**row, "prompt": "Question: why?", "y_w": "because"}
    monkeypatch.setattr(alpacafarm, "load_rows", lambda *_, **__: datasets.Dataset.from_list([other]))
    check_refusal(
        lambda: alpacafarm.rows("pairs", "alpacafarm", "train", False),
        DataError,
        "must hold <|assistant|>",
        monkeypatch,
    )


def test_instructions_with_and_without_context_are_put_as_one_prompt():
    assert alpacafarm.prompt_of("Add.", "1 2") == "<|prompter|>Add.\n1 2<|endoftext|><|assistant|>"
    assert alpacafarm.prompt_of("Add.", "") == "<|prompter|>Add.<|endoftext|><|assistant|>"
    assert set(alpacafarm.rows("prompts", "skew", "test", True).column_names) == {"prompt"}
    assert set(alpacafarm.rows("sft", "skew", "test", True).column_names) == {"prompt", "completion"}


def test_real_data_are_asked_for_by_name_and_never_by_a_script(monkeypatch):
    asked = []

    def load_dataset(path, *args, data_files=None, split, **options):
        asked.append((path, data_files, split))
        assert not options and not args
        name = "tatsu-lab/alpaca_farm" if data_files else path
        return tiny.rows(name, split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for what in ("sft", "prompts", "pairs"):
        for split in ("train", "test"):
            alpacafarm.rows(what, "minlength", split, False)
    ultrafeedback.rows("pairs", "ultrafeedback", "test", False)
    files = "hf://datasets/tatsu-lab/alpaca_farm@refs/convert/parquet/alpaca_instructions/{}/*.parquet".format
    script_free = [("parquet", files(split), "train") for split in ("sft", "val", "unlabeled", "val")]
    name = "Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data_minlength"
    named = [(name, None, "train"), (name, None, "test"), ("HuggingFaceH4/ultrafeedback_binarized", None, "test_prefs")]
    assert asked == script_free + named


def test_long_prompts_are_left_out(copy, monkeypatch):
    run = lambda limit: start(alpacafarm.RECIPE, "pref_ft", copy, "--max_prompt_length", limit)
    check_refusal(lambda: run("3"), DataError, "are longer than 3 tokens", monkeypatch)


# --- settings --------------------------------------------------------------------------------------------------------
def settings(stage, *more, processes=1, monkeypatch):
    """As so many processes would read them."""
    monkeypatch.setattr(PFTConfig, "world_size", property(lambda _: processes))
    return launch.parse(alpacafarm.RECIPE, ["--stage", stage, "--use_cpu", *more])


# Released values: stage -> learning rate, mini-batch * accumulation, epochs, responses to a prompt.
RELEASED = {
    "sft": (8e-6, 4, 10, None), "reward_model": (1e-5, 32, None, None), "pref_ft": (1e-6, 2 * 8, None, None),
    "dpo": (5e-7, 2 * 8, None, None), "ipo": (5e-7, 2 * 8, None, None), "best_of_n": (1e-6, 2 * 8, 1, 4),
    "rwr": (1e-5, 8 * 8, 2, 1), "reinforce": (1e-5, 8 * 8, 2, 1), "ppo": (1e-5, 8 * 16, 4, 1),
    "online_dpo": (1e-5, 2 * 32, 2, 2),
}  # fmt: skip
COLLECTIONS = {"best_of_n": 128, "rwr": 64, "reinforce": 64, "ppo": 128, "online_dpo": 64}


@pytest.mark.parametrize("processes", [1, 4, 8])
@pytest.mark.parametrize("stage", RELEASED)
def test_settings_are_the_released_ones_on_any_number_of_gpus(stage, processes, monkeypatch):
    size = ["--per_device_train_batch_size", "1"] if processes == 8 or stage == "sft" else []
    call = lambda: settings(stage, *size, processes=processes, monkeypatch=monkeypatch)
    if stage == "sft" and processes == 8:
        check_refusal(call, ConfigError, "--batch is 4", monkeypatch)
        return
    _, args = call()
    rate, batch, epochs, responses = RELEASED[stage]
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    assert (args.learning_rate, step) == (rate, batch)
    assert epochs in (None, args.num_train_epochs) and responses in (None, args.num_generations)
    assert step * args.steps_per_collection == COLLECTIONS.get(stage, step)
    assert args.temperature == args.top_p == 1 and args.top_k == 0 and args.bf16
    assert args.max_completion_length == 256 and args.max_length == 512


def test_the_command_line_wins_over_the_table_and_over_tiny(monkeypatch):
    options, args = settings("dpo", "--tiny", "--learning_rate", "1e-3", "--batch", "8", monkeypatch=monkeypatch)
    assert (args.learning_rate, args.gradient_accumulation_steps) == (1e-3, 4)
    options, args = settings(
        "ppo", "--num_iterations", "8", "--hyper", "clip=0.1", "kl_coef=0.2", monkeypatch=monkeypatch
    )
    assert args.num_iterations == 8 and launch.numbers(options.hyper) == {"clip": 0.1, "kl_coef": 0.2}
    assert args.output_dir == "results/alpacafarm/ppo"


def test_help_lists_what_may_be_set(capsys):
    with pytest.raises(SystemExit) as stopped:
        launch.parse(alpacafarm.RECIPE, ["--help"])
    assert stopped.value.code == 0
    assert {"--stage", "--batch", "--learning_rate", "--num_iterations"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--stage", "dop"], "did you mean dpo"),
        (["--stage", "dpo", "--lerning_rate", "1"], "did you mean --learning_rate"),
        (["--stage", "dpo", "--lerning_rate=1"], "did you mean --learning_rate"),
        (["--stage", "dpo", "--data", "minlenght"], "did you mean minlength"),
        (["--stage", "dpo", "--batch", "3"], "--batch is 3"),
        (["--stage", "dpo", "--gradient_accumulation_steps", "2"], "do not set it"),
        (["--stage", "dpo", "--tiny", "--hyper", "beta"], "must be name=number"),
        (["--stage", "dpo", "--tiny", "--hyper", "betta=1"], "did you mean beta"),
        (["--stage", "evaluate", "--tiny"], "needs --model"),
        (["--stage", "rwr", "--tiny", "--model", "sft"], "run --stage reward_model first"),
    ],
    ids=lambda value: " ".join(value[2:] or value) if isinstance(value, list) else "",
)
def test_what_does_not_exist_or_fit_is_refused(argv, words, copy, monkeypatch):
    shutil.rmtree(copy / "reward_model")
    argv = [str(copy / "sft") if word == "sft" else word for word in argv]
    call = lambda: launch.main(alpacafarm.RECIPE, [*argv, "--use_cpu", "--out", str(copy)])
    check_refusal(call, ConfigError, words, monkeypatch)


# --- accelerate ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "kind"), [("multi_gpu", "MULTI_GPU"), ("zero2", "DEEPSPEED"), ("fsdp", "FSDP")])
def test_accelerate_reads_its_configurations(name, kind):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == DistributedType[kind]
    assert config.mixed_precision == "bf16" and config.num_processes in (4, 8) and not config.use_cpu


def test_every_field_of_the_configurations_is_an_option_of_accelerate_launch():
    known = {action.dest for action in launch_command_parser()._actions}
    for name, section in (("fsdp", "fsdp_config"), ("zero2", "deepspeed_config")):
        given = getattr(load_config_from_file(str(FOLDER / f"{name}.yaml")), section)
        assert set(given) <= known, set(given) - known
    given = load_config_from_file(str(FOLDER / "fsdp.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=given["fsdp_version"], auto_wrap_policy=given["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=given["fsdp_reshard_after_forward"], state_dict_type=given["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=given["fsdp_cpu_ram_efficient_loading"],
    )  # fmt: skip
    # Copies of the model are made before weights are shared out.
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading


# --- picture ---------------------------------------------------------------------------------------------------------
def test_the_picture_has_a_panel_for_what_was_logged_in_the_colours_of_the_families():
    history = [{"step": i, "loss": 1 / (1 + i), "rewards/chosen": i / 9, "rewards/rejected": -i} for i in range(5)]
    (only,) = training_figure(history).axes
    assert only.get_title() == "Loss"  # Implicit rewards need a reference.
    left, right = training_figure([*history, {"step": 4, "eval_loss": 0.3, "kl": 0.1}]).axes
    chosen, rejected = left.lines
    assert {chosen.get_color(), rejected.get_color()} == {style.COLOURS["preference"]}
    assert list(rejected.get_ydata()) == [0, -1, -2, -3, -4] and chosen.get_linestyle() != rejected.get_linestyle()
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "held out"]
    assert [line.get_marker() for line in right.lines] == ["", "o"]
    assert training_figure([{"step": 1, "reward": 2.0}]).axes[0].lines[0].get_color() == style.COLOURS["reward"]

"""`python -m benchmarks.hf`: a training step next to TRL's, and the memory of log-probabilities.

A step is everything from the end of one to the end of the next: data, reference, loss, gradient, optimiser. Runs of the
two trainers take turns, and ratios are those of neighbours, so that a disturbance of the machine hits both. Memory is
measured in a process of its own for every way of computing, above what the weights take.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from bandit_pft.hf import PFTConfig, PFTTrainer, make_scorable, pack, token_logps
from benchmarks.__main__ import machine

PAIRS, PROMPT, RESPONSE = 8, 32, 160
VOCABULARY, ROWS, TOKENS, AIM = 100_000, 8, 192, 400  # AIM in MB
MB = 1e6
CUDA = torch.cuda.is_available()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hf", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything works")
    parser.add_argument("--repeats", type=int, default=8, help="runs of each trainer")
    parser.add_argument("--steps", type=int, default=4, help="steps in a run; the first is not counted")
    parser.add_argument("--memory", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    vocabulary = 2_000 if given.quick else VOCABULARY
    if given.memory:
        print(*(f"{x:.0f}" for x in memory(given.memory, vocabulary)))
        return 0
    about = machine()
    device = torch.cuda.get_device_name() if CUDA else f"{about['processor']}, {about['cores']} cores"
    names = ", ".join(f"{name} {version(name)}" for name in ("bandit_pft", "torch", "transformers", "trl", "jax"))
    print(f"{device}; {torch.get_num_threads()} threads; load before {about['load_before'][0]:.2f}; {names}")
    steps(given.repeats, given.steps, given.quick)
    print(f"\nForward and backward of {ROWS} x {TOKENS} log-probabilities, vocabulary {vocabulary:,}, in MB:")
    print("| | peak above the weights | of this, gradients of the weights | with pages that malloc keeps |")
    print("|---|---|---|---|")
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.hf", "--memory", way, *(["--quick"] if given.quick else [])]
        found = []
        # By default glibc keeps freed blocks of up to 32 MB; with the threshold set they go back at once.
        for more in ({"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}, {}):
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
                env={**os.environ, **more},
            )  # fmt: skip
            found.append([float(x) for x in done.stdout.split()[-2:]])
        (peak, gradients), (kept, _) = found
        print(f"| {way} | {peak:.0f} | {gradients:.0f} | {kept:.0f} |", flush=True)
        if way == OURS:
            said = "met" if peak <= AIM else f"missed by {peak - AIM:.0f} MB"
    aim = "" if given.quick else f"The aim of {AIM} MB above the weights is {said}. "
    print(f"{aim}Load after: {os.getloadavg()[0]:.2f}")
    return 0


# --- a step --------------------------------------------------------------------------------------------------------
def gpt2(vocabulary: int, wide: int = 256) -> Any:
    """Four layers, random weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=512, n_embd=wide, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def words(vocabulary: int) -> Any:
    """A tokenizer whose word i is token i."""
    made = Tokenizer(models.WordLevel({"<eos>": 0} | {f"w{i}": i for i in range(1, vocabulary)}, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<eos>", eos_token="<eos>")


def pairs(rows: int, vocabulary: int) -> datasets.Dataset:
    """Random words; responses of 80 to 100 percent of the longest."""
    rng = np.random.default_rng(0)
    text = lambda number: " ".join(f"w{i}" for i in rng.integers(1, vocabulary, number))
    response = lambda: " " + text(rng.integers(RESPONSE * 4 // 5, RESPONSE + 1))
    return datasets.Dataset.from_list(
        [{"prompt": text(PROMPT), "chosen": response(), "rejected": response()} for _ in range(rows)]
    )


class Clock(transformers.TrainerCallback):
    """Seconds of every step but the first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget the last run."""
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """What was queued on a GPU belongs to the step."""
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Keep the mean of this run."""
        self.times.append(float(np.diff(self.ends).mean()))


def steps(repeats: int, number: int, quick: bool) -> None:
    """Times of a DPO step of both trainers, and their ratio."""
    import trl

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    vocabulary = 500 if quick else 32_000
    rows = PAIRS * (number + 1)
    clocks = {}
    trainers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (("bandit_pft", PFTConfig), ("TRL", trl.DPOConfig)):
            args = config(
                output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=number, report_to="none",
                save_strategy="no", disable_tqdm=True, logging_steps=1000, learning_rate=1e-6, bf16=False,
                gradient_checkpointing=False, use_cpu=not CUDA,
            )  # fmt: skip
            data = pairs(rows, vocabulary)
            shared = {"args": args, "train_dataset": data, "processing_class": words(vocabulary)}
            given = {**shared, "ref_model": gpt2(vocabulary)}
            model = gpt2(vocabulary)
            made = PFTTrainer(model, "dpo", **given) if config is PFTConfig else trl.DPOTrainer(model, **given)
            made.remove_callback(transformers.PrinterCallback)
            clocks[name], trainers[name] = Clock(), made
            made.add_callback(clocks[name])
        for repeat in range(repeats + 1):
            for name in list(trainers)[:: 1 if repeat % 2 else -1]:
                trainers[name].train()
    # The first run compiles.
    ours, theirs = (np.array(clocks[name].times[1:]) for name in ("bandit_pft", "TRL"))
    print(
        f"DPO step, GPT-2 of 4 layers x 256, vocabulary {vocabulary:,}, {PAIRS} pairs of {PROMPT} + {RESPONSE} tokens:"
    )
    spread = lambda x, form: f"median {np.median(x):{form}}, {x.min():{form}} to {x.max():{form}}"
    print(f"bandit_pft {spread(1e3 * ours, '.0f')} ms; TRL {spread(1e3 * theirs, '.0f')} ms")
    print(f"time over TRL's, {repeats} neighbouring runs: {spread(ours / theirs, '.2f')}", flush=True)


# --- memory --------------------------------------------------------------------------------------------------------
def ours(model: Any) -> Callable[[Any], torch.Tensor]:
    """This package's."""
    make_scorable(model)
    return lambda rows: token_logps(model, rows).sum()


def fused(model: Any) -> Callable[[Any], torch.Tensor]:
    """TRL's fused head."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    return lambda rows: (
        model(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            labels=rows.input_ids.masked_fill(rows.completion_mask == 0, -100),
            fused_lm_head=True,
        )
        .log_probs.float()
        .sum()
    )


def plain(model: Any) -> Callable[[Any], torch.Tensor]:
    """All logits in float32."""

    def run(rows: Any) -> torch.Tensor:
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, rows.input_ids[:, 1:, None])[..., 0]
        return (picked * rows.completion_mask[:, 1:]).sum()

    return run


OURS = "bandit_pft"
WAYS = {OURS: ours, "TRL's fused head": fused, "all logits": plain}


def memory(way: str, vocabulary: int) -> tuple[float, float]:
    """Peak of one forward and backward pass above the weights, and the gradients of the weights, in MB."""
    device = "cuda" if CUDA else "cpu"
    rng = np.random.default_rng(0)
    token = lambda *shape: rng.integers(1, 60, shape).tolist()
    rows = pack(token(ROWS, 1), token(ROWS, TOKENS))
    rows = rows._replace(**{name: x.to(device) for name, x in rows._asdict().items()})
    # What libraries take at their first use is not counted: a small model meets it.
    for size in (64, vocabulary):
        model = gpt2(size).to(device)
        run = WAYS[way](model)
        before = now()
        run(rows).backward()
        peak = highest() - before
    gradients = sum(x.grad.nbytes for x in model.parameters() if x.grad is not None)
    return peak / MB, gradients / MB


def now() -> int:
    """Bytes held; the highest is counted from here on."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # What malloc keeps from before would be used first.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    # Resets VmHWM.
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def highest() -> int:
    """Most bytes held since `now`."""
    return torch.cuda.max_memory_allocated() if CUDA else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])


if __name__ == "__main__":
    sys.exit(main())

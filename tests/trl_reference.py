"""The losses of the TRL library, computed by TRL's own trainers on log-probabilities of our choice.

Every trainer is built by its constructor around a one-layer GPT-2 made on the spot; nothing is downloaded. The trainer
is then asked for its loss with the forward pass replaced by `Fixed`, which returns the log-probabilities under test, so
that no formula of TRL's is repeated here.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
# The prompt is one token long, so that position t of a shifted row is token t of the response.
PAD, EOS, TOKEN, VOCABULARY = 0, 1, 2, 6
FOLDER = tempfile.TemporaryDirectory(prefix="tiny-gpt2-")


class Batch(NamedTuple):
    """B groups of N responses of at most T tokens; masks are prefixes, one of them full."""

    logp: np.ndarray  # [B, N, T], and so are the next three
    ref_logp: np.ndarray
    old_logp: np.ndarray
    mask: np.ndarray
    reward: np.ndarray  # [B, N]

    def pairs(self) -> np.ndarray:
        """[pairs, 3]: group, winner, loser; every pair of a group whose rewards differ."""
        group, i, j = np.nonzero(self.reward[:, :, None] > self.reward[:, None, :])
        return np.stack([group, i, j], -1)


class Fixed(nn.Module):
    """A language model whose response tokens have the given log-probabilities, [rows, T]."""

    is_gradient_checkpointing = False

    def __init__(self, logp: torch.Tensor):
        super().__init__()
        self.logp = logp

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> SimpleNamespace:
        rows, width = input_ids.shape
        assert (rows, width - 1) == self.logp.shape
        if labels is None:
            # Two rows of logits with exactly this log-softmax: TOKEN has probability p, PAD the rest.
            logits = torch.full((rows, width, VOCABULARY), -torch.inf)
            logits[:, :-1, PAD] = torch.log(-torch.expm1(self.logp))
            logits[:, :-1, TOKEN] = self.logp
            logits[:, -1] = 0
            return SimpleNamespace(logits=logits)
        zeros = torch.zeros(rows, width - 1)
        return SimpleNamespace(
            log_probs=torch.where(labels[:, 1:] == -100, 0, self.logp),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            label_mask=labels[:, 1:] != -100,
        )


@functools.cache
def tiny() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 of one layer that can be loaded by its name, as the trainers do for their reference, and a tokenizer."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", *"abcd"])}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="a")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=EOS, eos_token_id=EOS
    )
    GPT2LMHeadModel(config).save_pretrained(FOLDER.name)
    return GPT2LMHeadModel.from_pretrained(FOLDER.name, dtype=torch.float32), tokenizer


def _trainer(kind: Any, config: Any, data: list[dict[str, Any]], options: dict[str, Any], **more: Any) -> Any:
    model, tokenizer = tiny()
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, **options}
    args = config(output_dir=FOLDER.name, **settings)
    # TRL patches the model that it is given.
    more |= {"model": copy.deepcopy(model), "processing_class": tokenizer}
    return kind(args=args, train_dataset=Dataset.from_list(data), **more)


def _rows(batch: Batch, index: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The chosen rows' mask, and a prompt of one token followed by their tokens, as TRL's collators lay them out."""
    mask = torch.tensor(batch.mask[index]).long()
    prompt = torch.ones(len(mask), 1, dtype=torch.long)
    ids = torch.cat([prompt * TOKEN, torch.where(mask == 1, TOKEN, PAD)], 1)
    return mask, {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt, mask], 1),
        "completion_mask": torch.cat([prompt * 0, mask], 1),
    }


def _leaf(batch: Batch) -> torch.Tensor:
    return torch.tensor(batch.logp, requires_grad=True)


def _answer(loss: torch.Tensor, leaf: torch.Tensor) -> tuple[float, np.ndarray]:
    return loss.item(), torch.autograd.grad(loss, leaf)[0].numpy()


def sft(batch: Batch, *, items: int | None = None) -> tuple[float, np.ndarray]:
    """Of `SFTTrainer` on all responses: the sum over tokens divided by `items`, the number of tokens if not given."""
    index = tuple(x.ravel() for x in np.indices(batch.reward.shape))
    _, inputs = _rows(batch, index)
    mask = inputs.pop("completion_mask")
    inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
    trainer = _trainer(SFTTrainer, SFTConfig, [{"text": "a b"}], {})
    leaf = _leaf(batch)
    return _answer(trainer.compute_loss(Fixed(leaf[index]), inputs, num_items_in_batch=items), leaf)


PAIR = [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def dpo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Loss and d loss / d logp of `DPOTrainer(DPOConfig(**options))`."""
    group, winner, loser = batch.pairs().T
    index = np.concatenate([group, group]), np.concatenate([winner, loser])
    _, inputs = _rows(batch, index)
    trainer = _trainer(DPOTrainer, DPOConfig, PAIR, options)
    trainer.ref_model = Fixed(torch.tensor(batch.ref_logp[index]))
    leaf = _leaf(batch)
    return _answer(trainer.compute_loss(Fixed(leaf[index]), inputs), leaf)


def kto(batch: Batch, desirable: np.ndarray, **options: Any) -> tuple[float, np.ndarray]:
    """Of `KTOTrainer`; every response is an example, and its own mismatched example for the KL term."""
    index = tuple(x.ravel() for x in np.indices(batch.reward.shape))
    _, inputs = _rows(batch, index)
    for name in list(inputs):
        inputs[f"KL_{name}"] = inputs[name]
    inputs["label"] = torch.tensor(desirable[index])
    data = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    trainer = _trainer(KTOTrainer, KTOConfig, data, {"per_device_train_batch_size": 2, **options})
    trainer.ref_model = Fixed(torch.tensor(batch.ref_logp[index]))
    leaf = _leaf(batch)
    return _answer(trainer.compute_loss(Fixed(leaf[index]), inputs), leaf)


def _paired(kind: Any, config: Any, batch: Batch, options: dict[str, Any]) -> tuple[float, np.ndarray]:
    group, winner, loser = batch.pairs().T
    inputs = {}
    for name, which in [("chosen", winner), ("rejected", loser)]:
        _, rows = _rows(batch, (group, which))
        inputs[f"{name}_input_ids"], inputs[f"{name}_attention_mask"] = rows["input_ids"], rows["attention_mask"]
        inputs[f"{name}_labels"] = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
    leaf = _leaf(batch)
    index = np.concatenate([group, group]), np.concatenate([winner, loser])
    trainer = _trainer(kind, config, PAIR, {"remove_unused_columns": False, **options})
    return _answer(trainer.compute_loss(Fixed(leaf[index]), inputs), leaf)


def cpo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Of `CPOTrainer`, which is also SimPO's."""
    return _paired(CPOTrainer, CPOConfig, batch, options)


def orpo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Of `ORPOTrainer`."""
    return _paired(ORPOTrainer, ORPOConfig, batch, options)


def online_dpo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Of a training step of `OnlineDPOTrainer`, N = 2: it draws, judges, pairs, and goes backward."""
    number = len(batch.reward)
    # TRL's order: the first response to every prompt, then the second to every prompt.
    index = np.tile(np.arange(number), 2), np.repeat([0, 1], number)
    mask, _ = _rows(batch, index)
    rewards = batch.reward[index].tolist()
    trainer = _trainer(OnlineDPOTrainer, OnlineDPOConfig, [{"prompt": "a"}], options, reward_funcs=lambda **_: rewards)
    prompt = torch.ones(2 * number, 1, dtype=torch.long)
    drawn = (prompt * TOKEN, prompt, torch.where(mask == 1, TOKEN, PAD), mask, None)
    trainer._generate = lambda *_, **__: drawn
    trainer.ref_model = Fixed(torch.tensor(batch.ref_logp[index]))
    leaf = _leaf(batch)
    loss = trainer.training_step(Fixed(leaf[index]), {"prompt": ["a"] * number})
    assert leaf.grad is not None
    return loss.item(), leaf.grad.numpy()


def _group(kind: Any, config: Any, batch: Batch, options: dict[str, Any], drawn: Any) -> tuple[float, np.ndarray]:
    number, n, t = batch.mask.shape
    index = tuple(x.ravel() for x in np.indices(batch.reward.shape))
    steps = options.get("gradient_accumulation_steps", 1)
    settings = {
        "per_device_train_batch_size": number * n // steps,
        "num_generations": n,
        "max_completion_length": t,
        "steps_per_generation": steps,
        "gradient_accumulation_steps": steps,
        "num_iterations": 2,  # responses older than the learner, so that ratios are not 1
        **options,
    }
    rewards = batch.reward[index].tolist()
    trainer = _trainer(kind, config, [{"prompt": "a"}] * number * n, settings, reward_funcs=lambda **_: rewards)
    completions = [[TOKEN] * int(length) for length in batch.mask[index].sum(-1)]
    trainer._generate = lambda prompts: drawn([[TOKEN]] * len(prompts), completions)
    trainer.ref_model = Fixed(torch.tensor(batch.ref_logp[index]))
    # The log-probabilities at the time of drawing come in one piece, not in micro-batches.
    trainer.args.per_device_train_batch_size = number * n
    trainer.model = Fixed(torch.tensor(batch.old_logp[index]))
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * number * n)
    trainer.current_gradient_accumulation_steps = steps
    leaf = _leaf(batch)
    total = torch.zeros(())
    for part in np.array_split(np.arange(number * n), steps):
        rows = {k: v[part] if v.ndim else v for k, v in inputs.items()}
        trainer.model = Fixed(leaf[index][part])
        total = total + trainer.compute_loss(trainer.model, rows)
    return _answer(total, leaf)


def grpo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Of `GRPOTrainer`: rewards in, its own advantages; the sum over the micro-batches of one step."""
    full = lambda prompts, completions: (prompts, completions, None, [""] * len(prompts), None, {}, None, None)
    return _group(GRPOTrainer, GRPOConfig, batch, options, full)


def rloo(batch: Batch, **options: Any) -> tuple[float, np.ndarray]:
    """Of `RLOOTrainer`."""
    return _group(RLOOTrainer, RLOOConfig, batch, options, lambda prompts, done: (prompts, done, [""] * len(prompts)))


def dpo_weights(batch: Batch, **options: Any) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A GPT-2, one response pair per group for it, and what `DPOTrainer` finds for the gradient of its weights.

    The model's input is random tokens under the batch's masks, winners first; `ref_logp` belongs to another GPT-2.
    """
    group, winner, loser = batch.pairs().T
    index = np.concatenate([group, group]), np.concatenate([winner, loser])
    _, inputs = _rows(batch, index)
    torch.manual_seed(1)
    tokens = torch.randint(TOKEN, VOCABULARY, inputs["input_ids"].shape)
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, tokens, PAD)
    trainer = _trainer(DPOTrainer, DPOConfig, PAIR, {"disable_dropout": True, **options})
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    plain = copy.deepcopy(tiny()[0]).eval()
    plain.load_state_dict(trainer.model.state_dict())
    trainer.compute_loss(trainer.model, inputs).backward()
    gradient = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    with torch.no_grad():
        logits = trainer.ref_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        picked = torch.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return plain, {**inputs, "ref_logp": picked}, gradient

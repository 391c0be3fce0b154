"""Training runs, and two processes of torchrun that do several of them: torchrun hf_process.py OUT.pt JSON."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch
from torch.distributed.fsdp import fully_shard

from bandit_pft.hf import PFTConfig, PFTTrainer, make_scorable, pack, token_logps

gc.freeze()


def shorter(completions: list[str], **_: Any) -> list[float]:
    """A reward: minus the number of words."""
    return [-float(len(text.split())) for text in completions]


def learn(
    objective: Any = "dpo",
    *,
    kind: str = "gpt2",
    folder: str | None = None,
    hyper: dict[str, float] | None = None,
    rows: int = 16,
    double: bool = True,
    on_policy: bool = False,
    model: Any = None,
    data: Any = None,
    resume: Any = None,
    more: dict[str, Any] | None = None,
    trainer: Any = PFTTrainer,
    config: Any = PFTConfig,
    tokenizer: Any = None,
    **options: Any,
) -> Any:
    """A trainer that has trained; by default 3 steps of plain gradient descent on 8 pairs each."""
    settings = {
        "per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "logging_steps": 1, "disable_tqdm": True,
        "save_strategy": "no", "num_generations": 4, "max_completion_length": 8,
    } | options  # fmt: skip
    made = tiny.model(kind) if model is None else model
    more = dict(more or {})
    if on_policy:
        more.setdefault("reward_funcs", shorter)
    found = trainer(
        made.double() if double else made,
        objective,
        hyper=hyper,
        args=config(folder or tempfile.mkdtemp(), **settings),
        train_dataset=(tiny.prompts(rows) if on_policy else tiny.pairs(rows)) if data is None else data,
        processing_class=tokenizer or tiny.tokenizer(),
        **more,
    )
    found.train(resume_from_checkpoint=resume)
    return found


def weights(trained: Any) -> torch.Tensor:
    """All parameters in one vector."""
    inner = trained.accelerator.unwrap_model(trained.model)
    return torch.cat([p.detach().flatten() for p in inner.parameters()])


def sharded(kind: str) -> dict[str, float]:
    """Largest differences that sharding a model's layers over all processes makes to scores and their gradient."""
    rows = pack([[5], [6, 7, 8], [9, 9]], [[10, 11, 12, 1], [13], [14, 15, 1]])
    found = []
    for shard in (False, True):
        model = tiny.model(kind)
        make_scorable(model)
        if shard:
            for layer in [*model.base_model.modules()]:
                if type(layer).__name__ in model._no_split_modules:
                    fully_shard(layer)
            fully_shard(model)
        logp = token_logps(model, rows)
        (logp**2).sum().backward()
        whole = lambda x: x.full_tensor() if hasattr(x, "full_tensor") else x
        found.append([logp.detach(), *(whole(p.grad) for p in model.parameters())])
    logp, *grads = (float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    return {"logp": logp, "gradient": max(grads), "layers": float(len(found[0]))}


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What one job found, "sharded" or a training run."""
    if "sharded" in options:
        return sharded(options["sharded"])
    done = learn(**options)
    return {"weights": weights(done), "log": json.dumps(done.state.log_history)}


if __name__ == "__main__":
    found = {name: run(options) for name, options in json.loads(sys.argv[2]).items()}
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()

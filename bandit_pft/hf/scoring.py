"""Log-probabilities of completions under a causal language model, in float32 and bounded memory."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from bandit_pft.errors import ConfigError, ShapeError

# Logits that exist at a time: 32 MB in float32, and a few times that in the backward pass.
CHUNK = 2**23


class Rows(NamedTuple):
    """R token sequences, each a prompt, its completion, and padding on whichever side.

    Attributes:
        input_ids, attention_mask, completion_mask: [R, L]; a completion is one run of ones.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, T]: where the completions' tokens stand, and which of them exist; T is the longest's length."""
        length = self.completion_mask.sum(1)
        steps = torch.arange(max(int(length.max()), 1), device=length.device)
        start = self.completion_mask.argmax(1)
        if bool(((start == 0) & (length > 0)).any()):
            raise ShapeError("a completion begins at the first token; the model needs a prompt of at least one token")
        return (start[:, None] + steps).clamp(min=1, max=self.input_ids.shape[1] - 1), steps < length[:, None]


def pack(prompts: list[list[int]], completions: list[list[int]]) -> Rows:
    """Rows padded on the right. Padding is marked by length, never by a token, so a pad may equal the end token."""
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    rows = Rows(*(torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(3)))
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        rows.input_ids[i, :end] = torch.tensor(prompt + completion, dtype=torch.long)
        rows.attention_mask[i, :end] = 1
        rows.completion_mask[i, len(prompt) : end] = 1
    return rows


def token_logps(model: torch.nn.Module, rows: Rows, temperature: float = 1.0) -> torch.Tensor:
    """[R, T] log-probability of every token of the completions given all tokens before it, in nats; 0 past their end.

    Args:
        model: a causal language model that `make_scorable` has seen, wrapped in anything.
        temperature: divides the logits, as it does in sampling.
    """
    return token_logps_and_values(model, rows, temperature)[0]


def token_logps_and_values(
    model: torch.nn.Module, rows: Rows, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`token_logps`, and [R, T] what the model's `value_head` expects before each token; None without such a head."""
    index, mask = rows.positions()
    target = rows.input_ids.gather(1, index)
    # Positions count the attended tokens, so that padding on the left changes nothing.
    position_ids = (rows.attention_mask.cumsum(1) - 1).clamp(min=0)
    logp, values = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=position_ids,
        scored=(index - 1, target, temperature),
    )
    return torch.where(mask, logp, 0.0), None if values is None else torch.where(mask, values, 0.0)


def load_model(name: str, options: Mapping[str, Any] | None = None, kind: Any = AutoModelForCausalLM) -> Any:
    """A model by name or path, in float32 unless `options` say otherwise.

    Checkpoints often come in 16 bits, in which the small steps of fine-tuning vanish.
    """
    return kind.from_pretrained(name, **{"dtype": "float32", **(options or {})})


def core_of(model: Any) -> Any:
    """The causal language model inside adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def make_scorable(model: Any) -> None:
    """Teach a model's own `forward` to return log-probabilities of chosen tokens instead of logits.

    The language-model head is applied to a few tokens at a time and again in the backward pass, so that the
    [tokens, vocabulary] logits never exist at once. Where a model does more to its logits than its head does, which a
    comparison on a few tokens shows, they are made in full. `forward` as such, generation and checkpoints stay as they
    were.

    Raises:
        ConfigError: not a causal language model.
    """
    core = core_of(model)
    if getattr(core, "get_output_embeddings", lambda: None)() is None:
        raise ConfigError(f"{type(core).__name__} has no language-model head: load it with AutoModelForCausalLM")
    takes = set(inspect.signature(type(core).forward).parameters)

    # generate() reads the signature.
    @functools.wraps(type(core).forward)
    def forward(self: Any, *args: Any, scored: Any = None, **kwargs: Any) -> Any:
        if scored is None:
            return type(self).forward(self, *args, **kwargs)
        kwargs = {k: v for k, v in kwargs.items() if v is not None and (k in takes or k == "input_ids")}
        kwargs["use_cache"] = False
        kwargs.pop("return_dict", None)
        rows = lambda x: x.gather(1, scored[0][..., None].expand(-1, -1, x.shape[-1]))
        if self._head_alone:
            hidden = rows(self.base_model(*args, **kwargs).last_hidden_state)
            values = self.value_head(hidden)[..., 0].float() if hasattr(self, "value_head") else None
            return _chunked(self.get_output_embeddings(), hidden, scored[1], scored[2]), values
        return _picked(rows(type(self).forward(self, *args, **kwargs).logits), scored[1], scored[2]), None

    core.forward = types.MethodType(forward, core)
    core._head_alone = True
    core._head_alone = _heads_agree(core)


def _picked(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = logits.float() / temperature
    return logits.gather(-1, target[..., None])[..., 0] - logits.logsumexp(-1)


def _chunked(head: Any, hidden: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    if _is_bare(head):
        kind = hidden.device.type
        half = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if half else head.weight.dtype
        with torch.autocast(kind, enabled=False):
            flat = flat.to(dtype) if half else flat
            logp = _HeadLogps.apply(flat, head.weight, head.bias, targets, temperature, dtype)
    else:
        part = lambda h, t: _picked(head(h), t, temperature)
        # Where the weight is in pieces, only the head knows how wide it is.
        wide = getattr(head, "out_features", head.weight.shape[0])
        parts = [
            checkpoint(part, h, t, use_reentrant=False, preserve_rng_state=False)
            for h, t in _chunks(wide, flat, targets)
        ]
        logp = torch.cat(parts)
    # FSDP2 hooks onto what `forward` returns, which must not be a view.
    return logp.view(target.shape).clone()


def _chunks(vocabulary: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    number = max(1, -(-len(tensors[0]) * vocabulary // CHUNK))
    return zip(*(x.chunk(number) for x in tensors), strict=True)


def _is_bare(head: Any) -> bool:
    """Whether the head is its weight and bias and nothing else that would have to be called."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return (
        type(head) is torch.nn.Linear
        # accelerate puts its own in place.
        and "forward" not in vars(head)
        and not any(getattr(head, name) for name in hooks)
        and all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in (head.weight, head.bias) if x is not None)
        and not torch.compiler.is_compiling()
    )


class _HeadLogps(torch.autograd.Function):
    """[M] log-probabilities of `target` [M] under a head `weight` [V, D], `bias` [V] on hidden states [M, D].

    Each checkpointed chunk would have a gradient of the head's size, and autograd holds several while it adds them up.
    Here all of them go into one.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, target: torch.Tensor, temperature: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        head = _cast(weight, bias, dtype)
        logp = torch.cat([_picked(linear(h, *head), t, temperature) for h, t in _chunks(len(weight), hidden, target)])
        ctx.save_for_backward(hidden, weight, bias, target, logp)
        ctx.temperature, ctx.dtype = temperature, dtype
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        hidden, weight, bias, target, logp = ctx.saved_tensors
        needs = ctx.needs_input_grad
        to_hidden, to_weight, to_bias = (
            torch.zeros_like(x) if need else None for x, need in zip((hidden, weight, bias), needs, strict=False)
        )
        head = _cast(weight, bias, ctx.dtype)
        into = hidden if to_hidden is None else to_hidden
        columns = [x[:, None] for x in (target, logp, grad / ctx.temperature)]
        for h, out, t, p, slope in _chunks(len(weight), hidden, into, *columns):
            # One buffer: logits, probabilities, and then the gradient of the logits.
            push = linear(h, *head).float().div_(ctx.temperature)
            push.sub_(push.gather(1, t) - p).exp_().mul_(-slope).scatter_(1, t, -slope * p.expm1())
            if to_bias is not None:
                to_bias += push.sum(0)
            push = push.to(ctx.dtype)
            if to_hidden is not None:
                torch.mm(push, head[0], out=out)
            if to_weight is not None and to_weight.dtype == ctx.dtype:
                to_weight.addmm_(push.T, h)
            elif to_weight is not None:
                to_weight += push.T @ h
            del push
        return to_hidden, to_weight, to_bias, None, None, None


def _cast(weight: torch.Tensor, bias: Any, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


@torch.no_grad()
def _heads_agree(core: Any) -> bool:
    """Whether the head on the last hidden state gives the model's own logits."""
    if not hasattr(core.base_model, "forward") or core.base_model is core or any(p.is_meta for p in core.parameters()):
        return False
    ids = torch.arange(1, 5, device=core.device)[None] % core.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    with evaluating(core):
        logits = type(core).forward(core, input_ids=ids, attention_mask=mask).logits
        hidden = core.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        mine = core.get_output_embeddings()(hidden)
    return mine.shape == logits.shape and bool(torch.allclose(mine.float(), logits.float(), rtol=1e-3, atol=1e-3))


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout and gradient checkpointing off, and back as they were."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)

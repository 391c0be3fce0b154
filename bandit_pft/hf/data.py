"""From data sets in the field's formats to token ids; what an objective needs of them is checked here.

Plain text or conversations (lists of messages), in columns:

    prompt (may be left out), chosen, rejected [, score_chosen, score_rejected]    pairs
    prompt, completion, label                                                     desirable or not
    prompt, completion [, reward]                                                 single responses
    prompt, completions [, rewards]                                               N responses to one prompt
    prompt                                                                        the learner writes the responses

Conversations may begin with their prompt: the column prompt then repeats it, as messages or as the text of the user's
first one, or is left out. Within a row all responses are text, or all are conversations.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from transformers.utils import logging

from bandit_pft.errors import DataError, shown
from bandit_pft.hf.bridge import Batch, Needs
from bandit_pft.hf.scoring import Rows, pack
from bandit_pft.objectives import Objective

logger = logging.get_logger(__name__)
# Columns of a prepared data set.
READY = ("prompt_ids", "completion_ids", "rewards", "scores")
FORMATS = (
    ("pairs", ("chosen", "rejected")),
    ("labels", ("prompt", "completion", "label")),
    ("single", ("prompt", "completion")),
    ("several", ("prompt", "completions")),
    ("prompts", ("prompt",)),
)


def detect(columns: Sequence[str]) -> str:
    """Which format the columns have.

    Raises:
        DataError: none.
    """
    for name, wanted in FORMATS:
        if set(wanted) <= set(columns):
            return name
    known = "; ".join(", ".join(wanted) for _, wanted in FORMATS)
    raise DataError(
        f"the data set has columns {', '.join(columns)}; it needs one of: {known}. "
        "Rename yours, as dataset.rename_column('question', 'prompt')"
    )


def check_columns(objective: Objective, needed: Needs, columns: Sequence[str], on_policy: bool) -> str:
    """The format, if it holds what the objective looks at.

    Raises:
        DataError: naming the columns that are missing.
    """
    kind = detect(columns)
    has = f"the data set has {', '.join(columns)}"
    if on_policy:
        return "prompts"
    if kind == "prompts":
        raise DataError(
            f"{has}, so {objective.name} has no responses to learn from: pass reward_funcs, and the learner writes "
            "them, or add completions"
        )
    if objective.family == "preference" and kind in ("labels", "single"):
        raise DataError(f"{objective.name} compares responses; {has}: it needs chosen and rejected, or completions")
    scores = {"pairs": ("score_chosen", "score_rejected"), "single": ("reward",), "several": ("rewards",)}
    missing = [name for name in scores.get(kind, ()) if name not in columns]
    # The order of a pair is its score.
    if missing and (needed.reward or (needed.score and kind != "pairs")):
        raise DataError(f"{objective.name} looks at rewards; {has}: it needs {' and '.join(missing)} as well")
    return kind


# --- text to tokens ------------------------------------------------------------------------------------------------
def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages, {"role": ..., "content": ...}."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def end_tokens(tokenizer: Any, model: Any = None) -> list[int]:
    """All tokens that end a response, the tokenizer's first."""
    found = [tokenizer.eos_token_id]
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found += known if isinstance(known, list) else [known]
    return list(dict.fromkeys(token for token in found if token is not None))


def prompt_tokens(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a prompt; a conversation ends with the header of the answer to come."""
    if is_conversation(prompt):
        return _chat(tokenizer, prompt, add_generation_prompt=True)
    return tokenizer(text=prompt)["input_ids"] or _start(tokenizer)


def _start(tokenizer: Any) -> list[int]:
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if token is None else [token]


def _chat(tokenizer: Any, messages: list[Any], **options: Any) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            "the data set holds conversations, and the tokenizer has no chat_template: set one, or format the text"
        )
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


def completion_tokens(tokenizer: Any, prompt: Any, completion: Any, ends: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and its completion, tokenized together as they will be read together.

    Where tokens merge over the boundary the completion begins at the first token that differs. Plain completions get
    the end token, so that the learner is told when to stop.
    """
    alone = prompt_tokens(tokenizer, prompt)
    if is_conversation(prompt) or is_conversation(completion):
        both = _chat(tokenizer, [*prompt, *completion])
    else:
        both = [*(alone if not prompt else []), *tokenizer(text=prompt + completion)["input_ids"]]
        if ends and (not both or both[-1] not in ends or len(both) <= len(alone)):
            both = [*both, ends[0]]
    same = next((i for i, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), min(len(alone), len(both)))
    return both[:same], both[same:]


def _known(row: Mapping[str, Any], kind: str, number: int) -> tuple[Any, list[Any]]:
    """The prompt of a row, None if it is left out, and its responses: all text, or all conversations.

    Raises:
        DataError: naming the columns that are neither, or not alike.
    """
    columns = [(name, row[name]) for name in _responses(kind)]
    if kind == "several":
        several = row["completions"]
        if not isinstance(several, list) or not several:
            raise DataError(f"row {number}: completions is {shown(several)}; it must be a list of responses")
        columns = [("completions", text) for text in several]
    prompt = row.get("prompt")
    asked = [] if prompt is None and kind == "pairs" else [("prompt", prompt)]
    forms: dict[str, bool] = {}
    for name, value in [*asked, *columns]:
        if not (isinstance(value, str) or is_conversation(value)):
            raise DataError(
                f"row {number}: {name} is {shown(value)}; it must be text, or a conversation as "
                '[{"role": "user", "content": "Why?"}]: filter such rows'
            )
        forms[f"{name} is {'text' if isinstance(value, str) else 'a conversation'}"] = True
    texts = [value for _, value in columns]
    written = {isinstance(text, str) for text in texts}
    # The text of a user may stand before conversations; before text, only text may.
    if len(written) > 1 or (True in written and is_conversation(prompt)):
        raise DataError(f"row {number}: {', '.join(forms)}; they must be all text or all conversations")
    return prompt, texts


def _responses(kind: str) -> tuple[str, ...]:
    return {"pairs": ("chosen", "rejected"), "several": ("completions",), "prompts": ()}.get(kind, ("completion",))


def _parted(row: Mapping[str, Any], kind: str, number: int) -> tuple[Any, list[Any]]:
    """The prompt of a row, and its responses without it.

    Raises:
        DataError: the responses are conversations without a prompt, or with another than the column says.
    """
    prompt, texts = _known(row, kind, number)
    if is_conversation(prompt):
        size = len(prompt)
        return prompt, [text[size:] if text[:size] == prompt else text for text in texts]
    if prompt is not None and not any(map(is_conversation, texts)):
        return prompt, texts
    first, talk = texts[0], is_conversation(texts[0])
    # The last message is a response, even where all are the same.
    least = min(map(len, texts)) - talk
    same = next((i for i in range(least) if any(text[i] != first[i] for text in texts)), least)
    if not talk:
        # A word is not cut in two.
        same = first[:same].rfind(" ") if same < len(first) and " " in first[:same] else same
    elif prompt is not None:
        user = next((i + 1 for i in range(same) if first[i]["role"] == "user"), 0)
        same = user if str(first[user - 1]["content"]).strip() == prompt.strip() else 0
    if talk and not same:
        what = "have no first message in common" if prompt is None else f"do not begin with prompt, {shown(prompt)}"
        raise DataError(
            f"row {number}: the conversations in {' and '.join(_responses(kind))} {what}: put what comes before the "
            "response into the column prompt, as a conversation"
        )
    return first[:same], [text[same:] for text in texts]


def anew() -> dict[str, Any]:
    """Options of `map` and `filter` that take nothing from a cache; to look there, they would hash a function first."""
    return {"new_fingerprint": uuid.uuid4().hex}


class Limits(NamedTuple):
    """Longest prompt plus completion in tokens, and where the number comes from."""

    tokens: int | None
    source: str


def prepare_dataset(data: Any, tokenizer: Any, kind: str, ends: Sequence[int], limits: Limits) -> datasets.Dataset:
    """Token ids, rewards and scores of all responses, one row per prompt.

    Raises:
        DataError: text that is missing, or prompts that leave no room for a completion.
    """
    if isinstance(data, Sequence):
        try:
            data = datasets.Dataset.from_list(list(data))
        except (TypeError, ValueError) as error:
            raise DataError(f"the rows differ in the types of their columns: make them alike ({error})") from None
    if not hasattr(data, "__len__"):
        raise DataError("the data set is streamed; shares of a batch need its length: load it, or take() a part")
    problems: dict[str, list[int]] = {}

    def convert(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        note = lambda what: problems.setdefault(what, []).append(number)
        asked, texts = _parted(row, kind, number)
        if kind == "prompts":
            ids = prompt_tokens(tokenizer, asked)
            if limits.tokens is not None and len(ids) > limits.tokens:
                note("full")
            return {"prompt_ids": ids, "completion_ids": [], "rewards": [], "scores": []}
        pairs = [completion_tokens(tokenizer, asked, text, ends) for text in texts]
        # One prompt for all: the part that every completion has in common with it.
        prompt = min((p for p, _ in pairs), key=len)
        done = [(p + c)[len(prompt) :] for p, c in pairs]
        if limits.tokens is not None and len(prompt) >= limits.tokens:
            note("full")
        if limits.tokens is not None:
            done = [ids[: max(limits.tokens - len(prompt), 0)] for ids in done]
        if any(not ids for ids in done):
            note("empty")
        if kind == "pairs" and done[0] == done[1]:
            note("same")
        rewards, scores = _judged(kind, row, number)
        return {"prompt_ids": prompt, "completion_ids": done, "rewards": rewards, "scores": scores}

    # Rows are counted while they are converted.
    made = data.map(convert, with_indices=True, desc="Tokenizing", **anew())
    _refuse(problems, len(data), limits)
    if kind != "prompts":
        made = made.select_columns(list(READY))
    return made


def _judged(kind: str, row: Mapping[str, Any], number: int) -> tuple[list[float], list[float]]:
    """Rewards, and scores by which the responses are compared."""
    if kind == "pairs":
        scores = [row.get("score_chosen"), row.get("score_rejected")]
        known = None not in scores
        return ([float(x) for x in scores] if known else [0.0, 0.0]), [1.0, 0.0]  # type: ignore[arg-type]
    if kind == "labels":
        if not isinstance(row["label"], bool | int | float) or row["label"] not in (0, 1):
            raise DataError(f"row {number}: label is {shown(row['label'])}; it must be true or false")
        rewards = [float(row["label"])]
    elif kind == "several":
        rewards = [float(x) for x in row.get("rewards") or [0.0] * len(row["completions"])]
        if len(rewards) != len(row["completions"]):
            raise DataError(f"row {number} has {len(row['completions'])} completions and {len(rewards)} rewards")
    else:
        value = row.get("reward")
        rewards = [0.0 if value is None else float(value)]
    if not all(math.isfinite(x) for x in rewards):
        raise DataError(f"row {number}: a reward is {shown(rewards)}; it must be finite")
    return rewards, rewards


def _refuse(problems: Mapping[str, list[int]], rows: int, limits: Limits) -> None:
    if full := problems.get("full"):
        raise DataError(
            f"{len(full)} of {rows} rows have no completion left: their prompts alone fill the {limits.tokens} tokens "
            f"of {limits.source} (first: row {full[0]}). Raise it, or filter these rows"
        )
    if empty := problems.get("empty"):
        raise DataError(f"{len(empty)} of {rows} rows have an empty completion (first: row {empty[0]}): filter them")
    if same := problems.get("same"):
        share = f"{len(same)} of {rows} rows have the same chosen and rejected completion (first: row {same[0]})"
        if len(same) > rows / 2:
            raise DataError(f"{share}: nothing can be learnt from them")
        logger.warning(f"{share}; they have no force")


# --- tokens to batches ---------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """Part of a batch that passes through the model at once: real responses as rows, and where they belong.

    Attributes:
        rows: R token sequences.
        slot: [R] place of each row among the B * N responses of the groups.
        batch: mask, rewards and log-probabilities of the B groups.
        extra: more arrays [B, N, T], where a trainer keeps any.
    """

    rows: Rows
    slot: np.ndarray
    batch: Batch
    extra: tuple[np.ndarray, ...] = ()

    def to(self, device: Any) -> Part:
        """With the rows on a device."""
        return self._replace(rows=Rows(*(x.to(device) for x in self.rows)))


def as_part(prompts: list[list[int]], done: list[list[list[int]]], rewards: Any, scores: Any) -> Part:
    """Groups of completions, one list for every prompt; log-probabilities are 0 until they are known.

    Args:
        rewards, scores: like `done`, a number for every completion; None where it cannot be judged.
    """
    b, n = len(prompts), max(len(group) for group in done)
    known = [reward is not None for group in rewards for reward in group]
    slot = np.array([i * n + j for i, group in enumerate(done) for j in range(len(group))], np.int64)
    ids = [ids for group in done for ids in group]
    t = max(1, max(map(len, ids)))
    mask = np.zeros((b * n, t), bool)
    for place, one, exists in zip(slot, ids, known, strict=True):
        mask[place, : len(one)] = exists
    number = np.zeros((2, b * n), np.float32)
    for row, values in enumerate((rewards, scores)):
        number[row, slot] = [0.0 if x is None else x for group in values for x in group]
    zeros = np.zeros((b, n, t), np.float32)
    rows = pack([prompt for prompt, group in zip(prompts, done, strict=True) for _ in group], ids)
    reward, score = number.reshape(2, b, n)
    return Part(rows, slot, Batch(mask.reshape(b, n, t), reward, score, zeros, zeros))


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Groups of a prepared data set, one example each."""
    columns = [[example[name] for example in examples] for name in READY]
    part = as_part(*columns)
    if "ref_logps" in examples[0]:
        known = [one for example in examples for one in example["ref_logps"]]
        width = part.batch.mask.shape[2]
        logp = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in known])
        part = with_logps(part, "ref_logp", logp)
    return {"part": part}


def with_logps(part: Part, name: str, logp: torch.Tensor) -> Part:
    """The part with a log-probability of every row's tokens, [R, T]."""
    dense = spread(part, logp, part.batch.mask.shape).cpu().numpy()
    return part._replace(batch=part.batch._replace(**{name: dense}))


def spread(part: Part, logp: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[R, T] of the rows in their places among [B, N, T] of the groups; a padding place holds 0."""
    b, n, t = shape
    own = part.batch.mask.shape[1]
    group, member = np.divmod(part.slot, own)
    place = torch.from_numpy(group * n + member).to(logp.device)
    dense = logp.new_zeros(b * n, t).index_put((place,), torch.nn.functional.pad(logp, (0, t - logp.shape[1])))
    return dense.view(b, n, t)

"""Mistakes that an adapter makes easily, each with the test that must fail on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mutants import Mutant
from test_mutants import Runner, changed

SCORES = "test_hf.py::test_token_log_probabilities_are_those_of_each_sequence_alone"
FORCE = "test_hf.py::test_torch_gets_the_loss_and_minus_the_force[dpo]"
NEEDS = "test_hf.py::test_what_an_objective_needs_is_measured_with_its_hyper_parameters"
SPLIT = "test_hf_trainer.py::test_the_update_does_not_depend_on_how_the_batch_is_split[4-2-dapo-hyper2]"
RESUME = "test_hf_trainer.py::test_a_resumed_run_ends_with_the_same_bits[True]"
REUSE = "test_hf_trainer.py::test_what_is_learnt_from_twice_was_scored_when_it_was_drawn"

MUTANTS = [
    Mutant("hf/scoring.py", "rows.attention_mask.cumsum(1) - 1", "torch.ones_like(rows.attention_mask).cumsum(1) - 1",
           "positions count the padding", f"{SCORES}[1.0-left-gpt2]"),
    Mutant("hf/scoring.py", "scored=(index - 1, target", "scored=(index, target",
           "a token is scored after it was read", f"{SCORES}[1.0-right-gpt2]"),
    Mutant("hf/scoring.py", "logits.float() / temperature", "logits.float()",
           "the temperature is forgotten", f"{SCORES}[0.7-right-llama]"),
    Mutant("hf/bridge.py", "ctx.slope * grads[0]", "ctx.slope", "the loss cannot be scaled", FORCE),
    Mutant("hf/bridge.py", "kl=groups.kl + 1", "kl=groups.kl", "nobody needs a KL", NEEDS),
    Mutant("hf/data.py", "= exists", "= True", "what nobody could judge counts",
           "test_hf.py::test_a_response_that_nobody_could_judge_leaves_its_group"),
    Mutant("hf/data.py", "both = [*both, ends[0]]", "both = [*both]", "no response is told to end",
           "test_hf.py::test_a_pair_is_tokenized_with_its_prompt_and_gets_an_end"),
    Mutant("hf/rollout.py", "ids[: place + 1]", "ids[:place]", "the end token is not learnt from",
           "test_hf.py::test_a_response_ends_with_its_first_end_token"),
    Mutant("hf/rollout.py", "[self.seed, self.epoch]", "[self.seed, 0]", "every epoch has the same order",
           "test_hf.py::test_every_prompt_of_a_collection_comes_once_per_pass"),
    Mutant("hf/ppo.py", "later = delta[..., t] + discount * decay * later", "later = delta[..., t] + decay * later",
           "advantages are not discounted", "test_hf.py::test_advantages_are_those_of_an_independent_library"),
    Mutant("hf/trainer.py", "return self._windows(parts), None",
           "return [one for part in parts for one in self._windows([part])], None",
           "a part is a batch of its own", SPLIT),
    Mutant("hf/trainer.py", "else len(self._queue)", "else 0", "a resumed run takes new prompts too early", RESUME),
    Mutant("hf/trainer.py", "* self.args.steps_per_collection > 1", "* self.args.steps_per_collection > 9",
           "what is learnt from twice counts as fresh", REUSE),
]  # fmt: skip


@pytest.fixture(scope="module")
def verdicts() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.stop()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_fails_its_test(mutant: Mutant, verdicts: Runner) -> None:
    verdict = verdicts(mutant.module, changed(mutant), [mutant.test])[mutant.test]
    assert verdict.startswith("failed"), f"{mutant.test} does not catch {mutant.name!r}: {verdict}"


def test_the_same_tests_pass_without_the_mistakes(verdicts: Runner) -> None:
    found = verdicts("", "", sorted({mutant.test for mutant in MUTANTS}))
    assert not {test: verdict for test, verdict in found.items() if verdict != "passed"}

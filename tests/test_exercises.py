"""Exercises: solutions are right, mistakes told apart, no result comes before a prediction, and nothing ever stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from bandit_pft import paper_bandit, plots
from bandit_pft.errors import ConfigError
from bandit_pft.exercises import EXERCISES, Described, check, in_words, reveal, size, solution, source_of

# Name -> (what a student writes wrong, words of the line that helps).
MISTAKES = {
    "mean_reward": [
        (lambda logp, reward: (logp * reward).sum(), "logp holds logarithms"),
        (lambda logp, reward: jnp.exp(logp) * reward, "returns shape (3,)"),
        (lambda logp, reward: -(jnp.exp(logp) * reward).sum(), "sign"),
        (lambda logp, reward: reward.mean(), "probability times reward"),
    ],
    "best_of_n_share": [
        (lambda prob, reward, n: prob**n, "mass up to r"),
        (lambda prob, reward, n: (prob * (reward <= reward[:, None])).sum(1) ** n, "mass up to r"),
        (lambda prob, reward, n: jnp.eye(len(prob))[reward.argmax()], "mass up to r"),
        (lambda prob, reward, n: (prob * reward).sum(), "returns shape ()"),
    ],
    "leave_one_out": [
        (lambda reward: reward - reward.mean(), "0.5 times what it should be"),
        (lambda reward: reward, "divide by N - 1"),
        (lambda reward: (reward.sum() - reward) / (len(reward) - 1) - reward, "sign"),
        (lambda reward: reward - (reward.sum() - reward) / len(reward), "divide by N - 1"),
    ],
    "reverse_kl_step": [
        (lambda logp, logq: jnp.exp(logq) - jnp.exp(logp), "log-ratio"),
        (lambda logp, logq: jnp.exp(logp) * (logq - logp), "minus the mean log-ratio"),
        (lambda logp, logq: -EXERCISES["reverse_kl_step"].solution(logp, logq), "sign"),
    ],
    "ipo_force": [
        (lambda lead, beta: 2 * lead - 1 / beta, "sign"),
        (lambda lead, beta: 0.5 / beta - lead, "0.5 times what it should be"),
        (lambda lead, beta: 2 / beta - 2 * lead, "every entry is off by 10"),
        (lambda lead, beta: -2 * lead, "every entry is off by -10"),
    ],
    "dpo_force": [
        (lambda lead, beta: -beta * jax.nn.sigmoid(-beta * lead), "sign"),
        (lambda lead, beta: jax.nn.sigmoid(-beta * lead), "10 times what it should be"),
        (lambda lead, beta: beta * jax.nn.sigmoid(beta * lead), "sigmoid(-x)"),
        (lambda lead, beta: -jax.nn.log_sigmoid(beta * lead), "derivative"),
    ],
    "rwr_rounds": [
        (lambda log_ref, reward, beta, rounds: log_ref + rounds * reward / beta, "every entry is off by"),
        (lambda log_ref, reward, beta, rounds: jax.nn.softmax(log_ref + rounds * reward / beta), "logarithm"),
        (lambda log_ref, reward, beta, rounds: jax.nn.log_softmax(rounds * reward / beta), "exp(r / beta)"),
        (lambda log_ref, reward, beta, rounds: jax.nn.log_softmax(log_ref + reward / beta), "once more"),
    ],
    "clipped_force": [
        (lambda log_ratio, advantage, clip: jnp.exp(log_ratio) * advantage, "still pulled"),
        (
            lambda log_ratio, advantage, clip: jnp.clip(jnp.exp(log_ratio), 1 - clip, 1 + clip) * advantage,
            "ratio times",
        ),
        (lambda log_ratio, advantage, clip: jnp.where(abs(jnp.exp(log_ratio) - 1) < clip, advantage, 0), "ratio times"),
        (lambda log_ratio, advantage, clip: -EXERCISES["clipped_force"].solution(log_ratio, advantage, clip), "sign"),
        (lambda log_ratio, advantage, clip: EXERCISES["clipped_force"].solution(log_ratio, advantage, clip) / 4, "N"),
    ],
    "flip_chance": [
        (lambda gap, temperature: jax.nn.sigmoid(gap / temperature), "prefers the better one"),
        (lambda gap, temperature: jax.nn.sigmoid(-gap * temperature), "gap / temperature"),
        (lambda gap, temperature: jnp.exp(-gap / temperature), "Bradley-Terry"),
        (lambda gap, temperature: jax.nn.log_sigmoid(-gap / temperature), "logarithm"),
    ],
    "hit_chance": [
        (lambda mass, n: n * mass, "misses with probability 1 - mass"),
        (lambda mass, n: (1 - mass) ** n, "misses with probability 1 - mass"),
        (lambda mass, n: 1 - mass**n, "misses with probability 1 - mass"),
    ],
    "pair_step": [
        (lambda features, winner, loser: features @ (features[loser] - features[winner]), "sign"),
        (lambda features, winner, loser: features[winner] - features[loser], "returns shape (2,)"),
        (lambda features, winner, loser: features @ features[winner], "winner minus loser"),
        (lambda features, winner, loser: 2 * features @ (features[winner] - features[loser]), "2 times"),
    ],
    "dpo_offset": [
        (lambda logp, group: -EXERCISES["dpo_offset"].solution(logp, group), "group=<3 responses>) should be"),
        (lambda logp, group: EXERCISES["dpo_offset"].solution(logp, group, offset=0.0), "offset * score"),
        (lambda logp, group: EXERCISES["dpo_offset"].solution(logp, group, offset=-1.0), "offset * score"),
        (lambda logp, group: EXERCISES["dpo_offset"].solution(logp, group._replace(ref_logp=0 * logp)), "gain"),
        # Right where T = 1.
        (
            lambda logp, group: EXERCISES["dpo_offset"].solution(
                logp[:, :1], group._replace(mask=group.mask[:, :1], ref_logp=group.ref_logp[:, :1])
            ),
            "group=<4 responses>) should be",
        ),
        (lambda logp, group: group.total(logp - group.ref_logp), "returns shape (3,)"),
    ],
}


def raises(*arguments):
    raise RuntimeError("my own mistake")


def test_every_exercise_has_at_least_three_mistakes_to_refuse():
    assert set(MISTAKES) == set(EXERCISES)
    assert min(map(len, MISTAKES.values())) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_agrees_with_what_is_found_in_another_way(name, capsys):
    solved = EXERCISES[name].solution
    again = lambda *arguments: solved(*arguments)
    assert check(name, again) is again
    assert capsys.readouterr().out == f"{name}: right. Going on with yours.\n"


@pytest.mark.parametrize(
    ("name", "wrong", "words"), [(name, *mistake) for name, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_a_mistake_is_answered_by_one_line_that_helps_and_the_reference_goes_on(name, wrong, words, capsys):
    assert check(name, wrong) is EXERCISES[name].solution
    line = capsys.readouterr().out
    assert line.startswith(f"{name}: ") and line.endswith("Going on with the reference solution.\n")
    assert line.count("\n") == 1 and words in line


@pytest.mark.parametrize(
    ("unwritten", "words"),
    [
        (None, "not written yet"),
        (..., "not written yet"),
        (lambda lead, beta: ..., "not written yet"),
        (lambda lead, beta: None, "not written yet"),
        (3.0, "3.0 is not a function"),
        (raises, "fails with RuntimeError: my own mistake"),
        (lambda lead: lead, "fails with TypeError"),
        (lambda lead, beta: "ten", "returns 'ten'; it should return IPO's force"),
        (lambda lead, beta: [1, [2]], "returns [1, [2]]"),
        (lambda lead, beta: {"lead": lead}, "as numbers"),
        (lambda lead, beta: lead / 0, "no finite number"),
        (lambda lead, beta: lead * float("nan"), "no finite number"),
        (lambda lead, beta: lead[None], "returns shape (1, 3)"),
        (lambda lead, beta: lead + 1j, "as numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # What a student's function does is the student's.
def test_whatever_a_student_returns_the_cells_below_go_on(unwritten, words, capsys):
    assert check("ipo_force", unwritten) is EXERCISES["ipo_force"].solution
    assert words in capsys.readouterr().out


def test_a_solution_is_what_a_student_would_write(capsys):
    solution("leave_one_out")
    shown = capsys.readouterr().out
    assert shown == "def leave_one_out(reward):\n    return reward - (reward.sum() - reward) / (len(reward) - 1)\n"
    for name in EXERCISES:
        head, *body = source_of(name).splitlines()
        assert head.startswith(f"def {name}(") and 1 <= len(body) <= 4


@pytest.mark.parametrize("call", [solution, lambda name: check(name, None)])
def test_an_unknown_exercise_is_refused_with_the_nearest_names(call):
    with pytest.raises(ConfigError, match=r"no exercise is named 'ipo_froce': did you mean ipo_force"):
        call("ipo_froce")


def test_checks_see_the_same_cases_every_time(capsys):
    for _ in range(2):
        check("hit_chance", lambda mass, n: mass)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


@pytest.mark.parametrize(("value", "expected"), [("1", 2), ("0", 5), ("", 5), (None, 5)])
def test_the_environment_makes_runs_small(value, expected, monkeypatch):
    monkeypatch.delenv("BANDIT_PFT_QUICK", raising=False)
    if value is not None:
        monkeypatch.setenv("BANDIT_PFT_QUICK", value)
    assert size(5, 2) == expected


def drawn(*runs):
    """Learning curves of two methods on one problem, `runs` their rewards at steps 0, 10, 20, ..."""
    steps = 10 * np.arange(len(runs[0]))
    values = np.array(runs, np.float32)[None, :, None]
    dims = ("problem", "algorithm", "seed", "step")
    names, coords = ["dpo offline", "best_of_n"], {"problem": ["far"], "seed": [0], "step": steps}
    results = xr.Dataset({"expected_reward": (dims, values)}, coords={**coords, "algorithm": names})
    return plots.learning_curves(results.assign_coords(family=("algorithm", ["preference", "supervised"])))


@pytest.mark.parametrize("nothing", ["...", "", "  \n", "….", None, ...])
def test_before_something_is_predicted_nothing_is_told(nothing, capsys):
    figure = drawn([0.1, 0.7], [0.2, 0.3])
    assert reveal(nothing, figure, "it ends at 0.31") is None
    assert capsys.readouterr().out == (
        "You wrote: nothing yet. Write one sentence into `prediction`, and run that cell and this one again.\n"
    )
    assert reveal(nothing, figure, "it ends at 0.31", anyway=True) == Described(figure)
    assert capsys.readouterr().out.endswith("The run says:\n  it ends at 0.31\n")


@pytest.mark.parametrize("written", ["0.5, I guess", 0.5, ["DPO", "IPO"]])
def test_a_prediction_stands_next_to_what_was_found(written, capsys):
    figure = drawn([0.1, 0.7], [0.2, 0.3])
    assert reveal(written, figure, "it ends at 0.31", "two\nlines") == Described(figure)
    assert capsys.readouterr().out == f"You wrote: {written}\nThe run says:\n  it ends at 0.31\n  two\n  lines\n"


def test_a_figure_tells_its_own_numbers_to_those_who_do_not_see_it():
    words = in_words(drawn([0.1, 0.05, 0.3, 0.5, 0.9, 0.8, 0.7, 0.71, 0.72], [0.25] * 9))
    assert words.startswith("far, expected reward at each gradient step. ")
    assert "DPO offline: 0.1 at 0, 0.05 at 10, 0.3 at 20, 0.9 at 40, 0.7 at 60, 0.72 at 80; " in words
    assert "Best-of-N: 0.25 at 0, 0.25 at 20, 0.25 at 40, 0.25 at 60, 0.25 at 80. lines: mean over 1 seed." in words


def test_a_picture_of_policies_names_the_optimum_and_tells_it_once():
    problem = paper_bandit("R4")
    words = in_words(plots.problem_figure(problem, optima=(0.1,)))
    prob = np.exp(np.asarray(problem.optimum(0.1)[0]))
    assert words.count("reference: ") == words.count("optimum, β = 0.1: ") == 1
    assert f"{prob.max():.3g} at {prob.argmax()}" in words.partition("optimum, β = 0.1: ")[2]


def test_a_page_carries_picture_and_words():
    class Drawn:
        def _repr_png_(self):
            return b"png"

    page = Described(Drawn(), 'a <rising> "line"')._repr_html_()
    assert page.count("rising") == 1 and 'alt="a &lt;rising&gt; &quot;line&quot;"' in page and "base64,cG5n" in page
    figure = drawn([0.1, 0.7], [0.2, 0.3])
    assert f'alt="{in_words(figure)}"' in Described(figure)._repr_html_()


def test_the_best_of_n_shares_sum_to_one_at_the_size_of_the_paper():
    prob = np.random.default_rng(0).dirichlet(np.ones(100)).astype(np.float32)
    share = EXERCISES["best_of_n_share"].solution(prob, np.linspace(0, 1, 100, dtype=np.float32), 10)
    assert np.isclose(share.sum(), 1, atol=1e-4)

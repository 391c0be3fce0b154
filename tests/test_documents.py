"""What the README and the guide show runs as it stands."""

import re
from pathlib import Path

import pytest

import bandit_pft.experiments  # noqa: F401  registers the claims
from bandit_pft import claims, cli, paper
from bandit_pft.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kept_registries():
    known = OBJECTIVES, claims.CLAIMS, claims.EXPERIMENTS
    before = [dict(one) for one in known]
    yield
    for one, entries in zip(known, before, strict=True):
        one.clear()
        one.update(entries)


def examples(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_example_is_twelve_lines_and_shows_that_on_policy_wins_far_from_the_reference(
    tmp_path, monkeypatch, capsys
):
    (code,) = examples("README.md")
    monkeypatch.chdir(tmp_path)
    assert len([line for line in code.splitlines() if line.strip()]) == 12
    namespace = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), namespace)
    assert "Best-of-N offline" in capsys.readouterr().out
    assert (tmp_path / "results" / "first.svg").stat().st_size > 10_000
    last = namespace["results"]["expected_reward"].isel(step=-1).mean("seed").sel(problem="R4")
    for objective in ("best_of_n", "ipo"):
        assert last.sel(algorithm=f"{objective} on-policy") > last.sel(algorithm=f"{objective} offline") + 0.2


def test_the_worked_example_of_the_guide_runs_and_adds_an_objective(kept_registries):
    code, _ = examples("CONTRIBUTING.md")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "guide"})
    assert OBJECTIVES["dpo_capped"].formula.startswith("L = -mean over pairs")


def test_the_guides_claim_runs_and_is_judged(kept_registries):
    _, code = examples("CONTRIBUTING.md")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "guide"})
    made = claims.CLAIMS["X1"]
    outcome = made.experiment.run(True)
    assert claims.judge(made, outcome.measures).judged[0].seeds == 2
    assert set(outcome.tables["my_figure"]["line"]) == {"DPO"}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_documents_lead_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith("http")]
    assert all((ROOT / link).exists() for link in inside), inside
    assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link) for link in set(links) - set(inside))


def test_every_command_that_the_readme_shows_is_understood():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line.split("#")[0].split()[1:] for line in text.splitlines() if line.startswith("bandit-pft ")]
    assert {command[0] for command in commands} == {
        "demo", "run", "sweep", "reproduce", "export", "lab", "serve", "list", "cite", "readme",
    }  # fmt: skip
    parse = cli._parser().parse_args
    for command in commands:
        options = vars(parse(command))
        if command[0] == "reproduce":
            assert set(options["claims"]) <= set(claims.CLAIMS) and set(options["figure"]) <= set(claims.FIGURES)
        if command[0] in ("run", "sweep"):
            assert set(options["objectives"]) <= set(OBJECTIVES)
            assert all(paper.problem_named(name, contexts=1) for name in options["problems"])


def test_no_figure_is_kept_that_no_document_shows():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    shown = set(re.findall(r"figures/(\w+)\.(?:png|txt|md)", text))
    shown |= set(re.findall(r"\]\((\w+)\.png\)", (ROOT / "figures" / "claims.md").read_text(encoding="utf-8")))
    assert {path.with_suffix("").name for path in (ROOT / "figures").iterdir()} == shown
    for path in (ROOT / "figures").glob("*.png"):
        assert path.with_suffix(".svg").exists() or path.name == "explorer.png"  # A screenshot.


def test_the_numbers_of_the_readme_are_those_of_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    near, far = (ROOT / "figures" / "headline.txt").read_text(encoding="utf-8").split("\n\n")[1:]

    def reached(block: str, label: str) -> str:
        row = next(line for line in block.splitlines() if line.startswith(label))
        return row.removeprefix(label).split()[0]

    assert reached(near, "Best-of-N offline") == reached(near, "IPO offline")
    assert f"Best-of-N reaches {reached(near, 'IPO offline')}" in readme
    assert f"Best-of-N stops at {reached(far, 'Best-of-N offline')}" in readme
    assert f"IPO gets to {reached(far, 'IPO offline')}" in readme
    assert all(float(reached(far, f"{name} on-policy")) > 0.98 for name in ("Best-of-N", "REINFORCE", "IPO"))

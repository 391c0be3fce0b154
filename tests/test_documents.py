"""What the README and the guide show runs as it stands."""

import re
from pathlib import Path

import pytest

from bandit_pft.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kept_objectives():
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


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


def test_the_worked_example_of_the_guide_runs_and_adds_an_objective(kept_objectives):
    (code,) = examples("CONTRIBUTING.md")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "guide"})
    assert OBJECTIVES["dpo_capped"].formula.startswith("L = -mean over pairs")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_documents_lead_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith("http")]
    assert all((ROOT / link).exists() for link in inside), inside
    assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link) for link in set(links) - set(inside))

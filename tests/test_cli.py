"""The command line does what it says, and explains wrong input in one line."""

import numpy as np
import pytest

from bandit_pft import cli, load, paper
from bandit_pft.objectives import OBJECTIVES

TINY = ["--problems", "R5", "--contexts", "3", "--steps", "4", "--seeds", "2"]


def numbers(line: str) -> list[float]:
    return [float(word.strip("[],")) for word in line.split() if word.strip("[],").replace(".", "").isdigit()]


def test_run_prints_the_means_of_the_data_it_writes(tmp_path, capsys):
    assert cli.main(["run", "dpo", *TINY, "--hyper", "beta=0.5", "--out", str(tmp_path)]) == 0
    ds = load(tmp_path / "dpo.nc")
    last = ds["expected_reward"].isel(step=-1).values.ravel()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("DPO"))
    assert numbers(line)[0] == pytest.approx(last.mean(), abs=5e-4)
    assert '"beta": 0.5' in ds.attrs["configuration"]
    assert line in (tmp_path / "dpo.txt").read_text()
    for stem in ("dpo", "dpo_queries", "dpo_frontier"):
        assert (tmp_path / f"{stem}.svg").exists()
        assert (tmp_path / f"{stem}.png").exists()


def test_a_resumed_sweep_reuses_what_was_finished_and_gives_the_same_numbers(tmp_path, capsys):
    command = ["sweep", "--objectives", "dpo", "sft", *TINY, "--out", str(tmp_path)]
    assert cli.main(command) == 0
    first, tiles = load(tmp_path / "sweep.nc"), sorted((tmp_path / "runs" / "tiles").iterdir())
    times = [tile.stat().st_mtime_ns for tile in tiles]
    assert cli.main(command) == 2
    assert "--resume" in capsys.readouterr().err
    tiles[0].unlink()
    assert cli.main([*command, "--resume"]) == 0
    assert [tile.stat().st_mtime_ns for tile in tiles[1:]] == times[1:]
    assert tiles[0].exists()
    np.testing.assert_array_equal(load(tmp_path / "sweep.nc")["kl"], first["kl"])


def test_a_grid_gives_a_table_and_figures_for_each_of_its_points(tmp_path, capsys):
    command = ["sweep", "--objectives", "ipo", *TINY, "--grid", "beta=0.05,0.5", "learning_rate=0.1"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for beta in ("0.05", "0.5"):
        assert f"beta = {beta}, learning_rate = 0.1" in out
        assert (tmp_path / f"sweep_beta={beta}_learning_rate=0.1.svg").exists()


def test_a_preset_can_be_swept(tmp_path, monkeypatch):
    small = paper.misalignment()
    small = small._replace(problems=small.problems[:1], methods=small.methods[:1])
    monkeypatch.setattr(paper, "PRESETS", {"small": lambda: small})
    assert cli.main(["sweep", "--preset", "small", "--steps", "5", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "small_mass_0.svg").exists()
    assert load(tmp_path / "small.nc")["log_prob"].sizes["action"] == 100


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "dop"], "did you mean"),
        (["run", "dpo", "--hyper", "beta=-1"], "beta is -1.0; it must be greater than 0"),
        (["run", "dpo", "--hyper", "beta"], "write name=value"),
        (["run", "dpo", "--hyper", "beta=x"], "must be a number"),
        (["run", "dpo", "--hyper", "beta=0.1,0.2"], "--grid beta="),
        (["run", "dpo", "--hyper", "bta=1"], "did you mean beta"),
        (["run", "dpo", "--problems", "R44"], "did you mean R4"),
        (["run", "dpo", "--on-policy", "2"], "on_policy is 2.0"),
        (["run", "dpo", "--contexts", "0"], "contexts is 0"),
        (["run", "no.module:f"], "no.module"),
        (["sweep"], "--preset NAME or --objectives"),
        (["sweep", "--preset", "headlin"], "did you mean headline"),
        (["cite", "dop"], "did you mean"),
        (["readme", "--file", "no-such-file.md"], "no-such-file.md"),
    ],
)
def test_wrong_input_is_explained_in_one_line_with_exit_code_2(command, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bandit-pft: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in ("demo", "run", "sweep", "list", "cite", "readme"))


def test_every_objective_is_listed_with_what_it_does(capsys):
    assert cli.main(["list"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert dict(lines) == {made.name: made.summary for made in OBJECTIVES.values()}


@pytest.mark.parametrize("kind", ["problems", "presets"])
def test_what_is_listed_exists(kind, capsys):
    assert cli.main(["list", kind]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    make = {"problems": paper.problem_named, "presets": paper.preset_named}[kind]
    assert len(names) >= 2
    assert all(make(name) for name in names)


def test_the_paper_and_an_objective_can_be_cited(capsys):
    assert cli.main(["cite", "dpo"]) == 0
    out = capsys.readouterr().out
    assert "2404.14367" in out  # Tajwar et al.
    assert "2305.18290" in out  # Rafailov et al.
    assert out.count("\n@") + out.startswith("@") == 2


def test_every_objective_names_a_paper_of_the_bibliography():
    assert {made.paper for made in OBJECTIVES.values()} <= set(cli.bibliography())


def test_the_table_in_the_readme_is_up_to_date():
    assert cli.main(["readme", "--check"]) == 0


def test_an_old_table_is_noticed_and_renewed(tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{cli.BEGIN}\nold\n{cli.END}\nafter\n")
    assert cli.main(["readme", "--check", "--file", str(file)]) == 1
    assert "old" in file.read_text()
    assert cli.main(["readme", "--file", str(file)]) == 0
    assert cli.main(["readme", "--check", "--file", str(file)]) == 0
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    # What the paper's Table 1 ticks: DPO has a negative gradient, Best-of-N has none.
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if "| `" in line}
    assert (cells["`dpo`"], cells["`best_of_n`"], cells["`reinforce_group`"]) == ("yes", "", "yes")
    assert len(cells) == len(OBJECTIVES)

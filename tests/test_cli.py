"""The command line does what it says, and explains wrong input in one line."""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

import bandit_pft
from bandit_pft import claims, cli, commands, listing, load, measure, paper, store, version
from bandit_pft.errors import ConfigError
from bandit_pft.objectives import OBJECTIVES
from bandit_pft.objectives.core import as_objective
from bandit_pft.simulate import OnNonfinite

ROOT = Path(__file__).parents[1]
TINY = ["--problems", "R5", "--contexts", "3", "--steps", "4", "--seeds", "2"]


def numbers(line: str) -> list[float]:
    return [float(word.strip("[],")) for word in line.split() if word.strip("[],").replace(".", "").isdigit()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run, and what it printed."""
    folder, out = tmp_path_factory.mktemp("ran"), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["run", "dpo", *TINY, "--hyper", "beta=0.5", "--out", str(folder)]) == 0
    return folder, out.getvalue()


def test_run_prints_the_means_of_the_data_it_writes(ran):
    folder, out = ran
    ds = load(folder / "dpo.nc")
    last = ds["expected_reward"].isel(step=-1).values.ravel()
    line = next(line for line in out.splitlines() if line.startswith("DPO"))
    assert numbers(line)[0] == pytest.approx(last.mean(), abs=5.1e-3)
    assert '"beta": 0.5' in ds.attrs["configuration"]
    assert line in (folder / "dpo.txt").read_text()
    for stem in ("dpo", "dpo_queries", "dpo_frontier", "dpo_mass_R5"):
        assert (folder / f"{stem}.svg").exists()
        assert (folder / f"{stem}.png").exists()


@pytest.fixture
def asked(monkeypatch):
    """Gives problems and methods that a command would run, without running them."""

    def ask(*command: str):
        seen = {}

        def stop(problems, methods, **_):
            seen.update(problems=problems, methods=methods)
            raise ConfigError("seen")

        monkeypatch.setattr(commands, "sweep", stop)
        assert cli.main(list(command)) == 2
        return seen["problems"], seen["methods"]

    return ask


def test_run_takes_any_objectives_and_problems(asked):
    command = ("run", "dpo", "ipo", "--objective", "best_of_n", "--objective", "bandit_pft.objectives.unpaired:kto")
    problems, methods = asked(*command, "--problems", "R4", "R5", "R8", "R9", "--contexts", "7")
    assert [problem.name for problem in problems] == ["R4", "R5", "R8", "R9"]
    assert {problem.num_contexts for problem in problems} == {7}
    assert [method.name for method in methods] == ["dpo", "ipo", "best_of_n", "kto"]


def test_every_setting_of_a_method_can_be_given(asked):
    words = "--data sampled --label-noise 0.5 --proxy network --prompts 6 --minibatch 3 --policy tabular --min-gap 0.2"
    words += " --reference initial --optimizer sgd --learning-rate 0.7 --on-policy 0.25 --reuse 4 --responses 5"
    _, (method,) = asked("run", "dpo", *words.split())
    wanted = {"data": "sampled", "label_noise": 0.5, "proxy": "network", "prompts": 6, "minibatch": 3, "min_gap": 0.2}
    wanted |= {"reference": "initial", "learning_rate": 0.7, "on_policy": 0.25, "reuse": 4.0, "num_responses": 5}
    assert {name: getattr(method, name) for name in wanted} == wanted
    assert method.policy.name == "tabular"
    assert method.optimizer is bandit_pft.SGD


@pytest.mark.parametrize("policy", cli.POLICIES)
def test_every_policy_can_be_chosen(policy, asked):
    assert asked("run", "dpo", "--policy", policy)[1][0].policy.name == policy


def test_sequences_that_cannot_be_listed_are_learnt_token_by_token(asked):
    problems, (method,) = asked("run", "grpo", "--problems", "R6", "R7", "min")
    assert [(problem.length, problem.num_tokens) for problem in problems] == [(9, 100), (9, 100), (8, 4)]
    assert method.policy.name == "factorised"
    assert asked("run", "grpo", "--problems", "min", "skew")[1][0].policy.name == "tabular_shared"


def test_distributions_are_matched_on_exact_data_and_others_as_asked(asked):
    assert [method.data for method in asked("run", "forward_kl", "dpo")[1]] == ["exact", "sampled"]
    assert [method.data for method in asked("run", "forward_kl", "dpo", "--data", "exact")[1]] == ["exact", "exact"]


def test_a_hyper_parameter_goes_to_those_that_have_it_or_to_the_one_named(asked):
    _, methods = asked("run", "dpo", "ipo", "best_of_n", "--hyper", "beta=0.3", "ipo.beta=0.05")
    assert [dict(method.hyper) for method in methods] == [{"beta": 0.3}, {"beta": 0.05}, {}]


def test_a_length_problem_runs_and_has_no_picture_over_actions(tmp_path, capsys):
    command = ["run", "sft", "--problems", "mode", "--steps", "2", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    ds = load(tmp_path / "sft.nc")
    block = next(block for block in blocks if block.startswith("mode-length"))
    assert f"{float(ds['expected_reward'].sel(problem='mode-length')[0, 0, -1]):.2f}" in block
    assert not list(tmp_path.glob("*mass*"))


def test_the_demo_leaves_figures_and_its_table_in_one_folder_and_data_in_another(tmp_path, monkeypatch, capsys):
    small = paper.headline()
    small = small._replace(problems=small.problems[:1], methods=small.methods[:2])
    monkeypatch.setattr(paper, "PRESETS", {"headline": lambda: small})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--steps", "10", "--seeds", "2"]) == 0
    stems = ("headline", "headline_queries", "headline_frontier", "headline_mass_near_peak_R5")
    files = {f"figures/{stem}.{end}" for stem in stems for end in ("svg", "png")}
    files |= {"figures/headline.txt", "results/headline.nc"}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == files
    out, text = capsys.readouterr().out, (tmp_path / "figures" / "headline.txt").read_text()
    assert text in out + "\n"
    last = load(tmp_path / "results" / "headline.nc").isel(problem=0, step=-1)
    # Offline learning asks once for 100 x 10 rewards, on-policy learning at each of 10 steps for 10 x 10.
    rows = {"Best-of-N offline": "best_of_n offline", "Best-of-N on-policy": "best_of_n on-policy"}
    for label, name in rows.items():
        row = next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).split()
        assert row[-2:] == ["10", "1,000"]
        shown = np.asarray(row[:-2], float).reshape(5, 3)
        metrics = ("expected_reward", "kl", "kl_reverse", "entropy", "mass_near_peak")
        low, high = np.sort([last[metric].sel(algorithm=name).values for metric in metrics]).T
        expected = np.stack([(low + high) / 2, 0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high], -1)
        np.testing.assert_allclose(shown, expected, atol=5.1e-3)


def test_a_resumed_sweep_reuses_what_was_finished_and_gives_the_same_numbers(tmp_path, capsys):
    command = ["sweep", "dpo", "sft", *TINY, "--out", str(tmp_path)]
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
    command = ["sweep", "ipo", *TINY, "--grid", "beta=0.05,0.5", "learning_rate=0.1"]
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
    assert (tmp_path / "small_mass_near_peak_R5.svg").exists()
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
        (["run"], "no objective"),
        (["run", "dpo", "best_of_n", "--hyper", "best_of_n.beta=1"], "did you mean"),
        (["run", "forward_kl", "--data", "sampled"], "data='exact'"),
        (["run", "dpo", "--problems", "R6", "--policy", "tabular"], "factorised"),
        (["run", "dpo", "--prompts", "101"], "prompts is 101"),
        (["run", "dpo", "--label-noise", "-1"], "label_noise is -1.0"),
        (["sweep", "dpo", "--grid", "beta=0.1,0.2,0.10000001"], "--grid beta has 0.1 and 0.10000001"),
        (["sweep", "dpo", "--grid", "beta=0.1", "beta=0.2"], "--grid has beta more than once"),
        (["run", "dpo", "--hyper", "beta=0.1", "beta=0.1"], "--hyper has beta more than once"),
        (["serve", "--port", "99999999"], "--port is 99999999; it must be from 1 to 65535"),
        (["serve", "--port", "-1"], "--port is -1; it must be"),
        (["export", "x.html", "--hide", "hieght"], "--hide has no 'hieght': did you mean height"),
        (["export", "."], "is a folder; name a file"),
        (["export", f"{__file__}/x.html"], "test_cli.py is a file; name a folder"),
        (["run", "dpo", "--out", __file__], "test_cli.py is a file; name a folder"),
        (["run", "dpo", "--out", f"{__file__}/new/folder"], "test_cli.py is a file; name a folder"),
        (["sweep", "dpo", "--out", __file__], "test_cli.py is a file; name a folder"),
        (["sweep", "--preset", "headline", "--out", __file__], "test_cli.py is a file; name a folder"),
        (["demo", "--results", __file__], "test_cli.py is a file; name a folder"),
        (["sweep"], "either --preset NAME or one objective"),
        (["list", "problems", "dpo"], "choose from R4"),
        (["list", "objectives", "dop"], "did you mean dpo"),
        (["list", "xqz"], "nothing to list is named 'xqz': choose from claims, objectives, presets, problems\n"),
        (["list", "objektives"], "did you mean objectives"),
        (["list", "dpoo", "--brief"], "did you mean dpo"),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(logp, group):\n    return 1 +\n", "SyntaxError: invalid syntax (mine.py, line 2)"),
        ("x = 1\nx / 0\n", "ZeroDivisionError: division by zero ({folder}/mine.py, line 2)"),
        ("\n\nimport no_such_module\n", "No module named 'no_such_module' ({folder}/mine.py, line 3)"),
        ("raise SystemExit('over')\n", "SystemExit: over ({folder}/mine.py, line 1)"),
        ("g = 3\n", "module 'mine' has no attribute 'f'"),
    ],
)
def test_an_objective_whose_module_fails_is_refused_with_the_line(text, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # As the installed command: Python's own path has the script's folder, not the one where it is called.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    try:
        assert cli.main(["list", "mine:f"]) == 2
    finally:
        sys.modules.pop("mine", None)
    err = capsys.readouterr().err
    assert err.startswith("bandit-pft: objective 'mine:f' cannot be loaded: ")
    assert err.count("\n") == 1
    assert words.format(folder=tmp_path) in err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exprot", "COMMAND is 'exprot': did you mean export"),
        ("xyz", "COMMAND is 'xyz': choose from cite, demo, export"),
        ("run dpo --policy tabluar", "--policy is 'tabluar': did you mean tabular"),
        ("sweep dpo --optimizer adma", "--optimizer is 'adma': did you mean adam?"),
        ("run dpo --on-nonfinite freze", "--on-nonfinite is 'freze': did you mean freeze?"),
        ("demo --sedes 3", "`bandit-pft demo` takes no '--sedes': did you mean --seeds"),
        ("run dpo --sedes=3 --steps 2", "`bandit-pft run` takes no '--sedes': did you mean --seeds"),
        ("--hlep", "`bandit-pft` takes no '--hlep': did you mean --help"),
        ("demo dpo", "`bandit-pft demo` takes no 'dpo'; see `bandit-pft demo --help`"),
        ("run dpo --seeds many", "--seeds: invalid int value: 'many'; see `bandit-pft run --help`"),
        ("", "say what to do, such as `bandit-pft demo`"),
    ],
)
def test_a_mistyped_word_is_named_with_the_nearest_one_in_one_line(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert printed.err.startswith("bandit-pft: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_the_version_is_that_of_the_project_file_also_where_a_checkout_is_used_in_place(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (stop.value.code, capsys.readouterr().out) == (0, f"bandit-pft {wanted}\n")
    assert bandit_pft.__version__ == store.versions()["bandit-pft"] == wanted
    (tmp_path / "bandit_pft").mkdir()
    source = tmp_path / "bandit_pft" / "version.py"
    source.write_text(Path(version.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("a_copy", source)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    found = lambda name="bandit-pft": copy.version(name)
    for project, says in (
        ('[project]\nname = "bandit-pft"\nversion = "9.8"', "9.8"),
        ('[project]\nname = "another"\nversion = "9.8"', found()),
        ('[project]\nname = "bandit-', found()),
        ("", found()),
    ):
        (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
        assert found() == says
    assert found("jax") == importlib.metadata.version("jax")
    assert found("no-such-distribution") == "not installed"


def test_the_words_that_help_shows_are_those_of_the_modules_that_compute(capsys):
    assert set(cli.PROBLEMS) == {*paper.TITLES, *paper.SEQUENCES, *paper.LENGTHS}
    assert get_args(OnNonfinite) == cli.ON_NONFINITE
    assert cli.CONTEXTS == paper.CONTEXTS
    with pytest.raises(SystemExit):
        cli.main(["list", "--help"])
    assert ", ".join(listing.KINDS) in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in ("demo", "run", "sweep", "list", "cite", "readme"))


def test_every_objective_is_listed_with_what_it_does(capsys):
    assert cli.main(["list", "--brief"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert dict(lines) == {made.name: made.summary for made in OBJECTIVES.values()}


def test_the_full_list_shows_formula_measured_force_and_ranges_of_every_objective(capsys):
    assert cli.main(["list", "objectives"]) == 0
    blocks = dict(block.split(": ", 1) for block in capsys.readouterr().out.strip().split("\n\n"))
    assert list(blocks) == list(OBJECTIVES)
    for name, made in OBJECTIVES.items():
        lines = [line.strip() for line in blocks[name].splitlines()]
        assert made.formula in lines
        assert ("pushes" in blocks[name]) == measure(made).pushes
        starts = [line for line in lines if re.match(r"[a-z_]+ = ", line)]
        assert [line.split(" = ")[0] for line in starts] == list(made.hyper)
    # Known of two: DPO is a difference of gains over the reference; Best-of-N only imitates.
    assert "total 0: only differences count" in blocks["dpo"]
    assert "reads    score (what the labeller saw), reference;" in blocks["dpo"]
    assert "beta = 0.1  (above 0)" in blocks["dpo"]
    assert "label_smoothing = 0.1  (at least 0, below 0.5)" in blocks["cdpo"]
    assert "force    pulls; total 1;" in blocks["best_of_n"]


def test_whatever_has_a_name_is_listed_by_it_alone(capsys):
    assert cli.main(["list", "R4", "C3", "dpo", "headline", "--brief"]) == 0
    claim = next(made for made in claims.CLAIMS.values() if made.key == "C3")
    problem, proof, family, preset = capsys.readouterr().out.strip().split("\n\n")
    assert problem.split(None, 1) == ["R4", "bandit of 100 actions: far peak (R4)"]
    assert proof.split(None, 1) == ["C3", claim.says]
    assert family.splitlines()[1].split(None, 1) == ["dpo", OBJECTIVES["dpo"].summary]
    assert preset.split(None, 1) == ["headline", paper.headline().claim]
    assert cli.main(["list", "bandit_pft.objectives.unpaired:kto"]) == 0
    assert capsys.readouterr().out.startswith(f"kto: {OBJECTIVES['kto'].summary}\n")
    assert cli.main(["list", "claims", "C3"]) == 0
    assert capsys.readouterr().out.split(None, 1) == ["C3", claim.says + "\n"]


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
    assert {made.paper for made in OBJECTIVES.values()} <= set(listing.bibliography())


def test_the_table_in_the_readme_is_up_to_date():
    assert cli.main(["readme", "--check"]) == 0


def test_an_old_table_is_noticed_and_renewed(tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- objectives:begin -->\nold\n<!-- objectives:end -->\nafter\n")
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


# --- ways in and out -------------------------------------------------------------------------------------------------
def test_python_m_bandit_pft_is_the_command():
    done = subprocess.run([sys.executable, "-m", "bandit_pft", "list", "problems"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {*paper.TITLES, *paper.SEQUENCES, *paper.LENGTHS} <= {line.split()[0] for line in done.stdout.splitlines()}


@pytest.fixture
def ends_with(monkeypatch, capsys):
    """The exit code of a run, and what it prints as errors, where the computation ends like this."""

    def run(end):
        monkeypatch.setattr(commands, "sweep", end)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            return cli.main(["run", "dpo"]), capsys.readouterr().err

    return run


def test_ctrl_c_ends_with_130_and_what_the_sweep_says(ends_with):
    def stop(*words):
        raise KeyboardInterrupt(*words)

    assert ends_with(lambda *_, **__: stop()) == (130, "bandit-pft: stopped\n")
    assert ends_with(lambda *_, **__: stop("go on like this")) == (130, "bandit-pft: go on like this\n")


def test_a_reader_that_has_seen_enough_is_no_error():
    # As in `bandit-pft list --brief | head -1`; Python holds back what it prints to a pipe until it ends.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "bandit_pft", "list", "problems"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings) as reader:
        reader.stdout.close()
        assert reader.stderr.read() == ""
    assert reader.returncode == 0


def test_a_warning_is_one_line_without_a_place_in_the_code(ends_with):
    def warn(*_, **__):
        warnings.warn("two runs turned nan", stacklevel=1)
        raise ConfigError("seen")

    assert ends_with(warn) == (2, "warning: two runs turned nan\nbandit-pft: seen\n")


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    assert cli.main(["readme", "--file", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"bandit-pft: {tmp_path}: Is a directory\n"


def test_a_paper_that_the_bibliography_lacks_is_named(monkeypatch, capsys):
    only = {"tajwar2024preference": "@inproceedings{tajwar2024preference,\n}"}
    monkeypatch.setattr(listing, "bibliography", lambda: only)
    assert cli.main(["cite", "dpo"]) == 2
    assert "papers.bib has no 'rafailov2023direct'" in capsys.readouterr().err


def test_compiled_programs_are_kept_in_the_users_cache_unless_another_is_named(monkeypatch, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", "named by the user")
        commands.keep_programs()
        assert jax.config.jax_compilation_cache_dir == "named by the user"
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        commands.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "bandit_pft" / "programs")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        commands.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / ".cache" / "bandit_pft" / "programs")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_an_objective_without_a_paper_or_a_gradient_is_described_as_it_is():
    def nothing(logp, group):
        """Do nothing.

        L = 0
        """
        return 0 * logp.sum()

    lines = listing.describe(as_objective(nothing)).splitlines()
    assert lines[:2] == ["nothing: Do nothing.", "  L = 0"]
    assert "force    none;" in lines[3]
    assert "reads    nothing but logp; does not change when all rewards shift" in lines[4]


# --- what it is printed on -------------------------------------------------------------------------------------------
SHOWN = "KL(π‖ref) nats, β ≤ 0.1 ± 10⁶, Fröhlich, 猫"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", SHOWN),
        ("ascii", "KL(pi||ref) nats, beta <= 0.1 +- 10^6, Frohlich, \\u732b"),
        ("cp1252", "KL(pi||ref) nats, beta <= 0.1 ± 10^6, Fröhlich, \\u732b"),
        ("latin-1", "KL(pi||ref) nats, beta <= 0.1 ± 10^6, Fröhlich, \\u732b"),
        ("shift_jis", "KL(π‖ref) nats, β <= 0.1 ± 10^6, Frohlich, 猫"),
    ],
)
def test_a_symbol_that_an_encoding_lacks_is_printed_as_a_word(encoding, shown, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in "oe")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def say(_):
        print(SHOWN)
        warnings.warn(SHOWN, stacklevel=1)
        return 0

    monkeypatch.setattr(commands, "COMMANDS", {"demo": say})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["demo"]) == 0
    err.flush()
    assert out.buffer.getvalue().decode(encoding) == shown + "\n"
    assert err.buffer.getvalue().decode(encoding) == f"warning: {shown}\n"


def test_output_without_an_encoding_of_its_own_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert cli.main(["list", "problems"]) == 0
    assert "R4" in sys.stdout.getvalue()


# What C asks for is ASCII, where Python is told not to know better.
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


# The command, with what was computed before in the place of a run.
REPLAYED = """\
import sys
from bandit_pft import cli, commands, load
ds = load(sys.argv.pop(1))
commands.sweep = lambda *_, **__: ds
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, PLAIN_C])
def test_no_encoding_of_the_terminal_stops_a_run_and_files_are_utf_8_in_any(setting, ran, tmp_path):
    command = [sys.executable, "-c", REPLAYED, str(ran[0] / "dpo.nc"), "run", "dpo", *TINY, "--out", str(tmp_path)]
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONIOENCODING", "COLUMNS")}
    done = subprocess.run(command, capture_output=True, env={**clean, **setting})
    assert done.returncode == 0, done.stderr
    assert b"KL(pi||ref) nats" in done.stdout
    assert "KL(π‖ref) nats" in (tmp_path / "dpo.txt").read_text(encoding="utf-8")


def test_lines_end_before_a_narrow_terminal_does_and_stay_whole_in_a_file(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    listed = {}
    for width in (None, 60):
        if width:
            monkeypatch.setenv("COLUMNS", str(width))
        for kind in ("claims", "presets", "objectives --brief", "dpo kto"):
            assert cli.main(["list", *kind.split()]) == 0
            text = capsys.readouterr().out
            assert " ".join(text.split()) == listed.setdefault(kind, " ".join(text.split()))
            longest = max(map(len, text.splitlines()))
            assert longest <= width if width else longest > 80
        first, second = text.splitlines()[:2]
    assert cli.main(["list", "C3"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("C3  ") and second.startswith("    ") and second[4] != " "


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_table_fits_the_terminal_and_its_file_has_whole_lines(width, ran, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(commands, "sweep", lambda *_, **__: load(ran[0] / "dpo.nc"))
    assert cli.main(["run", "dpo", *TINY, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.strip().split("\n\n")
    kept = (tmp_path / "dpo.txt").read_text(encoding="utf-8").split("\n\n")
    for block in printed[1:-1]:
        assert max(map(len, block.splitlines())) <= width
    rows = lambda text: [line.removeprefix("DPO") for line in text.splitlines() if line.startswith("DPO")]
    assert " ".join(rows(printed[1])).split() == " ".join(rows(kept[1])).split()
    assert len(rows(printed[1])) > len(rows(kept[1])) == 1

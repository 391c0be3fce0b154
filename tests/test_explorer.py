"""What the explorer shows is what the engine computes, in every host and after every packing."""

import ast
import asyncio
import base64
import dataclasses
import json
import re
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from bandit_pft import (
    ADAM,
    Group,
    Method,
    bandit,
    cli,
    force,
    paper,
    paper_bandit,
    peaks,
    serving,
    simulate,
    tabular_shared,
)
from bandit_pft import explorer as ex
from bandit_pft.errors import ConfigError, DomainError, ShapeError, StoreError
from bandit_pft.objectives import OBJECTIVES
from bandit_pft.probes import distribution_probe
from bandit_pft.problems import log_softmax

A = 12
NAMES = ("best_of_n offline", "reinforce on-policy", "forward_kl")
SCENE = ex.Scene(8, 2.0)


@pytest.fixture(scope="module")
def cast() -> ex.Cast:
    return ex.Cast(NAMES, A)


@pytest.fixture(scope="module")
def seen(cast):
    return cast.film(SCENE)


# --- the runs --------------------------------------------------------------------------------------------------------
def test_the_exact_film_is_the_simulation_with_exact_data(seen):
    problem = bandit(peaks(A, 8, 2.0), SCENE.ref_log_prob(A))
    for i, (objective, on_policy) in enumerate((("best_of_n", 0), ("reinforce_normalized", 1), ("forward_kl", 1))):
        method = Method(
            objective, on_policy=on_policy, learning_rate=0.2, optimizer=ADAM, num_responses=10, data="exact"
        )
        record = simulate(problem, method, 0, steps=ex.STEPS, probe=distribution_probe).record
        frames = np.asarray(ex.FRAMES)
        np.testing.assert_allclose(seen["log_prob"][i], record["log_prob"][frames], atol=2e-4)
        for q, (name, *_) in enumerate(ex.QUANTITIES[:-1]):
            np.testing.assert_allclose(seen["numbers"][i, :, q], record[name][frames], atol=2e-4)


def test_the_sampled_film_is_the_run_of_its_first_seed(seen):
    problem = bandit(jnp.tile(peaks(A, 8, 2.0), (4, 1)), jnp.tile(SCENE.ref_log_prob(A), (4, 1)))
    method = Method("reinforce_normalized", learning_rate=0.2, optimizer=ADAM, num_responses=10, policy=tabular_shared)
    record = simulate(problem, method, SCENE.seed, steps=ex.STEPS, probe=distribution_probe).record
    np.testing.assert_allclose(seen["sampled_log_prob"][1], record["log_prob"][np.asarray(ex.FRAMES)], atol=2e-3)


def test_every_distribution_sums_to_one_and_reward_is_its_mean(seen):
    for kind in ("", "sampled_"):
        p = np.exp(seen[f"{kind}log_prob"].astype(float))
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(seen[f"{kind}numbers"][..., 0], p @ seen["reward"], atol=1e-5)
    np.testing.assert_allclose(np.exp(seen["optimum_log_prob"]).sum(), 1, atol=1e-6)
    tilt = seen["optimum_log_prob"] - seen["ref_log_prob"] - seen["reward"] / ex.BETA
    np.testing.assert_allclose(tilt, tilt[0], atol=1e-4)


def test_the_forces_of_a_sampled_group_are_the_objectives_own(seen):
    chosen = seen["response"][1, 0].astype(int)
    group = Group.of(reward=seen["reward"][chosen], ref_logp=seen["ref_log_prob"][chosen])
    own = force("reinforce_normalized", group.ref_logp, group)[:, 0]
    np.testing.assert_allclose(seen["sampled_force"][1, 0], own / ex.PROMPTS, atol=1e-6)


def test_offline_groups_stay_and_on_policy_groups_change(seen):
    offline, on_policy, target = seen["response"]
    assert (offline == offline[0]).all()
    assert (on_policy != on_policy[0]).any()
    assert (target == -1).all()


def test_queries_are_counted_once_offline_and_at_each_step_on_policy(seen):
    queries = seen["sampled_numbers"][..., -1]
    np.testing.assert_array_equal(queries[0], [0] + [160] * (len(ex.FRAMES) - 1))
    np.testing.assert_array_equal(queries[1], 40 * np.asarray(ex.FRAMES))
    assert np.isinf(seen["numbers"][..., -1]).all()


def test_the_band_holds_the_middle_of_32_seeds(cast, seen):
    low, high = np.moveaxis(seen["band"][1, :, 0], -1, 0)
    runs = [cast.film(dataclasses.replace(SCENE, seed=i))["sampled_numbers"][1, :, 0] for i in range(ex.SEEDS)]
    np.testing.assert_allclose([low, high], np.quantile(runs, [0.1, 0.9], axis=0), atol=1e-4)
    assert (low <= high).all()


def test_two_films_of_one_scene_are_the_same_bits(cast, seen):
    again = cast.film(SCENE.plain())
    assert all(np.array_equal(x, again[name], equal_nan=True) for name, x in seen.items())


def test_factors_multiply_rates_and_hyper_parameters():
    objective = Method("dpo", {"beta": 0.3}, learning_rate=0.5)
    run = ex.Cast.run_as(objective, True, ex.Scene(0, hyper={"beta": 2.0, "clip": 3.0}, learning_rate=0.1))
    assert run.hyper["beta"] == pytest.approx(0.6)
    assert run.learning_rate == pytest.approx(0.05)
    assert set(run.hyper) == {"beta"}


def test_a_function_of_ones_own_is_a_method_like_any_other():
    def twice(logp, group):
        """Imitate in proportion to twice the reward. L = -2 mean r log pi"""
        return -2 * group.mean(group.total(logp) * group.reward)

    own = Method(twice, on_policy=0.0, name="twice offline", policy=tabular_shared)
    data = ex.film({"peak": 3, "width": 2.0}, [own, "forward_kl"], actions=A, sampled=False)
    assert list(data["algorithm"].values) == ["twice offline", "forward_kl"]
    rise = data["numbers"].sel(algorithm="twice offline", quantity="expected_reward")
    assert rise.sel(step=100) > rise.sel(step=0)


def test_a_drawn_reference_is_taken_as_logits():
    drawn = [0.0] * (A - 1) + [float("-inf")]
    film = ex.Cast(["forward_kl"], A).film({"peak": 3, "width": 2.0, "reference": drawn}, False)
    np.testing.assert_allclose(np.exp(film["log_prob"][0, 0]), [1 / (A - 1)] * (A - 1) + [0], atol=1e-6)


# --- what the page says ---------------------------------------------------------------------------------------------
def test_the_far_preset_shows_what_the_paper_shows():
    """Offline, imitation ends as the best of ten draws; a contrastive loss gets further, on-policy data to the peak."""
    scene = ex.presets(50)["far"][2]
    shown = ex.film(scene, actions=50, sampled=False)
    end = shown["numbers"].sel(quantity="expected_reward", step=ex.STEPS).to_series()
    order = np.argsort(shown["reward"].values, kind="stable")
    at_most = np.cumsum(np.exp(shown["ref_log_prob"].values.astype(float))[order])
    best_of_ten = np.diff(at_most**10, prepend=0) @ shown["reward"].values[order]
    assert end["best_of_n offline"] == pytest.approx(best_of_ten, abs=0.02)
    assert end[["ipo offline", "dpo offline"]].min() > best_of_ten + 0.3
    assert end[["ipo offline", "dpo offline"]].max() < 0.8
    assert end[["best_of_n on-policy", "ipo on-policy", "reinforce on-policy"]].min() > 0.95


def test_the_methods_of_the_headline_learn_in_the_page_as_there():
    readme = {method.name: method for method in paper.headline().methods}
    page = {method.name: method for method in ex.standard_methods()}
    assert set(page) & set(readme) == set(readme) - {"reinforce offline"}
    of = lambda m: {**vars(m), "objective": m.objective.name, "prompts": None}
    for name in set(page) & set(readme):
        assert of(page[name]) == of(readme[name])


def test_every_objective_has_a_name_in_the_page():
    made = {name: ex.method_named(name) for name in ex.method_names()}
    assert all(method.name == name for name, method in made.items())
    assert {method.objective.name for method in made.values()} == set(OBJECTIVES) - {"reinforce"}
    assert made["reinforce on-policy"].objective.name == "reinforce_normalized"
    for name, method in made.items():
        assert name.endswith("offline") == (method.on_policy == 0)
        assert (" " in name) == (method.data == "sampled")


def test_far_and_near_are_the_papers_bandits_where_there_are_its_hundred_actions():
    for name, which in (("far", "R4"), ("near", "R5")):
        label, _, scene = ex.presets(100)[name]
        theirs = paper_bandit(which)
        np.testing.assert_allclose(scene.reward(100), theirs.token_reward[0].ravel(), atol=1e-6)
        np.testing.assert_allclose(scene.ref_log_prob(100), log_softmax(theirs.ref_logits).ravel(), atol=1e-5)
        assert which in label
    assert ex.presets(100)["far"][2].peak == 70
    assert not [label for label, *_ in ex.presets(50).values() if "R4" in label or "R5" in label]


@pytest.mark.parametrize("actions", [12, 50, 100])
def test_no_two_presets_are_one_scene(actions):
    scenes = [str(scene.plain()) for *_, scene in ex.presets(actions).values()]
    assert len(set(scenes)) == len(scenes)


# --- packing ---------------------------------------------------------------------------------------------------------
def undo(spec: dict) -> dict[str, np.ndarray]:
    """Read a shard as the contract with the browser says, not as it was written."""
    data, found = zlib.decompress(base64.b64decode(spec["data"])), {}
    for one in spec["arrays"]:
        kind, count = np.dtype(one["dtype"]), int(np.prod(one["shape"]))
        raw, data = data[: count * kind.itemsize], data[count * kind.itemsize :]
        if kind.itemsize == 2:
            low, high = (np.frombuffer(raw, np.uint8)[i * count : (i + 1) * count].astype(int) for i in (0, 1))
            values = (low + 256 * high + 32768) % 65536 - 32768
        else:
            values = np.frombuffer(raw, kind)
        values = values.reshape(one["shape"])
        for axis in reversed(one.get("delta", [])):
            values = values.cumsum(axis)
            values = (values + 32768) % 65536 - 32768
        found[one["name"]] = values * one.get("scale", 1)
    assert not data
    for name in ("force", "sampled_force"):
        if name in found:
            found[name] = found[name] * found[f"{name}_scale"][..., None]
    return found


def test_a_file_holds_the_films_to_what_can_be_seen(cast, seen):
    found = undo(ex.shard([cast.film(dataclasses.replace(SCENE, peak=0)), seen]))
    for name, x in seen.items():
        got = found[name][1]
        if name.endswith("log_prob"):
            np.testing.assert_allclose(got, np.maximum(x, ex.FLOOR), atol=ex.CODE / 2 + 1e-6)
        elif name.endswith("force"):
            assert (abs(got - x) <= abs(x).max(-1, keepdims=True) / 250).all()
        elif name == "response":
            np.testing.assert_array_equal(got, np.where(x < 0, 255, x))
        elif name == "band":
            np.testing.assert_allclose(got, x, atol=2e-4)
        else:
            np.testing.assert_allclose(got, x, atol=3e-6)


def test_a_live_film_is_a_header_and_float32_arrays(seen):
    content = ex.packed(seen, id=7, want="sampled")
    size = int.from_bytes(content[:4], "little")
    header, body = json.loads(content[4 : 4 + size]), content[4 + size :]
    assert (header["id"], header["want"], header["steps"]) == (7, "sampled", list(ex.FRAMES))
    assert size % 4 == 0
    for one in header["arrays"]:
        count = 4 * int(np.prod(one["shape"]))
        np.testing.assert_array_equal(np.frombuffer(body[:count], "<f4").reshape(one["shape"]), seen[one["name"]])
        body = body[count:]
    assert not body


def test_a_page_needs_nothing_from_outside_and_its_title_is_text(tmp_path):
    told, title = [], "</script><b>&"
    tell = lambda *count: told.append(count)
    path = ex.export(tmp_path / "page.html", ["forward_kl"], actions=4, title=title, progress=tell)
    page = path.read_text()
    assert re.findall(r"(?:src|href)=|@import|<link|import\s*\(", page) == []
    assert "<title>&lt;/script&gt;&lt;b&gt;&amp;</title>" in page
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'id="bandit-pft-data">(.*?)</script>', page, re.S)[1])
    assert data["meta"]["title"] == title
    assert len(data["shards"]) == len(data["meta"]["grid"]) == 5
    scenes = [preset["scene"] for preset in data["meta"]["presets"]]
    known = [{k: one[k] for k in ("width", "second", "reference")} for one in data["meta"]["grid"]]
    assert all({k: scene[k] for k in ("width", "second", "reference")} in known for scene in scenes)
    assert told[0] == (0, 20)
    assert told[-1] == (19, 20)


def test_the_page_hides_only_what_it_knows(cast):
    code = (ex.STATIC / "explorer.js").read_text()
    assert [name for name in ex.CONTROLS if f'"{name}"' not in code] == []
    with pytest.raises(ConfigError, match=r"hide has no 'log_': did you mean log"):
        ex.meta(cast, SCENE, mode="live", hide=["log_"])


def test_what_the_browser_is_told_is_json_and_the_text_it_fills_in_is_python(cast):
    told = json.loads(json.dumps(ex.meta(cast, SCENE, mode="live")))
    assert [method["data"] for method in told["methods"]] == ["offline", "on-policy", "target"]
    assert [method["pushes"] for method in told["methods"]] == [False, True, False]
    code = told["python"]
    for name, value in (("scene", repr(SCENE.plain())), ("methods", repr(list(NAMES))), ("step", "100")):
        code = code.replace(f"{{{{{name}}}}}", value)
    call = ast.parse(code).body[-2].value
    assert call.func.id == "film"
    assert f"actions={A}" in code


# --- scenes ----------------------------------------------------------------------------------------------------------
def test_a_scene_survives_the_way_to_the_browser_and_back():
    scene = ex.Scene(3, 2.5, 0.5, ex.Peak(9, 1.0, 0.2), "wrong", 2.0, {"beta": 0.5}, 4)
    assert ex.Scene.of(json.loads(json.dumps(scene.plain()))) == scene


@pytest.mark.parametrize(
    ("scene", "error", "text"),
    [
        ({"peek": 3}, ConfigError, "scene has no 'peek': did you mean peak or seed?"),
        ({"peak": A}, DomainError, "peak is 12; the last of 12 actions is 11"),
        ({"peak": -1}, ConfigError, "peak is -1; it must be at least 0"),
        ({"peak": 2.5}, (TypeError, DomainError), "peak"),
        ({"peak": 2, "width": 0}, DomainError, "width"),
        ({"peak": 2, "width": float("nan")}, DomainError, "width"),
        ({"peak": 2, "second": {"peak": 40, "width": 1}}, DomainError, "second peak is 40"),
        ({"peak": 2, "reference": "papers"}, ConfigError, "did you mean paper?"),
        ({"peak": 2, "reference": [0.0] * 3}, ShapeError, "reference"),
        ({"peak": 2, "reference": [float("nan")] * A}, DomainError, "reference"),
        ({"peak": 2, "learning_rate": 0}, DomainError, "learning_rate"),
        ({"peak": 2, "hyper_beta": -1}, DomainError, "hyper_beta"),
        ({"peak": 2, "seed": -1}, ConfigError, "seed"),
        (3, TypeError, "scene is 3; it must be a Scene or a dictionary"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_scene_that_cannot_be_is_refused_by_name(cast, scene, error, text):
    with pytest.raises(error, match=re.escape(text)):
        cast.film(scene)


@pytest.mark.parametrize(
    ("methods", "error", "text"),
    [
        (["dpo ofline"], ConfigError, "methods has no 'dpo ofline': did you mean dpo offline"),
        ([3], TypeError, "methods has 3; give a Method, or a name such as 'dpo offline'"),
        ([], ConfigError, "at least one"),
        (["forward_kl", "forward_kl"], ConfigError, "no name twice"),
    ],
)
def test_methods_that_cannot_be_shown_are_refused(methods, error, text):
    with pytest.raises(error, match=re.escape(text)):
        ex.Cast(methods, A)


def test_a_file_of_more_actions_than_bytes_can_name_is_refused(tmp_path):
    with pytest.raises(DomainError, match="actions is 300"):
        ex.export(tmp_path / "page.html", ["forward_kl"], actions=300)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_hidden_is_refused_before_a_film_is_made(tmp_path):
    (tmp_path / "file").touch()
    films = []
    make = lambda path, **how: ex.export(path, ["forward_kl"], actions=4, progress=lambda *n: films.append(n), **how)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "file" / "page.html"))):
        make(tmp_path / "file" / "page.html")
    with pytest.raises(ConfigError, match="hide has no 'typo'"):
        make(tmp_path / "page.html", hide=["typo"])
    assert films == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- hosts -----------------------------------------------------------------------------------------------------------
def test_the_widget_answers_a_request_and_tells_what_is_wrong(monkeypatch):
    widget = ex.explore(["forward_kl"], "near", actions=A, hide=["pin"])
    assert widget.meta["hide"] == ["pin"]
    widget.request = {"id": 1, "scene": {"peak": 3, "width": 2.0}, "want": "exact"}
    size = int.from_bytes(widget.film[:4], "little")
    assert json.loads(widget.film[4 : 4 + size])["id"] == 1
    sent = []
    monkeypatch.setattr(widget, "send", sent.append)
    widget.request = {"id": 2, "scene": {"peak": 300}, "want": "exact"}
    assert sent == [{"type": "error", "id": 2, "text": "peak is 300; the last of 12 actions is 11"}]


def test_without_the_widgets_library_there_are_sliders_and_without_those_advice(monkeypatch):
    there = {"ipywidgets"}
    monkeypatch.setattr(ex.importlib.util, "find_spec", lambda name: name if name in there else None)
    box = ex.explore(["forward_kl"], "near", actions=A)
    assert [control.description for control in box.children[:-1]] == ["Peak", "Width", "Step", "Logarithmic"]
    there.clear()
    with pytest.raises(ImportError, match=r"pip install 'bandit-pft\[lab\]'"):
        ex.explore(["forward_kl"], "near", actions=A)


@pytest.mark.parametrize("log", [False, True])
def test_a_picture_draws_each_methods_policy_at_the_frame(cast, seen, log):
    figure = ex.picture(cast, SCENE, 4, log=log)
    drawn = [ax for ax in figure.axes if ax.get_visible()]
    assert len(drawn) == len(NAMES)
    for ax, logp in zip(drawn, seen["log_prob"], strict=True):
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), np.exp(logp[4]), rtol=1e-5)


def test_the_command_writes_a_page_and_refuses_what_does_not_exist(tmp_path, capsys):
    path = tmp_path / "page.html"
    assert cli.main(["export", str(path), "--methods", "forward_kl", "--actions", "4"]) == 0
    assert "1 MB" in capsys.readouterr().out
    assert path.stat().st_size < 200_000
    assert cli.main(["export", str(path), "--methods", "dpo"]) == 2
    assert "methods has no 'dpo'" in capsys.readouterr().err
    assert cli.main(["serve", "--kernels", "0"]) == 2
    assert "--kernels is 0" in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch):
    """What would be started instead of a server."""
    calls = []
    monkeypatch.setattr(serving, "_run", lambda *command: calls.append(command) or 0)
    return calls


def test_lab_opens_our_notebooks_or_a_copy(started, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lab", "--no-browser"]) == 0
    assert started.pop() == ("jupyterlab", f"--ServerApp.root_dir={serving.HERE.parent / 'notebooks'}", "--no-browser")
    assert cli.main(["lab", "mine"]) == 0
    assert started.pop() == ("jupyterlab", f"--ServerApp.root_dir={tmp_path / 'mine'}")
    assert (tmp_path / "mine" / "00_policies_and_mass.ipynb").exists()
    (tmp_path / "mine" / "00_policies_and_mass.ipynb").write_text("mine now")
    assert cli.main(["lab", "mine"]) == 0
    assert (tmp_path / "mine" / "00_policies_and_mass.ipynb").read_text() == "mine now"
    (tmp_path / "file").touch()
    assert cli.main(["lab", "file"]) == 2
    assert "file is a file" in capsys.readouterr().err


def test_serve_listens_to_this_machine_alone_and_asks_for_a_token(started):
    assert cli.main(["serve", "--port", "1234", "--kernels", "3", "--no-browser"]) == 0
    module, page, *options = started.pop()
    assert module == "voila"
    assert page.endswith("explorer.ipynb")
    assert {"--Voila.ip=127.0.0.1", "--Voila.auto_token=True", "--FewKernels.most=3", "--port=1234"} <= set(options)


def test_one_kernel_too_many_is_refused(monkeypatch):
    async def begin(self, **how):
        self._kernels[str(len(self))] = object()
        return str(len(self))

    monkeypatch.setattr(serving.FewKernels.__mro__[1], "start_kernel", begin)
    kernels = serving.FewKernels(most=2)
    asyncio.run(kernels.start_kernel())
    asyncio.run(kernels.start_kernel())
    with pytest.raises(serving.HTTPError, match="all 2 kernels are in use"):
        asyncio.run(kernels.start_kernel())
    kernels._kernels.clear()


def test_a_server_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match=r"no_such_server is not installed: pip install 'bandit-pft\[lab\]'"):
        serving._run("no_such_server")

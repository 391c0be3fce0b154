"""Figures show the numbers they were given, say what they show, and can be read."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from refusals import check_refusal
from scipy import stats

from bandit_pft import SGD, Method, plots, style, sweep
from bandit_pft.errors import ConfigError
from bandit_pft.problems import bandit, paper_bandit

NAMES = ["best_of_n offline", "best_of_n on-policy", "reinforce_group", "dpo offline", "dpo on-policy", "a_new_method"]
FAMILIES = ["supervised", "supervised", "reward", "preference", "preference", "preference"]
STEPS = np.arange(0, 101, 5)
DIMS = ("problem", "algorithm", "seed", "step")


def results(seeds: int = 5, names=NAMES, families=FAMILIES) -> xr.Dataset:
    """Learning curves of known shape that end close together, the hard case for labels."""
    rng = np.random.default_rng(0)
    shape = (2, len(names), seeds, 1)
    top = np.concatenate([rng.uniform(0.3, 0.9, (1, *shape[1:])), rng.uniform(0.95, 0.96, (1, *shape[1:]))])
    reward = top * (1 - np.exp(-STEPS / 20))
    queries = np.broadcast_to(10.0 * (1 + STEPS * np.arange(len(names))[:, None]), (2, len(names), STEPS.size))
    variables = {
        "expected_reward": (DIMS, reward, {"units": "reward"}),
        "kl": (DIMS, 4 * reward**2, {"units": "nats"}),
        "reward_queries": (("problem", "algorithm", "step"), queries, {"units": "rewards asked for"}),
    }
    coords = {"problem": ["R4", "R5"], "algorithm": names, "family": ("algorithm", families)}
    return xr.Dataset(variables, coords | {"seed": np.arange(seeds), "step": STEPS})


def with_policies(ds: xr.Dataset) -> xr.Dataset:
    """The two last recorded steps, with a policy for each run."""
    ds = ds.isel(step=[0, -1])
    logits = np.random.default_rng(1).normal(size=(*ds["expected_reward"].shape, 100)) * 5
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return ds.assign(log_prob=((*DIMS, "action"), logp, {"units": "nats"}))


FIGURES = {
    "curves": lambda: plots.learning_curves(results()),
    "curves by queries": lambda: plots.learning_curves(results(), x="reward_queries"),
    "frontier": lambda: plots.frontier(results(), [paper_bandit("R4"), paper_bandit("R5")]),
    "mass": lambda: plots.mass_figure(with_policies(results()), paper_bandit("R4")),
    "problem": lambda: plots.problem_figure(paper_bandit("R4"), optima=[0.1]),
    "20 methods": lambda: plots.learning_curves(results(2, [f"m{i}" for i in range(20)], ["reward"] * 20)),
}


def texts(figure):
    """Every visible text with its size in points and its box in pixels."""
    figure.draw_without_rendering()
    # Matplotlib keeps labels around for ticks that it does not draw.
    axes = [axis for ax in figure.axes if ax.get_visible() for axis in (ax.xaxis, ax.yaxis)]
    kept = {id(label) for axis in axes for t in (*axis.majorTicks, *axis.minorTicks) for label in (t.label1, t.label2)}
    drawn = {
        id(tick.label1)
        for axis in axes
        if axis.axes.get_visible() and axis.get_visible()
        for tick in axis._update_ticks()
    }
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    found = [t for t in found if (t.axes is None or t.axes.get_visible()) and (id(t) in drawn or id(t) not in kept)]
    return [(text.get_text(), text.get_fontsize(), text.get_window_extent()) for text in found]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another_and_all_of_it_is_on_the_page_and_large(name):
    figure = FIGURES[name]()
    found = texts(figure)
    assert len(found) > 10
    page = figure.bbox
    for text, size, box in found:
        assert size >= 14 or "mathdefault" in text, text
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, text
    for (a, _, one), (b, _, other) in itertools.combinations(found, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 3, f"{a!r} covers {b!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_names_its_axes(name):
    figure = FIGURES[name]()
    panels = [ax for ax in figure.axes if ax.get_visible() and (ax.lines or ax.get_ylabel())]
    columns = {}
    for ax in panels:
        columns.setdefault(round(ax.get_position().x0, 2), []).append(ax)
    assert all(any(ax.get_xlabel() for ax in column) for column in columns.values())
    assert figure.get_supylabel() or panels[0].get_ylabel()


def test_lines_are_means_and_bands_the_central_80_percent_of_the_seeds():
    ds = results()
    ax = plots.learning_curves(ds).axes[0]
    for i in range(len(NAMES)):
        line = next(x for x in ax.lines if x.get_zorder() == 3 and x.get_color() == style.colour(FAMILIES[i]))
        assert line.get_color() == style.colour(FAMILIES[i])
    curves = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == STEPS.size]
    np.testing.assert_allclose(curves, ds["expected_reward"].sel(problem="R4").mean("seed"), rtol=1e-12)
    for i, band in enumerate(ax.collections):
        edge = band.get_paths()[0].vertices
        runs = np.sort(ds["expected_reward"].values[0, i, :, -1])
        # With 5 seeds the 10th percentile lies 0.4 of the way from the lowest run to the second.
        low, high = runs[0] + 0.4 * (runs[1] - runs[0]), runs[4] - 0.4 * (runs[4] - runs[3])
        at_end = edge[edge[:, 0] == STEPS[-1], 1]
        np.testing.assert_allclose([at_end.min(), at_end.max()], [low, high], rtol=1e-9)


def test_each_label_is_the_line_of_its_colour_and_dash_and_starts_at_its_end():
    ds = results()
    ax = plots.learning_curves(ds).axes[0]
    ends = {text.get_text(): text for text in ax.texts}
    assert set(ends) == {style.label(name) for name in NAMES}
    for name, family in zip(NAMES, FAMILIES, strict=True):
        assert ends[style.label(name)].get_color() == style.colour(family)
    order = ds["expected_reward"].sel(problem="R4").isel(step=-1).mean("seed").values.argsort()
    heights = [ends[style.label(NAMES[i])].xy[1] for i in order]
    assert heights == sorted(heights)


def test_the_vertical_axis_of_rewards_starts_at_zero_and_panels_share_it():
    left, right = plots.learning_curves(results()).axes[:2]
    assert left.get_ylim()[0] == 0
    assert left.get_ylim() == right.get_ylim()


def test_negative_rewards_are_inside_the_axes():
    ds = results()
    ds["expected_reward"] = ds["expected_reward"] - 7
    low, high = plots.learning_curves(ds).axes[0].get_ylim()
    assert low < ds["expected_reward"].min() and high > ds["expected_reward"].max()


def test_the_number_of_seeds_and_what_is_missing_is_said():
    ds = results()
    assert "5 seeds" in plots.learning_curves(ds).get_supxlabel()
    ds["expected_reward"][0, 1, 2, -1] = np.nan
    assert "1 of 60 runs have no finite values" in plots.learning_curves(ds).get_supxlabel()
    ds["first_bad_step"] = (DIMS[:3], np.where(np.arange(60).reshape(2, 6, 5) < 3, 4, -1))
    assert "3 of 60 runs diverged" in plots.learning_curves(ds).get_supxlabel()
    assert "1 seed" in plots.learning_curves(ds.isel(seed=[0])).get_supxlabel()


def test_the_optimum_bounds_every_policy_at_its_kl():
    problem = paper_bandit("R4")
    x, y = plots._optimal_frontier(problem)
    reward = np.asarray(problem.reward_table(0))
    log_ref = np.asarray(problem.ref_table(0), np.float64)
    logits = np.random.default_rng(2).normal(size=(500, 100)) * np.linspace(0, 8, 500)[:, None] + log_ref
    logits += reward * np.linspace(0, 30, 500)[::-1, None]
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    kl = (np.exp(logp) * (logp - log_ref)).sum(-1)
    inside = kl < x[-1]
    assert inside.sum() > 100
    assert (np.exp(logp) @ reward <= np.interp(kl, x, y) + 2e-3)[inside].all()
    # Known ends: the reference itself, and all mass on the best action at -log ref of it.
    np.testing.assert_allclose([x[0], y[0], x[-1], y[-1]], [0, 0.0390, 6.160, 1], atol=1e-3)


def test_the_mass_figure_draws_the_mean_probability_and_not_the_mean_log_probability():
    ds = with_policies(results())
    ax = plots.mass_figure(ds, paper_bandit("R4")).axes[0]
    bold = [line for line in ax.lines if line.get_linewidth() > 2 and line.get_color() == style.COLOURS["supervised"]]
    expected = np.exp(ds["log_prob"].sel(problem="R4").isel(algorithm=0, step=-1)).mean("seed")
    np.testing.assert_allclose(bold[0].get_ydata(), expected, rtol=1e-9)


def test_files_of_the_same_figure_are_the_same_bytes(tmp_path):
    first = plots.save(plots.learning_curves(results()), tmp_path / "a" / "figure.v1")
    second = plots.save(plots.learning_curves(results()), tmp_path / "b" / "figure.v1")
    assert [path.name for path in first] == ["figure.v1.svg", "figure.v1.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert first[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_notebook_can_show_a_figure():
    assert plots.problem_figure(bandit([0.0, 1.0]))._repr_png_()[:4] == b"\x89PNG"


def test_the_tables_hold_mean_and_central_80_percent():
    ds = results()
    runs = ds["expected_reward"].sel(problem="R5", algorithm="dpo offline").isel(step=-1).values
    first, second, _, fourth, fifth = np.sort(runs)
    low, high = first + 0.4 * (second - first), fifth - 0.4 * (fifth - fourth)
    cell = f"{runs.mean():.3f} [{low:.3f}, {high:.3f}]"
    for text in (plots.table(ds), plots.markdown_table(ds)):
        line = next(line for line in text.splitlines() if "DPO offline" in line)
        assert cell in line
        assert "over 5 seeds" in text.splitlines()[0]
    assert plots.markdown_table(ds).count("\n| ") == len(NAMES) + 2


def test_the_summary_has_a_block_per_problem_and_says_who_is_not_in_it():
    ds = results()
    ds["expected_reward"][1, 3, 1, -1] = np.nan
    text = plots.summary(ds)
    caption, first, second, lost = text.split("\n\n")
    assert "5 seeds" in caption and "100 gradient steps" in caption
    assert [block.splitlines()[0] for block in (first, second)] == ["R4", "R5"]
    assert all(len(block.splitlines()) == 4 + len(NAMES) for block in (first, second))
    kl = np.sort(ds["kl"].sel(problem="R4", algorithm="dpo on-policy").isel(step=-1).values)
    low, high = kl[0] + 0.4 * (kl[1] - kl[0]), kl[4] - 0.4 * (kl[4] - kl[3])
    row = next(line for line in first.splitlines() if line.startswith("DPO on-policy"))
    assert f"{kl.mean():.2f} {low:.2f} {high:.2f}" in row
    assert row.split()[-2:] == ["100", "4,010"]
    assert lost == "DPO offline on R5: 1 of 5 seeds not finite, and not in the numbers"


@pytest.mark.parametrize("width", [20, 50, 80, 119])
def test_columns_that_find_no_room_stand_below_and_no_number_is_cut(width):
    ds = results()
    wide, narrow = (plots.summary(ds, width=most).split("\n\n")[1].splitlines() for most in (None, width))
    rows = lambda lines, label: " ".join(line.removeprefix(label) for line in lines if line.startswith(label)).split()
    for label in ("DPO on-policy", "DPO offline"):
        assert rows(narrow, label) == rows(wide, label)
    columns = [line for line in narrow if line.startswith("method ")]
    words = " ".join(line.removeprefix("method") for line in columns).split()
    assert words == wide[1].removeprefix("method").split()
    # A part has at least the methods and one column, however narrow.
    one = max(map(len, plots.summary(ds, width=1).splitlines()[2:]))
    assert max(map(len, narrow)) <= max(width, one)
    assert len(columns) == {20: 4, 119: 1}.get(width, len(columns))


def test_a_logarithmic_axis_starts_with_the_first_reward_that_was_asked_for():
    ds = results()
    ds["reward_queries"] = (ds["step"] ** 2.0 + 0 * ds["kl"].isel(seed=0)).transpose("problem", "algorithm", "step")
    ax = plots.learning_curves(ds, x="reward_queries").axes[0]
    assert ax.get_xscale() == "log"
    curves = [line for line in ax.lines if len(line.get_xdata()) == STEPS.size - 1]
    assert len(curves) == len(NAMES)
    assert all(line.get_xdata()[0] == 25 for line in curves)


def test_a_table_says_which_runs_are_not_in_its_mean():
    ds = results()
    ds["expected_reward"][0, 0, 1, -1] = np.inf
    assert "(1 of 5 not finite)" in plots.table(ds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("expected_reward"), "no 'expected_reward'"),
        (lambda ds: ds.mean("seed"), "seed"),
        (lambda ds: ds.drop_vars("family"), "family"),
        (lambda ds: ds.expand_dims(beta=[0.1, 1.0]), "beta"),
    ],
)
def test_data_that_cannot_be_drawn_are_refused_with_what_to_do(change, message):
    with pytest.raises(ConfigError, match=message):
        plots.learning_curves(change(results()))


def test_a_mistyped_axis_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean reward_queries"):
        plots.learning_curves(results(), x="reward_querys")


@given(st.lists(st.floats(-0.2, 1.2, allow_subnormal=False), min_size=1, max_size=12), st.floats(0.001, 0.08))
def test_spread_labels_keep_order_and_distance_inside_the_panel(wanted, gap):
    places = plots.spread(wanted, gap)
    inside = np.sort(places)
    assert (np.diff(inside) >= gap - 1e-9).all()
    assert inside[0] >= -1e-9 and inside[-1] <= 1 + 1e-9
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(places[order]) > 0).all()


def test_spread_labels_are_the_nearest_in_squares():
    from scipy.optimize import minimize

    wanted, gap = np.array([0.5, 0.52, 0.1, 0.51, 0.98, 0.99]), 0.06
    order = np.argsort(wanted)
    limits = {"type": "ineq", "fun": lambda x: np.append(np.diff(x[order]) - gap, [x.min(), 1 - x.max()])}
    best = minimize(
        lambda x: ((x - wanted) ** 2).sum(), np.linspace(0.1, 0.9, 6)[np.argsort(order)], constraints=limits
    )
    np.testing.assert_allclose(plots.spread(wanted, gap), best.x, atol=1e-4)


def test_labels_that_already_stand_apart_stay_where_they_are():
    np.testing.assert_allclose(plots.spread([0.9, 0.1, 0.5], 0.05), [0.9, 0.1, 0.5])


# --- what bands promise ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def many_seeds() -> np.ndarray:
    """Expected reward after a few noisy steps, of 8,000 seeds: 1,000 repeats of a comparison over 8."""
    problem = bandit(np.linspace(0, 1, 10), name="ramp")
    # At this rate Adam would jump to one action or another, and t intervals of eight such runs are too short.
    method = Method("reinforce_group", learning_rate=1.0, num_responses=4, optimizer=SGD)
    data = sweep(problem, method, seeds=range(8000), steps=20, every=20)
    return data["expected_reward"].values[0, 0, :, -1].astype(np.float64).reshape(1000, 8)


def test_the_shown_interval_of_the_mean_holds_the_mean_of_all_seeds_in_95_of_100_comparisons(many_seeds):
    low, high = plots.mean_interval(many_seeds.T)
    covered = ((low <= many_seeds.mean()) & (many_seeds.mean() <= high)).mean()
    assert 0.93 < covered < 0.97
    # The interval of scipy's own t test.
    wanted = stats.ttest_1samp(many_seeds[0], 0).confidence_interval(0.95)
    np.testing.assert_allclose((low[0], high[0]), wanted, rtol=1e-12)


def test_the_range_of_the_seeds_holds_a_new_seed_as_often_as_its_docstring_says(many_seeds):
    # Of ranks, which are uniform, exactly; of other shapes about, since interpolation follows the density.
    ranks = stats.rankdata(many_seeds).reshape(many_seeds.shape) / many_seeds.size
    for values, slack in ((ranks, 0.02), (many_seeds, 0.06)):
        for n in (5, 8):
            low, high = plots.seed_range(values[:, :n].T)
            new = np.roll(values, 1, axis=0)  # Of other repeats.
            covered = ((low[:, None] <= new) & (new <= high[:, None])).mean()
            assert covered == pytest.approx(0.8 * (n - 1) / (n + 1), abs=slack)


def test_curves_and_tables_say_which_spread_they_show(monkeypatch):
    data = sweep(bandit([0.0, 1.0], name="two"), Method("dpo"), seeds=range(3), steps=2)
    assert "95 % confidence interval" in plots.table(data, spread="mean") and "10 %, 90 %" in plots.table(data)
    labels = [plots.learning_curves(data, spread=spread).get_supxlabel() for spread in ("seeds", "mean")]
    assert "10-90 % of the seeds" in labels[0] and "95 % confidence interval of the mean" in labels[1]
    check_refusal(lambda: plots.table(data, spread="std"), ConfigError, "spread is 'std'", monkeypatch)
    assert np.isinf(plots.mean_interval(np.ones((1, 3)))).all()

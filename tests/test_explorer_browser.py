"""The exported explorer in a real browser, without a network: hands, pictures, addresses, exports, accessibility."""

import ast
import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import (
    HANDLE,
    assert_mass_is_at,
    centre,
    chromium,
    drag_peak_down_by,
    last_action,
    peak_handle,
    per_action,
    policy,
    state,
)

from bandit_pft import explorer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    # Fewer methods and actions than in a lesson: the browser does the same, and the films are made sooner.
    explorer.export(path, ["dpo offline", "dpo on-policy", "reverse_kl"], actions=40)
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def show(browser, exported):
    """Opens the page offline; at the end nothing may have been fetched and no error may have been raised."""
    contexts, faults = [], []

    def open_page(address="", path=exported, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        local = ("file:", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(local) else faults.append(r.url))
        page.goto(path.as_uri() + address)
        if path == exported:
            page.evaluate(f"{HANDLE}.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


REFERENCE = f"Array.from({HANDLE}.film().arrays.ref_log_prob)"
CURVES = "curves => curves.map(curve => curve.getAttribute('d'))"


def film_numbers(page, name):
    """One number of every shown method at every frame."""
    found = page.evaluate(f"({{shape: {HANDLE}.film().shapes.numbers, x: Array.from({HANDLE}.film().arrays.numbers)}})")
    names = page.evaluate(f"{HANDLE}.meta.numbers.map(n => n.name)")
    return np.reshape(np.array(found["x"], dtype=float), found["shape"])[..., names.index(name)]


def lit(page):
    return page.locator(".presets button[aria-pressed=true]").all_text_contents()


def test_a_fresh_page_asks_before_it_answers(show):
    page = show()
    assert state(page)["step"] == 0
    question = page.locator(".question")
    assert "Who gets further?" in question.inner_text()
    assert question.bounding_box()["y"] < min(b.bounding_box()["y"] for b in page.locator(".presets button").all())
    for name in ("dpo offline", "dpo on-policy"):
        np.testing.assert_allclose(policy(page, name), np.exp(page.evaluate(REFERENCE)), atol=1e-3)


def test_the_curve_tells_nothing_of_the_steps_to_come(show):
    page = show()
    points = lambda: [d.count("L") + 1 for d in page.locator(".plot .curve").evaluate_all(CURVES)]
    assert set(points()) == {1}
    for _ in range(3):
        page.get_by_role("button", name="Step forward").click()
    assert set(points()) == {4}


def test_a_preset_waits_at_its_start_and_lights_alone(show):
    page = show("#step=last")
    for preset in page.locator(".presets button").all():
        preset.click()
        page.wait_for_function(f"{HANDLE}.state().step === 0")
        assert page.get_by_role("button", name="Play").is_visible()
        assert lit(page) == [preset.text_content()]
        assert page.locator(".question").inner_text().endswith("?")
        page.get_by_role("slider", name="Step", exact=True).press("End")


def test_a_prediction_that_is_given_up_leaves_the_answer_covered(show):
    page = show()
    page.get_by_role("button", name="Predict first").click()
    page.get_by_role("button", name="Done").click()
    assert state(page)["step"] == 0


@pytest.mark.parametrize(("key", "what"), [
    ("o", "view"), ("l", "log"), ("a", "own"), ("e", "sampled"), ("f", "forces"), ("s", "samples"), (".", "frame"),
])  # fmt: skip
def test_keys_work_before_anything_was_clicked(show, key, what):
    page = show()
    before = state(page)[what]
    page.keyboard.press(key)
    assert state(page)[what] != before
    page.evaluate(f"{HANDLE}.destroy()")
    page.keyboard.press(key)  # Nobody listens any more, or the page would report an error.


def test_space_plays_a_fresh_page_and_does_not_scroll_it(show):
    page = show(viewport={"width": 800, "height": 400})
    page.keyboard.press("Space")
    page.wait_for_function(f"{HANDLE}.state().frame > 1")
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").is_visible()
    assert page.evaluate("scrollY") == 0


def test_a_fresh_page_presents_and_lists_its_keys_which_are_then_not_for_what_lies_behind(show):
    page = show()
    page.keyboard.press("m")
    assert page.locator(".bandit-pft.present .question").is_visible()
    page.keyboard.press("m")
    page.keyboard.press("?")
    assert page.locator("dialog kbd").count() > 10
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("l")
    assert not state(page)["log"]


@pytest.mark.parametrize("tag", ["input", "textarea", "select", "button", "div contenteditable"])
def test_keys_that_belong_to_another_element_are_left_to_it(show, tag):
    page = show()
    page.evaluate(f"document.body.insertAdjacentHTML('afterbegin', '<{tag} id=other></{tag.split()[0]}>')")
    page.locator("#other").focus()
    page.keyboard.press("l")
    assert not state(page)["log"]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+l")
    page.keyboard.press("Alt+l")
    assert not state(page)["log"]


def test_of_two_explorers_on_a_page_the_one_with_the_focus_answers_and_else_the_first(show, exported, tmp_path):
    start, both = 'boot(document.getElementById("explorer"));', tmp_path / "two.html"
    second = 'window.second = boot(document.body.appendChild(document.createElement("div")));'
    both.write_text(exported.read_text(encoding="utf-8").replace(start, f"window.first = {start}{second}"), "utf-8")
    page = show(path=both)
    page.evaluate("Promise.all([first.ready, second.ready]).then(() => 0)")
    logs = lambda: page.evaluate("[first.state().log, second.state().log]")
    page.keyboard.press("l")
    assert logs() == [True, False]
    page.locator("h1").last.click()
    page.keyboard.press("l")
    assert logs() == [True, True]


def test_dragging_the_peak_with_the_mouse_takes_the_mass_along(show):
    page = show()
    drag_peak_down_by(page, 30)
    assert_mass_is_at(page, last_action(page) - 30)


def test_keys_alone_take_the_mass_along(show):
    page = show()
    handle = peak_handle(page)
    handle.focus()
    handle.press("Home")
    assert handle.get_attribute("aria-valuenow") == "0"
    for key in ["Shift+ArrowRight"] * 6 + ["ArrowRight", "ArrowUp", "ArrowLeft", "PageDown", "PageUp"]:
        handle.press(key)
    assert handle.get_attribute("aria-valuenow") == "31"
    assert "31" in handle.get_attribute("aria-valuetext")
    assert_mass_is_at(page, 31)


def test_a_finger_takes_the_mass_along(show):
    page = show(has_touch=True, viewport={"width": 360, "height": 740})
    width = per_action(page)
    handle = peak_handle(page)
    handle.scroll_into_view_if_needed()
    x, y = centre(handle)
    touch = page.context.new_cdp_session(page)
    points = lambda x: [{"x": x, "y": y}]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points(x)})
    for k in range(1, 31):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points(x - k * width)})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    peak = last_action(page) - 30
    page.wait_for_function(f"{HANDLE}.state().scene.peak === {peak}")
    assert_mass_is_at(page, peak)


def test_the_timeline_goes_both_ways_and_plays(show):
    page = show("#step=0")
    times = page.get_by_role("slider", name="Step", exact=True)
    times.press("End")
    steps = page.evaluate(f"{HANDLE}.film().steps")
    assert state(page)["step"] == steps[-1]
    times.press("ArrowLeft")
    assert state(page)["step"] == steps[-2]
    page.get_by_role("button", name="Reset to step 0").click()
    assert state(page)["step"] == 0
    np.testing.assert_allclose(policy(page, "dpo on-policy"), policy(page, "dpo offline"), atol=1e-3)
    page.get_by_role("button", name="Step forward").click()
    assert state(page)["step"] == steps[1]
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(f"{HANDLE}.state().frame > 3")
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


def test_the_log_view_names_its_axis_and_goes_down_to_a_millionth_of_a_millionth(show):
    page = show("#view=over")
    page.get_by_role("button", name="Log", exact=True).click()
    ticks = page.locator(".pictures .tick:visible").all_text_contents()
    assert {"1", "1e−3", "1e−12", "probability (log scale)"} <= set(ticks)


def test_the_address_brings_the_same_state_back(show):
    page = show()
    peak_handle(page).press("Home")
    page.get_by_role("button", name="Overlaid").click()
    page.get_by_role("button", name="Sampled").click()
    page.get_by_role("slider", name="Step", exact=True).press("PageUp")
    page.locator(".chip").last.click()
    before = state(page)
    page.wait_for_function(f"location.hash === {json.dumps(before['hash'])}")
    again = show(before["hash"])
    assert state(again) == before
    assert not again.locator(".notice").is_visible()


def test_a_hostile_or_impossible_address_is_answered_in_words_and_makes_no_element(show):
    attack = "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"
    page = show(f"#peak=4000&width=-7&methods={attack}&view={attack}&step={attack}&{attack}=1&reference={attack}")
    notice = page.locator(".notice")
    assert f"4000 is outside 0 to {last_action(page)}" in notice.inner_text()
    assert "<img" in notice.inner_text()
    assert "is not a number from 0 up; step 0 is shown" in notice.inner_text()
    assert state(page)["step"] == 0
    assert page.locator("img").count() == 0
    assert_mass_is_at(page, last_action(page))


def test_the_python_text_makes_the_numbers_on_the_screen(show):
    page = show("#peak=33")
    page.get_by_role("button", name="Copy as Python").click()
    text = page.locator("dialog textarea").input_value()
    literal = lambda kind: next(ast.literal_eval(n) for n in ast.walk(ast.parse(text)) if isinstance(n, kind))
    scene, methods = literal(ast.Dict), literal(ast.List)
    assert scene["peak"] == 33
    found = explorer.film(scene, methods, actions=last_action(page) + 1, sampled=False)
    rewards = found["numbers"].sel(quantity="expected_reward").values
    rows = [page.evaluate(f"{HANDLE}.meta.methods.findIndex(m => m.name === {json.dumps(m)})") for m in methods]
    np.testing.assert_allclose(film_numbers(page, "expected_reward")[rows], rewards, atol=1e-5)


@pytest.mark.parametrize(("button", "start"), [
    ("PNG picture", b"\x89PNG"), ("SVG picture", b"<svg"),
    ("Video (webm)", b"\x1a\x45\xdf\xa3"), ("CSV numbers", b"method,"),
])  # fmt: skip
def test_exports_are_files_of_their_kind(show, button, start):
    page = show("#step=20")
    page.locator(".transport select").select_option("4")
    page.get_by_text("Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    content = download.value.path().read_bytes()
    assert content.startswith(start)
    assert len(content) > 2000
    if start == b"method,":
        rows = content.decode().splitlines()
        assert len(rows) == 1 + len(state(page)["shown"]) * len(page.evaluate(f"{HANDLE}.film().steps"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["#view=side", "#view=over&log=1&sampled=1&samples=1"])
def test_axe_finds_nothing_serious(show, scheme, address):
    page = show(address, color_scheme=scheme)
    assert page.locator(".bandit-pft").get_attribute("data-theme") == scheme
    found = Axe().run(page).response["violations"]
    assert not [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]


def test_a_phone_shows_one_column_without_sideways_scrolling_and_large_handles(show):
    page = show(viewport={"width": 360, "height": 740}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".picture").first.bounding_box()["width"] <= 360
    for handle in page.locator(".handle:visible .hit").all():
        assert min(handle.bounding_box()["width"], handle.bounding_box()["height"]) >= 44


def damaged(exported, tmp_path, change):
    text = exported.read_text(encoding="utf-8")
    path = tmp_path / "damaged.html"
    path.write_text(change(text), encoding="utf-8")
    return path


@pytest.mark.parametrize("change", [
    lambda text: re.sub(r'("data": ?")[A-Za-z0-9+/=]{40}', r"\1" + "A" * 40, text),
    lambda text: text.replace('"shards"', '"sha", "rds"', 1),
    lambda text: re.sub(r'"format": ?1', '"format": 99', text, count=1),
], ids=["compressed bytes", "broken JSON", "a later format"])  # fmt: skip
def test_damaged_data_are_reported_in_the_page(show, exported, tmp_path, change):
    page = show(path=damaged(exported, tmp_path, change))
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "export it again" in alert.inner_text()


def test_what_the_file_does_not_have_is_locked_and_says_why(show):
    page = show()
    page.evaluate(f"{HANDLE}.meta.grid.splice(1)")
    peak_handle(page).press("Home")
    width = page.get_by_role("slider", name="Width", exact=True)
    assert width.get_attribute("aria-disabled") == "true"
    assert "exported with width" in width.get_attribute("aria-valuetext")
    width.press("ArrowRight")
    assert "In a notebook it moves" in page.locator(".notice").inner_text()
    absent = page.locator(".settings option:disabled")
    assert "not in this page" in absent.first.text_content()


def test_reduced_motion_lets_nothing_move_by_itself(show):
    page = show(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('.ring')).animationName") == "none"


def test_a_prediction_is_scored_by_the_total_variation(show):
    page = show("#methods=dpo+on-policy", reduced_motion="reduce")
    page.get_by_role("button", name="Predict first").click()
    sketch = page.get_by_role("slider", name="Sketch")
    sketch.focus()
    for key in ["PageUp", "ArrowRight", "PageUp", "ArrowLeft", "ArrowLeft", "PageUp"]:
        sketch.press(key)
    page.get_by_role("button", name="Reveal").click()
    final, peak = policy(page, "dpo on-policy"), state(page)["scene"]["peak"]
    guess = np.zeros(final.size)
    guess[peak - 1 : peak + 2] = 1 / 3
    score = 100 * (1 - np.abs(guess - final).sum() / 2)
    said = page.locator(".score").inner_text()
    assert abs(int(re.search(r"Score (\d+)", said)[1]) - score) <= 0.51


def test_a_pinned_run_stays_as_a_ghost(show):
    page = show("#peak=35&step=last")
    page.get_by_role("button", name="Pin", exact=True).click()
    before = page.locator(".pictures .ghost").first.get_attribute("d")
    peak_handle(page).press("Home")
    assert page.locator(".pictures .curve[d]").first.get_attribute("d") != before
    assert "pinned: peak 35" in page.locator(".legend").inner_text()
    page.get_by_role("button", name="Unpin").click()
    assert page.locator(".pictures .ghost").first.get_attribute("d") is None


def test_taking_the_explorer_away_leaves_nothing_behind(show):
    page = show()
    page.get_by_role("button", name="Play").click()
    page.evaluate(f"{HANDLE}.destroy()")
    page.wait_for_timeout(300)
    assert page.locator(".bandit-pft").count() == 0

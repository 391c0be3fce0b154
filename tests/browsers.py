"""Hands and eyes for the tests of the explorer: a real browser, what it holds, and a drag."""

import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import Error, sync_playwright

HANDLE = "window.bandit_pft_explorer"
POLICY = f"""name => {{
  const film = {HANDLE}.film(), method = {HANDLE}.meta.methods.findIndex(m => m.name === name);
  const [count, frames, actions] = film.shapes.log_prob, step = {HANDLE}.state().frame;
  const start = (method * frames + step) * actions;
  return Array.from(film.arrays.log_prob.slice(start, start + actions));
}}"""


@contextmanager
def chromium():
    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except Error as error:
            pytest.fail(f"no browser starts; install one: apt-get install chromium ({error})")
        yield started
        started.close()


def wait_until(fact, what, seconds=120):
    """What `fact` gives once it is true; a function that waits by itself could wait without end."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, f"after {seconds} s: not {what}"
        time.sleep(0.05)
    return found


def state(page):
    return page.evaluate(f"{HANDLE}.state()")


def policy(page, name):
    return np.exp(page.evaluate(POLICY, name))


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def peak_handle(page):
    return page.get_by_role("slider", name="Peak", exact=True)


def last_action(page):
    return page.evaluate(f"{HANDLE}.meta.actions - 1")


def per_action(page):
    """Pixels between two actions, measured by moving the handle by keys; it ends at the last action."""
    peak_handle(page).press("Home")
    left = centre(peak_handle(page))[0]
    peak_handle(page).press("End")
    return (centre(peak_handle(page))[0] - left) / last_action(page)


def drag_peak_down_by(page, actions):
    """With the mouse, from the last action, one action at a time."""
    width = per_action(page)
    x, y = centre(peak_handle(page))
    page.mouse.move(x, y)
    page.mouse.down()
    for k in range(1, actions + 1):
        page.mouse.move(x - k * width, y)
    page.mouse.up()


def assert_mass_is_at(page, peak):
    """After the last step."""
    assert state(page)["scene"]["peak"] == peak
    page.get_by_role("slider", name="Step", exact=True).press("End")
    methods = page.evaluate(f"{HANDLE}.meta.methods")
    assert "on-policy" in {method["data"] for method in methods}
    for method in methods:
        learnt = policy(page, method["name"])
        assert learnt.sum() == pytest.approx(1, abs=2e-3)
        if method["data"] == "on-policy":
            assert learnt[max(0, peak - 10) : peak + 11].sum() > 0.5

"""`python -m benchmarks.explorer`: how long the explorer's reader waits, in every place where it is shown.

Drag to picture is from the move of the pointer to the end of the frame that the browser draws with the new film.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bandit_pft import explorer
from bandit_pft.simulate import keep_programs
from benchmarks.__main__ import machine

HANDLE = "window.bandit_pft_explorer"
# Moves the peak by one action and waits for the frame after the film that answers; milliseconds.
MOVE = f"""async () => {{
  const peak = {HANDLE}.state().scene.peak, begun = performance.now();
  await {HANDLE}.setScene({{peak: (peak + 1) % {HANDLE}.meta.actions}});
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begun;
}}"""
# Frames that the browser shows while the film plays, each as the milliseconds since the one before.
PLAY = """async () => {
  const times = [], end = performance.now() + 5000;
  let last = performance.now();
  document.querySelector(".transport .play").click();
  while (performance.now() < end) {
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times.slice(1);
}"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few methods and actions: shows that everything works")
    parser.add_argument("--no-server", action="store_true", help="leave out the page that Voila serves")
    given = parser.parse_args(arguments)
    quick = given.quick
    about = machine()
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("bandit_pft", "jax", "anywidget", "voila", "playwright")
    )
    print(f"{about['processor']}, {about['cores']} cores, load before {about['load_before'][0]:.2f}; {versions}")
    keep_programs()
    methods, actions = (["dpo on-policy"], 20) if quick else (None, 100)
    live(methods, actions)
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        page = started.new_page(viewport={"width": 1280, "height": 800})
        path = explorer.export(Path(folder) / "explorer.html", methods, actions=20 if quick else 50)
        page.goto(path.as_uri() + "#step=last")
        page.evaluate(f"{HANDLE}.ready.then(() => 0)")
        page.wait_for_timeout(1000)
        tell("exported file, drag to picture", drag(page))
        played = page.evaluate(PLAY)
        tell("exported file, frame while playing", played)
        print(f"  {1000 / np.mean(played):.0f} frames a second")
        if not given.no_server:
            served(started, Path(folder))
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    return 0


def live(methods: Sequence[Any] | None, actions: int) -> None:
    """Films that Python makes, one for each place of the peak."""
    begun = time.perf_counter()
    cast = explorer.Cast(methods, actions)
    for sampled in (False, True):
        cast.film(explorer.Scene(0, 5.0), sampled)
        print(f"live, first {'sampled' if sampled else 'exact'} film after {time.perf_counter() - begun:.1f} s")
    for sampled in (False, True):
        one = lambda peak, sampled=sampled: cast.film(explorer.Scene(peak, 5.0), sampled)
        tell(f"live, {'sampled' if sampled else 'exact'} film", [timed(one, peak) for peak in range(1, 16)])


def timed(function: Callable[[int], Any], argument: int) -> float:
    begun = time.perf_counter()
    function(argument)
    return 1000 * (time.perf_counter() - begun)


def tell(what: str, milliseconds: Sequence[float]) -> None:
    print(f"{what}: median {np.median(milliseconds):.1f} ms, worst {max(milliseconds):.1f} ms, of {len(milliseconds)}")


@contextmanager
def browser() -> Any:
    from playwright.sync_api import sync_playwright

    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])


def drag(page: Any) -> list[float]:
    """Milliseconds from each move of the peak's handle to its picture, as the page measures them."""
    box = page.get_by_role("slider", name="Peak", exact=True).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(1, 31):
        page.mouse.move(x - 10 * i, y)
        page.wait_for_timeout(50)
    page.mouse.up()
    return page.evaluate(f"{HANDLE}.timings.drag")


def served(started: Any, folder: Path) -> None:
    """The page of `bandit-pft serve`, with its own kernel."""
    log = folder / "serve.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "bandit_pft", "serve", "--no-browser", "--port", "8979"]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 300
        address, page = None, started.new_page(viewport={"width": 1280, "height": 800})
        while not address and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
            address = re.search(r"http://127\S+token=\w+", log.read_text())
        if not address:
            raise SystemExit(f"no server started:\n{log.read_text()}")
        begun = time.perf_counter()
        page.goto(address[0])
        while not page.evaluate(f"Boolean({HANDLE}?.film())") and time.monotonic() < end:
            time.sleep(0.1)
        print(f"served page, first picture after {time.perf_counter() - begun:.1f} s")
        tell("served page, drag to picture", drag(page))
        tell("served page, released to bands", [page.evaluate(MOVE) for _ in range(10)])
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())

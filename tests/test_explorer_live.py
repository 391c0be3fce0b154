"""The live explorer where it is used: Voila behind `bandit-pft serve`, JupyterLab, and sliders without anywidget."""

import base64
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import nbformat
import numpy as np
import psutil
import pytest
from browsers import (
    HANDLE,
    assert_mass_is_at,
    chromium,
    drag_peak_down_by,
    last_action,
    peak_handle,
    policy,
    state,
    wait_until,
)
from nbclient import NotebookClient

TOKEN = "for-this-test-only"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def open_page(browser):
    contexts = []

    def open_page(address):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()


@contextmanager
def server(log, *arguments):
    """A server of Jupyter's and what it prints; at the end nothing that it started is left, whatever happened."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        started = [psutil.Process(process.pid), *descendants(process)] if process.poll() is None else []
        process.terminate()
        _, left = psutil.wait_procs(started, timeout=20)
        for one in left:
            one.kill()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def kernels(process):
    return [one for one in descendants(process) if any("ipykernel" in word for word in one.cmdline())]


@contextmanager
def serving(folder, *arguments):
    """`bandit-pft serve`, and the address with the token that it prints."""
    log, port = folder / "serve.log", free_port()
    with server(log, "bandit_pft", "serve", "--no-browser", "--port", str(port), *arguments) as process:

        def printed():
            assert process.poll() is None, log.read_text()
            return re.search(rf"http://127.0.0.1:{port}/\S*token=\w+", log.read_text())

        yield process, wait_until(printed, "the server prints its address")[0]


def status(address):
    """Of the answer, and its text."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def film(page):
    """Id of the film on the screen."""
    return page.evaluate(f"{HANDLE}?.film()?.id")


def drag_and_wait(page, actions):
    """Drag the peak from the last action; the film of where it ends is on the screen then."""
    drag_peak_down_by(page, actions)
    peak = last_action(page) - actions
    highest = f"{HANDLE}.film().arrays.reward.indexOf(Math.max(...{HANDLE}.film().arrays.reward))"
    settled = f"{highest} === {peak} && 'band' in {HANDLE}.film().arrays"
    wait_until(lambda: page.evaluate(settled), f"the film of peak {peak}, with bands")
    return peak


@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("voila"), "--kernels", "1") as (process, address):
        yield process, address


@pytest.fixture(scope="module")
def shown(voila, open_page):
    """The one page that the server has a kernel for."""
    page = open_page(voila[1])
    wait_until(lambda: film(page), "the explorer shows a film", 300)
    return page


def test_without_its_token_the_server_shows_nothing_and_starts_no_kernel(voila):
    process, address = voila
    code, text = status(address.partition("?")[0])
    assert code in (200, 403)  # Jupyter's page that asks for the token, or a refusal.
    assert "explorer" not in text.lower().replace("explorer.ipynb", "")
    assert not kernels(process)


def test_a_drag_in_the_served_page_moves_the_mass_and_bands_come(shown):
    peak = drag_and_wait(shown, 30)
    assert_mass_is_at(shown, peak)
    shown.get_by_role("button", name="Sampled").click()
    wait_until(lambda: " to " in shown.locator(".numbers").inner_text(), "bands over seeds in the table")
    assert shown.locator(".curve-box .band[d]").count() == len(state(shown)["shown"])


def test_one_page_more_than_allowed_is_told_so(shown, voila):
    code, text = status(voila[1])
    assert code == 503
    assert "kernels are in use" in text


def test_what_python_refuses_is_said_as_text(shown):
    before = state(shown)["scene"]["peak"]
    shown.evaluate(f"void {HANDLE}.setScene({{peak: 4000}})")
    said = shown.locator(".notice")
    wait_until(lambda: "peak is 4000" in said.inner_text(), "the page says what is wrong", 30)
    assert not shown.get_by_role("button", name="Retry").is_visible()
    shown.evaluate(f"void {HANDLE}.setScene({{peak: {before}}})")
    wait_until(lambda: not said.is_visible(), "the notice goes when the scene is right again", 30)


def test_a_kernel_that_ends_is_reported_and_retry_is_offered(shown, voila):
    (kernel,) = kernels(voila[0])
    kernel.kill()
    peak_handle(shown).press("Home")
    retry = shown.get_by_role("button", name="Retry")
    wait_until(retry.is_visible, "Retry is offered", 60)
    assert "no answer from the kernel" in shown.locator(".notice").inner_text()
    retry.click()
    assert not retry.is_visible()
    wait_until(retry.is_visible, "Retry is offered again", 60)


def test_a_server_that_is_asked_to_end_takes_its_kernels_along(tmp_path):
    with serving(tmp_path) as (process, address):
        with urllib.request.urlopen(address, timeout=120) as answer:
            answer.read(1)  # The kernel starts before the page does.
            (kernel,) = wait_until(lambda: kernels(process), "a kernel is there")
            started = [*descendants(process), kernel]
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        wait_until(lambda: not any(one.is_running() for one in started), "all that it started has ended", 60)


CELL = """\
import jax
from bandit_pft import ADAM, Method, objective, tabular_shared
from bandit_pft.explorer import explore

@objective(family="preference", paper="rafailov2023direct")
def own_dpo(logp, group, *, beta=0.1):
    '''DPO again, by hand.

    L = -mean over pairs log sigmoid(beta (gain_w - gain_l))
    '''
    gain = group.total(logp - group.ref_logp)
    return -group.pair_mean(jax.nn.log_sigmoid(beta * (gain[:, None] - gain[None, :])))

own = Method(own_dpo, name="own", learning_rate=0.2, optimizer=ADAM, policy=tabular_shared, prompts=4, num_responses=10)
explore(methods=["best_of_n offline", "dpo on-policy", own], actions=40)
"""


def notebook(code):
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}  # Without it JupyterLab asks.
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": spec})


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory, open_page):
    folder = tmp_path_factory.mktemp("lab")
    nbformat.write(notebook(CELL), folder / "own.ipynb")
    port = free_port()
    settings = {"root_dir": folder, "token": TOKEN, "port": port, "ip": "127.0.0.1", "port_retries": 0}
    arguments = [f"--ServerApp.{name}={value}" for name, value in settings.items()]
    # The settings of whoever runs the tests are neither read nor written.
    arguments += [f"--LabApp.{name}={folder / name}" for name in ("workspaces_dir", "user_settings_dir")]
    with server(folder / "lab.log", "jupyterlab", "--no-browser", "--allow-root", *arguments):
        base = f"http://127.0.0.1:{port}"

        def answers():
            try:
                return status(f"{base}/api?token={TOKEN}")
            except OSError:
                return None

        wait_until(answers, "JupyterLab answers")
        page = open_page(f"{base}/lab/tree/own.ipynb?token={TOKEN}")
        kernel_is_idle = page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status='idle']")
        wait_until(lambda: kernel_is_idle.count(), "the notebook's session is ready")
        prompt = page.locator(".jp-NotebookPanel .jp-CodeCell .jp-InputPrompt").first

        def runs():
            # A notebook calls itself idle before its session is there, and then forgets what it was told to run.
            page.locator(".jp-NotebookPanel .jp-CodeCell .cm-content").first.focus()
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(2000)
            return re.search(r"[*\d]", prompt.inner_text())

        wait_until(runs, "the cell runs")
        wait_until(lambda: film(page), "the explorer shows a film", 300)
        yield page


def test_a_drag_in_jupyterlab_moves_the_mass_of_the_readers_own_objective_too(laboratory):
    peak = drag_and_wait(laboratory, 12)
    assert_mass_is_at(laboratory, peak)
    # The reader's own function is DPO written again.
    np.testing.assert_allclose(policy(laboratory, "own"), policy(laboratory, "dpo on-policy"), atol=1e-5)


def test_keys_pressed_in_the_explorer_do_not_reach_the_notebook(laboratory):
    cells = laboratory.locator(".jp-NotebookPanel .jp-Cell")
    before = cells.count()
    peak_handle(laboratory).focus()
    # Commands of a notebook: a cell above, a cell below, delete the cell.
    for key in ["a", "b", "d", "d", "x"]:
        laboratory.keyboard.press(key)
    laboratory.wait_for_timeout(500)
    assert cells.count() == before
    assert peak_handle(laboratory).is_visible()


def test_keys_pressed_in_the_notebook_do_not_reach_the_explorer(laboratory):
    before = state(laboratory)
    laboratory.evaluate("document.activeElement.blur()")
    for key in [".", "l", "e"]:
        laboratory.keyboard.press(key)
    laboratory.wait_for_timeout(500)
    assert state(laboratory) == before


def test_without_anywidget_a_kernel_shows_sliders_and_a_picture(tmp_path):
    code = """\
from bandit_pft.explorer import Cast, Scene, sliders
box = sliders(Cast(["best_of_n offline", "dpo on-policy"], actions=20), Scene(14, 2))
first = box.children[-1].value
box.children[0].value = 3
assert box.children[-1].value != first
box
"""
    done = NotebookClient(notebook(code), timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "application/vnd.jupyter.widget-view+json" in done.cells[0].outputs[-1].data
    models = list(done.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values())
    (image,) = [model for model in models if model["model_name"] == "ImageModel"]
    picture = next(buffer["data"] for buffer in image["buffers"] if buffer["path"] == ["value"])
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert {m["model_name"] for m in models} >= {"IntSliderModel", "SelectionSliderModel", "CheckboxModel"}

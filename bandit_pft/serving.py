"""JupyterLab on the notebooks, and the explorer alone in a browser: Jupyter's servers, started with care."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Integer

from bandit_pft.errors import ConfigError

HERE = Path(__file__).parent
CODE = """\
from bandit_pft.explorer import explore
from bandit_pft.simulate import keep_programs

keep_programs()
explore()
"""
IDLE = 30 * 60  # Seconds after which a kernel that nobody asks anything is ended.


class FewKernels(AsyncMappingKernelManager):
    """Refuses one kernel more than `most`: every page that is opened starts one, with JAX in it."""

    most = Integer(8, help="kernels at the same time").tag(config=True)

    async def start_kernel(self, **how: Any) -> str:
        """As its parent, or an error that the reader of the page sees."""
        if len(self) >= self.most:
            # Voila shows its reader nothing of an error but the reason.
            reason = f"all {self.most} kernels are in use; close another page, or try again later"
            raise HTTPError(503, reason=reason)
        return await super().start_kernel(**how)


def lab(folder: Path | None = None, *arguments: str) -> int:
    """Open JupyterLab where the notebooks are; the exit code.

    Args:
        folder: of notebooks; one that does not exist is made, with a copy of ours. Default: ours, in a checkout of the
            project, and `notebooks` here where it is installed.

    Raises:
        ConfigError: `folder` is a file.
    """
    ours = HERE.parent / "notebooks" if (HERE.parent / "pyproject.toml").exists() else HERE / "notebooks"
    if folder is None:
        folder = Path("notebooks") if ours.parent == HERE else ours
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name the folder of the notebooks")
    if not folder.exists():
        shutil.copytree(ours, folder)
        print(f"{folder}: a copy of the notebooks, yours to change", file=sys.stderr)
    return _run("jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", *arguments)


def serve(*arguments: str, port: int = 8866, most: int = 8, open_browser: bool = True) -> int:
    """Show the live explorer alone, to this machine and to those who have the token; the exit code.

    Args:
        most: kernels at the same time; every open page has one. arguments: more of Voila's own.
    """
    with tempfile.TemporaryDirectory(prefix="bandit_pft_") as folder:
        page = Path(folder) / "explorer.ipynb"
        page.write_text(json.dumps(_notebook(CODE)), encoding="utf-8")
        return _run(
            "voila", str(page), f"--port={port}", "--Voila.ip=127.0.0.1", "--Voila.auto_token=True",
            f"--Voila.open_browser={open_browser}",
            f"--VoilaConfiguration.multi_kernel_manager_class={__name__}.FewKernels", f"--FewKernels.most={most}",
            f"--FewKernels.cull_idle_timeout={IDLE}", "--FewKernels.cull_interval=60",
            "--FewKernels.cull_connected=True", *arguments,
        )  # fmt: skip


def _notebook(code: str) -> dict[str, Any]:
    cell = {
        "cell_type": "code",
        "id": "explorer",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": code,
    }
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": spec}, "cells": [cell]}


def _run(module: str, *arguments: str) -> int:
    """Until the server ends, or this process is asked to: then the server is, and with it its kernels."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{module} is not installed: pip install 'bandit-pft[lab]'")
    with subprocess.Popen([sys.executable, "-m", module, *arguments]) as server:
        before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        try:
            while True:
                try:
                    return server.wait()
                except KeyboardInterrupt:  # The server has got it too, and may ask whether it is meant.
                    continue
        finally:
            signal.signal(signal.SIGTERM, before)

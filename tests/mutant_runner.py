"""Runs tests on the package with one module changed in memory; the files on disk stay as they are.

A process of its own: for every request it forgets the package and imports it again, while JAX and the programs that it
has compiled stay. One request per line comes in, JSON {"module", "text", "tests"}, and one answer per line goes out,
JSON {test: verdict}. A verdict is "passed", "failed: ..." where an assertion of the test did not hold, and "error: ..."
for whatever else happened: nothing was run, the changed module cannot be imported, the code crashed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import pytest

TESTS = Path(__file__).parent


class Served(MetaPathFinder):
    """Gives one module another text, through the loader that would have read its file: the type checks stay on.

    The other modules of the package come from memory after their first time, since each import compiles them.
    """

    code: ClassVar[dict[str, CodeType]] = {}

    def __init__(self, module: str, text: str) -> None:
        self.module, self.text, self.used = module, text, False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "bandit_pft":
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            loader: Any = spec.loader
            loader.get_code = lambda name: self.compiled(loader, name)
        return spec

    def compiled(self, loader: Any, name: str) -> CodeType:
        if name == self.module:
            self.used = True
            return loader.source_to_code(self.text.encode(), loader.path)
        if name not in self.code:
            self.code[name] = loader.source_to_code(loader.get_data(loader.path), loader.path)
        return self.code[name]


class Verdicts:
    """A pytest plugin that puts the finder in front of the conftest's type checker, and notes what became of a test."""

    def __init__(self, served: Served) -> None:
        self.served, self.found, self.broken = served, {}, ""

    def pytest_collection(self) -> None:
        sys.meta_path.insert(0, self.served)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.excinfo is not None:
            what = f"{call.excinfo.typename} {call.excinfo.value}"[:300]
            in_test = call.when == "call" and call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
            self.found[item.nodeid] = f"failed: {what}" if in_test else f"error: {call.when}: {what}"
        elif call.when == "call":
            self.found[item.nodeid] = report.outcome
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = f"error: collection: {report.longreprtext[-300:]}"


def forget() -> None:
    """Drop what has been imported of the package, of the tests, and of the type checker, which remembers classes."""
    for name, module in list(sys.modules.items()):
        own = Path(getattr(module, "__file__", None) or "/").parent == TESTS and name != "__main__"
        if own or name.partition(".")[0] in ("bandit_pft", "beartype"):
            del sys.modules[name]


def verdicts(module: str, text: str, tests: Sequence[str]) -> dict[str, str]:
    """What becomes of the tests where this module has this text; no module leaves all as it is."""
    forget()
    served, finders = Served(module, text), list(sys.meta_path)
    plugin = Verdicts(served)
    try:
        options = ["-q", "--assert=plain", "-c", str(TESTS.parent / "pyproject.toml")]
        options += [f"-pno:{name}" for name in ("cacheprovider", "xdist", "unraisableexception")]
        pytest.main([*options, *(str(TESTS / test) for test in tests)], plugins=[plugin])
    finally:
        sys.meta_path[:] = finders
    if module and not served.used:
        return dict.fromkeys(tests, f"error: no test imported {module}")
    missing = plugin.broken or "error: the test was not run: does it exist?"
    return {test: plugin.found.get(f"tests/{test}", missing) for test in tests}


def main() -> None:
    gc.disable()  # It finds nothing: what is left behind is still held by registries of JAX.
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What pytest prints.
    for line in sys.stdin:
        os.write(answers, (json.dumps(verdicts(**json.loads(line))) + "\n").encode())


if __name__ == "__main__":
    main()

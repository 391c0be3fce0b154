"""Imports only point down the layers, and the package starts without what only some users have."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "bandit_pft"

# A module may import only modules of lower lines, or of its own folder.
LAYERS = (
    ("errors",),
    ("style", "kernels", "store"),
    ("problems",),
    ("groups", "policies", "metrics", "sharding"),
    ("objectives",),
    ("methods", "probes"),
    ("proxy",),
    ("simulate", "hf"),
    ("sweep",),
    ("paper", "plots"),
    ("explorer", "exercises", "serving"),
    ("claims",),
    ("experiments",),
    ("__init__", "cli"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Used by name alone: xarray's engine for NetCDF files, and the library with which that engine reads them.
BY_NAME = {"h5netcdf", "h5py"}
OPTIONAL = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "ipywidgets", "anywidget", "jupyterlab",
            "jupyter_server", "voila")  # fmt: skip


def module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def own_imports(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of the package, as paths inside it; also imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, *rest = name.split(".")
            if head == "bandit_pft":
                is_module = (bool(rest) and (ROOT / rest[0]).with_suffix(".py").exists()) or (ROOT / rest[0]).is_dir()
                found.add(tuple(rest) if is_module else ("__init__",))
    return found


def outside_imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(module(path)))
def test_a_module_imports_only_from_the_layers_below_it(path):
    here = module(path)
    assert here[0] in LEVEL, f"{here[0]} has no layer yet: add it to LAYERS"
    for other in own_imports(path):
        same_folder = other[0] == here[0] and (ROOT / here[0]).is_dir()
        assert same_folder or LEVEL[other[0]] < LEVEL[here[0]], f"{'.'.join(here)} imports {'.'.join(other)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(module(path)))
def test_only_the_hugging_face_adapter_imports_its_libraries(path):
    if module(path)[0] != "hf":
        assert not outside_imports(path) & {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert "simulate" not in {other[0] for other in own_imports(path)} or module(path)[0] != "hf"


def test_the_rule_sees_an_import_that_points_up(tmp_path):
    wrong = tmp_path / "errors.py"
    wrong.write_text("def f():\n    from bandit_pft.objectives import core\n    import bandit_pft.sweep\n")
    assert own_imports(wrong) == {("objectives", "core"), ("sweep",)}


def test_importing_the_package_loads_no_optional_or_plotting_library():
    code = "import sys, bandit_pft; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *OPTIONAL, "matplotlib", "tqdm"], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text)[0] for text in requirements}


def test_the_package_imports_exactly_the_libraries_that_it_declares():
    declared = names_of(PROJECT["dependencies"])
    imported = set().union(*map(outside_imports, FILES)) - {"bandit_pft", *sys.stdlib_module_names}
    extras = names_of([text for extra in ("lab", "hf", "trl") for text in PROJECT["optional-dependencies"][extra]])
    assert imported - extras == declared - BY_NAME
    assert extras.isdisjoint(declared)


def test_every_declared_library_has_a_lower_bound_with_which_a_lane_of_tests_runs():
    for text in PROJECT["dependencies"]:
        assert re.fullmatch(r"[a-z0-9-]+>=\d+(\.\d+)+", text), f"{text}: `make test-lowest` needs name>=version"

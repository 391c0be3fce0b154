"""Imports only point down the layers, and the package starts without what only some users have."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bandit_pft

ROOT = Path(__file__).parents[1] / "bandit_pft"

# A module may import only modules of lower lines, or of its own folder.
LAYERS = (
    ("version", "words"),
    ("errors",),
    ("style", "kernels", "store"),
    ("problems",),
    ("groups", "policies", "metrics", "sharding"),
    ("objectives",),
    ("methods", "probes"),
    ("proxy",),
    ("engine", "hf"),
    ("simulate",),
    ("sweep",),
    ("paper", "plots"),
    ("explorer", "exercises", "serving"),
    ("claims",),
    ("experiments",),
    ("listing",),
    ("commands",),
    ("__init__", "cli"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for ending in ("*.py", "*.pyi") for path in ROOT.rglob(ending))
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
    assert not {"simulate", "engine"} & {other[0] for other in own_imports(path)} or module(path)[0] != "hf"


def test_the_rule_sees_an_import_that_points_up(tmp_path):
    wrong = tmp_path / "errors.py"
    wrong.write_text("def f():\n    from bandit_pft.objectives import core\n    import bandit_pft.sweep\n")
    assert own_imports(wrong) == {("objectives", "core"), ("sweep",)}


def loaded_by(code: str, *libraries: str) -> str:
    """Which of these libraries a new process has loaded when it has run the code, whatever else it prints."""
    code += "\nimport sys; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *libraries], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_public_names_need_no_optional_or_plotting_library():
    assert loaded_by("from bandit_pft import *", *OPTIONAL, "matplotlib", "tqdm", "jax") == "['jax']"


@pytest.mark.parametrize("option", ["--help", "--version", "run --help", "exprot"])
def test_help_waits_for_no_library(option):
    code = f"from bandit_pft.cli import main\ntry: main({option.split()})\nexcept SystemExit: pass"
    assert loaded_by(code, *names_of(PROJECT["dependencies"]), *OPTIONAL) == "[]"


def test_a_public_name_is_what_the_stub_imports_whatever_was_imported_before_it():
    # Two modules have the names of their functions, and Python sets an imported module as an attribute of its package.
    code = (
        "import importlib, bandit_pft\nfor name in ('simulate', 'sweep'): importlib.import_module(f'bandit_pft.{name}')"
    )
    code += "\nfrom bandit_pft.simulate import keep_programs\nfrom bandit_pft import simulate, sweep"
    code += "\nassert callable(simulate) and callable(sweep) and bandit_pft.sweep is sweep"
    assert loaded_by(code, "jax") == "['jax']"
    for name in bandit_pft.__all__:
        assert name in dir(bandit_pft)
        assert getattr(bandit_pft, name) is not None
    stub = (ROOT / "__init__.pyi").read_text(encoding="utf-8")
    listed = next(node for node in ast.parse(stub).body if isinstance(node, ast.Assign))
    assert sorted(ast.literal_eval(listed.value)) == sorted(bandit_pft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bandit_pft.nothing  # noqa: B018


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text)[0] for text in requirements}


def test_the_package_imports_exactly_the_libraries_that_it_declares():
    declared = names_of(PROJECT["dependencies"])
    imported = set().union(*map(outside_imports, FILES)) - {"bandit_pft", *sys.stdlib_module_names}
    extras = names_of(
        [text for extra in ("widget", "lab", "hf", "trl") for text in PROJECT["optional-dependencies"][extra]]
    )
    assert imported - extras == declared - BY_NAME
    assert extras.isdisjoint(declared)


def test_every_declared_library_has_a_lower_bound_with_which_a_lane_of_tests_runs():
    for text in PROJECT["dependencies"]:
        assert re.fullmatch(r"[a-z0-9-]+>=\d+(\.\d+)+", text), f"{text}: `make test-lowest` needs name>=version"

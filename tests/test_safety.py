"""Text and files are data: nothing here unpickles, evaluates text, or hands text to a shell."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from refusals import check_refusal

from bandit_pft import cli
from bandit_pft.errors import ConfigError
from bandit_pft.objectives import OBJECTIVES, get_objective

ROOT = Path(__file__).parents[1]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_TEXT = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "code.interact", "runpy.run_path"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle", "numexpr.evaluate"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
# An option whose other value runs what a file or a text says.
ONLY = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}
NEEDS = {"numpy.load": "allow_pickle", "torch.load": "weights_only"}
# The examples of the documents are run as a reader would; they are checked here as well.
ALLOWED = {f"tests/test_{name}.py": {"exec", "compile"} for name in ("documents", "hf_trainer")}


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """What an expression stands for, such as numpy.load; empty where the file does not say."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=name):
            pass
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
            pass
        case _:
            return ""
    head = full_name(value, names)
    return f"{head}.{name}".removeprefix("builtins.") if head else ""


def violations(text: str) -> set[str]:
    """What in a source would run text or unpickle a file."""
    nodes = list(ast.walk(ast.parse(text)))
    names: dict[str, str] = {}
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    names = {name: stands_for.removeprefix("builtins.") for name, stands_for in names.items()}
    used = {full_name(node, names) for node in nodes}
    found = {name for name in used if name in RUNS_TEXT or re.fullmatch(r"os\.(exec|spawn)[lv]p?e?", name)}
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        called = full_name(node.func, names)
        if called == "importlib.import_module":
            modules |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
        given = {word.arg: word.value for word in node.keywords if word.arg}
        for more in (word.value for word in node.keywords if word.arg is None and isinstance(word.value, ast.Dict)):
            given |= {k.value: v for k, v in zip(more.keys, more.values, strict=True) if isinstance(k, ast.Constant)}
        for name, value in given.items():
            if name in ONLY and not (isinstance(value, ast.Constant) and value.value is ONLY[name]):
                found.add(f"{name} is not {ONLY[name]}")
        needed = NEEDS.get(called)
        if needed and needed not in given:
            found.add(f"{called} without {needed}={ONLY[needed]}")
    return found | {root for module in modules if (root := module.partition(".")[0]) in UNPICKLERS}


def sources() -> dict[str, str]:
    """Every Python text of the project: modules, notebook cells, examples of the documents."""
    paths = [*ROOT.glob("*.md")]
    for folder in ("bandit_pft", "benchmarks", "examples", "notebooks", "tests"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".ipynb")]
    found = {}
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        elif path.suffix == ".ipynb":
            cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            text = re.sub(r"^(\s*)%.*", r"\1pass", "\n".join("".join(cell) for cell in cells), flags=re.MULTILINE)
        found[path.relative_to(ROOT).as_posix()] = text
    return found


SOURCES = sources()


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_unpickles_evaluates_text_or_uses_a_shell(name):
    assert violations(SOURCES[name]) == ALLOWED.get(name, set())


def test_all_kinds_of_sources_are_read():
    assert {"bandit_pft/objectives/core.py", "benchmarks/tasks.py", "tests/conftest.py", "README.md"} <= set(SOURCES)
    assert "import" in SOURCES["README.md"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from dill import loads as read", "dill"),
        ("import os, joblib.numpy_pickle as io", "joblib"),
        ("from importlib import import_module\nimport_module('cloudpickle')", "cloudpickle"),
        ("import shelve, marshal", "marshal"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle is not False"),
        ("import numpy as np\nnp.load('x', allow_pickle=flag)", "allow_pickle is not False"),
        ("import numpy as np\nnp.load('x', **{'allow_pickle': True})", "allow_pickle is not False"),
        ("import numpy\nnumpy.load('x')", "numpy.load without allow_pickle=False"),
        ("from numpy import load\nload('x')", "numpy.load without allow_pickle=False"),
        ("import torch as t\nt.load('x')", "torch.load without weights_only=True"),
        ("import torch\ntorch.load('x', weights_only=False)", "weights_only is not True"),
        ("import pandas as pd\npd.read_pickle('x')", "pandas.read_pickle"),
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("import builtins\nbuiltins.eval('1')", "eval"),
        ("from builtins import eval as number\nnumber('1')", "eval"),
        ("exec(compile('1', '', 'exec'))", "compile"),
        ("__import__('os')", "__import__"),
        ("import yaml\nyaml.load(file, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import popen as run\nrun('ls')", "os.popen"),
        ("import os\ngetattr(os, 'system')('ls')", "os.system"),
        ("import os\nos.execvp('ls', [])", "os.execvp"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell is not False"),
        ("import subprocess as s\ns.getoutput('ls')", "subprocess.getoutput"),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", "trust_remote_code is not False"),
    ],
)
def test_the_scanner_sees(text, found):
    assert found in violations(text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile('x')",
        "import ast\nast.literal_eval('1')",
        "model.eval()",
        "import jax\njax.jit(f).lower(x).compile()",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import yaml\nyaml.safe_load('1')",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "import json, tomllib\njson.load(file), tomllib.load(file)",
    ],
)
def test_the_scanner_lets_harmless_code_pass(text):
    assert violations(text) == set()


# --- text from outside -----------------------------------------------------------------------------------------------
CODE = "__import__('pathlib').Path('ran').touch()"


@pytest.mark.parametrize(
    "command",
    [
        ["run", CODE],
        ["run", f"os:{CODE}"],
        ["run", f"os:system('{CODE}')"],
        ["run", "os:system"],
        ["run", "builtins:eval"],
        ["run", "builtins:exec"],
        ["run", "os:path.join"],
        ["run", "dpo", "--hyper", f"beta={CODE}"],
        ["run", "dpo", "--hyper", f"{CODE}=1"],
        ["run", "dpo", "--problems", CODE],
        ["sweep", "dpo", "--grid", f"beta=0.1,{CODE}"],
        ["sweep", "dpo", "--grid", f"{CODE}=0.1"],
        ["sweep", "--preset", CODE],
        ["list", "objectives", CODE],
        ["cite", CODE],
    ],
    ids=" ".join,
)
def test_code_in_the_place_of_a_name_or_number_is_refused_unrun(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, *(["--steps", "1", "--seeds", "1"] if command[0] in ("run", "sweep") else [])]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_module_function_takes_the_function_and_calls_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_objectives.py").write_text(
        "def mine(logp, group, *, beta=0.5):\n    'Say it.'\n    raise SystemExit('called')\n"
    )
    before = dict(OBJECTIVES)
    made = get_objective("my_objectives:mine")
    assert made.function is sys.modules["my_objectives"].mine
    assert made.hyper == {"beta": 0.5}
    assert before == OBJECTIVES


@pytest.mark.parametrize(
    "name",
    [
        *("my_objectives:mine()", "os:system('x')", "os:system; x", "os:", "os:path:join", ":mine", ".relative:mine"),
        *("os:system", "builtins:eval", "builtins:max", "builtins:print", "math:pi"),
    ],
)
def test_only_an_attribute_of_a_module_that_is_a_function_of_log_probabilities_is_taken(name, monkeypatch):
    check_refusal(lambda: get_objective(name), ConfigError, "cannot be loaded", monkeypatch)

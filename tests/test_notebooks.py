"""The notebooks: the same structure in all, and every cell runs, with the stubs as shipped and with them filled in."""

import ast
import itertools
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import bandit_pft
from bandit_pft.exercises import EXERCISES, QUICK, source_of
from bandit_pft.explorer import CONTROLS

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = (
    "Why it matters", "Predict", "Run", "Touch", "What you should have seen", "Write", "Exercises", "Read", "Next",
)  # fmt: skip
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def prose(path):
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def section(path, heading):
    return re.split(r"^## ", prose(path), flags=re.M)[1 + HEADINGS.index(heading)]


def stub_of(path):
    """The cell with the stub, its function, and the exercise's name."""
    found = [cell for cell in cells(path, "code") if re.search(r"^    return \.\.\.", cell.source, re.M)]
    assert len(found) == 1
    (function,) = [node for node in ast.parse(found[0].source).body if isinstance(node, ast.FunctionDef)]
    return found[0], function


def test_there_are_eleven_notebooks_in_one_order():
    assert [int(path.stem[:2]) for path in PATHS] == list(range(11))
    for path, following in itertools.pairwise(PATHS):
        assert f"]({following.name})" in section(path, "Next")


@every_notebook
def test_a_notebook_asks_one_question_and_has_the_structure_of_all_others(path):
    title, *others = cells(path, "markdown")
    heading, asked, time = title.source.split("\n\n")
    number = re.fullmatch(r"# (\d\d) · [^?]+", heading)[1]
    question = asked.removeprefix("**Question.** ")
    minutes = re.fullmatch(r"\*\*Time\.\*\* (\d+) minutes, and the exercises\.", time)[1]
    assert number == path.stem[:2] and question != asked and question.endswith("?") and 10 <= int(minutes) <= 20
    assert tuple(re.findall(r"^## (.+)$", prose(path), re.M)) == HEADINGS
    assert not any(re.search(r"^# ", cell.source, re.M) for cell in others)
    code = [cell.source for cell in cells(path, "code")]
    assert sum(source == 'prediction = "..."' for source in code) == 1
    for call in (r"^Described\($", r"^reveal\(", r"^explore\(", r"^    solution\("):
        assert sum(bool(re.search(call, source, re.M)) for source in code) == 1, call


@every_notebook
def test_a_student_writes_at_most_three_lines_and_then_checks_them(path):
    cell, function = stub_of(path)
    name = function.name
    assert name in EXERCISES
    body = cell.source.splitlines()[1 : function.end_lineno]
    assert 1 <= len(body) <= 3
    assert len(source_of(name).splitlines()) - 1 <= max(3, len(body))
    assert cell.source.endswith(f'\n\n\n{name} = check("{name}", {name})')
    assert any(f'solution("{name}")' in other.source for other in cells(path, "code"))


@every_notebook
def test_there_are_three_exercises_and_the_last_is_open(path):
    numbered = re.findall(r"^(\d)\. (.)", section(path, "Exercises"), re.M)
    assert [number for number, _ in numbered] == ["1", "2", "3"]
    assert "\n3. Open: " in section(path, "Exercises")


@every_notebook
def test_what_a_notebook_cites_exists(path):
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "bandit_pft" / "papers.bib").read_text(), re.M))
    cited = set(re.findall(r"\(`([a-z]+\d{4}[a-z0-9]+)`\)", prose(path)))
    assert cited and cited <= keys
    claims = (ROOT / "figures" / "claims.md").read_text()
    for claim in re.findall(r"\b[CF]\d+[a-d]?\b", prose(path)):
        assert f"| {claim} |" in claims, claim
    for link in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        assert (path.parent / link).exists(), link


@every_notebook
def test_what_was_measured_is_computed_and_not_written_down(path):
    assert not re.search(r"\d\.\d", section(path, "What you should have seen"))


@every_notebook
def test_a_notebook_is_stored_without_outputs_and_with_the_same_ids_every_time(path):
    stored = json.loads(path.read_text())
    nbformat.validate(stored)
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    assert set(stored["metadata"]["language_info"]) == {"name"}
    for place, cell in enumerate(stored["cells"]):
        assert cell["id"] == f"nb{path.stem[:2]}-{place:02d}"
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@every_notebook
def test_nothing_is_defined_in_a_notebook_that_the_package_has(path):
    tree = ast.parse("\n".join(cell.source for cell in cells(path, "code")))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not (defined | assigned) & set(bandit_pft.__all__)
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "explore"]
    hidden = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg == "hide"}
    assert set(hidden.get("hide", ())) <= set(CONTROLS)


def text_of(cell):
    """What a cell printed; a warning would stand in a student's way."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []
    return "".join(output.text for output in streams)


def pictures_of(cell):
    pages = (output.get("data", {}).get("text/html", "") for output in cell.outputs)
    return [words for page in pages for words in re.findall(r'<img alt="([^"]+)"', page)]


@every_notebook
def test_every_cell_runs_as_shipped_and_with_the_solution(path, monkeypatch):
    monkeypatch.setenv(QUICK, "1")
    notebook = nbformat.read(path, 4)
    stub, function = stub_of(path)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    code = [(place, cell) for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    run = lambda: [text_of(client.execute_cell(cell, place)) for place, cell in code]
    with client.setup_kernel():
        shipped = "".join(run())
        assert f"{function.name}: not written yet" in shipped and "Going on with the reference solution." in shipped
        assert "You wrote: nothing yet" in shipped
        assert not re.search(r"\bnan\b|\binf\b", shipped)
        (shown,) = [cell.outputs for _, cell in code if "\nexplore(" in cell.source]
        assert "application/vnd.jupyter.widget-view+json" in shown[-1].data
        (words,) = [words for _, cell in code for words in pictures_of(cell)]
        assert len(words) > 80
        for _, cell in code:
            if cell.id == stub.id:
                rest = cell.source.splitlines()[function.end_lineno :]
                cell.source = "\n".join([source_of(function.name), *rest])
            cell.source = cell.source.replace('prediction = "..."', 'prediction = "It rises."')
        solved = "".join(run())
    assert f"{function.name}: right. Going on with yours." in solved
    assert "You wrote: It rises." in solved
    later = lambda text: text[text.index(f"{function.name}: ") :].splitlines()[1:]
    assert later(shipped) == later(solved)  # The reference is what a student's right answer would give.

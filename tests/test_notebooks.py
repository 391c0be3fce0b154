"""The notebooks: the same structure in all, nothing told before it is predicted, and every cell runs."""

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
GUIDE = ROOT / "notebooks" / "README.md"
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = (
    "Why it matters", "Predict", "Run", "Touch", "What you should have seen", "Write", "Exercises", "Read", "Next",
)  # fmt: skip
ASKS, TELLS, STUB = r'^prediction = "\.\.\."$', r"^reveal\(", r"^    return \.\.\."
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def place_of(path, call):
    """Where the one code cell stands that has this line."""
    (place,) = [
        place
        for place, cell in enumerate(nbformat.read(path, 4).cells)
        if cell.cell_type == "code" and re.search(call, cell.source, re.M)
    ]
    return place


def prose(path):
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def section(path, heading):
    return re.split(r"^## ", prose(path), flags=re.M)[1 + HEADINGS.index(heading)]


def stub_of(path):
    """The cell with the stub, and its function."""
    cell = nbformat.read(path, 4).cells[place_of(path, STUB)]
    (function,) = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
    return cell, function


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
    minutes = re.fullmatch(r"\*\*Time\.\*\* About (\d+) minutes with exercises 1 and 2\.", time)[1]
    assert number == path.stem[:2] and question != asked and question.endswith("?") and 30 <= int(minutes) <= 60
    assert re.search(rf"^\| {number} \| .*\({path.name}\).* \| {minutes} \| ", GUIDE.read_text(), re.M)
    assert tuple(re.findall(r"^## (.+)$", prose(path), re.M)) == HEADINGS
    assert not any(re.search(r"^# ", cell.source, re.M) for cell in others)
    places = [place_of(path, call) for call in (ASKS, TELLS, r"^explore\(", STUB, r"^    solution\(")]
    assert places == sorted(places)


@every_notebook
def test_no_cell_says_in_words_what_the_run_will_show(path):
    for cell in nbformat.read(path, 4).cells[: place_of(path, TELLS) + 1]:
        if cell.cell_type == "code":
            nodes = list(ast.walk(ast.parse(cell.source)))
            docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
            texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
            assert [text for text in texts if len(text.split()) > 12] == []
    summary = section(path, "What you should have seen").partition("\n\n")[2].strip()
    assert re.fullmatch(r"<details>\n<summary>Open it .+?</summary>\n\n- .+\n\n</details>", summary, re.S)
    assert "<details>" not in prose(path).replace(summary, "")


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


def words_of_pictures(cell):
    """The words that stand for each picture; none for a picture without."""
    data = [output.data for output in cell.outputs if "data" in output]
    pages = "".join(one.get("text/html", "") for one in data)
    return re.findall(r'<img alt="([^"]*)"', pages) + [""] * sum("image/png" in one for one in data)


@every_notebook
def test_every_cell_runs_and_nothing_is_told_before_something_is_predicted(path, monkeypatch):
    monkeypatch.setenv(QUICK, "1")
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    asks, tells, exercise = (place_of(path, line) for line in (ASKS, TELLS, STUB))
    _, function = stub_of(path)

    def run(*places):
        code = [(notebook.cells[place], place) for place in places if notebook.cells[place].cell_type == "code"]
        text = "".join(text_of(client.execute_cell(cell, place)) for cell, place in code)
        assert not re.search(r"\bnan\b|\binf\b", text)
        return text, [words for cell, _ in code for words in words_of_pictures(cell)]

    with client.setup_kernel():
        before, pictures = run(*range(tells + 1))
        assert "You wrote: nothing yet" in before and pictures == []
        notebook.cells[asks].source = 'prediction = "It rises."'
        told, pictures = run(asks, tells)
        assert told.startswith("You wrote: It rises.\nThe run says:\n  ")
        measured = re.findall(r"\d\.\d{3,}", told)
        assert [number for number in measured if number in before] == []
        assert len(pictures) == 1
        shipped, more = run(*range(tells + 1, exercise + 1))
        assert all(len(words) > 80 for words in pictures + more)
        assert shipped.endswith(" Going on with the reference solution.\n")
        assert f"{function.name}: not written yet" in shipped
        rest = notebook.cells[exercise].source.splitlines()[function.end_lineno :]
        notebook.cells[exercise].source = "\n".join([source_of(function.name), *rest])
        solved, _ = run(*range(exercise, len(notebook.cells)))
    assert solved.startswith(f"{function.name}: right. Going on with yours.\n")
    (shown,) = [cell.outputs for cell in notebook.cells if "\nexplore(" in cell.source]
    assert "application/vnd.jupyter.widget-view+json" in shown[-1].data

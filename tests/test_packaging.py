"""What an installation leaves as it was, and what a package index and a source archive hold."""

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What Colab had in November 2026, of the packages that matter here.
COLAB = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "jax-cuda12-plugin": "0.7.2",
    "jax-cuda12-pjrt": "0.7.2",
    "numpy": "2.0.2",
    "pandas": "2.2.2",
    "scipy": "1.16.3",
    "matplotlib": "3.10.0",
    "xarray": "2025.12.0",
    "ipywidgets": "7.7.1",
    "torch": "2.11.0",
    "transformers": "5.9.0",
}


def run(*command: object, folder: Path = ROOT, **variables: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment_with(packages: dict[str, str], folder: Path) -> Path:
    """The Python of an environment in which these packages seem to be installed: pip reads their names and versions."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    library = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name, version in packages.items():
        about = library / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "INSTALLER").write_text("pip\n")
        (about / "RECORD").write_text("")
    return python


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and source archive, as a release has them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder)
    return folder


@pytest.mark.parametrize("extras", ["", "[widget]", "[hf]"])
def test_an_installation_beside_the_packages_of_colab_changes_none_of_them(built, tmp_path, extras):
    python = environment_with(COLAB, tmp_path / "colab")
    (wheel,) = built.glob("*.whl")
    report = tmp_path / "report.json"
    command = ("install", "--dry-run", "--quiet", "--report", report, f"{wheel}{extras}")
    run(sys.executable, "-m", "pip", "--python", python, *command)
    chosen = {one["metadata"]["name"].lower() for one in json.loads(report.read_text())["install"]}
    assert "optax" in chosen and "bandit-pft" in chosen
    assert not chosen & COLAB.keys()


def test_the_page_on_a_package_index_has_a_version_addresses_and_no_link_that_leads_nowhere(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    assert about["Version"] == PROJECT["version"] in wheel.name
    assert {line.split(",")[0] for line in about.get_all("Project-URL")} == set(PROJECT["urls"])
    text = about.get_payload()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 50 and all(re.match(r"https?://", link) for link in links)
    source = PROJECT["urls"]["Source"]
    inside = {link.removeprefix(f"{source}/blob/main/") for link in links if link.startswith(f"{source}/blob/")}
    pictures = {link.partition("/main/")[2] for link in links if link.endswith(".png")}
    assert "CONTRIBUTING.md" in inside and "figures/headline.png" in pictures
    assert all((ROOT / path).exists() for path in inside | pictures)
    assert f"git clone {source}\n" in text


def test_the_source_archive_passes_tests_of_its_own(built, tmp_path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    tests = ("test_layers.py", "test_metrics.py", "test_style.py", "test_safety.py")
    command = ("pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not torch")
    found = run(
        sys.executable, "-m", *command, *(f"tests/{name}" for name in tests), folder=folder, PYTHONPATH=str(folder)
    )
    assert " passed" in found and "failed" not in found

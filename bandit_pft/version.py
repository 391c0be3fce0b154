"""Which version of what is in use."""

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any


def version(name: str) -> str:
    """Of a distribution; of this one as its pyproject.toml says, where a checkout is used in place.

    A checkout may be installed nowhere, or have been installed when it was older.
    """
    project = _project_around()
    if project.get("name") == name:
        return project["version"]
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _project_around() -> dict[str, Any]:
    """What a pyproject.toml next to this package says; any project's may stand there."""
    try:
        return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return {}


__version__ = version("bandit-pft")

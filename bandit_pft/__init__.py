"""Preference fine-tuning on bandits and sequences: simulate it, see it, trust it."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_imports = [node for node in _stub.body if isinstance(node, ast.ImportFrom)]
_homes = {alias.name: str(node.module) for node in _imports for alias in node.names}
__all__ = list(_homes)  # pyright: ignore[reportUnsupportedDunderAll]


class _Package(ModuleType):
    """Loads a public name when it is first asked for: `bandit-pft --help` need not wait for JAX."""

    def __getattr__(self, name: str) -> Any:
        if name not in _homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_homes[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets every submodule that it imports; `simulate` and `sweep` stay the functions of these names.
        if not (name in _homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package

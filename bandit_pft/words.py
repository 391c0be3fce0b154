"""Text for the reader: the nearest name, lines as long as the terminal, symbols that any encoding can show."""

from __future__ import annotations

import codecs
import difflib
import io
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable

# How the field's symbols are written where the output has no letters for them, as files on Windows.
PLAIN = {
    "α": "alpha", "β": "beta", "Δ": "Delta", "∇": "grad ", "π": "pi", "τ": "tau", "χ": "chi", "‖": "||", "√": "sqrt",
    "−": "-", "–": "-", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "→": "->", "✓": "yes", "✗": "no", "…": "...",
    "⟨": "<", "⟩": ">", "“": '"', "”": '"', "·": "*",
}  # fmt: skip


def nearest(name: str, known: Iterable[str], otherwise: Iterable[str] = ()) -> str:
    """The sentence that helps with a mistyped name; where none is near, with all, or those that stand for them."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(sorted(otherwise) or known)}"


def terminal_width() -> int | None:
    """Columns of the terminal; None where output goes to a file or a program, unless COLUMNS is set."""
    return shutil.get_terminal_size((0, 0)).columns or None


def fitted(text: str, width: int | None, indent: int = 0) -> str:
    """The same lines, broken between words at `width` characters and continued after `indent` spaces; None: whole."""
    if width is None:
        return text
    wrap = textwrap.TextWrapper(
        width, subsequent_indent=" " * min(indent, width // 2), break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrap.fill(line) if len(line) > width else line for line in text.splitlines())


def speak_any_encoding() -> None:
    """Print words where the encoding of the output lacks a symbol, instead of failing after all was computed."""
    codecs.register_error("bandit_pft.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="bandit_pft.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # These streams are only written.
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(letter: str) -> str:
    power = "^" if unicodedata.decomposition(letter).startswith("<super>") else ""
    text = PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return power + text if text else letter.encode("ascii", "backslashreplace").decode()

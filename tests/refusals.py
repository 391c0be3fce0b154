"""What every table of bad input checks."""

import jaxtyping
import pytest


def check_refusal(call, kind, words, monkeypatch):
    """The call raises this kind of error, with these words, as users see it: the tests' type checker is off."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind) as error:
        call()
    assert words in str(error.value)

"""The type checker of the tests. A whole number may stand where a float is asked for, as in Python itself (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

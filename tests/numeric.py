"""The type checker of the tests: beartype, with an int welcome where a float is asked for (PEP 484's numeric tower)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

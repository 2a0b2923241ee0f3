"""The kinds of value that a sweep file holds, and how a rule between fields refuses one.

Numbers may be written as YAML knows them (20, 20.0, 2e1); counts also as 2M or 1.5B (powers of 1,000).
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainSerializer
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([KMBGT]?)\s*", re.IGNORECASE)


def quantity(value: Any) -> Any:
    """Read `2M` as 2e6; leave anything else for the type's own check."""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * _SUFFIXES[match[2].upper()] if match else value


def whole(value: Any) -> Any:
    """Turn 20.0 and 2e1 into 20; leave anything else for the type's own check."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(whole)]
Count = Annotated[int, BeforeValidator(lambda value: whole(quantity(value)))]
Quantity = Annotated[float, BeforeValidator(quantity)]


def refuse(field: str, message: str) -> PydanticCustomError:
    """An error of a rule between fields, blamed on the one to change."""
    return PydanticCustomError("tinyscale", "{message}", {"field": field, "message": message})


class Settings(dict[str, Any]):
    """The settings of a user's own code, name -> a number, a text, true or false; with a hash, as configurations have.

    A dict is compared, written and shown as one; nothing changes it.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def _settings(value: Any) -> Settings:
    if not isinstance(value, dict):
        raise refuse("", "give names with values, such as {window: 32}")
    for name, given in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise refuse(str(name), f"{name!r} is no name: use letters, digits and _")
        if not isinstance(given, bool | int | float | str):
            raise refuse(name, "it should be a number, a text, true or false")
    return Settings({name: given if isinstance(given, bool) else whole(given) for name, given in value.items()})


OwnSettings = Annotated[Any, BeforeValidator(_settings), PlainSerializer(dict)]

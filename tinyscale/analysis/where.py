"""Choose runs by an expression over their columns, such as `d_model >= 64 and optimizer == "adamw"`."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from tinyscale.errors import FitError
from tinyscale.formatting import nearest, number

LONGEST = 500  # characters
SHOWN = 8  # values of a column in an error
EXAMPLE = "for example --where 'd_model >= 64'"
QUOTED = re.compile("`([^`]*)`")  # a column whose name is no word, as pandas writes it

# What an expression may consist of. Calls, attributes, subscripts and powers are not among these.
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)
_LOGIC = (ast.BoolOp, ast.And, ast.Or, ast.Not, ast.UnaryOp, ast.BitAnd, ast.BitOr, ast.Invert)
_ARITHMETIC = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.USub, ast.UAdd)
_LEAVES = (ast.Expression, ast.Compare, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple)
LEGAL = (*_COMPARISONS, *_LOGIC, *_ARITHMETIC, *_LEAVES)


@dataclass(frozen=True)
class Where:
    """A condition on runs. text: as the user wrote it; code: the same with a word for each quoted column; names: of the
    words, what columns they are.
    """

    text: str
    code: str
    names: dict[str, str]

    @classmethod
    def read(cls, text: str) -> Where:
        """FitError unless the text compares columns and numbers, and does nothing else."""
        names: dict[str, str] = {}

        def word(quoted: re.Match[str]) -> str:
            names[f"column_{len(names)}_"] = quoted[1]
            return list(names)[-1]

        code = QUOTED.sub(word, text.strip())
        try:
            tree = ast.parse(code, mode="eval") if len(text) <= LONGEST else None
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _refused(text, f"not an expression ({getattr(error, 'msg', error)}); {EXAMPLE}") from error
        if tree is None:
            raise _refused(text[:40] + "...", f"longer than {LONGEST} characters; add a column to the table instead")
        for node in ast.walk(tree):
            _require_legal(node, text)
            if isinstance(node, ast.Name):
                names.setdefault(node.id, node.id)
        if not names:
            raise _refused(text, f"it names no column; {EXAMPLE}")
        return cls(text.strip(), code, names)

    def chosen(self, frame: pd.DataFrame) -> pd.Series[bool]:
        """Which rows (n,) fulfil it; one with a blank in a column that it names does not.

        FitError for a column that is not there, and where it is no comparison.
        """
        columns = {str(name): name for name in frame.columns}
        for name in self.names.values():
            if name not in columns:
                legal = ", ".join(columns)
                raise _refused(self.text, f"the runs have no column {name!r}{nearest(name, columns)}\n  legal: {legal}")
        words = pd.DataFrame({word: frame[columns[name]] for word, name in self.names.items()})
        there = words.notna().all(axis=1).to_numpy()
        chosen = pd.Series(there, index=frame.index)
        if there.any():
            chosen[there] = self._evaluated(words[there].infer_objects(), frame)
        return chosen

    def _evaluated(self, words: pd.DataFrame, frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which rows (n,) of the columns that it names, without blanks, fulfil it."""
        try:
            found = words.eval(self.code, engine="python", local_dict={}, global_dict={})
        except (TypeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise _refused(self.text, f"cannot be computed ({why}); {self._values(frame)}") from error
        if not isinstance(found, pd.Series) or not is_bool_dtype(found):
            raise _refused(self.text, f"it is not true or false for each run; write a comparison, {EXAMPLE}")
        return found.to_numpy(bool)

    def nothing(self, frame: pd.DataFrame) -> FitError:
        """The error where no run of the frame fulfils it."""
        return _refused(self.text, f"no run that could be fitted fulfils it; {self._values(frame)}")

    def _values(self, frame: pd.DataFrame) -> str:
        """What the columns that it names hold."""
        return "; ".join(f"{name} is {_range(frame[name])}" for name in self.names.values() if name in frame)


def _refused(text: str, why: str) -> FitError:
    return FitError(f"--where {text!r}: {why}")


def _require_legal(node: ast.AST, text: str) -> None:
    """FitError for what calls, reaches into an object, or makes a large value."""
    if isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        what = {ast.Call: "calls a function", ast.Attribute: "has a dot in a name"}.get(type(node), "has brackets")
        raise _refused(text, f"it {what}; compare columns with values, and quote a column like `Params (M)`")
    if not isinstance(node, LEGAL):
        raise _refused(text, f"{type(node).__name__} does not choose runs; use comparisons, and, or, not, + - * / %")
    if isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float | str):
        raise _refused(text, f"{node.value!r} is not a value of a run; write a number or text")
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) >= 2**63:
        raise _refused(text, "a whole number of more than 64 bits; write it as 1e20")
    if isinstance(node, ast.BinOp) and any(_is_text(each) for each in (node.left, node.right)):
        raise _refused(text, "text can be compared, and not computed with")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.List | ast.Tuple) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _range(values: pd.Series[Any]) -> str:
    there = values.dropna()
    if is_numeric_dtype(there) and not is_bool_dtype(there) and there.nunique() > SHOWN:
        return f"{number(float(there.min()))} to {number(float(there.max()))}"
    some = list(map(str, sorted(there.unique(), key=lambda value: (isinstance(value, str), value))))
    return ", ".join(some[:SHOWN]) + (", ..." if len(some) > SHOWN else "") or "blank"

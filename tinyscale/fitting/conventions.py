"""How the parameters of a law move when parameters and FLOPs are counted otherwise."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tinyscale.fitting.laws import Law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.solve import solve

# Which columns of the results a convention counts parameters and FLOPs with.
CONVENTIONS = {
    "tinyscale": {"n": "n_non_embedding", "c": "flops"},
    "kaplan": {"n": "n_non_embedding", "c": "flops_6n"},
    "hoffmann": {"n": "n_total", "c": "flops_hoffmann"},
    "palm": {"n": "n_total", "c": "flops_palm"},
    "matmul": {"n": "n_matmul", "c": "flops"},
}


def under_conventions(frame: pd.DataFrame, law: Law, delta: float) -> list[dict[str, Any]]:
    """The law's parameters under each convention of N and FLOPs whose columns the frame has, one row each."""
    rows = []
    for name, columns in CONVENTIONS.items():
        if all(columns[v] in frame.columns for v in law.variables if v in columns):
            points = read_points(frame, law, columns)
            solution, _ = solve(points.problem(law, delta))
            used = {variable: column for variable, column in columns.items() if variable in law.variables}
            rows.append({"convention": name, **used, **law.named(solution.theta[0])})
    return rows

"""Students beside the runs without a teacher: what `tinyscale fit` makes the law `distilled` of, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tinyscale.analysis.runs import Group, by_setting
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws.distilled import ALONE

TEACHER = "teacher_loss"
OF_TEACHER = ["teacher", "teacher_weight", "temperature"]


def distilled_groups(groups: Sequence[Group]) -> Iterator[Group]:
    """For each sweep with students, a group of the runs without a teacher and the students of one way of learning."""
    for sweep in dict.fromkeys(group.sweep for group in groups):
        rows = pd.concat([group.frame for group in groups if group.sweep == sweep], ignore_index=True)
        if TEACHER not in rows or rows[TEACHER].isna().all():
            continue
        alone, taught = rows[rows[TEACHER].isna()], rows[rows[TEACHER].notna()]
        ways = taught.groupby(["teacher_weight", "temperature"], sort=False)
        for (weight, temperature), students in ways:
            way = "" if len(ways) == 1 else f"-teacher_weight={weight:g}-temperature={temperature:g}"
            both = pd.concat([alone, students], ignore_index=True).fillna({TEACHER: ALONE})
            group = Group(sweep, "", f"{sweep}{way}", both.drop(columns=OF_TEACHER), {}, law="distilled")
            yield from by_setting(group, "distilled")


def worth(found: AnyFit, frame: pd.DataFrame) -> AnyFit:
    """The fit with a sentence on what a distilled token is worth, also where the teacher's passes are counted."""
    if not isinstance(found, Fit) or "rho" not in found.estimates or "flops_teacher" not in frame:
        return found
    rho = found.estimates["rho"]
    students = frame[frame[TEACHER] > ALONE]
    share = students["flops"] / (students["flops"] + students["flops_teacher"])  # of a student's FLOPs, its own
    least, most = (rho.value * float(end) for end in np.percentile(share, [0, 100]))
    note = (
        f"until it nears its teacher, a distilled token is worth {rho.value:.3g} ({rho.low:.3g} to {rho.high:.3g}) of "
        f"text; with the teacher's forward passes counted, a FLOP is worth {least:.2g} to {most:.2g} of training on "
        "text, its own training left out"
    )
    return replace(found, warnings=(note, *found.warnings))

"""`launch --until-settled`: launches of one seed more, until a look at the arms ends them."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from tinyscale.orchestration.launch import launch
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.summary import Summary
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.planning.rounds import look
from tinyscale.results.store import Results


def launch_until_settled(
    plan: Plan, results: Results, cluster: Cluster, most: int, *, console: Console, **options: Any
) -> tuple[Plan, Summary]:
    """Train a plan and then one seed more at a time, at most `most` seeds; the last plan with what came of it.

    A round that is stopped, or in which a trial fails, is the last. options: of `launch`.
    """
    while True:
        summary = launch(plan, results, cluster, console=console, **options)
        if summary.stopped or summary.failed:
            return plan, summary
        seen = look(plan.sweep, results, most)
        for line in seen.said:
            console.print(line)
        if seen.following is None:
            return plan, summary
        plan = make_plan(seen.following, results, cluster.capacity, measure=False)

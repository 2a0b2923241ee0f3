"""Which trial Tune runs next: the grid's, longest first, or what a search draws; none once the user asked to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.tune.search.basic_variant import BasicVariantGenerator

from tinyscale.plan import Plan, PlannedTrial
from tinyscale.results import Results


@dataclass
class Stop:
    """Whether the user asked to stop. (Tune saves what its search holds, and cannot save a threading.Event.)"""

    requested: bool = False


class _Grid(BasicVariantGenerator):  # type: ignore[misc,unused-ignore]
    """Tune's grid, which ends early once the user asked to stop."""

    def __init__(self, stop: Stop, **settings: Any) -> None:
        super().__init__(**settings)
        self.stop = stop

    def next_trial(self) -> Any:
        return None if self.stop.requested else super().next_trial()

    def is_finished(self) -> bool:
        return self.stop.requested or bool(super().is_finished())


def choose_trials(
    plan: Plan, results: Results, planned: dict[str, PlannedTrial], scratch: str, stop: Stop
) -> dict[str, Any]:
    """Settings of Tune for the next trial. A search adds what it draws to `planned`, by identity."""
    if plan.sweep.search is None:
        return {"search_alg": _Grid(stop, max_concurrent=plan.at_once)}
    from tinyscale.orchestration.search import search_settings  # with optuna

    return search_settings(plan, results, planned, scratch, stopping=lambda: stop.requested)

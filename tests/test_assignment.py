"""What travels to a worker: all that it needs as JSON, and of that little in what Ray Tune holds for each trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
from making import known_trial

from tinyscale.orchestration.assignment import Assignment, LaunchSettings, Ticket, reserved
from tinyscale.planning.plan import PlannedTrial
from tinyscale.spec.cell import Cell
from tinyscale.spec.config import Resources
from tinyscale.spec.state import State

SETTINGS = LaunchSettings(
    sweep="width",
    results="/somewhere/results",
    provenance={"commit": None, "dirty": True, "packages": {"torch": "2"}},
    keep_weights=False,
    ray_storage="/tmp/scratch",
    halving=True,
)


def planned(**axes: int) -> PlannedTrial:
    return PlannedTrial(known_trial(**axes), Cell("a/b", axes, 0), State.NEW, None)


def test_an_assignment_is_the_same_after_its_way_to_a_worker() -> None:
    together = [planned(d_model=width) for width in (16, 32)]
    together[1] = together[1].with_share(0.25)
    sent = Assignment.of(together, SETTINGS)
    arrived = Assignment.of_json(sent.as_json())
    assert arrived == sent
    assert arrived.trials[1].config.resources.gpu == 0.25


def test_a_ticket_names_its_assignments_first_trial_in_a_text_that_stays_short() -> None:
    trial = planned(d_model=16)
    ticket = Ticket.of(trial)
    assert ticket == Ticket.in_config({"ticket": ticket.as_json()})
    assert ticket.key == trial.trial.identity
    assert ticket.name == f"a-b_d_model=16_seed=0_{ticket.key[:6]}", "a folder can be called so"
    assert len(ticket.as_json()) < 200
    assert len(replace(ticket, reserved={}).as_json()) < len(Assignment.of([trial], SETTINGS).as_json()) / 5


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"cpu": 2}, {"CPU": 2}),
        ({"cpu": 1, "gpu": 0.25}, {"CPU": 1, "GPU": 0.25}),
        ({"cpu": 2, "gpu": 1, "workers": 4}, {"node:__internal_head__": 0.001}),
    ],
)
def test_a_trial_reserves_its_own_resources_and_a_worker_group_the_drivers(
    resources: dict[str, float], expected: dict[str, float]
) -> None:
    assert reserved(Resources.model_validate(resources)) == expected

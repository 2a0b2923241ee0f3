"""What travels to a worker: all that it needs as JSON, and of that little in what Ray Tune holds for each trial."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers import ROOT
from helpers.trials import known_trial
from tinyscale.orchestration.assignment import Assignment, LaunchSettings, Ticket, reserved
from tinyscale.spec.config import Resources

SETTINGS = LaunchSettings(
    sweep="width",
    results="/somewhere/results",
    provenance={"commit": None, "dirty": True, "packages": {"torch": "2"}},
    keep_weights=False,
    ray_storage="/tmp/scratch",
    halving=True,
)


def test_an_assignment_is_the_same_after_its_way_to_a_worker() -> None:
    together = (known_trial(d_model=16), known_trial(d_model=32).with_share(0.25))
    arrived = Assignment.of_json(Assignment(together, SETTINGS).as_json())
    assert arrived == Assignment(together, SETTINGS)
    assert arrived.trials[1].config.resources.gpu == 0.25


def test_a_ticket_names_its_assignments_first_trial_in_a_text_that_stays_short() -> None:
    trial = known_trial(d_model=16)
    ticket = Ticket.of(trial, "a/b d_model=16 seed=0")
    assert ticket == Ticket.in_config({"ticket": ticket.as_json()})
    assert ticket.key == trial.identity
    assert ticket.name == f"a-b_d_model=16_seed=0_{ticket.key[:6]}", "a folder can be called so"
    assert len(ticket.as_json()) < 200
    assert len(ticket.as_json()) < len(Assignment((trial,), SETTINGS).as_json()) / 5


def test_a_worker_loads_neither_planning_nor_fitting() -> None:
    program = "import sys, tinyscale.orchestration.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "tinyscale.training.loop" in done.stdout.split(), done.stderr
    assert not {"tinyscale.planning", "tinyscale.fitting", "matplotlib"} & set(done.stdout.split())


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

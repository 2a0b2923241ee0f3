"""What starting up loads: commands answer at once because they load little."""

from __future__ import annotations

import pytest

from helpers.programs import HEAVY, loaded


@pytest.mark.parametrize("module", ["tinyscale", "tinyscale.cli"])
def test_the_command_line_starts_with_click_alone(module: str) -> None:
    assert not loaded(f"import {module}") & HEAVY


LIGHT = (
    "spec.sweep",
    "data",
    "results.store",
    "results.provenance",
    "fitting",
    "analysis.study",
    "planning.make_plan",
    "planning.forecast",
    "reporting.plot_law",
    "reporting.page",
    "cli.tables",
)
TRAINING = ("training.loop", "training.batched", "planning.calibrate")


def loaded_by(*modules: str) -> set[str]:
    return loaded("; ".join(f"import tinyscale.{module}" for module in modules))


def test_planning_reading_and_fitting_need_neither_torch_nor_ray() -> None:
    if loaded_by(*LIGHT) & {"torch", "ray"}:
        assert [module for module in LIGHT if loaded_by(module) & {"torch", "ray"}] == []


def test_training_needs_no_ray() -> None:
    found = loaded_by(*TRAINING)
    assert "torch" in found, "or this test would see nothing"
    assert not found & {"ray", "matplotlib"}

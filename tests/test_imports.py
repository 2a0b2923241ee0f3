"""What starting up loads: commands answer at once because they load little."""

from __future__ import annotations

import pytest

from helpers.programs import HEAVY, loaded


@pytest.mark.parametrize("module", ["tinyscale", "tinyscale.cli"])
def test_the_command_line_starts_with_click_alone(module: str) -> None:
    assert not loaded(f"import {module}") & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "spec.sweep",
        "data",
        "results.store",
        "results.provenance",
        "fitting",
        "analysis.study",
        "planning.plan",
        "planning.forecast",
        "reporting.plot_law",
        "reporting.page",
        "cli.tables",
    ],
)
def test_planning_reading_and_fitting_need_neither_torch_nor_ray(module: str) -> None:
    assert not loaded(f"import tinyscale.{module}") & {"torch", "ray"}


@pytest.mark.parametrize("module", ["training.loop", "training.batched", "planning.calibrate"])
def test_training_needs_no_ray(module: str) -> None:
    found = loaded(f"import tinyscale.{module}")
    assert "torch" in found, "or this test would see nothing"
    assert not found & {"ray", "matplotlib"}

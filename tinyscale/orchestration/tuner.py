"""Ray Tune, as every phase of a launch runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune

from tinyscale.orchestration.assignment import LaunchSettings, Ticket

MAX_RESTARTS = 2  # of a trial whose process died; what raises would raise again


def run_tuner(
    worker: Callable[..., Any],
    settings: LaunchSettings,
    *,
    order: Mapping[str, Any],
    callbacks: Sequence[tune.Callback],
    configs: Mapping[str, Any] | None = None,
    reuse_actors: bool = True,
) -> None:
    """Run a Tune function over its tickets. order: Tune's settings for which comes next; configs: of a grid."""
    tune.Tuner(
        tune.with_resources(worker, _reserved),
        param_space=configs,
        tune_config=tune.TuneConfig(reuse_actors=reuse_actors, trial_name_creator=_name, **order),
        run_config=tune.RunConfig(
            name=settings.sweep,
            storage_path=settings.ray_storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=list(callbacks),
        ),
    ).fit()


def _name(trial: Any) -> str:
    return Ticket.in_config(trial.config).name


def _reserved(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([Ticket.in_config(config).reserved])

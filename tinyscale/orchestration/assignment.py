"""What the launcher gives a worker to train, and the little of it that Ray Tune holds for each trial."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from tinyscale.orchestration.ray_internals import HEAD_NODE
from tinyscale.spec.config import Resources
from tinyscale.spec.trial import Trial

DRIVER_SHARE = {HEAD_NODE: 0.001}  # a driver of several workers sits on the head and takes no core


@dataclass(frozen=True)
class LaunchSettings:
    """What all trials of one launch share.

    results: the folder's location; ray_storage: a folder for what Ray writes; halving: whether trials that are behind
    are stopped, each by a flag of its own; keep_every: tokens between weights that are kept along training; patience:
    evaluations without a better loss after which a trial is stopped; launch: its own name, under which its processes
    hold leases.
    """

    sweep: str
    results: str
    provenance: Mapping[str, Any]
    keep_weights: bool
    ray_storage: str
    halving: bool = False
    keep_every: int | None = None
    patience: int | None = None
    launch: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Assignment:
    """What one process or worker group trains: a trial, or several at the same time as one batched model."""

    trials: tuple[Trial, ...]
    settings: LaunchSettings

    @classmethod
    def of_json(cls, text: str) -> Self:
        """What `as_json` wrote."""
        written = json.loads(text)
        return cls(tuple(map(Trial.of_json, written["trials"])), LaunchSettings(**written["settings"]))

    def as_json(self) -> str:
        """All of it, as a text."""
        return json.dumps({"trials": [trial.as_json() for trial in self.trials], "settings": asdict(self.settings)})


@dataclass(frozen=True)
class Ticket:
    """What Ray Tune holds of an assignment.

    key: identity of its first trial; name: for Ray's dashboard; reserved: the resources that Tune reserves for it.

    Tune has it as one short text, which refers to no other trial: Tune copies and pickles what it holds of each trial
    again and again, which thousands of trials would feel.
    """

    key: str
    name: str
    reserved: Mapping[str, float]

    @classmethod
    def of(cls, trial: Trial, label: str, resources: Resources | None = None) -> Self:
        """The ticket of an assignment whose first trial this is. label: its cell in words; resources: not its own."""
        name = f"{label.replace(' ', '_').replace('/', '-')}_{trial.identity[:6]}"
        return cls(trial.identity, name, reserved(resources or trial.config.resources))

    @classmethod
    def in_config(cls, config: Mapping[str, Any]) -> Self:
        """The ticket in a configuration that Tune passes on."""
        return cls(**json.loads(config["ticket"]))

    def as_json(self) -> str:
        """All of it, as a text."""
        return json.dumps(asdict(self))


def reserved(need: Resources) -> Mapping[str, float]:
    """What Tune reserves for a trial: its own resources, or of a worker group those of the driver."""
    if need.workers > 1:
        return DRIVER_SHARE
    return {"CPU": need.cpu} | ({"GPU": need.gpu} if need.gpu else {})

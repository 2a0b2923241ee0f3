"""Sublayers and attention heads ablated one by one: how many nats each is worth."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tinyscale.errors import ConfigError
from tinyscale.measurements.interventions import Component, Edit, edited, heads, sublayers
from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Ablate
from tinyscale.training.evaluate import Evaluation
from tinyscale.training.model import GPT


def measure(subject: Subject, asked: Ablate) -> list[dict[str, Any]]:
    """One row per part: `component`, `layer` and `head`, and the loss without what it writes."""
    if asked.by == "resample" and subject.evaluation.rows == 1:
        raise ConfigError("by: resample needs several sequences at a time, and one fills a pass here; use by: mean")
    gpt = copy.deepcopy(subject.gpt)  # the unchanged model is scored while the other one is edited
    parts = sublayers(gpt) if asked.of == "sublayers" else heads(gpt)
    means = mean_written(gpt, subject.evaluation, parts) if asked.by == "mean" else {}
    edits: dict[str, Edit] = {"zero": torch.zeros_like, "resample": of_another_sequence}
    rows = []
    for part in parts:
        edit = edits.get(asked.by) or means[part].expand_as
        with edited(gpt, {part: edit}):
            rows.append({**asdict(part), **subject.scored(gpt)})
    return rows


def of_another_sequence(written: Tensor) -> Tensor:
    """What the part writes [B, T, ...] for the sequence that lies half a batch away."""
    return written.roll(max(1, len(written) // 2), dims=0)


@torch.inference_mode()
def mean_written(gpt: GPT, evaluation: Evaluation, parts: list[Component]) -> dict[Component, Tensor]:
    """The mean of what each part writes at the positions that are scored: [D], or of a head [K]."""
    sums: dict[Component, Tensor] = {}
    scored = torch.zeros(())

    def summing(part: Component) -> Edit:
        def add(written: Tensor) -> Tensor:
            sums[part] = sums.get(part, 0) + written[scored].double().sum(dim=0)
            return written

        return add

    with edited(gpt, {part: summing(part) for part in parts}):
        for inputs, targets in evaluation.passes():
            scored = targets >= 0
            gpt(inputs)
    return {part: (total / (evaluation.targets >= 0).sum()).float() for part, total in sums.items()}

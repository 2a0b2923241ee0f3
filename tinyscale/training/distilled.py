"""The loss of a student: what it learns from the text, and from the predictions of a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyscale.spec.config import TrainConfig


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence [] of the student's predictions from the teacher's, nats per token.

    student, teacher: logits [B, T, V], divided by the temperature first.
    """
    ours, theirs = (F.log_softmax(logits.flatten(0, 1).float() / temperature, -1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def distilled_loss(student: nn.Module, teacher: nn.Module, train: TrainConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Inputs and targets [B, T] -> (1 - lambda) CE + lambda tau^2 KL [], as Hinton et al. 2015 (1503.02531) weigh it.

    lambda is teacher_weight, tau the temperature, CE the student's loss on the text. The gradient of KL falls as
    tau^-2, which the factor undoes.
    """
    weight, temperature = train.teacher_weight, train.temperature

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = teacher(inputs)[0]
        logits, nats = student(inputs, targets if weight < 1 else None)
        from_teacher = temperature**2 * divergence(logits, theirs, temperature)
        return from_teacher if nats is None else (1 - weight) * nats + weight * from_teacher

    return loss

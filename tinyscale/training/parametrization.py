"""What follows a model's width and depth, so that a learning rate that is best for a small one is best for larger ones.

With m = d_model / BASE_WIDTH and l = n_layers / BASE_DEPTH, `completep` multiplies the standard values by:

                    embeddings    matrices of blocks    vectors of blocks    last norm    head
    output          50            1/l, of each branch                                     1/m, of the logits
    lr              1             1/m                   1                    1            1
    weight decay    1             m                     0                    0            1
    Adam's eps      1/m           1/(m l)               1/(m l)              1/m          1/m

These are the rules of CompleteP (Dey et al. 2025, 2505.01618, table 1 with alpha = 1; eps: its equation 40), as the
authors' code states them (EleutherAI/nanoGPT-mup). lr times weight decay is the same at every width: in long runs it
sets the size of a step relative to the weights (Kosson et al. 2025, 2510.19093). The head's lr does not depend on the
width, so that it may be tied to the embedding. The authors leave the embeddings' multiplier to the user; 50 gives the
residual stream the size one at any depth, where it would otherwise shrink with the branches, so that a step would
matter more in a deeper model.

For Lion, whose step is a sign and so has the size of Adam's, the lr and weight decay are Adam's. For Muon they are
derived from the spectral condition (Yang et al. 2023, 2310.17813): the spectral norm of a step is to be the same at
every width. That of a Muon step with the RMS of AdamW's grows as the root of the width, hence 1/sqrt(m) and sqrt(m).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from tinyscale.spec.config import BASE_DEPTH, BASE_WIDTH, ModelConfig, Optimizer

EMBEDDING_STD = 0.02  # initial, of embeddings


@dataclass(frozen=True)
class Multipliers:
    """Of one parameter's lr, weight decay and Adam's eps."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def multipliers(
    name: str, parameter: Tensor, config: ModelConfig, rule: Optimizer, summing: Collection[str] | None = None
) -> Multipliers:
    """The multipliers of a model's parameter, which has this name in it.

    summing: names of the parameters of a user's own model that sum over the width; None: the model is the GPT.
    """
    m, hidden = config.d_model / BASE_WIDTH, name.startswith("blocks.")
    if config.parametrization == "mup":
        sums = is_matrix(name, parameter, "blocks.", "head.") if summing is None else name in summing
        return Multipliers(lr=width_scale(config) if sums else 1.0)
    if config.parametrization == "completep":
        lr = m**-rule.width_power if is_matrix(name, parameter, "blocks.") else 1.0
        return Multipliers(lr, 1 / lr, scales(config).branch / m if hidden else 1 / m)
    return Multipliers()


def is_matrix(name: str, parameter: Tensor, *within: str) -> bool:
    """Whether a parameter is a matrix and its name starts with one of `within`."""
    return parameter.dim() >= 2 and name.startswith(within)


def width_scale(config: ModelConfig) -> float:
    """Base width over d_model under `mup` (Yang et al. 2022, table 8, with attention heads of a fixed width), else 1.

    It multiplies the lr of block matrices and of the head, and the head's initial std.
    """
    return BASE_WIDTH / config.d_model if config.parametrization == "mup" else 1.0


@dataclass(frozen=True)
class Scales:
    """What multiplies the sum of the embeddings, the output of each attention and MLP, and the logits."""

    embedding: float = 1.0
    branch: float = 1.0
    logits: float = 1.0


def scales(config: ModelConfig) -> Scales:
    """The scales of a model."""
    if config.parametrization != "completep":
        return Scales()
    return Scales(1 / EMBEDDING_STD, BASE_DEPTH / config.n_layers, BASE_WIDTH / config.d_model)


def head_std(config: ModelConfig) -> float:
    """Initial standard deviation of the head, and of an embedding tied to it.

    Without a scale of the logits it is smaller in wide models, so that initial logits have std at most 0.2 and the
    untrained loss is ln V at every width.
    """
    if config.parametrization == "completep":
        return EMBEDDING_STD
    scale = width_scale(config)
    return min(EMBEDDING_STD, 0.2 * config.d_model**-0.5) if scale == 1 else EMBEDDING_STD * scale


def branch_std(config: ModelConfig, inputs: int) -> float:
    """Initial standard deviation of a matrix that writes to the residual stream.

    It is divided by sqrt(2 n_layers) (GPT-2, section 2.3), under `completep` for the base depth, as the scale of the
    branches then follows the depth.
    """
    layers = BASE_DEPTH if config.parametrization == "completep" else config.n_layers
    return float(inputs**-0.5 / math.sqrt(2 * layers))

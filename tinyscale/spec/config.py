"""What one trial is: frozen, strict models, validated once and never changed afterwards.

A field's name is the same in the sweep file, here, in the Parquet column and on an axis label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    field_validator,
    model_validator,
)

from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.values import STRICT, Count, Int, OwnSettings, Quantity, Settings, refuse, whole

LONG_CONTEXT = 256  # positions; attention in bf16 on a CPU takes the queries of more in blocks
BUDGETS = ("tokens_budget", "tokens_per_param", "flops_budget", "epochs_budget")  # a training gives exactly one
# Mutually exclusive fields: setting one removes the others of its group that a lower layer set.
ALTERNATIVES = (
    tuple(f"train.{name}" for name in BUDGETS),
    ("model.n_heads", "model.head_dim"),
    ("data.corpus", "data.parts"),
    ("data.val", "data.val_bytes"),
)

BASE_WIDTH, BASE_DEPTH = 64, 2  # the size whose lr `mup` and `completep` take


def alternatives(path: str) -> set[str]:
    """The field and those that exclude it."""
    return {path}.union(*(group for group in ALTERNATIVES if path in group))


class ModelConfig(BaseModel):
    """The GPT's shape. The vocabulary's size comes from the tokenizer."""

    model_config = STRICT

    d_model: Int = Field(ge=4, le=65536, description="width of the residual stream")
    n_layers: Int = Field(ge=1, le=1024, description="number of blocks")
    n_heads: Int = Field(ge=1, description="attention heads; or give head_dim and heads follow the width")
    head_dim: Int = Field(ge=2, exclude=True, description="width of a head; n_heads = d_model / head_dim")
    n_kv_heads: Int | None = Field(
        default=None,
        ge=1,
        description="heads of keys and values, each shared by n_heads / n_kv_heads query heads; null: n_heads",
    )
    qk_norm: bool = Field(default=False, description="RMSNorm of each head's queries and keys, before their product")
    d_ff: Int = Field(ge=4, description="hidden width of the MLP; default: 4 d_model (gelu), 8/3 d_model (swiglu)")
    context_length: Int = Field(ge=2, le=1 << 20, description="tokens that the model sees at once")
    positions: Literal["learned", "rotary"] = Field(default="learned", description="how order enters the model")
    norm: Literal["layernorm", "rmsnorm"] = Field(default="layernorm", description="normalisation before each sublayer")
    activation: Literal["gelu", "swiglu"] = Field(default="gelu", description="the MLP's non-linearity")
    tie_embeddings: bool = Field(default=False, description="the head shares the token embedding's matrix")
    bias: bool = Field(default=False, description="biases in linear layers and norms")
    parametrization: Literal["standard", "mup", "completep"] = Field(
        default="standard",
        description=f"mup: lr is that of width {BASE_WIDTH}; its scaling keeps the best lr as d_model grows; "
        f"completep: lr is that of width {BASE_WIDTH} and {BASE_DEPTH} layers, and also serves other depths",
    )
    code: str | None = Field(
        default=None,
        min_length=1,
        description="path of a Python file whose class Model takes the GPT's place; null: the GPT. See your-own.md",
    )
    extra: OwnSettings = Field(
        default=Settings(), description="settings of that code's own: name -> value; each can be an axis"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_what_follows_from_width(cls, data: Any) -> Any:
        """Heads and the MLP follow d_model, so a width axis needs no second key."""
        width = whole(data.get("d_model")) if isinstance(data, dict) else None
        if not isinstance(width, int) or isinstance(width, bool):
            return data
        filled = dict(data)
        n_heads, head_dim = whole(data.get("n_heads")), whole(data.get("head_dim"))
        if n_heads is None and isinstance(head_dim, int) and head_dim > 0:
            if width % head_dim:
                raise refuse("head_dim", f"head_dim {head_dim} does not divide d_model {width}")
            filled["n_heads"] = width // head_dim
        elif head_dim is None and isinstance(n_heads, int) and n_heads > 0:
            if width % n_heads:
                raise refuse("n_heads", f"{n_heads} heads do not divide d_model {width}")
            filled["head_dim"] = width // n_heads
        elif n_heads is None and head_dim is None:
            raise refuse("n_heads", "give n_heads or head_dim")
        if data.get("n_kv_heads") == filled.get("n_heads"):
            filled["n_kv_heads"] = None  # the same model has the same identity
        if filled.get("d_ff") is None:
            swiglu = data.get("activation") == "swiglu"
            filled["d_ff"] = -(-8 * width // 24) * 8 if swiglu else 4 * width  # 8/3 d_model, up to a multiple of 8
        return filled

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_heads * self.head_dim != self.d_model:
            raise refuse("n_heads", f"{self.n_heads} heads of {self.head_dim} are not d_model {self.d_model}")
        if self.n_heads % self.kv_heads:
            raise refuse("n_kv_heads", f"n_kv_heads {self.kv_heads} does not divide n_heads {self.n_heads}")
        if self.parametrization == "mup" and self.tie_embeddings and self.code is None:
            own = "mup gives embedding and head learning rates of their own: they cannot tie"
            raise refuse("tie_embeddings", f"{own}; use parametrization: completep")
        if self.positions == "rotary" and self.head_dim % 2:
            raise refuse("head_dim", f"rotary positions turn pairs: head_dim {self.head_dim} must be even")
        return self

    @model_validator(mode="after")
    def _own_code_is_whole(self) -> Self:
        if self.extra and self.code is None:
            raise refuse("extra", "extra holds settings of code of your own: give model.code, or remove them")
        if self.code is not None and self.parametrization == "completep":
            rules = "completep has rules for the blocks of the built-in GPT alone"
            raise refuse("parametrization", f"{rules}; with model.code use mup or standard")
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimizer without building it."""

    states: int  # numbers that it keeps of each parameter
    linear_in_lr: bool = True  # a step at a rate is that share of a step of rate one
    mup: bool = True  # its rates follow the width under `mup`
    width_power: float = 1.0  # the power of the width that divides its rate under `completep`


OPTIMIZERS = {
    "adamw": Optimizer(states=2),
    "lion": Optimizer(states=1),
    "muon": Optimizer(states=2, mup=False, width_power=0.5),
}


UNKNOWN_RULE = Optimizer(states=2, linear_in_lr=False, mup=False)  # what is taken for granted of a user's own


class OwnOptimizer(BaseModel):
    """A user's own optimizer: {code: my_optimizer.py, momentum: 0.95} in a sweep file."""

    model_config = STRICT

    code: str = Field(min_length=1, description="path of a Python file with a function build")
    settings: OwnSettings = Field(default=Settings(), description="settings of its own")


class TrainConfig(BaseModel):
    """How the model is trained: one budget, the batch, the optimizer and its schedule."""

    model_config = STRICT

    tokens_budget: Count | None = Field(default=None, ge=1, le=10**15, description="training tokens")
    tokens_per_param: Quantity | None = Field(
        default=None, gt=0, le=1e9, description="training tokens per n_non_embedding"
    )
    flops_budget: Quantity | None = Field(default=None, gt=0, le=1e30, description="training FLOPs; the tokens follow")
    epochs_budget: Quantity | None = Field(
        default=None, gt=0, le=1e4, description="passes over the unique tokens, in whole steps"
    )
    batch_tokens: Count = Field(
        ge=2, le=10**12, description="tokens of one optimizer step, over all workers; auto: as lr"
    )
    optimizer: Literal["adamw", "lion", "muon"] | OwnOptimizer = Field(
        default="adamw",
        description="the update rule; muon: for the blocks' matrices, with adamw for all else; {code: FILE, ...}: your "
        "own, with settings of its own, each of which can be an axis. See your-own.md",
    )
    lr: Quantity = Field(
        gt=0, le=10, description="peak learning rate; auto: per size, by the fitted law of the best one, or by a rule"
    )
    min_lr_ratio: Quantity = Field(default=0.1, ge=0, le=1, description="last learning rate divided by the peak")
    warmup_fraction: Quantity = Field(default=0.05, ge=0, lt=1, description="share of steps that raise the rate to lr")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="the rate after warm-up; wsd is flat, then falls linearly over decay_fraction"
    )
    decay_fraction: Quantity = Field(default=0.2, gt=0, le=1, description="share of steps in which wsd falls")
    branches: tuple[Quantity, ...] = Field(
        default=(),
        max_length=100,
        strict=False,
        description="shares of the tokens at which wsd also decays, on a branch that ends as a shorter trial would",
    )
    weight_decay: Quantity = Field(
        default=0.1, ge=0, description="decoupled decay of matrices (not of vectors); auto: as lr"
    )
    betas: tuple[Quantity, Quantity] = Field(
        default=(0.9, 0.95),
        description="decay rates of the optimizer's averages (muon's own momentum is 0.95)",
        strict=False,
    )
    grad_clip: Quantity = Field(default=1.0, ge=0, description="largest gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="of matrix products; auto: the faster of fp32 and bf16; fp16, with a loss scaler, on GPUs only",
    )
    weight_bits: Int | None = Field(
        default=None,
        ge=2,
        le=16,
        description="bits that the matrices of the blocks are rounded to in each forward pass, one scale per row, with "
        "straight-through gradients; default: no rounding",
    )
    teacher: str | None = Field(
        default=None, description="name of one of the sweep's teachers, whose predictions the trial learns; null: none"
    )
    teacher_weight: Quantity = Field(
        default=1.0, ge=0, le=1, description="share of the loss that is the divergence from the teacher; 0: no teacher"
    )
    temperature: Quantity = Field(
        default=1.0, gt=0, le=1e3, description="divides the logits of both before they are compared; 1: as they are"
    )
    repeats: bool = Field(default=False, description="allow more than one epoch over the unique tokens")
    eval_points: Int = Field(
        default=6, ge=1, le=1000, description="evaluations, log-spaced in tokens, the last at the end"
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _own_settings_stand_beside_the_code(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if not isinstance(code := value.get("code"), str) or not code:
            raise refuse("code", "name a Python file: {code: my_optimizer.py}")
        own = {name: given for name, given in value.items() if name != "code"}
        return OwnOptimizer(code=code, settings=own["settings"] if own.keys() == {"settings"} else own)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise refuse("tokens_budget", f"give exactly one budget of {', '.join(BUDGETS)}; found {found}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise refuse("betas", f"both betas must be at least 0 and below 1, not {list(self.betas)}")
        return self

    @property
    def rule(self) -> Optimizer:
        """What is known of the optimizer."""
        return UNKNOWN_RULE if isinstance(self.optimizer, OwnOptimizer) else OPTIMIZERS[self.optimizer]

    @property
    def optimizer_name(self) -> str:
        """The optimizer in one word: its name, or the file of a user's own."""
        return PurePath(self.optimizer.code).name if isinstance(self.optimizer, OwnOptimizer) else self.optimizer

    @model_validator(mode="after")
    def _branches_leave_a_flat_trunk(self) -> Self:
        if not self.branches:
            return self
        if self.schedule != "wsd":
            raise refuse("branches", f"only schedule wsd has a trunk to branch off, not {self.schedule}")
        if list(self.branches) != sorted(set(self.branches)) or not 0 < self.branches[0] <= self.branches[-1] < 1:
            raise refuse("branches", f"branches are rising shares between 0 and 1, not {list(self.branches)}")
        if self.branches[0] * (1 - self.decay_fraction) < self.warmup_fraction:
            raise refuse(
                "branches", f"the branch at {self.branches[0]:g} would decay before warm-up ends; lower warmup_fraction"
            )
        return self


class Resources(BaseModel):
    """What one trial runs on. Recorded, never part of its identity."""

    model_config = STRICT

    cpu: Int = Field(default=1, ge=1, description="CPU cores, and threads, of a worker")
    gpu: Quantity = Field(
        default=0, ge=0, description="GPUs of a worker: 0, a share 1/k, or 1; auto: by the memory needed"
    )
    workers: Int = Field(default=1, ge=1, description="workers that share a trial by data parallelism")
    compile: bool = Field(
        default=False,
        description="compile the training step; a sweep without this key has `auto`: compile where it saves time",
    )

    @model_validator(mode="after")
    def _shares_pack(self) -> Self:
        if 0 < self.gpu < 1 and abs(1 / self.gpu - round(1 / self.gpu)) > 1e-6:
            raise refuse("gpu", f"a share of a GPU must be 1/k (0.5, 0.25, ...) so that shares pack, not {self.gpu}")
        if self.gpu > 1:
            raise refuse(
                "gpu", f"a worker drives one GPU at most; for {self.gpu} give workers: {int(self.gpu)}, gpu: 1"
            )
        if self.workers > 1 and 0 < self.gpu < 1:
            raise refuse("gpu", "several workers need a whole GPU each (gpu: 1) or none")
        return self


class TrialConfig(BaseModel):
    """One training run, seed included."""

    model_config = STRICT

    data: DataConfig = Field(description="text and tokens")
    model: ModelConfig = Field(description="shape of the GPT")
    train: TrainConfig = Field(description="budget, batch, optimizer, schedule")
    seed: Int = Field(default=0, ge=0, le=2**31 - 1, description="seeds initialisation and batch order")
    resources: Resources = Field(default_factory=Resources, description="what the trial runs on")

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values of these fields, by dotted path, validated as a whole.

        A field that is set drops its alternatives. pydantic's ValidationError where the copy is not legal.
        """
        parts: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        changes: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            part, _, field = path.partition(".")
            if field:
                changes.setdefault(part, {})[field] = value
            else:
                parts[part] = value
        for part, changed in changes.items():
            dropped = {other.partition(".")[2] for field in changed for other in alternatives(f"{part}.{field}")}
            kept = parts[part].model_dump(exclude=dropped)
            parts[part] = type(parts[part]).model_validate({**kept, **changed})
        return type(self).model_validate(parts)

    @property
    def runs_own_code(self) -> bool:
        """Whether the model or the optimizer is the user's own."""
        return self.model.code is not None or isinstance(self.train.optimizer, OwnOptimizer)

    @model_validator(mode="after")
    def _batch_holds_whole_contexts(self) -> Self:
        batch, context, workers = self.train.batch_tokens, self.model.context_length, self.resources.workers
        if self.model.parametrization != "standard" and isinstance(self.train.optimizer, OwnOptimizer):
            rates = f"{self.model.parametrization} knows no rates for an optimizer of your own"
            raise refuse("model.parametrization", f"{rates}; use standard")
        if self.model.code is not None and self.train.optimizer == "muon":
            raise refuse("train.optimizer", "muon is for the matrices of the built-in GPT's blocks; use adamw or lion")
        if self.model.parametrization == "mup" and not self.train.rule.mup:
            able = " and ".join(name for name, optimizer in OPTIMIZERS.items() if optimizer.mup)
            own = f"{self.train.optimizer} scales its own steps; use completep"
            raise refuse("model.parametrization", f"mup's rates are for {able}; {own}")
        if self.model.code is not None and self.train.weight_bits is not None:
            raise refuse("train.weight_bits", "only the built-in GPT rounds its blocks; remove it, or model.code")
        if self.runs_own_code and self.resources.compile:
            raise refuse("resources.compile", "code of your own runs eagerly: leave compile out")
        if batch % context:
            raise refuse("train.batch_tokens", f"batch_tokens {batch} is not a multiple of context_length {context}")
        if (batch // context) % workers:
            raise refuse(
                "resources.workers", f"{batch // context} sequences a step do not divide among {workers} workers"
            )
        return self

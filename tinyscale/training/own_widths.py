"""What follows the width in a user's own model, and whether its steps matter as much at every width, as `mup` promises.

Both are found by building the model at two widths. By the shapes, a parameter that sums over the width has its learning
rate divided by the width, as the matrices of the GPT's blocks and its head have (Yang et al. 2022, 2203.03466, table 3;
appendix H for the shapes). Then the model makes a few steps at both widths, on random tokens. What the steps of a
parameter do to the loss is, to first order, the sum of gradient times change (Lan et al. 2019, 1909.01440). Under mup
it has the same size at every width. It shows what the sizes of outputs hide: at these widths most of what moves the
logits is their initial part, which shrinks. Those of the modules' outputs say where a fault is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tinyscale.errors import ConfigError
from tinyscale.spec.code import Code
from tinyscale.spec.config import BASE_WIDTH, ModelConfig, TrainConfig
from tinyscale.training.coordinates import LR, POSITIONS, ROWS, STEPS, VOCAB_SIZE
from tinyscale.training.optim import MuonWithAdamW, build_optimizer, set_rate
from tinyscale.training.own import OwnModel, named_in, where_defined

WIDER = 4  # the wide model's width, in widths of the narrow one
EPS = 1e-16  # Adam's, so small that the sizes of the gradients do not matter
SIZE_FOLLOWS = 0.35  # a larger power of the width, of an untrained output, is the reason of a fault; most are 0.5
SIZES = "std 1/sqrt(inputs) for weights that sum over the width, or 1/inputs in the output head"

Powers = dict[str, float]  # by name: the power of the width with which something grows


@dataclass(frozen=True)
class Limits:
    """Powers of the width beyond which what the steps of a matrix do to the loss is at fault, over so many seeds.

    The GPT's own are within 0.12. What reads from few outputs, such as keys that many heads share, is noisy and falls:
    to -0.4 over 8 seeds.
    """

    seeds: int
    grows: float
    shrinks: float


FIRST, LAST = Limits(2, 0.15, -0.3), Limits(8, 0.25, -0.6)  # what is clear by two seeds is not measured with eight


@dataclass(frozen=True)
class Fault:
    """A module, by its path, with what is wrong with it and the remedy."""

    path: str
    what: str
    remedy: str


def check_widths(code: Code, config: ModelConfig, model: nn.Module) -> tuple[str, ...]:
    """The names of the model's parameters that sum over the width.

    config: of the model. ConfigError where the steps of a parameter matter more or less in a wider one, or where its
    parameters have other names; what the user's code raises is passed on, with the widths.
    """
    narrow, wide = two_widths(config)
    names, summing = _checked(code, narrow, wide)
    if other := sorted(names.symmetric_difference(name for name, _ in model.named_parameters())):
        raise ConfigError(
            f"{_where_built(code)}: parameters have other names at d_model {narrow.d_model}, where mup finds what "
            f"follows the width, such as {other[0]}: give them the same names at every width"
        )
    return summing


def two_widths(config: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """The model with a d_model of BASE_WIDTH, or of the next that its heads allow, and WIDER times as wide.

    Heads keep their width, or a smaller one that is quick; d_ff follows the width, and nothing else does.
    """
    kv_heads, head_dim = config.n_kv_heads or 1, config.head_dim
    while head_dim * kv_heads > BASE_WIDTH and head_dim % 4 == 0:
        head_dim //= 2
    least = head_dim * kv_heads
    narrow = least * math.ceil(BASE_WIDTH / least)
    return _of_width(config, narrow, head_dim), _of_width(config, WIDER * narrow, head_dim)


def _of_width(config: ModelConfig, width: int, head_dim: int) -> ModelConfig:
    d_ff = 8 * max(1, round(config.d_ff * width / config.d_model / 8))
    changed = {"d_model": width, "n_heads": width // head_dim, "head_dim": head_dim, "d_ff": d_ff}
    return ModelConfig.model_validate({**config.model_dump(), **changed})


@functools.lru_cache(maxsize=64)  # the sizes of a sweep have these widths in common
def _checked(code: Code, narrow: ModelConfig, wide: ModelConfig) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names of all parameters, and of those that sum over the width."""
    with _Noted(f"at d_model {narrow.d_model} and {wide.d_model}, where mup is checked"):
        small, large = (named_in(code, "Model")(config, VOCAB_SIZE) for config in (narrow, wide))
        names, summing = frozenset(dict(small.named_parameters())), names_that_sum(small, large)
        for limits in (FIRST, LAST):
            of_narrow, of_wide = (
                [_measure(code, config, summing, seed) for seed in range(limits.seeds)] for config in (narrow, wide)
            )
            fault = _fault(_work(of_narrow, of_wide), _sizes(of_narrow, of_wide), limits, large, summing)
            if fault is None:
                return names, summing
    assert fault is not None, "the loop ends with one"
    where = _where(code, large, fault.path)
    raise ConfigError(f"{where}: under parametrization mup, {fault.what}: {fault.remedy}. See fitting.md")


def names_that_sum(narrow: nn.Module, wide: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of which two dimensions grow, or the inputs of an nn.Linear or a convolution.

    A matrix that an nn.Embedding shares is none: its rows are looked up.
    """
    small, layers = dict(narrow.named_parameters()), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    tables = [module for module in wide.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(weight) for table in tables for weight in table.parameters()}
    of_layers = {id(module.weight) for module in wide.modules() if isinstance(module, layers)}

    def sums(name: str, weight: Tensor) -> bool:
        grows = [new != old for new, old in zip(weight.shape, small[name].shape, strict=True)] if name in small else []
        inputs = any(grows[1:]) if id(weight) in of_layers else sum(grows) > 1
        return inputs and id(weight) not in looked_up

    return tuple(name for name, weight in wide.named_parameters() if sums(name, weight))


@dataclass(frozen=True)
class Measured:
    """A model of one width and seed.

    work: of each matrix, what its steps did to the loss, nats. sizes: of the untrained output of each module, root mean
    squares, in the order in which the modules end.
    """

    work: Mapping[str, float]
    sizes: Mapping[str, float]


def _measure(code: Code, config: ModelConfig, summing: Sequence[str], seed: int) -> Measured:
    torch.manual_seed(seed)
    model = OwnModel(named_in(code, "Model")(config, VOCAB_SIZE), config, summing).eval()
    optimizer = _optimizer_of(model)
    tokens = torch.randint(VOCAB_SIZE, (ROWS, min(POSITIONS, config.context_length) + 1))
    with _seen(model.model) as sizes, torch.no_grad():
        model(tokens[:, :-1])
    steps = [_step(model, optimizer, tokens) for _ in range(STEPS)]
    work = {name: sum(step[name] for step in steps) for name in steps[0]}
    if not math.isfinite(sum(work.values())):
        where = f"{_where_built(code)}: at d_model {config.d_model}"
        raise ConfigError(f"{where}, the loss is not finite after {STEPS} steps at lr {LR:g}")
    return Measured(work, sizes)


def _optimizer_of(model: OwnModel) -> torch.optim.Optimizer | MuonWithAdamW:
    """That of training, at LR."""
    train = TrainConfig(lr=LR, tokens_budget=1, batch_tokens=ROWS, weight_decay=0.0)
    optimizer = build_optimizer(model, train, model.config)
    set_rate(optimizer, torch.tensor(LR))
    for group in optimizer.param_groups:
        group["eps"] = EPS
    return optimizer


def _step(model: OwnModel, optimizer: torch.optim.Optimizer | MuonWithAdamW, tokens: Tensor) -> dict[str, float]:
    """One step; what the change of each matrix did to the loss, to first order."""
    matrices = {name: weight for name, weight in model.model.named_parameters() if weight.dim() > 1}
    before = {name: weight.detach().clone() for name, weight in matrices.items()}
    optimizer.zero_grad()
    _, loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss is not None, "targets are given"
    torch.autograd.backward(loss)
    optimizer.step()

    def done(name: str, weight: Tensor) -> float:
        return 0.0 if weight.grad is None else float((weight.grad * (weight.detach() - before[name])).sum())

    return {name: done(name, weight) for name, weight in matrices.items()}


@contextmanager
def _seen(model: nn.Module) -> Iterator[dict[str, float]]:
    """Filled with the size of each module's output, by its path, in the order in which the modules end."""
    sizes: dict[str, float] = {}

    def see(path: str, found: Any) -> None:
        output = found[0] if isinstance(found, tuple) and found else found
        if isinstance(output, Tensor) and output.is_floating_point():
            sizes.setdefault(path, output.float().square().mean().sqrt().item())

    def hook(path: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, __, found: see(path, found))

    handles = [hook(path, module) for path, module in model.named_modules()]
    yield sizes
    for handle in handles:
        handle.remove()


def _work(narrow: Sequence[Measured], wide: Sequence[Measured]) -> Powers:
    return _powers([each.work for each in narrow], [each.work for each in wide])


def _sizes(narrow: Sequence[Measured], wide: Sequence[Measured]) -> Powers:
    return _powers([each.sizes for each in narrow], [each.sizes for each in wide])


def _powers(narrow: Sequence[Mapping[str, float]], wide: Sequence[Mapping[str, float]]) -> Powers:
    """Of the sums over the seeds; without what is zero."""
    sums = {name: [abs(sum(seed[name] for seed in seeds)) for seeds in (narrow, wide)] for name in narrow[0]}
    return {name: math.log(more / less) / math.log(WIDER) for name, (less, more) in sums.items() if less * more > 0}


def _fault(work: Powers, sizes: Powers, limits: Limits, model: nn.Module, summing: Sequence[str]) -> Fault | None:
    """What is wrong, given the powers of the steps' work and of the sizes; None where all is well."""
    ordered = sorted(work, key=lambda name: _place(name, list(sizes)))
    unknown = [name for name in ordered if name not in summing and _may_sum(name, model)]
    if growing := [name for name in ordered if work[name] > limits.grows]:
        known = [name for name in growing if name not in unknown]
        return _of_size(known, sizes) or _of_gradient(growing, ordered, work, unknown)
    shrinking = [name for name in ordered if work[name] < limits.shrinks]  # what a factor comes after, or a small std
    if not shrinking:
        return None
    last = shrinking[-1]
    return Fault(_owner(last), _does(last, work), "forward needs no factor there that follows the width")


def _of_size(growing: Sequence[str], sizes: Powers) -> Fault | None:
    """The first module whose untrained output follows the width. A smaller one makes its own steps matter more."""
    larger = [path for path, power in sizes.items() if power > SIZE_FOLLOWS]
    smaller = [path for path in map(_owner, growing) if sizes.get(path, 0.0) < -SIZE_FOLLOWS]
    if not larger + smaller:
        return None
    path = [*larger, *smaller][0]
    what = f"the untrained output of {path or 'the model'} {_grows(sizes[path])}"
    return Fault(
        path,
        what,
        f"initialise it with {SIZES}, or give it a factor in forward" if larger else "give it weights of a fixed std",
    )


def _of_gradient(growing: Sequence[str], ordered: Sequence[str], work: Powers, unknown: Sequence[str]) -> Fault:
    """Where no output is larger, a gradient is, by the module that follows the last matrix whose steps matter more.

    Unless that one has a wrong rate: it is among the `unknown`, which may sum over the width, and what comes first is
    well.
    """
    last = growing[-1]
    after = [name for name in ordered[ordered.index(last) + 1 :] if _owner(name) != _owner(last)]
    first = next((name for name in ordered if name not in unknown), None)
    if not after or (last in unknown and first not in growing):
        remedy = "its learning rate does not follow the width; if it sums over it, make it the weight of an nn.Linear"
        return Fault(_owner(last), _does(last, work), remedy)
    what = f"{_does(last, work)}, and that of {after[0]}, which comes next, does not"
    return Fault(_owner(after[0]), what, f"initialise {_owner(after[0])} with {SIZES}")


def _does(name: str, work: Powers) -> str:
    return f"what the steps of {name} do to the loss {_grows(work[name])}"


def _grows(power: float) -> str:
    return f"{'grows' if power > 0 else 'shrinks'} as d_model^{power:.2f}"


def _place(name: str, called: list[str]) -> int:
    """Where a parameter is used: the place of its module in `called`; -1 where that has modules inside."""
    path = _owner(name)
    while path and path not in called:
        path = _owner(path)
    inside = any(other.startswith(f"{path}." if path else "") for other in called if other != path)
    return -1 if inside else called.index(path)


def _may_sum(name: str, model: nn.Module) -> bool:
    """Whether a matrix could sum over the width, for all that is known of it: no rows of it are looked up."""
    return not isinstance(model.get_submodule(_owner(name)), nn.Embedding)


def _owner(name: str) -> str:
    """The path of the module that a parameter or a module belongs to."""
    return name.rpartition(".")[0]


def _where(code: Code, model: nn.Module, path: str) -> str:
    """`file, line n` of the class of the module, or of the next one around it that is the user's own."""
    found = where_defined(code, type(model.get_submodule(path)).__name__)
    return found or (_where(code, model, _owner(path)) if path else code.name)


def _where_built(code: Code) -> str:
    return where_defined(code, "Model", "__init__") or code.name


class _Noted:
    """A context manager that adds a note to what a user's code raises."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, ConfigError):
            error.add_note(self.note)

"""The grid of a sweep: each cell of its arms, axes and seeds as a variant, before the text is known."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tinyscale.errors import ConfigError
from tinyscale.spec.cell import DEFAULT_ARM, Cell
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.document import Document, parse_value
from tinyscale.spec.settings import OPTIMIZER, TOKENIZER, Layer, config_value, flatten, over, read_config
from tinyscale.spec.values import quantity

MAX_TRIALS = 100_000

# Fields that may be `auto`: planning fills them in from measurements or results. What a variant holds until then.
AUTO: Mapping[str, Any] = {
    "train.precision": "fp32",
    "train.lr": 1e-3,
    "train.weight_decay": 0.1,
    "train.batch_tokens": None,  # one context for each worker
    "resources.gpu": 1.0,
    "resources.compile": False,
}


@dataclass(frozen=True)
class Variant:
    """What one cell of the grid asks for, before the text is known."""

    config: TrialConfig
    cell: Cell
    autos: tuple[str, ...] = ()  # fields that planning fills in
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def teacher(self) -> str | None:
        """Name of its teacher, until planning puts the identity in place; None without a share of the loss for one."""
        return self.config.train.teacher if self.config.train.teacher_weight else None

    def with_values(self, values: Mapping[str, Any]) -> Variant:
        """The variant with values for these fields, which are open no longer."""
        autos = tuple(path for path in self.autos if path not in values)
        return replace(self, config=self.config.with_values(values), autos=autos)

    def where(self, *paths: str) -> str:
        """Where the first of these fields that is set was written, and which cell of the grid this is."""
        origin = next((self.origins[path] for path in paths if path in self.origins), "")
        return ": ".join(filter(None, [origin, self.cell.label_of_seeds]))


Axis = list[Layer]


def axis_of(name: str, values: list[Any], document: Document, *block: str) -> Axis:
    """The layers of an axis, one per value."""
    keys = (*block, name) if block != ("seeds",) else block
    if not values:
        raise ConfigError(f"{document.origin(keys)}: {name} has no values")
    return [
        dict(flatten(name, value, document.origin((*keys, index)), document, (*keys, index)))
        for index, value in enumerate(values)
    ]


def zipped(axes: list[Axis], document: Document) -> Axis:
    lengths = {len(axis) for axis in axes}
    if len(lengths) > 1:
        raise ConfigError(f"{document.origin(('zip',))}: zipped fields need lists of one length, not {sorted(lengths)}")
    return [{path: setting for layer in row for path, setting in layer.items()} for row in zip(*axes, strict=True)]


def expand(
    base: Layer, arm: str, overrides: Layer, axes: list[Axis], seeds: Axis, sampled: list[Layer], document: Document
) -> Iterator[Variant]:
    """All variants of one arm: its lists are axes of its own. sampled: what a search may sample, checked as well."""
    own = {path: setting for path, setting in overrides.items() if is_axis(path, setting.value)}
    own_axes = [[dict(flatten(path, v, each.origin, None, ())) for v in each.value] for path, each in own.items()]
    axes = [*axes, *own_axes]
    if math.prod(map(len, axes)) * len(seeds) > MAX_TRIALS:
        raise ConfigError(f"{document.origin(('arms', arm))}: more than {MAX_TRIALS:,} trials; split the sweep")
    under = over(base, {path: setting for path, setting in overrides.items() if path not in own})
    for cell in itertools.product(*axes):
        values = functools.reduce(over, cell, under)
        varied = dict.fromkeys(shown_as(path) for layer in cell for path in layer)
        for seed in seeds:
            if seed and "seed" in values:
                raise ConfigError(f"{values['seed'].origin}: seed is set here and by seeds; keep one of them")
            settings = values | seed
            autos = tuple(path for path, setting in settings.items() if path in AUTO and setting.value == "auto")
            if varied_auto := [path for path in autos if path in varied]:
                raise ConfigError(f"{settings[varied_auto[0]].origin}: auto is no value to vary {varied_auto[0]} by")
            held = {path: replace(settings[path], value=_until_planned(path, settings)) for path in autos}
            config = read_config(settings | held, document)
            for layer in sampled if seed is seeds[0] else []:
                read_config(settings | held | layer, document)
            shown = {path.rpartition(".")[2]: config_value(config, path) for path in varied}
            origins = {path: setting.origin for path, setting in settings.items()}
            yield Variant(config, Cell(arm, shown, config.seed), autos, origins)


def _until_planned(path: str, settings: Layer) -> Any:
    """What a field that may be `auto` holds until planning fills it in."""
    if path != "train.batch_tokens":
        return AUTO[path]
    written = [settings[name].value for name in ("model.context_length", "resources.workers") if name in settings]
    whole = [int(number) for number in map(quantity, written) if isinstance(number, int | float)]
    return math.prod(whole)


def is_axis(path: str, value: Any) -> bool:
    """Whether an arm's value lists several; a field that takes a list itself needs a list of lists for that."""
    takes_list = path in ("train.betas", "train.branches")
    return isinstance(value, list) and (not takes_list or any(isinstance(item, list) for item in value))


def shown_as(path: str) -> str:
    """The field an axis is called by: the tokenizer's settings vary together, and a file is an optimizer."""
    if path == f"{OPTIMIZER}.code":
        return OPTIMIZER
    return TOKENIZER if path.startswith(f"{TOKENIZER}.") else path


def selected(variants: list[Variant], select: Sequence[str]) -> list[Variant]:
    """The part of the grid that the options choose; ConfigError lists what there is when nothing matches."""
    for text in select:
        name, _, wanted = text.partition("=")
        name = name.strip().rpartition(".")[2]
        values = [{**v.cell.axes, "arm": v.cell.arm, "seed": v.cell.seed}.get(name) for v in variants]
        present = list({repr(value): value for value in values if value is not None}.values())
        chosen = wanted.split(",") if name == "arm" else map(quantity, parse_value(f"[{wanted}]", f"--select {text}"))
        chosen = list(chosen)
        if not chosen or not present:
            legal = ", ".join(dict.fromkeys(n for v in variants for n in (*v.cell.axes, "arm", "seed")))
            raise ConfigError(f"--select {text}: write name=value with a name the sweep varies; legal: {legal}")
        variants = [v for v, value in zip(variants, values, strict=True) if value in chosen]
        missing = [item for item in chosen if item not in present]
        if missing:
            if name == "arm" and present == [DEFAULT_ARM]:
                raise ConfigError(f"--select {text}: this sweep has no arms; leave it out, or add arms to the file")
            legal = ", ".join(map(str, present))
            raise ConfigError(f"--select {text}: {name} never is {missing[0]!r}; it is {legal}")
    return variants

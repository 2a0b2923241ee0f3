"""A sweep: base + arms + axes + seeds, read from one YAML file and expanded to variants.

A value travels with the line or the option it came from, so that whatever is found wrong with it later,
however deep in validation, is reported where the user can mend it.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from tinyscale.config import ALTERNATIVES, STRICT, Int, TrialConfig
from tinyscale.document import Document, Keys, load_document, parse_value
from tinyscale.errors import ConfigError

MAX_TRIALS = 100_000
DEFAULT_ARM = "base"


class SweepFile(BaseModel):
    """The keys of a sweep file."""

    model_config = STRICT

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=80, description="starts with a letter; names files"
    )
    title: str = Field(default="", description="the question the sweep answers")
    base: dict[str, Any] = Field(description="fields that all trials share: data, model, train, seed")
    axes: dict[str, list[Any]] = Field(default={}, description="field -> values; axes multiply")
    zip: dict[str, list[Any]] = Field(default={}, description="fields that vary together, lists of one length")
    arms: dict[str, dict[str, Any]] = Field(
        default={}, description="named overrides; a list for a field that takes one value is an axis of that arm"
    )
    seeds: list[Int] = Field(default=[0], min_length=1, description="each trial is trained once with each seed")
    resources: dict[str, Any] = Field(default={}, description="what each trial runs on")


def _leaf_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _leaf_fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FIELDS = tuple(_leaf_fields(TrialConfig))
TOKENIZER = "data.tokenizer"  # set as a whole: another kind does not inherit the first one's settings


@dataclass(frozen=True)
class Setting:
    """A field's value and where it was written."""

    value: Any
    origin: str


Layer = dict[str, Setting]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: x` when a known name is close to this one, else nothing."""
    names = {word: full for full in known for word in (full.rpartition(".")[2], full)}
    close = [*difflib.get_close_matches(name, names, 1), *difflib.get_close_matches(name.rpartition(".")[2], names, 1)]
    return f"; nearest: {names[close[0]]}" if close else ""


def field_path(name: str, origin: str) -> str:
    """The dotted field that a name means: itself, or the one field whose last part it is. Else ConfigError."""
    matches = [known for known in (*FIELDS, TOKENIZER) if name in (known, known.rpartition(".")[2])]
    if len(matches) == 1:
        return matches[0]
    legal = ", ".join((*FIELDS, TOKENIZER))
    raise ConfigError(f"{origin}: {name!r} names no field{nearest(name, FIELDS)}\n  legal: {legal}")


def _flatten(
    name: str, value: Any, origin: str, document: Document | None, keys: Keys
) -> Iterator[tuple[str, Setting]]:
    """A written value as settings of single fields: a mapping sets the fields below it."""
    groups = {known.rpartition(".")[0] for known in FIELDS} - {""}
    if isinstance(value, dict) and (name in groups or any(group.endswith(f".{name}") for group in groups)):
        for key, inner in value.items():
            place = document.origin((*keys, key)) if document else origin
            yield from _flatten(f"{name}.{key}", inner, place, document, (*keys, key))
    else:
        yield field_path(name, origin), Setting(value, origin)


def _layer(values: Mapping[str, Any], document: Document, *keys: str | int) -> Layer:
    """The settings written under these keys of the document."""
    settings: Layer = {}
    for name, value in values.items():
        settings |= _flatten(name, value, document.origin((*keys, name)), document, (*keys, name))
    return settings


def _over(below: Layer, above: Layer) -> Layer:
    """A layer on top of another: it replaces the same fields, their alternatives, and a whole tokenizer."""
    replaced = {other for group in ALTERNATIVES if not above.keys().isdisjoint(group) for other in group}
    if f"{TOKENIZER}.kind" in above:
        replaced |= {path for path in below if path.startswith(f"{TOKENIZER}.")}
    return {path: setting for path, setting in below.items() if path not in replaced} | above


def _problem(error: ValidationError, settings: Layer, whole: str) -> ConfigError:
    """The first thing pydantic complains of, in the file's terms: where, which field, what was given, what is legal."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    place = ".".join(str(part) for part in (*first["loc"], context.get("field", "")) if isinstance(part, str) and part)
    place = next((path for path in (place, place.rpartition(".")[0]) if path in settings), place)
    setting = settings.get(place)
    origin = setting.origin if setting else whole
    given = f" = {setting.value!r}" if setting else ""
    if first["type"] == "missing":
        return ConfigError(f"{origin}: {place} is missing, and it has no default")
    if first["type"] == "literal_error":
        return ConfigError(f"{origin}: {place}{given} is not legal; legal: {context['expected']}")
    return ConfigError(f"{origin}: {place}{given}: {first['msg'].replace('Input should', 'it should')}")


def _validate(settings: Layer, whole: str) -> TrialConfig:
    nested: dict[str, Any] = {}
    for path, setting in settings.items():
        *parents, leaf = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = setting.value
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise _problem(error, settings, whole) from error


def config_value(config: TrialConfig, path: str) -> Any:
    """A field's value in a configuration, by its dotted path; the tokenizer as one word, such as `bpe-1024`."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    if path == TOKENIZER:
        return value.kind if value.vocab_size is None else f"{value.kind}-{value.vocab_size}"
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Variant:
    """One cell of the grid with one seed, before the text is known; `axes` is what the sweep varies: field -> value."""

    config: TrialConfig
    arm: str
    axes: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked. Variants stand in the file's order, the last axis and then the seed fastest."""

    name: str
    title: str
    path: str
    source: str
    axes: tuple[str, ...]
    variants: tuple[Variant, ...] = field(repr=False)


def load_sweep(path: str | Path, *, overrides: Sequence[str] = (), select: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and expand it.

    overrides: `field=value`, laid over the file's base. select: `name=value[,value]`, a part of the grid by a varied
    field, `arm` or `seed`. Paths in the file are relative to it, paths in overrides to the working directory.
    ConfigError names file, line, field, what was given and what is legal.
    """
    document = load_document(path)
    try:
        file = SweepFile.model_validate(document.content)
    except ValidationError as error:
        raise _file_problem(error, document) from error
    base = _over(_layer(file.base, document, "base"), _layer({"resources": file.resources}, document))
    base = _beside(base, Path(path).parent)
    varied = {field_path(name, document.origin(("axes",))) for name in (*file.axes, *file.zip)}
    base = _over(base, dict(_override(text, varied) for text in overrides))
    arms = {arm: _layer(values, document, "arms", arm) for arm, values in file.arms.items()} or {DEFAULT_ARM: {}}
    grid = [_axis(name, values, document, "axes") for name, values in file.axes.items()]
    if file.zip:
        grid.append(_zipped([_axis(name, values, document, "zip") for name, values in file.zip.items()], document))
    variants = [
        variant for arm, settings in arms.items() for variant in _expand(base, arm, settings, [*grid], file.seeds)
    ]
    kept = _select(variants, select)
    axes = dict.fromkeys(name for variant in kept for name in variant.axes)
    return Sweep(file.name, file.title, str(path), document.source, tuple(axes), tuple(kept))


def _file_problem(error: ValidationError, document: Document) -> ConfigError:
    """What is wrong with the keys of the file itself."""
    first = error.errors(include_url=False)[0]
    keys = tuple(part for part in first["loc"] if part != "[key]")
    name, origin = ".".join(map(str, keys)), document.origin(keys)
    if first["type"] == "extra_forbidden":
        known = SweepFile.model_fields
        return ConfigError(f"{origin}: unknown key {name!r}{nearest(name, known)}\n  legal: {', '.join(known)}")
    if first["type"] == "missing":
        return ConfigError(f"{origin}: {name} is missing: {SweepFile.model_fields[name].description}")
    return ConfigError(f"{origin}: {name} = {first['input']!r}: {first['msg'].replace('Input should', 'it should')}")


def _beside(base: Layer, folder: Path) -> Layer:
    """A corpus path that the file gives is relative to the file."""
    corpus = base.get("data.corpus")
    if corpus and isinstance(corpus.value, str) and (folder / corpus.value).exists():
        return base | {"data.corpus": Setting(str(folder / corpus.value), corpus.origin)}
    return base


def _override(text: str, varied: set[str]) -> tuple[str, Setting]:
    """`field=value` of the command line as a setting."""
    name, equals, value = text.partition("=")
    origin = f"--set {text}"
    if not equals:
        raise ConfigError(f"{origin}: write field=value, for example train.lr=3e-3")
    path = field_path(name.strip(), origin)
    alternatives = {other for group in ALTERNATIVES if path in group for other in group}
    if clash := ({path} | alternatives) & varied:
        raise ConfigError(f"{origin}: {min(clash)} is varied by the sweep; choose a part of it with --select")
    return path, Setting(parse_value(value, origin), origin)


Axis = list[Layer]


def _axis(name: str, values: list[Any], document: Document, *keys: str) -> Axis:
    """The layers an axis steps through, one a value."""
    if not values:
        raise ConfigError(f"{document.origin((*keys, name))}: {name} has no values")
    places = [document.origin((*keys, name, index)) for index in range(len(values))]
    return [dict(_flatten(name, v, place, None, ())) for v, place in zip(values, places, strict=True)]


def _zipped(axes: list[Axis], document: Document) -> Axis:
    lengths = {len(axis) for axis in axes}
    if len(lengths) > 1:
        raise ConfigError(f"{document.origin(('zip',))}: zipped fields need lists of one length, not {sorted(lengths)}")
    return [{path: setting for layer in row for path, setting in layer.items()} for row in zip(*axes, strict=True)]


def _expand(base: Layer, arm: str, settings: Layer, axes: list[Axis], seeds: list[int]) -> Iterator[Variant]:
    """All variants of one arm: its lists are axes of its own."""
    own = {path: setting for path, setting in settings.items() if _is_axis(path, setting.value)}
    axes += [[{path: Setting(value, setting.origin)} for value in setting.value] for path, setting in own.items()]
    if math.prod(map(len, axes)) * len(seeds) > MAX_TRIALS:
        raise ConfigError(f"arm {arm}: more than {MAX_TRIALS:,} trials; split the sweep")
    under = _over(base, {path: setting for path, setting in settings.items() if path not in own})
    for cell in itertools.product(*axes):
        values = functools.reduce(_over, cell, under)
        varied = dict.fromkeys(_shown(path) for layer in cell for path in layer)
        for seed in seeds:
            config = _validate(values | {"seed": Setting(seed, "seeds")}, "base")
            yield Variant(config, arm, {path.rpartition(".")[2]: config_value(config, path) for path in varied})


def _is_axis(path: str, value: Any) -> bool:
    """Whether an arm's value lists several: betas is the one field that takes a list itself."""
    return isinstance(value, list) and (path != "train.betas" or any(isinstance(item, list) for item in value))


def _shown(path: str) -> str:
    """The field an axis is called by: the tokenizer's settings vary together."""
    return TOKENIZER if path.startswith(f"{TOKENIZER}.") else path


def _select(variants: list[Variant], select: Sequence[str]) -> list[Variant]:
    """The part of the grid that the options choose; ConfigError lists what there is when nothing matches."""
    for text in select:
        name, equals, wanted = text.partition("=")
        name = name.strip().rpartition(".")[2]
        values = [{**v.axes, "arm": v.arm, "seed": v.config.seed}.get(name) for v in variants]
        present = list(dict.fromkeys(value for value in values if value is not None))
        if not equals or not present:
            legal = ", ".join(dict.fromkeys(n for v in variants for n in (*v.axes, "arm", "seed")))
            raise ConfigError(f"--select {text}: write name=value with a name the sweep varies; legal: {legal}")
        chosen = [parse_value(item, f"--select {text}") for item in wanted.split(",")]
        variants = [v for v, value in zip(variants, values, strict=True) if value in chosen]
        missing = [item for item in chosen if item not in present]
        if missing:
            legal = ", ".join(map(str, present))
            raise ConfigError(f"--select {text}: {name} never is {missing[0]!r}; it is {legal}")
    return variants

"""A sweep: base + arms + axes + seeds, read from one YAML file and expanded to variants.

A value travels with the line or the option it came from, so that whatever is found wrong with it later,
however deep in validation, is reported where the user can mend it.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tinyscale.config import ALTERNATIVES, STRICT, Int, TrialConfig, quantity
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
    seeds: list[Int] | None = Field(
        default=None, min_length=1, description="each trial is trained once with each seed; left out: with base's seed"
    )
    resources: dict[str, Any] = Field(default={}, description="what each trial runs on")
    fuse: list[Literal["seed", "lr"]] = Field(
        default=[],
        description="seed, lr: trials that differ only in these are trained as one batched model, so that small ones "
        "fill a GPU",
    )


def _leaf_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _leaf_fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FIELDS = tuple(_leaf_fields(TrialConfig))
TOKENIZER = "data.tokenizer"  # set as a whole: another kind does not inherit the first one's settings

# Fields that may be `auto`: planning settles them from measurements or results. What a variant holds until then.
AUTO: Mapping[str, Any] = {"train.precision": "fp32", "resources.compile": False}


# What a batched model cannot do: field, which values, and what is legal instead.
UNFUSABLE: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("train.optimizer", lambda optimizer: optimizer == "muon", "adamw or lion"),
    ("train.precision", lambda precision: precision == "fp16", "fp32 or bf16"),
    ("train.branches", bool, "left out"),
    ("resources.workers", lambda workers: workers > 1, "1"),
)


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
    """The dotted field that a name means: itself, or the one field that ends so. Else ConfigError."""
    known = (*FIELDS, TOKENIZER)
    matches = [name] if name in known else [path for path in known if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{origin}: {name!r} is short for several fields: {', '.join(matches)}; write one in full")
    raise ConfigError(f"{origin}: {name!r} names no field{nearest(name, known)}\n  legal: {', '.join(known)}")


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
        path = field_path(name, origin)
        yield path, Setting(_beside(value, document) if path == "data.corpus" and document else value, origin)


def _beside(corpus: Any, document: Document) -> Any:
    """A corpus path that the file gives is relative to the file."""
    if isinstance(corpus, list):
        return [_beside(each, document) for each in corpus]
    if isinstance(corpus, str) and corpus:
        with suppress(OSError):  # a name too long for a path is none
            if (beside := Path(document.path).parent / corpus).exists():
                return str(beside)
    return corpus


def _layer(values: Mapping[str, Any], document: Document, *keys: str | int) -> Layer:
    """The settings written under these keys of the document."""
    settings: Layer = {}
    for name, value in values.items():
        for path, setting in _flatten(name, value, document.origin((*keys, name)), document, (*keys, name)):
            if path in settings:
                raise ConfigError(f"{setting.origin}: {path} is set a second time, after {settings[path].origin}")
            settings[path] = setting
    return settings


def _alternatives(path: str) -> set[str]:
    """The field and those that say the same thing in other words."""
    return {path}.union(*(group for group in ALTERNATIVES if path in group))


def _over(below: Layer, above: Layer) -> Layer:
    """A layer on top of another: it replaces the same fields, their alternatives, and a whole tokenizer."""
    replaced = {other for path in above for other in _alternatives(path)}
    if f"{TOKENIZER}.kind" in above:
        replaced |= {path for path in below if path.startswith(f"{TOKENIZER}.")}
    return {path: setting for path, setting in below.items() if path not in replaced} | above


def _problem(error: ValidationError, settings: Layer, document: Document) -> ConfigError:
    """The first thing pydantic complains of, in the file's terms: where, which field, what was given, what is legal."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    place = ".".join(str(part) for part in (*first["loc"], context.get("field", "")) if isinstance(part, str) and part)
    place = next((path for path in (place, place.rpartition(".")[0]) if path in settings), place)
    setting = settings.get(place)
    origin = setting.origin if setting else document.origin(("base", *place.split(".")))
    given = f" = {setting.value!r}" if setting else ""
    if first["type"] == "missing" and not setting:
        return ConfigError(f"{origin}: {place} is missing, and it has no default")
    if first["type"] == "literal_error":
        legal = str(context["expected"])
        close = nearest(str(first["input"]), re.findall("'(.*?)'", legal))
        return ConfigError(f"{origin}: {place}{given} is not legal{close}; legal: {legal}")
    if first["type"] == "model_type":
        return ConfigError(f"{origin}: {place}{given}: write its fields, such as {{kind: bpe, vocab_size: 1024}}")
    return ConfigError(f"{origin}: {place}{given}: {_legal(first['msg'])}")


def _legal(message: str) -> str:
    """pydantic's sentence as the end of ours."""
    return re.sub(r"^(Input|String|List) should", "it should", message)


def _validate(settings: Layer, document: Document) -> TrialConfig:
    nested: dict[str, Any] = {}
    for path, setting in sorted(settings.items(), key=lambda item: -item[0].count(".")):  # the whole over its parts
        *parents, leaf = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = setting.value
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise _problem(error, settings, document) from error


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
    autos: tuple[str, ...] = ()  # fields that planning settles
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands in the sweep, as the sweep's record keeps it."""
        return {"arm": self.arm, "seed": self.config.seed, "axes": dict(self.axes)}

    def settled(self, values: Mapping[str, Any]) -> Variant:
        """The variant with values for fields that were open."""
        nested = self.config.model_dump()
        for path, value in values.items():
            *parents, leaf = path.split(".")
            functools.reduce(dict.__getitem__, parents, nested)[leaf] = value
        still = tuple(path for path in self.autos if path not in values)
        return replace(self, config=TrialConfig.model_validate(nested), autos=still)

    def where(self, *paths: str) -> str:
        """Where the first of these fields that is set was written, and which cell of the grid this is."""
        origin = next((self.origins[path] for path in paths if path in self.origins), "")
        cell = " ".join(f"{name}={value}" for name, value in self.axes.items())
        return ": ".join(filter(None, [origin, cell]))


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked. Variants stand in the file's order, the last axis and then the seed fastest."""

    name: str
    title: str
    path: str
    source: str
    axes: tuple[str, ...]
    variants: tuple[Variant, ...] = field(repr=False)
    fuse: tuple[str, ...] = ()  # trials that differ only in these fields are trained together

    def __repr__(self) -> str:
        return f"Sweep({self.name!r}: {len(self.variants)} trials over {', '.join(self.axes) or 'seeds'})"


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
    implied = {"resources.compile": Setting("auto", document.origin(("resources",)))}
    base = _over(_layer(file.base, document, "base"), _layer({"resources": file.resources}, document))
    base = _over(implied, base)
    varied = _varied(file, document)
    base = _over(base, {path: setting for text in overrides for path, setting in _override(text, varied).items()})
    arms = {arm: _layer(values, document, "arms", arm) for arm, values in file.arms.items()} or {DEFAULT_ARM: {}}
    grid = [_axis(name, values, document, "axes") for name, values in file.axes.items()]
    if file.zip:
        grid.append(_zipped([_axis(name, values, document, "zip") for name, values in file.zip.items()], document))
    seeds: Axis = [{}] if file.seeds is None else _axis("seed", file.seeds, document, "seeds")
    variants = [variant for arm, layer in arms.items() for variant in _expand(base, arm, layer, grid, seeds, document)]
    kept = _select(variants, select)
    if file.fuse:
        _refuse_unfusable(kept, document.origin(("fuse",)))
    axes = dict.fromkeys(name for variant in kept for name in variant.axes)
    return Sweep(file.name, file.title, str(path), document.source, tuple(axes), tuple(kept), tuple(file.fuse))


def _refuse_unfusable(variants: Iterable[Variant], origin: str) -> None:
    """ConfigError when trials that are to be fused are trained in a way that one batched model cannot be."""
    for variant in variants:
        for path, illegal, legal in UNFUSABLE:
            value = config_value(variant.config, path)
            if illegal(value):
                raise ConfigError(
                    f"{variant.where(path)}: {path} = {value!r} cannot be fused: with fuse ({origin}) it must be "
                    f"{legal}; change it, or remove fuse"
                )


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
    return ConfigError(f"{origin}: {name} = {first['input']!r}: {_legal(first['msg'])}")


def _varied(file: SweepFile, document: Document) -> dict[str, str]:
    """The fields that the sweep varies, and where it says so; ConfigError when two of them say the same thing."""
    found: dict[str, str] = {} if file.seeds is None else {"seed": document.origin(("seeds",))}
    for block in ("axes", "zip"):
        for name in getattr(file, block):
            origin = document.origin((block, name))
            path = field_path(name, origin)
            if clash := _alternatives(path) & found.keys():
                twin = min(clash)
                raise ConfigError(f"{origin}: {path} is varied beside {twin} ({found[twin]}); they set the same thing")
            found[path] = origin
    return found


def _override(text: str, varied: Mapping[str, str]) -> Layer:
    """`field=value` of the command line as settings."""
    name, equals, value = text.partition("=")
    origin = f"--set {text}"
    if not equals:
        raise ConfigError(f"{origin}: write field=value, for example train.lr=3e-3")
    settings = dict(_flatten(name.strip(), parse_value(value, origin), origin, None, ()))
    set_here = {_shown(other) for path in settings for other in _alternatives(path)}
    if clash := set_here & {_shown(path) for path in varied}:
        raise ConfigError(f"{origin}: {min(clash)} is varied by the sweep; choose a part of it with --select")
    return settings


Axis = list[Layer]


def _axis(name: str, values: list[Any], document: Document, *block: str) -> Axis:
    """The layers an axis steps through, one a value."""
    keys = (*block, name) if block != ("seeds",) else block
    if not values:
        raise ConfigError(f"{document.origin(keys)}: {name} has no values")
    return [
        dict(_flatten(name, value, document.origin((*keys, index)), document, (*keys, index)))
        for index, value in enumerate(values)
    ]


def _zipped(axes: list[Axis], document: Document) -> Axis:
    lengths = {len(axis) for axis in axes}
    if len(lengths) > 1:
        raise ConfigError(f"{document.origin(('zip',))}: zipped fields need lists of one length, not {sorted(lengths)}")
    return [{path: setting for layer in row for path, setting in layer.items()} for row in zip(*axes, strict=True)]


def _expand(
    base: Layer, arm: str, overrides: Layer, axes: list[Axis], seeds: Axis, document: Document
) -> Iterator[Variant]:
    """All variants of one arm: its lists are axes of its own."""
    own = {path: setting for path, setting in overrides.items() if _is_axis(path, setting.value)}
    own_axes = [[dict(_flatten(path, v, each.origin, None, ())) for v in each.value] for path, each in own.items()]
    axes = [*axes, *own_axes]
    if math.prod(map(len, axes)) * len(seeds) > MAX_TRIALS:
        raise ConfigError(f"{document.origin(('arms', arm))}: more than {MAX_TRIALS:,} trials; split the sweep")
    under = _over(base, {path: setting for path, setting in overrides.items() if path not in own})
    for cell in itertools.product(*axes):
        values = functools.reduce(_over, cell, under)
        varied = dict.fromkeys(_shown(path) for layer in cell for path in layer)
        for seed in seeds:
            if seed and "seed" in values:
                raise ConfigError(f"{values['seed'].origin}: seed is set here and by seeds; keep one of them")
            settings = values | seed
            autos = tuple(path for path, setting in settings.items() if path in AUTO and setting.value == "auto")
            if varied_auto := [path for path in autos if path in varied]:
                raise ConfigError(f"{settings[varied_auto[0]].origin}: auto is no value to vary {varied_auto[0]} by")
            held = {path: replace(settings[path], value=AUTO[path]) for path in autos}
            config = _validate(settings | held, document)
            shown = {path.rpartition(".")[2]: config_value(config, path) for path in varied}
            yield Variant(config, arm, shown, autos, {path: setting.origin for path, setting in settings.items()})


def _is_axis(path: str, value: Any) -> bool:
    """Whether an arm's value lists several; a field that takes a list itself needs a list of lists for that."""
    takes_list = path in ("train.betas", "train.branches")
    return isinstance(value, list) and (not takes_list or any(isinstance(item, list) for item in value))


def _shown(path: str) -> str:
    """The field an axis is called by: the tokenizer's settings vary together."""
    return TOKENIZER if path.startswith(f"{TOKENIZER}.") else path


def _select(variants: list[Variant], select: Sequence[str]) -> list[Variant]:
    """The part of the grid that the options choose; ConfigError lists what there is when nothing matches."""
    for text in select:
        name, _, wanted = text.partition("=")
        name = name.strip().rpartition(".")[2]
        values = [{**v.axes, "arm": v.arm, "seed": v.config.seed}.get(name) for v in variants]
        present = list({repr(value): value for value in values if value is not None}.values())
        chosen = wanted.split(",") if name == "arm" else map(quantity, parse_value(f"[{wanted}]", f"--select {text}"))
        chosen = list(chosen)
        if not chosen or not present:
            legal = ", ".join(dict.fromkeys(n for v in variants for n in (*v.axes, "arm", "seed")))
            raise ConfigError(f"--select {text}: write name=value with a name the sweep varies; legal: {legal}")
        variants = [v for v, value in zip(variants, values, strict=True) if value in chosen]
        missing = [item for item in chosen if item not in present]
        if missing:
            legal = ", ".join(map(str, present))
            raise ConfigError(f"--select {text}: {name} never is {missing[0]!r}; it is {legal}")
    return variants

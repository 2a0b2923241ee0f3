"""A sweep: base + arms + axes + seeds, read from one YAML file and expanded to variants."""

from __future__ import annotations

import gc
import html
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from tinyscale.errors import ConfigError
from tinyscale.formatting import CONTROL, nearest
from tinyscale.spec.cell import DEFAULT_ARM, SWEEP_NAME
from tinyscale.spec.config import OPTIMIZERS, alternatives
from tinyscale.spec.document import Document, document_of, load_document, parse_value
from tinyscale.spec.grid import Axis, Variant, axis_of, expand, is_axis, selected, shown_as, zipped
from tinyscale.spec.measurement import Question, read_questions
from tinyscale.spec.search_space import ASHA_POINTS, MAX_COMBINATIONS, NUMBERS, SEARCHABLE, Search, Values
from tinyscale.spec.settings import (
    Layer,
    Setting,
    config_value,
    field_path,
    flatten,
    in_words,
    over,
    read_layer,
)
from tinyscale.spec.values import STRICT, Int

Options = Sequence[str] | Mapping[str, Any]  # `name=value`, or the names and values


def _without_control(text: str) -> str:
    if found := CONTROL.search(text):
        raise ValueError(f"{found[0]!r} is a control character, which a terminal would obey; remove it")
    return text


Words = Annotated[str, AfterValidator(_without_control)]


class SweepFile(BaseModel):
    """The keys of a sweep file."""

    model_config = STRICT

    name: str = Field(pattern=SWEEP_NAME, max_length=80, description="starts with a letter; names files")
    title: Words = Field(default="", description="the question the sweep answers")
    base: dict[str, Any] = Field(description="fields that all trials share: data, model, train, seed")
    axes: dict[str, list[Any]] = Field(default={}, description="field -> values; axes multiply")
    zip: dict[str, list[Any]] = Field(default={}, description="fields that vary together, lists of one length")
    arms: dict[Words, dict[str, Any]] = Field(
        default={}, description="named overrides; a list for a field that takes one value is an axis of that arm"
    )
    teachers: dict[Words, dict[str, Any]] = Field(
        default={},
        description="named overrides of base, each a trial that is trained before those with its name as train.teacher",
    )
    search: Search | None = Field(
        default=None, description="fields whose values Optuna samples for each cell of arms and axes: see below"
    )
    seeds: list[Int] | None = Field(
        default=None, min_length=1, description="each trial is trained once with each seed; default: base's seed"
    )
    measure: dict[str, dict[str, Any] | None] = Field(
        default={},
        description="what is asked of each finished trial: kind -> fields; a list is an axis of the kind",
    )
    resources: dict[str, Any] = Field(default={}, description="what each trial runs on")
    fuse: list[Literal["seed", "lr"]] = Field(
        default=[],
        description="seed, lr: trials that differ only in these are trained as one batched model, so that small ones "
        "fill a GPU",
    )


# What a batched model cannot do: field, which values, and what is legal instead.
UNFUSABLE: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("model.code", bool, "left out"),
    ("train.optimizer", lambda optimizer: optimizer == "muon" or optimizer not in OPTIMIZERS, "adamw or lion"),
    ("train.precision", lambda precision: precision == "fp16", "fp32 or bf16"),
    ("train.branches", bool, "left out"),
    ("train.weight_bits", bool, "left out"),
    ("train.teacher", bool, "left out"),
    ("resources.workers", lambda workers: workers > 1, "1"),
)


OF_STUDENTS = ("train.teacher", "train.teacher_weight", "train.temperature")


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked. Variants stand in the file's order, the last axis and then the seed fastest.

    teachers: those that variants name, by name; the cell of each is the arm `teacher NAME`.
    search: what is sampled for each cell; a variant then holds the middle of its range. whole: not a selection.
    """

    name: str
    title: str
    path: str
    source: str
    axes: tuple[str, ...]
    variants: tuple[Variant, ...] = field(repr=False)
    search: Search | None = None
    whole: bool = True
    fuse: tuple[str, ...] = ()  # trials that differ only in these fields are trained together
    measure: tuple[Question, ...] = ()  # asked of each finished trial
    teachers: Mapping[str, Variant] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        base: Mapping[str, Any],
        *,
        title: str = "",
        axes: Mapping[str, Sequence[Any]] | None = None,
        zip: Mapping[str, Sequence[Any]] | None = None,
        arms: Mapping[str, Mapping[str, Any]] | None = None,
        teachers: Mapping[str, Mapping[str, Any]] | None = None,
        search: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
        measure: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        fuse: Sequence[str] | None = None,
        overrides: Options = (),
        select: Options = (),
    ) -> Sweep:
        """A sweep from the keys of a sweep file, without one: `Sweep.of("width", base={...}, axes={"d_model": [64]})`.

        The keys and values are those of docs/sweep-file.md, and so are the errors, which name the key in place of a
        line. Paths are relative to the working directory. `source` is the sweep as a file. overrides, select: as of
        `load_sweep`. ConfigError if it is not legal.
        """
        keys = {
            "name": name, "title": title or None, "base": base, "axes": axes, "zip": zip, "arms": arms,
            "teachers": teachers, "search": search, "seeds": seeds, "measure": measure, "resources": resources,
            "fuse": fuse,
        }  # fmt: skip
        given = {key: value for key, value in keys.items() if value is not None}
        return _read_sweep(document_of(given, f"sweep {name}"), overrides, select)

    def __repr__(self) -> str:
        over = ", ".join(self.axes) or "seeds"
        if self.search is None:
            return f"Sweep({self.name!r}: {len(self.variants)} trials over {over})"
        return f"Sweep({self.name!r}: {self.search.trials} trials per cell over {over}, in search of {self.search})"

    def _repr_html_(self) -> str:
        title = f": {html.escape(self.title)}" if self.title else ""
        return f"<p>{html.escape(repr(self))}{title}</p><pre>{html.escape(self.source)}</pre>"


@contextmanager
def without_collector() -> Iterator[None]:
    """Thousands of trials are made at once and all stay: the garbage collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_sweep(path: str | Path, *, overrides: Options = (), select: Options = ()) -> Sweep:
    """Read a sweep file and expand it.

    overrides: `field=value`, laid over the file's base, or a mapping of these. select: `name=value[,value]`, a part of
    the grid by a varied field, `arm` or `seed`, or a mapping from these to a value or a list. Paths in the file are
    relative to it, paths in overrides to the working directory. ConfigError names file, line, field, what was given and
    what is legal.
    """
    return _read_sweep(load_document(path), overrides, select)


def _as_texts(options: Options) -> list[str]:
    """`name=value` for each: a mapping's values as YAML, those of a list with commas."""
    if isinstance(options, str):
        return [options]
    if not isinstance(options, Mapping):
        return list(options)
    plain = document_of(options, "options").content
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in plain.items()]


def _as_selection(options: Options) -> list[str]:
    if not isinstance(options, Mapping):
        return _as_texts(options)
    plain = document_of(options, "select").content
    lists = {name: value if isinstance(value, list) else [value] for name, value in plain.items()}
    return [f"{name}={','.join(map(str, values))}" for name, values in lists.items()]


@without_collector()
def _read_sweep(document: Document, overrides: Options, select: Options) -> Sweep:
    """The sweep that a document writes down."""
    overrides, select, path = _as_texts(overrides), _as_selection(select), document.path
    of_search = [text for text in overrides if text.startswith("search.")]
    overrides = [text for text in overrides if text not in of_search]
    try:
        file = SweepFile.model_validate(_with_search(document.content, of_search))
    except ValidationError as error:
        raise _file_problem(error, document) from error
    implied = {"resources.compile": Setting("auto", document.origin(("resources",)))}
    base = over(read_layer(file.base, document, "base"), read_layer({"resources": file.resources}, document))
    base = over(implied, base)
    varied = _varied(file, document)
    set_here = {path: setting for text in overrides for path, setting in _override(text, varied).items()}
    base = over(base, set_here)
    arms = {arm: read_layer(values, document, "arms", arm) for arm, values in file.arms.items()} or {DEFAULT_ARM: {}}
    search = _search(file.search, arms, document) if file.search else None
    sampled = [_sampled(values, varied) for values in (search.middle, *search.corners())] if search else []
    base = over(base, sampled[0]) if sampled else base
    grid = [axis_of(name, values, document, "axes") for name, values in file.axes.items()]
    if file.zip:
        grid.append(zipped([axis_of(name, values, document, "zip") for name, values in file.zip.items()], document))
    seeds: Axis = [{}] if file.seeds is None else axis_of("seed", file.seeds, document, "seeds")
    variants = [
        variant for arm, layer in arms.items() for variant in expand(base, arm, layer, grid, seeds, sampled, document)
    ]
    teachers = _teachers(file, variants, base, document)
    kept = selected(variants, select)
    _refuse_without_effect(set_here, kept)
    if search and search.scheduler == "asha" and (few := min(v.config.train.eval_points for v in kept)) < ASHA_POINTS:
        raise ConfigError(
            f"{document.origin(('search', 'scheduler'))}: asha compares trials at 1/16 and 1/4 of their tokens, and "
            f"train.eval_points = {few} evaluates none there; raise it to {ASHA_POINTS}, or set scheduler: none"
        )
    if file.fuse:
        _refuse_unfusable(kept, file, document)
    if file.measure and search:
        raise ConfigError(
            f"{document.origin(('measure',))}: what a search samples is not measured; measure the sweep that takes its "
            "law, with train.lr: auto"
        )
    measure = read_questions({kind: fields or {} for kind, fields in file.measure.items()}, document)
    axes, fuse = dict.fromkeys(name for variant in kept for name in variant.cell.axes), tuple(file.fuse)
    named = {variant.teacher for variant in kept}
    return Sweep(
        file.name,
        file.title,
        path,
        document.source,
        tuple(axes),
        tuple(kept),
        search,
        not select,
        fuse,
        measure,
        {name: teacher for name, teacher in teachers.items() if name in named},
    )


def _teachers(file: SweepFile, variants: Sequence[Variant], base: Layer, document: Document) -> dict[str, Variant]:
    """The sweep's teachers by name. ConfigError for a name that is not there, and for a teacher that nothing names."""
    if file.search and file.teachers:
        raise ConfigError(
            f"{document.origin(('teachers',))}: a search samples its own trials and trains no teachers; remove search, "
            "and let tinyscale tune search the learning rates"
        )
    named = {variant.teacher: variant for variant in variants if variant.teacher}
    for name, variant in named.items():
        if name not in file.teachers:
            legal = f"legal: {', '.join(file.teachers)}" if file.teachers else "add it under `teachers`"
            where = variant.where("train.teacher")
            raise ConfigError(f"{where}: no teacher is named {name!r}{nearest(name, file.teachers)}; {legal}")
    alone = {path: setting for path, setting in base.items() if path not in OF_STUDENTS}
    found = {}
    for name, values in file.teachers.items():
        origin, layer = document.origin(("teachers", name)), read_layer(values, document, "teachers", name)
        if name not in named:
            raise ConfigError(f"{origin}: no trial has this teacher; set train.teacher: {name} in an arm, or remove it")
        for path, setting in layer.items():
            if path in OF_STUDENTS:
                raise ConfigError(f"{setting.origin}: {path}: a teacher learns from the text alone; remove it")
            if is_axis(path, setting.value):
                given = f"{setting.origin}: {path} = {setting.value!r}"
                raise ConfigError(f"{given}: a teacher is one trial; give one value")
        (found[name],) = expand(alone, f"teacher {name}", layer, [], [{}], [], document)
    return found


def _refuse_unfusable(variants: Iterable[Variant], file: SweepFile, document: Document) -> None:
    """ConfigError when trials to fuse are sampled, or trained in a way that one batched model cannot be."""
    origin = document.origin(("fuse",))
    if file.search:
        raise ConfigError(
            f"{origin}: fuse = {file.fuse!r} beside search ({document.origin(('search',))}): a search samples "
            "its trials one by one, so there are none to train together; remove fuse, or the search"
        )
    for variant in variants:
        for path, illegal, legal in UNFUSABLE:
            value = config_value(variant.config, path)
            if illegal(value):
                where = variant.where(path, f"{path}.code")
                raise ConfigError(
                    f"{where}: {path} = {value!r} cannot be fused: with fuse ({origin}) it must be {legal}; change it, "
                    "or remove fuse"
                )


def _file_problem(error: ValidationError, document: Document) -> ConfigError:
    """What is wrong with the keys of the file itself; misspelt keys come before those that are then missing."""
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    keys = tuple(part for part in first["loc"] if part != "[key]")
    name, origin = ".".join(map(str, keys)), document.origin(keys)
    models: dict[int, type[BaseModel]] = {1: SweepFile, 2: Search}
    model = models.get(len(keys), Values)
    if first["type"] == "extra_forbidden":
        known = model.model_fields
        return ConfigError(f"{origin}: unknown key {name!r}{nearest(name, known)}\n  legal: {', '.join(known)}")
    if first["type"] == "missing":
        return ConfigError(f"{origin}: {name} is missing: {model.model_fields[str(keys[-1])].description}")
    return ConfigError(f"{origin}: {name} = {first['input']!r}: {in_words(first)}")


def _varied(file: SweepFile, document: Document) -> dict[str, str]:
    """The fields that the sweep varies, and where it says so; ConfigError when two of them say the same thing."""
    found: dict[str, str] = {} if file.seeds is None else {"seed": document.origin(("seeds",))}
    searched = file.search.fields if file.search else {}
    for block, names in ((("axes",), file.axes), (("zip",), file.zip), (("search", "fields"), searched)):
        for name in names:
            origin = document.origin((*block, name))
            path = field_path(name, origin)
            if clash := alternatives(path) & found.keys():
                twin = min(clash)
                raise ConfigError(f"{origin}: {path} is varied beside {twin} ({found[twin]}); they set the same thing")
            found[path] = origin
    return found


def _with_search(content: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """The file's content with keys of its search set from the command line: `search.trials=4`."""
    written = content.get("search")
    if not options or not isinstance(written, dict):
        return dict(content)
    pairs = [text.removeprefix("search.").partition("=") for text in options]
    set_here = {key.strip(): parse_value(value, f"--set search.{key}={value}") for key, _, value in pairs}
    return {**content, "search": {**written, **set_here}}


def _search(search: Search, arms: Mapping[str, Layer], document: Document) -> Search:
    """The search with its fields' full names; ConfigError for one that cannot be searched, or that an arm sets."""
    fields: dict[str, Values] = {}
    for name, values in search.fields.items():
        origin = document.origin(("search", "fields", name))
        path = field_path(name, origin)
        if path not in SEARCHABLE:
            legal = ", ".join(SEARCHABLE)
            raise ConfigError(f"{origin}: {path} is not searched; make it an axis\n  legal to search: {legal}")
        if not values.choices and path not in NUMBERS:
            raise ConfigError(f"{origin}: {path} does not take every number of a range; give {{choices: [...]}}")
        for layer in arms.values():
            for other in alternatives(path) & layer.keys():
                raise ConfigError(f"{layer[other].origin}: {other} is searched ({origin}); remove it here, or there")
        fields[path] = values
    combinations = math.prod(len(values.ends) for values in fields.values())
    if combinations > MAX_COMBINATIONS:
        origin = document.origin(("search",))
        raise ConfigError(f"{origin}: {combinations:,} combinations of choices, more than {MAX_COMBINATIONS:,}")
    return Search(fields=fields, trials=search.trials, scheduler=search.scheduler)


def _sampled(values: Mapping[str, Any], varied: Mapping[str, str]) -> Layer:
    """Values that a search may sample, as settings."""
    return {path: Setting(value, varied[path]) for path, value in values.items()}


def _override(text: str, varied: Mapping[str, str]) -> Layer:
    """`field=value` of the command line as settings."""
    name, equals, value = text.partition("=")
    origin = f"--set {text}"
    if not equals:
        raise ConfigError(f"{origin}: write field=value, for example train.lr=3e-3")
    settings = dict(flatten(name.strip(), parse_value(value, origin), origin, None, ()))
    set_here = {shown_as(other) for path in settings for other in alternatives(path)}
    if clash := set_here & {shown_as(path) for path in varied}:
        raise ConfigError(f"{origin}: {min(clash)} is varied by the sweep; choose a part of it with --select")
    return settings


def _refuse_without_effect(set_here: Layer, variants: Sequence[Variant]) -> None:
    """ConfigError when what the command line sets is set again in the arm of every variant."""
    for path, setting in set_here.items():
        if all(variant.origins.get(path) != setting.origin for variant in variants):
            arms = ", ".join(dict.fromkeys(variant.cell.arm for variant in variants))
            where = variants[0].where(path, *sorted(alternatives(path)))
            raise ConfigError(
                f"{setting.origin}: has no effect, since arm {arms} sets it as well: {where}; edit it there"
            )

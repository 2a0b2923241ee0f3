"""Layers of settings: fields as a file or an option writes them, laid over each other, and checked.

A value travels with the line or the option it came from, so that whatever is found wrong with it later,
however deep in validation, is reported where the user can mend it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tinyscale.errors import ConfigError
from tinyscale.formatting import nearest
from tinyscale.spec.config import OwnOptimizer, TrialConfig, alternatives
from tinyscale.spec.data_config import NAMED_CORPORA
from tinyscale.spec.document import Document, Keys


def _leaf_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _leaf_fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FIELDS = tuple(_leaf_fields(TrialConfig))
TOKENIZER = "data.tokenizer"  # set as a whole: another kind does not inherit the first one's settings
EXTRA, OPTIMIZER = "model.extra", "train.optimizer"  # whose settings have the names that a user's own code gives them
CODE = ("model.code", f"{OPTIMIZER}.code")  # files, relative to the sweep file


@dataclass(frozen=True)
class Setting:
    """A field's value and where it was written."""

    value: Any
    origin: str


Layer = dict[str, Setting]


def field_path(name: str, origin: str) -> str:
    """The dotted field that a name means: itself, or the one field that ends so. Else ConfigError."""
    known = (*FIELDS, TOKENIZER)
    for whole in (EXTRA, OPTIMIZER):
        for start in (whole, whole.partition(".")[2]):
            if name.startswith(f"{start}."):
                return f"{whole}{name.removeprefix(start)}"
    matches = [name] if name in known else [path for path in known if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{origin}: {name!r} is short for several fields: {', '.join(matches)}; write one in full")
    raise ConfigError(f"{origin}: {name!r} names no field{nearest(name, known)}\n  legal: {_legal_fields(name)}")


def _legal_fields(name: str) -> str:
    """The fields of the group that a wrong name is in or near; without one, the groups."""
    groups = {path.rpartition(".")[0] for path in FIELDS} - {""}
    close = nearest(name, FIELDS).removeprefix("; nearest: ")
    group = next((g for g in (name.rpartition(".")[0], close.rpartition(".")[0]) if g in groups), None)
    if group is None:
        return f"seed, and the fields of {', '.join(sorted(groups))}, as docs/sweep-file.md lists them"
    return ", ".join(path for path in FIELDS if path.rpartition(".")[0] == group)


def flatten(name: str, value: Any, origin: str, document: Document | None, keys: Keys) -> Iterator[tuple[str, Setting]]:
    """A written value as settings of single fields: a mapping sets the fields below it."""
    groups = {known.rpartition(".")[0] for known in FIELDS} - {""} | {EXTRA, OPTIMIZER}
    name = field_path(name, origin) if name in (EXTRA.partition(".")[2], OPTIMIZER.partition(".")[2]) else name
    if isinstance(value, dict) and (name in groups or any(group.endswith(f".{name}") for group in groups)):
        for key, inner in value.items():
            place = document.origin((*keys, key)) if document else origin
            yield from flatten(f"{name}.{key}", inner, place, document, (*keys, key))
    else:
        path = field_path(name, origin)
        if document and path in ("data.corpus", "data.parts", "data.val"):
            value = relative_to_file(value, document)
        if document and path in CODE and isinstance(value, str) and value:
            value = str(Path(document.path).parent / value)
        yield path, Setting(value, origin)


def relative_to_file(corpus: Any, document: Document) -> Any:
    """A corpus path that the file gives is relative to the file; the name of a corpus is no path (`./sotu` is)."""
    if isinstance(corpus, list):
        return [relative_to_file(each, document) for each in corpus]
    if isinstance(corpus, dict):
        return {name: relative_to_file(each, document) for name, each in corpus.items()}
    if isinstance(corpus, str) and corpus and corpus not in NAMED_CORPORA:
        with suppress(OSError):  # a name too long for a path is none
            if (found := Path(document.path).parent / corpus).exists():
                return str(found)
    return corpus


def read_layer(values: Mapping[str, Any], document: Document, *keys: str | int) -> Layer:
    """The settings written under these keys of the document."""
    settings: Layer = {}
    for name, value in values.items():
        for path, setting in flatten(name, value, document.origin((*keys, name)), document, (*keys, name)):
            if path in settings:
                raise ConfigError(f"{setting.origin}: {path} is set a second time, after {settings[path].origin}")
            settings[path] = setting
    return settings


def over(below: Layer, above: Layer) -> Layer:
    """A layer on top of another: it replaces the same fields, their alternatives, a whole tokenizer or optimizer."""
    replaced = {other for path in above for other in alternatives(path)}
    if f"{TOKENIZER}.kind" in above:
        replaced |= {path for path in below if path.startswith(f"{TOKENIZER}.")}
    if {OPTIMIZER, f"{OPTIMIZER}.code"} & above.keys():
        replaced |= {path for path in below if path == OPTIMIZER or path.startswith(f"{OPTIMIZER}.")}
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
    return ConfigError(f"{origin}: {place}{given}: {in_words(first)}")


KINDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list, such as [0.9, 0.95]",
    "list_type": "a list in brackets, such as [1, 2]",
    "dict_type": "fields with values, such as {lr: 3e-3}",
    "missing": "a longer list",
    "string_pattern_mismatch": "letters, digits, - and _ only, with a letter first",
}


def in_words(error: Mapping[str, Any]) -> str:
    """pydantic's complaint in the file's words, as the end of a sentence of ours."""
    if kind := KINDS.get(error["type"]):
        return f"it should be {kind}"
    return re.sub(r"^(Input|String|List|Tuple) should", "it should", str(error["msg"])).replace(" after validation", "")


def read_config(settings: Layer, document: Document) -> TrialConfig:
    """The configuration that settings make. ConfigError where it is not legal."""
    nested: dict[str, Any] = {}
    for path, setting in settings.items():
        if path.startswith(f"{OPTIMIZER}.") and OPTIMIZER in settings:
            given = f"train.optimizer = {settings[OPTIMIZER].value!r} ({settings[OPTIMIZER].origin})"
            raise ConfigError(f"{setting.origin}: {path} is a setting of an optimizer of your own, not of {given}")
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
    """A field's value in a configuration, by its dotted path.

    The tokenizer is one word, such as `bpe-1024`, and shares are another, such as `de:1+en:4`. A setting of a user's
    own code is None where the code has none of that name.
    """
    if path == OPTIMIZER:
        return config.train.optimizer_name
    if path.startswith(f"{EXTRA}."):
        return config.model.extra.get(path.removeprefix(f"{EXTRA}."))
    if path.startswith(f"{OPTIMIZER}."):
        own, name = config.train.optimizer, path.removeprefix(f"{OPTIMIZER}.")
        return own.settings.get(name) if isinstance(own, OwnOptimizer) else None
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    if path == TOKENIZER:
        return value.kind if value.vocab_size is None else f"{value.kind}-{value.vocab_size}"
    if path == "data.shares":
        return shares_in_words(value)
    return list(value) if isinstance(value, tuple) else value


def shares_in_words(shares: Collection[tuple[str, float]]) -> str:
    """Shares by the smallest of them, such as `de:1+en:4`; empty for no mixture."""
    smallest = min((share for _, share in shares), default=1.0)
    return "+".join(f"{name}:{share / smallest:.4g}" for name, share in shares)

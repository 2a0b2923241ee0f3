"""The tokenized texts of a sweep, and each of its variants resolved against its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinyscale.data import (
    TokenizedCorpus,
    prepare,
    require_common_tokens,
    require_enough_validation,
    require_whole_records,
)
from tinyscale.errors import ConfigError, DataError, TinyscaleError
from tinyscale.planning.own_code import OwnCode, read_own_code
from tinyscale.spec.config import BUDGETS, TrialConfig
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.grid import Variant
from tinyscale.spec.settings import shares_in_words
from tinyscale.spec.sweep import Sweep
from tinyscale.spec.trial import Trial, resolve


def _text_of(config: TrialConfig) -> DataConfig:
    """The whole text that a trial reads, or reads a part of."""
    whole = (
        {"data.unique_tokens": None} if config.data.unique_tokens else {"data.shares": ()} if config.data.parts else {}
    )
    return config.with_values(whole).data if whole else config.data


def prepare_texts(sweep: Sweep) -> dict[DataConfig, TokenizedCorpus]:
    """Tokens of each text and tokenizer that the sweep uses, made where this machine lacks them."""
    corpora: dict[DataConfig, TokenizedCorpus] = {}
    for variant in (*sweep.teachers.values(), *sweep.variants):
        data = _text_of(variant.config)
        if data in corpora:
            continue
        try:
            corpora[data] = prepare(data)
            require_enough_validation(corpora[data], data)
            require_common_tokens(corpora[data])
        except TinyscaleError as error:
            raise type(error)(f"{_blamed(variant, error)}: {error}") from error
    return corpora


def _blamed(variant: Variant, error: TinyscaleError) -> str:
    """Where the field that is to blame was written, else where the corpus was."""
    field = error.field if isinstance(error, DataError) else None
    corpus = "data.parts" if variant.config.data.parts else "data.corpus"
    return variant.origins.get(field or corpus, variant.origins[corpus])


def own_code_of(sweep: Sweep, texts: Mapping[DataConfig, TokenizedCorpus], notify: Callable[[str], None]) -> OwnCode:
    """The sweep's own code, read and checked. ConfigError for a model or an optimizer that cannot be used."""
    variants = (*sweep.teachers.values(), *sweep.variants)
    sizes = ((variant, texts[_text_of(variant.config)].facts.vocab_size) for variant in variants)
    return read_own_code(sizes, notify)


def resolve_against(
    texts: Mapping[DataConfig, TokenizedCorpus], own: OwnCode, teachers: Mapping[str, Trial], variant: Variant
) -> Trial:
    """The variant as a trial; ConfigError when the text, or its teacher, cannot give what it asks for.

    own: the sweep's own code; teachers: by identity, which is in place of the name.
    """
    config, corpus = variant.config, texts[_text_of(variant.config)]
    budget, context = variant.where(*(f"train.{name}" for name in BUDGETS)), variant.where("model.context_length")
    if config.train.precision == "fp16" and not config.resources.gpu:
        raise ConfigError(
            f"{variant.where('train.precision')}: train.precision = 'fp16' needs a GPU, and resources.gpu is 0: CPUs "
            "compute fp16 slowly and lose small gradients; set precision to bf16 or fp32"
        )
    try:
        code = own.of(config, corpus.facts.vocab_size)
        trial = resolve(config, corpus.facts, teachers[variant.teacher] if variant.teacher else None, code)
    except ConfigError as error:
        raise ConfigError(f"{budget}: {error}") from error
    if (config.data.unique_tokens or 0) > corpus.facts.train_tokens:
        raise ConfigError(
            f"{variant.where('data.unique_tokens')}: data.unique_tokens = {config.data.unique_tokens:,} is more than "
            f"the {corpus.facts.train_tokens:,} training tokens of {config.data.corpus}; give at most that"
        )
    if trial.epochs > 1 and config.data.parts and not config.train.repeats:
        name, times = _most_repeated(trial)
        raise ConfigError(
            f"{budget}: the budget of {trial.tokens:,} tokens reads part {name} {times:.2f} times, by its share in "
            f"{shares_in_words(config.data.shares)}; lower the budget or the share, or set train.repeats: true"
        )
    if trial.epochs > 1 and not config.train.repeats:
        raise ConfigError(
            f"{budget}: the budget of {trial.tokens:,} tokens reads the {trial.unique_tokens:,} unique tokens "
            f"{trial.epochs:.2f} times; lower the budget, use a longer corpus, or set train.repeats: true"
        )
    try:
        require_whole_records(corpus, config.model.context_length)
    except DataError as error:
        raise ConfigError(f"{context}: {error}") from error
    longest = min(corpus.longest_document, trial.unique_tokens - 1)
    if config.model.context_length > longest:
        raise ConfigError(
            f"{context}: model.context_length = {config.model.context_length:,} is longer than any document to train "
            f"on of {config.data.corpus} (at most {longest:,} tokens)"
        )
    if trial.teacher:
        _require_able(trial.teacher, trial, variant)
    return trial


def _require_able(teacher: Trial, student: Trial, variant: Variant) -> None:
    """ConfigError when a teacher cannot predict the student's tokens."""
    where, longest = variant.where("train.teacher"), teacher.config.model.context_length
    if teacher.facts.tokenizer_hash != student.facts.tokenizer_hash:
        raise ConfigError(f"{where}: the teacher has another tokenizer than the student; give both the same data")
    if longest < (context := student.config.model.context_length):
        raise ConfigError(
            f"{where}: the teacher sees {longest:,} tokens at once, and the student {context:,}; give the teacher a "
            "model.context_length of that at least"
        )


def _most_repeated(trial: Trial) -> tuple[str, float]:
    """The part of a mixture that is read most often, and how often."""
    shares, held = dict(trial.config.data.shares), dict(trial.facts.part_tokens)
    return max(((name, share * trial.tokens / held[name]) for name, share in shares.items()), key=lambda each: each[1])

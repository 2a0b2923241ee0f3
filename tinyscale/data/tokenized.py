"""Tokens on disk: computed once per machine, stored under a hash of all that they depend on, and memory-mapped.

A folder holds the SHA-256 of each of its files. One that does not answer to them is set aside and made again; one that
was made before there were any is read as it is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tinyscale.data.corpora import open_mixture, open_source
from tinyscale.data.files import has_plain_text
from tinyscale.data.mixture import PAGE_RULE, Mixture, equal_bytes
from tinyscale.data.source import Source, Split
from tinyscale.data.split import MIN_VAL_TOKENS, SPLIT_RULE, content_hash, in_order
from tinyscale.data.tokenizers import Tokenizer, load_tokenizer, token_dtype, train_tokenizer
from tinyscale.errors import DataError
from tinyscale.machine import cache_folder
from tinyscale.spec.data_config import SEPARATOR, DataConfig
from tinyscale.spec.facts import TextFacts
from tinyscale.storage import sync

_LAYOUT = 1  # version of the files in a cached folder
_META, _DIGESTS = "meta.json", "sha256.json"

Stream = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Part:
    """Where a part of a mixture lies in the streams, as positions [first, end), and what it holds.

    train: from the end-of-text before its first document to the one after its last; val: from its first document.
    """

    name: str
    train: tuple[int, int]
    val: tuple[int, int]
    val_documents: int
    val_bytes: int  # UTF-8

    @property
    def train_tokens(self) -> int:
        """Of its training stream."""
        return self.train[1] - self.train[0]

    @property
    def val_tokens(self) -> int:
        """Its targets that are scored."""
        return self.val[1] - self.val[0] - self.val_documents


@dataclass(frozen=True)
class InCommon:
    """What two parts of a mixture have in common. lines: share of bytes in lines of both; tokens: of their tokens."""

    parts: tuple[str, str]
    lines: float
    tokens: float


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus, split and tokenized. Its numbers are in meta.json of its folder, its tokens beside it.

    Of a mixture, `parts` are those that have a share; only they are scored, and the counts of validation are theirs.
    """

    facts: TextFacts
    tokenizer_kind: str
    eot: int  # id of the end-of-text token
    train_documents: int
    train_bytes: int  # UTF-8
    val_documents: int
    val_bytes: int  # UTF-8
    val_tokens: int  # the targets that are scored: the documents' own tokens
    longest_document: int  # tokens
    folder: str
    entropy_rate: float | None = None  # nats per token that no model can get below, of a source where that is known
    record_length: int | None = None  # tokens; a context must be a multiple, so that no window cuts a record
    parts: tuple[Part, ...] = ()
    in_common: tuple[InCommon, ...] = ()
    trained_on: int = 0  # of a validation text that was given: its documents that are in the training text too

    def train(self) -> Stream:
        """The training stream, [train_tokens]: end-of-text, then each document followed by end-of-text."""
        return self._stream("train")

    def val(self) -> tuple[Stream, npt.NDArray[np.int64]]:
        """The validation stream, laid out as the training stream, and the document's number at each position.

        Both are [val_tokens + val_documents + 1]; the first end-of-text has number -1, the others their document's.
        Where the text is records, their numbers stand for the document's: they are what is independent.
        """
        stream = self._stream("val")
        if self.parts:
            stream = np.concatenate([stream[:1], *(stream[slice(*part.val)] for part in self.parts)])
        if self.record_length:
            numbers = (np.arange(len(stream)) - 1) // self.record_length
            return stream, np.minimum(numbers, numbers[-2])
        ends = stream == self.eot
        return stream, np.cumsum(ends) - ends - 1

    def oracle(self) -> npt.NDArray[np.float64] | None:
        """The source's own loss at each position of the validation stream, nats; None where no source is known.

        A model's loss minus this, over the same targets, is its excess over the entropy, with far less noise than
        the loss minus entropy_rate. End-of-text, which is not scored, has 0.
        """
        if self.entropy_rate is None:
            return None
        return np.memmap(Path(self.folder) / "oracle.bin", dtype=np.float64, mode="r")

    def of_parts(self, names: Collection[str]) -> Self:
        """The same text, of which these parts are scored."""
        parts = tuple(part for part in self.parts if part.name in names)
        counted = {
            name: sum(getattr(part, name) for part in parts) for name in ("val_documents", "val_bytes", "val_tokens")
        }
        return replace(self, parts=parts, **counted)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the streams."""
        serialised = (Path(self.folder) / "tokenizer.json").read_text("utf-8")
        return load_tokenizer(self.tokenizer_kind, serialised)

    def _stream(self, name: str) -> Stream:
        return np.memmap(Path(self.folder) / f"{name}.bin", dtype=token_dtype(self.facts.vocab_size), mode="r")


def prepare(config: DataConfig) -> TokenizedCorpus:
    """The tokenized corpus, from the cache or computed now; one process computes it while the others wait.

    DataError when the text is missing or cannot be used.
    """
    made = _prepare(config)
    return made.of_parts([name for name, _ in config.shares]) if made.parts else made


def _prepare(config: DataConfig) -> TokenizedCorpus:
    mixture = open_mixture(dict(config.parts), config.max_bytes) if config.parts else None
    source = mixture or open_source(
        config.corpus,
        max_bytes=config.max_bytes,
        zipf=config.zipf,
        repeats=config.repeats,
        separator=config.separator,
    )
    corpus_hash, val = source.hash(), _given_validation(config)
    rule = PAGE_RULE if config.parts else f"given-{content_hash(val)}" if val else SPLIT_RULE
    folder = cache_folder() / "tokens" / _key(config, corpus_hash, rule)
    if (made := _load(folder)) is not None:
        return made
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (made := _load(folder)) is None:  # no other process has made it meanwhile
                _set_aside(folder)
                _build(config, source, val, corpus_hash, rule, folder)
                made = _load(folder)
    except OSError as error:
        raise DataError(
            f"cannot keep tokens in {folder.parent} ({error}); set TINYSCALE_CACHE to another folder"
        ) from error
    if made is None:
        raise DataError(f"{folder} gives back other bytes than were written; set TINYSCALE_CACHE to another folder")
    return made


def _given_validation(config: DataConfig) -> list[str]:
    """The documents of `data.val`, in the order of their hashes; none where validation is held out."""
    if not config.val:
        return []
    separator = config.separator if has_plain_text(Path(config.val).expanduser()) else SEPARATOR
    try:
        return in_order(open_source(config.val, separator=separator).documents())
    except DataError as error:
        raise DataError(f"validation text: {error}", field="data.val") from error


def _load(folder: Path) -> TokenizedCorpus | None:
    """The corpus in a folder; None where there is none, or a damaged one."""
    try:
        if (folder / _DIGESTS).exists():
            digests = dict(json.loads((folder / _DIGESTS).read_bytes()))
            if _META not in digests:
                return None
            for name, digest in digests.items():
                stamp = (folder / name).stat()
                if _unchanged(folder / name, stamp.st_size, stamp.st_mtime_ns) != digest:
                    return None
        meta = json.loads((folder / _META).read_bytes())
        facts = {field: meta.pop(field) for field in ("corpus_hash", "tokenizer_hash", "vocab_size", "train_tokens")}
        parts = tuple(_part(each) for each in meta.pop("parts", ()))
        in_common = tuple(InCommon(tuple(a_and_b), *shares) for a_and_b, *shares in meta.pop("in_common", ()))
        facts |= {"split_rule": meta.pop("split_rule", PAGE_RULE if parts else SPLIT_RULE)}
        facts |= {"part_tokens": tuple((part.name, part.train_tokens) for part in parts)}
        made = TokenizedCorpus(TextFacts(**facts), **meta, folder=str(folder), parts=parts, in_common=in_common)
        lengths = len(made.train()), len(made._stream("val"))
        return made if lengths == (made.facts.train_tokens, made.val_tokens + made.val_documents + 1) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _part(written: dict[str, Any]) -> Part:
    return Part(**{**written, "train": tuple(written["train"]), "val": tuple(written["val"])})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=1000)
def _unchanged(path: Path, _size: int, _mtime_ns: int) -> str:
    """The digest of a file, which a process reads once as long as its size and time of change stay."""
    return _digest(path)


def _set_aside(folder: Path) -> None:
    """Keep a damaged folder under another name, and say so."""
    if folder.exists():
        aside = folder.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        logging.getLogger(__name__).warning("tokens in %s are damaged: set aside as %s and made again", folder, aside)


def require_enough_validation(corpus: TokenizedCorpus, config: DataConfig) -> None:
    """Raise DataError, with a sufficient val_bytes, when validation of a part has fewer than MIN_VAL_TOKENS tokens."""
    texts: Sequence[Part | TokenizedCorpus] = corpus.parts or [corpus]
    fewest = min(texts, key=lambda text: text.val_tokens)
    if fewest.val_tokens >= MIN_VAL_TOKENS:
        return
    # Bytes per token may differ a little between held-out and other documents: add 5 %.
    wanted = -(-int(1.05 * MIN_VAL_TOKENS * fewest.val_bytes / fewest.val_tokens) // 10_000) * 10_000
    if config.val:
        raise DataError(
            f"data.val {config.val} has {fewest.val_tokens:,} tokens; evaluation needs at least {MIN_VAL_TOKENS:,} so "
            f"that its noise hides no differences; give a text of about {wanted:,} bytes or more",
            field="data.val",
        )
    total = corpus.train_bytes + corpus.val_bytes
    remedy = (
        f"set data.val_bytes to {wanted}"
        if 2 * wanted <= total or corpus.parts
        else f"that takes about {wanted:,} bytes, more than half of the corpus's {total:,}: use a longer corpus, of "
        f"about {2 * wanted:,} bytes or more"
    )
    text = f"part {fewest.name}" if isinstance(fewest, Part) else config.corpus
    raise DataError(
        f"data.val_bytes {config.val_bytes} holds out {fewest.val_tokens:,} tokens of {text}; "
        f"evaluation needs at least {MIN_VAL_TOKENS:,} so that its noise hides no differences; {remedy}",
        field="data.val_bytes",
    )


def require_common_tokens(corpus: TokenizedCorpus) -> None:
    """Raise DataError when two parts of a mixture have no token in common: nothing is learnt of one from the other."""
    for pair in corpus.in_common:
        if not pair.tokens:
            raise DataError(
                f"parts {' and '.join(pair.parts)} have no token in common: one says nothing of the other; look at "
                "their text, or train them as arms of a sweep",
                field="data.parts",
            )


def require_whole_records(corpus: TokenizedCorpus, context_length: int) -> None:
    """Raise DataError when windows of this context would cut the records of a source of known entropy."""
    if corpus.record_length and context_length % corpus.record_length:
        raise DataError(
            f"model.context_length {context_length} cuts the corpus's records, and its entropy is known for whole "
            f"records only; set a multiple of {corpus.record_length}"
        )


def _key(config: DataConfig, corpus_hash: str, rule: str) -> str:
    """Name of the cached folder: a hash of everything that its content depends on."""
    depends_on = {
        "layout": _LAYOUT,
        "corpus": corpus_hash,
        "split": rule,
        "val_bytes": config.val_bytes,
        "tokenizer": config.tokenizer.model_dump(),
        "library": importlib.metadata.version("tokenizers"),  # another release may merge differently
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def _build(
    config: DataConfig, source: Source | Mixture, val_given: list[str], corpus_hash: str, rule: str, folder: Path
) -> None:
    """Write the folder under another name and rename it, so that no reader sees it incomplete."""
    if val_given and not isinstance(source, Mixture):
        found: Split | dict[str, Split] = Split(in_order(source.documents()), val_given)
    else:
        found = source.split(config.val_bytes)
    parts = found if isinstance(found, dict) else {}
    text = found if isinstance(found, Split) else _joined(found)
    train, val = text.train, text.val
    tokenizer = train_tokenizer(
        config.tokenizer, equal_bytes([each.train for each in parts.values()]) if parts else train
    )
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        train_tokens, train_longest = _write(made / "train.bin", tokenizer, train)
        val_tokens, val_longest = _write(made / "val.bin", tokenizer, val)
        meta = {
            "corpus_hash": corpus_hash,
            "tokenizer_hash": tokenizer.hash(),
            "tokenizer_kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "train_documents": len(train),
            "train_bytes": _bytes(train),
            "train_tokens": train_tokens,
            "val_documents": len(val),
            "val_bytes": _bytes(val),
            "val_tokens": val_tokens - len(val) - 1,
            "longest_document": max(train_longest, val_longest),
        }
        if val_given:
            trained_on = set(train).intersection(val)
            meta |= {"split_rule": rule, "trained_on": sum(text in trained_on for text in val)}
        if isinstance(source, Mixture):
            meta |= _mixture(source, parts, made, token_dtype(tokenizer.vocab_size), tokenizer.eot)
        if text.oracle is not None:
            meta |= {"entropy_rate": text.oracle.entropy_rate, "record_length": text.oracle.record_length}
            np.pad(text.oracle.nats, 1).tofile(
                made / "oracle.bin"
            )  # 0 for the end-of-text tokens around the only document
        (made / "tokenizer.json").write_text(tokenizer.hf.to_str(), "utf-8")
        (made / _META).write_text(json.dumps(meta, indent=1), "utf-8")
        digests = {path.name: _digest(path) for path in made.iterdir()}
        (made / _DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")
        for path in (*made.iterdir(), made):
            sync(path)
        made.rename(folder)


def _joined(parts: Mapping[str, Split]) -> Split:
    """The documents of all parts, one part after another."""
    train, val = ([text for part in parts.values() for text in getattr(part, of)] for of in ("train", "val"))
    return Split(train, val)


def _mixture(
    mixture: Mixture, splits: Mapping[str, Split], made: Path, dtype: npt.DTypeLike, eot: int
) -> dict[str, Any]:
    """What meta.json holds of the parts: where they lie in the streams, and what each two have in common."""
    train, val = (np.memmap(made / f"{name}.bin", dtype=dtype, mode="r") for name in ("train", "val"))
    train_ends, val_ends = (np.flatnonzero(stream == eot).tolist() for stream in (train, val))
    parts, frequencies, before, val_before = [], {}, 0, 0
    for name, text in splits.items():
        after, val_after = before + len(text.train), val_before + len(text.val)
        of_train = train_ends[before], train_ends[after] + 1
        of_val = val_ends[val_before] + 1, val_ends[val_after] + 1
        parts.append(asdict(Part(name, of_train, of_val, len(text.val), _bytes(text.val))))
        counts = np.bincount(train[slice(*of_train)], minlength=eot + 1)[:eot]
        frequencies[name], before, val_before = counts / counts.sum(), after, val_after
    in_common = [
        [pair, lines, float(np.minimum(*(frequencies[name] for name in pair)).sum())]
        for pair, lines in mixture.common_lines().items()
    ]
    return {"parts": parts, "in_common": in_common}


def _write(path: Path, tokenizer: Tokenizer, texts: list[str]) -> tuple[int, int]:
    """Write the token stream of the documents; return its length and that of the longest document, in tokens."""
    with path.open("wb") as file:
        for ids in tokenizer.stream(texts):
            file.write(ids.tobytes())
    stream = np.memmap(path, dtype=token_dtype(tokenizer.vocab_size), mode="r")
    return len(stream), int(np.diff(np.flatnonzero(stream == tokenizer.eot)).max()) - 1


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)

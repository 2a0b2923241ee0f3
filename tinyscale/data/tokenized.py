"""Tokens on disk: made once on a machine, under a key of everything that decides them, then mapped into memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tinyscale.data.corpora import documents
from tinyscale.data.hub import HUB, hub_hash
from tinyscale.data.split import SPLIT_RULE, content_hash, split
from tinyscale.data.synthetic import RECORD, ZIPF_RECORDS, ZipfRecords
from tinyscale.data.tokenizers import Tokenizer, load_tokenizer, token_dtype, train_tokenizer
from tinyscale.errors import DataError
from tinyscale.machine import cache_folder
from tinyscale.spec.config import DataConfig, TrialConfig
from tinyscale.spec.trial import Trial, resolve

MIN_VAL_TOKENS = 100_000  # fewer, and the noise of evaluation hides the differences that a law is fitted to
_LAYOUT = 1  # of the files in a cached folder

Stream = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus, split and tokenized. Its numbers are in meta.json of its folder, its tokens beside it."""

    corpus_hash: str
    tokenizer_hash: str
    tokenizer_kind: str
    vocab_size: int  # end-of-text included
    eot: int  # id of the end-of-text token
    train_documents: int
    train_bytes: int  # UTF-8
    train_tokens: int  # of the stream, so with the end-of-text tokens
    val_documents: int
    val_bytes: int  # UTF-8
    val_tokens: int  # the targets that are scored: the documents' own tokens
    longest_document: int  # tokens
    folder: str
    entropy_rate: float | None = None  # nats per token that no model can get below, of a source where that is known
    record_length: int | None = None  # tokens; a context must be a multiple, so that no window cuts a record

    def train(self) -> Stream:
        """The training stream, [train_tokens]: end-of-text, then each document followed by end-of-text."""
        return self._stream("train")

    def val(self) -> tuple[Stream, npt.NDArray[np.int64]]:
        """The validation stream, laid out as the training stream, and the document's number at each position.

        Both are [val_tokens + val_documents + 1]; the first end-of-text has number -1, the others their document's.
        Where the text is records, their numbers stand for the document's: they are what is independent.
        """
        stream = self._stream("val")
        if self.record_length:
            numbers = (np.arange(len(stream)) - 1) // self.record_length
            return stream, np.minimum(numbers, numbers[-2])
        ends = stream == self.eot
        return stream, np.cumsum(ends) - ends - 1

    def resolve(self, config: TrialConfig) -> Trial:
        """The trial that a configuration makes of this text. ConfigError when its budget allows no step."""
        return resolve(
            config,
            corpus_hash=self.corpus_hash,
            split_rule=SPLIT_RULE,
            tokenizer_hash=self.tokenizer_hash,
            vocab_size=self.vocab_size,
            train_tokens=self.train_tokens,
        )

    def oracle(self) -> npt.NDArray[np.float64] | None:
        """The source's own loss at each position of the validation stream, nats; None where no source is known.

        A model's loss minus this, over the same targets, is its excess over the entropy, with far less noise than
        the loss minus entropy_rate. End-of-text, which is not scored, has 0.
        """
        if self.entropy_rate is None:
            return None
        return np.memmap(Path(self.folder) / "oracle.bin", dtype=np.float64, mode="r")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the streams."""
        serialised = (Path(self.folder) / "tokenizer.json").read_text("utf-8")
        return load_tokenizer(self.tokenizer_kind, serialised)

    def _stream(self, name: str) -> Stream:
        return np.memmap(Path(self.folder) / f"{name}.bin", dtype=token_dtype(self.vocab_size), mode="r")


def prepare(config: DataConfig) -> TokenizedCorpus:
    """The tokenized corpus: from the cache, or made now by the first process that asks while the others wait.

    Raises DataError when the text cannot be had or used.
    """
    corpus_hash, read = _open(config)
    folder = cache_folder() / "tokens" / _key(config, corpus_hash)
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    _build(config, read(), corpus_hash, folder)
        except OSError as error:
            raise DataError(
                f"cannot keep tokens in {folder.parent} ({error}); set TINYSCALE_CACHE to another folder"
            ) from error
    return TokenizedCorpus(**json.loads((folder / "meta.json").read_text("utf-8")), folder=str(folder))


def require_enough_validation(corpus: TokenizedCorpus, config: DataConfig) -> None:
    """Raise DataError when validation has fewer than MIN_VAL_TOKENS tokens, saying which val_bytes would do."""
    if corpus.val_tokens >= MIN_VAL_TOKENS:
        return
    # The held-out documents' bytes per token may differ a little from the rest's: leave 5 % of room.
    wanted = -(-int(1.05 * MIN_VAL_TOKENS * corpus.val_bytes / corpus.val_tokens) // 10_000) * 10_000
    total = corpus.train_bytes + corpus.val_bytes
    remedy = (
        f"set data.val_bytes to {wanted}"
        if 2 * wanted <= total
        else f"that takes about {wanted:,} bytes, more than half of the corpus's {total:,}: use a longer corpus"
    )
    raise DataError(
        f"data.val_bytes {config.val_bytes} holds out {corpus.val_tokens:,} tokens of {config.corpus}; "
        f"a loss needs at least {MIN_VAL_TOKENS:,} to be told from noise; {remedy}",
        field="data.val_bytes",
    )


@dataclass(frozen=True)
class _Text:
    """A corpus in two parts; of a source of known entropy also what TokenizedCorpus says of it."""

    train: list[str]
    val: list[str]
    known: dict[str, Any] = field(default_factory=dict)
    oracle: npt.NDArray[np.float64] | None = None  # nats of each character of val


def _open(config: DataConfig) -> tuple[str, Callable[[], _Text]]:
    """The text's content hash, and how to read it: what is pinned or drawn from a seed is known before it is read."""
    if config.corpus == ZIPF_RECORDS:
        source = ZipfRecords(config.zipf)
        return source.hash(), lambda: _drawn(source, config.val_bytes)
    if config.corpus in HUB:
        found = hub_hash(config.corpus, config.max_bytes)
        return found, lambda: _Text(*split(documents(config.corpus, config.max_bytes), config.val_bytes))
    texts = documents(config.corpus, config.max_bytes)
    return content_hash(texts), lambda: _Text(*split(texts, config.val_bytes))


def _drawn(source: ZipfRecords, val_bytes: int) -> _Text:
    """Training and validation text of one source, drawn independently; each is one document."""
    train, val = source.text(source.config.train_bytes, part=0), source.text(val_bytes, part=1)
    known = {"entropy_rate": source.entropy_rate, "record_length": RECORD}
    return _Text([train], [val], known, source.nats(val_bytes, part=1))


def require_whole_records(corpus: TokenizedCorpus, context_length: int) -> None:
    """Raise DataError when windows of this context would cut the records of a source of known entropy."""
    if corpus.record_length and context_length % corpus.record_length:
        raise DataError(
            f"model.context_length {context_length} cuts the corpus's records, and its known entropy holds for whole "
            f"ones; set a multiple of {corpus.record_length}"
        )


def _key(config: DataConfig, corpus_hash: str) -> str:
    """Name of the cached folder: a hash over everything that decides what is in it."""
    decides = {
        "layout": _LAYOUT,
        "corpus": corpus_hash,
        "split": SPLIT_RULE,
        "val_bytes": config.val_bytes,
        "tokenizer": config.tokenizer.model_dump(),
        "library": importlib.metadata.version("tokenizers"),  # another release may merge otherwise
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _build(config: DataConfig, text: _Text, corpus_hash: str, folder: Path) -> None:
    """Write the folder elsewhere and rename it, so that it is never seen half-made."""
    train, val = text.train, text.val
    tokenizer = train_tokenizer(config.tokenizer, train)
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
            **text.known,
        }
        if text.oracle is not None:
            np.pad(text.oracle, 1).tofile(made / "oracle.bin")  # beside the end-of-text tokens around the only document
        (made / "tokenizer.json").write_text(tokenizer.hf.to_str(), "utf-8")
        (made / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
        made.rename(folder)


def _write(path: Path, tokenizer: Tokenizer, texts: list[str]) -> tuple[int, int]:
    """Write the documents' stream; return its tokens and the longest document's."""
    with path.open("wb") as file:
        for ids in tokenizer.stream(texts):
            file.write(ids.tobytes())
    stream = np.memmap(path, dtype=token_dtype(tokenizer.vocab_size), mode="r")
    return len(stream), int(np.diff(np.flatnonzero(stream == tokenizer.eot)).max()) - 1


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)

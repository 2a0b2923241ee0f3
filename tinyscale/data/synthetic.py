"""Text of exactly known entropy: the lowest possible loss is known, so a fitted irreducible loss can be checked.

Zipf records are the quantization model (Michaud et al. 2023) in characters. A record has a topic, sampled from a Zipf
law and named by a tag of 3 symbols. Its body is 12 letters from a Markov chain, a different one for each topic, and a
newline ends it: `AACbfhialdjbgal`. A model learns a topic once it has seen it often enough.

Every row of every transition matrix is a permutation of one distribution q. So each letter of a body has entropy H(q)
given the letter before it, and a record has exactly H(topic) + ln(letters) + 11 H(q).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tinyscale.data.source import Oracle, Split
from tinyscale.errors import DataError
from tinyscale.spec.config import ZIPF_RECORDS, ZipfConfig

RECORD = 16  # characters
_TAG, _BODY = 3, 12
_TAG_SYMBOLS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", dtype=np.uint8)
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_CHUNK = 1 << 16  # records generated at a time
_RULE = 1  # raised when the same settings give other text

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


class ZipfRecords:
    """The source that `data.zipf` describes. Its seed gives the transitions; seed and part number give a text."""

    def __init__(self, config: ZipfConfig) -> None:
        self.config = config
        self.topics = _zipf(config.topics, 1 + config.topic_exponent)  # [topics]
        self.steps = _zipf(config.letters, config.letter_exponent)  # q, [letters]

    def hash(self) -> str:
        """SHA-256, in hex, of the settings, which determine the text."""
        settings = {"zipf_records": _RULE, **self.config.model_dump()}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def documents(self) -> list[str]:
        """Raises DataError: generated text has no documents."""
        raise DataError(f"{ZIPF_RECORDS} is generated and has no documents; name another corpus")

    def split(self, val_bytes: int) -> Split:
        """Training and validation text, generated independently; each is one document."""
        train, val = self.text(self.config.train_bytes, part=0), self.text(val_bytes, part=1)
        return Split([train], [val], Oracle(self.entropy_rate, RECORD, self.nats(val_bytes, part=1)))

    @property
    def entropy_rate(self) -> float:
        """Nats per character, exactly."""
        body = np.log(self.config.letters) + (_BODY - 1) * _entropy(self.steps)
        return float((_entropy(self.topics) + body) / RECORD)

    def text(self, n_bytes: int, part: int) -> str:
        """Whole records, at least n_bytes. Parts are independent; a longer text of a part begins with a shorter one."""
        return b"".join(symbols.tobytes() for symbols, _ in self._records(-(-n_bytes // RECORD), part)).decode("ascii")

    def nats(self, n_bytes: int, part: int) -> Floats:
        """The source's own loss on that text: -ln p of each character given the record so far."""
        return np.concatenate([nats.ravel() for _, nats in self._records(-(-n_bytes // RECORD), part)])

    @cached_property
    def _successors(self) -> Bytes:
        """The letters that may follow, most probable first: [topic, letter before, rank]."""
        letters = self.config.letters
        shape = (self.config.topics, letters, letters)
        return np.random.default_rng([self.config.seed, 0]).random(shape).argsort(axis=-1).astype(np.uint8)

    @cached_property
    def _tags(self) -> npt.NDArray[np.int64]:
        """The symbols of each topic's tag, which is the topic's number in base 32: [topic, 3]."""
        base = len(_TAG_SYMBOLS)
        return np.arange(self.config.topics)[:, None] // base ** np.arange(_TAG)[::-1] % base

    @cached_property
    def _tag_nats(self) -> Floats:
        """-ln p of a tag's symbols, each given those before it: [topic, 3]."""
        first, second, _ = self._tags.T
        by_symbol = np.zeros((len(_TAG_SYMBOLS),) * _TAG)
        by_symbol.flat[: len(self.topics)] = self.topics
        one, two = by_symbol.sum((1, 2))[first], by_symbol.sum(2)[first, second]
        return np.stack([-np.log(one), -np.log(two / one), -np.log(self.topics / two)], axis=1)

    def _records(self, n_records: int, part: int) -> Iterator[tuple[Bytes, Floats]]:
        """Symbols and their nats, [up to _CHUNK, RECORD] each."""
        rng = np.random.default_rng([self.config.seed, 1 + part])
        for start in range(0, n_records, _CHUNK):
            yield self._chunk(rng.random((min(_CHUNK, n_records - start), 1 + _BODY)))

    def _chunk(self, uniform: Floats) -> tuple[Bytes, Floats]:
        """Records from uniform numbers, [n, 1 + 12]: one for the topic and one for each letter of the body."""
        symbols = np.full((len(uniform), RECORD), ord("\n"), dtype=np.uint8)
        nats = np.zeros(symbols.shape)
        topic = _sample(self.topics, uniform[:, 0])
        symbols[:, :_TAG] = _TAG_SYMBOLS[self._tags[topic]]
        nats[:, :_TAG] = self._tag_nats[topic]
        letter = (uniform[:, 1] * self.config.letters).astype(np.uint8)
        nats[:, _TAG] = np.log(self.config.letters)
        for column in range(_TAG, _TAG + _BODY):
            if column > _TAG:
                rank = _sample(self.steps, uniform[:, column - _TAG + 1])
                letter = self._successors[topic, letter, rank]
                nats[:, column] = -np.log(self.steps[rank])
            symbols[:, column] = _LETTERS[letter]
        return symbols, nats


def _zipf(size: int, exponent: float) -> Floats:
    weights = np.arange(1, size + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def _entropy(chances: Floats) -> float:
    return float(-(chances * np.log(chances)).sum())


def _sample(chances: Floats, uniform: Floats) -> npt.NDArray[np.int64]:
    """Indices with these probabilities, from numbers uniform in [0, 1)."""
    return np.minimum(np.searchsorted(np.cumsum(chances), uniform, side="right"), len(chances) - 1)

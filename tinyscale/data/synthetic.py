"""Text of exactly known entropy: the lowest possible loss is known, so a fitted irreducible loss can be checked.

Zipf records are the quantization model (Michaud et al. 2023) in characters. A record has a topic, sampled from a Zipf
law and named by a tag of 3 symbols. Its body is 12 letters from a Markov chain, a different one for each topic, and a
newline ends it: `AACbfhialdjbgal`. A model learns a topic once it has seen it often enough.

Every row of every transition matrix is a permutation of one distribution q. So each letter of a body has entropy H(q)
given the letter before it, and a record has exactly H(topic) + ln(letters) + 11 H(q).

Repeats are patterns of independent symbols, each written again and again until its record is full: `d7kQxd7kQxd7`.
What comes next follows from where the symbol stood before, which takes two layers of attention to find (Olsson et al.
2022, 2209.11895). Where every pattern is half a record, the second half has entropy 0, and the same distance always
leads to what comes next: one layer can learn that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinyscale.data.source import Oracle, Split
from tinyscale.errors import DataError
from tinyscale.spec.data_config import REPEATS, ZIPF_RECORDS, RepeatsConfig, ZipfConfig

RECORD = 16  # characters
_TAG, _BODY = 3, 12
_TAG_SYMBOLS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", dtype=np.uint8)
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_PRINTABLE = np.arange(33, 127, dtype=np.uint8)
_CHUNK = 1 << 20  # characters generated at a time
_EXACT = 1e-6  # nats per character that an entropy rate may be off

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


class Law(Protocol):
    """A law of records of one length: the same settings give the same text, until `rule` is raised."""

    name: str
    rule: int
    length: int  # characters of a record

    @property
    def config(self) -> ZipfConfig | RepeatsConfig:
        """Its settings; the seed is that of the text."""

    @property
    def numbers(self) -> int:
        """Uniform numbers that a record takes."""

    @property
    def entropy_rate(self) -> float:
        """Nats per character, exactly."""

    def records(self, uniform: Floats) -> tuple[Bytes, Floats]:
        """Symbols and -ln p of each given the record so far, [n, length] each, from numbers in [0, 1) [n, numbers]."""


@dataclass(frozen=True)
class Generated:
    """The source of a law's records. Seed and part number give a text."""

    law: Law

    def hash(self) -> str:
        """SHA-256, in hex, of the settings, which determine the text."""
        settings = {self.law.name: self.law.rule, **self.law.config.model_dump()}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def documents(self) -> list[str]:
        """Raises DataError: generated text has no documents."""
        raise DataError(f"{self.law.name} is generated and has no documents; name another corpus")

    def split(self, val_bytes: int) -> Split:
        """Training and validation text, generated independently; each is one document."""
        train, val = self.text(self.law.config.train_bytes, part=0), self.text(val_bytes, part=1)
        return Split([train], [val], Oracle(self.law.entropy_rate, self.law.length, self.nats(val_bytes, part=1)))

    def text(self, n_bytes: int, part: int) -> str:
        """Whole records, at least n_bytes. Parts are independent; a longer text of a part begins with a shorter one."""
        return b"".join(symbols.tobytes() for symbols, _ in self._records(n_bytes, part)).decode("ascii")

    def nats(self, n_bytes: int, part: int) -> Floats:
        """The source's own loss on that text: -ln p of each character given the record so far."""
        return np.concatenate([nats.ravel() for _, nats in self._records(n_bytes, part)])

    def _records(self, n_bytes: int, part: int) -> Iterator[tuple[Bytes, Floats]]:
        """Symbols and their nats, up to _CHUNK characters at a time."""
        rng = np.random.default_rng([self.law.config.seed, 1 + part])
        n_records, at_a_time = -(-n_bytes // self.law.length), max(1, _CHUNK // self.law.length)
        for start in range(0, n_records, at_a_time):
            yield self.law.records(rng.random((min(at_a_time, n_records - start), self.law.numbers)))


class ZipfRecords:
    """The law that `data.zipf` describes. Its seed also gives the transitions."""

    name, rule, length, numbers = ZIPF_RECORDS, 1, RECORD, 1 + _BODY

    def __init__(self, config: ZipfConfig) -> None:
        self.config = config
        self.topics = _zipf(config.topics, 1 + config.topic_exponent)  # [topics]
        self.steps = _zipf(config.letters, config.letter_exponent)  # q, [letters]

    @property
    def entropy_rate(self) -> float:
        """Nats per character, exactly."""
        body = np.log(self.config.letters) + (_BODY - 1) * _entropy(self.steps)
        return float((_entropy(self.topics) + body) / RECORD)

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

    def records(self, uniform: Floats) -> tuple[Bytes, Floats]:
        """Symbols and nats from uniform numbers: one for the topic and one for each letter of the body."""
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


class Repeats:
    """The law that `data.repeats` describes."""

    name, rule = REPEATS, 1

    def __init__(self, config: RepeatsConfig) -> None:
        self.config = config
        self.length = 2 * config.period
        self.numbers = 1 + config.period
        self.symbols = _zipf(config.symbols, config.exponent)  # q, [symbols]
        self.lengths = np.arange(config.shortest or config.period, config.period + 1)  # of patterns, all as likely
        if self._ambiguity > _EXACT:
            raise DataError(
                f"patterns of {self.lengths[0]} to {config.period} of {config.symbols} symbols are too often repeats "
                "themselves for their entropy to be known; raise data.repeats.shortest or symbols",
                field="data.repeats.shortest",
            )

    @property
    def entropy_rate(self) -> float:
        """Nats per character: a record is its pattern's length and the pattern. Exact to _EXACT, by `_ambiguity`."""
        return float((np.log(len(self.lengths)) + self.lengths.mean() * _entropy(self.symbols)) / self.length)

    @property
    def _ambiguity(self) -> float:
        """Bound on the nats per character by which the entropy is lower, as two lengths may give one record.

        Then both patterns repeat a shorter one, by the theorem of Fine and Wilf. One of p symbols repeats its first g
        with probability (sum q^(p/g))^g.
        """
        shorter = [(p, g) for p in self.lengths.tolist() for g in range(1, p // 2 + 1) if p % g == 0]
        chances = sum(float((self.symbols ** (p // g)).sum()) ** g for p, g in shorter) / len(self.lengths)
        return chances * float(np.log(len(self.lengths))) / self.length

    def records(self, uniform: Floats) -> tuple[Bytes, Floats]:
        """Symbols and nats from uniform numbers: one for the length and one for each symbol of the longest pattern."""
        period = self.lengths[(uniform[:, :1] * len(self.lengths)).astype(np.int64)]  # [n, 1]
        ranks = np.take_along_axis(_sample(self.symbols, uniform[:, 1:]), np.arange(self.length) % period, axis=1)
        return _PRINTABLE[ranks], self._nats(ranks)

    def _nats(self, ranks: npt.NDArray[np.int64]) -> Floats:
        """-ln p of each symbol given those before it, [n, length], over all lengths that the pattern may have."""
        log_q = np.log(self.symbols)[ranks]
        joint = np.full(ranks.shape, -np.inf)  # ln p of the record up to here
        for period in self.lengths:
            log_p = log_q.cumsum(axis=1)
            log_p[:, period:] = log_p[:, period - 1, None]
            unlike = np.cumsum(ranks[:, period:] != ranks[:, :-period], axis=1) > 0
            log_p[:, period:][unlike] = -np.inf
            joint = np.logaddexp(joint, log_p - np.log(len(self.lengths)))
        return np.asarray(-np.diff(joint, axis=1, prepend=0.0))


def _zipf(size: int, exponent: float) -> Floats:
    weights = np.arange(1, size + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def _entropy(chances: Floats) -> float:
    return float(-(chances * np.log(chances)).sum())


def _sample(chances: Floats, uniform: Floats) -> npt.NDArray[np.int64]:
    """Indices with these probabilities, from numbers uniform in [0, 1)."""
    return np.minimum(np.searchsorted(np.cumsum(chances), uniform, side="right"), len(chances) - 1)

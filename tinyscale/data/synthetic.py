"""Text of exactly known entropy: what no model can get below is known, so a fit's floor can be checked.

Zipf records are the quantization model (Michaud et al. 2023) in characters. A record has a topic, drawn from a Zipf
law and named by a tag of 3 symbols; its body is 12 letters of a Markov chain of that topic's own, and a newline ends
it: `AACbfhialdjbgal`. A topic is learned once it was seen often enough.

Every row of every topic's transition matrix is a permutation of one law q. So a letter's entropy is H(q) whatever came
before it, and the entropy of a record is exactly H(topic) + ln(letters) + 11 H(q).
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
_CHUNK = 1 << 16  # records made at a time
_RULE = 1  # raise when the same settings would give other text

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


class ZipfRecords:
    """The source that the settings describe. Its seed makes the transitions, and with a part's number its text."""

    def __init__(self, config: ZipfConfig) -> None:
        self.config = config
        self.topics = _zipf(config.topics, 1 + config.topic_exponent)  # [topics]
        self.steps = _zipf(config.letters, config.letter_exponent)  # q, [letters]

    def hash(self) -> str:
        """SHA-256, in hex, of what decides the text: it stands for the hash of the text itself."""
        decides = {"zipf_records": _RULE, **self.config.model_dump()}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def documents(self) -> list[str]:
        """None: DataError. The text is as long as asked for, and has no documents."""
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
        """At least n_bytes of whole records. Parts are independent; a longer text of a part begins with the shorter."""
        return b"".join(symbols.tobytes() for symbols, _ in self._records(-(-n_bytes // RECORD), part)).decode("ascii")

    def nats(self, n_bytes: int, part: int) -> Floats:
        """The source's own loss, -ln p of each character of that text given its record so far."""
        return np.concatenate([nats.ravel() for _, nats in self._records(-(-n_bytes // RECORD), part)])

    @cached_property
    def _successors(self) -> Bytes:
        """The letters that may follow, by falling probability: [topic, letter before, rank]."""
        letters = self.config.letters
        shape = (self.config.topics, letters, letters)
        return np.random.default_rng([self.config.seed, 0]).random(shape).argsort(axis=-1).astype(np.uint8)

    @cached_property
    def _tags(self) -> npt.NDArray[np.int64]:
        """The symbols of each topic's tag, the topic's number in base 32: [topic, 3]."""
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
        """Records made of uniform numbers, [n, 1 + 12]: one for the topic and one for each letter of the body."""
        symbols = np.full((len(uniform), RECORD), ord("\n"), dtype=np.uint8)
        nats = np.zeros(symbols.shape)
        topic = _draw(self.topics, uniform[:, 0])
        symbols[:, :_TAG] = _TAG_SYMBOLS[self._tags[topic]]
        nats[:, :_TAG] = self._tag_nats[topic]
        letter = (uniform[:, 1] * self.config.letters).astype(np.uint8)
        nats[:, _TAG] = np.log(self.config.letters)
        for place in range(_TAG, _TAG + _BODY):
            if place > _TAG:
                rank = _draw(self.steps, uniform[:, place - _TAG + 1])
                letter = self._successors[topic, letter, rank]
                nats[:, place] = -np.log(self.steps[rank])
            symbols[:, place] = _LETTERS[letter]
        return symbols, nats


def _zipf(size: int, exponent: float) -> Floats:
    weights = np.arange(1, size + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def _entropy(law: Floats) -> float:
    return float(-(law * np.log(law)).sum())


def _draw(law: Floats, uniform: Floats) -> npt.NDArray[np.int64]:
    """Indices drawn from a law by numbers uniform in [0, 1)."""
    return np.minimum(np.searchsorted(np.cumsum(law), uniform, side="right"), len(law) - 1)

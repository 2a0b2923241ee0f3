"""Text to tokens and back, without loss on any Unicode text, with Hugging Face `tokenizers`.

The end-of-text token is not in the library's tokenizer, so no text produces it. Its id is the last one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from tinyscale.spec.data_config import TokenizerConfig

# The library uses some 80 bytes per token while it encodes, so long documents are encoded in pieces.
_PIECE_CHARACTERS = 1 << 15
_BATCH_PIECES = 32
_CUT = re.compile(r"(?<=\S)(?=[ \r\n])")  # every kind has a token boundary here
_ALPHABET = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
_UTF8_BYTES = [*range(0xC0), *range(0xC2, 0xF5)]  # the other values never occur in UTF-8


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """The smallest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer. `hf` lacks the end-of-text token, whose id is `eot`."""

    kind: str
    hf: HFTokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the end-of-text token included."""
        return self.hf.get_vocab_size() + 1

    @property
    def eot(self) -> int:
        """Id of the end-of-text token."""
        return self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Token ids of the text."""
        return list(self.hf.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. End-of-text tokens are left out; bytes that are not UTF-8 become U+FFFD."""
        return self.hf.decode([token for token in ids if token != self.eot])

    def stream(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.generic]]:
        """The ids of the documents, in pieces: end-of-text, then each document followed by end-of-text."""
        dtype = token_dtype(self.vocab_size)
        eot = np.array([self.eot], dtype=dtype)
        yield eot
        pieces = ((piece, last) for text in texts for piece, last in _pieces(text))
        while batch := list(islice(pieces, _BATCH_PIECES)):
            encoded = self.hf.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
            for encoding, (_, last) in zip(encoded, batch, strict=True):
                yield np.array(encoding.ids, dtype=dtype)
                if last:
                    yield eot

    def hash(self) -> str:
        """SHA-256, in hex, of kind, vocabulary and merges; it does not depend on the library's file format."""
        vocab = self.hf.get_vocab()
        merges = json.loads(self.hf.to_str())["model"]["merges"]
        content = [self.kind, sorted(vocab, key=vocab.__getitem__), merges]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer on the training documents; their order does not matter."""
    if config.kind == "bpe":
        assert config.vocab_size is not None
        return Tokenizer("bpe", _bpe(config.vocab_size - 1, texts))
    if config.kind == "char":
        alphabet = sorted(set().union(*texts))
        known = {ord(character) for character in alphabet}
        # An ASCII character is one byte: where it has a token, that byte needs none of its own.
        return Tokenizer(
            "char", _characters(alphabet, [byte for byte in _UTF8_BYTES if byte not in known or byte > 0x7F])
        )
    return Tokenizer("byte", _byte_level(models.BPE(vocab=_ALPHABET, merges=[]), use_regex=False))


def load_tokenizer(kind: str, serialised: str) -> Tokenizer:
    """The tokenizer that `hf.to_str()` serialised."""
    return Tokenizer(kind, HFTokenizer.from_str(serialised))


def _bpe(size: int, texts: Iterable[str]) -> HFTokenizer:
    """Byte-level merges; the vocabulary is smaller than `size` when the text has too few pairs to merge."""
    tokenizer = _byte_level(models.BPE(), use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(_ALPHABET), show_progress=False)
    tokenizer.train_from_iterator((piece for text in texts for piece, _ in _pieces(text)), trainer)
    return tokenizer


def _byte_level(model: models.BPE, *, use_regex: bool) -> HFTokenizer:
    """A tokenizer over bytes, each written as a visible character; the regex keeps merges within words."""
    tokenizer = HFTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _characters(alphabet: list[str], fallback_bytes: list[int]) -> HFTokenizer:
    """One token per character; a character outside the alphabet becomes its UTF-8 bytes."""
    vocabulary = [*(f"<0x{byte:02X}>" for byte in fallback_bytes), *alphabet]
    indexed = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = HFTokenizer(models.BPE(vocab=indexed, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces that give the same tokens as the whole, each with whether it is the last."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS and (cut := _CUT.search(text, start + _PIECE_CHARACTERS)):
        yield text[start : cut.start()], False
        start = cut.start()
    yield text[start:], True

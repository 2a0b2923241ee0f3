"""Which documents are held out. The rule depends on the text alone, not on seeds, file names or their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from tinyscale.errors import DataError

MIN_VAL_TOKENS = 100_000  # with fewer, evaluation noise hides the differences that laws are fitted to
SPLIT_RULE = "sha256-1"  # the number is raised when the same text is split differently


def content_hash(texts: Iterable[str]) -> str:
    """SHA-256, in hex, of the multiset of documents; it does not depend on their order or their files."""
    return hashlib.sha256(b"".join(sorted(map(_digest, texts)))).hexdigest()


def in_order(texts: Iterable[str]) -> list[str]:
    """The documents by their SHA-256, an order that depends on the text alone."""
    return sorted(texts, key=_digest)


def split(texts: list[str], val_bytes: int) -> tuple[list[str], list[str]]:
    """Training and validation documents, both in the order of their SHA-256.

    Validation is the first documents that hold at least val_bytes bytes of UTF-8, and every document identical to
    the last of them. A corpus of one document holds out its tail. DataError when training would have less text than
    validation.
    """
    if len(texts) == 1:
        return _tail(texts[0], val_bytes)
    ordered = in_order(texts)
    total = sum(len(text.encode()) for text in ordered)
    cut, held_out = next(((cut, size) for cut, size in _cuts(ordered) if size >= val_bytes), (len(ordered), total))
    if 2 * held_out > total:
        legal = max((size for _, size in _cuts(ordered) if 2 * size <= total), default=0)
        raise _too_much(held_out, total, legal)
    return ordered[cut:], ordered[:cut]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _cuts(ordered: list[str]) -> Iterator[tuple[int, int]]:
    """Legal validation sets, smallest first: (documents, bytes). Identical documents are never separated."""
    size = 0
    for index, text in enumerate(ordered, 1):
        size += len(text.encode())
        if index == len(ordered) or ordered[index] != text:
            yield index, size


def _tail(text: str, val_bytes: int) -> tuple[list[str], list[str]]:
    """Hold out the last val_bytes bytes, or up to three more, so that no character is cut."""
    raw = text.encode()
    if 2 * val_bytes > len(raw):
        raise _too_much(val_bytes, len(raw), len(raw) // 2)
    cut = len(raw) - val_bytes
    while raw[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    return [raw[:cut].decode()], [raw[cut:].decode()]


def _too_much(held_out: int, total: int, legal: int) -> DataError:
    if total < 2 * MIN_VAL_TOKENS:  # a token takes a byte at least
        remedy = (
            f"and validation alone takes at least {MIN_VAL_TOKENS:,} tokens: give at least {2 * MIN_VAL_TOKENS:,} "
            "bytes, and several times that with a bpe tokenizer"
        )
    elif legal:
        remedy = f"set data.val_bytes to at most {legal}"
    else:
        remedy = "its first document is more than half of it, so no val_bytes is legal: give more documents"
    left = f"leave {total - held_out:,} of the corpus's {total:,} for training, less than validation"
    too_much = f"take more than the {total:,} that the corpus has" if held_out > total else left
    message = f"holding out {held_out:,} bytes would {too_much}; {remedy}"
    return DataError(message, field="data.val_bytes" if legal else None)

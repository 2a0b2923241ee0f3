"""Which documents are held out: a rule of the text alone, blind to seeds, file names and their order."""

from __future__ import annotations

from tinyscale.data.corpora import digest
from tinyscale.errors import DataError

SPLIT_RULE = "sha256-1"  # raise the number when the same text would be split differently


def split(texts: list[str], val_bytes: int) -> tuple[list[str], list[str]]:
    """Training and validation documents, both in the order of their SHA-256.

    Validation is the first documents that hold at least val_bytes bytes of UTF-8, and every document identical to
    the last of them. Of a corpus that is one document, validation is the tail. Raises DataError when training
    would be left with less text than validation.
    """
    if len(texts) == 1:
        return _tail(texts[0], val_bytes)
    ordered = sorted(texts, key=digest)
    ends = _boundaries(ordered)
    cut = next((index for index, size in ends if size >= val_bytes), len(ordered))
    train, val = ordered[cut:], ordered[:cut]
    total = ends[-1][1]
    held_out = dict(ends)[cut]
    if held_out > total - held_out:
        legal = max((size for _, size in ends if 2 * size <= total), default=0)
        raise DataError(_too_much(held_out, total, legal))
    return train, val


def _boundaries(ordered: list[str]) -> list[tuple[int, int]]:
    """Where validation may end: (documents, bytes) up to there. Never between identical documents."""
    ends, size = [], 0
    for index, text in enumerate(ordered, 1):
        size += len(text.encode())
        if index == len(ordered) or ordered[index] != text:
            ends.append((index, size))
    return ends


def _tail(text: str, val_bytes: int) -> tuple[list[str], list[str]]:
    """Hold out the last val_bytes bytes, or up to three more so as not to cut a character."""
    raw = text.encode()
    if 2 * val_bytes > len(raw):
        raise DataError(_too_much(val_bytes, len(raw), len(raw) // 2))
    cut = len(raw) - val_bytes
    while raw[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    return [raw[:cut].decode()], [raw[cut:].decode()]


def _too_much(held_out: int, total: int, legal: int) -> str:
    remedy = (
        f"set data.val_bytes to at most {legal}"
        if legal
        else "its first document is more than half of it, so no val_bytes is legal: give more documents"
    )
    return (
        f"holding out {held_out:,} bytes would leave {total - held_out:,} of the corpus's {total:,} for training, "
        f"less than validation; {remedy}"
    )

"""A mixture of texts: its parts, split by their pages and read with one tokenizer.

Where documents name their page, and a page is there in every part (in another language, say), whole pages are held out:
else a model would be trained on the translation of what it is scored on. All parts then hold out the same pages, so
that nats per page compare languages.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tinyscale.data.files import Page
from tinyscale.data.source import Split
from tinyscale.data.split import content_hash, split
from tinyscale.errors import DataError

PAGE_RULE = "pages-1"  # the number is raised when the same mixture is split differently


@dataclass(frozen=True)
class Mixture:
    """The documents of each part, by its name."""

    parts: Mapping[str, Sequence[Page]]

    def hash(self) -> str:
        """SHA-256, in hex, of names, pages and texts; it does not depend on the order of documents or their files."""
        each = {name: [f"{page or ''}\0{text}" for page, text in pages] for name, pages in self.parts.items()}
        content = [f"{name} {content_hash(texts)}" for name, texts in sorted(each.items())]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def split(self, val_bytes: int) -> dict[str, Split]:
        """Of each part, training and validation documents, in the order of the SHA-256 of their pages or texts.

        Of each part at least val_bytes bytes of UTF-8 are held out; of one that is a single document, its tail.
        DataError when training would have less text of a part than validation.
        """
        single = {name: pages[0][1] for name, pages in self.parts.items() if len(pages) == 1}
        tails = {name: Split(*split([text], val_bytes)) for name, text in single.items()}
        cut = max((self._cut(name, val_bytes) for name in self.parts if name not in tails), default=b"")
        return {name: tails.get(name) or self._split(name, cut) for name in self.parts}

    @cached_property
    def _parallel(self) -> set[str | None]:
        """The pages that all parts have; empty where documents name none."""
        return set.intersection(*({page for page, _ in pages} for pages in self.parts.values())) - {None}

    def _cut(self, name: str, val_bytes: int) -> bytes:
        """The digest up to which documents are held out, for the part to hold out so many bytes."""
        held_out, total = 0, sum(len(text.encode()) for _, text in self.parts[name])
        for digest, page, text in self._ordered(name):
            held_out += len(text.encode()) if self._may_be_held_out(page) else 0
            if held_out >= val_bytes and 2 * held_out <= total:
                return digest
        raise DataError(
            f"part {name}: holding out {val_bytes:,} of its {total:,} bytes would leave less for training than for "
            "validation; lower data.val_bytes, or give it more text",
            field="data.val_bytes",
        )

    def _split(self, name: str, cut: bytes) -> Split:
        made = Split([], [])
        for digest, page, text in self._ordered(name):
            (made.val if digest <= cut and self._may_be_held_out(page) else made.train).append(text)
        return made

    def _ordered(self, name: str) -> list[tuple[bytes, str | None, str]]:
        keyed = ((hashlib.sha256((page or text).encode()).digest(), page, text) for page, text in self.parts[name])
        return sorted(keyed, key=lambda each: (each[0], each[2]))

    def _may_be_held_out(self, page: str | None) -> bool:
        return not self._parallel or page in self._parallel

    def common_lines(self) -> dict[tuple[str, str], float]:
        """Of each two parts the share of bytes that stand in lines of both, of the part of which it is more.

        Each line counts once. Much in common is text that was not translated.
        """
        lines = {
            name: {line.strip() for _, text in pages for line in text.splitlines()}
            for name, pages in self.parts.items()
        }
        size = {name: _bytes(each) for name, each in lines.items()}
        return {
            (a, b): _bytes(lines[a] & lines[b]) / max(1, min(size[a], size[b]))
            for a, b in itertools.combinations(self.parts, 2)
        }


def _bytes(texts: set[str] | list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def equal_bytes(texts: Sequence[list[str]]) -> Iterator[str]:
    """As many bytes of each list of documents as the smallest has, in whole documents from its start."""
    least = min(map(_bytes, texts))
    for documents in texts:
        taken = itertools.accumulate((len(text.encode()) for text in documents), initial=0)
        yield from (text for text, before in zip(documents, taken, strict=False) if before < least)

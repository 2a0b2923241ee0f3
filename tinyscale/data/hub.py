"""Corpora on the Hugging Face hub: pinned revisions, checked hashes, and no more bytes downloaded than needed.

A file is downloaded from its start, in blocks that stay in the cache folder. So an interrupted download resumes, a
larger max_bytes extends a smaller one, and bytes on this machine need no network.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from tinyscale.data.files import between_separators, read_text_column
from tinyscale.data.source import Split
from tinyscale.data.split import content_hash, split
from tinyscale.errors import DataError
from tinyscale.machine import cache_folder
from tinyscale.spec.data_config import SEPARATOR

_BLOCK = 16 << 20  # bytes per request
_RETRIES = 3  # of a failed request; the waits between them double from 1 s
_READING = 1  # raised when the same file gives other documents
# An article's heading in WikiText, between two blank rows; sections have more equals signs.
_HEADING = re.compile(r" = (?!= ).*(?<! =) = \n")


@dataclass(frozen=True)
class HubCorpus:
    """One file of a dataset repository, at a fixed revision."""

    repo: str
    revision: str
    file: str
    size: int  # bytes
    sha256: str
    licence: str
    articles: bool = False  # rows are lines, to be joined into articles

    @property
    def is_text(self) -> bool:
        """Whether it is plain text with separators, of which any prefix can be read; otherwise it is Parquet."""
        return self.file.endswith(".txt")

    @property
    def path(self) -> Path:
        """The file on this machine, or the part of it downloaded so far."""
        return cache_folder() / "hub" / self.repo.replace("/", "--") / self.revision / self.file

    @property
    def checked(self) -> Path:
        """An empty file that exists once the whole file is here and has the pinned hash."""
        return self.path.with_name(f"{self.path.name}.checked")

    @property
    def bytes_here(self) -> int:
        """Bytes of the file on this machine."""
        return self.path.stat().st_size if self.path.is_file() else 0


HUB = {
    "tinystories": HubCorpus(
        "roneneldan/TinyStories",
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        "TinyStories-train.txt",
        1_924_281_556,
        "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
        "CDLA-Sharing-1.0",
    ),
    "tinystories_v2": HubCorpus(
        "roneneldan/TinyStories",
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        "TinyStoriesV2-GPT4-train.txt",
        2_227_753_162,
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        "CDLA-Sharing-1.0",
    ),
    "ag_news": HubCorpus(
        "fancyzhx/ag_news",
        "eb185aade064a813bc0b7f42de02595523103ca4",
        "data/train-00000-of-00001.parquet",
        18_585_438,
        "fc508d6d9868594e3da960a8cfeb63ab5a4746598b93428c224397080c1f52ee",
        "non-commercial",
    ),
    "wikitext2": HubCorpus(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        6_357_543,
        "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7",
        "CC BY-SA 3.0",
        articles=True,
    ),
}


@dataclass(frozen=True)
class HubText:
    """The source made of a named hub corpus: its first documents that fit in max_bytes, or all of them.

    DataError when the file is neither here nor can be downloaded, or is not the pinned one.
    """

    name: str
    max_bytes: int | None = None

    def hash(self) -> str:
        """The content hash of the documents. It is stored, as the same bytes read by the same rule always give it."""
        path = HUB[self.name].path
        stored = path.with_name(f"{path.name}.{self.max_bytes or 'all'}.{_READING}.hash")
        if not stored.is_file():
            found = content_hash(self.documents())
            scratch = stored.with_name(f"{stored.name}.{os.getpid()}")
            scratch.write_text(found)
            scratch.replace(stored)
        return stored.read_text()

    def documents(self) -> list[str]:
        """The documents, read from the part of the file on this machine, which is extended as needed."""
        pinned = HUB[self.name]
        if pinned.is_text:
            limit = self.max_bytes or pinned.size
            texts = _beginning(_fetch(self.name, pinned, limit), limit, pinned.size)
        else:
            rows = read_text_column(_fetch(self.name, pinned, pinned.size)).to_pylist()
            texts = _first(_articles(rows) if pinned.articles else rows, self.max_bytes)
        if not texts:
            message = f"data.max_bytes {self.max_bytes} does not hold one document of {self.name}; raise it"
            raise DataError(message, field="data.max_bytes")
        return texts

    def split(self, val_bytes: int) -> Split:
        """The documents, split by their hashes."""
        return Split(*split(self.documents(), val_bytes))


def _beginning(path: Path, limit: int, size: int) -> list[str]:
    """The documents in the first `limit` bytes of the file, without a last one that the limit cuts."""
    with path.open("rb") as file:
        raw = file.read(limit)
    end = len(raw) if len(raw) == size else max(raw.rfind(SEPARATOR.encode()), 0)
    return between_separators(str(memoryview(raw)[:end], "utf-8"))


def _articles(rows: list[str]) -> list[str]:
    """WikiText's articles, from rows of one line each; blank lines are empty rows."""
    starts = [
        index
        for index in range(1, len(rows) - 1)
        if _HEADING.fullmatch(rows[index]) and not rows[index - 1] and not rows[index + 1]
    ]
    ends = [*starts[1:], len(rows)]
    return ["".join(row or "\n" for row in rows[a:b]).strip() for a, b in zip(starts, ends, strict=True)]


def _first(texts: Iterable[str], max_bytes: int | None) -> list[str]:
    """The first documents that fit in max_bytes; empty ones are left out."""
    kept, left = [], math.inf if max_bytes is None else max_bytes
    for text in texts:
        left -= len(text.encode())
        if left < 0:
            break
        if text:
            kept.append(text)
    return kept


def _fetch(name: str, source: HubCorpus, wanted: int) -> Path:
    """The file, with at least its first `wanted` bytes. One process at a time downloads."""
    wanted = min(wanted, source.size)
    try:
        source.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{source.path}.lock"):
            if source.bytes_here < wanted:
                _extend(name, source, wanted)
            if wanted == source.size and not source.checked.is_file():
                _check(name, source)
        return source.path
    except OSError as error:
        folder = source.path.parent
        raise DataError(f"cannot store {name} in {folder} ({error}); set TINYSCALE_CACHE to another folder") from error


def _extend(name: str, source: HubCorpus, wanted: int) -> None:
    """Download the missing bytes, block by block, and append them."""
    here = source.bytes_here
    with source.path.open("ab") as file:
        while here < wanted:
            end = min(here + _BLOCK, wanted)
            file.write(_request(name, source, here, end))
            here = end


def _check(name: str, source: HubCorpus) -> None:
    with source.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        source.path.unlink()
        raise DataError(
            f"{name}: the downloaded {source.file} has SHA-256 {found[:16]}..., not the pinned "
            f"{source.sha256[:16]}...; it was removed, try again, and check HF_ENDPOINT if it is set"
        )
    source.checked.touch()


def _request(name: str, source: HubCorpus, start: int, end: int) -> bytes:
    """The bytes [start, end) of the file; a failed request is repeated."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, httpx

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error below says it
    url = hf_hub_url(
        source.repo, source.file, repo_type="dataset", revision=source.revision, endpoint=os.environ.get("HF_ENDPOINT")
    )
    # Without "identity" a server may compress the text, and a range would then count compressed bytes.
    headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    host = urlsplit(url).netloc
    try:
        response = http_backoff("GET", url, headers=headers, max_retries=_RETRIES, timeout=30)
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise DataError(
            f"{host} answers {status} for {source.file} of {source.repo} at revision {source.revision[:12]}; "
            f"{_offline(name)}"
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise DataError(f"cannot reach {host} for {name} ({error}); {_offline(name)}") from error
    content = bytes(response.content)
    if response.status_code == 200:  # the server ignores ranges and sent everything
        content = content[start:end]
    if len(content) != end - start:
        raise DataError(f"{host} sent {len(content):,} bytes of {source.file} instead of {end - start:,}; try again")
    return content


def _offline(name: str) -> str:
    return f"without {name}, sotu, zipf_records and paths to your own text work offline"

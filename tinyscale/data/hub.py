"""Corpora of the Hugging Face hub: pinned revisions, checked hashes, and no more bytes than were asked for.

A file is read from its start in blocks and kept as far as it was read. So an interrupted download goes on where it
stopped, a larger byte budget adds to a smaller one, and what is here needs no network.
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

import pyarrow.parquet as pq
from filelock import FileLock

from tinyscale.data.files import SEPARATOR, between_separators
from tinyscale.data.split import content_hash
from tinyscale.errors import DataError
from tinyscale.machine import cache_folder

_BLOCK = 16 << 20  # bytes of one request
_RETRIES = 3  # of a request that the network or the server broke; the waits between them double from 1 s
_READING = 1  # raise when the same file would give other documents
# An article's heading in WikiText, between two blank rows; sections have more equals signs.
_HEADING = re.compile(r" = (?!= ).*(?<! =) = \n")


@dataclass(frozen=True)
class HubCorpus:
    """One file of a dataset repository, at a revision that cannot move."""

    repo: str
    revision: str
    file: str
    size: int  # bytes
    sha256: str
    licence: str
    articles: bool = False  # rows are lines, to be joined into articles

    @property
    def is_text(self) -> bool:
        """Plain text with separators, of which any prefix can be read; otherwise Parquet."""
        return self.file.endswith(".txt")

    @property
    def path(self) -> Path:
        """Where the file lies, as far as it was read."""
        return cache_folder() / "hub" / self.repo.replace("/", "--") / self.revision / self.file

    @property
    def checked(self) -> Path:
        """A mark that the file is here to its end and has the pinned hash."""
        return self.path.with_name(f"{self.path.name}.checked")

    @property
    def bytes_here(self) -> int:
        """How much of the file is on this machine."""
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


def hub_documents(name: str, max_bytes: int | None) -> list[str]:
    """The first documents of a named hub corpus that max_bytes bytes hold; all of them without a limit.

    Raises DataError when the file is not here and cannot be had, or is not the pinned one.
    """
    source = HUB[name]
    if source.is_text:
        texts = _beginning(_fetch(name, source, max_bytes or source.size), max_bytes or source.size, source.size)
    else:
        rows = pq.read_table(_fetch(name, source, source.size), columns=["text"]).column("text").to_pylist()
        texts = _first(_articles(rows) if source.articles else rows, max_bytes)
    if not texts:
        message = f"data.max_bytes {max_bytes} does not hold one document of {name}; raise it"
        raise DataError(message, field="data.max_bytes")
    return texts


def hub_hash(name: str, max_bytes: int | None) -> str:
    """The content hash of these documents. It is kept: the same bytes, read by the same rule, never give another."""
    path = HUB[name].path
    kept = path.with_name(f"{path.name}.{max_bytes or 'all'}.{_READING}.hash")
    if not kept.is_file():
        found = content_hash(hub_documents(name, max_bytes))
        scratch = kept.with_name(f"{kept.name}.{os.getpid()}")
        scratch.write_text(found)
        scratch.replace(kept)
    return kept.read_text()


def _beginning(path: Path, limit: int, size: int) -> list[str]:
    """The documents in the file's first bytes; of a part of the file, without the last one, which is cut short."""
    with path.open("rb") as file:
        raw = file.read(limit)
    end = len(raw) if len(raw) == size else max(raw.rfind(SEPARATOR.encode()), 0)
    return between_separators(str(memoryview(raw)[:end], "utf-8"))


def _articles(rows: list[str]) -> list[str]:
    """WikiText's rows, one line each and blank lines empty, as articles."""
    starts = [
        index
        for index in range(1, len(rows) - 1)
        if _HEADING.fullmatch(rows[index]) and not rows[index - 1] and not rows[index + 1]
    ]
    ends = [*starts[1:], len(rows)]
    return ["".join(row or "\n" for row in rows[a:b]).strip() for a, b in zip(starts, ends, strict=True)]


def _first(texts: Iterable[str], max_bytes: int | None) -> list[str]:
    """The documents up to the one that would pass the limit; empty ones are none."""
    kept, left = [], math.inf if max_bytes is None else max_bytes
    for text in texts:
        left -= len(text.encode())
        if left < 0:
            break
        if text:
            kept.append(text)
    return kept


def _fetch(name: str, source: HubCorpus, wanted: int) -> Path:
    """The file, with at least its first wanted bytes. Processes take turns."""
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
        raise DataError(f"cannot keep {name} in {folder} ({error}); set TINYSCALE_CACHE to another folder") from error


def _extend(name: str, source: HubCorpus, wanted: int) -> None:
    """Append the next blocks to what is here."""
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
            f"{name}: what came for {source.file} has SHA-256 {found[:16]}..., not the pinned {source.sha256[:16]}...; "
            f"it was removed, try again, and look at HF_ENDPOINT if it is set"
        )
    source.checked.touch()


def _request(name: str, source: HubCorpus, start: int, end: int) -> bytes:
    """Bytes start to end of the file, tried again when the connection breaks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, httpx

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our one line says it all
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
    if response.status_code == 200:  # the server does not know ranges and sent everything
        content = content[start:end]
    if len(content) != end - start:
        raise DataError(
            f"{host} sent {len(content):,} bytes of {source.file} where {end - start:,} were asked for; try again"
        )
    return content


def _offline(name: str) -> str:
    return f"without {name}, sotu, zipf_records and paths to your own text work offline"

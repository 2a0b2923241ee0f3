"""Mixtures of texts: one split and one tokenizer for all parts, shares that hold at every step, a loss of each part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from helpers.text import words
from helpers.trials import make_trial, trial_config
from tinyscale.data import prepare
from tinyscale.errors import ConfigError, DataError
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.sweep import load_sweep
from tinyscale.storage import Folder
from tinyscale.training.batches import batches_of
from tinyscale.training.loop import train
from tinyscale.training.progress import Point

PAGES = 60


def write_parts(folder: Path, names: str = "abc", pages: int = PAGES, length: int = 300) -> dict[str, str]:
    """A .jsonl of each name, of the same pages in other words; those of `a` begin with an A, and so on."""
    for seed, name in enumerate(names):
        rows = [
            {"page": f"p{page}", "text": f"{name.upper()}{page}\n{words(length, seed=1000 * seed + page)}"}
            for page in range(pages)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(folder / f"{name}.jsonl") for name in names}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_parts(tmp_path_factory.mktemp("parts"))


def mixed(parts: dict[str, str], **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"parts": parts, "tokenizer": {"kind": "byte"}, "val_bytes": 10_000} | changes)


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"parts": {"a": "x", "b": "y"}, "tokenizer": {"kind": "byte"}} | values)
    return str(caught.value)


def test_shares_are_the_same_in_any_unit_and_parts_without_one_are_not_mixed_in(parts: dict[str, str]) -> None:
    same = [{"a": 1, "b": 4}, {"b": 0.8, "a": 0.2}, {"a": "1K", "b": "4K", "c": 0}, [["a", 0.2], ["b", 0.8]]]
    assert {mixed(parts, shares=shares).shares for shares in same} == {(("a", 0.2), ("b", 0.8))}
    assert mixed(parts).shares == mixed(parts, shares={"a": 7, "b": 7, "c": 7}).shares
    assert mixed(parts).corpus == "a+b+c"
    again = DataConfig.model_validate_json(mixed(parts).model_dump_json())
    assert again == mixed(parts)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"shares": {"a": 1, "z": 1}}, "there is no part 'z'; the parts are a, b"),
        ({"shares": {"a": 0}}, "no part has a share above zero"),
        ({"shares": {"a": -1, "b": 2}}, "must be zero or above"),
        ({"parts": {"a": "x"}}, "two parts or more"),
        ({"parts": {}, "corpus": "x", "shares": {"a": 1}}, "shares are those of parts"),
        ({"corpus": "other"}, "corpus or parts, not both"),
        ({"unique_tokens": 5000}, "shorten the parts"),
        ({"val": "v.txt"}, "scored on what is held out of it"),
        ({"shares": 4}, "such as {de: 1, en: 4}"),
    ],
)
def test_what_is_no_mixture_is_refused(values: dict[str, Any], why: str) -> None:
    assert why in refused(values)


def documents(parts: dict[str, str], name: str, of: str, **changes: Any) -> list[str]:
    """The first lines of a part's documents: its name and the number of the page."""
    made = prepare(mixed(parts, **changes))
    (part,) = (part for part in made.parts if part.name == name)
    stream = np.asarray(made.train() if of == "train" else made._stream("val"))[slice(*getattr(part, of))]
    found = made.tokenizer()
    ends = [-1, *np.flatnonzero(stream == made.eot)]
    texts = [found.decode(stream[a + 1 : b]) for a, b in pairwise(ends) if b > a + 1]
    return [text.split("\n")[0] for text in texts]


def test_all_parts_hold_out_the_same_pages_and_train_on_the_others(parts: dict[str, str]) -> None:
    held_out = {name: {line[1:] for line in documents(parts, name, "val")} for name in parts}
    trained = {name: {line[1:] for line in documents(parts, name, "train")} for name in parts}
    assert held_out["a"] == held_out["b"] == held_out["c"]
    assert not held_out["a"] & trained["b"]
    assert len(held_out["a"] | trained["a"]) == PAGES
    assert {line[0] for line in documents(parts, "b", "train")} == {"B"}


def test_a_page_that_a_part_lacks_is_trained_on_and_never_scored(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "ab")
    held_out = documents(parts, "a", "val")
    (tmp_path / "b.jsonl").write_text(
        "\n".join(
            line for line in (tmp_path / "b.jsonl").read_text().split("\n") if f"B{held_out[0][1:]}\\n" not in line
        )
    )
    assert held_out[0] in documents(parts, "a", "train")
    assert {line[1:] for line in documents(parts, "a", "val")} == {line[1:] for line in documents(parts, "b", "val")}


def test_texts_without_pages_are_split_by_themselves_and_one_document_by_its_tail(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(words(9000))
    many = "<|endoftext|>".join(words(300, seed=seed) for seed in range(40))
    (tmp_path / "many.txt").write_text(many)
    made = prepare(mixed({"one": str(tmp_path / "one.txt"), "many": str(tmp_path / "many.txt")}))
    assert {part.name: part.val_bytes >= 10_000 for part in made.parts} == {"many": True, "one": True}
    assert {part.name: part.val_documents for part in made.parts}["one"] == 1


def test_more_validation_than_training_is_refused_with_the_part(parts: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"part a: holding out 90,000 of its .* bytes"):
        prepare(mixed(parts, val_bytes=90_000))


def test_shares_change_neither_tokens_nor_facts_but_what_is_scored(parts: dict[str, str]) -> None:
    whole, some = prepare(mixed(parts)), prepare(mixed(parts, shares={"a": 1, "c": 3}))
    assert whole.facts == some.facts
    assert whole.folder == some.folder
    assert [part.name for part in some.parts] == ["a", "c"]
    stream, numbers = some.val()
    assert len(stream) == some.val_tokens + some.val_documents + 1
    assert numbers.max() + 1 == some.val_documents
    assert sum(tokens for _, tokens in whole.facts.part_tokens) == whole.facts.train_tokens + len(parts) - 1


def test_the_tokenizer_learns_from_as_much_of_each_part(tmp_path: Path) -> None:
    texts = {name: [f"{name * 3}{number} " * 100 for number in range(20)] for name in "pq"}
    sizes = {"p": 1, "q": 10}
    for name, each in texts.items():
        rows = [json.dumps({"text": text * sizes[name] + str(number)}) for number, text in enumerate(each)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    tokenizer = {"kind": "bpe", "vocab_size": 264}
    made = prepare(
        mixed({name: str(tmp_path / f"{name}.jsonl") for name in texts}, tokenizer=tokenizer, val_bytes=2000)
    )
    lengths = [len(made.tokenizer().encode(name * 3)) for name in texts]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("shares", [{"a": 1, "b": 4}, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 30}, {"c": 1}])
def test_the_shares_hold_to_a_few_rows_at_every_step(parts: dict[str, str], shares: dict[str, float]) -> None:
    data = mixed(parts, shares=shares)
    trial, corpus = make_trial(trial_config(data))
    batches = batches_of(trial, corpus, 7)
    rows = np.concatenate([batches.blocks(step) for step in range(60)])
    lies_in = np.array(
        [[part.train[0] <= 32 * row and 32 * row + 33 <= part.train[1] for part in corpus.parts] for row in rows]
    )
    assert (lies_in.sum(axis=1) == 1).all()
    wanted = np.arange(1, len(rows) + 1)[:, None] * [share for _, share in data.shares]
    assert np.abs(lies_in.cumsum(axis=0) - wanted).max() < 3
    counted = [batches.tokens_of_parts(step) for step in range(61)]
    assert counted[60] == (32 * lies_in.sum(axis=0)).tolist()
    assert batches.tokens_of_parts(0) == [0] * len(shares)


def test_a_part_is_read_once_before_any_of_it_is_read_again_in_an_order_that_others_do_not_move(
    parts: dict[str, str],
) -> None:
    def rows_of_a(shares: dict[str, float]) -> list[int]:
        trial, corpus = make_trial(trial_config(mixed(parts, shares=shares)))
        batches, (first, end) = batches_of(trial, corpus, 8), corpus.parts[0].train
        rows = np.concatenate([batches.blocks(step) for step in range(400)])
        return [int(row) for row in rows if first <= 32 * row < end - 1]

    alone, beside = rows_of_a({"a": 1}), rows_of_a({"a": 1, "b": 2})
    assert beside == alone[: len(beside)]
    blocks = len(set(alone))
    assert len(set(alone[:blocks])) == blocks
    assert blocks > 100


def test_a_batch_is_a_function_of_the_step_whatever_was_read_before(parts: dict[str, str]) -> None:
    trial, corpus = make_trial(trial_config(mixed(parts, shares={"a": 1, "b": 2, "c": 5})))
    straight, resumed = (batches_of(trial, corpus, 6) for _ in range(2))
    inputs = [straight.batch(step)[0] for step in range(30)]
    assert (resumed.batch(17)[0] == inputs[17]).all()
    assert (resumed.batch(3)[0] == inputs[3]).all()
    halves = [resumed.batch(9, rank, 2)[0] for rank in (0, 1)]
    assert (inputs[9][0::2] == halves[0]).all()
    assert (inputs[9][1::2] == halves[1]).all()


def test_each_part_is_scored_and_the_loss_is_the_mean_over_the_parts(parts: dict[str, str]) -> None:
    trial, corpus = make_trial(trial_config(mixed(parts, shares={"a": 1, "b": 3})))
    points: list[Point] = []
    train(trial, corpus, points.append)
    for point in points:
        assert point.by_part is not None
        assert [part["part"] for part in point.by_part] == ["a", "b"]
        assert point.val_loss == pytest.approx(np.mean([part["loss"] for part in point.by_part]), rel=1e-12)
        assert sum(part["tokens"] for part in point.by_part) == point.tokens
    last = points[-1].by_part
    assert last is not None
    for part, text in zip(last, corpus.parts, strict=True):
        assert part["bits_per_byte"] == pytest.approx(part["loss"] * text.val_tokens / text.val_bytes / np.log(2))
        assert part["nats_per_page"] == pytest.approx(part["loss"] * text.val_tokens / text.val_documents)


def test_doubling_every_byte_of_a_part_halves_its_bits_per_byte_and_leaves_its_nats_per_page(
    parts: dict[str, str],
) -> None:
    trial, corpus = make_trial(trial_config(mixed(parts, shares={"a": 1, "b": 1})))
    double = replace(corpus, parts=tuple(replace(part, val_bytes=2 * part.val_bytes) for part in corpus.parts))
    scores: list[list[Point]] = [[], []]
    for text, points in zip((corpus, double), scores, strict=True):
        train(trial, text, points.append)
    once, twice = (points[-1].by_part or [] for points in scores)
    for one, two in zip(once, twice, strict=True):
        assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"] / 2)
        assert two["nats_per_page"] == one["nats_per_page"]


def test_a_trial_on_a_mixture_that_was_stopped_goes_on_with_the_same_numbers(
    parts: dict[str, str], tmp_path: Path
) -> None:
    trial, corpus = make_trial(trial_config(mixed(parts, shares={"a": 1, "b": 2})))
    whole: list[Point] = []
    train(trial, corpus, whole.append)
    checkpoints, again = Folder.at(tmp_path), list[Point]()
    train(trial, corpus, lambda _: None, checkpoints=checkpoints, should_stop=lambda step: step == 7)
    train(trial, corpus, again.append, checkpoints=checkpoints)
    assert [(point.val_loss, point.by_part) for point in again] == [(point.val_loss, point.by_part) for point in whole]


def test_rows_hold_the_shares_and_the_parts_and_are_read_back(parts: dict[str, str], results: Results) -> None:
    trial, corpus = make_trial(trial_config(mixed(parts, shares={"a": 1, "b": 4})))
    points: list[Point] = []
    train(trial, corpus, points.append)
    rows = [point_columns(trial, vars(point), corpus.val_tokens, corpus.val_bytes) for point in points]
    results.write_trial(trial, rows, "finished", None, {})
    frame, _ = results.read()
    assert set(frame["shares"]) == {"a:1+b:4"}
    assert [part["share"] for part in frame["by_part"].iloc[-1]] == [0.2, 0.8]
    assert results.load_trial(trial.identity) == trial
    each = [part["bits_per_byte"] for part in points[-1].by_part or []]
    assert frame["bits_per_byte"].iloc[-1] == pytest.approx(np.mean(each))


SWEEP = """\
name: mix
base:
  data: {parts: {a: a.jsonl, b: b.jsonl}, tokenizer: {kind: byte}, val_bytes: 101K}
  model: {d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}
  train: {tokens_budget: 64K, batch_tokens: 512, lr: 1e-2}
axes:
  data.shares: [{a: 1}, {a: 1, b: 1}]
"""


@pytest.fixture(scope="module")
def long_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long_parts")
    write_parts(folder, "ab", pages=100, length=600)
    return folder


@pytest.fixture
def planned(long_parts: Path, results: Results) -> Callable[..., Any]:
    def plan(*replacements: tuple[str, str], more: str = "") -> Any:
        text = SWEEP + more
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = long_parts / "mix.yaml"
        path.write_text(text)
        return make_plan(load_sweep(path), results, measure=False)

    return plan


def test_shares_are_an_axis_and_the_plan_says_what_the_parts_have_in_common(planned: Callable[..., Any]) -> None:
    plan = planned()
    assert [each.label for each in plan.trials] == ["shares=a:1 seed=0", "shares=a:1+b:1 seed=0"]
    assert len({each.trial.identity for each in plan.trials}) == 2
    assert any("in common to two parts: at most" in note for note in plan.notes)


def test_shares_may_be_zipped_with_a_budget(planned: Callable[..., Any]) -> None:
    plan = planned(
        ("axes:", "zip:\n  train.tokens_budget: [32K, 64K]"), ("{a: 1}, {a: 1, b: 1}", "{a: 1}, {a: 1, b: 1}")
    )
    assert [each.trial.tokens // 1000 for each in plan.trials] == [31, 64]


def test_shares_that_move_nothing_are_refused(planned: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"moves nothing: \(shares=a:1\+b:1"):
        planned(("{a: 1}, {a: 1, b: 1}", "{a: 1, b: 1}, {a: 2, b: 2}"))


def test_a_part_that_would_be_read_twice_is_refused_without_repeats(planned: Callable[..., Any]) -> None:
    wanted = ("tokens_budget: 64K", "tokens_budget: 600K")
    with pytest.raises(ConfigError, match=r"reads part a 3\.00 times, by its share in a:1; lower the budget"):
        planned(wanted)
    assert planned(wanted, ("lr: 1e-2", "lr: 1e-2, repeats: true")).trials[1].trial.epochs == pytest.approx(
        1.5, rel=0.1
    )


def test_too_little_validation_of_a_part_is_refused_with_what_would_do(planned: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"holds out .* tokens of part [ab]; .* set data.val_bytes to"):
        planned(("101K", "50K"))


def test_a_part_that_is_not_there_is_named_with_its_line(planned: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"line 3: part b: data.corpus 'z.jsonl' is neither"):
        planned(("b.jsonl", "z.jsonl"))


def test_text_that_was_not_translated_is_warned_of(planned: Callable[..., Any], long_parts: Path) -> None:
    rows = [json.loads(line) for line in (long_parts / "a.jsonl").read_text().split("\n")]
    for row in rows[::3]:
        row["text"] = row["text"].replace("A", "B", 1)
    other = [json.loads(line) for line in (long_parts / "b.jsonl").read_text().split("\n")]
    half = [mine if number % 3 == 0 else theirs for number, (mine, theirs) in enumerate(zip(rows, other, strict=True))]
    (long_parts / "half.jsonl").write_text("\n".join(map(json.dumps, half)))
    plan = planned(("b.jsonl", "half.jsonl"))
    assert any("lines in common: a and b 3" in warning for warning in plan.warnings)


def test_parts_without_a_token_in_common_are_refused(planned: Callable[..., Any], long_parts: Path) -> None:
    rows = [{"page": f"p{page}", "text": "".join(map(chr, range(0x400, 0x440))) * 40} for page in range(100)]
    latin = [{"page": f"p{page}", "text": "abcdefgh" * 400} for page in range(100)]
    (long_parts / "cyrillic.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (long_parts / "latin.jsonl").write_text("\n".join(map(json.dumps, latin)))
    with pytest.raises(DataError, match="parts a and b have no token in common"):
        planned(("a.jsonl", "latin.jsonl"), ("b.jsonl", "cyrillic.jsonl"))

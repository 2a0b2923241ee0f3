"""Loss by position: known falls are found beyond the right number of tokens, with intervals that seeds allow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tinyscale.analysis.positions import falls_beyond, position_losses, positions_over_seeds, positions_verdict


def points(
    lengths: tuple[int, ...] = (16, 64), seeds: int = 3, floor: float = 3.0, spread: float = 0.0
) -> pd.DataFrame:
    """Rows of trials whose targets that see n tokens have the loss floor + 1 / n, with a mid-schedule row each."""
    rng = np.random.default_rng(0)
    rows = []
    for length in lengths:
        for seed in range(seeds):
            trial = {
                "trial": f"{length}-{seed}",
                "seed": seed,
                "arm": "base",
                "state": "finished",
                "positions": "rotary",
            }
            sizes = {"context_length": length, "n_non_embedding": 5000}
            entries = 2.0 ** np.arange(np.log2(length))
            losses = floor + 1 / entries + spread * rng.standard_normal(len(entries)) + rng.standard_normal()
            rows.append({**trial, **sizes, "tokens": 50, "loss_by_position": None})
            rows.append({**trial, **sizes, "tokens": 100, "loss_by_position": losses.tolist()})
    return pd.DataFrame(rows)


def test_each_entry_stands_at_the_least_tokens_that_its_targets_see() -> None:
    losses = position_losses(points(lengths=(16, 64), seeds=1))
    seen = losses.groupby("context_length")["seen"].agg(list)
    assert seen.to_dict() == {16: [1, 2, 4, 8], 64: [1, 2, 4, 8, 16, 32]}


def test_what_all_entries_of_a_seed_share_widens_no_interval() -> None:
    """Losses of seeds differ by a nat, their falls not at all."""
    falls = falls_beyond(position_losses(points())).set_index("context_length")
    assert falls.loc[64, "fall"] == pytest.approx(1 / 16 - 1 / 32)
    assert falls.loc[64, "high"] - falls.loc[64, "low"] == pytest.approx(0, abs=1e-9)


def test_it_is_flat_beyond_the_first_entry_from_which_less_than_a_percent_is_left() -> None:
    falls = falls_beyond(position_losses(points(lengths=(256, 16), floor=4)))
    longest, shortest = (falls[falls["context_length"] == length].iloc[0] for length in (256, 16))
    assert longest["flat"]
    assert longest["beyond"] == 32  # 1/32 - 1/128 = 0.023 of about 4; 1/16 - 1/128 = 0.055
    assert not shortest["flat"]
    assert (shortest["beyond"], shortest["end"]) == (4, 8)


def test_seeds_that_disagree_are_not_called_flat() -> None:
    quiet = falls_beyond(position_losses(points(lengths=(16, 512))))
    noisy = falls_beyond(position_losses(points(lengths=(16, 512), spread=0.1)))
    assert quiet["flat"].iloc[-1]
    assert not noisy["flat"].iloc[-1]


def test_one_seed_has_a_reading_and_says_that_it_has_no_interval() -> None:
    falls = falls_beyond(position_losses(points(lengths=(16, 512), seeds=1)))
    assert falls[["low", "high"]].isna().all(axis=None)
    assert "one seed, so no interval" in positions_verdict(falls)


def test_the_sentence_is_of_the_longest_context() -> None:
    falls = falls_beyond(position_losses(points(lengths=(256, 16), floor=4)))
    assert positions_verdict(falls).startswith(
        "Beyond 32 tokens of the document the loss falls by less than 1 %: by 0.02"
    )
    still = positions_verdict(falls_beyond(position_losses(points(lengths=(8, 16)))))
    assert "still falls by 0.125 nats per token" in still
    assert "between targets that see 4 tokens of their document and those that see 8" in still


def test_a_sweep_of_one_context_or_of_other_fields_has_no_curves() -> None:
    assert position_losses(points(lengths=(16,))).empty
    twice = pd.concat([points(), points().assign(trial=lambda frame: frame["trial"] + "-lr")])
    assert position_losses(twice).empty
    assert positions_over_seeds(position_losses(twice)).empty


def test_entries_without_targets_are_left_out() -> None:
    made = points(lengths=(16, 64), seeds=2)
    made["loss_by_position"] = made["loss_by_position"].map(lambda entries: entries and [*entries[:-1], float("nan")])
    means = positions_over_seeds(position_losses(made))
    assert means.groupby("context_length")["seen"].max().to_dict() == {16: 4, 64: 16}

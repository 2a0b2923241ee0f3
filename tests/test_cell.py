"""Where a trial stands in its sweep: one label, one key, one form in JSON."""

from __future__ import annotations

import json

from tinyscale.spec.cell import Cell

CELL = Cell("lion", {"d_model": 16, "betas": [0.9, 0.95], "tokenizer": "bpe-300"}, seed=1)


def test_a_cell_comes_back_from_json_as_it_was() -> None:
    again = Cell.of_json(json.loads(json.dumps({"trial": "t0", **CELL.as_json()})))
    assert again == CELL
    assert again.key == CELL.key


def test_a_label_says_the_arm_unless_it_is_the_default_one_then_the_axes_then_the_seed() -> None:
    assert CELL.label == "lion d_model=16 betas=[0.9, 0.95] tokenizer=bpe-300 seed=1"
    assert Cell("base", {"d_model": 16}, 0).label == "d_model=16 seed=0"
    assert (Cell("base", {}, 0).label, Cell("base", {}, 0).label_of_seeds) == ("seed=0", "")


def test_seeds_of_a_cell_share_a_key_and_cells_do_not() -> None:
    cells = [Cell(arm, {"lr": lr}, seed) for arm in ("base", "lion") for lr in (0.1, 0.2) for seed in (0, 1)]
    assert len({cell.key for cell in cells}) == 8
    assert len({cell.key_of_seeds for cell in cells}) == 4
    assert len({cell.without(["lr"]).key_of_seeds for cell in cells}) == 2

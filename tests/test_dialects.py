"""Transfer where it is known: between two texts of one source, and from noise, which says nothing of any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.trials import make_trial, trial_config
from tinyscale.data.synthetic import RECORD, Generated, ZipfRecords
from tinyscale.spec.data_config import ZipfConfig
from tinyscale.training.loop import train
from tinyscale.training.progress import Point

TOPICS, RECORDS = 24, 40  # topics of a dialect; records of a document
TIMES = 3  # tokens of the other part for each of `own`
STEPS, ROWS = 400, 2
FOREIGN = 0x370  # code of the first letter of an alphabet that `own` has no letter of
SIZE = 700_000  # characters of each text


def write_dialects(folder: Path) -> dict[str, str]:
    """`own`; `same`, another text of its source; and `noise`, random letters of another alphabet."""
    source = Generated(ZipfRecords(ZipfConfig(topics=TOPICS, letters=8)))
    letters = np.random.default_rng(0).integers(FOREIGN, FOREIGN + 16, SIZE)
    texts = {"own": source.text(SIZE, part=0), "same": source.text(SIZE, part=2), "noise": "".join(map(chr, letters))}
    step = RECORD * RECORDS
    for name, text in texts.items():
        rows = [json.dumps({"text": text[at : at + step]}) for at in range(0, len(text), step)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return {name: str(folder / f"{name}.jsonl") for name in texts}


def loss_of_own(parts: dict[str, str], times: int = 1, other: str | None = None) -> float:
    """The loss of `own` after STEPS steps of ROWS rows of it, or so many times as many, alone or beside TIMES as many
    of another text. As all take as many steps, tokens alone make the difference.
    """
    shares = {"own": times} | ({other: TIMES} if other else {})
    data = {"parts": parts, "shares": shares, "tokenizer": {"kind": "char"}, "val_bytes": 20_000}
    batch = 32 * ROWS * sum(shares.values())
    sizes = {"d_model": 32, "batch_tokens": batch, "tokens_budget": STEPS * batch, "eval_points": 1}
    trial, corpus = make_trial(trial_config(data, **sizes))
    points: list[Point] = []
    train(trial, corpus, points.append)
    (own,) = (part for part in points[-1].by_part or [] if part["part"] == "own")
    return float(own["loss"])


@pytest.mark.slow
def test_a_token_of_the_same_source_is_worth_one_and_of_noise_nothing(tmp_path: Path) -> None:
    parts = write_dialects(tmp_path)
    alone = {times: loss_of_own(parts, times) for times in (1, 2, 1 + TIMES, 8)}
    assert alone[1] - alone[1 + TIMES] > 0.05, "tokens matter at all"

    def worth(other: str) -> float:
        falling = [-each for each in alone.values()]
        times = np.exp(np.interp(-loss_of_own(parts, 1, other), falling, np.log(list(alone))))
        return float((times - 1) / TIMES)

    assert worth("same") == pytest.approx(1, abs=0.4)
    assert worth("noise") == pytest.approx(0, abs=0.2)

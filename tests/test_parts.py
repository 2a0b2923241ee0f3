"""What `fit` makes of sweeps over mixtures: what the other parts are worth, and what their number costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helpers.runs import JOINT
from helpers.trials import FACTS, trial_config
from tinyscale.analysis.parts import mixture_rows
from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError
from tinyscale.fitting.choose import fit
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import find_law
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.trial import resolve

PARTS = ("de", "el", "en", "fr")
TRUTH = {"E": 1.2, "A": 60.0, "alpha": 0.4, "B": 300.0, "beta": 0.42}
WORTH = {"en": 0.3, "el": 0.0, "fr": -0.04}
FACTS_OF_PARTS = TextFacts(
    **{**vars(FACTS), "train_tokens": 40_000_000, "part_tokens": tuple((name, 10_000_000) for name in PARTS)}
)


def write_runs(
    results: Results, mixtures: Sequence[Mapping[str, float]], loss: Any, *, same_steps: bool = False
) -> None:
    """Finished trials of four widths and three D_t of `de` in these mixtures; loss: of (N, D_t, shares).

    same_steps: with a batch of as many tokens of `de` in all, not with one batch for all.
    """
    entries, rng = [], np.random.default_rng(1)
    for width, tokens, shares, seed in itertools.product((8, 16, 32, 64), (128, 256, 512), mixtures, (0, 1)):
        whole = 1024 * round(tokens * sum(shares.values()) / shares["de"])
        data = {"parts": {name: f"{name}.jsonl" for name in PARTS}, "shares": shares, "tokenizer": {"kind": "byte"}}
        sizes = {"d_model": width, "n_heads": 2, "tokens_budget": whole}
        sizes["batch_tokens"] = 1024 * round(sum(shares.values()) / shares["de"]) if same_steps else 1024
        trial = resolve(trial_config(data, seed=seed, **sizes), FACTS_OF_PARTS)
        own = loss(trial.parameters.n_non_embedding, 1024 * tokens, shares) * np.exp(0.002 * rng.standard_normal())
        by_part = [
            {"part": name, "share": share, "tokens": round(share * whole), "loss": own if name == "de" else 3.0}
            | {"loss_se": 0.01, "bits_per_byte": 1.0, "nats_per_page": 100.0, "val_tokens": 100_000}
            for name, share in trial.config.data.shares
        ]
        point = {"step": trial.steps, "tokens": trial.tokens, "val_loss": 3.0, "decayed": True, "by_part": by_part}
        row = point_columns(trial, point, 100_000 * len(by_part), 400_000)
        results.write_trial(trial, [row], "finished", None, {})
        entries.append(SweepEntry(trial.identity, Cell("base", {"d_model": width, "seed": seed}, seed)))
    results.write_sweep(SweepRecord("mix", "", "", (), tuple(entries), {}))


def transferred(n: float, d: float, shares: Mapping[str, float]) -> float:
    others = sum(WORTH[name] * share / shares["de"] * d for name, share in shares.items() if name != "de")
    return float(find_law("chinchilla").loss(TRUTH, n=n, d=d + others))


def test_a_sweep_over_mixtures_has_a_law_of_transfer_from_each_other_part(results: Results) -> None:
    pairs = [{"de": 1.0, other: times} for other in WORTH for times in (1.0, 4.0)]
    write_runs(results, [{"de": 1.0}, *pairs], transferred)
    found = {each.record.name: each for each in find_laws(str(results.folder)).fits}
    assert found.keys() == {f"mix-de-from-{other}-transfer" for other in WORTH}
    for other, worth in WORTH.items():
        low, high = found[f"mix-de-from-{other}-transfer"].interval("tau")
        assert low <= worth <= high, other
        assert high - low < 0.2, other


@pytest.mark.parametrize("same_steps", [False, True])
def test_mixtures_that_took_more_steps_than_their_part_alone_are_warned_of(results: Results, same_steps: bool) -> None:
    """And a batch that follows from the shares sets no run apart."""
    mixtures = [{"de": 1.0}, {"de": 1.0, "en": 1.0}, {"de": 1.0, "en": 4.0}]
    write_runs(results, mixtures, transferred, same_steps=same_steps)
    (found,) = find_laws(str(results.folder)).fits
    assert found.record.name == "mix-de-from-en-transfer"
    low, high = found.interval("tau")
    assert low <= WORTH["en"] <= high
    assert any("more optimizer steps" in warning for warning in found.record.warnings) is not same_steps


def test_a_sweep_over_the_number_of_parts_has_the_law_of_languages(results: Results) -> None:
    write_runs(results, [dict.fromkeys(PARTS[:count], 1.0) for count in (1, 2, 3, 4)], cursed)
    (found,) = find_laws(str(results.folder)).fits
    assert found.record.name == "mix-de-languages"
    for name, true in (("phi", 0.2), ("psi", -0.1)):
        low, high = found.interval(name)
        assert low <= true <= high, name


def test_a_mixture_that_does_not_vary_has_the_law_of_its_mean_loss(results: Results) -> None:
    write_runs(results, [{"de": 1.0, "en": 2.0}], lambda n, d, _: transferred(n, d, {"de": 1.0}))
    assert all("from" not in str(each) for each in find_laws(str(results.folder)).refused)
    assert not any(each.record.name.startswith("mix-de-from") for each in find_laws(str(results.folder)).fits)


def table(ratios: Sequence[float]) -> pd.DataFrame:
    n, d, ratio = (axis.ravel() for axis in np.meshgrid([1e6, 4e6, 2e7], [2e7, 1e8, 5e8], ratios))
    loss = find_law("transfer").loss({**JOINT, "tau": 0.25}, n=n, d=d, total=d * ratio)
    noise = np.exp(0.001 * np.random.default_rng(1).standard_normal(n.size))
    return pd.DataFrame({"n": n, "d": d, "total": d * ratio, "loss": loss * noise})


def test_one_ratio_of_the_others_to_the_part_has_no_law_of_transfer() -> None:
    with pytest.raises(FitError, match=r"same share in all runs \(T/D = 5\), so tau and B cannot be told apart"):
        fit(table([5.0]), "transfer")


def test_a_table_of_runs_has_its_transfer_in_the_interval() -> None:
    found = fit(table([1.0, 2.0, 5.0]), "transfer")
    assert isinstance(found, Fit)
    low, high = found.interval("tau")
    assert low < 0.25 < high
    assert high - low < 0.1


@pytest.mark.parametrize("named", [{}, {"total": "all of it"}], ids=["by its header", "named"])
def test_a_table_with_the_tokens_of_all_parts_beside_those_of_one_has_its_transfer(
    tmp_path: Any, named: dict[str, str]
) -> None:
    rows = table([1.0, 2.0, 5.0]).rename(columns={"d": "tokens", "total": named.get("total", "total")})
    rows.to_csv(tmp_path / "own.csv", index=False)
    done = find_laws(str(tmp_path / "own.csv"), law="transfer", columns=named)
    (found,) = done.fits
    low, high = found.interval("tau")
    assert low < 0.25 < high
    assert "not used" not in " ".join(done.reading)


def test_the_number_of_languages_keeps_runs_of_equal_sizes_apart_in_other_laws(tmp_path: Any) -> None:
    rows = pd.DataFrame(
        {"n": n, "tokens": d, "languages": k, "loss": cursed(n, d, dict.fromkeys(PARTS[:k], 1.0), phi=0.5)}
        for n, d, k in itertools.product((1e6, 3e6, 1e7, 3e7), (2e7, 8e7, 3e8), (1, 2, 4))
    )
    rows.to_csv(tmp_path / "own.csv", index=False)
    (found,) = find_laws(str(tmp_path / "own.csv"), law="languages").fits
    assert found.record.estimates["phi"].value == pytest.approx(0.5, abs=0.01)
    (refused,) = find_laws(str(tmp_path / "own.csv"), law="chinchilla").refused
    assert "languages would separate them" in str(refused)


def test_the_losses_of_two_parts_are_never_fitted_together(tmp_path: Any) -> None:
    rows = pd.concat([table([1.0, 2.0]).assign(part=part) for part in ("de", "el")])
    path = tmp_path / "runs.csv"
    rows.to_csv(path, index=False)
    with pytest.raises(FitError, match="differ in part, so their losses do not compare"):
        for refused in find_laws(str(path), law="languages", pool=True).refused:
            raise FitError(str(refused))


def test_the_law_of_mixtures_is_made_of_results_where_it_is_asked_for(results: Results) -> None:
    mixtures = [{"de": 1.0, "en": share} for share in (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)]
    write_runs(results, mixtures, lambda _n, _d, shares: 2 + 0.5 * (1 / sum(shares.values())) ** -0.2)
    (refused,) = find_laws(str(results.folder), law="mixture").refused
    assert "is of one N and D" in str(refused)
    frame = mixture_rows(results.read()[0])
    found = fit(frame.drop(columns=["n_non_embedding", "tokens"]), "mixture")
    assert found.record.estimates["share_of_de"].value > 0.5


def rows_of_parts(mixtures: Sequence[Mapping[str, float]], loss: Any) -> pd.DataFrame:
    """A table of somebody's runs of four sizes and three D_t of `de` in these mixtures, shares in per cent."""
    rows, rng = [], np.random.default_rng(1)
    for n, tokens, shares in itertools.product((1e6, 3e6, 1e7, 3e7), (2e7, 8e7, 3e8), mixtures):
        whole = sum(shares.values())
        of_parts = {f"share_of_{name}": 100 * shares.get(name, 0) / whole for name in ("de", "en", "fr")}
        own = loss(n, tokens, shares) * np.exp(0.002 * rng.standard_normal())
        losses = {"loss_of_de": own, "loss_of_en": 3.0, "loss_of_fr": 3.0}
        rows.append({"params": n, "train_tokens": tokens * whole / shares["de"], **of_parts, **losses})
    return pd.DataFrame(rows)


def cursed(n: float, d: float, shares: Mapping[str, float], phi: float = 0.2) -> float:
    return float(find_law("languages").loss({**TRUTH, "phi": phi, "psi": -0.1}, n=n, d=d, languages=len(shares)))


@pytest.mark.parametrize("asked", [None, "transfer"])
def test_a_table_with_shares_and_losses_of_parts_has_the_law_of_transfer(tmp_path: Any, asked: str | None) -> None:
    pairs = [{"de": 1.0, other: times} for other in ("en", "fr") for times in (1.0, 4.0)]
    rows_of_parts([{"de": 1.0}, *pairs], transferred).to_csv(tmp_path / "own.csv", index=False)
    found = {each.record.name: each for each in find_laws(str(tmp_path / "own.csv"), law=asked).fits}
    assert found.keys() == {"own-de-from-en-transfer", "own-de-from-fr-transfer"}
    for other in ("en", "fr"):
        low, high = found[f"own-de-from-{other}-transfer"].interval("tau")
        assert low <= WORTH[other] <= high, other


def test_a_table_with_shares_and_losses_of_parts_has_the_law_of_languages(tmp_path: Any) -> None:
    mixtures = [dict.fromkeys(("de", "en", "fr")[:count], 1.0) for count in (1, 2, 3)]
    rows_of_parts(mixtures, cursed).to_csv(tmp_path / "own.csv", index=False)
    (found,) = find_laws(str(tmp_path / "own.csv"), law="languages").fits
    for name, true in (("phi", 0.2), ("psi", -0.1)):
        low, high = found.interval(name)
        assert low <= true <= high, name
    with pytest.raises(FitError, match="have the law languages, and transfer is of others"):
        find_laws(str(tmp_path / "own.csv"), law="transfer")


def test_shares_that_are_none_are_refused_with_their_line(tmp_path: Any) -> None:
    rows = rows_of_parts([{"de": 1.0}, {"de": 1.0, "en": 1.0}], cursed)
    for value, said in (
        (-1, "line 4: the columns share_of_NAME must be zero or above"),
        ("much", "'much' is no number"),
    ):
        rows.astype({"share_of_en": object}).assign(
            share_of_en=[*rows["share_of_en"][:2], value, *rows["share_of_en"][3:]]
        ).to_csv(tmp_path / "own.csv", index=False)
        with pytest.raises(FitError, match=said):
            find_laws(str(tmp_path / "own.csv"), law="mixture")

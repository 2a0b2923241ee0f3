"""The order of arms by worth, and whether small sizes predict it, where the truth is known."""

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from helpers.arms import arm
from helpers.programs import invoke
from helpers.results import write_results
from tinyscale.analysis.compare import compare_arms
from tinyscale.analysis.ranks import ranks_in_words, ranks_table


def entries(**by_size: list[float]) -> list[dict[str, object]]:
    """Contrasts of arms against a base: their differences at N = 1000, 10000, ..."""
    return [
        {
            "sweep": "s",
            "arm": name,
            "base": "base",
            "by_size": {f"{1000 * 10**k}": each for k, each in enumerate(values)},
        }
        for name, values in by_size.items()
    ]


def test_arms_that_each_lack_one_feature_are_ranked_by_what_it_is_worth() -> None:
    worth = {"no_a": 1.0, "no_b": 0.6, "no_c": 0.8, "no_d": 1.2}
    groups = [arm("base", 1.0, seed=1), *(arm(name, rho, seed=k) for k, (name, rho) in enumerate(worth.items(), 2))]
    found = compare_arms(groups)
    assert [each.arm for each in found] == ["no_d", "no_a", "no_c", "no_b"]
    order = ranks_in_words(found)[0]
    assert "Bonferroni over 4 arms" in order
    places = order.partition("): ")[2].split("; ")
    assert [place.split()[0] for place in places if place != "base"] == ["no_d", "no_a", "no_c", "no_b"]
    assert [place.endswith("no difference seen") for place in places if place.startswith("no_a")] == [True]
    alone = compare_arms([groups[0], groups[2]])[0].difference
    among = next(each.difference for each in found if each.arm == "no_b")
    assert among.high - among.low > alone.high - alone.low


def test_intervals_of_many_equal_arms_hold_together_as_often_as_promised() -> None:
    """Of 12 sweeps of four arms that equal the base, at 5 %: four or more with a false one has a chance below 1 %."""
    false = 0
    for repeat in range(12):
        base, *others = (arm(str(k), 1.0, seed=10 * repeat + k, common=2000 + repeat) for k in range(5))
        found = compare_arms([base, *others])
        false += any(not each.difference.low < 0 < each.difference.high for each in found)
    assert false <= 3


def test_a_single_arm_has_no_order() -> None:
    assert ranks_in_words(compare_arms([arm("base", 1.0, seed=1), arm("lion", 1.3, seed=2)])) == []
    assert ranks_table(entries(a=[0.1, 0.2])).empty


def test_ranks_are_kendalls_and_spearmans_and_regret_is_the_loss_of_the_best_of_a_size_at_the_largest() -> None:
    arms = {"a": [-0.3, -0.1, 0.2], "b": [-0.1, -0.2, -0.1], "c": [0.1, 0.1, 0.1]}
    found = ranks_table(entries(**arms)).set_index("n")
    assert list(found.index) == [1000, 10000]
    assert list(found["largest"]) == [100000, 100000]
    assert list(found["best"]) == ["a", "b"]
    assert list(found["regret"]) == pytest.approx([0.2 - -0.1, 0])
    last = [0.2, -0.1, 0.1, 0.0]
    for row, here in zip(found.itertuples(), ([-0.3, -0.1, 0.1, 0], [-0.1, -0.2, 0.1, 0]), strict=True):
        assert row.kendall == pytest.approx(stats.kendalltau(here, last).statistic)
        assert row.spearman == pytest.approx(stats.spearmanr(here, last).statistic)


def test_a_size_that_one_arm_lacks_ranks_nothing() -> None:
    found = ranks_table(entries(a=[0.1, 0.2, 0.3], b=[0.2, 0.1]))
    assert list(found["largest"]) == [10000]


def test_the_command_and_the_report_show_the_order_and_the_ranks(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion", "sgd"))
    said = " ".join(invoke("fit", tmp_path, "--bootstrap", "100").output.split())
    assert "the arms by worth, the best first" in said
    assert "the order of 3 arms at N = " in said
    assert pd.read_csv(tmp_path / "tables" / "ranks.csv")["sweep"].unique().tolist() == ["width"]
    assert invoke("report", tmp_path).exit_code == 0
    html = (tmp_path / "report.html").read_text()
    assert "The arms by worth, the best first" in html
    assert "Regret: how much more loss" in html

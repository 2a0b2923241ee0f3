"""Published fits come out again from their published points."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from helpers.runs import HOFFMANN, published, simulated
from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.isoflop import fit_isoflop
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.laws.distilled import ALONE
from tinyscale.fitting.minimum import weighted_line

PORIAN = ["dataset", "hparams", "warmup", "decay", "param_count", "val", "file"]


def test_olmo_ladders_sixteen_runs_predict_the_13b_as_published() -> None:
    runs = published("olmo_ladder/final_evals.csv")
    small = runs[runs["size"].isin(["190M", "370M", "760M", "1B"]) & runs["xC"].isin([1, 2, 5, 10]) & ~runs["rerun"]]
    columns = {"n": "non_embedding_params", "d": "tokens", "loss": "c4_en_ce_mean_last5"}
    found = fit_law(small, "chinchilla", columns=columns, delta=1e-3)  # the published objective
    assert len(found.points) == 16
    predicted = float(found.law.loss(found.params, n=13202396160, d=5000088518656))
    assert predicted == pytest.approx(2.344387, abs=1e-4)
    assert 100 * (predicted / 2.437876 - 1) == pytest.approx(-3.8348, abs=2e-3)
    assert found.certificate.share_of_starts > 0.5


def test_the_lines_through_porians_optima_have_all_fifteen_published_exponents() -> None:
    optima = published("porian/optimal_pairs.csv").dropna(subset=["n"])
    fits = published("porian/published_fits.csv").set_index(PORIAN)
    groups = list(optima.groupby(PORIAN))
    assert len(groups) == 15
    for key, rows in groups:
        line = weighted_line(
            np.log(rows["flops"].to_numpy()), np.log(rows["n"].to_numpy()), rows["n_star_std"].to_numpy()
        )
        assert line.slope == pytest.approx(fits.loc[key, "a"], abs=1e-9)


def test_our_own_isoflop_on_porians_runs_is_near_all_fifteen_published_exponents() -> None:
    """Theirs interpolates (Akima) and weighs by injected seed noise; ours fits cubics and weighs by their residuals."""
    runs = published("porian/isoflop_points.csv")
    fits = published("porian/published_fits.csv").set_index(PORIAN)
    for key, rows in runs.groupby(PORIAN):
        found = fit_isoflop(rows, columns={"n": "n", "d": "tokens", "c": "flops", "loss": "loss"})
        assert found.params["a"] == pytest.approx(fits.loc[key, "a"], abs=0.03)


MUENNIGHOFF = {
    "E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596,
    "R_N": 5.309743, "R_D": 15.387756,
}  # fmt: skip


@pytest.mark.parametrize(("n", "d", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)])
def test_the_data_constrained_law_has_the_published_values(n: float, d: float, loss: float) -> None:
    assert float(find_law("data-constrained").loss(MUENNIGHOFF, n=n, d=d, u=25e9)) == pytest.approx(loss, abs=1e-9)


def test_the_data_constrained_fit_explains_the_published_runs_better_than_the_published_constants() -> None:
    """Runs of up to 60 epochs: beyond, many have overfitted, and no falling law holds a rising loss.

    The published R2 of .772 is of 175 samples that the table does not mark; on these 220 runs the constants have .765.
    """
    runs = published("datablations/parametric_fit_points.csv")
    runs = runs[runs["tokens"] <= 60 * runs["unique_tokens"]]
    columns = {"n": "params", "d": "tokens", "u": "unique_tokens", "loss": "val_loss"}
    found = fit_law(runs, "data-constrained", columns=columns, draws=100, holdout=0)
    assert len(found.points) == 220
    assert explained(found.points.frame, MUENNIGHOFF) == pytest.approx(0.765, abs=1e-3)
    assert explained(found.points.frame, found.params) >= 0.92


def explained(runs: pd.DataFrame, params: Mapping[str, float]) -> float:
    """R2 of the data-constrained law on the loss."""
    predicted = find_law("data-constrained").loss(params, **{v: runs[v].to_numpy() for v in ("n", "d", "u")})
    return 1 - float(((runs["loss"] - predicted) ** 2).sum() / ((runs["loss"] - runs["loss"].mean()) ** 2).sum())


def test_gadres_five_small_runs_predict_the_overtrained_and_the_large_one_as_published() -> None:
    """Published: .7103 % and .7320 %, by least squares on the loss itself; weights loss^2 make ours nearly that.

    On log loss, each run counting alike, the same law is off by 1.05 % and 1.10 %.
    """
    runs = published("gadre_overtraining/runs.csv")
    runs = runs[runs["dataset"] == "rpj"]
    key = list(zip((runs["params"] / 1e9).round(3), 20 * runs["chinchilla_multiplier"], strict=True))
    small = runs[[k in {(0.011, 20), (0.079, 20), (0.154, 20), (0.412, 20), (0.011, 320)} for k in key]]
    small = small.assign(weight=small["loss_c4_val"] ** 2)
    columns = {"n": "params", "d": "tokens", "loss": "loss_c4_val", "weight": "weight"}
    found = fit_law(small, "tied", columns=columns, holdout=0)
    for target, published_percent in (((1.44, 640), 0.7103), ((6.889, 20), 0.7320)):
        row = runs.iloc[key.index(target)]
        predicted = float(found.law.loss(found.params, n=row["params"], d=row["tokens"]))
        assert 100 * (predicted / row["loss_c4_val"] - 1) == pytest.approx(published_percent, abs=0.3)


def test_published_constants_come_back_from_noisy_runs_inside_their_intervals() -> None:
    hits = dict.fromkeys(HOFFMANN, 0)
    for seed in range(12):
        found = fit_law(simulated(0.01, seed), "chinchilla", draws=300, holdout=0)
        assert found.delta == 1e-3
        for name, value in HOFFMANN.items():
            hits[name] += found.interval(name)[0] < value < found.interval(name)[1]
        for name, tolerance in (("E", 0.1), ("alpha", 0.05), ("beta", 0.05)):
            assert found.params[name] == pytest.approx(HOFFMANN[name], abs=tolerance)
    assert min(hits.values()) >= 9  # of 12 at 95 %: fewer has a chance below 1 %


SAE = {"latents": "n", "active": "k", "loss": "loss"}
GAO = {"alpha": -0.50, "b_k": 0.26, "b_n": -0.017, "g": -0.042, "zeta": -1.32, "eta": -0.085}


@pytest.mark.parametrize(("n", "k", "loss"), [(2048, 32, 0.6314), (131072, 128, 0.3357)])
def test_the_law_of_sparse_autoencoders_has_the_published_values(n: int, k: int, loss: float) -> None:
    assert float(find_law("features").loss(GAO, latents=n, active=k)) == pytest.approx(loss, abs=1e-4)


def test_the_law_of_sparse_autoencoders_explains_the_published_points_to_one_percent() -> None:
    found = fit_law(published("sae/runs.csv"), "features", columns=SAE, delta=np.inf, draws=100, holdout=0)
    assert len(found.points) == 45
    left = found.points.y - np.log(found.law.loss(found.params, **found.points.frame[["latents", "active"]]))
    assert 100 * float(np.sqrt((left**2).mean())) == pytest.approx(0.96, abs=0.005)
    refitted = {"alpha": -0.4225, "b_k": 0.2397, "b_n": -0.0271, "g": -0.0383, "zeta": -1.3189, "eta": -0.0965}
    assert found.params == pytest.approx(refitted, abs=1e-4)


def test_at_a_fixed_number_of_active_features_a_power_and_a_floor_explain_the_published_points() -> None:
    exponents = []
    for _, points in published("sae/runs.csv").groupby("k"):
        found = fit_law(points, "power-latents", columns=SAE, draws=100, holdout=0)
        exponents.append(found.params["alpha"])
    assert exponents == pytest.approx([0.16, 0.17, 0.19, 0.21, 0.31], abs=0.006)


STUDENTS = {"n": "NS", "d": "DS", "teacher": "LT", "loss": "LS"}
SUPERVISED = {"E": 1.220, "A": 3355, "B": 18186, "alpha": 0.408, "beta": 0.431, "gamma": 0.452}  # 2502.08606


def test_the_law_of_students_has_the_supervised_law_where_there_is_no_teacher() -> None:
    law, params = find_law("distilled"), {**SUPERVISED, "rho": 2.177, "h": 0.0879}
    assert float(law.loss(params, n=143e6, d=3.7e9, teacher=ALONE)) == pytest.approx(2.849643, abs=1e-5)
    assert float(law.loss(params, n=1.82e9, d=38.9e9, teacher=ALONE)) == pytest.approx(2.244586, abs=1e-5)
    assert float(law.loss(params, n=143e6, d=3.7e9, teacher=1.8953)) == pytest.approx(2.748462, abs=2e-4)


def test_two_parameters_beside_the_supervised_law_explain_the_published_students_to_half_a_percent() -> None:
    runs = published("distillation/runs.csv")
    found = fit_law(runs, "distilled", columns=STUDENTS, hold=SUPERVISED, delta=np.inf, draws=100, holdout=0)
    assert len(found.points) == 354
    assert found.params["rho"] == pytest.approx(2.177, abs=0.002)
    assert found.params["h"] == pytest.approx(0.0879, abs=0.0002)
    predicted = found.law.loss(found.params, n=runs["NS"], d=runs["DS"], teacher=runs["LT"])
    assert 100 * float(np.sqrt((np.log(predicted / runs["LS"]) ** 2).mean())) == pytest.approx(0.45, abs=0.005)
    assert found.certificate.condition_number < 10


def test_what_a_distilled_token_is_worth_comes_back_from_made_students_inside_its_interval() -> None:
    law, rng = find_law("distilled"), np.random.default_rng(0)
    truth = {"E": 2.0, "A": 40.0, "B": 900.0, "alpha": 0.4, "beta": 0.5, "gamma": 1.0, "rho": 1.9, "h": 0.1}
    sizes = [(n, d, t) for n in (1e3, 4e3, 16e3, 64e3) for d in (125e3, 25e4, 5e5, 1e6) for t in (ALONE, 3.6, 3.1)]
    frame = pd.DataFrame(2 * sizes, columns=["n", "d", "teacher"])
    noise = np.exp(0.004 * rng.standard_normal(len(frame)))
    frame["loss"] = law.loss(truth, **frame) * noise
    found = fit_law(frame, "distilled")
    for name in ("rho", "h"):
        low, high = found.interval(name)
        assert low < truth[name] < high
    assert found.interval("rho")[1] - found.interval("rho")[0] < 0.1

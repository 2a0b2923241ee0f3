"""Every law, by what must hold for all of them."""

import numpy as np
import pandas as pd
import pytest

from tinyscale.errors import FitError
from tinyscale.fitting.laws import LAWS, Law, find_law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.solve import solve


def some_points(law: Law) -> np.ndarray:
    """Logarithms (k, 12) of the law's variables, spread over two decades around a million."""
    rng = np.random.default_rng(0)
    return np.log(1e6) + rng.uniform(-2, 2, size=(len(law.variables), 12))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_jacobian_is_the_derivative_of_the_log_loss(law: Law) -> None:
    x = some_points(law)
    theta = np.clip(law.guess(x, np.linspace(4, 3, 12))[::7], *law.limits)
    _, jacobian = law.log_loss(theta, x)
    for p in range(len(law.params)):
        step = np.zeros(len(law.params))
        step[p] = 1e-6
        above, below = law.log_loss(theta + step, x)[0], law.log_loss(theta - step, x)[0]
        np.testing.assert_allclose(jacobian[:, p], (above - below) / (2 * step[p]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_guess_is_finite_and_its_coordinates_go_there_and_back(law: Law) -> None:
    theta = law.guess(some_points(law), np.linspace(4, 3, 12))
    assert theta.ndim == 2
    assert np.isfinite(theta).all()
    np.testing.assert_allclose(law.to_solver(law.to_params(theta)), theta, rtol=1e-12, atol=1e-12)


def test_the_law_of_parameters_is_its_formula() -> None:
    law = find_law("power-n")
    assert law.loss({"E": 2.0, "A": 50.0, "alpha": 0.3}, n=1e6) == pytest.approx(2.0 + 50.0 * 1e6**-0.3, rel=1e-14)


def test_the_joint_law_is_its_formula() -> None:
    law = find_law("chinchilla")
    params = {"E": 1.8, "A": 482.0, "B": 2085.4, "alpha": 0.3478, "beta": 0.3658}  # 2404.10102, table 1
    expected = 1.8 + 482.0 * 1e8**-0.3478 + 2085.4 * 2e9**-0.3658
    assert law.loss(params, n=1e8, d=2e9) == pytest.approx(expected, rel=1e-14)


JOINT = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
TRUTHS = {
    "chinchilla": JOINT,
    "tied": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35},
    "gamma": {**JOINT, "gamma": 0.8},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "data-constrained": {**JOINT, "R_N": 5.3, "R_D": 15.4},
    "broken": {"E": 1.5, "A": 60.0, "c0": 0.3, "c1": -0.2, "d": 3e7, "f": 0.3},
    "width-depth": {"E": 1.8, "A": 80.0, "B": 3.0, "alpha": 0.8, "beta": 0.9},
}


def grid_of(law: Law) -> pd.DataFrame:
    """A grid of the law's variables over two decades each, without noise."""
    ranges = {"width": (64, 4096), "depth": (2, 64), "t": (64, 8192)}
    axes = [np.geomspace(*ranges.get(name, (1e6, 1e9)), 24 if len(law.variables) == 1 else 7) for name in law.variables]
    columns = dict(zip(law.variables, (axis.ravel() for axis in np.meshgrid(*axes)), strict=True))
    default = {"E": 1.5, "A": 60.0, "alpha": 0.3}
    truth = TRUTHS.get(law.name, {name: default[name] for name in law.params if name in default})
    return pd.DataFrame({**columns, "loss": law.loss(truth, **columns)})


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_finds_its_own_curve_again(law: Law) -> None:
    frame = grid_of(law)
    points = read_points(frame, law)
    solution, certificate = solve(points.problem(law, np.inf))
    assert certificate.converged
    np.testing.assert_allclose(law.log_loss(solution.theta, points.x)[0][0], points.y, atol=2e-6)


def test_an_unknown_law_is_answered_with_the_known_ones() -> None:
    with pytest.raises(FitError, match=r"power-m.*power-n"):
        find_law("power-m")

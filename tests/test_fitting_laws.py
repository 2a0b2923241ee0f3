"""Every law, by what must hold for all of them."""

import numpy as np
import pytest

from helpers.runs import grid_of
from tinyscale.errors import FitError
from tinyscale.fitting.laws import LAWS, Law, find_law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.solve import solve


def some_points(law: Law) -> np.ndarray:
    """Logarithms (k, 12) of the law's variables, spread over two decades around a million."""
    rng = np.random.default_rng(0)
    near = {"bits": 5.0, "teacher": 4.0}
    middle = np.log([near.get(name, 1e6) for name in law.variables])
    spread = np.array([0.3 if name in near else 1.0 for name in law.variables])
    return middle[:, None] + spread[:, None] * rng.uniform(-2, 2, size=(len(law.variables), 12))


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

"""Drawing of registered forecasts against what came of them. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from tinyscale.analysis.forecasts import Registration
from tinyscale.reporting.plot_law import BLUE, GREY, ORANGE, new_axes, tidy


def plot_forecasts(made: Sequence[Registration], ax: Axes | None = None) -> Axes:
    """Each 95 % interval and each run against the forecast, in percent, by distance in compute from the fitted runs.

    Forecasts whose distance is not known are left out.
    """
    ax = ax or new_axes()
    ax.axhline(0, color=GREY, lw=0.9)
    for registration in made:
        for forecast in registration.registered.forecasts:
            if not forecast.times_beyond:
                continue
            times, loss = forecast.times_beyond, forecast.loss
            low, high = (100 * (end / loss.value - 1) for end in loss.ends)
            ax.plot([times, times], [low, high], color=BLUE, lw=5, alpha=0.35, solid_capstyle="butt")
            for score in registration.scores_of(forecast):
                edge = BLUE if score.inside else ORANGE
                ax.plot(times, 100 * (score.loss / loss.value - 1), "o", ms=5, mfc="white", mec=edge, mew=1.2)
    ax.set_xscale("log")
    ax.margins(x=0.1)
    ax.set_xlabel("Compute, as a multiple of the largest fitted run's")
    ax.set_ylabel("Measured loss against the forecast (%)")
    tidy(ax)
    return ax

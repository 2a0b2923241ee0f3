"""tinyscale: how a language model's loss falls with parameters, data, context and compute.

    import tinyscale as ts

    ts.launch("sweeps/quickstart.yaml")          # trains missing trials; writes rows to results/
    frame = ts.read_results("results")           # a DataFrame, one row per point
    law = ts.fit(frame)                          # the law of the variables that vary, of the final points
    ts.plot_fit(law)
    ts.predict("results", n=1e7)                 # from the fits that `tinyscale fit` wrote

Each name is imported on first use, so importing tinyscale imports neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyscale.api import fit, launch, plan_launch, predict
    from tinyscale.reporting.plot_law import plot_fit
    from tinyscale.results.store import read_results
    from tinyscale.spec.sweep import load_sweep

_HOMES = {
    "fit": "tinyscale.api",
    "launch": "tinyscale.api",
    "load_sweep": "tinyscale.spec.sweep",
    "plan_launch": "tinyscale.api",
    "plot_fit": "tinyscale.reporting.plot_law",
    "predict": "tinyscale.api",
    "read_results": "tinyscale.results.store",
}

__all__ = ["fit", "launch", "load_sweep", "plan_launch", "plot_fit", "predict", "read_results"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinyscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

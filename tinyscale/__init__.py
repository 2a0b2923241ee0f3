"""tinyscale: how a language model's loss falls with parameters, data, context and compute.

    import tinyscale as ts

    ts.launch("sweeps/quickstart.yaml")          # trains missing trials; writes rows to results/
    ts.launch(ts.Sweep.of("width", base, axes={"d_model": [16, 32]}))  # the same without a file
    ts.corpus(documents)                         # a path for data.corpus, of any strings in Python
    ts.status("results")                         # which trials are done, running or failed
    frame = ts.read_results("results")           # a DataFrame, one row per point
    law = ts.fit(frame)                          # the law of the variables that vary, of the final points
    ts.plot_fit(law)
    ts.compare("results")                        # the arms of each sweep against its base
    ts.report("results")                         # one HTML page; also fits as `tinyscale fit` does
    ts.predict("results", n=1e7)                 # from the fits that are written there
    ts.suggest("results", flops=1e17)            # which runs to train next
    ts.load_model("results", "width/d_model=16,seed=0").gpt

Each name is imported on first use, so importing tinyscale imports neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyscale.api import compare, corpus, fit, launch, load_model, plan_launch, predict, report, status, suggest
    from tinyscale.reporting.plot_law import plot_fit
    from tinyscale.results.store import read_results
    from tinyscale.spec.sweep import Sweep, load_sweep

__all__ = [
    "Sweep",
    "compare",
    "corpus",
    "fit",
    "launch",
    "load_model",
    "load_sweep",
    "plan_launch",
    "plot_fit",
    "predict",
    "read_results",
    "report",
    "status",
    "suggest",
]

_ELSEWHERE = {
    "Sweep": "tinyscale.spec.sweep",
    "load_sweep": "tinyscale.spec.sweep",
    "plot_fit": "tinyscale.reporting.plot_law",
    "read_results": "tinyscale.results.store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tinyscale' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "tinyscale.api")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""Overhead of a launch per trial: trials that train nothing, by `launch` and by a plain use of Ray.

    python benchmarks/overhead.py [TRIALS] [TRIALS OF THE PLAIN PATTERN]

The plain pattern is a Tune trial that runs a TorchTrainer with one worker. Prints wall seconds per trial of both, and
the growth of the launching process in kilobytes per trial, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console
from scale import write_many

from tinyscale.orchestration.launch import launch
from tinyscale.orchestration.session import Cluster, ray_session
from tinyscale.orchestration.summary import Summary
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.progress import Outcome


def train_nothing(*_: Any, **__: Any) -> Outcome:
    """Replaces `tinyscale.training.loop.train`."""
    return Outcome("finished", None, [], 0.0)


def resident_kilobytes() -> int:
    """Resident memory of this process, which launches."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def plain_pattern(count: int) -> float:
    """Seconds of `count` Tune trials, each of which runs a TorchTrainer with one worker that does nothing."""

    def driver(config: dict[str, Any]) -> None:
        TorchTrainer(
            lambda: ray_train.report({"loss": 0.0}),
            scaling_config=ray_train.ScalingConfig(num_workers=1),
            run_config=ray_train.RunConfig(
                name=f"plain-{config['number']}", storage_path=config["storage"], callbacks=[TuneReportCallback()]
            ),
        ).fit()

    with tempfile.TemporaryDirectory() as storage:
        began = time.perf_counter()
        tune.Tuner(
            tune.with_resources(driver, {"node:__internal_head__": 0.001}),
            param_space={"number": tune.grid_search(list(range(count))), "storage": storage},
            tune_config=tune.TuneConfig(max_concurrent_trials=int(ray.cluster_resources()["CPU"])),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        return time.perf_counter() - began


def launch_nothing(folder: Path, count: int, cluster: Cluster) -> Summary:
    """Launch `count` trials into a new folder."""
    folder.mkdir()
    results = Results(str(folder / "results"))
    plan = make_plan(load_sweep(write_many(folder, count)), results, cluster.capacity, measure=False)
    return launch(plan, results, cluster, console=Console(quiet=True), quiet=True, train=train_nothing)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    plain = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with tempfile.TemporaryDirectory() as name, ray_session(None) as cluster:
        folder = Path(name)
        launch_nothing(folder / "first", 100, cluster)  # starts the processes and imports that later launches reuse
        before = resident_kilobytes()
        launched = launch_nothing(folder / "measured", count, cluster)
        seconds, grown = launched.wall_seconds, resident_kilobytes() - before
        assert len(launched.finished) == count
        figures = {"trials": count, "seconds": round(seconds, 1), "seconds per trial": round(seconds / count, 4)}
        figures["launcher's KB per trial"] = round(grown / count, 1)
        if plain:
            each = plain_pattern(plain) / plain
            figures |= {"plain pattern, seconds per trial": round(each, 2), "ratio": round(each / (seconds / count))}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

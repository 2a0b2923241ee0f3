"""Check on this machine everything that tinyscale promises for a GPU, in one command of about ten minutes.

    python3 benchmarks/gpu_acceptance.py --out DIR [--minutes 8] [--only NAME ...] [--rehearse]

The checks run in order of importance, each in its own process with a time limit. A check that fails or hangs does not
affect the others; one for which too little time is left is not started. The table is in DIR/acceptance.md and
DIR/acceptance.json, and DIR has one log per check. Exit status: 1 if a check failed. The limits are for one H100 with
16 cores; no network is needed. `--rehearse` runs every step on the CPU with tiny budgets: this tests the program, not
the GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parent.parent
GRACE_SECONDS = 5.0  # after its limit, for a check to stop the programs that it started
LOG_BYTES = 100_000  # kept of a check's log: its end
SAVE_SECONDS = 0.5  # between checkpoints of a trial that will be killed
PEAK_TFLOPS = 989  # of an H100 in bf16, dense, from its data sheet

# Tokens per second on an H100 at 16,384 tokens per step, by code and d_model.
GOALS = {
    "eager": {64: 3e6, 128: 3e6, 256: 3e6, 512: 1.5e6},
    "recorded": {64: 12e6, 128: 7e6, 256: 4e6, 512: 1.8e6},
    "compiled": {64: 25e6, 128: 15e6, 256: 7e6, 512: 3e6},
}
# Tokens per second of many trials over those of trials one after another in eager code, by code, way and K.
GAINS = {("recorded", "fused", "16"): 12.0, ("eager", "packed", "16"): 2.5}


@dataclass(frozen=True)
class Result:
    """One row of the table. outcome: pass, FAIL, rehearsed or no time."""

    check: str
    expected: str
    seen: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.outcome:9}  {self.check}: {self.seen} (expected: {self.expected})"


def checkout_environment() -> dict[str, str]:
    """Environment variables with which Python imports this checkout, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


class Row(NamedTuple):
    """One row of gpu_packing's table. rate: tokens per second."""

    d_model: int
    copies: str
    way: str
    code: str
    rate: float
    utilisation: str


@dataclass
class Bench:
    """What a check works with: a folder, a deadline, and the programs that it started."""

    name: str
    folder: Path
    rehearse: bool
    deadline: float
    results: IO[str]
    programs: ExitStack = field(default_factory=ExitStack)

    @property
    def left(self) -> float:
        """Seconds until the check must end."""
        return max(1.0, self.deadline - time.monotonic())

    def choose(self, real: Any, tiny: Any) -> Any:
        """The value for a GPU, or the one for a rehearsal."""
        return tiny if self.rehearse else real

    def report(self, expected: str, seen: str, holds: bool, *, on_cpu: bool = True) -> None:
        """Add a row to the table. on_cpu: whether it must hold in a rehearsal too."""
        passed = "rehearsed" if self.rehearse else "pass"
        outcome = passed if holds or (self.rehearse and not on_cpu) else "FAIL"
        print(json.dumps(asdict(Result(self.name, expected, seen, outcome))), file=self.results, flush=True)

    def sweep(
        self,
        name: str,
        *,
        gpu: float | str,
        axes: Mapping[str, Sequence[Any]] | None = None,
        seeds: Sequence[int] = (0,),
        fuse: Sequence[str] = (),
        compiled: bool | str = False,
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a sweep file on synthetic text, which needs no network, as JSON, which is YAML; its path."""
        shape = {"d_model": 64, "n_layers": 4, "head_dim": 16, "context_length": 256, "positions": "rotary"}
        budget = {"tokens_budget": "2M", "batch_tokens": 8192, "lr": 3e-3, "eval_points": 3, "repeats": True}
        model, train = {**shape, **(model or {})}, {**budget, **(train or {})}
        if self.rehearse:
            model |= {"d_model": 16, "n_layers": 1, "head_dim": 8, "context_length": 64}
            train |= {"tokens_budget": "50K", "batch_tokens": 512}
        source = {"train_bytes": self.choose("8M", "300K"), "topics": 256}
        data = {"corpus": "zipf_records", "tokenizer": {"kind": "byte"}, "val_bytes": "110K", "zipf": source}
        asked = 0 if self.rehearse and gpu != "auto" else gpu
        text: dict[str, Any] = {
            "name": name,
            "base": {"data": data, "model": model, "train": train},
            "seeds": list(seeds),
            "resources": {"cpu": 1, "gpu": asked, "compile": compiled},
        }
        text |= {"axes": dict(axes)} if axes else {}
        text |= {"fuse": list(fuse)} if fuse else {}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(text, indent=1))
        return path

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a Python program of this checkout. Its output goes to the log; it is killed when the check ends."""
        program = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, env=checkout_environment(), stdout=sys.stderr, text=True
        )
        self.programs.callback(program.wait)
        self.programs.callback(program.kill)  # runs before the wait: callbacks run last in, first out
        return program

    def output(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a Python program of this checkout to its end; its result holds the output, which is also logged."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=checkout_environment(),
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            timeout=self.left,
            check=False,
        )
        print(done.stdout, file=sys.stderr, flush=True)
        return done

    def command(self, path: Path, results: Path) -> subprocess.Popen[str]:
        """Start `tinyscale launch`."""
        return self.start("-m", "tinyscale", "launch", "-y", path, "--results", results)

    def launch(self, path: Path, results: Path) -> subprocess.Popen[str]:
        """Start a launch with frequent checkpoints and without a forecast, which would take time to measure."""
        return self.start(__file__, "--launch", path, results)

    def launches(self, *swept: tuple[Path, Path]) -> list[int]:
        """Launch sweeps into folders at the same time; their exit statuses.

        In a rehearsal they run one after another, because a few cores cannot start several Ray instances.
        """
        programs = []
        for path, results in swept:
            programs.append(self.launch(path, results))
            if self.rehearse:
                self.finish(*programs)
        return self.finish(*programs)

    def finish(self, *programs: subprocess.Popen[str]) -> list[int]:
        """Wait for the programs; their exit statuses."""
        return [program.wait(timeout=self.left) for program in programs]


# The process of `--launch`.


def launch_here(path: str, results: str) -> None:
    """Launch a sweep through the library and write its summary to RESULTS.json."""
    from rich.console import Console

    from tinyscale.orchestration.launch import launch
    from tinyscale.orchestration.session import ray_session
    from tinyscale.planning.make_plan import make_plan
    from tinyscale.results.store import Results
    from tinyscale.spec.sweep import load_sweep

    store = Results(results)
    with ray_session(None) as cluster:
        plan = make_plan(load_sweep(Path(path)), store, cluster.capacity, measure=False)
        summary = launch(plan, store, cluster, console=Console(), quiet=True, train=train_and_save_often)
    summary_json = {
        "states": sorted(summary.states.values()),
        "reasons": list(summary.reasons.values()),
        "processes": sorted({timing.process for timing in summary.timings}),
        "trainings": len(summary.timings),
        "seconds": summary.train_seconds,
    }
    Path(f"{results}.json").write_text(json.dumps(summary_json))


def train_and_save_often(*arguments: Any, **options: Any) -> Any:
    """`tinyscale.training.loop.train` with a checkpoint every SAVE_SECONDS."""
    import tinyscale.training.loop as training

    training.CHECKPOINT_SECONDS = SAVE_SECONDS
    return training.train(*arguments, **options)


def summary_of(results: Path) -> dict[str, Any]:
    """The summary that `launch_here` wrote."""
    found: dict[str, Any] = json.loads(Path(f"{results}.json").read_text())
    return found


def points(results: Path) -> Any:
    """All points in a results folder, as a frame sorted by trial and tokens."""
    from tinyscale.results.store import read_results

    frame = read_results(str(results))
    return frame[frame["val_loss"].notna()].sort_values(["trial", "tokens"], ignore_index=True)


def last_points(results: Path) -> Any:
    """The last point of each trial, indexed by identity."""
    return points(results).groupby("trial").tail(1).set_index("trial")


# The checks


def environment(bench: Bench) -> None:
    """The machine, and whether `tinyscale doctor` finds no failure."""
    import torch

    from tinyscale.machine import driver_version

    version = f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    there, found = torch.cuda.is_available(), "no GPU"
    if there:
        properties = torch.cuda.get_device_properties(0)
        found = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, driver {driver_version()}"
    bench.report("torch for CUDA sees a GPU", f"{version}; {found}; {os.cpu_count()} cores", there, on_cpu=False)
    doctor = bench.output("-m", "tinyscale", "doctor", "--results", bench.folder / "results")
    concerns = [line for line in doctor.stdout.splitlines() if line.startswith(("warn", "fail"))]
    bench.report("the doctor finds nothing that fails", "; ".join(concerns) or "all ok", doctor.returncode == 0)


def quarters(bench: Bench) -> None:
    """Four trials under Ray, each on a quarter of the GPU, and the same sweep on the CPU."""
    from tinyscale.results.store import Results

    shape: dict[str, Any] = {
        "axes": {"model.d_model": bench.choose([16, 32, 48, 64], [8, 16, 24, 32])},
        "model": {"n_layers": 2, "context_length": 64},
        "train": {"tokens_budget": "4M", "batch_tokens": 2048},  # long enough that all four run at once
    }
    on_gpu, on_cpu = bench.folder / "gpu", bench.folder / "cpu"
    programs = [bench.command(bench.sweep("quarters", gpu=0.25, **shape), on_gpu)]
    if not bench.rehearse:  # there, both launches are the same
        programs.append(bench.command(bench.sweep("cores", gpu=0, **shape), on_cpu))
    processes: set[int] = set()
    while programs[0].poll() is None and bench.left > 1:
        processes |= set(holders(on_gpu))
        time.sleep(0.05)
    bench.report("both launches succeed", f"exit {bench.finish(*programs)}", not any(bench.finish(*programs)))
    frame, trials = points(on_gpu), last_points(on_gpu)
    bench.report(
        "4 trials finished, in 4 processes",
        f"{(trials['state'] == 'finished').sum()} finished, in {len(processes)} processes",
        list(trials["state"]) == ["finished"] * 4 and len(processes) == bench.choose(4, len(processes)),
    )
    devices = {Results(str(on_gpu)).read_trial(name)[1]["provenance"].get("device") for name in trials.index}
    bench.report("the results name the GPU", str(sorted(map(str, devices))), None not in devices, on_cpu=False)
    same = points(on_gpu if bench.rehearse else on_cpu)
    worst = float((frame["val_loss"] / same["val_loss"] - 1).abs().max())
    agrees = list(frame["trial"]) == list(same["trial"]) and worst < 2e-2
    bench.report(
        "losses as on the CPU, within 2e-2 at each point", f"at most {worst:.1e} over {len(frame)} points", agrees
    )


def holders(results: Path) -> Iterator[int]:
    """Ids of the processes that are training a trial now, from the trials' leases."""
    for lease in (results / "leases").glob("*.json"):
        try:
            yield json.loads(lease.read_text())["pid"]
        except (OSError, ValueError, KeyError):  # it is being released
            continue


def compiled(bench: Bench) -> None:
    """Compiled trials one after another in one process."""
    results = bench.folder / "results"
    path = bench.sweep("compiled", gpu=1, seeds=range(bench.choose(3, 2)), compiled=True, train={"precision": "bf16"})
    if bench.rehearse:  # one trial takes all cores, so that there is one process
        path.write_text(path.read_text().replace('"cpu": 1', f'"cpu": {len(os.sched_getaffinity(0))}'))
    code = bench.launches((path, results))
    found = summary_of(results)
    seen = f"exit {code}, {', '.join(found['states'])}, in {len(found['processes'])} process; {found['seconds']:.0f} s"
    good = set(found["states"]) == {"finished"} and len(found["processes"]) == 1
    bench.report("compiled trials finish one after another in 1 process", "; ".join([seen, *found["reasons"]]), good)


def memory(bench: Bench) -> None:
    """A trial that needs more than its share of the GPU's memory, and two small ones at the same time."""
    results, share, large = bench.folder / "results", 1 / 16, bench.choose(768, 32)
    path = bench.sweep(
        "memory",
        gpu=share,
        axes={"model.d_model": [bench.choose(32, 8), bench.choose(64, 16), large]},
        train={"tokens_budget": "1M", "batch_tokens": 65536},
    )
    code = bench.launches((path, results))
    found, trials = summary_of(results), last_points(results)
    shares = dict(zip(trials["d_model"], trials["gpu"], strict=True))
    alone = found["trainings"] == 4 and all((gpu > share) == (width == large) for width, gpu in shares.items())
    bench.report(
        f"d_model {large} runs out of memory and is trained again on a larger share, the others not",
        f"exit {code}, {found['trainings']} trainings of 3 trials; share by d_model {shares}",
        alone,
        on_cpu=False,
    )
    finished = list(trials["state"]) == ["finished"] * 3
    bench.report("all 3 finished", "; ".join([*trials["state"], *found["reasons"]]), finished)


def batched(bench: Bench) -> None:
    """Four seeds as one batched model, and each alone; in fp32, as in bf16 rounding differences grow with the steps."""
    together, alone = bench.folder / "together", bench.folder / "alone"
    shape: dict[str, Any] = {"gpu": 0.25, "seeds": (0, 1, 2, 3), "train": {"precision": "fp32"}}
    codes = bench.launches(
        (bench.sweep("together", fuse=["seed"], **shape), together), (bench.sweep("alone", **shape), alone)
    )
    ours, theirs = last_points(together), last_points(alone)
    bench.report("4 trials batched", f"exit {codes}, fused {list(ours['fused'])}", list(ours["fused"]) == [4] * 4)
    worst = float((ours["val_loss"] - theirs["val_loss"]).abs().max())
    bench.report("final losses as alone, within 5e-3", f"at most {worst:.1e}", len(theirs) == 4 and worst < 5e-3)


def killed(bench: Bench) -> None:
    """A launcher that is killed and a launch that resumes from the checkpoint, against two undisturbed launches."""
    path = bench.sweep("killed", gpu=0.25, train={"tokens_budget": "32M", "batch_tokens": 4096})
    if bench.rehearse:
        path.write_text(path.read_text().replace('"50K"', '"400K"'))
    once, twice, disturbed = (bench.folder / name for name in ("once", bench.choose("twice", "once"), "disturbed"))
    victim = bench.launch(path, disturbed)
    while not saved_after_a_point(disturbed):
        if victim.poll() is not None or bench.left <= 1:
            bench.report("killed after its first point and a checkpoint", "the launch ended before", False)
            return
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    time.sleep(1.0)  # the trial's process ends shortly after its launcher
    before = points(disturbed)
    code = bench.launches((path, disturbed))
    after = points(disturbed)
    resumed = len(after) > len(before) and float(before["wall_seconds"][0]) == float(after["wall_seconds"][0])
    seen = f"exit {code}, {len(before)} points before the kill, {len(after)} after, the first one kept: {resumed}"
    bench.report("resumes from its checkpoint and finishes", seen, resumed and code == [0])
    bench.launches(*((path, results) for results in dict.fromkeys((once, twice))))
    losses = [float(last_points(results)["val_loss"].iloc[0]) for results in (once, twice, disturbed)]
    bench.report("run-to-run spread of the same trial under 2e-2", *near(losses[0], losses[1]))
    bench.report("final loss as undisturbed, within 2e-2", *near(losses[0], losses[2]))


def saved_after_a_point(results: Path) -> bool:
    """Whether there is a checkpoint that is newer than the trial's first point."""
    try:
        (point,) = (results / "trials").glob("*.parquet")
        (checkpoint,) = (results / "checkpoints").glob("*/resume.pt")
        return len(points(results)) > 0 and checkpoint.stat().st_mtime > point.stat().st_mtime
    except (ValueError, OSError):  # not yet
        return False


def near(one: float, other: float) -> tuple[str, bool]:
    """Two losses and their difference as text, and whether they differ by less than 2e-2."""
    return f"{one:.5f} and {other:.5f}: {other - one:+.1e}", abs(other - one) < 2e-2


def speed(bench: Bench, *codes: str) -> None:
    """Tokens per second and MFU of one trial at four widths. codes: eager and recorded by default."""
    shape = ["--copies", "--head-dim", "16", "--vocab-size", "1024", "--batch-tokens", "16384", "--seconds", "1.5"]
    for row in packing(bench, *shape, "--code", *(codes or bench.choose(["eager", "recorded"], ["eager"]))):
        goal = GOALS[row.code].get(row.d_model, 0.0)
        bench.report(
            f"d_model {row.d_model} {row.code}: at least {goal / 1e6:g}M tokens/s",
            f"{row.rate / 1e6:.3g}M tokens/s, MFU {row.utilisation} %",
            row.rate >= goal,
            on_cpu=False,
        )


def compiled_speed(bench: Bench) -> None:
    """`speed` with compiled code; compiling takes half a minute per width."""
    speed(bench, "compiled")


def many(bench: Bench) -> None:
    """K trials at once, packed and batched, against trials one after another in eager code."""
    shape = ["--head-dim", "16", "--vocab-size", "1024", "--batch-tokens", "4096", "--seconds", "1.5"]
    sizes = bench.choose(["--widths", "64", "--copies", "4", "16", "--code", "eager", "recorded"], ["--code", "eager"])
    base = None
    for row in packing(bench, *shape, *sizes):
        base = base or row.rate  # the first row: eager, alone
        goal = GAINS.get((row.code, row.way, row.copies), 0.0)
        wanted = f"at least {goal:g} times" if goal else "no goal: times"
        bench.report(
            f"K = {row.copies} {row.way}, {row.code}: {wanted} one after another, eager",
            f"{row.rate / base:.2f} times, {row.rate / 1e6:.3g}M tokens/s",
            row.rate >= goal * base,
            on_cpu=False,
        )


def packing(bench: Bench, *options: str) -> Iterator[Row]:
    """Run gpu_packing and yield its rows as it prints them."""
    device = bench.choose(["--peak-tflops", str(PEAK_TFLOPS)], ["--device", "cpu", "--quick"])
    program = subprocess.Popen(
        [sys.executable, ROOT / "benchmarks" / "gpu_packing.py", *device, *options],
        cwd=ROOT,
        env=checkout_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    bench.programs.callback(program.wait)
    bench.programs.callback(program.kill)
    assert program.stdout is not None
    for line in program.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        if cells := re.match(r"\| (\d+) \| (\d+) \| (\w+) \| (\w+) \| ([\d,]+) \| (\S+) \|", line):
            width, copies, way, code, rate, used = cells.groups()
            yield Row(int(width), copies, way, code, float(rate.replace(",", "")), used)
    assert program.wait() == 0, "gpu_packing ended early"


def precisions(bench: Bench) -> None:
    """One trial in each precision."""
    results = bench.folder / "results"
    names = bench.choose(["fp32", "bf16", "fp16"], ["fp32", "bf16"])
    path = bench.sweep("precisions", gpu=0.25, axes={"train.precision": names})
    code = bench.launches((path, results))
    trials = last_points(results)
    losses = {row.precision: round(float(row.val_loss), 4) for row in trials.itertuples()}
    good = list(trials["state"]) == ["finished"] * len(names) and max(losses.values()) - min(losses.values()) < 3e-2
    bench.report(f"{', '.join(names)} finish, losses within 3e-2", f"exit {code}, {losses}", good)


def automatic(bench: Bench) -> None:
    """The values that `auto` resolves to, and the forecast of the seconds against the seconds taken."""
    results = bench.folder / "results"
    path = bench.sweep(
        "automatic",
        gpu="auto",
        compiled="auto",
        seeds=range(bench.choose(16, 4)),  # as many as run at once, which the forecast assumes
        model={"d_model": 128},
        train={"precision": "auto", "tokens_budget": "16M", "batch_tokens": 16384},
    )
    planned = bench.output("-m", "tinyscale", "plan", path, "--json", "--results", results)
    plan = json.loads(planned.stdout)
    known = plan["seconds"] is not None
    notes = "; ".join([f"{plan['at_once']} at once", *plan["notes"]])
    bench.report("the plan names a share and a time", f"{plan['seconds'] or 0:.0f} s; {notes}", known)
    (code,) = bench.finish(bench.command(path, results))
    (record,) = (json.loads(path.read_text()) for path in (results / "launches").glob("*.json"))
    trials = sum(each["seconds"] or 0.0 for each in plan["trials"])
    for what, expected, took in (
        ("launch", record["expected_seconds"], record["wall_seconds"]),
        ("trials", trials, record["train_seconds"]),
    ):
        ratio = (expected or 0.0) / max(took, 1e-9)
        seen = f"exit {code}, {expected or 0:.1f} s expected, {took:.1f} s taken: {ratio:.2f}"
        bench.report(f"forecast of the {what} within 1.3 times", seen, 1 / 1.3 < ratio < 1.3, on_cpu=False)


def tests(bench: Bench) -> None:
    """tests/test_gpu.py, without pyproject's pytest options, which need plugins that the machine may lack."""
    path, settings = ROOT / "tests" / "test_gpu.py", bench.folder / "pytest.ini"
    lacking = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if lacking or not path.exists():
        why = f"{' and '.join(lacking)} not installed" if lacking else f"{path.name} is missing"
        bench.report("tests/test_gpu.py passes", why, False, on_cpu=False)
        return
    settings.write_text(f"[pytest]\npythonpath = {ROOT / 'tests'}\n")
    options = ["-q", "-p", "no:cacheprovider", "-c", settings, f"--rootdir={ROOT}", "-rfEs"]
    done = bench.output("-m", "pytest", *options, *bench.choose([], ["--collect-only"]), path)
    last = done.stdout.strip().splitlines()[-1:]
    bench.report("tests/test_gpu.py passes", " ".join(last), done.returncode == 0)


class Check(NamedTuple):
    """usual: the seconds that the check takes; with less time left it is not started. limit: seconds at most."""

    run: Callable[[Bench], None]
    usual: int
    limit: int


CHECKS = {
    "environment": Check(environment, 15, 60),
    "quarters": Check(quarters, 80, 150),
    "compiled": Check(compiled, 70, 120),
    "memory": Check(memory, 60, 90),
    "batched": Check(batched, 30, 90),
    "killed": Check(killed, 130, 180),
    "speed": Check(speed, 40, 180),
    "many": Check(many, 90, 120),
    "precisions": Check(precisions, 35, 90),
    "automatic": Check(automatic, 90, 200),
    "tests": Check(tests, 55, 120),
    "compiled_speed": Check(compiled_speed, 60, 200),
}


def run_check(name: str, options: argparse.Namespace, left: float) -> Iterator[Result]:
    """Run one check in its own process and yield its results as they come."""
    check = CHECKS[name]
    if left < check.usual:
        yield Result(name, f"{check.usual} s", f"{max(0, int(left))} s were left", "no time")
        return
    limit = min(check.limit * (3 if options.rehearse else 1), left)
    command = [sys.executable, __file__, "--out", options.out, "--check", name, "--seconds", str(limit)]
    log = Path(options.out) / f"{name}.log"
    with (
        log.open("w") as written,
        subprocess.Popen(
            command + ["--rehearse"] * options.rehearse,
            env=checkout_environment(),
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        ) as program,
    ):
        timer = threading.Timer(limit + GRACE_SECONDS, program.kill)
        timer.start()
        assert program.stdout is not None
        for line in program.stdout:
            yield Result(**json.loads(line))
        code = program.wait()
        timer.cancel()
    text = log.read_bytes()[-LOG_BYTES:]
    log.write_bytes(text)
    if code:
        lines = text.decode(errors="replace").strip().splitlines()
        yield Result(name, "the check ends", f"exit {code}; {lines[-1][:200] if lines else 'no message'}", "FAIL")


def work(options: argparse.Namespace) -> None:
    """Be the process of one check. Only results go to its standard output; everything else goes to the log."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(options.check, Path(folder), options.rehearse, deadline, results)
        with bench.programs:
            CHECKS[options.check].run(bench)


def write(folder: Path, results: Sequence[Result]) -> str:
    """Write the table to the folder as Markdown and JSON; returns the Markdown."""
    names = ("check", "expected", "seen", "pass")
    lines = [f"| {' | '.join(names)} |", "|---|---|---|---|"]
    for each in results:
        cells = [each.check, each.expected, each.seen, each.outcome]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    table = "\n".join(lines) + "\n"
    (folder / "acceptance.md").write_text(table)
    (folder / "acceptance.json").write_text(json.dumps([asdict(each) for each in results], indent=1))
    return table


def main() -> None:
    """Run the checks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder for the table and the logs")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all checks together")
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(CHECKS), metavar="NAME,...")
    parser.add_argument("--rehearse", action="store_true", help="every step, small, on the CPU")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--launch", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        launch_here(*options.launch)
        return
    if options.check:
        work(options)
        return
    if unknown := sorted(set(options.only) - set(CHECKS)):
        parser.error(f"--only {','.join(unknown)}: the checks are {', '.join(CHECKS)}")
    if not options.out:
        parser.error("--out DIR is needed")
    folder, ends = Path(options.out), time.monotonic() + 60 * options.minutes
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in (name for name in CHECKS if name in options.only):
        began = time.monotonic()
        for result in run_check(name, options, ends - began):
            results.append(result)
            print(result, flush=True)
        print(f"{'':9}  {name} took {time.monotonic() - began:.0f} s", flush=True)
        table = write(folder, results)
    print(f"\n{table}", flush=True)
    sys.exit(any(result.outcome == "FAIL" for result in results))


if __name__ == "__main__":
    main()

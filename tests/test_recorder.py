"""What becomes of an exception in a trial on a GPU; stand-ins say what CUDA would."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.launches import RAY_WARNS
from helpers.trials import known_trial
from tinyscale.errors import UnusableError, lack_of_memory
from tinyscale.orchestration import recorder as recorder_module
from tinyscale.orchestration.assignment import LaunchSettings
from tinyscale.orchestration.recorder import Recorder, Recorders
from tinyscale.results import leases
from tinyscale.results.leases import Lease
from tinyscale.results.store import Results
from tinyscale.training.progress import Outcome

pytestmark = RAY_WARNS

STICKS = "CUDA error: an illegal memory access was encountered"
GPU = SimpleNamespace(name="a GPU", total_memory=8 * 2**30)


@pytest.fixture
def recorders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorders:
    """Of one trial on a quarter of a GPU of 8 GiB; what they report to Tune is kept in `reported_to_tune`."""
    trial, reported = known_trial(resources={"gpu": 0.25}), []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2**30)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(recorder_module, "driver_version", lambda: "580.1")
    monkeypatch.setattr(Recorder, "report", lambda _, metrics: reported.append(metrics))
    settings = LaunchSettings("tiny", str(tmp_path), {"commit": "c"}, True, "")
    lease = Lease(Results(str(tmp_path)).leases, trial.identity)
    assert lease.claim()
    made = Recorders([Recorder(trial, settings, lease, 0.0)])
    made.reported_to_tune = reported
    return made


def written(recorders: Recorders) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trial's last row, and its provenance."""
    recorder = recorders.first
    rows, metadata = recorder.results.read_trial(recorder.trial.identity)
    return rows[-1], metadata["provenance"]


def test_an_error_that_leaves_the_gpu_usable_ends_its_trial_and_the_process_goes_on(recorders: Any) -> None:
    with recorders:
        raise ValueError("no such thing")
    row, provenance = written(recorders)
    assert (row["state"], row["reason"]) == ("failed", "ValueError: no such thing")
    assert [each["state"] for each in recorders.reported_to_tune] == ["failed"]
    assert provenance["commit"] == "c"
    assert {name: provenance[name] for name in ("device", "device_bytes", "driver")} == {
        "device": "a GPU", "device_bytes": 8 * 2**30, "driver": "580.1",
    }  # fmt: skip


def test_an_error_after_which_the_gpu_fails_each_call_leaves_the_process_for_ray_to_begin_a_new_one(
    recorders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise torch.AcceleratorError(STICKS)

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"), recorders:
        raise RuntimeError(STICKS)
    row, _ = written(recorders)
    assert (row["state"], row["reason"]) == ("failed", f"RuntimeError: {STICKS}")
    assert recorders.reported_to_tune == [], "Tune has not heard of an end, and places the trial again"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_that_runs_out_in_any_words_asks_for_a_larger_share(
    recorders: Any, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, wrapped: bool
) -> None:
    with recorders:
        try:
            raise error
        except RuntimeError as lack:
            if not wrapped:
                raise
            raise RuntimeError("the step cannot be compiled") from lack
    (reported,) = recorders.reported_to_tune
    assert reported["would_do"] == 0.5
    assert reported["reason"].startswith("out of memory on 0.25 of a GPU of 8.0 GiB at a peak of 1.00 GiB")


def test_other_errors_are_no_lack_of_a_gpus_memory() -> None:
    assert lack_of_memory(ValueError("out of memory")) is None
    assert lack_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) is None


def test_what_tinyscale_warns_of_in_a_worker_reaches_the_user_with_the_next_report(
    recorders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.undo()
    monkeypatch.setattr(recorder_module.tune, "report", sent.append)
    with recorders:
        logging.getLogger("tinyscale.training.loop").warning("%s: damaged", "resume.pt")
        recorders.first.report({"tokens": 1})
        recorders.first.report({"tokens": 2})
    logging.getLogger("tinyscale.training.loop").warning("after its end")
    recorders.first.report({"tokens": 3})
    assert sent == [{"tokens": 1, "note": "resume.pt: damaged"}, {"tokens": 2}, {"tokens": 3}]


def test_where_rows_cannot_be_written_the_launcher_hears_why_and_the_trial_has_not_failed(recorders: Any) -> None:
    with recorders:
        raise UnusableError("results: cannot be used (No space left on device)")
    assert recorders.reported_to_tune == [{"refused": "results: cannot be used (No space left on device)"}]
    assert recorders.first.results.state(recorders.first.trial.identity) is None


def taken_over(recorders: Recorders) -> Results:
    """The recorders' trial, which another launch has taken over and finished."""
    recorder = recorders.first
    results = Results(recorder.results.location)
    other = Lease(results.leases, recorder.trial.identity)
    results.leases.delete(f"{recorder.trial.identity}.json")  # as if it had been silent
    assert other.claim()
    results.write_trial(recorder.trial, [{"step": 1, "tokens": 1, "val_loss": 2.0}], "finished", None, {})
    return results


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("what", ["a point", "an end", "a checkpoint", "an error", "a look at the lease"])
def test_a_process_that_lost_its_lease_writes_nothing_and_tells_tune_that_the_trial_is_elsewhere(
    recorders: Any, monkeypatch: pytest.MonkeyPatch, what: str, released: bool
) -> None:
    recorder = recorders.first
    results = taken_over(recorders)
    if released:
        results.leases.delete(f"{recorder.trial.identity}.json")
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(recorder_module, "STOP_POLL_SECONDS", 0.0)
    content = results.trials.read(f"{recorder.trial.identity}.parquet")
    with recorders:
        if what == "a point":
            recorder.write("running", None)
        elif what == "an end":
            recorder.finish(Outcome("finished", None, [], 1.0))
        elif what == "a checkpoint":
            recorder.checkpoints.write("resume.pt", b"state")
        elif what == "an error":
            raise ValueError("no such thing")
        else:
            recorders.should_stop(1)
    assert results.trials.read(f"{recorder.trial.identity}.parquet") == content
    assert recorder.checkpoints.names() == []
    assert [(each["trial"], each["state"]) for each in recorders.reported_to_tune[-1:]] == [
        (recorder.trial.identity, "elsewhere")
    ]


def test_a_trial_is_out_of_patience_when_the_last_evaluations_on_its_trunk_were_no_better(recorders: Any) -> None:
    recorder = recorders.first
    recorder.settings = replace(recorder.settings, patience=2)

    def out_after(*losses: float, decayed: bool = False) -> bool:
        recorder.points = [SimpleNamespace(val_loss=loss, decayed=decayed and loss < 2) for loss in losses]
        return bool(recorder.is_out_of_patience)

    assert not out_after(4.0, 3.0)
    assert out_after(3.0, 3.1, 3.0), "as good is no better"
    assert not out_after(3.0, 3.1, 2.9)
    assert not out_after(4.0, 1.5, 3.0, 3.1, 2.9, decayed=True), "the end of a branch is no measure of the trunk"
    recorder.settings = replace(recorder.settings, patience=None)
    assert not out_after(3.0, 3.1, 3.2, 3.3)

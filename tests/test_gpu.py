"""What a GPU must do like a CPU, claimed of every device that is here; and the steps that it replays."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.trials import make_trial, trial_config
from tinyscale.spec.config import Resources
from tinyscale.spec.data_config import DataConfig
from tinyscale.storage import Folder
from tinyscale.training import loop as train_module
from tinyscale.training import recorded as recorded_module
from tinyscale.training.batched import train_batched
from tinyscale.training.batches import TrainBatches, as_tensor, gather, inputs_and_targets
from tinyscale.training.device import choose_device
from tinyscale.training.loop import RESUME, WEIGHTS, Run, train
from tinyscale.training.progress import Outcome
from tinyscale.training.recorded import AHEAD, RecordedStep

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"))
devices = pytest.mark.parametrize("device", ["cpu", CUDA])
LONG: dict[str, Any] = {"tokens_budget": 90 * 256, "repeats": True}  # over an epoch's end, and over two tables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU reads its steps from tables and from text on the device, as a GPU does."""
    monkeypatch.setitem(AHEAD, "cpu", 32)
    on_cpu = lambda run: as_tensor(run.batches.stream, run.trial.vocab_size)  # noqa: E731
    if not torch.cuda.is_available():
        monkeypatch.setattr(train_module, "text_on_device", on_cpu)
    yield


def config(data: DataConfig, device: str, **changes: Any) -> Any:
    return trial_config(data, resources={"gpu": 1 if device == "cuda" else 0}, **changes)


def losses(outcome: Outcome) -> list[tuple[float, float]]:
    return [(point.train_loss, point.val_loss) for point in outcome.points]


def trained(data: DataConfig, device: str = "cpu", folder: Path | None = None, **changes: Any) -> Outcome:
    stop = changes.pop("should_stop", lambda _: False)
    made = make_trial(config(data, device, **changes))
    return train(*made, lambda _: None, checkpoints=folder and Folder.at(folder), should_stop=stop)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(Folder.at(folder).read(WEIGHTS)), weights_only=True)


# the same work from tables


CASES: list[dict[str, Any]] = [
    LONG,
    {"positions": "rotary", "parametrization": "mup", **LONG},
    {"positions": "rotary", "parametrization": "completep", "n_layers": 3, **LONG},
    {"positions": "rotary", "n_kv_heads": 1, "qk_norm": True, **LONG},
    {"optimizer": "lion", "lr": 1e-3},
    {"optimizer": "muon"},
    {"schedule": "wsd", "branches": [0.25, 0.5], "warmup_fraction": 0.1, **LONG},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_steps_from_tables_have_the_losses_and_weights_of_steps_one_by_one(
    tiny_corpus: DataConfig, tmp_path: Path, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    one_by_one = trained(tiny_corpus, folder=tmp_path / "one", **changes)
    request.getfixturevalue("tables")
    together = trained(tiny_corpus, folder=tmp_path / "tables", **changes)
    assert losses(together) == losses(one_by_one)
    here, there = weights(tmp_path / "tables"), weights(tmp_path / "one")
    assert all(torch.equal(here[name], there[name]) for name in there)
    trained(tiny_corpus, folder=tmp_path / "resumed", should_stop=lambda step: step == 15, **changes)
    assert losses(trained(tiny_corpus, folder=tmp_path / "resumed", **changes)) == losses(one_by_one)


def batched(data: DataConfig, device: str, **changes: Any) -> list[Outcome]:
    made = [make_trial(config(data, device, seed=seed, lr=rate, **changes)) for seed, rate in enumerate((1e-2, 3e-3))]
    ended: dict[int, Outcome] = {}
    trials = [trial for trial, _ in made]
    train_batched(trials, made[0][1], lambda *_: None, ended.__setitem__, checkpoints=[None] * len(made))
    return [ended[k] for k in range(len(made))]


def test_batched_steps_from_tables_have_the_losses_of_steps_one_by_one(
    tiny_corpus: DataConfig, request: pytest.FixtureRequest
) -> None:
    one_by_one = [losses(outcome) for outcome in batched(tiny_corpus, "cpu", **LONG)]
    request.getfixturevalue("tables")
    assert [losses(outcome) for outcome in batched(tiny_corpus, "cpu", **LONG)] == one_by_one


@devices
@pytest.mark.parametrize("vocab_size", [1001, 40_000])
def test_windows_gathered_on_the_device_are_the_batch(device: str, vocab_size: int) -> None:
    stream = np.random.default_rng(0).integers(vocab_size, size=1001).astype(np.uint16)
    batches = TrainBatches(stream, 16, 8, seed=0)
    text = as_tensor(stream, vocab_size).to(device)
    for step in range(20):  # 160 rows of 62 blocks: over the ends of epochs
        windows = gather(text, torch.from_numpy(batches.blocks(step)).to(device), 16)
        for here, there in zip(inputs_and_targets(windows), batches.batch(step), strict=True):
            assert torch.equal(here.cpu(), there)


def test_a_run_is_freed_as_soon_as_nobody_needs_it(tiny_corpus: DataConfig) -> None:
    """The next trial of the process needs its memory on the GPU, and collects no garbage first."""
    run = Run(*make_trial(trial_config(tiny_corpus)), None)
    run.update()
    gone = weakref.ref(run.steps)
    gc.disable()
    try:
        del run
        assert gone() is None
    finally:
        gc.enable()


# recording


def test_a_step_that_cannot_be_recorded_goes_on_eagerly_and_says_so(
    tiny_corpus: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = losses(trained(tiny_corpus))
    monkeypatch.setattr(RecordedStep, "_step_on_side_stream", RecordedStep._step)
    monkeypatch.setattr(RecordedStep, "_capture", fails(RuntimeError("operation not permitted\nwhen capturing")))
    monkeypatch.setattr(train_module, "can_record", lambda _: True)
    with pytest.warns(UserWarning, match="cannot be recorded and runs eagerly: operation not permitted$") as warned:
        assert losses(trained(tiny_corpus)) == expected
    assert len(warned) == 1
    monkeypatch.setattr(RecordedStep, "_capture", fails(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        trained(tiny_corpus)


def fails(error: Exception) -> Any:
    def capture(self: RecordedStep) -> None:
        raise error

    return capture


def test_a_cpu_trial_says_nothing_of_recording(tiny_corpus: DataConfig) -> None:
    assert {point.recorded for point in trained(tiny_corpus).points} == {None}


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize(
    ("changes", "within"),
    [
        ({"precision": "fp32"}, 1e-5),
        ({"precision": "bf16", "positions": "rotary"}, 1e-3),
        ({"optimizer": "lion", "lr": 1e-3}, 1e-4),
        ({"optimizer": "muon", "precision": "bf16"}, 5e-3),
    ],
    ids=str,
)
def test_recorded_steps_have_the_losses_of_eager_ones(
    tiny_corpus: DataConfig, device: str, changes: dict[str, Any], within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = trained(tiny_corpus, device, **LONG, **changes)
    assert recorded.points[-1].recorded
    monkeypatch.setattr(recorded_module, "EAGER_STEPS", 10**9)
    eager = trained(tiny_corpus, device, **LONG, **changes)
    assert eager.points[-1].recorded is False
    for here, there in zip(losses(recorded), losses(eager), strict=True):
        assert here == pytest.approx(there, rel=within)


@devices
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batched_trials_have_the_losses_of_trials_trained_alone(
    tiny_corpus: DataConfig, device: str, precision: str
) -> None:
    for seed, outcome in enumerate(batched(tiny_corpus, device, precision=precision)):
        alone = trained(tiny_corpus, device, seed=seed, lr=(1e-2, 3e-3)[seed], precision=precision)
        assert outcome.points[-1].recorded == alone.points[-1].recorded == (True if device == "cuda" else None)
        assert outcome.points[-1].val_loss == pytest.approx(alone.points[-1].val_loss, abs=5e-3)


@devices
def test_an_interrupted_trial_goes_on_and_its_checkpoint_is_one_of_any_device(
    tiny_corpus: DataConfig, tmp_path: Path, device: str
) -> None:
    once, again = (losses(trained(tiny_corpus, device, **LONG))[-1][1] for _ in range(2))
    trained(tiny_corpus, device, tmp_path, should_stop=lambda step: step == 37, **LONG)
    state = torch.load(tmp_path / RESUME, map_location="cpu", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        assert isinstance(group["lr"], float)
        assert group["capturable"] is False
    resumed = losses(trained(tiny_corpus, device, tmp_path, **LONG))[-1][1]
    assert resumed == pytest.approx(once, abs=max(10 * abs(once - again), 0 if device == "cpu" else 1e-4))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_trials_in_threads_of_one_process_are_all_recorded(
    tiny_corpus: DataConfig, device: str, compiled: bool
) -> None:
    """Each trial of a process that Ray Tune uses again has a thread of its own."""
    points: list[Any] = []

    def one(seed: int) -> None:
        resources = {"gpu": 1, "compile": compiled}
        made = make_trial(trial_config(tiny_corpus, seed=seed, resources=resources))
        points.append(train(*made, lambda _: None).points[-1])

    for seed in (0, 1):
        thread = threading.Thread(target=one, args=(seed,))
        thread.start()
        thread.join()
    assert [point.recorded for point in points] == [True, True]


@pytest.mark.parametrize("device", [CUDA])
def test_text_that_stays_on_the_host_gives_the_same_losses(
    tiny_corpus: DataConfig, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device = losses(trained(tiny_corpus, device, **LONG))
    monkeypatch.setattr(train_module, "TEXT_SHARE", 0.0)
    for here, there in zip(losses(trained(tiny_corpus, device, **LONG)), on_device, strict=True):
        assert here == pytest.approx(there, rel=1e-4)


# the device


def test_a_trial_without_a_gpu_is_on_the_cpu() -> None:
    assert choose_device(Resources()) == torch.device("cpu")


@pytest.mark.parametrize("device", [CUDA])
def test_a_share_of_a_gpu_caps_the_memory(tiny_corpus: DataConfig, device: str) -> None:
    Run(*make_trial(trial_config(tiny_corpus, resources={"gpu": 1 / 64})), None)
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total // 32, dtype=torch.uint8, device=device)

"""The training loop: a source whose entropy is known, numbers that repeat bit for bit, interruption, divergence."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.markov import MarkovChain
from helpers.trials import make_trial, trial_config
from tinyscale.data import TokenizedCorpus
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training import evaluate as evaluate_module
from tinyscale.training import loop as train_module
from tinyscale.training.batches import TrainBatches, val_windows
from tinyscale.training.checkpoint import of_bytes
from tinyscale.training.evaluate import Evaluation, clustered_mean, token_losses
from tinyscale.training.loop import RESUME, WEIGHTS, Run, eval_steps, train, weights_at
from tinyscale.training.model import GPT
from tinyscale.training.optim import lr_at
from tinyscale.training.progress import Outcome, Point
from tinyscale.training.recorded import AHEAD


def losses(outcome: Outcome) -> list[tuple[int, float, float, float]]:
    """All that must repeat bit for bit."""
    return [(point.step, point.val_loss, point.val_loss_se, point.train_loss) for point in outcome.points]


def run(config: TrialConfig, **options: Any) -> Outcome:
    trial, corpus = make_trial(config)
    return train(trial, corpus, lambda _: None, **options)


# what is learned


def nats_by_token(trial: Trial, corpus: TokenizedCorpus, weights: bytes) -> np.ndarray:
    """The trained model's loss on each validation token, in order."""
    import io

    gpt = GPT(trial.config.model, trial.vocab_size)
    gpt.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    inputs, targets, _ = val_windows(*corpus.val(), trial.config.model.context_length, corpus.eot)
    with torch.inference_mode():
        nats = F.cross_entropy(gpt(inputs)[0].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return nats[targets.flatten() != -100].double().numpy()


def test_a_source_of_known_entropy_is_learned_to_its_entropy_and_not_beyond(tmp_path: Path) -> None:
    """Fails for labels shifted twice or not at all, for a leak of later tokens, and for a loss that is no mean."""
    chain = MarkovChain(letters=8, seed=0)
    texts = chain.documents(count=300, length=1500, seed=1)
    (tmp_path / "chain.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = {"corpus": str(tmp_path / "chain.jsonl"), "tokenizer": {"kind": "char"}, "val_bytes": 100_000}
    config = trial_config(
        data,
        d_model=32,
        n_layers=1,
        context_length=64,
        batch_tokens=1024,
        tokens_budget=330_000,
        lr=2e-2,
        eval_points=2,
    )
    trial, corpus = make_trial(config)
    folder = Folder.at(tmp_path / "weights")
    outcome = train(trial, corpus, lambda _: None, checkpoints=folder)

    stream, document_of = corpus.val()
    tokenizer = corpus.tokenizer()
    val_texts = [tokenizer.decode(stream[document_of == number].tolist()) for number in range(corpus.val_documents)]
    assert sorted(val_texts) == sorted(set(texts) & set(val_texts)), "whole documents of the corpus are held out"
    source = np.concatenate([chain.nats(text) for text in val_texts])
    ours = nats_by_token(trial, corpus, folder.read(WEIGHTS))
    assert len(ours) == len(source) == corpus.val_tokens >= 100_000

    document = np.repeat(np.arange(len(val_texts)), [len(text) for text in val_texts])
    excess, error = clustered_mean(np.bincount(document, ours - source), np.bincount(document).astype(float))
    assert -2 * error < excess < 0.02, f"{excess:.4f} ± {error:.4f} nats a token above the source"
    assert outcome.points[-1].val_loss == pytest.approx(float(ours.mean()), abs=1e-5)
    assert abs(outcome.points[-1].val_loss - chain.entropy_rate) < 0.03
    mean, expected_error = clustered_mean(np.bincount(document, ours), np.bincount(document).astype(float))
    assert outcome.points[-1].val_loss_se == pytest.approx(expected_error, rel=1e-3)
    assert mean == pytest.approx(outcome.points[-1].val_loss, abs=1e-5)


def test_the_loop_is_the_textbooks(tiny_corpus: DataConfig) -> None:
    """Five steps written out: batch, loss, clipped gradient, scheduled AdamW; the point holds their mean loss."""
    config = trial_config(tiny_corpus, tokens_budget=5 * 256, eval_points=1, grad_clip=0.1, weight_decay=0)
    trial, corpus = make_trial(config)
    torch.manual_seed(0)
    gpt = GPT(config.model, corpus.facts.vocab_size)
    adamw = torch.optim.AdamW(gpt.parameters(), lr=1.0, betas=config.train.betas, weight_decay=0)
    batches, seen = TrainBatches(corpus.train(), 32, 8, seed=0), []
    for step in range(5):
        inputs, targets = batches.batch(step)
        loss = gpt(inputs, targets)[1]
        seen.append(loss.item())
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), 0.1)
        adamw.param_groups[0]["lr"] = lr_at(step, 5, config.train)
        adamw.step()
    (point,) = train(trial, corpus, lambda _: None).points
    assert point.train_loss == pytest.approx(np.mean(seen), abs=1e-4)
    assert point.lr_now == pytest.approx(config.train.lr * config.train.min_lr_ratio)
    assert (point.step, point.tokens, point.decayed) == (5, 5 * 256, True)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "lion", "lr": 1e-3}, {"precision": "bf16"}, {"schedule": "wsd"}, {"bias": True}, {"grad_clip": 0}],
    ids=str,
)
def test_every_way_of_training_lowers_the_loss(tiny_corpus: DataConfig, changes: dict[str, Any]) -> None:
    points = run(trial_config(tiny_corpus, **changes)).points
    assert points[-1].val_loss < points[0].val_loss < math.log(257) + 0.1
    assert points[-1].val_loss < math.log(257) - 0.2


def test_bf16_is_near_fp32_and_not_the_same(tiny_corpus: DataConfig) -> None:
    exact, rounded = (run(trial_config(tiny_corpus, precision=p)).points[-1].val_loss for p in ("fp32", "bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.01)


# the same numbers, bit for bit


def test_two_runs_of_a_trial_are_bit_identical(tiny_corpus: DataConfig) -> None:
    first, second = (losses(run(trial_config(tiny_corpus))) for _ in range(2))
    assert first == second
    assert len(first) == 3


def test_another_seed_moves_initialisation_and_order(tiny_corpus: DataConfig) -> None:
    runs = [Run(*make_trial(trial_config(tiny_corpus, seed=seed)), None) for seed in (0, 1)]
    first, second = (dict(run.gpt.named_parameters()) for run in runs)
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].dim() > 1)
    assert not torch.equal(runs[0].batches.batch(0)[0], runs[1].batches.batch(0)[0])
    assert losses(run(trial_config(tiny_corpus, seed=0))) != losses(run(trial_config(tiny_corpus, seed=1)))


def test_a_process_that_served_other_trials_gives_identical_numbers(tiny_corpus: DataConfig) -> None:
    first = losses(run(trial_config(tiny_corpus)))
    run(trial_config(tiny_corpus, precision="bf16", seed=5, optimizer="lion", lr=1e-3))
    run(trial_config(tiny_corpus, lr=10, weight_decay=1000, grad_clip=0))
    run(trial_config(tiny_corpus, context_length=64, tie_embeddings=True, resources={"cpu": 2}))
    torch.randn(1000)
    assert losses(run(trial_config(tiny_corpus))) == first
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16"}, {"optimizer": "lion", "lr": 1e-3}, {"weight_bits": 3}], ids=str
)
@pytest.mark.parametrize("stop_at", [1, 7, 10, 19])
def test_an_interrupted_trial_goes_on_as_if_it_had_not_been(
    tiny_corpus: DataConfig, tmp_path: Path, stop_at: int, changes: dict[str, Any]
) -> None:
    config, folder = trial_config(tiny_corpus, **changes), Folder.at(tmp_path)
    stopped = run(config, checkpoints=folder, should_stop=lambda step: step == stop_at)
    assert (stopped.state, stopped.reason) == ("running", "stopped on request")
    assert folder.names() == [RESUME]
    torch.randn(10)  # whatever the process did between
    resumed = run(config, checkpoints=folder)
    assert resumed.state == "finished"
    assert losses(resumed) == losses(run(config))
    assert folder.names() == [WEIGHTS]
    assert resumed.points[: len(stopped.points)] == stopped.points, "points before the stop are kept as they were"
    assert resumed.points[-1].wall_seconds > stopped.seconds


def test_weights_kept_along_training_are_those_of_their_step_also_in_a_trial_that_was_interrupted(
    tiny_corpus: DataConfig, tmp_path: Path
) -> None:
    config, whole, resumed, paused = (trial_config(tiny_corpus), *(Folder.at(tmp_path / name) for name in "wrp"))
    run(config, checkpoints=whole, keep_every=1000)
    kept = [weights_at(step * 256) for step in (4, 8, 12, 16)]  # the steps that reach 1000, 2000, ... tokens
    assert whole.names() == sorted([*kept, WEIGHTS])
    run(config, checkpoints=resumed, keep_every=1000, should_stop=lambda step: step == 10)
    assert resumed.names() == sorted([*kept[:2], RESUME])
    run(config, checkpoints=resumed, keep_every=1000)
    assert {name: resumed.read(name) for name in resumed.names()} == {name: whole.read(name) for name in whole.names()}
    run(config, checkpoints=paused, should_stop=lambda step: step == 8)
    expected, found = of_bytes(paused.read(RESUME))["model"], of_bytes(whole.read(kept[1]))
    assert all(torch.equal(expected[name], weight) for name, weight in found.items())


RESUMED = """
import json, sys
from helpers.trials import make_trial
from tinyscale.spec.config import TrialConfig
from tinyscale.storage import Folder
from tinyscale.training.loop import train
trial, corpus = make_trial(TrialConfig.model_validate_json(sys.argv[1]))
outcome = train(trial, corpus, lambda _: None, checkpoints=Folder.at(sys.argv[2]))
print(json.dumps([(p.step, p.val_loss, p.val_loss_se, p.train_loss) for p in outcome.points]))
"""


def in_a_fresh_process(config: TrialConfig, folder: Path) -> list[tuple[int, float, float, float]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", RESUMED, config.model_dump_json(), str(folder)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]


def test_a_fresh_process_resumes_bit_identically(tiny_corpus: DataConfig, tmp_path: Path) -> None:
    config = trial_config(tiny_corpus)
    run(config, checkpoints=Folder.at(tmp_path), should_stop=lambda step: step == 11)
    assert in_a_fresh_process(config, tmp_path) == losses(run(config))


class Unpickled:
    """What runs code where a pickle of it is read without care."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "garbage": lambda _: b"x" * 100,
    "a pickle": lambda _: pickle.dumps(Unpickled()),
    **{
        f"bit {bit} of ten thousand": lambda content, bit=bit: flip(content, len(content) * 8 * bit // 10_000)
        for bit in (3, 999, 5000, 7777, 9950, 9999)
    },
}


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_with_a_line_and_the_trial_begins_again(
    tiny_corpus: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    config, folder = trial_config(tiny_corpus), Folder.at(tmp_path)
    run(config, checkpoints=folder, should_stop=lambda step: step == 11)
    damaged = DAMAGE[damage](folder.read(RESUME))
    folder.write(RESUME, damaged)
    assert losses(run(config, checkpoints=folder)) == losses(run(config))
    assert folder.names() == [f"{RESUME}.damaged", WEIGHTS]
    assert folder.read(f"{RESUME}.damaged") == damaged
    (line,) = caplog.messages
    assert line.endswith("the trial begins again")
    assert not Path("ran").exists()


def test_a_checkpoint_from_before_there_were_digests_is_gone_on_with(tiny_corpus: DataConfig, tmp_path: Path) -> None:
    config, folder = trial_config(tiny_corpus), Folder.at(tmp_path)
    run(config, checkpoints=folder, should_stop=lambda step: step == 11)
    plain = io.BytesIO()
    torch.save(torch.load(tmp_path / RESUME, weights_only=True), plain)
    folder.write(RESUME, plain.getvalue())
    steps: list[int] = []
    train(*make_trial(config), lambda _: None, checkpoints=folder, should_stop=lambda step: bool(steps.append(step)))
    assert steps[0] == 12
    run(config, checkpoints=folder, should_stop=lambda step: step == 11)
    folder.write(RESUME, flip(plain.getvalue(), len(plain.getvalue()) * 4))
    assert losses(run(config, checkpoints=folder)) == losses(run(config))


def test_work_is_saved_now_and_then_so_that_a_killed_process_loses_little(
    tiny_corpus: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = trial_config(tiny_corpus), Folder.at(tmp_path)
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)

    def die(step: int) -> bool:
        if step == 13:
            raise RuntimeError("killed")
        return False

    with pytest.raises(RuntimeError, match="killed"):
        run(config, checkpoints=folder, should_stop=die)
    state = torch.load(tmp_path / RESUME, weights_only=True)
    assert state["progress"]["step"] == 12
    assert losses(run(config, checkpoints=folder)) == losses(run(config))


def test_points_are_reported_as_they_come_and_again_on_resuming(tiny_corpus: DataConfig, tmp_path: Path) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus))
    first: list[Point] = []
    train(trial, corpus, first.append, checkpoints=Folder.at(tmp_path), should_stop=lambda step: step == 12)
    assert [point.step for point in first] == [5, 10]
    second: list[Point] = []
    outcome = train(trial, corpus, second.append, checkpoints=Folder.at(tmp_path))
    assert [point.step for point in second] == [5, 10, 20]
    assert outcome.points == second
    assert [point.decayed for point in second] == [False, False, True]
    assert [point.tokens for point in second] == [5 * 256, 10 * 256, 20 * 256]
    walls = [point.wall_seconds for point in second]
    assert walls == sorted(walls)
    assert all(point.tokens_per_second > 0 for point in second)


def test_a_small_trial_after_a_large_one_does_not_show_its_memory(tiny_corpus: DataConfig) -> None:
    """The peak of a process is that of its largest trial: on a CPU nothing is said."""
    large, small = (run(trial_config(tiny_corpus, d_model=d_model, n_heads=2)) for d_model in (128, 16))
    assert {point.peak_memory_bytes for point in (*large.points, *small.points)} == {None}


# divergence


def test_a_loss_that_is_no_longer_finite_ends_the_trial_as_diverged(tiny_corpus: DataConfig, tmp_path: Path) -> None:
    config = trial_config(
        tiny_corpus, lr=10, weight_decay=1000, grad_clip=0, tokens_budget=200 * 256, repeats=True, eval_points=9
    )
    reported: list[Point] = []
    trial, corpus = make_trial(config)
    outcome = train(trial, corpus, reported.append, checkpoints=Folder.at(tmp_path))
    assert outcome.state == "diverged"
    assert outcome.reason is not None
    assert "loss not finite" in outcome.reason
    assert "of 200" in outcome.reason
    assert outcome.points == reported
    assert all(math.isfinite(point.val_loss) for point in outcome.points)
    assert Folder.at(tmp_path).names() == [], "nothing is left to resume"


@pytest.mark.parametrize("diverges", [False, True])
def test_it_does_not_matter_how_many_losses_are_read_at_once(
    tiny_corpus: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: bool
) -> None:
    """On a GPU they are read together; the points, and the step at which a trial ends, are as if read one by one."""
    wild = {"lr": 10, "weight_decay": 1000, "grad_clip": 0, "tokens_budget": 100 * 256, "repeats": True}
    config = trial_config(tiny_corpus, schedule="wsd", branches=[0.5], **(wild if diverges else {}))
    one_by_one = run(config)
    monkeypatch.setitem(AHEAD, "cpu", 7)
    run(config, checkpoints=Folder.at(tmp_path), should_stop=lambda step: step == 12)
    together = run(config, checkpoints=Folder.at(tmp_path))
    assert losses(together) == losses(one_by_one)
    assert (together.state, together.reason) == (one_by_one.state, one_by_one.reason)
    assert together.state == ("diverged" if diverges else "finished")


# evaluation


def test_the_validation_loss_does_not_depend_on_how_many_tokens_go_through_at_once(
    tiny_corpus: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus))
    gpt = Run(trial, corpus, None).gpt
    found = []
    for tokens in (1, 64, 1000, 1 << 20):
        monkeypatch.setattr(evaluate_module, "EVAL_TOKENS", tokens)
        scores = Evaluation(corpus, 32, torch.device("cpu")).scores(
            token_losses(gpt), torch.autocast("cpu", enabled=False)
        )
        found.append((scores.val_loss, scores.val_loss_se))
    for loss, error in found:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert error == pytest.approx(found[0][1], abs=1e-5)


@pytest.mark.parametrize("context", [2, 7, 32, 1000])
def test_every_validation_token_is_scored_once_whatever_the_context(tiny_corpus: DataConfig, context: int) -> None:
    _, corpus = make_trial(trial_config(tiny_corpus))
    evaluation = Evaluation(corpus, context, torch.device("cpu"))
    scored = evaluation.targets[evaluation.targets != -100]
    stream, _ = corpus.val()
    assert scored.tolist() == stream[stream != corpus.eot].tolist()
    assert len(scored) == corpus.val_tokens


def test_one_long_validation_text_has_an_error_from_its_stretches(tmp_path: Path, tiny_corpus: DataConfig) -> None:
    whole = "".join(path.read_text() for path in sorted(Path(tiny_corpus.corpus).iterdir()))
    (tmp_path / "one.txt").write_text(whole)
    config = trial_config({"corpus": str(tmp_path / "one.txt"), "tokenizer": {"kind": "byte"}, "val_bytes": 12_000})
    point = run(config).points[-1]
    assert 0 < point.val_loss_se < 0.2


def test_the_clustered_error_by_hand() -> None:
    mean, error = clustered_mean(np.array([10.0, 20.0]), np.array([10.0, 10.0]))
    assert (mean, error) == (1.5, 0.5)
    totals, counts = np.array([2.0, 9.0, 4.0]), np.array([1.0, 3.0, 4.0])
    mean, error = clustered_mean(totals, counts)
    assert mean == 15 / 8
    by_hand = math.sqrt(((2 - 15 / 8) ** 2 + (9 - 45 / 8) ** 2 + (4 - 60 / 8) ** 2) * 3 / 2) / 8
    assert error == pytest.approx(by_hand)


def test_the_clustered_error_of_equal_clusters_is_that_of_their_means() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=50)
    mean, error = clustered_mean(values * 7, np.full(50, 7.0))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_the_clustered_error_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        counts = rng.integers(20, 200, size=40).astype(float)
        totals = counts * (1 + 0.1 * rng.normal(size=40)) + rng.normal(size=40) * np.sqrt(counts)
        mean, error = clustered_mean(totals, counts)
        hits += abs(mean - 1) < 1.96 * error
    assert 0.91 < hits / 1000 < 0.97


def test_of_one_cluster_no_error_is_known() -> None:
    mean, error = clustered_mean(np.array([6.0, 0.0]), np.array([3.0, 0.0]))
    assert mean == 2
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [
        (100, 4, {100, 50, 25, 12}), (100, 1, {100}), (1, 6, {1}), (3, 6, {1, 2, 3}), (1000, 3, {1000, 500, 250}),
        (2, 1000, {1, 2}),
    ],
)  # fmt: skip
def test_evaluations_are_log_spaced_and_end_at_the_end(steps: int, points: int, expected: set[int]) -> None:
    assert eval_steps(steps, points) == expected

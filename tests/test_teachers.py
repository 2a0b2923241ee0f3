"""Students and their teachers: how sweeps name them, what a student learns, and the two waves of a launch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.launches import RAY_WARNS, final_losses, planned, run
from helpers.markov import MarkovChain
from helpers.sweeps import write_sweep
from helpers.trials import known_trial, make_trial, model_config, train_config, trial_config
from tinyscale.analysis.study import find_laws
from tinyscale.data import TokenizedCorpus
from tinyscale.errors import ConfigError
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.laws.distilled import ALONE
from tinyscale.inference.trained import load_gpt
from tinyscale.reporting.plot_law import plot_fit
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results, read_results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.state import State
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.distilled import distilled_loss, divergence
from tinyscale.training.loop import WEIGHTS, train
from tinyscale.training.model import GPT
from tinyscale.training.progress import Outcome

pytestmark = RAY_WARNS

TEACHERS = """\
teachers: {large: {model.d_model: 16, train.tokens_budget: 30K}}
arms:
  alone: {}
  taught: {train.teacher: large}
"""


def with_teachers(folder: Path, more: str = TEACHERS, **changes: str) -> Path:
    path = write_sweep(folder, **{"widths": "[4, 8]", **changes})
    path.write_text(path.read_text() + more)
    return path


# how sweeps name them


def test_a_students_identity_is_that_of_its_settings_and_its_teacher(tmp_path: Path) -> None:
    path, results = with_teachers(tmp_path), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    teacher, *alone, first, second = plan.trials
    assert [each.label for each in plan.trials] == [
        "teacher large seed=0",
        *(f"{arm} d_model={width} seed=0" for arm in ("alone", "taught") for width in (4, 8)),
    ]
    assert first.trial.config.train.teacher == second.trial.config.train.teacher == teacher.trial.identity
    assert first.trial.teacher == teacher.trial
    assert [each.trial.teacher for each in (teacher, *alone)] == [None] * 3
    renamed = path.read_text().replace("large", "huge")
    path.write_text(renamed)
    assert [each.trial for each in planned(path, results).trials] == [each.trial for each in plan.trials]
    path.write_text(renamed.replace("30K", "40K"))
    other = [each.trial.identity for each in planned(path, results).trials]
    same = [before.trial.identity == now for before, now in zip(plan.trials, other, strict=True)]
    assert same == [False, True, True, False, False], "another teacher makes other students"


def test_without_a_teacher_its_fields_move_no_identity() -> None:
    plain, teacher = known_trial(), known_trial(seed=7)
    assert known_trial(teacher_weight=0.5, temperature=3).identity == plain.identity
    assert known_trial(teacher, teacher_weight=0) == replace(plain, config=known_trial(teacher_weight=0).config)
    assert known_trial(teacher, teacher_weight=0).teacher is None, "it trains as without one, bit for bit"
    assert len({known_trial(teacher, teacher_weight=w, temperature=t).identity for w in (0.5, 1) for t in (1, 2)}) == 4
    assert Trial.of_json(json.loads(json.dumps(known_trial(teacher).as_json()))) == known_trial(teacher)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("arms: {taught: {train.teacher: big}}\n", "no teacher is named 'big'; add it under `teachers`"),
        (
            "teachers: {large: {}}\narms: {taught: {train.teacher: lrage}}\n",
            "no teacher is named 'lrage'; nearest: large",
        ),
        ("teachers: {large: {}}\n", "no trial has this teacher; set train.teacher: large"),
        (TEACHERS.replace("30K", "[30K, 60K]"), "a teacher is one trial; give one value"),
        (TEACHERS.replace("{model.d", "{train.teacher: large, model.d"), "a teacher learns from the text alone"),
        (TEACHERS + "fuse: [seed]\n", "train.teacher = 'large' cannot be fused"),
        (
            TEACHERS + "search: {fields: {train.lr: {low: 0.01, high: 0.1}}, trials: 4}\n",
            "a search samples its own trials and trains no teachers",
        ),
    ],
)
def test_what_names_no_teacher_is_refused(tmp_path: Path, more: str, told: str) -> None:
    path = with_teachers(tmp_path, more)
    with pytest.raises(ConfigError, match=r"small\.yaml, line \d+: ") as caught:
        load_sweep(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ("model.context_length: 16", "the teacher sees 16 tokens at once, and the student 32"),
        ("data.tokenizer: {kind: byte}", "the teacher has another tokenizer than the student"),
    ],
)
def test_a_teacher_that_cannot_predict_the_students_tokens_is_refused(tmp_path: Path, teacher: str, told: str) -> None:
    path = with_teachers(tmp_path, TEACHERS.replace("model.d_model: 16", f"model.d_model: 16, {teacher}"))
    with pytest.raises(ConfigError) as caught:
        planned(path, Results(str(tmp_path / "results")))
    assert told in str(caught.value)


def test_a_selection_trains_only_the_teachers_that_it_needs(tmp_path: Path) -> None:
    path = with_teachers(tmp_path)
    assert list(load_sweep(path, select=["arm=alone"]).teachers) == []
    assert list(load_sweep(path, select=["arm=taught"]).teachers) == ["large"]


# what a student learns


def test_the_divergence_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7), 3 * torch.randn(2, 5, 7)
    p = teacher.softmax(-1)
    by_hand = (-(p * student.log_softmax(-1)).sum(-1) + (p * p.log()).sum(-1)).mean()
    assert divergence(student, teacher, 1.0).item() == pytest.approx(by_hand.item(), rel=1e-5)
    difference = (student - teacher).double()
    centred = difference - difference.mean(-1, keepdim=True)
    hot = 1e3**2 * divergence(student.double(), teacher.double(), 1e3).item()
    assert hot == pytest.approx(centred.square().mean(-1).mean().item() / 2, rel=2e-2)


def test_a_student_with_its_teachers_weights_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    gpt, tokens = GPT(model_config(), 50), torch.randint(50, (3, 32))
    twin = GPT(model_config(), 50)
    twin.load_state_dict(gpt.state_dict())
    loss = distilled_loss(gpt, twin, train_config())(tokens, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert max(float(p.grad.abs().max()) for p in gpt.parameters() if p.grad is not None) < 1e-6


def test_the_loss_is_the_texts_and_the_teachers_by_their_weights() -> None:
    torch.manual_seed(0)
    student, teacher, tokens = GPT(model_config(), 50), GPT(model_config(), 50), torch.randint(50, (3, 32))
    targets = tokens.roll(-1, 1)
    text = F.cross_entropy(student(tokens)[0].flatten(0, 1), targets.flatten())
    both = divergence(student(tokens)[0], teacher(tokens)[0], 2.0)
    loss = distilled_loss(student, teacher, train_config(teacher_weight=0.25, temperature=2))(tokens, targets)
    assert loss.item() == pytest.approx((0.75 * text + 0.25 * 4 * both).item(), rel=1e-5)


class Source(GPT):
    """The Markov chain itself as a model: its logits are the logarithms of the true probabilities."""

    def __init__(self, trial: Trial, chain: MarkovChain, letters: list[int], eot: int) -> None:
        super().__init__(trial.config.model, trial.vocab_size)
        table = torch.full((trial.vocab_size, trial.vocab_size), 1e-9)
        rows = torch.tensor(np.vstack([chain.transitions, chain.stationary]), dtype=torch.float32)
        table[torch.tensor([*letters, eot])[:, None], torch.tensor(letters)] = rows.clamp(min=1e-9)
        self.table = table.log()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert targets is None, "the source is no student"
        return self.table[tokens], None


def test_a_student_of_the_source_itself_comes_nearer_to_the_entropy_than_one_of_the_text(tmp_path: Path) -> None:
    chain = MarkovChain(letters=8, seed=0)
    texts = chain.documents(count=200, length=1000, seed=1)
    (tmp_path / "chain.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = {"corpus": str(tmp_path / "chain.jsonl"), "tokenizer": {"kind": "char"}, "val_bytes": 100_000}
    shape = {"d_model": 16, "n_layers": 1, "tokens_budget": 200_000, "batch_tokens": 512, "lr": 2e-2, "eval_points": 1}
    alone, corpus = make_trial(trial_config(data, **shape))
    taught, _ = make_trial(trial_config(data, **shape, teacher=alone.identity), alone)
    letters = corpus.tokenizer().encode("abcdefgh")
    (text,) = train(alone, corpus, lambda _: None).points
    (point,) = train(taught, corpus, lambda _: None, teacher=Source(alone, chain, letters, corpus.eot)).points
    assert point.teacher_loss == pytest.approx(chain.entropy_rate, abs=0.02)
    assert text.teacher_loss is None
    assert point.teacher_loss is not None
    assert point.val_loss - point.teacher_loss < 0.7 * (text.val_loss - point.teacher_loss), "a token teaches more"
    assert point.val_loss - point.teacher_loss < 0.02, "val_loss is that of the text, in both"
    assert point.train_loss < 0.2 * text.train_loss, "train_loss is the objective: the divergence"


@pytest.mark.parametrize("changes", [{}, {"teacher_weight": 0.5, "temperature": 2, "precision": "bf16"}], ids=str)
def test_a_student_that_was_interrupted_goes_on_bit_for_bit(
    tiny_corpus: DataConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    teacher, corpus = make_trial(trial_config(tiny_corpus, seed=7))
    gpt = GPT(teacher.config.model, teacher.vocab_size)
    trial, _ = make_trial(trial_config(tiny_corpus, teacher=teacher.identity, **changes), teacher)
    folder = Folder.at(tmp_path)
    train(trial, corpus, lambda _: None, teacher=gpt, checkpoints=folder, should_stop=lambda step: step == 11)
    resumed = train(trial, corpus, lambda _: None, teacher=gpt, checkpoints=folder)
    whole = train(trial, corpus, lambda _: None, teacher=gpt)
    assert [(p.val_loss, p.train_loss, p.teacher_loss) for p in resumed.points] == [
        (p.val_loss, p.train_loss, p.teacher_loss) for p in whole.points
    ]


# the two waves of a launch


@pytest.mark.slow
def test_teachers_are_trained_first_and_their_weights_are_kept_for_students(tmp_path: Path, cluster: Any) -> None:
    path, results = with_teachers(tmp_path), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    summary = run(plan, results, cluster, keep_weights=False)
    assert set(summary.states.values()) == {State.FINISHED}
    teacher, students = plan.trials[0].trial, [each.trial for each in plan.trials[3:]]
    kept = [each.trial.identity for each in plan.trials if results.checkpoints(each.trial.identity).exists(WEIGHTS)]
    assert kept == [teacher.identity]
    rows = read_results(results.location, final=True).set_index("trial")
    for student in students:
        row = rows.loc[student.identity]
        assert (row["teacher"], row["teacher_weight"], row["temperature"]) == (teacher.identity, 1, 1)
        assert row["teacher_loss"] == pytest.approx(rows.loc[teacher.identity, "val_loss"], abs=1e-6)
        assert row["flops_teacher"] == pytest.approx(teacher.flops_per_token["flops"] / 3 * row["tokens"])
        assert results.load_trial(student.identity) == student
    assert rows.loc[teacher.identity, ["teacher_weight", "flops_teacher"]].tolist() == [0, 0]
    expected = train(students[0], _corpus(students[0]), lambda _: None, teacher=load_gpt(results, teacher))
    assert rows.loc[students[0].identity, "val_loss"] == expected.points[-1].val_loss
    assert planned(path, results).to_run == []


def _corpus(trial: Trial) -> TokenizedCorpus:
    return make_trial(trial.config, trial.teacher)[1]


@pytest.mark.slow
def test_a_student_whose_teacher_failed_is_left_with_that_reason_and_trained_by_a_later_launch(
    tmp_path: Path, cluster: Any
) -> None:
    path, results = with_teachers(tmp_path), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    teacher = plan.trials[0].trial.identity
    in_the_way = tmp_path / "results" / "checkpoints" / teacher  # a file where its weights' folder must go
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    failed = run(plan, results, cluster)
    for student in plan.trials[3:]:
        assert failed.states[student.trial.identity] == State.ELSEWHERE
        assert f"its teacher {teacher} is failed" in failed.reasons[student.trial.identity]
        assert results.state(student.trial.identity) is None
    assert failed.states[teacher] == State.FAILED
    in_the_way.unlink()

    def stopped_halfway(trial: Trial, *args: Any, **options: Any) -> Outcome:  # inside: Ray passes it on by value
        options |= {"should_stop": lambda step: step == trial.steps // 2} if trial.teacher else {}
        return train(trial, *args, **options)

    again = planned(path, results)
    assert {each.label for each in again.to_run} == {each.label for each in (again.trials[0], *again.trials[3:])}
    interrupted = run(again, results, cluster, train=stopped_halfway)
    assert [interrupted.states[each.trial.identity] for each in plan.trials[3:]] == [State.RUNNING] * 2
    run(planned(path, results), results, cluster)
    undisturbed = Results(str(tmp_path / "undisturbed"))
    run(planned(path, undisturbed), undisturbed, cluster)
    there, here = (final_losses(Path(each.location)) for each in (undisturbed, results))
    assert here.to_dict() == there.to_dict(), "bit for bit"
    assert not any(map(math.isnan, here))


# what is fitted to students


def test_the_students_of_a_sweep_have_a_law_beside_the_runs_without_a_teacher(tmp_path: Path) -> None:
    results, law = Results(str(tmp_path)), find_law("distilled")
    truth = {"E": 2.0, "A": 30.0, "B": 90.0, "alpha": 0.4, "beta": 0.5, "gamma": 1.0, "rho": 1.8, "h": 0.1}
    rng, entries, teacher = np.random.default_rng(0), [], known_trial(d_model=64, seed=7)

    def finished(trial: Trial, arm: str, teacher_loss: float | None) -> None:
        size = {"n": trial.parameters.n_non_embedding, "d": trial.tokens, "teacher": teacher_loss or ALONE}
        loss = float(law.loss(truth, **size)) * math.exp(0.003 * rng.standard_normal())
        measured = {"step": trial.steps, "tokens": trial.tokens, "val_loss": loss, "decayed": True}
        rows = [point_columns(trial, measured | {"teacher_loss": teacher_loss}, 100_000, 400_000)]
        results.write_trial(trial, rows, "finished", None, {})
        axes = {"d_model": trial.config.model.d_model, "tokens_budget": trial.tokens}
        entries.append(SweepEntry(trial.identity, Cell(arm, axes, trial.config.seed)))

    finished(teacher, "teacher large", None)
    for width in (8, 16, 32, 64):
        for steps in (20, 40, 80, 160):
            for seed in (0, 1):
                changes = {"d_model": width, "tokens_budget": 256 * steps, "seed": seed}
                finished(known_trial(**changes), "alone", None)
                finished(known_trial(teacher, **changes), "taught", 3.0)
    results.write_sweep(SweepRecord("distill", "", "", ("d_model", "tokens_budget"), tuple(entries), {}))
    done = find_laws(str(tmp_path))
    assert [found.record.name for found in done.fits] == [
        "distill-alone-chinchilla", "distill-taught-chinchilla", "distill-distilled"
    ]  # fmt: skip
    found = done.fits[-1]
    assert isinstance(found, Fit)
    low, high = found.interval("rho")
    assert low < 1.8 < high
    assert len(found.points) == 64
    said = found.warnings[0]
    assert said.startswith(f"until it nears its teacher, a distilled token is worth {found.params['rho']:.3g} (")
    flops = teacher.flops_per_token["flops"] / 3
    shares = [own / (own + flops) for own in (known_trial(d_model=w).flops_per_token["flops"] for w in (8, 64))]
    least, most = (f"{found.params['rho'] * share:.2g}" for share in shares)
    assert f"a FLOP is worth {least} to {most} of training on text" in said
    ax = plot_fit(found)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words[-2:] == ["without a teacher", "teacher of loss 3.000"]
    plt.close(ax.figure)

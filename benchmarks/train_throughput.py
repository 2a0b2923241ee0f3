"""Tokens per second of our training step, against other implementations and against its matrix products alone.

    python benchmarks/train_throughput.py [--threads 2] [--shapes S1 S2] [--rounds 5] [--compile ours plain] [--profile]

Our step is `tinyscale.training.loop.Run.update`. The peers are a plain PyTorch loop with the same architecture, and
that loop with transformers' GPT-2 and litgpt's GPT, which have architectures of their own; peers that are not installed
are left out. All are timed in one process, round-robin; a ratio is the median over rounds of the ratio within a round.
The malloc settings of `training.device.keep_freed_memory` hold for the process, hence for the peers too.

--compile names what is timed compiled as well. A compiled row is compared with a peer's compiled step if there is one,
else with its eager step.

"weights in bf16" is our bf16 step with matrices kept in bf16 instead of cast at each use: a copy in bf16, beside
the optimizer's in fp32, can save no more.

The bound is the tokens/s of the step's matrix products alone, attention's included: forward, gradient of the input and
gradient of the weights, in the same precision.

--profile reports where our own steps spend their time, by PyTorch's profiler.

With one thread, times are CPU seconds, which other load on the machine affects less; with more, they are wall seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import PEERS, SHAPES, Shape
from torch import Tensor, nn

from tinyscale.data import TokenizedCorpus
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.trial import Trial, resolve
from tinyscale.training.loop import Run

TOKENS = 1_000_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROFILED_STEPS = 20
OPERATIONS = {  # patterns of their names in PyTorch's profiler
    "products": r"aten::(add|b|badd)?mm$",
    "attention's kernels": r"scaled_dot_product|softmax(_backward_data)?$",
    "compiled kernels": r"CompiledFxGraph",
    "optimizer": r"Optimizer|adam|vector_norm|_foreach",
}
KEPT = "weights in bf16"
Step = Callable[[], object]


def write_corpus(shape: Shape, folder: Path) -> TokenizedCorpus:
    """Write a corpus of tokens sampled from Zipf's law, in the layout of all corpora."""
    chances = 1 / np.arange(1, shape.vocab_size)
    tokens = np.random.default_rng(0).choice(shape.vocab_size - 1, TOKENS, p=chances / chances.sum()).astype(np.uint16)
    eot = shape.vocab_size - 1
    tokens[:: TOKENS // 100] = tokens[-1] = eot
    for name in ("train", "val"):
        tokens.tofile(folder / f"{name}.bin")
    part = {"documents": 100, "bytes": TOKENS}
    sizes = {f"{name}_{what}": count for name in ("train", "val") for what, count in part.items()}
    longest = TOKENS // 100
    return TokenizedCorpus(
        facts_of(shape), "byte", eot, **sizes, val_tokens=TOKENS, longest_document=longest, folder=str(folder)
    )


def facts_of(shape: Shape) -> TextFacts:
    """Facts of a text with the shape's vocabulary."""
    return TextFacts("none", "none", "none", shape.vocab_size, TOKENS)


def make_trial(shape: Shape, precision: str, compiled: bool, threads: int) -> Trial:
    """A trial of the shape, with a budget that is never reached."""
    config = {
        "data": {"corpus": "written here", "tokenizer": {"kind": "byte"}},
        "model": {
            "d_model": shape.d_model,
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "context_length": shape.context_length,
        },
        "train": {"tokens_budget": 1e12, "batch_tokens": shape.tokens, "lr": 1e-3, "precision": precision},
        "resources": {"cpu": threads, "compile": compiled},
    }
    return resolve(TrialConfig.model_validate(config), facts_of(shape))


def plain_step(model: nn.Module, shape: Shape, corpus: TokenizedCorpus, precision: str, compiled: bool) -> Step:
    """The step of a plain training loop: random crops, AdamW with default options, clipped gradients."""
    stream, rng, context = corpus.train(), np.random.default_rng(0), shape.context_length
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        starts = rng.integers(len(stream) - context, size=shape.rows)
        inputs = torch.stack([torch.from_numpy(stream[i : i + context].astype(np.int64)) for i in starts])
        targets = torch.stack([torch.from_numpy(stream[i + 1 : i + 1 + context].astype(np.int64)) for i in starts])
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = forward(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def products(shape: Shape, dtype: torch.dtype) -> Step:
    """A step of all matrix products of training, and nothing else."""
    d, layers = shape.d_model, shape.n_layers
    linear = [(d, 3 * d, layers), (d, d, layers), (d, 4 * d, layers), (4 * d, d, layers), (d, shape.vocab_size, 1)]
    batch, T, K = shape.rows * shape.n_heads, shape.context_length, shape.head_dim
    pairs: list[tuple[Tensor, Tensor, int]] = []
    for width, out, times in linear:
        x, w, g = (
            torch.randn(size, dtype=dtype) for size in ((shape.tokens, width), (out, width), (shape.tokens, out))
        )
        pairs += [(x, w.T, times), (g, w, times), (g.T, x, times)]
    q, p = torch.randn(batch, T, K, dtype=dtype), torch.randn(batch, T, T, dtype=dtype)
    pairs += [(q, q.mT, 2 * layers), (p, q, 2 * layers), (p.mT, q, 2 * layers)]  # of attention, each also for gradients
    results = [left @ right for left, right, _ in pairs]

    def step() -> None:
        for (left, right, times), result in zip(pairs, results, strict=True):
            for _ in range(times):
                torch.matmul(left, right, out=result)

    return step


Variant = tuple[str, str, str]  # implementation, precision, mode


def variants(
    shape: Shape, corpus: TokenizedCorpus, peers: Sequence[str], compiled: Sequence[str], threads: int
) -> dict[Variant, Step]:
    """The step of each implementation, precision and mode. Ours come first: making a Run discards compiled code."""
    torch._dynamo.reset()  # earlier shapes would count as recompilations, of which torch allows only a few
    steps: dict[Variant, Step] = {}
    for precision, mode in itertools.product(DTYPES, modes("ours", compiled)):
        trial = make_trial(shape, precision, mode == "compiled", threads)
        steps["ours", precision, mode] = Run(trial, corpus, None).update
        if precision == "bf16":
            steps[KEPT, precision, mode] = kept_in_bf16(trial, corpus)
    for who in peers:
        for precision, mode in itertools.product(DTYPES, modes(who, compiled)):
            steps[who, precision, mode] = plain_step(PEERS[who](shape), shape, corpus, precision, mode == "compiled")
    for precision, dtype in DTYPES.items():
        steps["products", precision, "eager"] = products(shape, dtype)
    return steps


def kept_in_bf16(trial: Trial, corpus: TokenizedCorpus) -> Step:
    """The step of a trial whose matrices are kept in bf16; the optimizer updates these."""
    run = Run(trial, corpus, None)
    for layer in run.gpt.modules():
        if isinstance(layer, nn.Linear):
            layer.to(torch.bfloat16)
    return run.update


def modes(who: str, compiled: Sequence[str]) -> tuple[str, ...]:
    """The modes in which an implementation is timed."""
    return ("eager", "compiled") if who in compiled else ("eager",)


def rates(
    steps: dict[Variant, Step], tokens: int, rounds: int, seconds: float, threads: int
) -> dict[Variant, list[float]]:
    """Tokens/s of each variant in each round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    for step in steps.values():
        step()  # compiles
        step()
    found: defaultdict[Variant, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for variant, step in steps.items():
            begun, count = clock(), 0
            while clock() - begun < seconds:
                step()
                count += 1
            found[variant].append(count * tokens / (clock() - begun))
    return found


def over(found: dict[Variant, list[float]], variant: Variant, other: str, precision: str, mode: str) -> float:
    """Median over rounds of a variant's speed over that of `other`, in eager mode if it has no compiled one.

    NaN if `other` was not timed.
    """
    theirs = found.get((other, precision, mode)) or found.get((other, precision, "eager"))
    if theirs is None:
        return math.nan
    return statistics.median(a / b for a, b in zip(found[variant], theirs, strict=True))


def speed_rows(name: str, found: dict[Variant, list[float]]) -> Iterator[Sequence[str]]:
    """Rows of the table of speeds for a shape: our step in each precision and mode."""
    for variant, speeds in found.items():
        who, precision, mode = variant
        if who == "ours":
            ratios = [over(found, variant, "plain", "fp32", "eager")]
            ratios += [over(found, variant, peer, precision, mode) for peer in (*PEERS, KEPT, "products")]
            cells = ("-" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios)
            yield name, precision, mode, f"{statistics.median(speeds):,.0f}", *cells


def profile(step: Step) -> list[float]:
    """Shares of a step's time: of each of OPERATIONS, and of the rest (mostly eager elementwise kernels)."""
    step()  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    known = [sum(time for key, time in times.items() if re.search(names, key)) for names in OPERATIONS.values()]
    total = sum(times.values())
    return [time / total for time in (*known, total - sum(known))]


def profile_rows(name: str, steps: dict[Variant, Step]) -> Iterator[Sequence[str]]:
    """Rows of the profile table for a shape: our step in each precision and mode."""
    for (who, precision, mode), step in steps.items():
        if who == "ours":
            yield name, precision, mode, *(f"{share:.0%}" for share in profile(step))


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def processor() -> str:
    """The CPU's name and its bf16 instructions."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    has = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in known.get("flags", "").split()]
    return f"{known.get('model name', platform.machine())} ({', '.join(has) or 'no bf16 instructions'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--compile", nargs="*", choices=["ours", *PEERS], default=["ours", "plain"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="report where our steps spend their time instead")
    parser.add_argument("--seconds", type=float, default=0.4, help="per variant and round, at least one step")
    options = parser.parse_args()
    print(f"{processor()}, threads: {options.threads}, PyTorch {torch.__version__}, rounds: {options.rounds}")
    peers = [peer for peer in PEERS if peer == "plain" or importlib.util.find_spec(peer)]
    for missing in [peer for peer in PEERS if peer not in peers]:
        print(f"{missing} is not installed: left out")
    if options.profile:
        peers = []
    speeds = ["tokens/s", "over plain fp32 eager", *(f"over {peer}" for peer in (*PEERS, KEPT)), "share of bound"]
    columns = ["shape", "precision", "mode", *([*OPERATIONS, "the rest"] if options.profile else speeds)]
    print()
    print_row(columns)
    print_row(["---"] * len(columns))
    for name in options.shapes:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            steps = variants(shape, write_corpus(shape, Path(folder)), peers, options.compile, options.threads)
            if options.profile:
                rows = profile_rows(name, steps)
            else:
                found = rates(steps, shape.tokens, options.rounds, options.seconds, options.threads)
                rows = speed_rows(name, found)
            for row in rows:
                print_row(row)


if __name__ == "__main__":
    main()

"""Speed of K small trials on one GPU: one after another, packed as K processes, or fused into one batched model.

    python benchmarks/gpu_packing.py [--device cpu] [--quick] [--widths 64 128] [--copies 4 16] [--code eager recorded]
        [--batch-tokens 4096] [--head-dim 32] [--vocab-size 2048] [--seconds 3] [--peak-tflops 989]

Prints one Markdown table: training tokens per second of all K trials together; the model FLOPs utilisation (FLOPs per
token as in the results' column `flops`, times tokens per second, over the device's peak); and the gain over trials one
after another with the same code. The code is eager, recorded as a CUDA graph, or compiled (on a GPU also recorded). A
packed trial is a process with a 1/K share of the GPU. `--copies` without a number times single trials only. The program
needs neither Ray nor a network. Compiling takes about a minute per row the first time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.trial import Trial, resolve
from tinyscale.training.batched import Batched, start_runs
from tinyscale.training.loop import Run

# Peak of dense bf16 with fp32 accumulation, TFLOP/s, from NVIDIA's data sheets, for the first key in the device's name.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "4090": 165}
CODES = {"cuda": ["eager", "recorded", "compiled"], "cpu": ["eager", "compiled"]}
WARM_UP = 5  # updates, which compile and record CUDA graphs


@dataclass(frozen=True)
class Shape:
    """A trial to time: its shape and code, the seconds to time it, and its share of the GPU."""

    text: str
    device: str
    d_model: int
    n_layers: int
    batch_tokens: int
    vocab_size: int
    seconds: float
    head_dim: int = 32
    code: str = "eager"
    share: float = 1.0  # of the GPU
    seed: int = 0

    def trial(self) -> tuple[Trial, TokenizedCorpus]:
        """The trial and its corpus."""
        data = {"corpus": self.text, "tokenizer": {"kind": "bpe", "vocab_size": self.vocab_size}, "val_bytes": "400K"}
        model = {"d_model": self.d_model, "n_layers": self.n_layers, "head_dim": self.head_dim, "context_length": 256}
        train = {"tokens_budget": "1B", "batch_tokens": self.batch_tokens, "lr": 1e-3, "precision": "bf16"}
        resources = {"gpu": self.share if self.device == "cuda" else 0, "compile": self.code == "compiled"}
        parts = {"data": data, "model": {**model, "positions": "rotary"}, "train": {**train, "repeats": True}}
        config = TrialConfig.model_validate({**parts, "seed": self.seed, "resources": resources})
        corpus = prepare(config.data)
        return resolve(config, corpus.facts), corpus

    def run(self) -> Run:
        """The trial before its first step."""
        return Run(*self.trial(), None)

    def rate(self, update: Callable[[], None]) -> float:
        """Tokens per second of one trial, over updates for `seconds`, until the device has finished them."""
        self.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds:
            update()
            steps += 1
        self.wait()
        return steps * self.batch_tokens / (time.perf_counter() - began)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def warmed_up(trained: Run | Batched, code: str) -> Callable[[], None]:
    """The update function, after WARM_UP updates; eager code does not record."""
    for _ in range(WARM_UP):
        trained.update()
        if code == "eager" and hasattr(trained, "steps"):
            trained.steps.record = False  # before the recording, which follows EAGER_STEPS
    return trained.update


def alone(shape: Shape) -> float:
    """Tokens per second of trials one after another."""
    return shape.rate(warmed_up(shape.run(), shape.code))


def fused(shape: Shape, copies: int) -> float:
    """Tokens per second of trials trained as one batched model."""
    made = [replace(shape, seed=seed).trial() for seed in range(copies)]
    together = start_runs([trial for trial, _ in made], made[0][1], [None] * copies)
    return copies * shape.rate(warmed_up(Batched(together), shape.code))


def packed(shape: Shape, copies: int) -> float:
    """Tokens per second of trials at the same time, each in its own process with a 1/K share of the GPU."""
    each = [replace(shape, share=1 / copies, seed=seed) for seed in range(copies)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(asdict(one))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in each
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", "a worker ended early: see above"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def work(shape: Shape) -> None:
    """Be one of the packed processes: warm up, wait for the others, run, and print the rate."""
    update = warmed_up(shape.run(), shape.code)
    print("ready", flush=True)
    sys.stdin.readline()
    print(shape.rate(update), flush=True)


def peak_flops(device: str) -> tuple[float, str]:
    """Peak FLOP/s of the device, and the source of the number."""
    if device == "cuda":
        for name, tera in PEAKS.items():
            if name in torch.cuda.get_device_name():
                return tera * 1e12, "the data sheet"
    size = 8192 if device == "cuda" else 1024
    square = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        float((square @ square)[0, 0])  # reading it waits for the product
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds), "a product of square bf16 matrices, measured"


def rows(shape: Shape, codes: list[str], counts: list[int]) -> Iterator[tuple[int, str, str, float, float]]:
    """Rows of the table: K, way, code, tokens per second, gain over one after another with the same code."""
    for code in codes:
        this = replace(shape, code=code)
        base = alone(this)
        yield 1, "alone", code, base, 1.0
        for copies, (way, measure) in itertools.product(counts, {"packed": packed, "fused": fused}.items()):
            rate = measure(this, copies)
            yield copies, way, code, rate, rate / base


def write_text(folder: Path) -> None:
    """Write random words with Zipf's frequencies, 6 MB in 60 documents."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, 5001)]
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(chance.choices(words, weights, k=16_000)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="one width, two trials, a fraction of a second each")
    parser.add_argument("--widths", type=int, nargs="+", help="values of d_model: 64, 128, 256, 512 if left out")
    parser.add_argument("--copies", type=int, nargs="*", help="K, trials at the same time: 4, 16 if left out")
    parser.add_argument("--code", nargs="+", choices=CODES["cuda"], help="ways to run a step; all if left out")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per step of each trial")
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=3.0, help="timed seconds per row")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, if this program does not know it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Shape(**json.loads(options.worker)))
        return
    peak, source = peak_flops(options.device)
    if options.peak_tflops:
        peak, source = options.peak_tflops * 1e12, "--peak-tflops"
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread per trial"
    quick = options.quick
    widths = options.widths or ([32] if quick else [64, 128, 256, 512])
    counts = options.copies if options.copies is not None else [2] if quick else [4, 16]
    layers, batch, vocab, seconds = (
        (1, 512, 512, 0.2) if quick else (4, options.batch_tokens, options.vocab_size, options.seconds)
    )
    print(f"{name}; PyTorch {torch.__version__}; peak {peak / 1e12:.4g} TFLOP/s ({source})")
    print(f"bf16, layers {layers}, context 256, {batch} tokens per step of each trial\n")
    print("| d_model | K | way | code | tokens/s | MFU % | gain |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder))
        for width in widths:
            shape = Shape(folder, options.device, width, layers, batch, vocab, seconds, options.head_dim)
            per_token = shape.trial()[0].flops_per_token["flops"]
            for copies, way, code, rate, gain in rows(shape, options.code or CODES[options.device], counts):
                used = 100 * rate * per_token / peak
                print(f"| {width} | {copies} | {way} | {code} | {rate:,.0f} | {used:.3g} | {gain:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""What the tests share: texts, sweep files, trials, tables of runs, results, launches, programs and servers."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

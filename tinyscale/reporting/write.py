"""What `tinyscale fit` leaves in a results folder: fits, tables and plots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyscale.analysis.records import replaced_by, write_contrasts, write_fits
from tinyscale.analysis.study import Analysis, find_laws
from tinyscale.errors import FitError
from tinyscale.fitting.record import TRIALS
from tinyscale.reporting.figures import write_plots
from tinyscale.storage import Folder


def analyse(location: str, results: str, **options: Any) -> Analysis:
    """Fit every group at `location` (a results folder or a file of runs) and write into the folder `results`.

    options: of `find_laws`. FitError, with all reasons, when no group supports a law.
    """
    done = find_laws(location, **options)
    if not done.fits and not done.contrasts:
        raise FitError("\n".join([*map(str, done.refused), *done.reading]))
    return write_analysis(Folder.at(location if done.source == TRIALS else results), done)


def write_analysis(folder: Folder, done: Analysis) -> Analysis:
    """Write fits/, tables/ and plots/ under a results folder; the analysis with the paths written.

    Of chosen runs (`done.where`), only their fits: those of all runs, and the comparison of arms, stay.
    """
    replaced = replaced_by(folder, done.fits, done.source, done.where)
    files = (
        *write_fits(folder, done.fits, done.source, done.where),
        *([] if done.where else write_contrasts(folder, done.contrasts)),
        *write_plots(folder, done.fits),
    )
    return replace(done, written=files, replaced=replaced)

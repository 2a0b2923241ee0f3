"""Where the published tables lie that some tests fit: outside the repository, for their size and licences."""

import os
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(os.environ.get("TINYSCALE_FITDATA", Path(__file__).parents[1] / "../shared/fitdata"))


def published(name: str) -> pd.DataFrame:
    """A published table; the test is skipped where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"the published table {name} is not here; point TINYSCALE_FITDATA at the folder that holds it")
    return pd.read_csv(path)

"""Arms of a sweep as groups of runs whose law, and worth in parameters and data, is known."""

import numpy as np
import pandas as pd

from tinyscale.analysis.runs import Group


def arm(name: str, rho: float, *, seed: int, lengths: int = 1, seeds: int = 3, common: int = 1000) -> Group:
    """Six sizes; parameters and tokens go `rho` times as far; noise common to arms, and half that of its own."""
    noise = 0.002
    n = np.repeat(np.geomspace(1e5, 5e6, 6), lengths * seeds)
    d = 20 * n if lengths == 1 else np.tile(np.repeat(np.geomspace(2e6, 1e8, lengths), seeds), 6)
    shared = np.random.default_rng(common).standard_normal(n.size) * noise
    own = np.random.default_rng(seed).standard_normal(n.size) * noise / 2
    data = 0.0 if lengths == 1 else 300 * (rho * d) ** -0.37
    loss = (1.4 + 60 * (rho * n) ** -0.29 + data) * np.exp(shared + own)
    frame = pd.DataFrame({"n_non_embedding": n, "tokens": d, "val_loss": loss})
    return Group("opt", name, f"opt-{name}", frame.assign(seed=np.tile(range(seeds), len(n) // seeds)), {})

"""An order-1 Markov chain over letters: a source whose entropy rate, and whose own loss on any text, are exact."""

from __future__ import annotations

import numpy as np


class MarkovChain:
    """Transition probabilities drawn once from the seed."""

    def __init__(self, letters: int = 8, seed: int = 0) -> None:
        self.transitions = np.random.default_rng(seed).dirichlet(np.full(letters, 0.5), size=letters)
        self.stationary = np.linalg.matrix_power(self.transitions, 1000)[0]

    @property
    def entropy_rate(self) -> float:
        """Nats per letter: the rows' entropies under the stationary law."""
        logs = np.log(np.maximum(self.transitions, 1e-300))
        return float(-(self.stationary[:, None] * self.transitions * logs).sum())

    def documents(self, count: int, length: int, seed: int) -> list[str]:
        """Independent documents, each begun from the stationary law."""
        rng = np.random.default_rng(seed)
        states = np.empty((count, length), dtype=np.uint8)
        law = np.broadcast_to(self.stationary, (count, len(self.stationary)))
        for place in range(length):
            drawn = (rng.random((count, 1)) > np.cumsum(law, axis=1)).sum(axis=1)
            states[:, place] = np.minimum(drawn, len(self.stationary) - 1)
            law = self.transitions[states[:, place]]
        return [row.tobytes().decode("ascii") for row in states + ord("a")]

    def nats(self, document: str) -> np.ndarray:
        """-ln p of each letter given the ones before it in its document, [length]."""
        states = np.frombuffer(document.encode("ascii"), dtype=np.uint8) - ord("a")
        given = self.transitions[states[:-1], states[1:]]
        return -np.log(np.concatenate([self.stationary[states[:1]], given]))

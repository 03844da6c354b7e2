"""Scores of queries on a GPU, by torch; blocks cross the bus in the precision they are stored in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class TorchProducts:
    """Inner products of queries (Q, D) in single precision on `device`; a `Scorer` of `retrieval.search`."""

    def __init__(self, queries: np.ndarray, device: torch.device) -> None:
        self.queries = torch.tensor(queries, dtype=torch.float32, device=device)
        self.count = len(queries)

    def load(self, vectors: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(vectors)).to(self.queries.device).float()  # a copy: shards are read-only

    def scores(self, loaded: Tensor, queries: slice) -> np.ndarray:
        found: np.ndarray = (self.queries[queries] @ loaded.T).cpu().numpy()
        return found

"""A trained student in Python: image files in, unit descriptors out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import ExtractConfig
from cgd.errors import InputError
from cgd.pipeline import steps
from cgd.pipeline.steps import Session
from cgd.types import ImageList

if TYPE_CHECKING:
    from cgd.models.encoder import EncoderSource


@dataclass(frozen=True)
class Student:
    """A finished student; the similarity of two images is the dot product of their descriptors."""

    source: EncoderSource
    session: Session

    @property
    def dim(self) -> int:
        """Dimensions of a descriptor."""
        return self.source.build().embed_dim

    def embed(self, paths: Iterable[str | Path]) -> np.ndarray:
        """Unit descriptors (N, D) float32 of image files, in their order; refuses a file that is no image."""
        from cgd.stages.search import embed_queries

        if isinstance(paths, (str, Path)):
            raise InputError(f"embed takes a list of image files: give [{str(paths)!r}].")
        files = [os.path.abspath(path) for path in paths]
        if not files:
            return np.empty((0, self.dim), np.float32)
        images = ImageList("pictures", None, tuple(map(str, range(len(files)))), tuple(files), Path("/"))
        return embed_queries(self.source, images, ExtractConfig(), self.session.compute())


def load(where: str | Path, *, store: str | Path, device: str, scales: Sequence[float]) -> Student:
    session = Session(str(store), device=device)
    source = steps.load_student(session, str(where), scales)
    return Student(replace(source, build=functools.cache(source.build)), session)

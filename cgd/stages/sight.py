"""What a worker on another machine must see before it begins: the very store of whoever asked, images and weights."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cgd.data.images import digest_of, image_bytes
from cgd.engines import Engine
from cgd.errors import CgdError, EngineError
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList

if TYPE_CHECKING:  # only the stages that run networks import torch
    from cgd.models.checkpoints import WeightsFile


@dataclass(frozen=True)
class Sight:
    """The `store`'s addresses, a `beacon` that burns in it, an image with its digest, weights by path and SHA-256."""

    host: str
    store: tuple[str, ...]
    beacon: str = ""
    root: Path | None = None
    image: tuple[str, bytes] | None = None
    weights: tuple[tuple[Path, str], ...] = ()

    def open(self, *, write: bool = False) -> FeatureStore:
        return FeatureStore.open(self.store[0], write=write, upstream=self.store[1:])

    def check(self) -> None:
        """Raise `EngineError` where this machine does not see what the one that asked does."""
        here = socket.gethostname()
        try:
            found = self.open(write=bool(self.beacon))  # it may not be there yet, but for the beacon
        except CgdError as error:
            raise EngineError(
                f"{here} cannot open the store: {error} Put the store where every node sees it."
            ) from error
        if self.beacon and not found.files.exists(self.beacon):
            raise EngineError(
                f"{self.store[0]} on {here} is not the store that {self.host} has under this name: put the store on a "
                "disk that every node sees, or into a bucket."
            )
        if self.image is not None:
            path, bytes_digest = self.image
            try:
                same = digest_of(image_bytes(self.root, path)).tobytes() == bytes_digest
            except CgdError as error:
                raise EngineError(f"{here} does not see the images: {error} Give every node the same path.") from error
            if not same:
                raise EngineError(f"{path} below {self.root} on {here} is another image than on {self.host}.")
        for file, digest in self.weights:
            from cgd.models.checkpoints import file_digest

            if not file.is_file() or file_digest(file) != digest:
                raise EngineError(
                    f"{here} does not see the weights {file} of {self.host}: give every node the same path."
                )


@contextmanager
def sight(
    store: FeatureStore,
    engine: Engine,
    images: ImageList | None = None,
    weights: Sequence[WeightsFile | None] = (),
) -> Iterator[Sight]:
    """What workers of `engine` must see; proof of it only where they may be elsewhere."""
    seen = Sight(socket.gethostname(), store.addresses)
    if not engine.elsewhere:
        yield seen
        return
    first = None
    images = images and rooted(images)
    if images is not None and images.root is not None and len(images):
        first = images.paths[0], np.asarray(digest_of(image_bytes(images.root, images.paths[0]))).tobytes()
    files = {w.digest: w.path for w in weights if w is not None and w.path is not None}
    with store.beacon() as beacon:
        yield dataclasses.replace(
            seen,
            beacon=beacon,
            root=images.root if images is not None else None,
            image=first,
            weights=tuple((path, digest) for digest, path in files.items()),
        )


def rooted(images: ImageList) -> ImageList:
    """The images where a process in another folder finds them."""
    return images if images.root is None else dataclasses.replace(images, root=images.root.absolute())

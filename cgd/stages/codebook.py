"""Fit CGD's codebook on fused teacher vectors of the training images, before a student trains against it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cgd import registry
from cgd.config import CgdConfig
from cgd.methods.cgd import fuse_vectors
from cgd.progress import progress
from cgd.retrieval.codebook import Step, assign_and_sum, draw_initial, euclidean, procrustes, spherical_kmeans
from cgd.retrieval.vectors import l2
from cgd.stages.fuse import gather_vectors, usable_rows
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import canonical, identify, settings_of, sha256
from cgd.types import Codebook, Key, title_of

VERSION = 1
BLOCK = 16_384
COLLAPSED = 0.9  # a share of the weight above which a fusion is in truth one teacher
TRAINING_ONLY = ("multiplier", "direct")  # settings of the loss, which no codebook depends on
log = logging.getLogger(__name__)


def fit_codebook(
    *,
    store: FeatureStore,
    teachers: Sequence[Key],
    fusion: str,
    config: CgdConfig,
    device: Any = None,
    withheld: Sequence[int] = (),
) -> Key:
    """The codebook of `teachers` (one view of each, whitened and of equal width) under a vector fusion.

    At most `config.points` rows per anchor are read, in one pass, and kept in half precision; none of `withheld`, rows
    that are not trained on. `device` may be a GPU that does the assignments. Its attributes tell the mean |rho|, each
    teacher's weight and the mean cosine reached.
    """
    first = store.get(teachers[0])
    title = title_of(first.settings["dataset"], first.settings["split"])
    settings = {n: v for n, v in settings_of(config).items() if n not in TRAINING_ONLY} | {"fusion": fusion}
    if withheld:
        settings["withheld"] = sha256(canonical(list(withheld)))
    identity = identify("codebooks", [title, fusion], VERSION, settings, teachers)
    if not store.is_sealed(identity.key):
        generator = np.random.default_rng(config.seed)
        rows = _sample(store, teachers, config, generator, withheld)
        rotations = _rotations(store, teachers, rows) if config.align else None
        blank = Codebook(np.empty((0, 0, 0), np.float32), rotations)
        fused, weights, rho = _fuse(store, teachers, rows, fusion, blank, generator)
        centroids, cosine = _fit(fused, config, generator, device)
        arrays = {"centroids": centroids} | ({} if rotations is None else {"rotations": rotations})
        about = {"rho": rho, "weights": weights, "rows": len(rows), "mean_cosine": cosine}
        store.write_whole(identity, arrays, attributes=about)
        log.info("%s: %d rows, mean cosine to their anchors %.3f", identity.key, len(rows), cosine)
    warn_of_collapse(store, identity.key)
    return identity.key


def warn_of_collapse(store: FeatureStore, key: Key) -> None:
    """Say so where nearly all weight fell to one teacher, and what to do about it."""
    artifact = store.get(key)
    weights, rho = artifact.attributes["weights"], artifact.attributes["rho"]
    shares = ", ".join(f"{100 * w:.1f} %" for w in weights)
    log.info("mean |rho| of the teachers %.3f, weights %s", rho, shares)
    if len(weights) > 1 and max(weights) > COLLAPSED:
        names = [store.get(k).attributes["label"] for k in artifact.inputs]
        log.warning(
            "the fused vectors are nearly those of %s alone (%.1f %% of the weight): whitened teachers have unrelated "
            "bases, so they hardly correlate; use the fusion cgd-pairwise, or set cgd.align=true",
            names[int(np.argmax(weights))],
            100 * max(weights),
        )


def _sample(
    store: FeatureStore,
    teachers: Sequence[Key],
    config: CgdConfig,
    generator: np.random.Generator,
    withheld: Sequence[int],
) -> np.ndarray:
    """(M,) rows in order, at most `points` per anchor, of those that every teacher could read."""
    readable = usable_rows(store, [teachers])
    readable[list(withheld)] = False
    usable = np.flatnonzero(readable)
    most = config.points * 2**config.bits
    return usable if len(usable) <= most else np.sort(generator.choice(usable, most, replace=False))


def _rotations(store: FeatureStore, teachers: Sequence[Key], rows: np.ndarray) -> np.ndarray:
    """(K, D, D) float32: each teacher turned onto the first one, fitted on `rows`."""
    artifacts = [store.get(key) for key in teachers]
    cross: list[Any] = [0.0] * len(artifacts)
    for part in _cut(rows):
        vectors = [gather_vectors(a, part).astype(np.float64) for a in artifacts]
        cross = [c + vectors[0].T @ v for c, v in zip(cross, vectors, strict=True)]
    turned = [np.eye(len(cross[0])), *(procrustes(c) for c in cross[1:])]
    return np.stack(turned).astype(np.float32)


def _fuse(
    store: FeatureStore,
    teachers: Sequence[Key],
    rows: np.ndarray,
    fusion: str,
    codebook: Codebook,
    generator: np.random.Generator,
) -> tuple[np.ndarray, list[float], float]:
    """Fused vectors (M, D) float16 of `rows`, each teacher's mean share of the weight, and the mean |rho|."""
    artifacts = [store.get(key) for key in teachers]
    combine = registry.find("cgd.fusion", fusion)
    fused, shares, rhos, sizes = [], [], [], []
    for part in _cut(rows):
        vectors = [gather_vectors(a, part).astype(np.float32) for a in artifacts]
        found, weights, rho = fuse_vectors(vectors, codebook, combine, generator)
        fused.append(l2(found).astype(np.float16))  # anchors know nothing of length, and half precision overflows
        total = np.maximum(np.abs(weights).sum(axis=1, keepdims=True), 1e-12)
        shares.append((weights / total).mean(axis=0))
        rhos.append(rho)
        sizes.append(len(part))
    share = np.average(shares, axis=0, weights=sizes)
    return np.concatenate(fused), [float(s) for s in share], float(np.average(rhos, weights=sizes))


def _fit(fused: np.ndarray, config: CgdConfig, generator: np.random.Generator, device: Any) -> tuple[np.ndarray, float]:
    """Centroids (m, n, c) float32 of unit length, and the mean cosine of the rows to theirs."""
    step = assign_and_sum if device is None or device.type != "cuda" else _on_gpu(device)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(fused), BLOCK):
            yield fused[start : start + BLOCK].astype(np.float32)

    anchors = 2**config.bits
    if config.codebook == "euclid":
        found = euclidean(
            fused.astype(np.float32), config.positions, config.bits, config.iterations, config.restarts, config.seed
        )
        _, history = spherical_kmeans(blocks, found, 1, step)
        return l2(found).astype(np.float32), history[-1]
    best: tuple[np.ndarray, float] | None = None
    with progress(config.restarts, "codebook", "restarts") as bar:
        for _ in range(config.restarts):
            initial = draw_initial(fused.astype(np.float32), config.positions, anchors, generator)
            centroids, history = spherical_kmeans(blocks, initial, config.iterations, step)
            if best is None or history[-1] > best[1]:
                best = centroids.astype(np.float32), history[-1]
            bar.update(1)
    assert best is not None
    return best


def _on_gpu(device: Any) -> Step:
    """The step of `spherical_kmeans` as one batched product on a GPU."""
    import torch

    def step(parts: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
        rows = torch.from_numpy(np.ascontiguousarray(parts)).to(device, torch.float32)  # (m, M, c)
        anchors = torch.from_numpy(centroids).to(device, torch.float32)  # (m, n, c)
        cosines, nearest = (rows @ anchors.transpose(1, 2)).max(dim=2)  # (m, M)
        present = rows.any(dim=2)
        sums = torch.zeros_like(anchors, dtype=torch.float64)
        wanted = nearest.unsqueeze(2).expand(-1, -1, rows.shape[2])
        sums.scatter_add_(1, wanted, rows.double() * present.unsqueeze(2))
        return sums.cpu().numpy().astype(centroids.dtype), float((cosines * present).sum())

    return step


def _cut(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]

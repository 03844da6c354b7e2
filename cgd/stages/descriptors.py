"""Descriptors: one unit vector per image, made once from stored embeddings and searched ever after; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cgd import registry
from cgd.engines import Engine
from cgd.engines.local import LOCAL
from cgd.errors import InputError
from cgd.methods.cgd import fuse_vectors
from cgd.retrieval.search import Block
from cgd.retrieval.vectors import combine_scales, l2
from cgd.retrieval.whitening import whiten
from cgd.stages.fuse import read_codebook
from cgd.stages.rows import Rows, make_rows
from cgd.stages.whiten import read_whitening
from cgd.store.artifact import Artifact
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, identify
from cgd.types import Key, title_of

VERSION = 1
RANDOM_BLOCK = 16_384


@dataclass(frozen=True)
class Fused:
    """Several teachers' embeddings of the same images, each through its whitening, as one vector per image (CGD)."""

    teachers: tuple[Key, ...]
    whitenings: tuple[Key, ...]
    fusion: str
    codebook: Key


@dataclass(frozen=True)
class Member:
    """One encoder's embeddings of a benchmark, raw or through a whitening; or a gallery of fused teachers."""

    label: str
    gallery: Key | Fused
    queries: Key
    whitening: Key | None = None
    distractors: tuple[Key | Fused, ...] = ()


def keys_of(images: Key | Fused) -> tuple[Key, ...]:
    """The artifacts that vectors of some images come from."""
    return (images,) if isinstance(images, Key) else (*images.teachers, *images.whitenings, images.codebook)


@dataclass(frozen=True)
class RandomDistractors:
    """`count` unit vectors from a seed: for speed and tests, never for a published number."""

    count: int
    seed: int = 0


@dataclass(frozen=True)
class Vectors:
    """Unit vectors (N, dim) of one image list: `read` gives those of some rows, `valid` (N,) which images have one.

    Reading is cheapest in `parts`, the shards they are stored in.
    """

    dim: int
    valid: np.ndarray
    parts: Sequence[range]
    read: Callable[[range], np.ndarray]


def describe(store: FeatureStore, images: Key | Fused, whitening: Key | None, engine: Engine = LOCAL) -> Key:
    """The stored descriptors of some images, half precision; made shard by shard where they are missing."""
    identity = identity_of("descriptors", VERSION, store, images, whitening)
    rows_of = partial(_half_rows, images=images, whitening=whitening)
    return make_rows(store, engine, identity, rows_of, f"descriptors {identity.key.label}")


def _half_rows(store: FeatureStore, *, images: Key | Fused, whitening: Key | None) -> Rows:
    vectors, ids = computed(store, images, whitening), store.get(keys_of(images)[0]).read("ids")

    def blocks(rows: range) -> dict[str, np.ndarray]:
        part = slice(rows.start, rows.stop)
        half = vectors.read(rows).astype(np.float16)
        half[~vectors.valid[part]] = np.nan
        return {"ids": ids[part], "vectors": half, "valid": vectors.valid[part]}

    return Rows({"ids": ids.shape, "vectors": (len(ids), vectors.dim), "valid": ids.shape}, blocks)


def stored(store: FeatureStore, key: Key) -> Vectors:
    """Descriptors as `describe` kept them, half precision."""
    artifact = store.get(key)
    valid = artifact.read("valid")

    def read(rows: range) -> np.ndarray:
        return _known(_rows(artifact, rows), valid[rows.start : rows.stop])

    return Vectors(artifact.shape("vectors")[1], valid, _parts(artifact), read)


def computed(store: FeatureStore, images: Key | Fused, whitening: Key | None, *, unit: bool = True) -> Vectors:
    """Descriptors straight from embeddings, single precision; zero where an image is not valid.

    Without `unit` they keep the length that one scale's vectors, or whitened ones, come with: frames are pooled so.
    """
    if isinstance(images, Fused):
        artifacts, valid, make = _fused(store, images)
    else:
        artifacts, valid, make = _single(store, images, whitening, unit)

    def read(rows: range) -> np.ndarray:
        known = valid[rows.start : rows.stop]
        raw = [_known(_rows(a, rows), known).astype(np.float64) for a in artifacts]
        for artifact, numbers in zip(artifacts, raw, strict=True):
            _refuse_not_finite(artifact, numbers, rows)
        made = l2(make(raw)) if unit else make(raw)
        found: np.ndarray = (made * known[:, None]).astype(np.float32)
        return found

    return Vectors(read(range(1)).shape[1], valid, _parts(artifacts[0]), read)


def _refuse_not_finite(artifact: Artifact, vectors: np.ndarray, rows: range) -> None:
    finite = np.isfinite(vectors).all(axis=(1, 2))
    if not finite.all():
        name = artifact.read("ids")[rows[int(np.argmin(finite))]]
        raise InputError(
            f"{artifact.key} holds numbers that are none (NaN or infinite) for the image '{name}': "
            "extract again with weights and a precision that give finite descriptors."
        )


Make = Callable[[list[np.ndarray]], np.ndarray]


def _single(
    store: FeatureStore, key: Key, whitening: Key | None, unit: bool
) -> tuple[list[Artifact], np.ndarray, Make]:
    artifact = store.get(key)
    rule = artifact.attributes["input"]["combine"]
    fitted = None if whitening is None else read_whitening(store, whitening)

    def make(raw: list[np.ndarray]) -> np.ndarray:
        if fitted is not None:
            return whiten(raw[0], fitted, rule)
        return raw[0][:, 0] if raw[0].shape[1] == 1 and not unit else combine_scales(raw[0], rule)

    return [artifact], artifact.read("valid"), make


def _fused(store: FeatureStore, fused: Fused) -> tuple[list[Artifact], np.ndarray, Make]:
    """Every teacher whitened as in training, and fused."""
    artifacts = [store.get(key) for key in fused.teachers]
    whitenings = [read_whitening(store, key) for key in fused.whitenings]
    fusion, codebook = registry.find("cgd.fusion", fused.fusion), read_codebook(store, fused.codebook)

    def make(raw: list[np.ndarray]) -> np.ndarray:
        rules = [a.attributes["input"]["combine"] for a in artifacts]
        vectors = [whiten(r, w, rule) for r, w, rule in zip(raw, whitenings, rules, strict=True)]
        joined, _, _ = fuse_vectors(vectors, codebook, fusion, np.random.default_rng(0))
        return joined

    return artifacts, np.logical_and.reduce([a.read("valid") for a in artifacts]), make


def identity_of(kind: str, version: int, store: FeatureStore, images: Key | Fused, whitening: Key | None) -> Identity:
    """Identity of an artifact that is made of nothing but the vectors of some images."""
    first = store.get(keys_of(images)[0])
    of = first.settings
    settings = {"dataset": of["dataset"], "split": of["split"], "ids": of["ids"]}
    if isinstance(images, Fused):
        settings |= {"fusion": images.fusion}
        how = ["fused"]
    else:
        how = [first.attributes["label"], *(["whitened"] if whitening else [])]
    inputs = [*keys_of(images), *([whitening] if whitening else [])]
    return identify(kind, [title_of(of["dataset"], of["split"]), *how], version, settings, inputs)


@dataclass(frozen=True)
class Gallery:
    """Image sets one after the other, then drawn distractors, cut into `blocks` for `retrieval.search`.

    A set has the `Vectors` of every member; the product of joined vectors is the mean of the members' cosines.
    `keys` are the stored descriptors, none where vectors are computed.
    """

    sets: Sequence[Sequence[Vectors]]
    blocks: Sequence[Block]
    keys: Sequence[Key]

    @property
    def size(self) -> int:
        return self.blocks[-1].rows.stop


def open_gallery(
    store: FeatureStore,
    members: Sequence[Member],
    precision: str,
    random: RandomDistractors | None = None,
    engine: Engine = LOCAL,
) -> Gallery:
    """What queries are searched in: descriptors made where they are missing (`half`), or computed on the fly."""
    sets: list[list[Vectors]] = []
    keys: list[Key] = []
    for number in range(1 + len(members[0].distractors)):
        vectors = []
        for member in members:
            images = (member.gallery, *member.distractors)[number]
            if precision == "half":
                keys.append(describe(store, images, member.whitening, engine))
                vectors.append(stored(store, keys[-1]))
            else:
                vectors.append(computed(store, images, member.whitening))
        sets.append(vectors)
    return Gallery(sets, _blocks(sets, random), keys)


def _blocks(sets: Sequence[Sequence[Vectors]], random: RandomDistractors | None) -> list[Block]:
    found: list[Block] = []
    end = 0
    for members in sets:
        valid = np.logical_and.reduce([m.valid for m in members])
        for part in members[0].parts:
            rows = range(end + part.start, end + part.stop)
            found.append(Block(rows, partial(_read_joined, members, part), valid[part.start : part.stop]))
        end += len(valid)
    if random is not None:
        dims = [m.dim for m in sets[0]]
        for start in range(0, random.count, RANDOM_BLOCK):
            rows = range(end + start, end + min(start + RANDOM_BLOCK, random.count))
            found.append(Block(rows, partial(_drawn, random, rows, dims)))
    return found


def join(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors of K members as one (M, sum of D_k) of unit length."""
    if len(vectors) == 1:
        return vectors[0]
    joined: np.ndarray = np.concatenate([v.astype(np.float32) for v in vectors], axis=1) / np.sqrt(
        np.float32(len(vectors))
    )
    return joined


def _read_joined(members: Sequence[Vectors], part: range) -> np.ndarray:
    return join([member.read(part) for member in members])


def _drawn(random: RandomDistractors, rows: range, dims: Sequence[int]) -> np.ndarray:
    generator = np.random.default_rng([random.seed, rows.start])
    return join([l2(generator.standard_normal((len(rows), dim), np.float32)) for dim in dims])


def _parts(artifact: Artifact) -> list[range]:
    return [artifact.shard_range(shard) for shard in range(artifact.shard_count)]


def _rows(artifact: Artifact, rows: range) -> np.ndarray:
    """Some rows of the vectors; a whole shard as it is read."""
    shard = rows.start // artifact.shard_rows
    if artifact.shard_range(shard) == rows:
        return artifact.read_shard("vectors", shard)
    return artifact.gather("vectors", np.array(rows))


def _known(vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`vectors` with zeros where an image is not valid."""
    if valid.all():
        return vectors
    return np.where(valid.reshape(-1, *[1] * (vectors.ndim - 1)), vectors, 0).astype(vectors.dtype)

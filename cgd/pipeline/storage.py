"""What is asked of a whole store: list, tell where things come from, verify, repair, copy, upgrade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cgd.errors import InputError, MissingError
from cgd.store.feature_store import Entry, FeatureStore, keys_in
from cgd.store.layout import LAYOUT, ROWWISE
from cgd.types import Key

if TYPE_CHECKING:  # a listing needs neither stages nor NumPy
    from cgd.pipeline.steps import Session
    from cgd.store.artifact import Artifact

Result = dict[str, Any]
MADE = ("user", "host", "started", "finished", "libraries", "command")


def listing(store: FeatureStore) -> Result:
    """Every artifact, sealed or begun, and where it is."""
    return {
        "artifacts": [
            {"key": str(e.key), "sealed": e.sealed, "shards": e.shards_done, "store": e.files.url}
            for e in store.entries()
        ]
    }


def info(session: Session, text: str, *, row: int | None = None, image: str | None = None) -> Result:
    """What an artifact holds, what determined it, who made it, and the same of all it was made from.

    Also what stands in one of its rows, where that is asked for by number or by the image's id.
    """
    store = session.store()
    artifact = store.get(store.resolve(text, tuple(LAYOUT)))
    asked = {} if row is None and image is None else {"row": _row(artifact, row, image)}
    return {
        "key": str(artifact.key),
        **asked,
        "store": artifact.files.url,
        "bytes": artifact.size,
        "bytes_are": _bytes_are(artifact),
        "arrays": {name: list(artifact.shape(name)) for name in artifact.arrays},
        "files": artifact.blobs,
        **artifact.attributes,
        "provenance": store.provenance(artifact.key),
        "tree": tree(store, artifact.key),
    }


def _bytes_are(artifact: Artifact) -> str:
    """Of a long artifact nobody asks for the sizes of millions of files."""
    return "reckoned by shapes" if artifact.is_long else "counted"


def _row(artifact: Artifact, row: int | None, image: str | None) -> Result:
    """The number of a row, its shard, and what every array holds there: bytes in hexadecimal, not a number as None."""
    import numpy as np

    if artifact.key.kind not in ROWWISE:
        raise InputError(f"{artifact.key} has no rows; those of {', '.join(ROWWISE)} are images.")
    if image is not None and (row := artifact.find(image)) is None:
        raise InputError(f"{artifact.key} has no image '{image}'.")
    if row is None or not row < artifact.rows:
        raise InputError(f"{artifact.key} has the rows 0 to {artifact.rows - 1}, not {row}.")
    found: Result = {"number": row, "shard": row // artifact.shard_rows}
    for name in artifact.arrays:
        value = artifact.gather(name, np.array([row]))[0]
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            value = value.tobytes().hex()
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            numbers = value.astype(object)
            numbers[np.isnan(value)] = None
            value = numbers
        found[name] = value if isinstance(value, str) else value.tolist()
    return found


def tree(store: FeatureStore, key: Key) -> Result:
    """An artifact and, below it, its inputs: sealed or missing, size, who made it, and with which weights."""
    if not store.is_sealed(key):
        return {"key": str(key), "sealed": False, "inputs": []}
    artifact = store.get(key)
    records = store.provenance(key)
    encoder = artifact.settings.get("encoder")
    weights = encoder.get("weights") if isinstance(encoder, dict) else artifact.settings.get("weights")
    return {
        "key": str(key),
        "sealed": True,
        "bytes": artifact.size,
        "bytes_are": _bytes_are(artifact),
        "rows": artifact.rows if "ids" in artifact.arrays else None,
        "weights": weights,
        "settings": {
            name: artifact.settings[name] for name in ("ids", "view", "precision") if name in artifact.settings
        },
        "made": {name: records[0][name] for name in MADE if name in records[0]} if records else None,
        "inputs": [tree(store, each) for each in artifact.inputs],
    }


def verify(session: Session, text: str | None, *, images: bool = False) -> Result:
    """Read everything, or one artifact: problems in words, what is unfinished, and how many artifacts were read."""
    store = session.store()
    key = store.resolve(text, tuple(LAYOUT), unsealed=True) if text else None
    if key and key not in keys_in(store.files, key.kind):
        raise MissingError(f"{key} is in a store behind this one: name that one with --store to verify it.")
    found = dict(store.verify(key))
    problems = [problem for each in found.values() for problem in each]
    unfinished = [
        {"key": str(e.key), "shards": e.shards_done} for e in store.entries() if not e.sealed and key in (None, e.key)
    ]
    result: Result = {"artifacts": sum(k is not None for k in found), "problems": problems, "unfinished": unfinished}
    return {**result, **_compare_images(session, store, key)} if images else result


def _compare_images(session: Session, store: FeatureStore, key: Key | None) -> Result:
    """Every stored row against the image files at hand."""
    from cgd.stages.images import changed_images

    changed: list[str] = []
    compared, unknown = 0, []
    for entry in store.entries("embeddings"):
        if not entry.sealed or (key and entry.key != key):
            continue
        title = f"{entry.settings['dataset']}@{entry.settings['split']}".removesuffix("@None")
        try:
            images = session.workspace.images(title)
        except (InputError, MissingError):
            unknown.append(title)
            continue
        compared += len(images)
        changed += [f"{entry.key}: {each}" for each in changed_images(store.get(entry.key), images)]
    return {"images_compared": compared, "changed_images": changed, "not_at_hand": sorted(set(unknown))}


def repair(session: Session, text: str | None, sources: Sequence[str]) -> Result:
    """Make the store agree with its seals again, from other stores or by dropping what is bad."""
    from cgd.store.remote import open_files
    from cgd.store.repair import repair as run

    files = open_files(session.store_url, write=True)
    if not files.children(".cgd"):
        raise MissingError(f"there is no feature store at {files.url}; --store names another.")
    behind = [FeatureStore.open(url).files for url in (*sources, *session.upstream)]
    keys = [entry.key for entry in _fitting(list(FeatureStore(files).entries()), text)] if text else None
    done = run(files, keys, behind)
    return {"repaired": [vars(one) for one in done]}


def copy(source: str, target: str, only: Sequence[str], *, inputs: bool = False) -> Result:
    """Copy what is missing from one store to another, everything or the artifacts that `only` names."""
    from cgd.store.copying import copy as run
    from cgd.store.copying import with_inputs

    there = FeatureStore.open(source)  # FROM is one store: what is upstream of ours is not asked
    wanted = list(there.entries())
    if only:
        keys = [entry.key for text in only for entry in _fitting(wanted, text)]
        keys = with_inputs(there, keys) if inputs else keys
        wanted = [entry for entry in wanted if entry.key in keys]
    if not wanted:
        raise MissingError(f"the store {there.files.url} is empty: there is nothing to copy.")
    here = FeatureStore.open(target, write=True)
    return {"from": there.files.url, "to": here.files.url, **vars(run(there, here, wanted))}


def _fitting(entries: Sequence[Entry], text: str) -> list[Entry]:
    found = [entry for entry in entries if text in str(entry.key)]
    if not found:
        raise MissingError(f"no artifact fits '{text}'; `cgd store ls` lists what there is.")
    return found


def upgrade(session: Session) -> Result:
    """Bring the store to the present format version."""
    from cgd.store.layout import SCHEMA
    from cgd.store.upgrade import upgrade as run

    FeatureStore.open(session.store_url)  # refuses what is no store, or is newer
    return {"schema": SCHEMA, "upgraded": run(FeatureStore.open(session.store_url, write=True).files)}

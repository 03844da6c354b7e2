"""A store with an artifact of every kind, and everything that may happen to its files.

What provenance and `.cgd/tmp` hold is outside of the promise: no result depends on it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.store import catalog, layout
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, canonical, identify, images_identity, sha256
from cgd.store.seals import signed
from cgd.types import ImageList, Key

IMAGES, CUT, DIM, OUT = 8, 3, 6, 4  # three shards of each row-wise artifact
TEACHERS = ("a", "b")
Arrays = dict[str, np.ndarray]
Tree = dict[str, bytes]


@dataclass(frozen=True)
class Made:
    """One artifact of the store: what a writer is given, and whether it is left without a seal, half written."""

    identity: Identity
    arrays: Arrays
    blobs: Mapping[str, bytes]
    sealed: bool = True

    @property
    def key(self) -> Key:
        return self.identity.key


def contents(seed: int) -> list[Made]:
    """Artifacts of every kind, of most of them two; their numbers come from the seed, their keys do not."""
    draw = np.random.default_rng(seed)
    ids = tuple(f"Zürich/寺院 {n}" for n in range(IMAGES))
    boxes = tuple((0.0, 0.5, n + 1.0, 9.0) if n % 3 else None for n in range(IMAGES))
    lists = [
        ImageList("small", split, ids, ids, None, tuple(f"{split} {n // 2}" for n in range(IMAGES)), None, boxes)
        for split in ("train", "test")
    ]
    made = [Made(images_identity(each), _listed(each), {}) for each in lists]
    rows = {"dataset": "small", "ids": sha256(canonical(["small", *ids]))}
    for teacher in TEACHERS:
        made += _of_teacher(draw, teacher, rows, _text(ids))
    files = {"index.faiss": draw.bytes(90), "rows.npy": draw.bytes(40)}
    made.append(Made(identify("indexes", ["small"], 1, {"kind": "flat"}), {}, files))
    books = {"centroids": draw.normal(size=(2, 3, 2)).astype(np.float32)}
    made.append(Made(identify("codebooks", ["small"], 1, {"m": 2}), books, {}))
    half = _seen(draw, _text(ids), "vectors", (IMAGES, 1, DIM), np.float32)
    half["reasons"] = _text([""] * IMAGES)
    about = {**rows, "view": "crop-2"}
    return [*made, Made(identify("embeddings", ["small@train", "half"], 1, about), half, {}, sealed=False)]


def _of_teacher(draw: np.random.Generator, teacher: str, rows: dict[str, Any], ids: np.ndarray) -> list[Made]:
    embedded = _seen(draw, ids, "vectors", (IMAGES, 2, DIM), np.float32)
    embedded["reasons"] = _text(["" if v else "cannot identify image file “é”" for v in embedded["valid"]])
    embedded["views"] = draw.uniform(size=(IMAGES, 5)).astype(np.float32)
    whitening = {
        "mean": draw.normal(size=DIM), "projection": draw.normal(size=(OUT, DIM)), "eigenvalues": draw.uniform(size=DIM)
    }  # fmt: skip
    whitened = _seen(draw, ids, "vectors", (IMAGES, OUT), np.float16)
    described = {name: whitened[name] for name in ("ids", "valid")}
    described["vectors"] = draw.normal(size=(IMAGES, OUT)).astype(np.float16)
    encoded = {"ids": described["ids"], "codes": np.packbits(described["vectors"] > 0, axis=1)}
    encoded["valid"] = described["valid"]
    canaries = {"vectors": draw.normal(size=(4, 1, DIM)).astype(np.float32)}
    scores = {"queries": _text(["ä", "b"]), "average_precision": draw.uniform(size=(3, 2))}
    student = {"model.safetensors": draw.bytes(200), "log.jsonl": b"{}\n" * int(draw.integers(1, 9))}

    def named(kind: str, *inputs: Made, **settings: Any) -> Identity:
        about = {"teacher": teacher, **(rows if kind in layout.ROWWISE else {}), **settings}
        return identify(kind, ["small@train", teacher], 1, about, [each.key for each in inputs])

    first = Made(named("embeddings", view="fixed", scales=[1.0, 0.5]), embedded, {})
    second = Made(named("whitening", first, dim=OUT), whitening, {})
    third = Made(named("whitened", first, second), whitened, {})
    return [
        first, second, third,
        Made(named("descriptors", first, second), described, {}),
        Made(named("codes", first, second), encoded, {}),
        Made(named("canaries"), canaries, {}),
        Made(named("students", third), {}, student),
        Made(named("scores", first), scores, {}),
    ]  # fmt: skip


def _seen(draw: np.random.Generator, ids: np.ndarray, name: str, shape: tuple[int, ...], dtype: Any) -> Arrays:
    valid = draw.uniform(size=IMAGES) < 0.8
    vectors = draw.normal(size=shape).astype(dtype)
    vectors[~valid] = np.nan
    return {"ids": ids, name: vectors, "valid": valid, "digests": draw.integers(0, 256, (IMAGES, 32)).astype(np.uint8)}


def _listed(images: ImageList) -> Arrays:
    boxes = np.array([box or (np.nan,) * 4 for box in images.boxes or ()])
    labels = _text(images.labels)
    return {"ids": _text(images.ids), "paths": _text(images.paths), "labels": labels, "boxes": boxes}


def _text(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)


def write(root: Path, made: list[Made], *, shard_rows: int = CUT, all_sealed: bool = False) -> None:
    """Write what is missing; of an artifact that is left unsealed every second shard, unless all are to be sealed."""
    store = FeatureStore.open(root, write=True)
    for each in made:
        if store.is_sealed(each.key):
            continue
        shapes = {name: a.shape for name, a in each.arrays.items()}
        writer = store.writer(each.identity, shapes, attributes={"label": "é"}, shard_rows=shard_rows)
        for shard in writer.missing():
            if each.sealed or all_sealed or shard % 2 == 0:
                rows = writer.shard_range(shard)
                cut = each.key.kind in layout.ROWWISE
                part = {n: a[rows.start : rows.stop] for n, a in each.arrays.items()} if cut else each.arrays
                writer.write(shard, part, each.blobs)
        if each.sealed or all_sealed:
            writer.seal()


def make(root: Path, seed: int, *, shard_rows: int = CUT) -> list[Made]:
    """A store with a catalog; what it holds."""
    made = contents(seed)
    write(root, made, shard_rows=shard_rows)
    catalog.publish(FeatureStore.open(root, write=True).files)
    return made


def tree(root: Path) -> Tree:
    """The bytes of every file by path, without provenance and temporary files."""
    found = {}
    for folder, _, names in os.walk(root):
        inside = f"{folder.removeprefix(str(root))}/".lstrip("/")
        if not inside.startswith((".cgd/provenance/", ".cgd/tmp/")):
            found.update({f"{inside}{name}": Path(folder, name).read_bytes() for name in names})
    return found


def linked(source: Path, target: Path) -> Path:
    """A copy that costs nothing: nobody writes into a file that stands, neither the store nor the harms below."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


@dataclass(frozen=True)
class Place:
    """A copy to be harmed: its files by path, those of other stores with the same keys, and where chance comes from."""

    root: Path
    files: Tree
    others: list[Tree]
    draw: np.random.Generator

    def put(self, path: str, data: bytes | None) -> None:
        """Let `data`, or no file, stand at `path`; links to what stood there are not touched."""
        target = self.root / path
        target.unlink(missing_ok=True)
        if data is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def pick(self, wanted: Callable[[str], bool] = lambda _: True) -> str:
        """One of the files for which damage can be told."""
        return str(self.draw.choice([p for p in self.files if can_be_told(p) and wanted(p)]))

    def key(self, kinds: Any = layout.LAYOUT) -> str:
        """One of the sealed artifacts."""
        seals = [p.removeprefix(f"{layout.SEALS}/")[:-5] for p in self.files if p.startswith(layout.SEALS)]
        return str(self.draw.choice([key for key in seals if key.split("/")[0] in kinds]))


def can_be_told(path: str) -> bool:
    """Whether the file may not be missing. Without its receipt a shard of an unsealed artifact is not there yet."""
    return not ("half-" in path and path.startswith(layout.RECEIPTS)) and path != catalog.PATH


def is_shard(path: str) -> bool:
    return "/c/" in path


def flip(at: Place) -> None:
    path = at.pick() if at.draw.random() < 0.9 else at.pick(lambda p: not is_shard(p))
    data = bytearray(at.files[path])
    for _ in range(at.draw.integers(1, 4)):
        data[at.draw.integers(len(data))] ^= 1 << int(at.draw.integers(8))
    at.put(path, bytes(data))


def truncate(at: Place) -> None:
    path = at.pick()
    at.put(path, at.files[path][: at.draw.integers(len(at.files[path]))])


def delete(at: Place) -> None:
    at.put(at.pick(), None)


def delete_folder(at: Place) -> None:
    """An artifact's folder, an array's, or its receipts."""
    key = at.key()
    folders = [key, f"{layout.RECEIPTS}/{key}", *(f"{key}/{p.name}" for p in (at.root / key).iterdir() if p.is_dir())]
    shutil.rmtree(at.root / str(at.draw.choice(folders)))


def append(at: Place) -> None:
    path = at.pick()
    at.put(path, at.files[path] + at.draw.bytes(int(at.draw.integers(0, 40))) + b"\1")  # white space is no damage


def zeros(at: Place) -> None:
    """Zeros where the disk had something, as after a power cut."""
    path = at.pick(lambda p: any(at.files[p]))
    start, length = at.draw.integers(len(at.files[path])), at.draw.integers(1, 64)
    at.put(path, at.files[path][:start] + bytes(length) + at.files[path][start + length :])


def swap(at: Place, one: str, two: str) -> None:
    at.put(one, at.files.get(two))
    at.put(two, at.files.get(one))


def swap_shards(at: Place) -> None:
    """Of the same array."""
    one = at.pick(is_shard)
    array = one.split("/c/")[0]
    swap(at, one, at.pick(lambda p: p.startswith(f"{array}/c/")))


def swap_arrays(at: Place) -> None:
    """The same rows of two arrays, or any two shards."""
    one = at.pick(is_shard)
    key, shard = one.rpartition("/c/")[0].rpartition("/")[0], one.partition("/c/")[2].split("/")[0]
    near = at.draw.random() < 0.5
    swap(at, one, at.pick(lambda p: is_shard(p) and (not near or (p.startswith(key) and f"/c/{shard}" in p))))


def swap_across(at: Place) -> None:
    """The same shard of two artifacts of a kind."""
    one = at.pick(lambda p: is_shard(p) and "/vectors/" in p)
    kind, _, rest = one.split("/", 2)
    swap(at, one, at.pick(lambda p: p.startswith(f"{kind}/") and p.endswith(f"/{rest}")))


def _swap_folders(at: Place, *, everything: bool) -> None:
    one = at.key(("images", "embeddings", "whitening", "whitened", "students", "scores"))
    kind = one.split("/")[0]
    two = at.key((kind,))
    if one == two:
        return
    places = [("", ""), (f"{layout.RECEIPTS}/", ""), (f"{layout.SEALS}/", ".json")] if everything else [("", "")]
    for before, after in places:
        mine, theirs = (at.root / f"{before}{key}{after}" for key in (one, two))
        mine.rename(at.root / "aside")
        theirs.rename(mine)
        (at.root / "aside").rename(theirs)


def swap_artifacts(at: Place) -> None:
    _swap_folders(at, everything=False)


def swap_artifacts_with_seals(at: Place) -> None:
    _swap_folders(at, everything=True)


def metadata(at: Place) -> None:
    """One value of a `zarr.json` is another, as well formed as before."""
    path = at.pick(lambda p: p.endswith("zarr.json"))
    at.put(path, _edited(at, at.files[path]))


def swap_metadata(at: Place) -> None:
    one = at.pick(lambda p: p.endswith("zarr.json"))
    swap(at, one, at.pick(lambda p: p.endswith("zarr.json") and p.count("/") == one.count("/")))


def receipts(at: Place) -> None:
    """Edited by hand, perhaps by one who knows how they prove themselves; or two that are swapped."""
    own = f"{layout.RECEIPTS}/"
    one = at.pick(lambda p: p.startswith(own))
    if at.draw.random() < 0.4:
        swap(at, one, at.pick(lambda p: p.startswith(own)))
    else:
        at.put(one, _edited(at, at.files[one]))


def seals(at: Place) -> None:
    """As receipts; or none."""
    own = f"{layout.SEALS}/"
    one = at.pick(lambda p: p.startswith(own))
    what = at.draw.integers(3)
    if what == 0:
        swap(at, one, at.pick(lambda p: p.startswith(own)))
    else:
        at.put(one, _edited(at, at.files[one]) if what == 1 else None)


def foreign(at: Place) -> None:
    """The same file of another store, where the same artifacts have other numbers or another cut."""
    other = at.others[at.draw.integers(len(at.others))]
    path = at.pick(lambda p: at.files[p] != other.get(p, at.files[p]))
    at.put(path, other[path])
    if is_shard(path) and at.draw.random() < 0.3:  # with its receipt
        key = "/".join(path.split("/")[:2])
        receipt = f"{layout.RECEIPTS}/{key}/{layout.receipt_name(int(path.split('/c/')[1].split('/')[0]))}"
        if can_be_told(receipt):
            at.put(receipt, other.get(receipt))


def unfinished(at: Place) -> None:
    """A finished shard of an artifact that is being written, its receipt or its metadata."""
    half = [p for p in at.files if "half-" in p]
    path = str(at.draw.choice(half))
    data = bytearray(at.files[path])
    data[at.draw.integers(len(data))] ^= 1 << int(at.draw.integers(8))
    swapped = str(at.draw.choice([p for p in half if p.split("/c/")[0] == path.split("/c/")[0]]))
    gone = None if can_be_told(path) else b""
    choices = [bytes(data), gone, bytes(data[: len(data) // 2]), at.others[0].get(path), at.files[swapped]]
    at.put(path, choices[at.draw.integers(len(choices))])


def damaged_catalog(at: Place) -> None:
    data = bytearray(at.files[catalog.PATH])
    data[at.draw.integers(len(data))] ^= 1 << int(at.draw.integers(8))
    at.put(catalog.PATH, bytes(data) if at.draw.random() < 0.7 else bytes(data[: at.draw.integers(len(data))]))


def strays(at: Place) -> None:
    """A shard that is none, in the folder of an artifact."""
    path = at.pick(lambda p: is_shard(p) and "half-" not in p)
    folder, _, name = path.partition("/c/")
    at.put(f"{folder}/c/{'/'.join(['99', *name.split('/')[1:]])}", at.files[path])


def _edited(at: Place, data: bytes) -> bytes:
    """JSON with one of its values changed; half of the time what it proves itself by is made to fit."""
    value = json.loads(data)
    places = list(_leaves(value))
    holder, name = places[at.draw.integers(len(places))]
    old = holder[name]
    if isinstance(old, str):
        holder[name] = old[:-1] + ("0" if old[-1:] != "0" else "1")
    else:
        holder[name] = [old + 1 if isinstance(old, int) else 1, None, "x", {}, []][at.draw.integers(5)]
    if "sha256" in value and name != "schema" and at.draw.random() < 0.5:  # a newer version would be refused as such
        del value["sha256"]
        return signed(value)
    return json.dumps(value, indent=2).encode()


def _leaves(value: Any) -> Any:
    """Where in a JSON value its scalars stand."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for name, each in inside:
        if isinstance(each, (dict, list)) and each:
            yield from _leaves(each)
        elif not isinstance(each, (dict, list)):
            yield value, name


HARMS: dict[str, Callable[[Place], None]] = {
    each.__name__: each
    for each in (
        flip, truncate, delete, delete_folder, append, zeros, swap_shards, swap_arrays, swap_across, swap_artifacts,
        swap_artifacts_with_seals, metadata, swap_metadata, receipts, seals, foreign, unfinished, damaged_catalog,
        strays,
    )
}  # fmt: skip

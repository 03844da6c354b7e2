"""Vectors to and from other tools: what goes out comes back, and what comes in is a teacher like any other."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import made
import numpy as np
import pytest
from PIL import Image

from cgd.config import ExtractConfig, Recipe
from cgd.data.views import FIXED
from cgd.errors import InputError, MissingError
from cgd.pipeline import exchange, scoring, steps
from cgd.pipeline.recipe import override
from cgd.pipeline.steps import Session
from cgd.stages import select
from cgd.stages.descriptors import describe
from cgd.stages.exchange import export_vectors, import_vectors
from cgd.stages.exchange_write import ids_file
from cgd.stages.extract import embeddings_identity
from cgd.stages.imported import imported_source
from cgd.store.feature_store import FeatureStore
from cgd.types import ImageList, Key

DIM = 16


def photographs(folder: Path, *paths: str) -> ImageList:
    """Images named by their paths without a suffix."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / path)
    return ImageList("made", None, tuple(p.removesuffix(".png") for p in paths), paths, folder)


def vectors_of(images: ImageList, seed: int = 0) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).standard_normal((len(images), DIM)).astype(np.float32)
    return dict(zip(images.ids, drawn, strict=True))


def hloc(file: Path, vectors: dict[str, np.ndarray]) -> Path:
    """As hloc writes it: one group per image, appended one after the other."""
    for name, vector in vectors.items():
        with h5py.File(file, "a", libver="latest") as target:
            target.create_group(name).create_dataset("global_descriptor", data=vector)
    return file


def store_in(folder: Path) -> FeatureStore:
    return FeatureStore.open(folder / "s.zarr", write=True)


def stored(store: FeatureStore, key: Key) -> dict[str, np.ndarray]:
    """The vectors of valid images by their ids."""
    artifact = store.get(key)
    rows = zip(artifact.read("ids"), artifact.read("vectors"), artifact.read("valid"), strict=True)
    return {name: vector[0] for name, vector, valid in rows if valid}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    return photographs(tmp_path / "photos", "a.png", "a/b.png", "line\nbreak.png", "é.png", "lost.png")


@pytest.mark.parametrize(("name", "layout"), [("v.h5", "hloc"), ("v.hdf5", "plain"), ("v.npy", None)])
def test_what_goes_out_comes_back(tmp_path: Path, images: ImageList, name: str, layout: str | None) -> None:
    store, vectors = store_in(tmp_path), vectors_of(images)
    del vectors["lost"]
    first = import_vectors(store=store, images=images, file=hloc(tmp_path / "theirs.h5", vectors), label="theirs")
    assert (first.valid, first.absent, first.unknown, first.matched) == (4, 1, 0, "ids")
    out = export_vectors(store=store, key=first.key, file=tmp_path / name, layout=layout)
    assert (out.rows, out.invalid, out.dim, out.dtype) == (4 if layout == "hloc" else 5, 1, DIM, "float32")
    again = import_vectors(store=store, images=images, file=tmp_path / name, label="again")
    assert (again.valid, again.absent + again.unusable, again.matched) == (4, 1, "ids")
    assert same(stored(store, again.key), vectors)
    assert not list(tmp_path.glob("*.part"))


def test_an_imported_row_tells_of_its_image_what_an_extraction_tells(tmp_path: Path, images: ImageList) -> None:
    assert images.root
    (images.root / "a.png").write_bytes(b"no picture")
    vectors = vectors_of(images)
    del vectors["lost"]
    store = store_in(tmp_path)
    report = import_vectors(store=store, images=images, file=hloc(tmp_path / "v.h5", vectors), label="theirs")
    artifact = store.get(report.key)
    reasons = dict(zip(images.ids, artifact.read("reasons"), strict=True))
    assert reasons["a"].startswith("UnidentifiedImageError")
    assert reasons == {**dict.fromkeys(images.ids, ""), "a": reasons["a"], "lost": "not in the imported file"}
    assert artifact.read("valid").tolist() == [not reasons[name] for name in images.ids]
    assert np.isnan(artifact.read("vectors")[~artifact.read("valid")]).all()
    assert (report.undecodable, report.absent, report.valid) == (1, 1, 3)
    assert artifact.read("digests").any(axis=1).all()
    assert [problems for _, problems in store.verify()] == [[], []]  # the images, the embeddings


def test_an_export_is_read_as_hloc_reads_its_own(tmp_path: Path, images: ImageList) -> None:
    vectors, store = vectors_of(images), store_in(tmp_path)
    key = import_vectors(store=store, images=images, file=hloc(tmp_path / "v.h5", vectors), label="theirs").key
    export_vectors(store=store, key=key, file=tmp_path / "out.h5")
    names: set[str] = set()
    with h5py.File(tmp_path / "out.h5", "r", libver="latest") as found:
        found.visititems(lambda _, o: names.add(o.parent.name.strip("/")) if isinstance(o, h5py.Dataset) else None)
        assert same({name: found[name]["global_descriptor"][()] for name in names}, vectors)


def test_a_plain_file_and_a_npy_file_are_what_they_are_said_to_be(tmp_path: Path, images: ImageList) -> None:
    vectors, store = vectors_of(images), store_in(tmp_path)
    del vectors["a/b"]
    key = import_vectors(store=store, images=images, file=hloc(tmp_path / "v.h5", vectors), label="theirs").key
    export_vectors(store=store, key=key, file=tmp_path / "out.h5", layout="plain")
    export_vectors(store=store, key=key, file=tmp_path / "out.npy")
    with h5py.File(tmp_path / "out.h5") as found:
        ids, features, valid = found["ids"].asstr()[()].tolist(), found["features"][()], found["valid"][()]
    assert tuple(ids) == images.ids
    assert valid.tolist() == [name in vectors for name in images.ids]
    assert same(dict(zip(np.array(ids)[valid], features[valid], strict=True)), vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), features)
    beside = json.loads((tmp_path / "out.npy.ids.json").read_text())
    assert beside == {"ids": ids, "valid": valid.tolist()}


def test_scales_are_joined_and_half_precision_is_copied(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    several = np.random.default_rng(1).standard_normal((5, 2, DIM)).astype(np.float32)
    key = made.embeddings(store, made.image_list("two", None, 5), several, shard_rows=2)
    report = export_vectors(store=store, key=key, file=tmp_path / "two.npy")
    assert report.combined == "mean"
    expected = [sum(v / np.linalg.norm(v) for v in row) / 2 for row in several.astype(np.float64)]
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), expected, rtol=1e-5, atol=1e-7)
    export_vectors(store=store, key=key, file=tmp_path / "two.h5", layout="plain")  # shard by shard
    with h5py.File(tmp_path / "two.h5") as found:
        np.testing.assert_array_equal(found["features"], np.load(tmp_path / "two.npy"))
        assert found["ids"].asstr()[()].tolist() == store.get(key).read("ids").tolist()
    half = describe(store, key, None)
    assert export_vectors(store=store, key=half, file=tmp_path / "half.npy").combined is None
    assert np.load(tmp_path / "half.npy").dtype == np.float16
    np.testing.assert_array_equal(np.load(tmp_path / "half.npy"), store.get(half).read("vectors"))


@pytest.mark.parametrize(
    "name", ["a//b", "/a", "a/", "./a", "a/../b", "a/global_descriptor", "global_descriptor/a", "a\0b"]
)
def test_ids_that_are_no_paths_are_refused_in_hlocs_layout_only(tmp_path: Path, name: str) -> None:
    names, store = (name, "a", "a/b"), store_in(tmp_path)
    key = made.embeddings(store, ImageList("odd", None, names, names), np.ones((3, DIM)))
    reason = "zero byte" if "\0" in name else "cannot be a path in hloc's layout"
    with pytest.raises(InputError, match=reason):
        export_vectors(store=store, key=key, file=tmp_path / "out.h5")
    if "\0" in name:
        with pytest.raises(InputError, match=r"export to a file \.npy"):
            export_vectors(store=store, key=key, file=tmp_path / "out.h5", layout="plain")
    else:
        assert export_vectors(store=store, key=key, file=tmp_path / "plain.h5", layout="plain").rows == 3
    assert not list(tmp_path.glob("out*"))
    export_vectors(store=store, key=key, file=tmp_path / "out.npy")
    assert json.loads((tmp_path / "out.npy.ids.json").read_text())["ids"] == list(names)


def test_rows_are_found_by_id_path_or_order(tmp_path: Path, images: ImageList) -> None:
    vectors, store = vectors_of(images), store_in(tmp_path)
    rows = np.stack(list(vectors.values()))
    shuffled = np.random.default_rng(2).permutation(len(rows))
    with h5py.File(tmp_path / "shuffled.h5", "w") as target:
        target["features"] = rows[shuffled].astype(np.float64)
        target["ids"] = np.array(images.ids, object)[shuffled]
    hloc(tmp_path / "paths.h5", dict(zip(images.paths, rows, strict=True)))
    np.save(tmp_path / "order.npy", rows)
    np.save(tmp_path / "listed.npy", np.asfortranarray(rows[shuffled]))
    ids_file(tmp_path / "listed.npy").write_text(json.dumps([images.ids[n] for n in shuffled]))
    for name, matched in {"shuffled.h5": "ids", "paths.h5": "paths", "order.npy": "order", "listed.npy": "ids"}.items():
        report = import_vectors(store=store, images=images, file=tmp_path / name, label=f"by-{matched}")
        assert report.matched == matched
        assert same(stored(store, report.key), vectors)


def test_what_the_data_set_does_not_know_is_left_and_said(
    tmp_path: Path, images: ImageList, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = vectors_of(images)
    file = hloc(tmp_path / "v.h5", {**vectors, "else/where": vectors["a"], "other": vectors["a"]})
    with caplog.at_level(logging.WARNING, "cgd"):
        report = import_vectors(store=store_in(tmp_path), images=images, file=file, label="theirs")
    assert (report.valid, report.unknown) == (5, 2)
    assert "2 of the 7 ids" in caplog.text
    assert "e.g. 'else/where'" in caplog.text


def test_importing_again_does_nothing(tmp_path: Path, images: ImageList) -> None:
    file, store = hloc(tmp_path / "v.h5", vectors_of(images)), store_in(tmp_path)
    first = import_vectors(store=store, images=images, file=file, label="theirs")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    file.rename(tmp_path / "renamed.h5")
    again = import_vectors(store=store, images=images, file=tmp_path / "renamed.h5", label="theirs")
    assert (first.key, first.skipped, again.skipped) == (again.key, False, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")} == before
    other = hloc(tmp_path / "other.h5", vectors_of(images, seed=1))
    assert import_vectors(store=store, images=images, file=other, label="theirs").key != first.key
    with pytest.raises(MissingError, match=r"2 files were imported as 'theirs'; name one of: imported:theirs\?sha256="):
        imported_source(store, "theirs")


def test_a_file_that_changes_while_it_is_imported(tmp_path: Path, images: ImageList) -> None:
    file, store = tmp_path / "v.npy", store_in(tmp_path)
    np.save(file, np.stack(list(vectors_of(images).values())))

    class Images(ImageList):
        """Its root is asked for when images are read, in the middle of an import."""

        def __getattribute__(self, name: str) -> Any:
            if name == "root":
                ids_file(file).write_text(json.dumps(images.ids))
            return super().__getattribute__(name)

    with pytest.raises(InputError, match=r"v\.npy was written to while it was imported"):
        import_vectors(store=store, images=Images(**vars(images)), file=file, label="theirs")
    assert not [entry for entry in store.entries("embeddings") if entry.sealed]


def test_an_interrupted_import_continues(tmp_path: Path, images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store, whole = hloc(tmp_path / "v.h5", vectors_of(images)), store_in(tmp_path), images.root
    assert whole
    (whole / "lost.png").rename(tmp_path / "kept.png")
    monkeypatch.setattr("cgd.store.layout.SHARD_BYTES", 4 * DIM * 2)  # two rows
    with pytest.raises(InputError, match=r"the image lost\.png is missing below"):
        import_vectors(store=store, images=images, file=file, label="theirs", workers=0)
    (entry,) = store.entries("embeddings")
    assert (entry.sealed, entry.shards_done) == (False, 2)
    (tmp_path / "kept.png").rename(whole / "lost.png")
    report = import_vectors(store=store, images=images, file=file, label="theirs")
    assert same(stored(store, report.key), vectors_of(images))


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, ImageList]:
    """A session in which drawn landmarks, all and the part for training, have the vectors of one file."""
    folder = tmp_path_factory.mktemp("imported")
    session = Session(str(folder / "s.zarr"), device="cpu", workers=0, workspace=steps.Workspace(folder / "roots.yaml"))
    data = f"manifest:{drawn / 'manifest.csv'}"
    everything, images = session.workspace.images(data, "lm"), session.workspace.images(data, "lm", "train")
    file = hloc(folder / "theirs.h5", vectors_of(everything))
    for dataset in ("lm", "lm@train"):
        exchange.import_(session, file, dataset, None, "theirs")
    return session, images


def test_it_stands_where_an_extraction_would_look(trained: tuple[Session, ImageList]) -> None:
    session, images = trained
    source = imported_source(session.store(), "theirs")
    assert source is not None
    assert session.store().is_sealed(embeddings_identity(images, source, FIXED, ExtractConfig()).key)
    (by_name,) = steps.teacher_sources(session, [source.text])
    assert by_name.identity == source.identity


def test_a_student_is_distilled_from_it(
    trained: tuple[Session, ImageList], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    session, images = trained
    recipe = override(tiny_recipe, ["distill.views=fixed", "distill.epochs=1", "whiten.dim=8"])
    raw = select.teachers_of(session.store(), "lm", "train", ["theirs"])
    assert {label: list(views) for label, views in raw.items()} == {"theirs": [FIXED]}
    whitened = {label: views for label, (_, views) in steps.fit_whitening(session, raw, recipe.whiten).items()}
    report = steps.distill(session, images, whitened, recipe, tmp_path / "student")
    assert np.isfinite(report.final_loss)
    vectors: Any = session.store().get(whitened["theirs"][FIXED])
    assert export_vectors(store=session.store(), key=vectors.key, file=tmp_path / "w.h5").dtype == "float16"
    sources = steps.stored_sources(session, whitened, ())
    with pytest.raises(InputError, match="the vectors of theirs were imported, there is no network"):
        steps.prove(session, images, whitened, sources, recipe, count=1, samples=2)


def test_it_is_scored_where_its_vectors_are(trained: tuple[Session, ImageList], tiny_recipe: Recipe) -> None:
    session, images = trained
    sources = steps.teacher_sources(session, ["theirs"])
    whole = made.Benchmark("lm", images, images, None)
    (result,) = scoring.evaluate(session, whole, sources, tiny_recipe)
    assert result["model"] == "theirs"
    assert result["card"]["resize"] == "unknown"
    query = session.workspace.images("lm@query")
    with pytest.raises(InputError, match="import those of other images from the same file"):
        scoring.evaluate(session, made.Benchmark("lm", query, query, None), sources, tiny_recipe)

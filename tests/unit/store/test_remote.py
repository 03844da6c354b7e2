"""Stores behind URLs: one contract for every place, and what bad servers do: a clear sentence, never a wrong row."""

from __future__ import annotations

import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import aiohttp
import fsspec
import numpy as np
import pytest
import s3fs
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from servers import SECRET, s3_bucket, unused_url, web_server

from cgd.errors import CgdError, InputError, MissingError, StoreError
from cgd.store import catalog, layout, remote
from cgd.store.feature_store import FeatureStore
from cgd.store.files import LocalFiles
from cgd.store.keys import identify
from cgd.store.remote import HttpFiles, RemoteFiles, open_files, without_secrets
from cgd.store.seals import signed


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as made:
        yield made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0)


@pytest.fixture
def memory():
    yield "memory://team/features.zarr"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """The URL of an empty place that can be written to."""
    if request.param == "local":
        return str(tmp_path / "features.zarr")
    if request.param == "memory":
        return request.getfixturevalue("memory")
    return request.getfixturevalue("bucket").url(tmp_path.name)


@pytest.fixture
def files(place):
    return open_files(place, write=True)


def test_what_is_published_is_read_back_listed_and_measured(files):
    assert files.publish("a/b/c", b"\0whole")
    assert files.publish("a/d", b"")
    assert files.read("a/b/c") == b"\0whole"
    assert (files.exists("a/b/c"), files.exists("a/d"), files.exists("a/b"), files.exists("x")) == (
        True, True, False, False,
    )  # fmt: skip
    assert (files.size("a/b/c"), files.size("a/d")) == (6, 0)
    assert (files.children("a"), files.children("a/b"), files.children("x")) == (["b", "d"], ["c"], [])
    assert (files.walk("a"), files.walk("a/b"), files.walk("x")) == (["a/b/c", "a/d"], ["a/b/c"], [])
    assert "a" in files.children("")


@pytest.mark.parametrize("ask", ["read", "size"])
def test_a_missing_file_is_told_by_its_name(files, ask):
    files.publish("a/b", b"1")
    with pytest.raises(FileNotFoundError):
        getattr(files, ask)("a/c")
    if ask == "read":
        with pytest.raises(FileNotFoundError):
            files.read("a")


def test_the_first_publication_stays(files):
    assert files.publish("a", b"first") is True
    assert files.publish("a", b"second") is False
    assert files.read("a") == b"first"


def test_replacing_and_removing(files):
    files.publish("a/b", b"first")
    files.replace("a/b", b"second")
    files.replace("a/new", b"2")
    assert (files.read("a/b"), files.read("a/new")) == (b"second", b"2")
    files.remove("a/b")
    files.remove("a/b")
    assert not files.exists("a/b")
    assert files.publish("a/b", b"third")


def test_what_is_open_for_reading_writes_nothing(place, files):
    files.publish("a", b"1")
    reading = open_files(place)
    for write in (
        lambda: reading.publish("b", b""), lambda: reading.replace("a", b""), lambda: reading.remove("a")
    ):  # fmt: skip
        with pytest.raises(StoreError, match="open for reading only"):
            write()
    assert reading.read("a") == b"1"


def test_one_of_eight_wins(place):
    everyone = [open_files(place, write=True) for _ in range(8)]
    for each in everyone:
        each.publish("warm", b"")
    meet = Barrier(8)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for name in map(str, range(5 if place.startswith("s3:") else 80)):

            def go(number, name=name):
                meet.wait()
                return everyone[number].publish(name, b"%d" % number)

            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(go, range(8)))
            assert sum(won) == 1
            assert everyone[0].read(name) == b"%d" % won.index(True)
    finally:
        sys.setswitchinterval(before)


# Stores


def filled(store, identity, arrays, *, stop=None, shard_rows=4):
    """Write what a writer of `arrays` still lacks, at most `stop` shards; seals unless stopped."""
    writer = store.writer(identity, {n: a.shape for n, a in arrays.items()}, shard_rows=shard_rows)
    missing = list(writer.missing())
    for shard in missing[:stop]:
        rows = writer.shard_range(shard)
        writer.write(shard, {n: a[rows.start : rows.stop] for n, a in arrays.items()})
    if stop is None:
        writer.seal()
    return len(missing)


def same(artifact, arrays):
    for name, expected in arrays.items():
        np.testing.assert_array_equal(artifact.read(name), expected)


def test_a_store_is_written_resumed_read_and_whole(place, identity, embeddings):
    arrays = embeddings()
    with pytest.raises(MissingError, match="there is no feature store at"):
        FeatureStore.open(place)
    assert filled(FeatureStore.open(place, write=True), identity, arrays, stop=1) == 3
    store = FeatureStore.open(place)
    assert [(e.sealed, e.shards_done) for e in store.entries()] == [(False, 1)]
    with pytest.raises(MissingError, match="not whole yet"):
        store.get(identity.key)
    assert filled(FeatureStore.open(place, write=True), identity, arrays) == 2
    store = FeatureStore.open(place)
    same(store.get(identity.key), arrays)
    np.testing.assert_array_equal(
        store.get(identity.key).gather("vectors", np.array([9, 0])), arrays["vectors"][[9, 0]]
    )
    assert store.get(identity.key).size > 0
    assert dict(store.verify()) == {identity.key: []}
    assert [record["shards_written"] for record in store.provenance(identity.key) if "finished" in record] == [2]


def test_two_racing_writers_make_up_one_artifact(place, identity, embeddings):
    """Their vectors differ in every bit that rounding may change: each shard is one's or the other's, whole."""
    ours, theirs = embeddings(rows=20), embeddings(rows=20)
    theirs["vectors"] = theirs["vectors"] * np.float32(1 + 1e-6)
    meet = Barrier(2)

    def write(arrays):
        store = FeatureStore.open(place, write=True)
        meet.wait()
        filled(store, identity, arrays)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [ours, theirs]))
    store = FeatureStore.open(place)
    assert dict(store.verify()) == {identity.key: []}
    for rows, (ids, vectors) in store.get(identity.key).blocks("ids", "vectors"):
        assert list(ids) == list(ours["ids"][rows.start : rows.stop])
        wrote = [np.array_equal(vectors, a["vectors"][rows.start : rows.stop], equal_nan=True) for a in (ours, theirs)]
        assert any(wrote)


def test_plain_zarr_opens_a_bucket(bucket, tmp_path, identity, embeddings):
    url, arrays = bucket.url(tmp_path.name), embeddings()
    filled(FeatureStore.open(url, write=True), identity, arrays)
    root = zarr.open_group(url, mode="r", storage_options={"endpoint_url": bucket.endpoint})
    members = dict(root.members(max_depth=None))
    assert members.keys() == {".cgd", "embeddings", str(identity.key), *(f"{identity.key}/{name}" for name in arrays)}
    np.testing.assert_array_equal(root[f"{identity.key}/vectors"][:], arrays["vectors"])


def test_a_bucket_asked_again_is_asked_little(bucket, tmp_path, identity, embeddings):
    url = bucket.url(tmp_path.name)
    filled(FeatureStore.open(url, write=True), identity, embeddings())
    store = FeatureStore.open(url)
    store.get(identity.key).read("valid")
    bucket.requests.clear()
    store.get(identity.key).read("vectors")
    assert [r.split("/")[-4:] for r in bucket.requests] == [["c", str(n), "0", "0"] for n in range(3)]


# Without this package


def test_every_kind_opens_in_xarray_without_a_warning(tmp_path):
    """Dimensions have names. An artifact brings its metadata; xarray wants to hear that a growing store has none."""
    xarray = pytest.importorskip("xarray")
    store = FeatureStore.open(tmp_path / "features.zarr", write=True)
    sizes = {"image": 5, "byte": 32, "view": 5, "corner": 4}
    for kind, declared in layout.LAYOUT.items():
        shapes = {a.name: tuple(sizes.get(d, 3) for d in a.dims) for a in declared}
        arrays = {
            a.name: np.array([f"ß{n}" for n in range(shapes[a.name][0])], object)
            if a.dtype == "str"
            else np.arange(np.prod(shapes[a.name])).reshape(shapes[a.name]).astype(a.dtype)
            for a in declared
        }
        key = store.write_whole(
            identify(kind, ["x"], 1, {"kind": kind}), arrays, blobs=None if declared else {"a": b""}
        )
        if declared:
            with xarray.open_zarr(tmp_path / "features.zarr", group=str(key), consolidated=False) as opened:
                assert opened.sizes == xarray.open_zarr(tmp_path / "features.zarr" / str(key)).sizes
                assert opened.keys() | opened.coords.keys() == arrays.keys()
                for a in declared:
                    assert opened[a.name].dims == a.dims
                    np.testing.assert_array_equal(opened[a.name].values, arrays[a.name])
    with xarray.open_datatree(tmp_path / "features.zarr", engine="zarr", consolidated=False) as tree:
        assert tree["whitening"].children


# Servers that do otherwise


class Careless(MemoryFileSystem):
    """A server that takes `If-None-Match` for granted."""

    protocol = "careless"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("careless://", "memory://"))

    def pipe_file(self, path, value, mode="overwrite", **_):  # noqa: ARG002
        super().pipe_file(path, value)


class Checking(Careless):
    """A system that looks and then writes, as fsspec does where nothing better is known."""

    protocol = "careless"
    pipe_file = fsspec.AbstractFileSystem.pipe_file


@pytest.mark.parametrize("system", [Careless, Checking])
def test_a_server_without_conditional_writes_is_refused(system):
    fsspec.register_implementation("careless", system, clobber=True)
    files = open_files("careless://team/x", write=True)
    with pytest.raises(StoreError, match=r"careless://team/x does not know conditional writes \(If-None-Match\)"):
        files.publish("zarr.json", b"{}")
    assert not files.exists("zarr.json")


def test_another_wording_of_exists_already_is_understood(bucket, tmp_path, monkeypatch):
    """Amazon names the condition that failed, other servers do not, and s3fs knows only Amazon's answer."""
    import s3fs.core

    def plain(error, *_, **__):
        error.response["Error"].pop("Condition", None)
        return translate(error)

    translate = s3fs.core.translate_boto_error
    monkeypatch.setattr(s3fs.core, "translate_boto_error", plain)
    files = open_files(bucket.url(tmp_path.name), write=True)
    assert (files.publish("a", b"1"), files.publish("a", b"2")) == (True, False)
    assert files.read("a") == b"1"


def failing(monkeypatch, name, *errors):
    """Let the first calls of the memory's method raise `errors`; how often it was called."""
    calls = []
    right = getattr(MemoryFileSystem, name)

    def wrong(self, *arguments, **named):
        calls.append(arguments)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return right(self, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, name, wrong)
    return calls


def test_what_fails_in_passing_is_tried_again(memory, monkeypatch):
    files = open_files(memory, write=True)
    files.publish("a", b"1")
    calls = failing(monkeypatch, "cat_file", TimeoutError(), aiohttp.ServerDisconnectedError())
    assert files.read("a") == b"1"
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("error", "asked", "told"),
    [
        (OSError(5, "the cable is out"), 4, r"cannot look for a in the store memory://.*the cable is out; nothing"),
        (PermissionError("Access Denied"), 1, "Access Denied; nothing stored is lost: mend that"),
        (RuntimeError("a library's own"), 1, "a library's own"),
    ],
)
def test_what_fails_for_good_is_no_missing_file(memory, monkeypatch, error, asked, told):
    files = open_files(memory)
    calls = failing(monkeypatch, "info", *[error] * 9)
    with pytest.raises(StoreError, match=told):
        files.exists("a")
    assert len(calls) == asked


def test_a_bug_keeps_its_traceback(memory, monkeypatch):
    failing(monkeypatch, "info", TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        open_files(memory).exists("a")


def test_there_is_no_such_bucket(bucket):
    assert bucket.client
    with pytest.raises(MissingError, match="there is no feature store at s3://nobody/x"):
        FeatureStore.open("s3://nobody/x")
    store = FeatureStore.open("s3://nobody/x", write=True)
    with pytest.raises(StoreError, match="s3://nobody/x: there is no such bucket; create it, or name another"):
        store.files.publish("zarr.json", b"")


def test_without_credentials_and_without_rights(bucket, monkeypatch):
    async def denied(*_, **__):
        raise PermissionError("The AWS Access Key Id you provided does not exist in our records.")

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", denied)
        with pytest.raises(StoreError, match=r"look for zarr\.json in the store s3://team/x: The AWS Access Key"):
            FeatureStore.open(bucket.url("x"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"{bucket.endpoint}/"})  # another client
    with pytest.raises(StoreError, match="Unable to locate credentials") as told:
        FeatureStore.open(bucket.url("x"))
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("s3fs", "s3://a/b", "s3"), ("gcsfs", "gs://a/b", "gcs"), ("aiohttp", "http://a/b", "remote")],
)
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, module, url, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(MissingError, match=rf"needs other packages: pip install 'cgd\[{extra}\]'"):
        open_files(url)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(InputError, match=r"foo://x: Protocol not known: foo; name a folder, s3://"):
        open_files("foo://x")


# HTTP


@pytest.fixture
def shared(tmp_path, identity, embeddings):
    """A folder with a store that has a catalog, and its arrays."""
    arrays = embeddings()
    store = FeatureStore.open(tmp_path / "features.zarr", write=True)
    filled(store, identity, arrays)
    store.write_whole(identify("students", ["x"], 1, {"kind": "x"}), {}, blobs={"log.jsonl": b"<not html>"})
    catalog.publish(store.files)
    return tmp_path, arrays


@pytest.fixture(params=[True, False], ids=["ranges", "no-ranges"])
def web(request, shared):
    with web_server(shared[0], ranges=request.param) as server:
        yield server


def test_everything_is_read_over_http(web, shared, identity):
    local, there = FeatureStore.open(shared[0] / "features.zarr"), FeatureStore.open(f"{web.url}/features.zarr")
    same(there.get(identity.key), shared[1])
    assert [(e.key, e.sealed, e.shards_done) for e in there.entries()] == [
        (e.key, e.sealed, e.shards_done) for e in local.entries()
    ]
    assert there.provenance(identity.key) == local.provenance(identity.key)
    assert there.get(identity.key).size == local.get(identity.key).size
    assert [len(block[0]) for _, block in there.get(identity.key).blocks("ids")] == [4, 4, 2]
    assert [len(list(rows)) for rows, _ in there.finished_shards(identity.key)] == [4, 4, 2]
    (student,) = there.find("students")
    assert there.get(student).blob("log.jsonl") == b"<not html>"
    assert dict(there.verify()) == {identity.key: [], student: []}
    assert there.resolve("small", ("embeddings",)) == identity.key


def test_the_http_contract(web, shared, identity):
    local, there = LocalFiles(shared[0] / "features.zarr"), open_files(f"{web.url}/features.zarr/")
    assert isinstance(there, HttpFiles)
    for path in ("zarr.json", f"{identity.key}/zarr.json", f"{identity.key}/ids/c/0", catalog.PATH):
        assert there.read(path) == local.read(path)
        assert there.size(path) == local.size(path)
        assert there.exists(path)
    for folder in ("embeddings", "scores", ".cgd/seals/embeddings", f".cgd/receipts/{identity.key}"):
        assert there.children(folder) == [name for name in local.children(folder) if name != "zarr.json"]
    assert there.walk(f".cgd/receipts/{identity.key}") == local.walk(f".cgd/receipts/{identity.key}")
    for missing in ("a", f".cgd/seals/{identity.key}.jsom", f"{identity.key}/a", "scores/x"):
        assert not there.exists(missing)
        for ask in (there.read, there.size):
            with pytest.raises(FileNotFoundError):
                ask(missing)
    with pytest.raises(StoreError, match="open for reading only"):
        there.publish("a", b"")
    with pytest.raises(StoreError, match=r"can only be read: write to a folder or a bucket \(--store\)"):
        open_files(web.url, write=True)


def test_a_store_without_a_catalog_says_what_to_run(web, shared):
    (shared[0] / "features.zarr" / catalog.PATH).unlink()
    store = FeatureStore.open(f"{web.url}/features.zarr")
    with pytest.raises(MissingError, match=r"has no \.cgd/catalog\.json, .* runs `cgd store copy`"):
        list(store.entries())


def test_no_store_there(web):
    with pytest.raises(MissingError, match="there is no feature store at http://127"):
        FeatureStore.open(f"{web.url}/elsewhere")


def first(count, status, *, data=b"", cut=0):
    """What a server does to the first `count` answers to each path."""
    seen: dict[str, int] = {}

    def harm(path, right):
        seen[path] = seen.get(path, 0) + 1
        if seen[path] > count:
            return (200 if right != b"<html>not found</html>" else 404), right, len(right)
        wrong = right[: len(right) // 2] if cut else data
        return status, wrong, len(right) if cut else len(wrong)

    return harm


@pytest.mark.parametrize("harm", [{"status": 500}, {"status": 503}, {"status": 429}, {"status": 200, "cut": 1}])
def test_what_a_server_does_in_passing_is_outlasted(web, shared, identity, harm):
    web.harm = first(2, **harm)
    same(FeatureStore.open(f"{web.url}/features.zarr").get(identity.key), shared[1])


@pytest.mark.parametrize(
    ("harm", "asked", "told"),
    [
        ({"status": 500}, 4, "500, message='Internal Server Error'"),
        ({"status": 200, "cut": 1}, 4, "payload|Response"),
        ({"status": 403}, 1, "403, message='Forbidden'"),
        ({"status": 200, "data": b"<!DOCTYPE html><p>hi"}, 1, r"zarr\.json is a web page and no file of a store"),
        ({"status": 200, "data": b"\n <html>"}, 1, r"zarr\.json is a web page and no file of a store"),
    ],
)
def test_what_a_server_does_for_ever_is_one_sentence(web, harm, asked, told):
    web.harm = first(99, **harm)
    with pytest.raises(StoreError, match=told) as said:
        FeatureStore.open(f"{web.url}/features.zarr")
    assert len(web.requests) == asked
    assert "\n" not in str(said.value)


def test_nobody_listens():
    with pytest.raises(StoreError, match=r"cannot read zarr\.json in the store http://127.*; nothing stored is lost"):
        FeatureStore.open(f"{unused_url()}/features.zarr")


def test_no_wrong_row_is_ever_returned(web, shared, identity):
    """Each file in turn is answered with another's bytes, with some of its own, and with nothing."""
    root = shared[0] / "features.zarr"
    paths = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]
    read = 0
    for path, other in itertools.product(paths, [b"{}", b"", b"half", b"other"]):

        def harm(asked, right, path=path, other=other):
            status = 404 if right == b"<html>not found</html>" else 200
            if asked.removeprefix("features.zarr/") == path:
                next_one = paths[(paths.index(path) + 1) % len(paths)]
                right = {b"half": right[: len(right) // 2], b"other": (root / next_one).read_bytes()}.get(other, other)
            return status, right, len(right)

        web.harm = harm
        with suppress(CgdError):
            same(FeatureStore.open(f"{web.url}/features.zarr").get(identity.key), shared[1])
            read += 1
    assert 0 < read < 4 * len(paths)  # receipts, provenance and the student are not looked at


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "damaged"),
        (signed({"schema": layout.SCHEMA}), "damaged: `cgd store copy` into that store"),
        (signed({"schema": layout.SCHEMA + 1, "artifacts": {}}), f"format version {layout.SCHEMA + 1}, this cgd reads"),
        (signed({"schema": layout.SCHEMA, "artifacts": {"scores/x-" + "0" * 16: None}}), "damaged"),
    ],
)
def test_a_catalog_that_cannot_be_read_is_refused(web, shared, text, told):
    (shared[0] / "features.zarr" / catalog.PATH).write_bytes(text)
    with pytest.raises(StoreError, match=told):
        list(FeatureStore.open(f"{web.url}/features.zarr").entries())


def test_a_newer_store_is_refused(web, shared):
    root = shared[0] / "features.zarr/zarr.json"
    about = json.loads(root.read_text())
    about["attributes"]["cgd"]["schema"] = layout.SCHEMA + 1
    root.write_text(json.dumps(about))
    with pytest.raises(StoreError, match=f"has format version {layout.SCHEMA + 1}, this cgd reads up to"):
        FeatureStore.open(f"{web.url}/features.zarr")


# What must not be printed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ann:s3cret@example.org/f.zarr", "https://example.org/f.zarr"),
        ("https://t0ken@example.org:8080/f.zarr?sig=s3cret", "https://example.org:8080/f.zarr"),
        ("sftp://ann:s3cret@host/f.zarr", "sftp://host/f.zarr"),
        ("s3://team/a@b:c/f.zarr", "s3://team/a@b:c/f.zarr"),
        ("memory://a", "memory://a"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert without_secrets(url) == shown


def test_a_password_reaches_the_server_and_no_message(shared, identity):
    with web_server(shared[0]) as web:
        seen = []
        web.harm = lambda path, data: (seen.append(path), (200, data, len(data)))[1]
        url = f"{web.url.replace('//', '//ann:s3cret@')}/features.zarr?sig=t0ken"
        same(FeatureStore.open(url).get(identity.key), shared[1])
        web.harm = first(99, 500)
        with pytest.raises(StoreError) as told:
            FeatureStore.open(url)
        web.harm = first(99, 404)
        with pytest.raises(MissingError) as missing:
            FeatureStore.open(url)
    for said in (str(told.value), str(missing.value), open_files(url).url):
        assert "s3cret" not in said
        assert "t0ken" not in said


def test_a_password_in_a_buckets_url_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="s3://team/x: user and password do not belong into a bucket's URL") as told:
        open_files("s3://AKIA:s3cret@team/x")
    assert "s3cret" not in str(told.value)


def test_a_url_is_recognised_and_a_folder_is_a_folder(tmp_path):
    assert isinstance(open_files("memory://x"), RemoteFiles)
    assert isinstance(open_files(f"file://{tmp_path}"), LocalFiles)
    assert isinstance(open_files(tmp_path), LocalFiles)
    assert isinstance(open_files(Path("s3:/x")), LocalFiles)

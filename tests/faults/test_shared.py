"""A store that is shared: one person extracts and copies it up, another distils and scores behind a URL."""

from __future__ import annotations

import json
import shutil
import sys

import fsspec
import pytest
from commands import CPU, CROPS, TEACHER, accepted, cgd, distill, refused, sealed
from servers import KEY, SECRET, s3_bucket, unused_url, web_server

from cgd.pipeline.workspace import Workspace
from cgd.store import remote
from cgd.store.catalog import PATH as CATALOG
from cgd.store.feature_store import FeatureStore

READ_THROUGH = {"images", "embeddings", "whitening", "whitened", "canaries"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0)


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as made:
        yield made


@pytest.fixture(scope="module")
def anna(drawn, bucket, tmp_path_factory):
    """The folder of who extracts and fits, and what its copy into the bucket printed."""
    folder = tmp_path_factory.mktemp("anna")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ("--dataset", f"manifest:{drawn / 'manifest.csv'}", "--name", "lm", "--split", "train")
        accepted("extract-teachers", *data, "--teachers", TEACHER, "--views", "1", *CROPS, *CPU)
        accepted("fit-whitening", "--dataset", "lm@train", "--dim", "8")
        patch.setattr(remote, "WAIT", 0)
        report = accepted("store", "copy", "features.zarr", bucket.url())
    return folder, report


@pytest.fixture
def ben(tmp_path, monkeypatch):
    """Another working directory, without a store."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def changed(bucket, anna):  # noqa: ARG001 (after the copy)
    """The bucket, for a test that changes it; what it held is put back."""
    before = {key: bucket.read(key) for key in bucket.listing()}
    yield bucket
    for key in bucket.listing():
        if key not in before:
            bucket.client.delete_object(Bucket=bucket.name, Key=key)
    for key, data in before.items():
        if bucket.read(key) != data:
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)


def kinds(store):
    return {key.kind for key in sealed(store)}


def trained_and_scored(drawn, url):
    """Distil and evaluate with a store behind the local one; the scores by protocol."""
    Workspace().introduce("lm", f"manifest:{drawn / 'manifest.csv'}")
    accepted(*distill("--upstream", url))
    scored = accepted("evaluate", "--student", "student", "--benchmark", "lm", *CPU, "--upstream", url)
    return scored["protocols"]


def test_the_copy_holds_everything_and_says_so(anna, bucket):
    folder, report = anna
    assert not report["failed"]
    assert not report["present"]
    assert len(report["copied"]) == len(sealed(folder / "features.zarr")) == 9
    found = accepted("store", "verify", "--store", bucket.url())
    assert (found["artifacts"], found["problems"], found["unfinished"]) == (9, [], [])
    again = accepted("store", "copy", str(folder / "features.zarr"), bucket.url())
    assert (again["copied"], again["bytes"], len(again["present"])) == ([], 0, 9)


def test_a_second_person_distils_and_scores_behind_the_bucket(changed, ben, drawn):
    bucket = changed
    before, n = bucket.listing(), len(bucket.requests)
    assert trained_and_scored(drawn, bucket.url())
    assert kinds(ben / "features.zarr") & {"students", "scores"} == {"students", "scores"}
    assert "whitened" not in kinds(ben / "features.zarr")
    assert bucket.listing() == before
    assert {r.split()[0] for r in bucket.requests[n:]} == {"GET", "HEAD"}
    assert not any(problems for _, problems in FeatureStore.open(ben / "features.zarr").verify())
    tree = accepted("store", "info", "students/", "--upstream", bucket.url())["tree"]
    assert {node["key"].split("/")[0] for node in tree["inputs"]} >= {"whitened"}
    assert all(node["sealed"] for node in tree["inputs"])
    up = accepted("store", "copy", "features.zarr", bucket.url())
    assert {key.split("/")[0] for key in up["copied"]} >= {"students", "scores"}
    assert accepted("store", "verify", "--store", bucket.url())["problems"] == []


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_second_person_distils_and_scores_behind_a_web_server(anna, ben, drawn, tmp_path, ranges):
    folder = tmp_path / "www"
    folder.mkdir()
    accepted("store", "copy", str(anna[0] / "features.zarr"), "www/features.zarr")
    with web_server(folder, ranges=ranges) as web:
        url = f"{web.url}/features.zarr"
        listed = accepted("store", "ls", "--upstream", url)["artifacts"]
        assert {a["store"] for a in listed} == {url}
        assert len(listed) == 9
        assert trained_and_scored(drawn, url)
        (whitened,) = (a["key"] for a in listed if a["key"].startswith("whitened/") and "crop-1" in a["key"])
        assert accepted("store", "info", whitened, "--store", url)["store"] == url
        assert accepted("store", "verify", "--store", url)["problems"] == []
    assert kinds(ben / "features.zarr") & READ_THROUGH <= {"images", "embeddings", "canaries"}
    assert {r.split()[0] for r in web.requests} <= {"GET", "HEAD"}


@pytest.mark.usefixtures("ben")
def test_one_flipped_byte_in_the_bucket_is_named_and_repaired(anna, changed, drawn):
    bucket = changed
    key = next(k for k in bucket.listing() if "/whitened/" in f"/{k}" and "crop-1" in k and k.endswith("vectors/c/0/0"))
    right = bucket.read(key)
    bucket.flip(key)
    path = key.removeprefix("features.zarr/")
    result = cgd("store", "verify", "--store", bucket.url(), "--json", "-q")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem.startswith(f"{path} (rows 0 to 23): ")
    Workspace().introduce("lm", f"manifest:{drawn / 'manifest.csv'}")
    assert f"{path} (rows 0 to 23) differs from its seal" in refused(*distill("--upstream", bucket.url()))
    mended = accepted("store", "repair", "--store", bucket.url(), "--from", str(anna[0] / "features.zarr"))
    assert [(one["restored"], one["dropped"]) for one in mended["repaired"]] == [([path], [])]
    assert bucket.read(key) == right
    assert accepted("store", "verify", "--store", bucket.url())["problems"] == []
    assert accepted("store", "ls", "--store", bucket.url())["artifacts"]


def test_damage_in_the_source_stops_one_artifact_and_the_command(anna, ben):
    shutil.copytree(anna[0] / "features.zarr", ben / "features.zarr")
    path = next((ben / "features.zarr/whitened").rglob("vectors/c/0/0"))
    path.write_bytes(path.read_bytes()[:-1])
    result = cgd("store", "copy", "features.zarr", "memory://ben/features.zarr", "--json", "-q")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert len(report["copied"]) == 8
    (reason,) = report["failed"].values()
    assert f"{path.relative_to(ben / 'features.zarr')} (rows 0 to 23) differs from its seal" in reason
    assert reason in cgd("store", "copy", "features.zarr", "memory://ben/features.zarr", "-q").stdout


@pytest.mark.usefixtures("ben")
def test_what_cannot_be_opened_is_one_sentence(anna, bucket, monkeypatch):
    gone = unused_url()
    for url, told in {
        "foo://x": "cannot open the store foo://x: Protocol not known: foo; name a folder, s3://, gs:// or https://",
        "s3://nobody/features.zarr": "there is no feature store at s3://nobody/features.zarr",
        f"s3://{KEY}:{SECRET}@team/x": "s3://team/x: user and password do not belong into a bucket's URL",
        f"{gone}/x": f"cannot read zarr.json in the store {gone}/x: Cannot connect to host",
        f"{gone.replace('//', f'//me:{SECRET}@')}/x": f"cannot read zarr.json in the store {gone}/x: Cannot connect",
    }.items():
        for command in (("ls", "--upstream", url), ("info", "x", "--upstream", url), ("verify", "--store", url)):
            said = refused("store", *command)
            assert told in said
            assert SECRET not in said
    assert "there is no such bucket" in refused("store", "copy", str(anna[0] / "features.zarr"), "s3://nobody/x")
    assert "can only be read" in refused("store", "copy", str(anna[0] / "features.zarr"), gone)

    async def denied(*_, **__):
        raise PermissionError("The AWS Access Key Id you provided does not exist in our records.")

    with monkeypatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem._call_s3", denied)
        said = refused("store", "ls", "--upstream", bucket.url())
    assert "cannot look for zarr.json in the store s3://team/features.zarr: The AWS Access Key Id" in said
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    assert "needs other packages: pip install 'cgd[s3]'" in refused("store", "ls", "--upstream", bucket.url())


def test_a_web_server_without_a_catalog_says_what_to_run(anna, ben):
    shutil.copytree(anna[0] / "features.zarr", ben / "www/features.zarr")
    with web_server(ben / "www") as web:
        said = refused("store", "ls", "--upstream", f"{web.url}/features.zarr")
        assert f"has no {CATALOG}, without which a web server's store cannot be listed" in said
        assert "`cgd store copy`" in said
        accepted("store", "copy", "www/features.zarr", "www/features.zarr")
        assert len(accepted("store", "ls", "--upstream", f"{web.url}/features.zarr")["artifacts"]) == 9


@pytest.mark.usefixtures("anna")
def test_no_secret_is_printed_or_stored(bucket, ben):
    seen = [
        cgd("store", "ls", "--store", bucket.url(), "-v"),
        cgd("store", "info", "images/", "--store", bucket.url(), "-v"),
        cgd("store", "verify", "--store", bucket.url(), "-v"),
        cgd("store", "copy", bucket.url(), "mine.zarr", "-v"),
    ]
    for result in seen:
        assert result.exit_code == 0, result.output
        assert SECRET not in result.output
        assert KEY not in result.output
    everything = [bucket.read(key) for key in bucket.listing()] + [
        p.read_bytes() for p in (ben / "mine.zarr").rglob("*") if p.is_file()
    ]
    assert not [data for data in everything if SECRET.encode() in data or KEY.encode() in data]

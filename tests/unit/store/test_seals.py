"""Receipts and seals prove themselves: a changed digit anywhere is damage of theirs, not of the file they speak of."""

from __future__ import annotations

import json

import pytest

from cgd.errors import DamageError
from cgd.store.files import LocalFiles
from cgd.store.keys import identify
from cgd.store.seals import Receipt, Seal, read_receipt, read_seal, receipt_path, seal_path, signed

KEY = identify("scores", ["a"], 1, {}).key
OTHER = identify("scores", ["b"], 1, {}).key
DIGESTS = {"queries/c/0": "0" * 64, "zarr.json": "1" * 64}


@pytest.fixture
def files(tmp_path):
    files = LocalFiles(tmp_path, write=True)
    files.publish(seal_path(KEY), Seal(KEY, DIGESTS).text())
    files.publish(receipt_path(KEY, 3), Receipt(KEY, 3, (0, 5), DIGESTS, {}).text())
    return files


def change(there, path, /, **values):
    """Other values, the proof left as it was."""
    there.replace(path, json.dumps(json.loads(there.read(path)) | values).encode())


def test_what_was_written_is_read(files):
    assert read_seal(files, KEY) == Seal(KEY, DIGESTS)
    assert read_receipt(files, KEY, 3) == Receipt(KEY, 3, (0, 5), DIGESTS, {})


@pytest.mark.parametrize(
    "values", [{"files": DIGESTS | {"zarr.json": "2" * 64}}, {"schema": 1}, {"more": 1}, {"sha256": ""}]
)
def test_a_changed_seal_is_damaged(files, values):
    change(files, seal_path(KEY), **values)
    with pytest.raises(DamageError, match="seals/scores/a-"):
        read_seal(files, KEY)


@pytest.mark.parametrize(
    "values", [{"files": {}}, {"rows": [0, 6]}, {"shard": 4}, {"metadata": DIGESTS}, {"sha256": None}]
)
def test_a_changed_receipt_is_damaged(files, values):
    change(files, receipt_path(KEY, 3), **values)
    with pytest.raises(DamageError, match="receipts/scores/a-"):
        read_receipt(files, KEY, 3)


def test_anothers_are_refused_although_they_prove_themselves(files):
    files.publish(seal_path(OTHER), files.read(seal_path(KEY)))
    files.publish(receipt_path(OTHER, 3), files.read(receipt_path(KEY, 3)))
    with pytest.raises(DamageError, match="it is the seal of scores/a-"):
        read_seal(files, OTHER)
    with pytest.raises(DamageError, match="it is a receipt of scores/a-"):
        read_receipt(files, OTHER, 3)


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "a\\b"])
def test_paths_that_lead_out_of_an_artifact_are_refused(files, path):
    files.replace(seal_path(KEY), signed({"schema": 2, "key": str(KEY), "files": {path: "0" * 64}}))
    with pytest.raises(DamageError, match="do not trust"):
        read_seal(files, KEY)

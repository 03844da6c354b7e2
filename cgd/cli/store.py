"""The commands that look into a store."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cgd.cli.options import Group, options, print_result, running


@click.group("store", cls=Group)
def store_group() -> None:
    """Look into a feature store and check it."""


@store_group.command("ls")
@options()
def store_ls(**o: Any) -> None:
    """List the artifacts, sealed or begun.

    \b
    cgd store ls --store features.zarr
    """
    from cgd.pipeline import text
    from cgd.store.feature_store import FeatureStore

    with running(o):
        entries = [
            {"key": str(e.key), "sealed": e.sealed, "shards": e.shards_done}
            for e in FeatureStore.open(o["store_url"]).entries()
        ]
        print_result(o, {"artifacts": entries}, text.store_text)


@store_group.command("info")
@click.argument("key")
@options()
def store_info(**o: Any) -> None:
    """Show what an artifact holds and what determined it; a part of its key will do.

    \b
    cgd store info whitening/photos
    """
    from cgd.store.feature_store import FeatureStore
    from cgd.store.layout import LAYOUT

    with running(o):
        store = FeatureStore.open(o["store_url"])
        artifact = store.get(store.resolve(o["key"], tuple(LAYOUT)))
        result = {
            "key": str(artifact.key),
            "bytes": artifact.size,
            "arrays": {name: list(artifact.shape(name)) for name in artifact.arrays},
            "files": artifact.blobs,
            **artifact.attributes,
            "provenance": store.provenance(artifact.key),
        }
        print_result(o, result, lambda r: json.dumps(r, indent=2, ensure_ascii=False))


@store_group.command("verify")
@click.argument("key", required=False)
@options()
def store_verify(**o: Any) -> None:
    """Read everything and name each damaged shard; exit status 1 if there is one.

    \b
    cgd store verify
    """
    from cgd.store.feature_store import FeatureStore
    from cgd.store.layout import LAYOUT

    with running(o):
        store = FeatureStore.open(o["store_url"])
        key = store.resolve(o["key"], tuple(LAYOUT)) if o["key"] else None
        found = {str(k): problems for k, problems in store.verify(key)}
        bad = sum(map(len, found.values()))
        print_result(
            o,
            {"artifacts": len(found), "problems": [p for problems in found.values() for p in problems]},
            lambda r: "\n".join([*r["problems"], f"{r['artifacts']} artifacts read, {bad} problems"]),
        )
        if bad:
            sys.exit(1)

"""The commands on a whole store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cgd.cli.options import Group, options, print_result, running, session_of


@click.group("store", cls=Group)
def store_group() -> None:
    """Look into a feature store, check, mend, copy and share it."""


@store_group.command("ls")
@options()
def store_ls(**o: Any) -> None:
    """List the artifacts, sealed or begun.

    \b
    cgd store ls --store features.zarr
    cgd store ls --upstream https://example.org/features.zarr
    """
    from cgd.pipeline import storage, storage_text
    from cgd.store.feature_store import FeatureStore

    with running(o):
        store = FeatureStore.open(o["store_url"], upstream=o["upstream"])
        print_result(o, storage.listing(store), storage_text.listing_text)


@store_group.command("info")
@click.argument("key")
@click.option("--at", "row", type=click.IntRange(0), metavar="N", help="Also what stands in row N, counted from 0.")
@click.option("--image", metavar="ID", help="Also the row of this image; all ids before it are read.")
@options()
def store_info(**o: Any) -> None:
    """Show what an artifact was made from, by whom and with what; a part of its key will do.

    \b
    cgd store info whitening/photos
    cgd store info embeddings/photos.gem.fixed --at 123
    """
    from cgd.pipeline import storage, storage_text

    with running(o):
        print_result(o, storage.info(session_of(o), o["key"], row=o["row"], image=o["image"]), storage_text.info_text)


@store_group.command("verify")
@click.argument("key", required=False)
@click.option("--images", is_flag=True, help="Also compare every row with its image file, where those are at hand.")
@options()
def store_verify(**o: Any) -> None:
    """Read everything and name each damaged file and its rows; exit status 1 if there is one.

    \b
    cgd store verify
    cgd store verify embeddings/photos --images
    """
    from cgd.pipeline import storage, storage_text

    with running(o):
        result = storage.verify(session_of(o), o["key"], images=o["images"])
        print_result(o, result, storage_text.verify_text)
        if result["problems"] or result.get("changed_images"):
            sys.exit(1)


@store_group.command("repair")
@click.argument("key", required=False)
@click.option("--from", "sources", multiple=True, metavar="URL", help="A store to take lost files from; repeatable.")
@options()
def store_repair(**o: Any) -> None:
    """Mend what verify finds; what nobody has is dropped, and the command that makes it again is printed.

    Exit status 1 if something was dropped.

    \b
    cgd store repair --from https://example.org/features.zarr
    """
    from cgd.pipeline import storage, storage_text

    with running(o):
        result = storage.repair(session_of(o), o["key"], o["sources"])
        print_result(o, result, storage_text.repair_text)
        if any(one["dropped"] or one["left"] for one in result["repaired"]):
            sys.exit(1)


@store_group.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--only", multiple=True, metavar="KEY", help="Only what this part of a key fits; repeatable.")
@click.option("--inputs", is_flag=True, help="With --only: also everything it was made from.")
@options()
def store_copy(**o: Any) -> None:
    """Copy what TO lacks, checked on both sides, and publish TO's catalog; the same command continues.

    \b
    cgd store copy features.zarr s3://team/features.zarr
    cgd store copy https://example.org/features.zarr features.zarr --only whitened/photos.gem.crop-1
    """
    from cgd.pipeline import storage, storage_text

    with running(o):
        result = storage.copy(o["source"], o["target"], o["only"], inputs=o["inputs"])
        print_result(o, result, storage_text.copy_text)
        if result["failed"]:
            sys.exit(1)


@store_group.command("upgrade")
@options()
def store_upgrade(**o: Any) -> None:
    """Bring a store to the present format version; arrays stay as they are.

    \b
    cgd store upgrade --store features.zarr
    """
    from cgd.pipeline import storage, storage_text

    with running(o):
        print_result(o, storage.upgrade(session_of(o)), storage_text.upgrade_text)


@store_group.command("export")
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--layout", type=click.Choice(["hloc", "plain"]), help="Of HDF5 files.  [default: hloc]")
@options()
def store_export(**o: Any) -> None:
    """Write embeddings, whitened vectors or descriptors as FILE.h5 or FILE.npy for other tools.

    \b
    cgd store export embeddings/photos.gem.fixed gem.h5
    cgd store export whitened/photos.gem.fixed gem.h5 --layout plain
    cgd store export descriptors/photos.gem gem.npy
    """
    from cgd.pipeline import exchange

    with running(o):
        print_result(o, exchange.export(session_of(o), o["key"], o["file"], o["layout"]), exchange.export_text)


@store_group.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--kind", type=click.Choice(["embeddings"]), required=True, help="What the vectors become.")
@click.option("--teacher", required=True, metavar="LABEL", help="What this teacher is called from now on.")
@options("dataset", "name", "workers")
def store_import(**o: Any) -> None:
    """Keep the vectors in FILE (.h5 or .npy) as a data set's embeddings by a teacher of which nothing else is known.

    \b
    cgd store import dinov2.h5 --kind embeddings --dataset folder:photos --teacher dinov2
    """
    from cgd.pipeline import exchange

    with running(o):
        result = exchange.import_(session_of(o), o["file"], o["dataset"], o["name"], o["teacher"])
        print_result(o, result, exchange.import_text)


@store_group.command("gc")
@click.option(
    "--recipes",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of recipes (*.yaml); what they name is kept.",
)
@click.option("--delete", is_flag=True, help="Remove what is listed.")
@options("weights")
def store_gc(**o: Any) -> None:
    """List the artifacts that no recipe in a folder names, by any seed; what they were made from is named, too.

    \b
    cgd store gc --recipes recipes
    cgd store gc --recipes recipes --weights weights --delete
    """
    from cgd.pipeline import garbage

    with running(o):
        result = garbage.collect(session_of(o), o["recipes"], delete=o["delete"])
        print_result(o, result, garbage.garbage_text)

"""Teachers that are known by imported vectors alone: what they are called, and what marks their embeddings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from cgd import registry
from cgd.config import ExtractConfig
from cgd.data.views import FIXED
from cgd.errors import InputError, MissingError
from cgd.registry import Spec
from cgd.store.feature_store import FeatureStore
from cgd.store.keys import Identity, canonical, identify, ids_digest
from cgd.types import ImageList

if TYPE_CHECKING:  # importing vectors loads no torch
    from cgd.models.encoder import EncoderSource

IMPORTED = "imported"  # the name of all such encoders; a label is their argument
_TEACHERS = "cgd.models.teachers"
_VERSION = 2  # that of `stages.extract`, which loads torch: imported vectors stand where an extraction would look


def check_label(label: str) -> None:
    """Refuse a label that could not be typed after --teachers, or that means another teacher there."""
    if label != registry.slug(label):
        raise InputError(
            f"--teacher {label}: a label has nothing but a-z, 0-9, '.' and '-', e.g. {registry.slug(label)}."
        )
    if label == IMPORTED or _runs(label):
        raise InputError(
            f"--teacher {label}: this name is taken by cgd itself; give the label another, e.g. {label}-1."
        )


def imported_identity(images: ImageList, label: str, content: str) -> Identity:
    """What determines the embeddings: as of an extraction, with the SHA-256 of the imported file as the weights.

    So a teacher is one file: whoever imports it for several data sets has one teacher.
    """
    settings = {
        "dataset": images.name,
        "split": images.split,
        "ids": ids_digest(images),
        "encoder": {"name": IMPORTED, "argument": label, "options": {}, "input": {}, "weights": content},
        "view": FIXED,
        "precision": ExtractConfig().precision,
    }
    return identify("embeddings", [images.title, label, FIXED], _VERSION, settings)


def imported_source(store: FeatureStore, text: str) -> EncoderSource | None:
    """The imported teacher that `text` names, by its label or as `imported:LABEL?sha256=…`; None for any other name.

    It stands for what is stored; building it raises `InputError`.
    """
    spec = Spec.parse(text)
    label = spec.argument if spec.name == IMPORTED else text
    found = {}
    for entry in store.entries("embeddings"):
        encoder = entry.attributes.get("settings", {}).get("encoder", {}) if entry.sealed else {}
        if (encoder.get("name"), encoder.get("argument")) == (IMPORTED, label):
            found[canonical(encoder)] = encoder
    if "sha256" in spec.options:
        found = {key: e for key, e in found.items() if e["weights"] == spec.options["sha256"]}
    if not found:
        if spec.name == IMPORTED:
            raise MissingError(f"nothing was imported as '{text}': `cgd store ls` lists what there is.")
        return None
    names = [f"{IMPORTED}:{label}?sha256={encoder['weights']}" for encoder in found.values()]
    if len(names) > 1:
        raise MissingError(f"{len(names)} files were imported as '{label}'; name one of: {', '.join(names)}.")
    return _source(names[0], str(label), next(iter(found.values())))


def may_be_imported(text: str) -> bool:
    """Whether a teacher's name is none that the package or a plug-in of others has."""
    spec = Spec.parse(text)
    return spec.name == IMPORTED or (spec.argument is None and not spec.options and not _runs(spec.name))


def _runs(name: str) -> bool:
    return name in registry.names(_TEACHERS) or name in registry.installed(_TEACHERS)


def _source(text: str, label: str, encoder: dict[str, Any]) -> EncoderSource:
    from cgd.models.encoder import EncoderSource

    return EncoderSource(text, label, encoder, None, partial(_no_network, label))


def _no_network(label: str) -> Any:
    raise InputError(
        f"the vectors of {label} were imported, there is no network here that could embed other images, crops or "
        "cut queries: import those of other images from the same file with `cgd store import`."
    )

"""What a stored score is of: the fields in which comparable scores agree, and those that tell the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cgd.errors import DamageError, MissingError, StoreError
from cgd.pipeline.text import CROP
from cgd.retrieval.metrics import PROTOCOLS
from cgd.store.keys import canonical, sha256
from cgd.types import Key

if TYPE_CHECKING:
    import numpy as np

    from cgd.store.artifact import Artifact
    from cgd.store.feature_store import FeatureStore

Fields = Mapping[str, Any]

OF_BENCHMARK = ("queries", "truth", "gallery", "images", "relevance")
"""What a benchmark is, under one name."""
CHOSEN = ("mode", "query_crop", "degrade", "index", "ap", "ties")
"""How it was searched and scored, which whoever scores chooses."""
PROTOCOL = ("benchmark", "distractors", *OF_BENCHMARK, *CHOSEN)
MODEL = (
    "members", "dim", "whitening", "image_size", "resize", "filter", "scales", "combine", "precision", "descriptors",
    "similarity", "pixels", "fused_gallery", "index_settings", "weights", "version",
)  # fmt: skip
FIELDS = ("model", *PROTOCOL, *MODEL)


@dataclass(frozen=True)
class StoredScore:
    """One `scores` artifact: its protocol, what is said of the model, and its results by protocol name (percent).

    `unpublished` says why its numbers are of no published protocol, or is empty. A field is None where nothing is
    known or nothing applies; two protocols agree where all that both know is equal.
    """

    artifact: Artifact
    model: str
    protocol: Fields
    about: Fields
    results: Mapping[str, Fields]
    unpublished: str

    @property
    def key(self) -> Key:
        return self.artifact.key

    @property
    def fields(self) -> dict[str, Any]:
        return {"model": self.model, **self.protocol, **self.about}

    def average_precision(self, protocol: str) -> np.ndarray:
        """Fractions (Q,), NaN where a query has no positive."""
        found: np.ndarray = self.artifact.read("average_precision")[list(self.results).index(protocol)]
        return found


def read_scores(store: FeatureStore) -> tuple[list[StoredScore], dict[str, str]]:
    """Every score that is whole, by benchmark and model; for the others the reason by key. Refuses where none is."""
    known: dict[Key, Artifact | None] = {}
    found, left_out = [], {}
    for entry in store.entries("scores"):
        try:
            found.append(read_score(store, entry.key, known))
        except (MissingError, StoreError) as error:
            left_out[str(entry.key)] = str(error)
    if not found:
        damaged = f"{next(iter(left_out.values()))} There is no other score; " if left_out else ""
        raise MissingError(
            f"{damaged or f'the store {store.files.url} has no scores: '}"
            "`cgd evaluate --student DIR --benchmark NAME` makes one."
        )

    def place(score: StoredScore) -> tuple[str, ...]:
        return score.protocol["benchmark"], score.model.lower(), score.protocol["distractors"] or "", str(score.key)

    return sorted(found, key=place), left_out


def read_score(store: FeatureStore, key: Key, known: dict[Key, Artifact | None] | None = None) -> StoredScore:
    """The sealed score `key`; `known` keeps what was read of its inputs for the next one."""
    artifact = store.get(key)
    try:
        return _score_of(artifact, _embeddings(store, artifact, {} if known is None else known))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DamageError(f"{key} is not as `cgd evaluate` writes it ({_reason(error)}): score again.") from error


def _score_of(artifact: Artifact, embeddings: Sequence[Artifact] | None) -> StoredScore:
    result, settings = artifact.attributes["result"], artifact.settings
    card: Fields = result["card"]
    index = card.get("index", "exact")
    kind, k, built = str(index), None, {}
    if isinstance(index, Mapping):
        kind, k, built = index["kind"], index.get("k"), {n: v for n, v in index.items() if n not in ("kind", "k")}
    images = None if embeddings is None else list(dict.fromkeys(e.settings["ids"] for e in embeddings))
    weights = None if embeddings is None else list(dict.fromkeys(e.settings["encoder"]["weights"] for e in embeddings))
    queries = artifact.read("queries").tolist()
    fused = card.get("gallery")
    protocol = {
        "benchmark": str(result["benchmark"]),
        "distractors": _distractors(card, result.get("invalid_distractors", 0)),
        "queries": f"{len(queries)} ({_digest(queries)})",
        "truth": str(settings["truth"])[:8],
        "gallery": _counted(result["gallery"], result.get("invalid_gallery", 0), "frames" in card),
        "images": images and _digest(images),
        "relevance": card.get("relevance"),
        "mode": card.get("mode", "symmetric"),
        "query_crop": card.get("query_crop"),
        "degrade": card.get("degrade", 0),  # not at all, where cards do not say
        "index": kind if k is None else f"{kind}, k {k}",
        "ap": card.get("ap"),
        "ties": card.get("ties"),
    }
    about = {
        **{name: card.get(name) for name in MODEL},
        "members": [str(m) for m in card["members"]],
        "descriptors": card.get("descriptors", "float32"),  # what all were before cards said so
        "fused_gallery": f"{', '.join(fused['teachers'])} fused by {fused['fusion']}" if fused else None,
        "index_settings": built or None,
        "weights": weights and [str(w)[:8] for w in weights],
        "version": artifact.attributes["version"],
    }
    notes = [f"{d['name']}: {d['note']}" for d in card.get("distractors", []) if "note" in d]
    names = list(result["protocols"])
    ordered = PROTOCOLS if set(names) == set(PROTOCOLS) else names
    if artifact.shape("average_precision") != (len(names), len(queries)):
        raise ValueError("its average precisions are not one per protocol and query")
    results = {name: dict(result["protocols"][name]) for name in ordered}
    if card.get("query_crop") not in (True, False, None):
        raise ValueError("its query_crop is neither true nor false")
    for values in results.values():
        if not isinstance(values["mAP"], (int, float, type(None))) or not isinstance(values["queries"], int):
            raise TypeError("a result is no number")
    return StoredScore(artifact, str(artifact.attributes["model"]), protocol, about, results, "; ".join(notes))


def _embeddings(store: FeatureStore, artifact: Artifact, known: dict[Key, Artifact | None]) -> list[Artifact] | None:
    """The embeddings a score was made of: gallery, queries and distractors; None where one is not in the store."""
    found = []
    for key in artifact.inputs:
        if key.kind != "embeddings":
            continue
        if key not in known:
            try:
                known[key] = store.get(key)
            except (MissingError, StoreError):
                known[key] = None
        if (each := known[key]) is None:
            return None
        found.append(each)
    return found


def differing(a: Fields, b: Fields) -> dict[str, tuple[Any, Any]]:
    """The fields of two protocols that disagree; what one of them does not know (`images`) is not compared."""
    unknown = {"images"} if a["images"] is None or b["images"] is None else set()
    return {name: (a[name], b[name]) for name in PROTOCOL if a[name] != b[name] and name not in unknown}


def conflicts(scores: Sequence[StoredScore]) -> dict[str, dict[str, int]]:
    """Fields by which the scores of one table would mislead: how many scores have which value.

    What a benchmark is must be one thing for all scores of its name, and all scores are searched and scored in one way.
    Different benchmarks and sets of distractors are different columns, and a benchmark without boxes goes with any
    way of cutting queries.
    """
    found = {}
    for name in CHOSEN:
        found[name] = _counts(s.protocol[name] for s in scores if name != "query_crop" or s.protocol[name] is not None)
    for name in OF_BENCHMARK:
        # Which images there are depends on the distractors, too.
        groups: dict[Any, list[Any]] = {}
        for s in scores:
            of = (s.protocol["benchmark"], s.protocol["distractors"] if name == "images" else None)
            groups.setdefault(of, []).append(s.protocol[name])
        every = (_counts(v for v in group if v is not None) for group in groups.values())
        found[name] = next((counts for counts in every if len(counts) > 1), {})
    return {name: counts for name, counts in found.items() if len(counts) > 1}


def protocol_line(protocol: Fields, without: Sequence[str] = ()) -> str:
    """The protocol of a benchmark in one line, its distractors and the fields named left out."""
    said = {
        "queries": f"{protocol['queries'].split(' ')[0]} queries",
        "gallery": f"gallery of {protocol['gallery']}",
        "mode": shown(protocol["mode"]),
        "query_crop": CROP.get(protocol["query_crop"], f"query_crop {shown(protocol['query_crop'])}"),
        "relevance": f"relevance by {shown(protocol['relevance'])}",
        "ap": f"{shown(protocol['ap'])} AP",
        "ties": f"ties by {shown(protocol['ties'])}",
        "index": f"{protocol['index']} search",
    }
    return f"{protocol['benchmark']}: {'; '.join(text for name, text in said.items() if name not in without)}"


def shown(value: Any) -> str:
    """A field's value as text: as it is typed after `--where` and printed in tables."""
    if value is None:
        return "none"
    if isinstance(value, (bool, float)):
        return str(value).lower() if isinstance(value, bool) else f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(v)}" for name, v in value.items())
    return ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)


def plain(text: str) -> str:
    """A name of others as one line of text: what does not print is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _counts(values: Iterator[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[shown(value)] = counts.get(shown(value), 0) + 1
    return counts


def _distractors(card: Fields, invalid: int) -> str | None:
    sets = [f"{d['name']} ({d['images']})" for d in card.get("distractors", [])]
    return ", ".join([*sets, *([f"{invalid} left out"] if invalid else [])]) or None


def _counted(found: int, invalid: int, videos: bool) -> str:
    return f"{int(found)} {'videos' if videos else 'images'}" + (f", {invalid} left out" if invalid else "")


def _digest(values: Sequence[str]) -> str:
    return sha256(canonical(list(values)))[:8]


def _reason(error: Exception) -> str:
    return plain(f"{error} is missing" if isinstance(error, KeyError) else str(error))

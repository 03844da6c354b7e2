"""Published weights files: what they hold under which names, and how their tensors become ours.

Every published teacher declares its `Publication` beside its network. Reading checks each name, shape and type, keeps
what the network uses under its own names, and tells what was left out.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from cgd import registry
from cgd.errors import InputError, WeightsError
from cgd.models.checkpoints import HEADER, Checkpoint, file_digest, read_torch
from cgd.models.pickles import STAND_INS

TEACHERS = "cgd.models.teachers"
COUNTER = "num_batches_tracked"  # batch norm's step counters influence nothing
Names = tuple[tuple[str, str], ...]
Shape = tuple[int | None, ...]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Facts:
    """What a file says of its network beside the tensors: plain values, and arrays to keep with the tensors.

    `used` are the entries of the file that this was read from.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    used: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One form of a published file.

    The tensors stand at the top level under one of `places` (None: they are the top level). `names` are pairs of
    prefixes: published, ours. `dropped` are tensors that are expected but not used, with their shapes (None: any
    size); a prefix in `absent` may be missing with all that is below it. `twins` are pairs of prefixes: whatever is
    expected below the first is expected below the second too, and dropped.
    """

    places: tuple[str | None, ...]
    names: Names
    dropped: Mapping[str, Shape] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    twins: Names = ()

    def expected(self, shapes: Mapping[str, Shape]) -> dict[str, tuple[str | None, Shape]]:
        """Every published tensor: our name (None: dropped) and its shape. `shapes` are those of our network."""
        table: dict[str, tuple[str | None, Shape]] = {}
        for name, shape in shapes.items():
            pairs = [(theirs, ours) for theirs, ours in self.names if name.startswith(ours)]
            if pairs:
                theirs, ours = max(pairs, key=lambda pair: len(pair[1]))
                table[theirs + name.removeprefix(ours)] = (name, shape)
        table |= {name: (None, shape) for name, shape in self.dropped.items()}
        for first, second in self.twins:
            twin = {second + n.removeprefix(first): s for n, (_, s) in table.items() if n.startswith(first)}
            table |= {name: (None, shape) for name, shape in twin.items()}
        return table


def _no_facts(_content: Mapping[str, Any]) -> Facts:
    return Facts()


@dataclass(frozen=True)
class Publication:
    """A published network: its file, where its authors put it, the file's layouts, and what else it must say.

    `facts` reads the plain values of a file; it raises `ValueError` where they belong to another network. `sha256` is
    the file's, where its authors say.
    """

    file: str
    where: str
    layouts: tuple[Layout, ...]
    facts: Callable[[Mapping[str, Any]], Facts] = _no_facts
    sha256: str | None = None


def published(publication: Publication) -> Callable[[F], F]:
    """Declare that a teacher's weights are a published file."""

    def declare(function: F) -> F:
        function.publication = publication  # type: ignore[attr-defined]
        return function

    return declare


def publication_of(function: Callable[..., Any]) -> Publication | None:
    """What was declared with `published`, if anything."""
    found: Publication | None = getattr(function, "publication", None)
    return found


def published_teachers() -> dict[str, tuple[Callable[..., Any], Publication]]:
    """The teachers with a published file: the function that builds one, and its publication."""
    found = {name: registry.find(TEACHERS, name) for name in registry.names(TEACHERS)}
    return {n: (f, p) for n, f in found.items() if (p := publication_of(f)) is not None}


def imported_name(function: Callable[..., Any]) -> str:
    """File name of a teacher's imported weights."""
    name: str = inspect.signature(function).parameters["weights"].default
    return name


def facts_of(checkpoint: Checkpoint | None, teacher: str) -> Mapping[str, Any]:
    """The plain values kept with imported weights (none for an untrained network); refuses any other file."""
    if checkpoint is None:
        return {}
    if checkpoint.meta.get("teacher") != teacher:
        raise WeightsError(
            f"{checkpoint.path} was not made by `cgd teachers import {teacher} FILE`: "
            "run that on the published file and use what it writes."
        )
    facts = checkpoint.meta.get("facts")
    if not isinstance(facts, Mapping):
        raise WeightsError(f"{checkpoint.path} has a damaged header: import its weights anew.")
    return facts


@dataclass(frozen=True)
class Imported:
    """The tensors of a published file under our names, its plain values, and what was left out."""

    teacher: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    dropped: tuple[str, ...]
    source: Mapping[str, str]

    def serialise(self) -> bytes:
        """A safetensors file; equal sources give equal bytes, whatever their names."""
        header = {
            "teacher": self.teacher,
            "facts": self.facts,
            "source": self.source,
            "dropped": list(self.dropped),
        }
        tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(self.tensors.items())}
        return save(tensors, metadata={HEADER: json.dumps(header, sort_keys=True)})


def read_published(path: Path) -> Mapping[str, Any]:
    """What a published file holds; nothing in it is executed. Raises `WeightsError` where that is not possible."""
    content = read_torch(path, STAND_INS)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors.")
    return content


def convert(teacher: str, content: Mapping[str, Any], path: Path) -> Imported:
    """The weights of `teacher` in the `content` of its published file at `path`.

    Raises `WeightsError` where a tensor is missing, unknown, of another shape or type, or not finite.
    """
    function = registry.find(TEACHERS, teacher)
    publication = publication_of(function)
    if publication is None:
        raise InputError(f"{teacher} has no published file: give its weights with {teacher}?weights=FILE.")
    digest = file_digest(path)
    if publication.sha256 not in (None, digest):
        raise WeightsError(f"{path} has the SHA-256 {digest}, {publication.file} has {publication.sha256}.")
    try:
        facts = publication.facts(content)
    except ValueError as error:
        raise WeightsError(f"{path} is not {publication.file}: {error}.") from error
    layout, given, place = _choose(publication, content, path)
    expected = layout.expected(network_shapes(function))
    _compare(given, expected, layout, f"{path} is not {teacher} as published ({publication.file})")
    kept = {ours: given[name] for name, (ours, _) in expected.items() if ours and name in given and not _counts(ours)}
    _check_values({**kept, **facts.tensors}, path)
    beside = [name for name in content if name != place and name not in given and name not in facts.used]
    unused = [name for name in given if expected[name][0] is None or _counts(name)]
    source = {"published": publication.file, "sha256": digest}
    return Imported(teacher, {**kept, **facts.tensors}, facts.values, _summary(unused, layout.absent, beside), source)


@cache
def network_shapes(function: Callable[..., Any]) -> Mapping[str, Shape]:
    """Names and shapes of all tensors a teacher may use, without making them."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in function(None, None).network.state_dict().items()}


def _choose(
    publication: Publication, content: Mapping[str, Any], path: Path
) -> tuple[Layout, dict[str, Tensor], str | None]:
    """The layout whose names fit best, the tensors in its place, and the place."""
    best: tuple[int, Layout, dict[str, Tensor], str | None] | None = None
    for layout in publication.layouts:
        for place in layout.places:
            state = content if place is None else content.get(place)
            if not isinstance(state, Mapping):
                continue
            tensors = {n: t for n, t in state.items() if isinstance(n, str) and _is_plain(t)}
            if tensors and place is not None and (odd := [n for n in state if n not in tensors]):
                raise WeightsError(f"{path} is not {publication.file}: {odd[0]!r} below '{place}' is no tensor.")
            prefixes = tuple(theirs for theirs, _ in layout.names)
            fitting = sum(name.startswith(prefixes) for name in tensors)
            if tensors and (best is None or fitting > best[0]):
                best = (fitting, layout, tensors, place)
    if best is None:
        wanted = " or ".join(f"'{p}'" if p else "its top level" for x in publication.layouts for p in x.places)
        raise WeightsError(f"{path} is not {publication.file}: it has no named tensors under {wanted}.")
    return best[1:]


def _compare(
    given: Mapping[str, Tensor], expected: Mapping[str, tuple[str | None, Shape]], layout: Layout, lead: str
) -> None:
    """Refuse with counts and a first example of what is missing, unknown, or of another shape or type."""
    groups = [p for p in layout.absent if not any(n.startswith(p) for n in given)]
    if not any(_counts(name) for name in given):
        groups.append("")  # a file without any counter, as old versions of torch wrote
    wanted = {n for n in expected if not any(n.startswith(g) and (g or _counts(n)) for g in groups)}
    problems = {
        "missing": wanted - given.keys(),
        "unknown": given.keys() - expected.keys(),
        "of another shape": {n for n, t in given.items() if n in expected and not _fits(t.shape, expected[n][1])},
        "of another type": {n for n, t in given.items() if n in expected and t.dtype != _dtype(n)},
    }
    told = [f"{len(names)} {what} (first: {min(names)})" for what, names in problems.items() if names]
    if told:
        raise WeightsError(f"{lead}: tensors {', '.join(told)}.")


def _is_plain(value: Any) -> bool:
    """Whether a value is an ordinary tensor in memory: not sparse, quantised, or without data."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _fits(shape: Sequence[int], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if _counts(name) else torch.float32


def _counts(name: str) -> bool:
    return name.endswith(COUNTER)


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path} is damaged: the tensor for {name} holds values that are not finite.")


def _summary(tensors: Iterable[str], groups: Sequence[str], beside: Iterable[str]) -> tuple[str, ...]:
    """What was left out: tensors counted by the group or module they belong to, then values beside them."""
    counts: dict[str, int] = {}
    for name in tensors:
        known = (group.removesuffix(".") for group in groups if name.startswith(group))
        place = "step counters of batch norm" if _counts(name) else next(known, name.split(".")[0])
        counts[place] = counts.get(place, 0) + 1
    return (*(f"{place} ({count} tensors)" for place, count in counts.items()), *map(str, beside))

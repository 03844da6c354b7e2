"""Frames and the videos they are of: lists of either, and pairs of videos that somebody judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.errors import InputError
from cgd.types import Benchmark, GroundTruth, ImageList


def videos_of(images: ImageList) -> tuple[ImageList, np.ndarray]:
    """A list with one row per video, named as the video is, and how many frames (V,) int64 each has.

    Raises `InputError` where the frames of a video do not follow each other.
    """
    groups = np.array(images.groups or (), dtype=object)
    starts = np.flatnonzero(np.concatenate([[len(groups) > 0], groups[1:] != groups[:-1]]))
    names = tuple(groups[starts])
    if len(set(names)) != len(names):
        raise InputError(f"{images.title}: the frames of a video must stand one after the other.")
    labels = images.labels and tuple(images.labels[row] for row in starts)
    paths = tuple(images.paths[row] for row in starts)
    lengths = np.diff(np.append(starts, len(groups))).astype(np.int64)
    return ImageList(images.name, images.split, names, paths, images.root, labels), lengths


def by_video(benchmark: Benchmark) -> Benchmark:
    """What is ranked: of a benchmark of frames their videos, of one of images itself."""
    if not benchmark.of_videos:
        return benchmark
    gallery, queries = (videos_of(images)[0] for images in (benchmark.gallery, benchmark.queries))
    return dataclasses.replace(benchmark, gallery=gallery, queries=queries)


def first_frames(images: ImageList, most: int) -> ImageList:
    """`images` with at most the first `most` frames of each video; with all of them where that is 0."""
    if images.groups is None or not most:
        return images
    _, lengths = videos_of(images)
    rows = np.flatnonzero(np.arange(len(images)) - np.repeat(np.cumsum(lengths) - lengths, lengths) < most)
    if len(rows) == len(images):
        return images
    fields = {name: getattr(images, name) for name in ("ids", "paths", "labels", "groups", "boxes")}
    kept: dict[str, Any] = {name: tuple(v[row] for row in rows) for name, v in fields.items() if v is not None}
    return dataclasses.replace(images, **kept)


def with_first_frames(benchmark: Benchmark, most: int) -> Benchmark:
    """The benchmark with at most `most` frames of each video; one of images as it is."""
    gallery, queries = first_frames(benchmark.gallery, most), first_frames(benchmark.queries, most)
    return dataclasses.replace(benchmark, gallery=gallery, queries=queries)


def frame_list(
    name: str,
    split: str | None,
    videos: Iterable[str],
    files: Callable[[str], Sequence[str]],
    root: Path,
    below: str = "",
    labels: Callable[[str], str] | None = None,
) -> ImageList:
    """All frames of `videos` in their order; `files` gives the names of a video's frames, at `below` and its name."""
    names: list[str] = []
    groups: list[str] = []
    for video in videos:
        names += files(video)
        groups += [video] * (len(names) - len(groups))
    ids = tuple(f"{video}/{file}" for video, file in zip(groups, names, strict=True))
    paths = tuple(below + i for i in ids) if below else ids
    return ImageList(name, split, ids, paths, root, labels and tuple(map(labels, groups)), tuple(groups))


@dataclass(frozen=True)
class Pairs:
    """Videos judged for queries: `judged[query][candidate]` is whether they are near-duplicates, in a file's order."""

    file: Path
    judged: dict[str, dict[str, bool]]

    @property
    def candidates(self) -> list[str]:
        """All candidates, in the order in which they first occur."""
        return list(dict.fromkeys(candidate for judged in self.judged.values() for candidate in judged))

    def truth(self, gallery: Sequence[str], unlabelled: Iterable[str]) -> GroundTruth:
        """Ground truth over the videos of `gallery`: what was judged for other queries only is junk (methods.md 8.5).

        `unlabelled` videos are candidates of every query.
        """
        rows = {video: row for row, video in enumerate(gallery)}
        for_all = set(unlabelled)
        labelled = np.array([rows[v] for v in self.candidates if v not in for_all and v in rows], np.int64)
        positive, junk = [], []
        for query, judged in self.judged.items():
            if lacking := [video for video, same in judged.items() if same and video not in rows]:
                raise InputError(f"{self.file}: the near-duplicate '{lacking[0]}' of '{query}' has no frame.")
            positive.append(np.array([rows[v] for v, same in judged.items() if same], np.int64))
            own = np.array([rows[v] for v in judged if v in rows], np.int64)
            junk.append(np.setdiff1d(labelled, own))
        none = np.zeros(0, np.int64)
        return GroundTruth(tuple(positive), (none,) * len(positive), tuple(junk))


def read_pairs(file: Path, name_of: Callable[[str], str]) -> Pairs:
    """Lines `<query> <candidate> <0|1>`; of a pair that occurs twice the last line counts, as in the released code."""
    judged: dict[str, dict[str, bool]] = {}
    for number, line in lines(file):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise InputError(f"{file}, line {number}: expected '<query> <candidate> <0|1>', got {line!r}.")
        query, candidate = name_of(cells[0]), name_of(cells[1])
        judged.setdefault(query, {})[candidate] = cells[2] == "1"
    if not judged:
        raise InputError(f"{file} is empty: it must hold lines '<query> <candidate> <0|1>'.")
    return Pairs(file, judged)


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 (byte {error.start}): fetch it again.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()

"""Videos as lists of frames: SVD as it is published, folders of one's own, and which frames are one video's."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgd.data.published_sets import GALLERY, QUERY, existing, leads_elsewhere, unpacked
from cgd.errors import InputError, unknown
from cgd.types import Benchmark, GroundTruth, ImageList

TRAIN, LABELLED, UNLABELLED = "train", "labelled", "unlabelled"
SPLITS = (TRAIN, QUERY, LABELLED, UNLABELLED, GALLERY)
METADATA = "metadata-release/"  # the folder that the published archive unpacks to
SVD_FILES = ("train_groundtruth", "test_groundtruth", "unlabeled-data-id", "num_frames")
SVD_FRAMES = "frames/<video>/0000.jpg, 0001.jpg, … as num_frames counts them"
log = logging.getLogger(__name__)


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


# pairs of videos that somebody looked at


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
    for number, line in _lines(file):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise InputError(f"{file}, line {number}: expected '<query> <candidate> <0|1>', got {line!r}.")
        query, candidate = name_of(cells[0]), name_of(cells[1])
        judged.setdefault(query, {})[candidate] = cells[2] == "1"
    if not judged:
        raise InputError(f"{file} is empty: it must hold lines '<query> <candidate> <0|1>'.")
    return Pairs(file, judged)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 (byte {error.start}): fetch it again.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


# SVD


def svd(path: str, name: str, split: str | None) -> ImageList:
    """Frames of SVD (methods.md 7): of the training videos where no split is named.

    `train` are all videos of train_groundtruth, `query` the queries of test_groundtruth and `labelled` its candidates,
    `unlabelled` all that nobody looked at, and `gallery` the last two.
    """
    chosen = split or TRAIN
    if chosen not in SPLITS:
        raise unknown("split of svd", chosen, SPLITS)
    published = _Svd.at(Path(path))
    videos = published.train() if chosen == TRAIN else published.tested()[chosen]
    images = published.frames(name, split, videos)
    return unpacked(images, SVD_FRAMES) if len(images) else images


def svd_benchmark(path: str, name: str) -> Benchmark:
    """The test queries of SVD among their own candidates and all unlabelled videos (methods.md 8.5)."""
    published = _Svd.at(Path(path))
    tested = published.tested()
    lists = [unpacked(published.frames(name, split, tested[split]), SVD_FRAMES) for split in (GALLERY, QUERY)]
    gallery, queries = lists
    pairs = published.pairs("test_groundtruth")
    if lacking := [query for query in pairs.judged if not published.counts[query]]:
        raise InputError(f"{pairs.file}: the query '{lacking[0]}' has no frame in num_frames.")
    return Benchmark(name, gallery, queries, pairs.truth(videos_of(gallery)[0].ids, tested[UNLABELLED]))


@dataclass(frozen=True)
class _Svd:
    """Where SVD's text files and frames are, and how many frames each video has."""

    root: Path
    below: str
    counts: dict[str, int]

    @classmethod
    def at(cls, root: Path) -> _Svd:
        existing(root)
        below = METADATA if (root / METADATA).is_dir() else ""
        places = {file: root / ("" if file == "num_frames" else below) / file for file in SVD_FILES}
        if missing := [file for file, place in places.items() if not place.is_file()]:
            raise InputError(
                f"{root} is no whole SVD: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; it must "
                f"hold {', '.join(SVD_FILES[:-1])} (or have them in {METADATA}), num_frames with lines "
                f"'<video> <count>', and {SVD_FRAMES}."
            )
        counts = {}
        for number, line in _lines(places["num_frames"]):
            video, _, count = line.rpartition(" ")
            if not count.isdigit() or not count.isascii():
                raise InputError(f"{places['num_frames']}, line {number}: expected '<video> <count>', got {line!r}.")
            counts[_svd_name(video.strip())] = int(count)
        return cls(root, below, counts)

    def pairs(self, file: str) -> Pairs:
        return read_pairs(self.root / self.below / file, _svd_name)

    def train(self) -> list[str]:
        """Every query with its candidates, each video once."""
        judged = self.pairs("train_groundtruth").judged
        return list(dict.fromkeys(video for query in judged for video in (query, *judged[query])))

    def tested(self) -> dict[str, list[str]]:
        """The videos of every split but the training one; a video that is judged is not unlabelled as well."""
        pairs = self.pairs("test_groundtruth")
        labelled = pairs.candidates
        ids = (_svd_name(line) for _, line in _lines(self.root / self.below / "unlabeled-data-id"))
        unlabelled = list(dict.fromkeys(ids))
        judged = set(labelled)
        gallery = [*labelled, *(video for video in unlabelled if video not in judged)]
        return {QUERY: list(pairs.judged), LABELLED: labelled, UNLABELLED: unlabelled, GALLERY: gallery}

    def frames(self, name: str, split: str | None, videos: Sequence[str]) -> ImageList:
        """The frames of `videos`; those that have none are left out, which the log says."""
        if lacking := [video for video in videos if video not in self.counts]:
            raise InputError(
                f"{self.root / 'num_frames'} does not count the frames of {len(lacking)} of {len(videos)} videos of "
                f"{split or TRAIN}, e.g. {lacking[0]}: complete it; the frames must stand at {SVD_FRAMES}."
            )
        if empty := [video for video in videos if not self.counts[video]]:
            log.warning("%s: %d videos have no frame and are left out, e.g. %s", self.root, len(empty), empty[0])
        return frame_list(
            name, split, videos, lambda video: [f"{n:04d}.jpg" for n in range(self.counts[video])], self.root, "frames/"
        )


def _svd_name(text: str) -> str:
    """A video's name in all files and folders: without the .mp4 that some of them write."""
    name = text.removesuffix(".mp4")
    if leads_elsewhere(name) or "/" in name or "\\" in name:
        raise InputError(f"SVD's files hold {text!r}, which is no name of a video: fetch them again.")
    return name

"""Videos as lists of their frames: SVD as it is published, and folders of one's own (methods.md 7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from cgd.data.frames import Pairs, frame_list, lines, read_pairs, videos_of
from cgd.data.images import EXTENSIONS
from cgd.data.published_sets import GALLERY, QUERY, existing, leads_elsewhere, no_splits, unpacked
from cgd.data.video_files import JOURNAL, VIDEO_EXTENSIONS, Sampling, decode_videos, frames_folder
from cgd.errors import InputError, unknown
from cgd.registry import Spec, bind
from cgd.types import Benchmark, ImageList

TRAIN, LABELLED, UNLABELLED = "train", "labelled", "unlabelled"
SPLITS = (TRAIN, QUERY, LABELLED, UNLABELLED, GALLERY)
METADATA = "metadata-release/"  # the folder that the published archive unpacks to
SVD_FILES, COUNTS = ("train_groundtruth", "test_groundtruth", "unlabeled-data-id"), "num_frames"
SVD_FRAMES = f"frames/<video>/0000.jpg, 0001.jpg, … as {COUNTS} counts them"
PAIRS = "pairs.txt"
T = TypeVar("T")
log = logging.getLogger(__name__)


# SVD


def svd(path: str, name: str, split: str | None) -> ImageList:
    """Frames of SVD (methods.md 7): of the training videos where no split is named.

    `train` are all videos of train_groundtruth, `query` the queries of test_groundtruth and `labelled` its candidates,
    `unlabelled` all that nobody looked at, and `gallery` the last two.
    """
    chosen = split or TRAIN
    if chosen not in SPLITS:
        raise unknown("split of svd", chosen, SPLITS)
    published = _Svd.at(Path(path), name)
    return published.frames(name, split, published.train() if chosen == TRAIN else published.tested()[chosen])


def svd_benchmark(path: str, name: str) -> Benchmark:
    """The test queries of SVD among their own candidates and all unlabelled videos (methods.md 8.5)."""
    published = _Svd.at(Path(path), name)
    tested = published.tested()
    gallery, queries = (published.frames(name, split, tested[split]) for split in (GALLERY, QUERY))
    return _benchmark(name, gallery, queries, published.pairs("test_groundtruth"), tested[UNLABELLED])


def _benchmark(name: str, gallery: ImageList, queries: ImageList, pairs: Pairs, unlabelled: Iterable[str]) -> Benchmark:
    there = set(queries.groups or ())
    if lacking := [query for query in pairs.judged if query not in there]:
        raise InputError(f"{pairs.file}: the query '{lacking[0]}' has no frame.")
    return Benchmark(name, gallery, queries, pairs.truth(videos_of(gallery)[0].ids, unlabelled))


@dataclass(frozen=True)
class _Svd:
    """Where SVD's text files are, and its frames; `counts` gives how many frames each of some videos has."""

    root: Path
    below: str
    counts: Callable[[Iterable[str]], dict[str, int]]
    frames_root: Path
    frames_below: str

    @classmethod
    def at(cls, root: Path, name: str) -> _Svd:
        existing(root)
        below = METADATA if (root / METADATA).is_dir() else ""
        places = {file: root / below / file for file in SVD_FILES} | {COUNTS: root / COUNTS}
        missing = [file for file, place in places.items() if not place.is_file()]
        if missing == [COUNTS] and (files := {_svd_name(f.name): f for f in sorted(root.glob("*/*.mp4"))}):
            sampling = Sampling()
            out = frames_folder(name, root, sampling)
            return cls(root, below, lambda videos: decode_videos(_chosen(files, videos, root), out, sampling), out, "")
        if missing:
            raise InputError(
                f"{root} is no whole SVD: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; it must "
                f"hold {', '.join(SVD_FILES)} (or have them in {METADATA}) and either {COUNTS} with lines "
                f"'<video> <count>' and {SVD_FRAMES}, or the videos <folder>/<video>.mp4."
            )
        known = _read_counts(places[COUNTS])
        return cls(root, below, lambda videos: _chosen(known, videos, places[COUNTS]), root, "frames/")

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
        ids = (_svd_name(line) for _, line in lines(self.root / self.below / "unlabeled-data-id"))
        unlabelled = list(dict.fromkeys(ids))
        judged = set(labelled)
        gallery = [*labelled, *(video for video in unlabelled if video not in judged)]
        return {QUERY: list(pairs.judged), LABELLED: labelled, UNLABELLED: unlabelled, GALLERY: gallery}

    def frames(self, name: str, split: str | None, videos: Sequence[str]) -> ImageList:
        """The frames of `videos`; those that have none are left out, which the log says."""
        counts = self.counts(videos)
        if empty := [video for video in videos if not counts[video]]:
            log.warning("%s: %d videos have no frame and are left out, e.g. %s", self.root, len(empty), empty[0])
        files = partial(_numbered, counts)
        images = frame_list(name, split, videos, files, self.frames_root, self.frames_below)
        return unpacked(images, SVD_FRAMES) if len(images) else images


def _numbered(counts: Mapping[str, int], video: str) -> list[str]:
    return [f"{number:04d}.jpg" for number in range(counts[video])]


def _chosen(known: Mapping[str, T], videos: Iterable[str], where: Path) -> dict[str, T]:
    """Of some videos what is known of all; refuses where one is not known."""
    wanted = list(videos)
    if lacking := [video for video in wanted if video not in known]:
        raise InputError(
            f"{where} lacks {len(lacking)} of {len(wanted)} videos that SVD's lists name, e.g. {lacking[0]}: complete "
            f"it; frames must stand at {SVD_FRAMES}."
        )
    return {video: known[video] for video in wanted}


def _read_counts(file: Path) -> dict[str, int]:
    counts = {}
    for number, line in lines(file):
        video, _, count = line.rpartition(" ")
        if not (count.isdigit() and count.isascii()):
            raise InputError(f"{file}, line {number}: expected '<video> <count>', got {line!r}.")
        counts[_svd_name(video.strip())] = int(count)
    return counts


def _svd_name(text: str) -> str:
    """A video's name in all files and folders: without the .mp4 that some of them write."""
    name = text.removesuffix(".mp4")
    if leads_elsewhere(name) or "/" in name or "\\" in name:
        raise InputError(f"SVD's files hold {text!r}, which is no name of a video: fetch them again.")
    return name


# one's own


def videos(path: str, name: str, split: str | None) -> ImageList:
    """Frames of all videos below a folder: video files, or folders of images.

    `path` may end in options, `?rate=2&most=30`: frames a second and of a video, for files. A video is named by its
    path and labelled by the folder above it.
    """
    no_splits("videos", split)
    found = _Found.at(path, name)
    return found.frames(None, found.all)


def videos_benchmark(path: str, name: str) -> Benchmark:
    """The queries of `pairs.txt` among the videos judged for them and all that it does not name; or all by label."""
    found = _Found.at(path, name)
    file = found.root / PAIRS
    if not file.is_file():
        images = found.frames(None, found.all)
        if images.labels is None:
            raise InputError(
                f"{found.root} has neither {PAIRS} (lines '<query> <candidate> <0|1>') nor a sub-folder per label, so "
                "nothing can be scored on it."
            )
        return Benchmark(name, images, images, None)
    pairs = read_pairs(file, partial(_known_video, file, {n: v for v in found.all for n in (v, _stem(v))}))
    named = {*pairs.judged, *pairs.candidates}
    unlabelled = [video for video in found.all if video not in named]
    gallery, queries = found.frames(GALLERY, [*pairs.candidates, *unlabelled]), found.frames(QUERY, list(pairs.judged))
    return _benchmark(name, gallery, queries, pairs, unlabelled)


def _known_video(file: Path, known: Mapping[str, str], text: str) -> str:
    if text not in known:
        raise InputError(f"{file} names the video '{text}', which is not there: it must stand below {file.parent}.")
    return known[text]


def _stem(video: str) -> str:
    return str(PurePosixPath(video).with_suffix(""))


@dataclass(frozen=True)
class _Found:
    """The videos below a folder in order, and their frames: `files` are video files, or folders with frames."""

    name: str
    root: Path
    files: dict[str, Path]
    images: dict[str, list[str]]
    sampling: Sampling

    @property
    def all(self) -> list[str]:
        return sorted(self.files or self.images)

    @classmethod
    def at(cls, path: str, name: str) -> _Found:
        folder, _, typed = path.partition("?")
        options = Spec.parse(f"videos?{typed}").options if typed else {}
        sampling = Sampling(**bind(Sampling, options, f"videos:{path}"))
        root = existing(Path(folder))
        files: dict[str, Path] = {}
        images: dict[str, list[str]] = {}
        for video, names in _walk(root, root, ()):
            if video != "." and leads_elsewhere(video):
                raise InputError(f"videos:{root} holds a file whose name is not text ({video!r}): rename it.")
            if names is None:
                files[video] = root / video
            else:
                images[video] = names
        if "." in images:
            raise InputError(f"{root} holds images itself: a video is a folder of frames below it, or a video file.")
        if files and images:
            raise InputError(
                f"{root} holds video files ({min(files)}) and folders of frames ({min(images)}): keep one of both."
            )
        if not files and not images:
            raise InputError(
                f"{root} holds no video: it must hold video files ({', '.join(sorted(VIDEO_EXTENSIONS))}) or a folder "
                "of frames for each video, in a sub-folder per label where there are labels."
            )
        return cls(name, root, files, images, sampling)

    def frames(self, split: str | None, videos: Sequence[str]) -> ImageList:
        """The frames of some videos, decoded where they are files."""
        labels = None if set(map(_label, self.all)) <= {"."} else _label
        if self.images:
            return frame_list(self.name, split, videos, self.images.__getitem__, self.root, labels=labels)
        out = frames_folder(self.name, self.root, self.sampling)
        counts = decode_videos({video: self.files[video] for video in videos}, out, self.sampling)
        if not any(counts.values()):
            raise InputError(f"no video below {self.root} can be decoded: {out / JOURNAL} has the reason for each.")
        return frame_list(self.name, split, videos, partial(_numbered, counts), out, labels=labels)


def _label(video: str) -> str:
    return str(PurePosixPath(video).parent)


def _walk(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, list[str] | None]]:
    """Videos below a folder: a file, or a folder with the names of the images in it; links are followed, not loops."""
    real = folder.resolve()
    if real in above:
        return
    entries = sorted(folder.iterdir())
    if frames := [entry.name for entry in entries if entry.suffix.lower() in EXTENSIONS and entry.is_file()]:
        yield folder.relative_to(root).as_posix(), frames
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(root, entry, (*above, real))
        elif entry.suffix.lower() in VIDEO_EXTENSIONS:
            yield entry.relative_to(root).as_posix(), None

"""Frames out of video files: decoded once, at a steady rate, into a folder of JPEG files per video.

FFmpeg decodes, through PyAV, the extra `video`. Frame k is the first one that is shown at k / rate seconds or later; a
video with fewer frames than that gives each of its own once. Pixels are as they are stored: like the orientation that
photographs carry, a rotation for players is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cgd.errors import InputError, StoreError
from cgd.progress import progress

if TYPE_CHECKING:
    from PIL import Image

VIDEO_EXTENSIONS = frozenset(
    [".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"]
)
FRAMES = Path(".cgd/frames")
JOURNAL = "decoded.jsonl"
QUALITY = 95
VERSION = 1
ROUNDING = 1e-6  # of a step: times are multiples of a fraction
TOLD = 5  # damaged files named in the log; all of them are in the journal
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Frames a second, and how many of a video at most."""

    rate: float = 1.0
    most: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1000 or self.most < 1:
            raise InputError(
                f"frames are decoded at a rate above 0 and at least one of a video, got rate={self.rate:g} and "
                f"most={self.most}."
            )


@dataclass(frozen=True)
class Decoded:
    """A line of the journal: which file was decoded, to how many frames, or why it could not be."""

    video: str
    size: int
    modified: int
    frames: int
    reason: str = ""


def frames_folder(name: str, root: Path, sampling: Sampling) -> Path:
    """Where the frames of the videos below `root` are, in the working directory; another sampling has another place."""
    said = json.dumps([VERSION, str(root.resolve()), asdict(sampling)])
    return FRAMES / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def decode_videos(files: Mapping[str, Path], out: Path, sampling: Sampling) -> dict[str, int]:
    """The number of frames of each video, which stand at `out/<video>/0000.jpg`, …; 0 for a damaged file.

    What was decoded before, from a file of this size and date, is not decoded again; an interrupted run continues.
    Damaged files are named in the log, with the reason, and in the journal. Raises `InputError` without the extra
    `video`, `StoreError` where frames cannot be written.
    """
    known = _journal(out)
    found = {video: _stamp(video, file) for video, file in files.items()}
    todo = [video for video, stamp in found.items() if not _is_same(known.get(video), stamp)]
    if todo:
        _refuse_without_decoder(files[todo[0]])
        with progress(len(todo), f"decoding into {out}", "videos") as bar:
            for video in todo:
                known[video] = _decode_one(found[video], files[video], out, sampling)
                bar.update(1)
    damaged = [known[video] for video in files if known[video].reason]
    if damaged:
        some = "; ".join(f"{each.video}: {each.reason}" for each in damaged[:TOLD])
        more = f"; … all in {out / JOURNAL}" if len(damaged) > TOLD else ""
        log.warning("%d of %d videos cannot be decoded and are left out: %s%s", len(damaged), len(files), some, more)
    return {video: known[video].frames for video in files}


def _stamp(video: str, file: Path) -> Decoded:
    try:
        with file.open("rb"):
            about = file.stat()
    except OSError as error:
        raise InputError(f"cannot read the video {file}: {error.strerror}.") from error
    return Decoded(video, about.st_size, about.st_mtime_ns, 0)


def _is_same(before: Decoded | None, now: Decoded) -> bool:
    return before is not None and (before.size, before.modified) == (now.size, now.modified)


def _refuse_without_decoder(file: Path) -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(f"decoding {file} needs the extra 'video': pip install 'cgd[video]'.") from error


def _journal(out: Path) -> dict[str, Decoded]:
    """The last line about each video whose frames are there; a line that a killed process left unfinished is none."""
    try:
        lines = (out / JOURNAL).read_bytes().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"cannot read {out / JOURNAL}: {error.strerror}; mend that and repeat the command.") from error
    found = {}
    for line in lines:
        try:
            about = Decoded(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[about.video] = about
    return {video: about for video, about in found.items() if about.reason or (out / video).is_dir()}


def _decode_one(stamp: Decoded, file: Path, out: Path, sampling: Sampling) -> Decoded:
    """Decode one file, put its frames into place at once, and note it."""
    place, partial = out / stamp.video, out / f".partial-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        frames, reason = 0, ""
        try:
            for image in _frames(file, sampling):
                image.save(partial / f"{frames:04d}.jpg", quality=QUALITY)
                frames += 1
        except _Damaged as error:
            frames, reason = 0, str(error)
        if place.is_dir():
            shutil.rmtree(place)
        if frames:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(place)
        else:
            shutil.rmtree(partial)
            reason = reason or "no frame"
        done = Decoded(stamp.video, stamp.size, stamp.modified, frames, reason)
        with (out / JOURNAL).open("ab") as journal:
            journal.write(b"\n" + json.dumps(asdict(done)).encode() + b"\n")
    except OSError as error:
        raise StoreError(
            f"cannot write the frames of {file} below {out}: {error.strerror or error}; free space there and repeat "
            "the same command, it continues."
        ) from error
    return done


class _Damaged(Exception):
    """A file that cannot be decoded, with the reason."""


def _frames(file: Path, sampling: Sampling) -> Iterator[Image.Image]:
    """The sampled frames of one file in RGB."""
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise _Damaged("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first, due, taken = None, 0, 0
            for number, frame in enumerate(container.decode(stream)):
                time = number / float(stream.average_rate or sampling.rate) if frame.time is None else frame.time
                first = time if first is None else first
                steps = (time - first) * sampling.rate + ROUNDING
                if steps < due:
                    continue
                yield frame.to_image()
                due, taken = int(steps) + 1, taken + 1
                if taken == sampling.most:
                    break
    except av.FFmpegError as error:
        raise _Damaged(" ".join(f"{type(error).__name__}: {error.strerror}".split())) from error

"""Video files decoded into frames: which ones, once, and what damaged, changed or interrupted files do."""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from typing import Any

import pytest
from clips import clip, levels
from PIL import Image

from cgd.data import video_files
from cgd.data.video_files import JOURNAL, Sampling, decode_videos, frames_folder
from cgd.errors import InputError, StoreError

pytest.importorskip("av")
GREYS = range(20, 240, 20)  # 11 frames, four a second: 2.5 seconds


def near(found: list[int], expected: list[int]) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= 3 for a, b in zip(found, expected, strict=True))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return clip(tmp_path / "films/a.mp4", GREYS)


def decoded(film: Path, out: Path, **sampling: Any) -> list[int]:
    counts = decode_videos({"a": film}, out, Sampling(**sampling))
    found = levels(out / "a")
    assert counts == {"a": len(found)}
    return found


def test_frames_are_the_first_at_or_after_each_step(film: Path, tmp_path: Path) -> None:
    greys = list(GREYS)
    assert near(decoded(film, tmp_path / "1"), greys[::4])
    assert near(decoded(film, tmp_path / "2", rate=2.0), greys[::2])
    assert near(decoded(film, tmp_path / "4", rate=4.0), greys)
    assert near(decoded(film, tmp_path / "9", rate=9.0), greys)  # each of its own once
    assert near(decoded(film, tmp_path / "most", rate=4.0, most=3), greys[:3])
    # Steps of a third of a second: shown at 0, 0.5, 0.75, 1, 1.5, 1.75, 2, 2.5.
    assert near(decoded(film, tmp_path / "3", rate=3.0), [greys[n] for n in (0, 2, 3, 4, 6, 7, 8, 10)])


def test_a_film_of_uneven_frames_goes_by_their_times(tmp_path: Path) -> None:
    film = clip(tmp_path / "uneven.mkv", [20, 60, 100, 140, 180, 220, 40], times=[0, 0.1, 0.9, 1.2, 1.3, 4.0, 4.2])
    assert near(decoded(film, tmp_path / "out"), [20, 140, 220])


def test_decoding_is_the_same_every_time(film: Path, tmp_path: Path) -> None:
    digests = []
    for out in ("one", "two"):
        decoded(film, tmp_path / out)
        digests.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((tmp_path / out / "a").iterdir())])
    assert digests[0] == digests[1]


def test_a_file_is_decoded_once_until_it_changes(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    decoded(film, out)
    with monkeypatch.context() as patched:
        patched.setattr(video_files, "_frames", lambda *_: pytest.fail("decoded again"))
        decoded(film, out)
    clip(film, [200, 200, 200, 200, 90], rate=4)
    assert near(decoded(film, out), [200, 90])
    (out / JOURNAL).unlink()  # killed before it was noted
    assert near(decoded(film, out), [200, 90])


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: clip(tmp_path / f"{name}.mp4", [level] * 8) for name, level in (("a", 50), ("b", 150))}
    out, real = tmp_path / "out", video_files._frames

    def stop_in_the_second(file: Path, sampling: Sampling) -> Any:
        for number, image in enumerate(real(file, sampling)):
            if file.stem == "b" and number == 1:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr(video_files, "_frames", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        decode_videos(files, out, Sampling())
    assert (out / "a").is_dir()
    assert not (out / "b").exists()  # nothing is visible before it is whole
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'\n{"video": "b", "si')  # a line cut off
    seen: list[str] = []

    def note(file: Path, sampling: Sampling) -> Any:
        seen.append(file.stem)
        return real(file, sampling)

    monkeypatch.setattr(video_files, "_frames", note)
    assert decode_videos(files, out, Sampling()) == {"a": 2, "b": 2}
    assert decode_videos(files, out, Sampling()) == {"a": 2, "b": 2}
    assert seen == ["b"]
    assert not list(out.glob(".partial*"))


def test_damaged_files_are_named_and_left_out(film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = film.read_bytes()
    files = {"a": film}
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no film" * 99}.items():
        files[name] = film.parent / f"{name}.mp4"
        files[name].write_bytes(data)
    files["still"] = film.parent / "sound.mp4"
    _only_sound(files["still"])
    out = tmp_path / "out"
    for _ in range(2):  # they are not tried again, and named again
        caplog.clear()
        counts = decode_videos(files, out, Sampling())
        assert counts == {"a": 3, "cut": 0, "empty": 0, "text": 0, "still": 0}
        assert "4 of 5 videos cannot be decoded and are left out: cut: no video stream" in caplog.text
        assert "text: InvalidDataError" in caplog.text
        assert "still: no video stream" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == ["a", JOURNAL]


def _only_sound(path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_missing_file_and_a_folder_that_cannot_be_written_are_told(film: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the video"):
        decode_videos({"a": tmp_path / "none.mp4"}, tmp_path / "out", Sampling())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot (read|write).*(it continues|repeat the command)"):
        decode_videos({"a": film}, tmp_path / "file", Sampling())


def test_without_the_extra_one_sentence_names_it(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_decoder(name: str, *rest: Any, **more: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    decoded(film, tmp_path / "before")
    monkeypatch.setattr(builtins, "__import__", no_decoder)
    with pytest.raises(InputError, match=r"needs the extra 'video': pip install 'cgd\[video\]'"):
        decode_videos({"a": film}, tmp_path / "out", Sampling())
    decoded(film, tmp_path / "before")  # what is decoded needs no decoder


def test_each_sampling_and_each_folder_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = {
        frames_folder("clips", root, Sampling(rate=rate, most=most))
        for root in (tmp_path / "a", tmp_path / "b")
        for rate, most in ((1.0, 60), (2.0, 60), (1.0, 30))
    }
    assert len(places) == 6
    assert all(str(place).startswith(".cgd/frames/clips-") for place in places)
    for rate, most in ((0.0, 60), (-1.0, 60), (float("nan"), 60), (1.0, 0)):
        with pytest.raises(InputError, match="at least one of a video"):
            Sampling(rate=rate, most=most)


def test_frames_are_images_as_any_other(film: Path, tmp_path: Path) -> None:
    decoded(film, tmp_path / "out")
    with Image.open(tmp_path / "out/a/0000.jpg") as image:
        assert (image.mode, image.size) == ("RGB", (48, 32))

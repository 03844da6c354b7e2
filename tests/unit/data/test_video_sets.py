"""SVD in its published layout and folders of videos, as lists of frames with the ground truth over videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import clip

from cgd.data.datasets import open_benchmark, open_dataset
from cgd.data.frames import first_frames, videos_of, with_first_frames
from cgd.errors import InputError
from cgd.types import ImageList

COUNTS = {"1001": 3, "1002": 1, "2001": 2, "2002": 4, "2003": 1, "2004": 2, "3001": 1, "3002": 2, "3003": 1}


def published(root: Path, below: str = "metadata-release") -> Path:
    """SVD as its archive and the extraction of frames leave it: nine videos, with .mp4 in lists, not in num_frames."""
    meta = root / below
    meta.mkdir(parents=True)
    files = {
        "query-id": "1001.mp4\n1002.mp4\n",
        "labeled-data-id": "2001.mp4\n2002.mp4\n2003.mp4\n2004.mp4\n",
        "unlabeled-data-id": "3001.mp4\n3002.mp4\n3003.mp4\n",
        "groundtruth": "1001.mp4 2001.mp4 1\n1001.mp4 2002.mp4 0\n1002.mp4 2003.mp4 1\n1002.mp4 2004.mp4 0\n",
        "train_groundtruth": "1001.mp4 2001.mp4 1\n1001.mp4 2002.mp4 0\n1002.mp4 2001.mp4 0\n",
        "test_groundtruth": "1002.mp4 2003.mp4 1\n1002.mp4 2004.mp4 0\n1001.mp4 2004.mp4 1\n1001.mp4 2001.mp4 0\n",
    }
    for name, text in files.items():
        (meta / name).write_bytes(text.encode())
    (root / "num_frames").write_bytes("".join(f"{v} {n}\n" for v, n in COUNTS.items()).encode())
    for video, count in COUNTS.items():
        (root / "frames" / video).mkdir(parents=True)
        for number in range(count):
            (root / "frames" / video / f"{number:04d}.jpg").write_bytes(b"pixels")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return published(tmp_path / "svd")


def names(images: ImageList) -> list[str]:
    return list(videos_of(images)[0].ids)


def test_splits_are_those_of_the_two_ground_truths(root: Path) -> None:
    spec = f"svd:{root}"
    train = open_dataset(spec)
    assert names(train) == ["1001", "2001", "2002", "1002"]
    assert names(open_dataset(spec, split="query")) == ["1002", "1001"]
    assert names(open_dataset(spec, split="labelled")) == ["2003", "2004", "2001"]
    assert names(open_dataset(spec, split="unlabelled")) == ["3001", "3002", "3003"]
    assert names(open_dataset(spec, split="gallery")) == ["2003", "2004", "2001", "3001", "3002", "3003"]
    assert train.ids[:4] == ("1001/0000.jpg", "1001/0001.jpg", "1001/0002.jpg", "2001/0000.jpg")
    assert train.paths[3] == "frames/2001/0000.jpg"
    assert (train.name, train.labels, train.root) == ("svd", None, root)
    with pytest.raises(InputError, match="unknown split of svd 'test'"):
        open_dataset(spec, split="test")


def test_the_ground_truth_is_over_videos_and_what_others_were_judged_for_is_junk(root: Path) -> None:
    benchmark = open_benchmark(f"svd:{root}")
    assert benchmark.of_videos
    truth = benchmark.truth
    assert truth is not None
    assert [list(rows) for rows in truth.easy] == [[0], [1]]
    assert [list(rows) for rows in truth.hard] == [[], []]
    assert [list(rows) for rows in truth.junk] == [[2], [0]]  # 2001 of the query 1002, 2003 of the query 1001


def test_text_files_at_the_top_and_names_without_an_ending_are_the_same(root: Path, tmp_path: Path) -> None:
    plain = published(tmp_path / "plain", ".")
    for file in plain.iterdir():
        if file.is_file():
            lines = file.read_text().replace(".mp4", "").split("\n")
            file.write_bytes("\r\n".join(lines).encode())
    (plain / "num_frames").write_text("".join(f"{v}.mp4 {n}\n" for v, n in COUNTS.items()))
    one, other = open_benchmark(f"svd:{root}"), open_benchmark(f"svd:{plain}")
    assert (one.gallery.ids, one.queries.ids) == (other.gallery.ids, other.queries.ids)
    assert str(one.truth) == str(other.truth)


def test_of_a_pair_that_is_there_twice_the_last_line_counts(root: Path) -> None:
    with (root / "metadata-release/test_groundtruth").open("a") as file:
        file.write("1002.mp4 2003.mp4 0\n1002.mp4 2004.mp4 1\n")
    truth = open_benchmark(f"svd:{root}").truth
    assert truth is not None
    assert [list(rows) for rows in truth.easy] == [[1], [1]]


def test_a_judged_video_that_is_unlabelled_too_is_there_once_and_a_candidate_of_all(root: Path) -> None:
    with (root / "metadata-release/unlabeled-data-id").open("a") as file:
        file.write("2001.mp4\n3001.mp4\n")
    benchmark = open_benchmark(f"svd:{root}")
    assert names(benchmark.gallery) == ["2003", "2004", "2001", "3001", "3002", "3003"]
    assert benchmark.truth is not None
    assert [list(rows) for rows in benchmark.truth.junk] == [[], [0]]


def test_videos_without_a_frame_are_left_out_unless_the_score_needs_them(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = root / "num_frames"
    whole = counts.read_text()
    counts.write_text(whole.replace("3002 2", "3002 0").replace("2001 2", "2001 0"))
    benchmark = open_benchmark(f"svd:{root}")
    assert names(benchmark.gallery) == ["2003", "2004", "3001", "3003"]
    assert "2 videos have no frame and are left out, e.g. 2001" in caplog.text
    assert benchmark.truth is not None
    assert [list(rows) for rows in benchmark.truth.junk] == [[], [0]]
    counts.write_text(whole.replace("2003 1", "2003 0"))
    with pytest.raises(InputError, match="near-duplicate '2003' of '1002' has no frame"):
        open_benchmark(f"svd:{root}")
    counts.write_text(whole.replace("1001 3", "1001 0"))
    with pytest.raises(InputError, match="the query '1001' has no frame"):
        open_benchmark(f"svd:{root}")


def test_what_is_missing_is_said_and_how_the_folder_must_look(root: Path) -> None:
    shutil.rmtree(root / "frames/2004")
    with pytest.raises(InputError, match=r"2 of 9 images looked for are missing.*frames/2004.*frames/<video>/0000"):
        open_benchmark(f"svd:{root}")
    assert len(open_dataset(f"svd:{root}")) == 10  # whose frames are all there
    shutil.rmtree(root / "frames")
    with pytest.raises(InputError, match=r"the images must stand at frames/<video>/0000\.jpg"):
        open_dataset(f"svd:{root}")
    (root / "num_frames").write_text("1001 3\n")
    with pytest.raises(InputError, match=r"num_frames lacks 3 of 4 videos that SVD's lists name, e\.g\. 2001"):
        open_dataset(f"svd:{root}")
    (root / "num_frames").unlink()
    (root / "metadata-release/test_groundtruth").unlink()
    with pytest.raises(InputError, match="test_groundtruth, num_frames are missing; it must hold train_groundtruth"):
        open_dataset(f"svd:{root}")
    with pytest.raises(InputError, match="does not exist"):
        open_dataset(f"svd:{root / 'none'}")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("metadata-release/test_groundtruth", "1002.mp4 2003.mp4\n", "line 1: expected '<query> <candidate> <0|1>'"),
        ("metadata-release/test_groundtruth", "1002.mp4 2003.mp4 2\n", "line 1: expected"),
        ("metadata-release/test_groundtruth", "", "is empty"),
        ("metadata-release/test_groundtruth", "../1002.mp4 2003.mp4 1\n", "no name of a video"),
        ("metadata-release/unlabeled-data-id", "/etc/passwd\n", "no name of a video"),
        ("num_frames", "1001 three\n", "line 1: expected '<video> <count>'"),
        ("num_frames", b"\xff\xfe\n", "not text in UTF-8"),
    ],
)
def test_damaged_files_are_named_with_their_line(root: Path, file: str, text: str | bytes, told: str) -> None:
    (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=told):
        open_benchmark(f"svd:{root}")


def frames(*groups: str) -> ImageList:
    ids = tuple(f"{group}/{row}" for row, group in enumerate(groups))
    return ImageList("made", None, ids, ids, labels=tuple(g.upper() for g in groups), groups=groups)


def test_videos_of_a_list_and_their_first_frames() -> None:
    images = frames("a", "a", "a", "b", "c", "c")
    videos, lengths = videos_of(images)
    assert (videos.ids, videos.labels, lengths.tolist()) == (("a", "b", "c"), ("A", "B", "C"), [3, 1, 2])
    assert first_frames(images, 2).ids == ("a/0", "a/1", "b/3", "c/4", "c/5")
    assert first_frames(images, 0) is images
    assert first_frames(images, 3) is images
    with pytest.raises(InputError, match="one after the other"):
        videos_of(frames("a", "b", "a"))
    assert videos_of(frames())[1].dtype == np.int64


def test_first_frames_of_a_benchmark_keep_its_ground_truth(root: Path) -> None:
    benchmark = open_benchmark(f"svd:{root}")
    cut = with_first_frames(benchmark, 1)
    assert len(cut.gallery) == len(names(benchmark.gallery)) == 6
    assert cut.truth is benchmark.truth


# videos of one's own


def folders(root: Path, **counts: int) -> Path:
    """A folder of frames for each video, `label__video=frames`."""
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(b"pixels")
        (folder / "notes.txt").write_text("not a frame")
    return root


def test_folders_of_frames_are_videos_and_the_folder_above_their_label(tmp_path: Path) -> None:
    root = folders(tmp_path / "clips", cats__one=2, cats__two=1, dogs__one=3)
    images = open_dataset(f"videos:{root}")
    assert names(images) == ["cats/one", "cats/two", "dogs/one"]
    assert (images.name, images.root, len(images)) == ("clips", root, 6)
    assert images.ids[:2] == images.paths[:2] == ("cats/one/0.png", "cats/one/1.png")
    assert images.labels == ("cats",) * 3 + ("dogs",) * 3
    benchmark = open_benchmark(f"videos:{root}")
    assert benchmark.leave_one_out
    assert benchmark.truth is None
    with pytest.raises(InputError, match="videos has no splits"):
        open_dataset(f"videos:{root}", split="train")


def test_pairs_are_a_ground_truth_and_videos_that_they_do_not_name_are_candidates_of_all(tmp_path: Path) -> None:
    root = folders(tmp_path / "my clips", q1=1, q2=2, a=1, b=2, c=1, d=1)
    (root / "pairs.txt").write_text("q2\tb\t1\nq2\ta\t0\nq1\ta\t1\n\n")
    benchmark = open_benchmark(f"videos:{root}")
    assert names(benchmark.queries) == ["q2", "q1"]
    assert names(benchmark.gallery) == ["b", "a", "c", "d"]
    assert benchmark.truth is not None
    assert [list(rows) for rows in benchmark.truth.easy] == [[0], [1]]
    assert [list(rows) for rows in benchmark.truth.junk] == [[], [0]]
    assert open_dataset(f"videos:{root}").labels is None
    (root / "pairs.txt").write_text("q2 e 1\n")
    with pytest.raises(InputError, match=r"pairs\.txt names the video 'e', which is not there"):
        open_benchmark(f"videos:{root}")
    (root / "pairs.txt").unlink()
    with pytest.raises(InputError, match=r"neither pairs\.txt .* nor a sub-folder per label"):
        open_benchmark(f"videos:{root}")


def test_video_files_are_decoded_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.avi", "q.mp4"):
        clip(tmp_path / "films" / name, [60] * 8 + [180] * 4)
    (tmp_path / "films/broken.webm").write_bytes(b"no film")
    (tmp_path / "films/pairs.txt").write_text("q.mp4 a 1\nq b.avi 0\n")
    images = open_dataset("videos:films?rate=2&most=4")
    assert images.name == "films"
    assert names(images) == ["a.mp4", "b.avi", "q.mp4"]
    assert len(images) == 12
    assert images.root is not None
    assert (images.root / images.paths[0]).is_file()
    assert str(images.root).startswith(".cgd/frames/films-")
    assert "1 of 4 videos cannot be decoded and are left out: broken.webm: InvalidDataError" in caplog.text
    benchmark = open_benchmark("videos:films")
    assert names(benchmark.gallery) == ["a.mp4", "b.avi"]
    assert len(benchmark.gallery) == 6
    with pytest.raises(InputError, match="unknown option 'fps'"):
        open_dataset("videos:films?fps=2")


def test_svd_as_videos_alone_is_decoded_split_by_split(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    (root / "num_frames").unlink()
    shutil.rmtree(root / "frames")
    for video in COUNTS:
        if video != "3002":
            clip(root / ("query" if video < "2" else "labeled-0") / f"{video}.mp4", [60] * 9)
    images = open_dataset(f"svd:{root}")
    assert names(images) == ["1001", "2001", "2002", "1002"]
    assert len(images) == 12
    assert images.root is not None
    assert (images.root / "1001/0002.jpg").is_file()
    assert not (images.root / "3001").exists()
    with pytest.raises(InputError, match=r"svd lacks 1 of 6 videos that SVD's lists name, e\.g\. 3002"):
        open_benchmark(f"svd:{root}")


def test_what_is_no_folder_of_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no video: it must hold video files"):
        open_dataset(f"videos:{tmp_path / 'none'}")
    root = folders(tmp_path / "mixed", one=1)
    (root / "two.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match="keep one of both"):
        open_dataset(f"videos:{root}")
    (root / "three.jpg").write_bytes(b"pixels")
    with pytest.raises(InputError, match="holds images itself"):
        open_dataset(f"videos:{root}")


def test_a_folder_of_nothing_but_damaged_videos_says_where_the_reasons_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_bytes(b"no film")
    with pytest.raises(InputError, match=r"no video below .* can be decoded: .*decoded\.jsonl"):
        open_dataset("videos:films")
    assert "a.mp4" in next((tmp_path / ".cgd/frames").glob("*/decoded.jsonl")).read_text()

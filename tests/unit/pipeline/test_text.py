"""Results as text: tables, protocol lines and summaries."""

import math
from typing import Any

from cgd.pipeline import text


def card(**changes: Any) -> dict[str, Any]:
    return {
        "members": ["gem"],
        "query_crop": True,
        "scales": [1.0, 1.41421356, 0.70710678],
        "image_size": 1024,
        "resize": "longest",
        "filter": "lanczos",
        "combine": "mean",
        "precision": "fp32",
        "dim": 2048,
        "similarity": "cosine",
        "whitening": None,
        "relevance": "ground truth",
        "ap": "trapezoid",
        "ties": "score, then index",
        "index": "exact",
        "distractors": [],
        "artifacts": [],
        **changes,
    }


def result(model: str, values: dict[str, float | None], **changes: Any) -> dict[str, Any]:
    protocols = {name: {"mAP": value} for name, value in values.items()}
    return {"benchmark": "lm", "model": model, "distractors": 0, "card": card(), "protocols": protocols, **changes}


def cells(table: str) -> list[list[str]]:
    """Rows split at two blanks or more."""
    return [[c.strip() for c in line.split("  ") if c.strip()] for line in table.splitlines()]


def test_the_table_has_a_row_per_model_and_a_column_per_protocol() -> None:
    scores = [
        result("gem", {"easy": 80.126, "medium": 64.0, "hard": 9.999}),
        result("gem, whitened", {"easy": 1.0, "medium": 2.0, "hard": 3.0}),
    ]
    assert cells(text.score_table(scores)) == [
        ["mAP x 100", "lm E", "lm M", "lm H"],
        ["-" * len(text.score_table(scores).splitlines()[0])],
        ["gem", "80.13", "64.00", "10.00"],
        ["gem, whitened", "1.00", "2.00", "3.00"],
    ]


def test_columns_are_aligned_names_to_the_left_numbers_to_the_right() -> None:
    table = text.score_table([result("a", {"labels": 5.0}), result("longer name", {"labels": 100.0})])
    head, rule, *rows = table.splitlines()
    assert {len(line) for line in (head, rule, *rows)} == {len(head)}
    assert rows[0].startswith("a ")
    assert rows[0].endswith("  5.00")
    assert rows[1].endswith("100.00")


def test_seeds_of_one_student_are_a_mean_and_a_sample_deviation() -> None:
    values = [10.0, 12.0, 17.0]
    scores = [result(f"s{i}", {"labels": v}, row="student", seed=i) for i, v in enumerate(values)]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    assert cells(text.score_table(scores))[2] == ["student", f"{mean:.2f} ± {deviation:.2f}"]


def test_a_single_seed_has_no_deviation_and_a_missing_score_is_a_dash() -> None:
    scores = [
        result("s0", {"labels": 5.0}, row="student", seed=0),
        result("t", {"labels": 6.0}, benchmark="other", row="teacher", seed=None),
    ]
    assert cells(text.score_table(scores))[2:] == [["student", "5.00", "-"], ["t", "-", "6.00"]]


def test_a_protocol_no_query_of_which_has_a_positive_is_left_out() -> None:
    table = text.score_table([result("gem", {"easy": None, "medium": 2.0})])
    assert cells(table)[0] == ["mAP x 100", "lm M"]


def test_full_queries_and_distractors_stand_over_their_own_columns() -> None:
    scores = [
        result("gem", {"medium": 2.0}),
        result("gem", {"medium": 1.0}, card=card(query_crop=False), distractors=1_000_000),
    ]
    assert cells(text.score_table(scores))[0] == ["mAP x 100", "lm M", "lm full queries +1000000 M"]
    assert cells(text.score_table(scores))[2] == ["gem", "2.00", "1.00"]


def test_nothing_scored_is_still_a_table() -> None:
    assert text.score_table([]).splitlines()[0] == "mAP x 100"


def test_a_card_tells_the_whole_protocol_in_one_line() -> None:
    assert text.card_line(card()) == (
        "queries cropped; longest 1024, lanczos, scales 1, 1.41421, 0.707107; 2048 dimensions, raw, cosine; "
        "relevance by ground truth; trapezoid AP; ties by score, then index; exact search"
    )


def test_a_card_warns_of_what_is_not_the_benchmarks_protocol() -> None:
    assert "full queries (not the benchmark's protocol)" in text.card_line(card(query_crop=False))
    assert "queries have no box" in text.card_line(card(query_crop=None))
    drawn = {"name": "random:5", "images": 5, "note": "synthetic unit vectors: not a published protocol"}
    line = text.card_line(card(distractors=[drawn, {"name": "r1m", "images": 7}]))
    assert "+ random:5: synthetic unit vectors: not a published protocol" in line
    assert line.endswith("+ r1m: 7 distractors")


def test_a_card_names_whitening_rule_and_resizing() -> None:
    line = text.card_line(card(whitening="whitening/x-0", ap="mean-precision", resize="none", dim=128))
    assert "128 dimensions, whitened, cosine" in line
    assert "mean-precision AP" in line
    assert "unresized, lanczos" in line


def test_a_card_of_unlike_members_can_be_told() -> None:
    line = text.card_line(card(scales=[[1.0], [1.0, 0.5]], image_size=[224, 1024], members=["a", "b"]))
    assert "224" in line
    assert "1024" in line


def test_scores_are_the_table_then_a_line_of_protocol_per_model() -> None:
    lines = text.scores_text([result("a", {"labels": 1.0}), result("b", {"labels": 2.0})]).splitlines()
    assert lines[-2:] == [f"a: {text.card_line(card())}", f"b: {text.card_line(card())}"]
    assert lines[-3] == ""


def test_an_interval_and_an_index_stand_below_their_score() -> None:
    score = result("a", {"labels": 40.0})
    score["protocols"]["labels"]["mAP_interval"] = [38.126, 42.0]
    score["card"] = card(index={"kind": "hnsw", "k": 50, "build_breadth": 80})
    score["index"] = {"recall@1": 1.0, "recall@10": 0.987, "queries_per_second": 1234.5, "bytes_per_vector": 96.2}
    first, second, third = text.scores_text([score]).splitlines()[-3:]
    assert "; hnsw index (k 50, build breadth 80; positives not found are missed)" in first
    assert second == "  95 % interval over queries: mAP 38.13 to 42.00"
    assert "it found 100.0 % of the 1, 98.7 % of the 10; 1,234 queries a second, 96 bytes a vector" in third


STUDENT = {
    "folder": "runs/s",
    "parameters": 11_440_000,
    "gmacs": 1.8194,
    "epochs": 20,
    "final_loss": 0.123456,
    "seconds_per_step": {"data": 0.1, "targets": 0.0, "forward": 0.25, "backward": 0.5},
}


def test_a_student_is_told_with_its_size_cost_and_where_its_time_went() -> None:
    assert text.student_text(STUDENT) == (
        "runs/s: 11,440,000 parameters, 1.819 GMACs, 20 epochs, loss 0.1235; "
        "seconds per step: data 0.100, targets 0.000, forward 0.250, backward 0.500"
    )


def test_a_run_tells_each_students_protocol_once() -> None:
    scores = [result(f"s{i}", {"labels": 5.0}, row="student", seed=i) for i in range(3)]
    scores.append(result("t", {"labels": 6.0}, row="teacher", seed=None, card=card(filter="bicubic")))
    told = text.run_text({"rows": ["student"], "scores": scores, "students": [STUDENT, STUDENT]})
    assert told.count("queries cropped") == 1
    assert "lm: queries cropped; longest 1024, lanczos" in told
    assert told.count("runs/s: ") == 2


def test_recalls_stand_below_a_score_by_label_and_drawn_queries_on_its_card() -> None:
    drawn = {"drawn": 10_000, "of": 60_502, "seed": 1}
    score = {"protocols": {"labels": {"mAP": 3.0, "recall@1": 27.5, "recall@1000": 44.625}}}
    assert text.recall_lines(score) == ["  recall@1 27.50, @1000 44.62"]
    assert text.recall_lines({"protocols": {"medium": {"mAP": 3.0}}}) == []
    assert "10,000 of 60,502 queries drawn at random with seed 1; trapezoid AP" in text.card_line(
        card(random_queries=drawn)
    )


def test_an_extraction_names_every_invalid_image_with_its_reason() -> None:
    teacher = {"keys": {"fixed": "k", "crop-1": "l"}, "shards_written": 3, "shards_skipped": 1}
    told = text.extract_text(
        {
            "valid": 2,
            "images": 3,
            "not_asked": 0,
            "failed": [{"id": "x/1.png", "reason": "empty file"}],
            "teachers": {
                "gem": {**teacher, "images_copied": 0, "images_per_second": 12.4},
                "again": {**teacher, "images_copied": 1234, "images_per_second": 0.0},
            },
        }
    )
    assert told.splitlines() == [
        "2 of 3 images are valid",
        "  invalid: x/1.png: empty file",
        "gem: 2 views, 3 shards written, 1 skipped, 12 images/s in the network",
        "again: 2 views, 3 shards written, 1 skipped, 1,234 rows copied from earlier artifacts",
    ]


def test_a_whitening_tells_rows_dimensions_and_what_was_kept() -> None:
    fitted = {"rows": 24, "dim_in": 256, "dim_out": 16, "energy_kept": 0.93477, "clamped": 233}
    assert text.whitening_text({"gem": {"fixed": fitted, "crop": fitted}}).splitlines() == [
        "gem (fixed): 24 rows, 256 to 16 dimensions, 93.5 % of the variance, 233 eigenvalues clamped",
        "gem (crop): 24 rows, 256 to 16 dimensions, 93.5 % of the variance, 233 eigenvalues clamped",
    ]


def test_an_estimate_tells_bytes_disk_and_time_or_that_nothing_is_left() -> None:
    todo = {
        "images": 10,
        "artifacts": 2,
        "bytes": 2_500_000_000,
        "free_bytes": 9e9,
        "seconds": 7200,
        "images_per_second": 4.0,
    }
    assert text.estimate_text(todo) == (
        "2 artifacts to make of 10 images: 2.500 GB to write, 9.0 GB free, about 2.00 hours at 4.0 images/s"
    )
    done = {"images": 10, "artifacts": 0, "bytes": 0, "free_bytes": 9e9, "seconds": 0.0}
    assert text.estimate_text(done).startswith("all 10 images are embedded already")

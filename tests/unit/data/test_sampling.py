"""Which images meet in a batch: laws of an epoch's plan."""

from collections import Counter

import numpy as np
import pytest

from cgd.data.sampling import (
    append_unlabelled,
    class_batches,
    epoch_generator,
    image_pairs,
    label_classes,
    label_numbers,
    label_pairs,
    single_images,
    some_labels,
    some_of_each,
    within_budget,
)
from cgd.errors import InputError
from cgd.types import Batch, ImageList

LABELS = [f"label-{i % 10}" for i in range(35)] + ["lonely"]  # 3 or 4 images each, and one alone
ALL = np.ones(len(LABELS), bool)


def by_label(seed: int = 0, epoch: int = 0, batch: int = 4, usable: np.ndarray = ALL) -> list[Batch]:
    return list(label_pairs(LABELS, usable, (1, 2, 5), batch, epoch_generator(seed, epoch)))


def by_image(seed: int = 0, epoch: int = 0, batch: int = 4, usable: np.ndarray = ALL) -> list[Batch]:
    return list(image_pairs(usable, (1, 2, 5), batch, epoch_generator(seed, epoch)))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.rows, b.rows) and np.array_equal(a.views, b.views) for a, b in zip(one, other, strict=True)
    )


def singles(seed: int = 0, epoch: int = 0, batch: int = 7, usable: np.ndarray = ALL) -> list[Batch]:
    return list(single_images(usable, (1, 2, 5), batch, epoch_generator(seed, epoch)))


def test_single_images_come_once_each_under_any_view() -> None:
    usable = ALL.copy()
    usable[3] = False
    batches = singles(usable=usable)
    assert [b.rows.shape for b in batches] == [(7, 1)] * 5
    assert sorted(int(r) for b in batches for r in b.rows[:, 0]) == [r for r in range(len(ALL)) if r != 3]
    assert {int(v) for e in range(5) for b in singles(epoch=e) for v in b.views.ravel()} == {1, 2, 5}
    assert same(singles(), singles())
    assert not same(singles(), singles(epoch=1))


def test_the_two_images_of_a_pair_are_distinct_and_of_one_label() -> None:
    for epoch in range(20):
        for batch in by_label(epoch=epoch):
            for first, second in batch.rows:
                assert first != second
                assert LABELS[first] == LABELS[second]


def test_all_labels_of_a_batch_are_distinct_and_each_occurs_once_in_an_epoch() -> None:
    for epoch in range(20):
        seen = [LABELS[row] for batch in by_label(epoch=epoch) for row in batch.rows[:, 0]]
        assert sorted(seen) == sorted({label for label in LABELS if label != "lonely"})


def test_the_last_batch_is_kept_although_smaller() -> None:
    assert [len(b) for b in by_label(batch=4)] == [4, 4, 2]
    assert [len(b) for b in by_label(batch=100)] == [10]


def test_a_single_pair_at_the_end_is_left_out_for_want_of_negatives() -> None:
    assert [len(b) for b in by_label(batch=3)] == [3, 3, 3]
    assert [len(b) for b in by_image(batch=7)] == [7] * 5  # of 36 images


def test_images_no_teacher_could_read_are_never_drawn() -> None:
    usable = ALL.copy()
    usable[[0, 10, 3]] = False  # label-0 keeps two of its four images, label-3 three
    rows = np.concatenate([b.rows for e in range(200) for b in by_label(epoch=e, usable=usable)])
    assert not set(rows.ravel()) & {0, 10, 3}
    assert {20, 30} <= set(rows.ravel())
    assert not {0, 10, 3} & {int(r) for b in by_image(usable=usable) for r in b.rows.ravel()}


def test_a_label_left_with_one_usable_image_is_skipped() -> None:
    usable = ALL.copy()
    usable[[0, 10, 20]] = False
    seen = {LABELS[row] for batch in by_label(usable=usable, batch=100) for row in batch.rows.ravel()}
    assert seen == {f"label-{i}" for i in range(1, 10)}


@pytest.mark.parametrize("plan", [by_label, by_image])
def test_equal_seed_and_epoch_give_an_equal_plan_and_others_another(plan: object) -> None:
    assert callable(plan)
    assert same(plan(seed=3, epoch=5), plan(seed=3, epoch=5))
    assert not same(plan(seed=3, epoch=5), plan(seed=3, epoch=6))
    assert not same(plan(seed=3, epoch=5), plan(seed=4, epoch=5))
    assert not same(plan(seed=0, epoch=1), plan(seed=1, epoch=0))


def test_over_many_epochs_the_images_of_a_label_are_drawn_equally_often() -> None:
    counts = Counter(int(r) for e in range(400) for b in by_label(epoch=e) for r in b.rows.ravel())
    for label in sorted(set(LABELS) - {"lonely"}):
        members = [i for i, other in enumerate(LABELS) if other == label]
        expected = 2 * 400 / len(members)
        assert all(abs(counts[i] - expected) < 5 * np.sqrt(expected) for i in members), label


def test_over_many_epochs_every_label_meets_every_other_in_a_batch() -> None:
    met = set()
    for epoch in range(120):
        for batch in by_label(epoch=epoch, batch=2):
            met.add(frozenset(LABELS[row] for row in batch.rows[:, 0]))
    assert len(met) == 10 * 9 / 2


def test_views_are_drawn_from_the_stored_ones_independently_for_either_image() -> None:
    views = np.concatenate([b.views for e in range(300) for b in by_label(epoch=e)])
    pairs = Counter(map(tuple, views.tolist()))
    assert set(pairs) == {(a, b) for a in (1, 2, 5) for b in (1, 2, 5)}
    expected = len(views) / 9
    assert all(abs(n - expected) < 5 * np.sqrt(expected) for n in pairs.values())


def test_rows_and_views_are_pairs_of_64_bit_numbers() -> None:
    for batch in (by_label()[0], by_image()[0]):
        assert batch.rows.shape == batch.views.shape == (4, 2)
        assert batch.rows.dtype == batch.views.dtype == np.int64


def test_labels_need_not_stand_together_nor_in_order() -> None:
    labels = ["z", "a", "z", "m", "a", "m"]
    (batch,) = label_pairs(labels, np.ones(6, bool), (0,), 10, epoch_generator(0, 0))
    assert sorted(tuple(sorted(pair)) for pair in batch.rows.tolist()) == [(0, 2), (1, 4), (3, 5)]


def test_every_image_meets_itself_once_under_two_different_views() -> None:
    batches = by_image(batch=6)
    rows = np.concatenate([b.rows for b in batches])
    views = np.concatenate([b.views for b in batches])
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    assert sorted(rows[:, 0]) == list(range(36))
    assert (views[:, 0] != views[:, 1]).all()
    assert set(views.ravel()) == {1, 2, 5}


def test_fewer_than_two_labels_with_two_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"distill.positives=image"):
        list(label_pairs(["a", "a", "b"], np.ones(3, bool), (1,), 4, epoch_generator(0, 0)))


def test_a_single_view_pairs_an_image_with_itself() -> None:
    batches = list(image_pairs(np.ones(5, bool), (3,), 4, epoch_generator(0, 0)))
    assert np.concatenate([b.views for b in batches]).tolist() == [[3, 3]] * 4  # the fifth would be alone
    assert all((b.rows[:, 0] == b.rows[:, 1]).all() for b in batches)


def test_two_views_need_two_images() -> None:
    with pytest.raises(InputError, match="two readable images"):
        list(image_pairs(np.array([True, False]), (1, 2), 4, epoch_generator(0, 0)))


def by_class(seed: int = 0, epoch: int = 0, batch: int = 8, usable: np.ndarray = ALL) -> list[Batch]:
    return list(class_batches(label_numbers(LABELS), usable, (1, 2, 5), batch, 4, epoch_generator(seed, epoch)))


def test_a_batch_of_classes_has_several_images_of_each_and_every_class_comes_once() -> None:
    batches = by_class()
    assert [b.rows.shape for b in batches] == [(8, 1)] * 5  # eleven labels: one is left after the last whole batch
    seen = [LABELS[row] for b in batches for row in b.rows[::4, 0]]
    assert len(set(seen)) == len(seen) == 10
    for b in batches:
        for of_class in np.split(b.rows[:, 0], 2):
            names = {LABELS[row] for row in of_class}
            assert len(names) == 1

    assert same(by_class(), by_class())
    assert not same(by_class(), by_class(epoch=1))


def test_a_class_gives_an_image_twice_only_where_it_has_too_few() -> None:
    for epoch in range(10):
        for b in by_class(epoch=epoch):
            for of_class in np.split(b.rows[:, 0], 2):
                enough = LABELS.count(LABELS[of_class[0]]) >= 4
                assert not enough or len(set(of_class.tolist())) == 4


def test_images_without_a_label_are_in_no_class() -> None:
    numbers = label_numbers(["", "b", "a", ""])
    assert numbers.tolist() == [-1, 1, 0, -1]
    with pytest.raises(InputError, match="there are 2"):
        list(class_batches(numbers, np.ones(4, bool), (0,), 6, 2, epoch_generator(0, 0)))


def test_batches_that_hold_no_two_classes_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 4, at least 8"):
        by_class(batch=4)
    with pytest.raises(InputError, match="multiple of 4, at least 8"):
        by_class(batch=10)


def test_a_label_may_name_several_classes() -> None:
    table = label_classes(["sky|water", "", "tree", "sky", "sky|water"])
    assert table.tolist() == [[True, False, False], [True, False, True], [False, True, False]]
    assert label_numbers(["sky|water", "", "tree", "sky"]).tolist() == [1, -1, 2, 0]


# budgets, and images without labels


def drawn_images(labels: list[str] | None, count: int = 40) -> ImageList:
    names = tuple(f"image-{n}" for n in range(count))
    return ImageList("drawn", None, names, names, labels=None if labels is None else tuple(labels))


@pytest.mark.parametrize("by", ["image", "label"])
def test_a_budget_is_kept_and_a_smaller_one_is_part_of_a_larger(by: str) -> None:
    images = drawn_images([f"label-{n % 9}" for n in range(36)] + [""] * 4)
    before = np.zeros(40, bool)
    for most in range(5, 40):
        kept = within_budget(images, most, by, seed=3)
        assert most - (4 if by == "label" else 0) <= kept.sum() <= most
        assert not (before & ~kept).any()
        before = kept
    assert (within_budget(images, 12, by, 3) == within_budget(images, 12, by, 3)).all()
    assert (within_budget(images, 12, by, 3) != within_budget(images, 12, by, 4)).any()
    assert all(within_budget(images, most, by, 3).all() for most in (0, 40, 41))


def test_a_budget_by_label_keeps_labels_whole() -> None:
    labels = np.array([f"label-{n % 9}" for n in range(36)] + [""] * 4)
    kept = within_budget(drawn_images(labels.tolist()), 21, "label", seed=0)
    assert {name: kept[labels == name].all() for name in set(labels[kept])} == dict.fromkeys(set(labels[kept]), True)
    assert (len(set(labels[kept])), kept.sum(), kept[labels == ""].any()) == (5, 20, False)


@pytest.mark.parametrize(
    ("labels", "told"), [(None, "has no labels to draw"), (["one"] * 40, "a budget of 9 images holds no whole label")]
)
def test_a_budget_by_label_that_cannot_be(labels: list[str] | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        within_budget(drawn_images(labels), 9, "label", seed=0)


def test_a_share_of_the_labels_stays() -> None:
    numbers = label_numbers([f"label-{n % 9}" for n in range(36)] + [""] * 4)
    some = some_labels(numbers, 0.25, seed=1)
    assert (some >= 0).sum() == 9
    assert set(some[some != numbers]) == {-1}
    assert (some_labels(numbers, 1.0, seed=1) == numbers).all()
    assert (some_labels(numbers, 0.25, seed=2) != some).any()


def test_images_without_a_label_follow_those_of_the_classes() -> None:
    labels = label_numbers([f"label-{n % 5}" for n in range(30)] + [""] * 10)
    usable = np.arange(40) != 35
    by_class = list(class_batches(labels, usable, (1, 2), 8, 4, epoch_generator(0, 0)))
    unlabelled = np.flatnonzero(usable & (labels < 0))
    for count in (6, 20):  # fewer than there are, and more
        longer = append_unlabelled(by_class, unlabelled, (1, 2), count, epoch_generator(0, 1))
        assert same([Batch(b.rows[:8], b.views[:8]) for b in longer], by_class)
        added = [b.rows[8:, 0] for b in longer]
        assert {len(rows) for rows in added} == {count}
        assert all(len(set(rows.tolist())) == min(count, len(rows)) for rows in added if count < 10)
        assert set(np.concatenate(added).tolist()) <= set(unlabelled.tolist())
    with pytest.raises(InputError, match="there are none to train on"):
        append_unlabelled(by_class, np.empty(0, np.int64), (1, 2), 4, epoch_generator(0, 1))


def test_of_each_group_a_few_that_can_be_used_all_equally_often() -> None:
    groups = ["a"] * 5 + ["b"] + ["c"] * 3 + ["d"] * 2
    usable = np.array([True] * 4 + [False] + [True] * 4 + [False] * 2)
    counts = np.zeros(len(groups), int)
    for seed in range(2000):
        chosen = some_of_each(groups, usable, 1, np.random.default_rng(seed))
        assert Counter(groups[row] for row in np.flatnonzero(chosen)) == {"a": 1, "b": 1, "c": 1}
        counts += chosen
    assert not counts[~usable].any()
    assert all(430 < count < 570 for count in counts[:4])
    assert counts[5] == 2000
    two = some_of_each(groups, usable, 2, np.random.default_rng(0))
    assert Counter(groups[row] for row in np.flatnonzero(two)) == {"a": 2, "b": 1, "c": 2}
    assert np.array_equal(some_of_each(groups, usable, 9, np.random.default_rng(0)), usable)
    assert not some_of_each(groups, np.zeros(len(groups), bool), 1, np.random.default_rng(0)).any()

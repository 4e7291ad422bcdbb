"""The order of the images is a permutation per epoch and a pure function of its arguments; reading follows it."""

import gc
import weakref

import numpy as np
import pytest

from alexnet_jax.data import splits
from alexnet_jax.data.splits import Batch, Order, epoch_order, evaluation_order, fold_split, whole
from alexnet_jax.data.store import Split
from alexnet_jax.system.errors import UserError


def numbered(count, *cuts):
    """Images whose pixels hold their number, in several parts if cuts are given."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    labels = np.arange(count, dtype=np.int32)
    return whole(*(Split(*part) for part in zip(np.split(images, cuts), np.split(labels, cuts), strict=True)))


def numbers(batch):
    return batch.images[:, 0, 0, 0].astype(int) * 256 + batch.images[:, 0, 0, 1]


def test_order_is_a_permutation_that_seed_and_epoch_change():
    orders = [epoch_order(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (orders[0] != orders[2]).mean() > 0.9
    np.testing.assert_array_equal(epoch_order(0, 1, 1000), orders[1])


def test_order_does_not_change_between_versions():
    """NumPy guarantees the stream of raw words, so a run that resumes years later sees the same images."""
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(2, 5, 8).tolist() == [1, 3, 4, 0, 7, 6, 5, 2]
    assert epoch_order(2**63, 2**40, 4).tolist() == [3, 1, 0, 2]
    held = [fold_split(numbered(8), index, 3)[1].labels.tolist() for index in range(3)]
    assert held == [[0, 5, 6], [2, 4, 7], [1, 3]]


def test_every_example_once_per_epoch_where_batches_span_two():
    order = Order(seed=3, examples=10, batch_size=4)
    seen = np.concatenate([order.step(step) for step in range(5)])
    np.testing.assert_array_equal(seen[:10], epoch_order(3, 0, 10))
    np.testing.assert_array_equal(seen[10:], epoch_order(3, 1, 10))


def test_jumping_to_a_step_gives_the_same_batch_as_walking_there():
    walked = Order(seed=3, examples=10, batch_size=7)
    steps = [walked.step(step) for step in range(30)]
    for step in (29, 0, 13, 12):
        np.testing.assert_array_equal(Order(seed=3, examples=10, batch_size=7).step(step), steps[step])
        np.testing.assert_array_equal(walked.step(step), steps[step])


def test_a_batch_larger_than_the_set_spans_epochs():
    seen = Order(seed=0, examples=3, batch_size=8).step(1)
    assert len(seen) == 8
    np.testing.assert_array_equal(seen, np.concatenate([epoch_order(0, epoch, 3) for epoch in (2, 3, 4, 5)])[2:10])


@pytest.mark.slow
def test_walking_orders_each_epoch_once_and_keeps_at_most_two(monkeypatch):
    orders, made = {}, []

    def noted(seed, epoch, examples):
        made.append(epoch)
        order = epoch_order(seed, epoch, examples)
        orders[epoch] = weakref.ref(order)
        return order

    monkeypatch.setattr(splits, "epoch_order", noted)
    order = Order(seed=3, examples=10, batch_size=4)
    for step in range(25):
        order.step(step)
    assert made == list(range(10))
    gc.collect()
    assert len([epoch for epoch, kept in orders.items() if kept() is not None]) <= 2


def test_evaluation_covers_every_example_once_and_pads_the_last():
    seen = []
    for wanted, real in evaluation_order(661, 64):
        assert wanted.shape == (64,)
        seen.append(wanted[:real])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(661))
    assert real == 661 - 10 * 64
    np.testing.assert_array_equal(wanted[real:], 640)


@pytest.mark.parametrize(("examples", "reals"), [(0, []), (1, [1]), (63, [63]), (64, [64]), (65, [64, 1]), (128, [64, 64])])
def test_evaluation_has_as_many_batches_as_it_needs(examples, reals):
    assert [real for _, real in evaluation_order(examples, 64)] == reals


@pytest.mark.parametrize("cuts", [(), (70,), (1, 50)])
def test_folds_partition_train_and_validation_together(cuts):
    """The parts are laid end to end, without a copy."""
    pooled, held = numbered(103, *cuts), []
    np.testing.assert_array_equal(pooled.labels, np.arange(103))
    for index in range(5):
        train, validation = fold_split(pooled, index, 5)
        assert len(train) + len(validation) == 103
        assert len(validation) == (21 if index < 3 else 20)
        assert not set(train.labels) & set(validation.labels)
        for part in (train, validation):
            assert part.parts is pooled.parts
            batch = part.read(np.arange(len(part)))
            np.testing.assert_array_equal(numbers(batch), part.labels)
            np.testing.assert_array_equal(batch.labels, part.labels)
            assert (np.diff(part.labels) > 0).all()
        held.extend(validation.labels.tolist())
    assert sorted(held) == list(range(103))


@pytest.mark.parametrize(
    ("images", "index", "count", "empty"),
    [(1, 0, 2, "train"), (1, 1, 2, "validation"), (2, 2, 3, "validation"), (71, 71, 72, "validation"),
     (0, 0, 2, "validation"), (5, 10**30 - 1, 10**30, "validation")],
)  # fmt: skip
def test_a_fold_that_leaves_a_split_empty_is_refused(images, index, count, empty):
    with pytest.raises(
        UserError, match=f"^--fold={index}/{count} leaves the {empty} split empty: [^\n]* have {images} images"
    ):
        fold_split(numbered(images), index, count)


@pytest.mark.parametrize(("images", "index", "count"), [(2, 1, 2), (71, 70, 72), (3, 2, 10**30)])
def test_the_smallest_fold_is_one_image(images, index, count):
    train, validation = fold_split(numbered(images), index, count)
    assert (len(train), len(validation)) == (images - 1, 1)


@pytest.mark.parametrize("cuts", [(), (255,), (8, 299)])
def test_examples_are_read_in_the_asked_order(cuts):
    wanted = np.array([299, 0, 7, 7, 8, 298, 255, 254, 256])
    batch = numbered(300, *cuts).read(wanted)
    np.testing.assert_array_equal(numbers(batch), wanted)
    np.testing.assert_array_equal(batch.labels, wanted)


@pytest.mark.parametrize("cuts", [(), (8,)])
def test_reading_into_arrays_touches_no_others(cuts):
    """The threads of a feed each fill a slice of a batch like this."""
    batch = Batch(np.full((6, 2, 2, 3), 1, np.uint8), np.full(6, -1, np.int32))
    numbered(300, *cuts).read_into(np.array([9, 2]), Batch(batch.images[2:4], batch.labels[2:4]))
    assert batch.labels.tolist() == [-1, -1, 9, 2, -1, -1]
    assert numbers(batch).tolist() == [257, 257, 9, 2, 257, 257]

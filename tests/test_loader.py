"""The order of images: a permutation per epoch, a pure function of its arguments; reading in it."""

import numpy as np

from alexnet_jax.data.loader import Order, epoch_order, evaluation_order, fold_split, whole
from alexnet_jax.data.store import Split


def numbered(count):
    """Images that tell their own number."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return whole(Split(images, np.arange(count, dtype=np.int32)))


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
    """NumPy guarantees the stream of raw words, so a run resumed years later sees the same images."""
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_every_example_once_per_epoch_where_batches_span_two():
    order = Order(seed=3, examples=10, batch_size=4)
    seen = np.concatenate([order.step(step) for step in range(5)])
    np.testing.assert_array_equal(np.sort(seen[:10]), np.arange(10))
    np.testing.assert_array_equal(np.sort(seen[10:]), np.arange(10))


def test_a_step_far_ahead_is_the_step_that_walking_there_gives():
    walked = Order(seed=3, examples=10, batch_size=7)
    steps = [walked.step(step) for step in range(30)]
    np.testing.assert_array_equal(Order(seed=3, examples=10, batch_size=7).step(29), steps[29])


def test_a_batch_larger_than_the_set_spans_epochs():
    seen = Order(seed=0, examples=3, batch_size=8).step(1)
    assert len(seen) == 8
    np.testing.assert_array_equal(np.sort(seen[1:4]), np.arange(3))


def test_evaluation_covers_every_example_once_and_pads_the_last():
    seen = []
    for wanted, real in evaluation_order(661, 64):
        assert wanted.shape == (64,)
        seen.append(wanted[:real])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(661))
    assert real == 661 - 10 * 64
    np.testing.assert_array_equal(wanted[real:], 640)


def test_folds_partition_train_and_validation_together():
    """Over two parts laid end to end, nothing being copied."""
    split = numbered(103).parts[0]
    pooled = whole(Split(split.images[:70], split.labels[:70]), Split(split.images[70:], split.labels[70:]))
    held = []
    for index in range(5):
        train, validation = fold_split(pooled, index, 5)
        assert len(train) + len(validation) == 103
        assert not set(train.labels) & set(validation.labels)
        batch = validation.read(np.arange(len(validation)))
        np.testing.assert_array_equal(numbers(batch), validation.labels)
        np.testing.assert_array_equal(batch.labels, validation.labels)
        held.extend(validation.labels.tolist())
    assert sorted(held) == list(range(103))


def test_examples_are_read_in_the_asked_order():
    np.testing.assert_array_equal(numbers(numbered(300).read(np.array([299, 0, 7, 7]))), [299, 0, 7, 7])

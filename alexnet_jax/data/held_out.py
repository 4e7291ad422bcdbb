"""The random split of a source that is published without splits: it depends on the labels and a seed alone."""

import numpy as np
from jaxtyping import Int64

# A random split takes one tenth for test, and one tenth for validation.
_HELD_OUT = 10


def random_splits(labels: Int64[np.ndarray, "examples"], seed: int) -> tuple[dict[str, Int64[np.ndarray, "rows"]], str]:
    """The rows of 'train', 'validation' and 'test', each ascending and none empty; and the split in words.

    A tenth of every class for test, a tenth for validation, the rest for training; where no class has ten images, a tenth of
    all of them.
    """
    sizes = np.bincount(labels)
    rows = np.argsort(labels, kind="stable")
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    ends = np.cumsum(sizes)[:-1]
    for label, (of_class, test, validation) in enumerate(zip(np.split(rows, ends), *_held_out(sizes, seed), strict=True)):
        # Raw Philox words: NumPy guarantees their stream from version to version.
        words = np.random.Philox(key=np.array([seed, label], np.uint64)).random_raw(len(of_class))
        cut = np.split(np.argsort(words, kind="stable"), np.cumsum([test, validation]))
        for split, places in zip(("test", "validation", "train"), cut, strict=True):
            parts[split].append(of_class[places])
    splits = {split: np.sort(np.concatenate(found)) for split, found in parts.items() if sum(map(len, found))}
    share = "of all images" if "test" in splits and sizes.max() < _HELD_OUT else "of every class"
    return splits, f"split at random, seed {seed}, a tenth each {share} for test and validation"


def _held_out(sizes: Int64[np.ndarray, "classes"], seed: int) -> list[list[int]]:
    """How many images each class gives to test, and to validation: a tenth, rounded down.

    Where no class has ten images, a tenth of all of them is held out: one from a class, from the largest classes first, and
    from none its last image.
    """
    if sizes.max() >= _HELD_OUT:
        return [(sizes // _HELD_OUT).tolist()] * 2
    lots = np.random.Philox(key=np.array([seed, len(sizes)], np.uint64)).random_raw(len(sizes))
    given = np.zeros((2, len(sizes)), int)
    for split in given:
        left = sizes - given.sum(axis=0)
        largest = np.lexsort((lots, -left))[: sizes.sum() // _HELD_OUT]
        split[largest] = left[largest] > 1
    return given.tolist()

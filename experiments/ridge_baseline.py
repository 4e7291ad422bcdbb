"""A baseline without a network: ridge regression on thumbnails and colour histograms of a prepared set.

    python -m experiments.ridge_baseline --data_dir=data --dataset=groceries --image_size=112

Features are an 8 x 8 thumbnail and a histogram of 8 x 8 x 8 colours (square roots of the frequencies). Five folds over
train and validation choose the strength of the ridge; then test is read once. Prints one JSON object.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.data.splits import fold_split, whole
from alexnet_jax.data.store import Split, open_store, store_path
from alexnet_jax.system import cli

STRENGTHS = tuple(10.0**power for power in range(-3, 4))


def features(split: Split) -> np.ndarray:
    """The features of a split, float64 (examples, 192 + 512 + 1)."""
    images = np.asarray(split.images, np.float64)
    count, size = images.shape[:2]
    side = size // 8
    thumbnails = images[:, : 8 * side, : 8 * side].reshape(count, 8, side, 8, side, 3).mean((2, 4)) / 255
    codes = (split.images // 32).astype(np.int64) @ np.array([64, 8, 1])
    histograms = np.stack([np.bincount(code.ravel(), minlength=512) for code in codes]) / size**2
    return np.concatenate([thumbnails.reshape(count, -1), np.sqrt(histograms), np.ones((count, 1))], axis=1)


def top1_error(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], strength: float) -> float:
    """Percent wrong on `test` after fitting one-hot labels on `train`; both are (features, labels)."""
    x, labels = train
    targets = np.eye(labels.max() + 1)[labels]
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ targets)
    return 100 * float((np.argmax(test[0] @ weights, axis=1) != test[1]).mean())


def main(options: flags.FlagValues) -> None:
    """The command line."""
    store = open_store(store_path(Path(options.data_dir), options.dataset, options.image_size))
    pooled = whole(*(store.splits[name] for name in ("train", "validation") if name in store.splits))
    x, labels = np.concatenate([features(part) for part in pooled.parts]), pooled.labels

    def folded(strength: float) -> float:
        errors = []
        for index in range(5):
            kept, held = (part.rows for part in fold_split(pooled, index, 5))
            errors.append(top1_error((x[kept], labels[kept]), (x[held], labels[held]), strength))
        return float(np.mean(errors))

    strength = min(STRENGTHS, key=folded)
    train, test = store.splits["train"], store.splits["test"]
    error = top1_error((features(train), train.labels), (features(test), test.labels), strength)
    majority = 100 * float((test.labels != np.bincount(train.labels).argmax()).mean())
    result = {"split": "test", "examples": len(test), "top1_error": error, "majority_error": majority, "ridge": strength}
    print(json.dumps(result))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options, only=("data_dir", "dataset", "image_size"))


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()

"""What `prepare` does: prepares a set, and verifies it if asked to."""

import sys

from absl import flags

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.store import open_store, verify


def main(options: flags.FlagValues) -> None:
    """The command line."""
    path = prepare(
        options.dataset,
        options.data_dir,
        tfds_dir=options.tfds_dir,
        image_size=options.image_size,
        resize=options.resize,
        on_error=options.on_error,
        split_seed=options.split_seed,
    )
    if options.verify:
        verify(path, open_store(path))
        print(f"{path}: every image and label is as it was prepared", file=sys.stderr)

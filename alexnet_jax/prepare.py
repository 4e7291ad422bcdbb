"""Prepares a data set once for all runs: decodes the images, cuts them to squares of one size, and measures them.

    python -m alexnet_jax.prepare --dataset=D --data_dir=DIR [--tfds_dir=T] [--image_size=256] [--resize=centre|warp]
                                  [--on_error=fail|skip] [--split_seed=0] [--verify]

As in Section 2 of the paper: the short side is scaled to the size S and the centre S x S is kept, as uint8 RGB. An
interrupted run resumes when it is run again.
"""

import sys

from absl import flags

from alexnet_jax.data.decode import RESIZES
from alexnet_jax.data.prepare import ON_ERROR, prepare
from alexnet_jax.data.store import open_store, verify
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    sets = (
        "'groceries' (embedded photographs), 'folder:PATH' (split/class/file or class/file), 'parquet:GLOB' (as on Hugging "
        "Face's hub), 'tar:GLOB' (WebDataset), or the name of a TFDS set"
    )
    flags.DEFINE_string("dataset", "groceries", sets, flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)
    flags.DEFINE_string("tfds_dir", None, "folder of the TFDS sets; default: TFDS's own", flag_values=options)
    flags.DEFINE_integer("image_size", 256, "side in pixels of the prepared images (Section 2: 256)", flag_values=options)
    resizes = "keep the centre square (Section 2), or warp the whole image (Caffe)"
    flags.DEFINE_enum("resize", "centre", tuple(RESIZES), resizes, flag_values=options)
    bad_image = "at an undecodable image: stop, or leave it out and list it"
    flags.DEFINE_enum("on_error", "fail", ON_ERROR, bad_image, flag_values=options)
    random_split = "seed of the random split of a folder or of files without splits"
    flags.DEFINE_integer("split_seed", 0, random_split, lower_bound=0, flag_values=options)
    flags.DEFINE_boolean("verify", False, "read the whole prepared set and check it against its hash", flag_values=options)


def main(options: flags.FlagValues) -> None:
    """Prepares the set, and verifies it if asked to."""
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


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()

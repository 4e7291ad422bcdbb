"""Prepares a data set once for all runs. Decodes the images, cuts them to squares of one size, and measures them.

    python -m alexnet_jax.prepare --dataset=folder:photos
    python -m alexnet_jax.prepare --dataset=cifar10 --image_size=64
    python -m alexnet_jax.prepare --dataset=imagenet2012 --tfds_dir=tfds

As in Section 2 of the paper: the short side is scaled to the size S and the centre S x S is kept, as uint8 RGB. An
interrupted run resumes when it is run again.
"""

from absl import flags

from alexnet_jax.system import cli
from alexnet_jax.values import ON_ERROR, RESIZES


def define_flags(options: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    sets = (
        "`name` of the set: groceries (embedded photographs), folder:PATH (split/class/file or class/file), "
        "parquet:GLOB (as on Hugging Face's hub), tar:GLOB (WebDataset), or a name in TFDS, which needs the extra tfds"
    )
    flags.DEFINE_string("dataset", "groceries", sets, flag_values=options)
    flags.DEFINE_string("data_dir", "data", "`folder` of the prepared sets, also at s3:// or gs://", flag_values=options)
    flags.DEFINE_string("tfds_dir", None, "`folder` of the TFDS sets; default: TFDS's own", flag_values=options)
    flags.DEFINE_integer("image_size", 256, "side in `pixels` of the prepared images (Section 2: 256)", flag_values=options)
    resizes = "keep the centre square (Section 2), or warp the whole image (Caffe)"
    flags.DEFINE_enum("resize", "centre", RESIZES, resizes, flag_values=options)
    bad_image = "at an undecodable image: stop, or leave it out and list it"
    flags.DEFINE_enum("on_error", "fail", ON_ERROR, bad_image, flag_values=options)
    random_split = "seed of the random split of a folder or of files without splits"
    flags.DEFINE_integer("split_seed", 0, random_split, lower_bound=0, flag_values=options)
    flags.DEFINE_boolean("verify", False, "read the whole prepared set and check it against its hash", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.preparation"))

if __name__ == "__main__":
    COMMAND.run()

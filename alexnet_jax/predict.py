"""Prints the five likeliest classes of images. They are files, folders, or a list of paths.

    python -m alexnet_jax.predict --workdir=runs/first photo.jpg folder
    python -m alexnet_jax.predict --workdir=runs/first folder --format=jsonl
    python -m alexnet_jax.predict --workdir=W folder --features=fc7:F.npz

An image that cannot be read is named on stderr, and the others go on.
"""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.run.flags import define_batch_size, define_step, define_weights
from alexnet_jax.system import cli

DRAWN = 12  # images in a figure


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "`folder` of a run, also at s3:// or gs://", flag_values=options)
    define_step(options)
    define_weights(options)
    flags.DEFINE_string("list", "", "`file` with one image path a line; - is stdin", flag_values=options)
    help = "what is printed for each image: five lines, or one JSON object"
    flags.DEFINE_enum("format", "table", ("table", "jsonl"), help, flag_values=options)
    help = "`LAYER:F.npz`, such as fc7:F.npz: write the layer's activations for every image"
    flags.DEFINE_string("features", None, help, flag_values=options)
    help = f"`file`, .png or .svg, to draw the first {DRAWN} images into, with their classes"
    flags.DEFINE_string("figure", None, help, flag_values=options)
    define_batch_size(options)
    define_config_flags(options, only=("mesh", "host_devices", "distributed"))


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.prediction"), takes_words=True)

if __name__ == "__main__":
    COMMAND.run()

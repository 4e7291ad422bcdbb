"""Imports weights, and exports trained networks. Every conversion is exact, and keeps the preprocessing.

    python -m alexnet_jax.convert caffe NET.caffemodel --workdir=runs/caffe
    python -m alexnet_jax.convert torchvision NET.pth --workdir=runs/torchvision
    python -m alexnet_jax.convert F.safetensors --workdir=W --export=safetensors

To import, name a format (caffe, torchvision or safetensors), a file, and a new --workdir, which `evaluate`, `predict` and
`train --init` take like any run. To export, name a file to write, a run, and the format. .safetensors and StableHLO need
the extra convert. There is no ONNX: the one converter from JAX wants an older Orbax than this package.
"""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.convert import EXPORTS
from alexnet_jax.run.flags import define_step, define_weights
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "`folder` of a run; a new one when weights are imported", flag_values=options)
    define_step(options)
    define_weights(options)
    flags.DEFINE_enum("export", None, EXPORTS, "write the network in this format", flag_values=options)
    help = "what was subtracted: `R,G,B`, a .binaryproto or a .npy; default: the source's ImageNet mean"
    flags.DEFINE_string("mean", "", help, flag_values=options)
    flags.DEFINE_string("classes", "", "`file` with one class name a line", flag_values=options)
    of_format = ("architecture", "dataset", "image_size", "crop_size", "resize")
    define_config_flags(options, only=of_format, unset="that of the format")
    define_config_flags(options, only=("data_dir",))


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.convert.command"), takes_words=True)

if __name__ == "__main__":
    COMMAND.run()

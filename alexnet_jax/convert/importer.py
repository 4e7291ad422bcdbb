"""Makes the folder of a run from the weights of other programs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from jaxtyping import Float32

from alexnet_jax.architectures import ARCHITECTURES, Architecture
from alexnet_jax.config import Config, check, parsed
from alexnet_jax.convert import caffe, pytorch
from alexnet_jax.convert.layouts import Blobs, check_blobs, flip_colours, to_params
from alexnet_jax.convert.native import Imported, read_native
from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.intervals import Progress
from alexnet_jax.run.workdir import check_resumable, locked, write_folder
from alexnet_jax.step import TrainState, make_setup
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input
from alexnet_jax.system.stores import refuse_remote
from alexnet_jax.values import MeshShape

# RGB from 0 to 255: that of Caffe's imagenet_mean.binaryproto, and torchvision's (0.485, 0.456, 0.406).
MEANS = {"caffe": (122.67891434, 116.66876762, 104.00698793), "torchvision": (123.675, 116.28, 103.53)}


def import_weights(options: flags.FlagValues, source: str, path: Path) -> Imported:
    """Reads a file as the flags say. Raises UserError as the readers below."""
    if source == "safetensors":
        imported = read_native(path)
        check_params(imported, path)
        return imported
    config = convention(source, options.architecture if options["architecture"].present else source)
    given = ("dataset", "data_dir", "image_size", "crop_size", "resize")
    config = replace(config, **parsed(options, [name for name in given if options[name].present]))
    check(config)
    mean, names = parse_mean(options.mean, source, config.image_size), read_names(options.classes, config)
    blobs, table = read_weights(source, path, config.table())
    config = replace(config, architecture=table.name)
    count = check_blobs(blobs, table, config.crop, str(path))
    if names and len(names) != count:
        where = f"--classes={options.classes}" if options.classes else f"--dataset={config.dataset}"
        raise UserError(f"{where} has {len(names)} classes; the network has {count} outputs")
    names = names or tuple(f"class {number}" for number in range(count))
    return Imported(config, names, mean, to_params(blobs, table, config.crop))


def convention(source: str, architecture: str) -> Config:
    """The config of a source's networks: how their images were prepared. The run keeps the mean as mean.npy.

    Caffe: stretched to 256 x 256, crops of 227, BGR (the import turns it to RGB). torchvision: short side 256, crops of 224.
    """
    resize = "warp" if source == "caffe" else "centre"
    return Config(architecture=architecture, dataset="imagenet2012", image_size=256, resize=resize, mean="own")


def read_weights(source: str, path: Path, table: Architecture) -> tuple[dict[str, Blobs], Architecture]:
    """Weights for RGB images, and their table: the given one, or `caffenet` if the file holds CaffeNet.

    Raises UserError if the file cannot be read, or holds another network.
    """
    if source == "torchvision":
        return pytorch.blobs_of(pytorch.read_state_dict(path), table, str(path)), table
    if path.suffix == ".npy":
        blobs = caffe.read_npy_dictionary(path, table)
    else:
        layers = caffe.read_caffemodel(path)
        if table.name == "caffe" and caffe.pools_before_norm(layers):
            table = ARCHITECTURES["caffenet"]
        blobs = caffe.blobs_of(layers, table, str(path))
    return flip_colours(blobs), table


def parse_mean(text: str, source: str, size: int) -> Float32[np.ndarray, "size size 3"]:
    """The mean image of --mean: '' for the source's ImageNet mean, 'R,G,B', or a .binaryproto or .npy file.

    Raises UserError if it is none of these, or an image of another size.
    """
    if Path(text).suffix in (".binaryproto", ".npy"):
        mean = caffe.read_mean_file(Path(text))
        if len(mean) != size:
            raise UserError(f"--mean={text} is {len(mean)} px large: give --image_size={len(mean)} too, or R,G,B")
        return np.ascontiguousarray(mean)
    try:
        channels = np.array([float(value) for value in text.split(",")] if text else MEANS[source])
        if channels.shape != (3,) or not ((channels >= 0) & (channels <= 255)).all():
            raise ValueError
    except ValueError:
        raise UserError(f"--mean={text} is neither R,G,B from 0 to 255 nor a .binaryproto or .npy file") from None
    return np.ascontiguousarray(np.broadcast_to(channels, (size, size, 3)), np.float32)


def read_names(file: str, config: Config) -> tuple[str, ...]:
    """Class names: the lines of --classes, else those of the prepared data set, else none.

    Raises UserError if the file cannot be read.
    """
    if file:
        check_input(f"--classes={file}", Path(file))
        try:
            return tuple(Path(file).read_text(encoding="utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes={file} cannot be read: {error}") from error
    refuse_remote(f"--data_dir={config.data_dir}", config.data_dir)  # for the names alone all of a set would be fetched
    path = store_path(Path(config.data_dir), config.dataset, config.image_size, config.resize)
    return open_store(path).classes if path.exists() else ()


def check_params(imported: Imported, path: Path) -> None:
    """Raises UserError if a parameter is missing, unknown, of the wrong type or shape, or not finite."""
    setup = make_setup(imported.config, len(imported.classes), make_mesh(MeshShape(1, 1), 1, 1))
    found: dict[str, Any] = flatten_dict(imported.params, sep=".")
    wanted: dict[str, Any] = flatten_dict(setup.shapes, sep=".")
    for name in sorted(found.keys() | wanted.keys()):
        array, shape = found.get(name), wanted.get(name)
        has, needs = ("nothing" if x is None else f"{x.dtype} {x.shape}" for x in (array, shape))
        if array is None or has != needs:
            raise UserError(f"{path}: {name} is {has} instead of {needs}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")


def check_new(workdir: str) -> None:
    """Raises UserError if the folder holds a run, or is in an object store."""
    refuse_remote(f"--workdir={workdir}", workdir)
    if workdir and (Path(workdir) / "config.json").exists():
        raise UserError(f"--workdir={workdir} holds a run already: name a new folder")


def write_run(imported: Imported, workdir: str, fingerprint: str) -> None:
    """Makes the folder of a run with these parameters as checkpoint 0.

    Raises UserError if the folder is not empty or cannot be written.
    """
    check_new(workdir)
    config = replace(imported.config, workdir=workdir)
    setup = make_setup(config, len(imported.classes), make_mesh(MeshShape(1, 1), 1, 1))
    params = setup.mesh.put(imported.params, setup.specs)
    state = TrainState(np.int32(0), params, setup.transformation({}).init(params))  # pyright: ignore[reportArgumentType]
    with locked(workdir):
        check_resumable(config, fingerprint, imported.classes, imported.mean)
        write_folder(config, fingerprint, imported.classes, imported.mean)
        with Checkpoints(Path(workdir), keep=config.keep, writable=True) as checkpoints:
            checkpoints.save(setup, state, Progress().as_dict(), None)

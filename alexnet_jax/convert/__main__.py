"""Weights in, with their preprocessing; trained networks out. Every conversion is exact.

python -m alexnet_jax.convert caffe or torchvision or safetensors FILE --workdir=W [--dataset=D] [--classes=F] [--mean=M]
python -m alexnet_jax.convert FILE --workdir=W --export=safetensors or torchvision or caffe or stablehlo
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float32

from alexnet_jax.architectures import ARCHITECTURES, Architecture
from alexnet_jax.config import Config, as_dict, check, from_dict, parsed
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.convert import caffe, pytorch, stablehlo
from alexnet_jax.convert.layouts import Blobs, check_blobs, flip_colours, to_blobs, to_params
from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.inference.flags import define_step
from alexnet_jax.inference.predictor import Trained, load_trained
from alexnet_jax.mesh import make_mesh
from alexnet_jax.network import Params
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.workdir import locked, open_for_training, read_config
from alexnet_jax.step import TrainState, make_model
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import replacing
from alexnet_jax.train import Progress
from alexnet_jax.values import MeshShape

SOURCES = ("caffe", "torchvision", "safetensors")
EXPORTS = ("safetensors", "torchvision", "caffe", "stablehlo")
FORMAT = "alexnet_jax 1"  # in the metadata of this package's own safetensors files

# RGB on 0 to 255. Caffe's is that of its imagenet_mean.binaryproto; torchvision's is (0.485, 0.456, 0.406).
MEANS = {"caffe": (122.67891434, 116.66876762, 104.00698793), "torchvision": (123.675, 116.28, 103.53)}


@dataclass(frozen=True)
class Imported:
    """What a run's folder is made of."""

    config: Config
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, "size size 3"]
    params: Params


def convention(source: str, architecture: str) -> Config:
    """How the images were prepared that a source's networks were trained on; the mean comes as mean.npy.

    Caffe: bent to 256 x 256, crops of 227, BGR, which the import turns to RGB. torchvision: short side 256, crops of 224.
    """
    resize = "warp" if source == "caffe" else "centre"
    return Config(architecture=architecture, dataset="imagenet2012", image_size=256, resize=resize, mean="own")


def read_weights(source: str, path: Path, table: Architecture) -> tuple[dict[str, Blobs], Architecture]:
    """Weights of a foreign file for a table, conv1 reading RGB, and the table, which a file of CaffeNet's changes.

    Raises:
        UserError: the file cannot be read, or is no network of this table.
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


def read_mean(text: str, source: str, size: int) -> Float32[np.ndarray, "size size 3"]:
    """The mean image that --mean says: '' for the source's own, 'R,G,B', or a .binaryproto or .npy file.

    Raises:
        UserError: it is none of these, or the image of another size.
    """
    if Path(text).suffix in (".binaryproto", ".npy"):
        mean = caffe.read_mean(Path(text))
        if len(mean) != size:
            raise UserError(f"--mean={text} is {len(mean)} px large: give --image_size={len(mean)} too, or R,G,B")
        return np.ascontiguousarray(mean)
    try:
        channels = np.array([float(value) for value in text.split(",")] if text else MEANS[source], np.float32)
        if channels.shape != (3,) or not np.isfinite(channels).all():
            raise ValueError
    except ValueError:
        raise UserError(f"--mean={text} is neither R,G,B from 0 to 255 nor a .binaryproto or .npy file") from None
    return np.ascontiguousarray(np.broadcast_to(channels, (size, size, 3)))


def read_names(file: str, config: Config, count: int) -> tuple[str, ...]:
    """Class names: of --classes, one a line, or of the prepared data set where there is one, else numbers.

    Raises:
        UserError: they are not as many as the network's outputs.
    """
    path = store_path(Path(config.data_dir), config.dataset, config.image_size, config.resize)
    if file:
        try:
            names = tuple(Path(file).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes={file} cannot be read: {error}") from error
        where = f"--classes={file}"
    elif path.exists():
        names, where = open_store(path).classes, f"--dataset={config.dataset}"
    else:
        return tuple(f"class {number}" for number in range(count))
    if len(names) != count:
        raise UserError(f"{where} has {len(names)} classes, and the network {count} outputs")
    return names


def read_own(path: Path) -> Imported:
    """A network that --export=safetensors wrote. Raises UserError if it is none or its parts do not agree."""
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"{path} cannot be read: it is empty or there is no such file")
    arrays, metadata = pytorch.read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not this package's own: for a state dict say: convert torchvision {path}")
    try:
        config = replace(from_dict(json.loads(metadata["config"])), mean="own", init="", init_layers=())
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        mean = arrays.pop("mean")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} lacks its config, classes or mean: {error!r}") from error
    params: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        layer, _, part = name.partition(".")
        params.setdefault(layer, {})[part] = array
    if mean.shape != (config.image_size, config.image_size, 3):
        raise UserError(f"{path}: the mean image is {mean.shape} where --image_size={config.image_size}")
    return Imported(config, classes, mean, params)


def check_params(imported: Imported, path: Path) -> None:
    """Raises UserError if parameters are missing, too many, of another shape, or not finite."""
    model = make_model(imported.config, len(imported.classes), make_mesh(MeshShape(1, 1), 1, 1))
    found = {(layer, name): array for layer, part in imported.params.items() for name, array in part.items()}
    wanted = {(layer, name): shape for layer, part in model.shapes.items() for name, shape in part.items()}
    for layer, name in sorted(found.keys() | wanted.keys()):
        array, due = found.get((layer, name)), wanted.get((layer, name))
        has, needs = ("nothing" if x is None else f"{x.dtype} {x.shape}" for x in (array, due))
        if array is None or has != needs:
            raise UserError(f"{path}: {layer}.{name} is {has} where {needs} is due")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {layer}.{name} holds NaN or infinite values")


def write_run(imported: Imported, workdir: str, fingerprint: str) -> None:
    """The folder of a run whose checkpoint 0 has these parameters.

    Raises:
        UserError: it holds something already, or cannot be written.
    """
    if workdir and (Path(workdir) / "config.json").exists():
        raise UserError(f"--workdir={workdir} holds a run already: name a new folder")
    config = replace(imported.config, workdir=workdir)
    model = make_model(config, len(imported.classes), make_mesh(MeshShape(1, 1), 1, 1))
    params = model.mesh.put(imported.params, model.specs)
    state = TrainState(np.int32(0), params, model.transformation({}).init(params))  # pyright: ignore[reportArgumentType]
    with locked(workdir):
        folder = open_for_training(config, fingerprint, imported.classes, imported.mean)
        with Checkpoints(folder, keep=config.keep, writable=True) as checkpoints:
            checkpoints.save(model, state, Progress().as_dict(), None)


def export(trained: Trained, form: str, path: Path) -> None:
    """Writes a network in another format; the file appears when it is whole.

    Raises:
        UserError: the network has layers that the format lacks, a package is missing, or the file cannot be written.
    """
    config, params = trained.config, {layer: dict(part) for layer, part in trained.params.items()}
    table = config.table()
    try:
        match form:
            case "stablehlo":
                content = stablehlo.serialize(trained)
            case "caffe":
                content = caffe.write_caffemodel(flip_colours(to_blobs(params, table, config.crop)), table)
            case "torchvision":
                blobs = to_blobs(params, table, config.crop)
                return pytorch.write_state_dict(path, pytorch.state_dict_of(blobs, table))
            case _:
                arrays = {f"{layer}.{name}": np.asarray(x) for layer, part in params.items() for name, x in part.items()}
                about = {
                    "config": json.dumps(as_dict(replace(read_config(config.workdir), workdir="", data_dir=Config.data_dir)))
                }
                about |= {"format": FORMAT, "classes": json.dumps(trained.classes)}
                return pytorch.write_safetensors(path, arrays | {"mean": trained.mean}, about)
        with replacing(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def import_weights(options: flags.FlagValues, source: str, path: Path) -> Imported:
    """What the flags and a file say. Raises UserError as the readers do."""
    if source == "safetensors":
        own = read_own(path)
        check_params(own, path)
        return own
    default = {"caffe": "caffe", "torchvision": "torchvision"}[source]
    config = convention(source, options.architecture if options["architecture"].present else default)
    given = ("dataset", "data_dir", "image_size", "crop_size", "resize")
    config = replace(config, **parsed(options, [name for name in given if options[name].present]))
    check(config)
    blobs, table = read_weights(source, path, config.table())
    config = replace(config, architecture=table.name)
    count = check_blobs(blobs, table, config.crop, str(path))
    mean = read_mean(options.mean, source, config.image_size)
    return Imported(config, read_names(options.classes, config, count), mean, to_params(blobs, table, config.crop))


def _check_words(words: Sequence[str], form: str | None) -> tuple[str, Path]:
    if form:
        if len(words) != 1:
            raise UserError(f"--export={form} takes the file to write: python -m alexnet_jax.convert FILE --workdir=W ...")
        return "", Path(words[0])
    if len(words) != 2 or words[0] not in SOURCES:
        raise UserError(f"say what comes in: {', '.join(SOURCES)}, and a file; or what goes out, with --export")
    return words[0], Path(words[1])


def main(options: flags.FlagValues, words: list[str]) -> None:
    """The command line."""
    source, path = _check_words(words, options.export)
    if not options.workdir:
        raise UserError("--workdir is missing: name the folder of a run")
    runtime.start()
    if options.export:
        trained = load_trained(options.workdir, options.step)
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}")
        export(trained, options.export, path)
        print(f"{path}: {trained.title}, {path.stat().st_size:,} bytes")
        return
    imported = import_weights(options, source, path)
    write_run(imported, options.workdir, f"imported from {path.name}")
    config = imported.config
    print(
        f"{options.workdir}: {config.architecture}, {len(imported.classes)} classes, images of {config.image_size} px "
        f"({config.resize}), crops of {config.crop} px"
    )


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "folder of a run: a new one for weights that come in", flag_values=options)
    define_step(options)
    flags.DEFINE_enum("export", None, EXPORTS, "write the network in this format", flag_values=options)
    flags.DEFINE_string(
        "mean",
        "",
        "what was subtracted: R,G,B, a .binaryproto or a .npy; default: the source's ImageNet mean",
        flag_values=options,
    )
    flags.DEFINE_string("classes", "", "file with one class name a line", flag_values=options)
    define_config_flags(options, only=("architecture", "dataset", "data_dir", "image_size", "crop_size", "resize"))


COMMAND = cli.Command(__doc__, define_flags, main, takes_words=True)

if __name__ == "__main__":
    COMMAND.run()

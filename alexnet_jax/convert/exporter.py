"""Writes a trained network in other formats."""

from pathlib import Path

from alexnet_jax.convert import caffe, pytorch, stablehlo
from alexnet_jax.convert.layouts import flip_colours, to_blobs
from alexnet_jax.convert.native import write_native
from alexnet_jax.inference.predictor import Trained
from alexnet_jax.system.files import output_file


def export(trained: Trained, form: str, path: Path) -> None:
    """Writes a network in one of `alexnet_jax.convert.EXPORTS`. The file appears once it is complete.

    Raises UserError if the format lacks a layer of the network, a package is missing, or the file cannot be written.
    """
    match form:
        case "safetensors":
            write_native(trained, path)
        case "stablehlo":
            _write(path, stablehlo.serialize(trained))
        case _:
            table = trained.config.table()
            blobs = to_blobs(trained.params, table, trained.config.crop)
            if form == "caffe":
                _write(path, caffe.write_caffemodel(flip_colours(blobs), table))
            else:
                pytorch.write_state_dict(path, pytorch.state_dict_of(blobs, table))


def _write(path: Path, content: bytes) -> None:
    with output_file(path, "wb") as file:
        file.write(content)

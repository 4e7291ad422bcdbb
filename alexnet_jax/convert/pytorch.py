"""PyTorch state dicts in files of `torch.save` or safetensors, with torchvision's names or this package's."""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.convert.layouts import Blobs
from alexnet_jax.convert.pickles import BROKEN
from alexnet_jax.layers import Architecture
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install
from alexnet_jax.system.files import check_input, output_file

# torchvision.models.alexnet
TORCHVISION_NAMES = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8", "conv5": "features.10",
    "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip
_NEEDED = {
    "torch": f"PyTorch is not installed: {install('torch')}, or convert the file to .safetensors",
    "safetensors": f"safetensors is not installed: {install('safetensors')}",
}


def _module(name: str, path: Path) -> Any:
    """A module that reads or writes a file. Raises UserError if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{path}: {_NEEDED[name.partition('.')[0]]}") from error


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name. PyTorch reads its files with `weights_only`, which runs nothing in them.

    Raises UserError if the file cannot be read or holds anything but tensors, or PyTorch or safetensors is not installed.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    _check_file(path)
    torch = _module("torch", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files; what is refused is said in one line
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, AssertionError, OSError, *BROKEN) as error:
        raise UserError(f"{path} is not a state dict that PyTorch reads with weights_only: {_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state dict: it holds something other than tensors by name")
    # NumPy has no bfloat16
    tensors = {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in content.items()}
    return {str(name): tensor.detach().numpy() for name, tensor in tensors.items()}


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and the file's metadata. Raises UserError as `read_state_dict`."""
    _check_file(path)
    safetensors = _module("safetensors", path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (safetensors.SafetensorError, TypeError, OSError, MemoryError) as error:  # TypeError: NumPy has no such type
        raise UserError(f"{path} is not a readable safetensors file: {_line(error)}") from error


def _check_file(path: Path) -> None:
    check_input(str(path), path)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def blobs_of(state: Mapping[str, np.ndarray], table: Architecture, where: str) -> dict[str, Blobs]:
    """A state dict's weights under the names of a table. Raises UserError naming missing or unknown keys."""
    state = {name.removeprefix("module."): array for name, array in state.items()}
    names = {spec.name: spec.name for spec in table.layers}
    if not set(state) & {f"{name}.weight" for name in names}:
        names = {layer: TORCHVISION_NAMES.get(layer, layer) for layer in names}
    wanted = {f"{name}.{part}" for name in names.values() for part in ("weight", "bias")}
    if missing := sorted(wanted - set(state)):
        raise UserError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(state)[:20]) or 'nothing'}")
    if unknown := sorted(set(state) - wanted):
        raise UserError(f"{where} has {', '.join(unknown[:20])}; --architecture={table.name} has no such layers")
    return {layer: Blobs(state[f"{name}.weight"], state[f"{name}.bias"]) for layer, name in names.items()}


def state_dict_of(blobs: Mapping[str, Blobs], table: Architecture) -> dict[str, np.ndarray]:
    """Weights under torchvision's names if the table is torchvision's, else under the table's."""
    names = TORCHVISION_NAMES if table.name == "torchvision" else {layer: layer for layer in blobs}
    arrays = ((names[layer], blob) for layer, blob in blobs.items())
    return {f"{name}.{part}": getattr(blob, part) for name, blob in arrays for part in ("weight", "bias")}


def write_state_dict(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes safetensors or, under any other suffix, with `torch.save`. Raises UserError if that is not installed."""
    if path.suffix == ".safetensors":
        write_safetensors(path, state, {"format": "pt"})
        return
    torch = _module("torch", path)
    with output_file(path, "wb") as file:
        torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, file)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name and metadata. Raises UserError if safetensors is not installed."""
    save = _module("safetensors.numpy", path).save
    with output_file(path, "wb") as file:
        file.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(metadata)))

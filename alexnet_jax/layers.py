"""What a layer table is made of: records of layers and operations, and the sizes that follow from them.

A table is read by `alexnet_jax.network.Network`, which runs it on the towers that a device holds. Widths are totals over
all towers, as in Section 3.5 of the paper ("the second layer ... filters it with 256 kernels").
"""

from dataclasses import dataclass, replace
from typing import Literal

from alexnet_jax.errors import UserError

Reads = Literal["image", "own", "all"]  # what a tower's layer sees: the image, its own tower, or every tower


@dataclass(frozen=True, kw_only=True)
class Relu:
    """max(x, 0), Section 3.1."""


@dataclass(frozen=True, kw_only=True)
class Tanh:
    """The saturating nonlinearity that Section 3.1 compares with."""


@dataclass(frozen=True, kw_only=True)
class ResponseNorm:
    """Local response normalisation, Section 3.3: x / (k + alpha * sum of squares over `size` neighbours) ** beta.

    `alpha` multiplies each squared term: the 2012 source and Caffe divide the configured 1e-4 by the size, so the tables
    hold 1e-4 / 5. The neighbours are adjacent maps of the same tower; with `across="all_maps"` of all towers side by side,
    which the towers exchange for it; with `across="space"` the size x size positions of the same map.
    """

    across: Literal["maps", "all_maps", "space"] = "maps"
    size: int = 5
    alpha: float = 1e-4 / 5
    beta: float = 0.75
    k: float = 2.0


@dataclass(frozen=True, kw_only=True)
class MaxPool:
    """Max-pooling, overlapping by default (Section 3.4).

    `overhang`: the last window may hang over the right and bottom edge, as in cuda-convnet and Caffe; otherwise it is
    dropped, as in PyTorch.
    """

    size: int = 3
    stride: int = 2
    overhang: bool = True


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Section 4.2. Survivors are rescaled in training, which equals the paper's factor at test time."""

    rate: float = 0.5


Operation = Relu | Tanh | ResponseNorm | MaxPool | Dropout


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """`width` kernels in all, dealt out evenly to the towers. `init_std=None` is PyTorch's uniform initialisation.

    With `shared=False` every position has kernels and biases of its own: cuda-convnet's locally connected layer.
    """

    name: str
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    overhang: bool = False
    shared: bool = True
    reads: Reads = "own"
    init_std: float | None = 0.01
    bias: float = 0.0
    after: tuple[Operation, ...] = (Relu(),)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A fully connected layer of `width` units in all, dealt out evenly to the towers."""

    name: str
    width: int
    reads: Reads = "all"
    init_std: float | None = 0.01
    bias: float = 0.0
    after: tuple[Operation, ...] = (Relu(), Dropout())


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The last layer: one product per tower with its own units, summed over the towers, and one bias per class."""

    name: str = "fc8"
    init_std: float | None = 0.01
    bias: float = 0.0


Layer = Convolution | Dense | Classifier


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network: its layers, its number of towers and its input rule.

    `crop_size` is the input size in pixels that the source uses; `pixel_scale` divides the mean-subtracted 0-255 RGB values.
    """

    name: str
    layers: tuple[Layer, ...]
    towers: int = 2
    crop_size: int = 224
    pixel_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def layer(self, name: str) -> Layer:
        """The layer called `name`. Raises KeyError."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def changed(self, layer_name: str, **fields: object) -> "Architecture":
        """The same table with some fields of one layer changed: how an ablation is written."""
        changed = replace(self.layer(layer_name), **fields)  # pyright: ignore[reportArgumentType]
        return replace(self, layers=tuple(changed if old.name == layer_name else old for old in self.layers))


def sliding_windows(size: int, window: int, stride: int, overhang: bool) -> tuple[int, int]:
    """How many windows fit along a side of `size`, and how far the last one reaches over the edge (0 without `overhang`)."""
    steps = -(-(size - window) // stride) if overhang else (size - window) // stride
    return steps + 1, max(0, steps * stride + window - size)


def convolution_padding(layer: Convolution, size: int) -> tuple[int, int]:
    """Zeros (before, after) along one side of `size` pixels: a 224 px input of the paper's conv1 gets (0, 3)."""
    reach = sliding_windows(size + 2 * layer.padding, layer.kernel, layer.stride, layer.overhang)[1]
    return layer.padding, layer.padding + reach


def windows_along(layer: Convolution, size: int) -> int:
    """How many windows of a convolution lie along a side of `size` pixels."""
    return sliding_windows(size + 2 * layer.padding, layer.kernel, layer.stride, layer.overhang)[0]


def output_sizes(architecture: Architecture, crop_size: int) -> dict[str, int]:
    """Side in pixels of each convolution's output after the operations that follow it, by layer name.

    Raises:
        UserError: `crop_size` is too small for the layers.
    """
    sizes: dict[str, int] = {}
    size = crop_size
    for layer in architecture.layers:
        if not isinstance(layer, Convolution):
            continue
        windows: list[tuple[int, int, bool]] = [(layer.kernel, layer.stride, layer.overhang)]
        windows += [(op.size, op.stride, op.overhang) for op in layer.after if isinstance(op, MaxPool)]
        for index, (window, stride, overhang) in enumerate(windows):
            padded = size + 2 * layer.padding * (index == 0)
            if padded < window:
                raise UserError(
                    f"--crop_size={crop_size} is too small for --architecture={architecture.name}: "
                    f"{layer.name} gets {size} px for a window of {window}; use a larger crop"
                )
            size = sliding_windows(padded, window, stride, overhang)[0]
        sizes[layer.name] = size
    return sizes

"""What a layer table is made of: records of layers and operations, and the sizes that follow from them.

A table is read by `alexnet_jax.network.Network`, which runs it on the towers that a device holds. Widths are totals over
all towers, as in Section 3.5 of the paper ("the second layer ... filters it with 256 kernels").
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from alexnet_jax.system.errors import UserError

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

    `ceil_mode`: the last window may reach over the right and bottom edge, as in cuda-convnet and Caffe. Without it that
    window is dropped, as in PyTorch.
    """

    size: int = 3
    stride: int = 2
    ceil_mode: bool = True


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """The mean of each window. One that reaches over the edge, as in `MaxPool`, is the mean of its real pixels."""

    size: int = 3
    stride: int = 2
    ceil_mode: bool = True


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Section 4.2. Survivors are rescaled in training, which equals the paper's factor at test time."""

    rate: float = 0.5


Operation = Relu | Tanh | ResponseNorm | MaxPool | AveragePool | Dropout

WEIGHT_DECAY = 5e-4  # Section 5


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
    ceil_mode: bool = False
    shared: bool = True
    reads: Reads = "own"
    init_std: float | None = 0.01
    bias: float = 0.0
    weight_decay: float = WEIGHT_DECAY
    after: tuple[Operation, ...] = (Relu(),)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A fully connected layer of `width` units in all, dealt out evenly to the towers."""

    name: str
    width: int
    reads: Reads = "all"
    init_std: float | None = 0.01
    bias: float = 0.0
    weight_decay: float = WEIGHT_DECAY
    after: tuple[Operation, ...] = (Relu(), Dropout())


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The last layer: one product per tower with its own units, summed over the towers, and one bias per class."""

    name: str = "fc8"
    init_std: float | None = 0.01
    bias: float = 0.0
    weight_decay: float = WEIGHT_DECAY


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


def sliding_windows(size: int, window: int, stride: int, ceil_mode: bool) -> tuple[int, int]:
    """How many windows fit along a side of `size`, and how many pixels the last one reaches over the edge."""
    steps = -(-(size - window) // stride) if ceil_mode else (size - window) // stride
    return steps + 1, max(0, steps * stride + window - size)


def convolution_padding(layer: Convolution, size: int) -> tuple[int, int]:
    """Zeros (before, after) along one side of `size` pixels: a 224 px input of the paper's conv1 gets (0, 3)."""
    reach = sliding_windows(size + 2 * layer.padding, layer.kernel, layer.stride, layer.ceil_mode)[1]
    return layer.padding, layer.padding + reach


@dataclass(frozen=True, kw_only=True)
class LayerShapes:
    """One layer of a table at a given input size. Everything is per tower unless it says otherwise."""

    layer: Layer
    towers: int
    in_side: int  # pixels along a side of what the layer reads; 1 after a dense layer
    in_maps: int  # those of all towers where it reads all
    conv_side: int  # pixels along a side of the convolution's own output; 1 for a dense layer
    out_side: int  # after the operations that follow
    out_maps: int
    kernel: tuple[int, ...]
    bias: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    @property
    def parameters(self) -> int:
        """Weights and biases, all towers together."""
        biases = 1 if isinstance(self.layer, Classifier) else self.towers
        return self.towers * math.prod(self.kernel) + biases * math.prod(self.bias)

    @property
    def multiply_adds(self) -> int:
        """For one image, forward, all towers together."""
        shared = isinstance(self.layer, Convolution) and self.layer.shared
        return self.towers * math.prod(self.kernel) * (self.conv_side**2 if shared else 1)

    @property
    def gathered(self) -> int:
        """Values of one image that a tower gets from each other one before this layer."""
        if isinstance(self.layer, Classifier) or self.layer.reads != "all":
            return 0
        return self.in_side**2 * self.in_maps // self.towers


def trace(table: Architecture, crop_size: int, classes: int = 1000) -> tuple[LayerShapes, ...]:
    """The shapes of every layer of a table, in order.

    Raises:
        UserError: `crop_size` is too small for the layers.
    """
    traced: list[LayerShapes] = []
    side, maps = crop_size, 3
    for layer in table.layers:
        reads_all = not isinstance(layer, Classifier) and layer.reads == "all"
        in_maps, conv_side, out_side = maps * table.towers if reads_all else maps, 1, 1
        if isinstance(layer, Convolution):
            conv_side, out_side = _sides(table, layer, side, crop_size)
            out_maps = layer.width // table.towers
            kernel, bias = (layer.kernel, layer.kernel, in_maps, out_maps), (out_maps,)
            if not layer.shared:
                kernel = (conv_side, conv_side, math.prod(kernel[:-1]), out_maps)
                bias = (conv_side, conv_side, out_maps)
        else:
            out_maps = classes if isinstance(layer, Classifier) else layer.width // table.towers
            kernel, bias = (side * side * in_maps, out_maps), (out_maps,)
        shapes = {"in_side": side, "in_maps": in_maps, "conv_side": conv_side, "out_side": out_side, "out_maps": out_maps}
        traced.append(LayerShapes(layer=layer, towers=table.towers, kernel=kernel, bias=bias, **shapes))
        side, maps = out_side, out_maps
    return tuple(traced)


def _sides(table: Architecture, layer: Convolution, side: int, crop_size: int) -> tuple[int, int]:
    """Pixels along a side after the convolution, and after the pooling that follows it."""
    windows = [(layer.kernel, layer.stride, layer.ceil_mode)]
    windows += [(op.size, op.stride, op.ceil_mode) for op in layer.after if isinstance(op, MaxPool | AveragePool)]
    sides, padding = [side], 2 * layer.padding
    for window, stride, ceil_mode in windows:
        if sides[-1] + padding < window:
            raise UserError(
                f"--crop_size={crop_size} is too small for --architecture={table.name}: "
                f"{layer.name} gets {sides[-1]} px for a window of {window}; use a larger crop"
            )
        sides.append(sliding_windows(sides[-1] + padding, window, stride, ceil_mode)[0])
        padding = 0
    return sides[1], sides[-1]

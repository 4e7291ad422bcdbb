"""Layer tables as data: the 2012 network, its relatives and the ablations of the paper.

A table is read by `alexnet_jax.network.Network`, which runs it on the towers that a device holds. Widths are totals over
all towers, as in Section 3.5 of the paper ("the second layer ... filters it with 256 kernels"). Sources: the paper
(Krizhevsky, Sutskever, Hinton, NIPS 2012), the 2012 source (cuda-convnet, layer file 145 and its lab notes), Caffe's
`bvlc_alexnet`, torchvision's `alexnet`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from alexnet_jax.errors import UserError

Reads = Literal["image", "own", "all"]  # what a tower's layer sees: the image, its own tower, or every tower


@dataclass(frozen=True, kw_only=True)
class Relu:
    """max(x, 0), Section 3.1."""


@dataclass(frozen=True, kw_only=True)
class ResponseNorm:
    """Local response normalisation, Section 3.3: x / (k + alpha * sum of squares over `size` neighbours) ** beta.

    `alpha` multiplies each squared term: the 2012 source and Caffe divide the configured 1e-4 by the size, so the tables
    hold 1e-4 / 5. The neighbours are adjacent maps of the same tower, or with `across="space"` the size x size positions of
    the same map.
    """

    across: Literal["maps", "space"] = "maps"
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


Operation = Relu | ResponseNorm | MaxPool | Dropout


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """`width` kernels in all, dealt out evenly to the towers. `init_std=None` is PyTorch's uniform initialisation."""

    name: str
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    overhang: bool = False
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


def _paper() -> Architecture:
    pooled = (Relu(), ResponseNorm(), MaxPool())
    return Architecture(
        name="paper",
        layers=(
            Convolution(name="conv1", width=96, kernel=11, stride=4, overhang=True, reads="image", after=pooled),
            Convolution(name="conv2", width=256, kernel=5, padding=2, bias=1.0, after=pooled),
            Convolution(name="conv3", width=384, kernel=3, padding=1, reads="all", init_std=0.03),
            Convolution(name="conv4", width=384, kernel=3, padding=1, init_std=0.03, bias=1.0),
            Convolution(name="conv5", width=256, kernel=3, padding=1, init_std=0.03, bias=1.0, after=(Relu(), MaxPool())),
            Dense(name="fc6", width=4096, bias=1.0),
            Dense(name="fc7", width=4096, bias=1.0),
            Classifier(),
        ),
    )


def _source2012(paper: Architecture) -> Architecture:
    """conv1 normalises signed values and rectifies after pooling; conv2 has a second, same-map norm (layer file 145)."""
    same_map = ResponseNorm(across="space", alpha=1e-3 / 25, k=1.0)
    table = paper.changed("conv1", after=(ResponseNorm(), MaxPool(), Relu()))
    table = table.changed("conv2", after=(Relu(), ResponseNorm(), same_map, MaxPool()))
    return replace(table, name="source2012")


def _caffe(paper: Architecture) -> Architecture:
    """`bvlc_alexnet`: LRN with k = 1, biases 0.1, fc6 and fc7 from N(0, 0.005), convolutions from N(0, 0.01), crop 227."""
    pooled = (Relu(), ResponseNorm(k=1.0), MaxPool())
    table = paper.changed("conv1", after=pooled, overhang=False)
    table = table.changed("conv2", after=pooled, bias=0.1)
    table = table.changed("conv3", init_std=0.01)
    for name in ("conv4", "conv5"):
        table = table.changed(name, init_std=0.01, bias=0.1)
    for name in ("fc6", "fc7"):
        table = table.changed(name, init_std=0.005, bias=0.1)
    return replace(table, name="caffe", crop_size=227)


def _one_tower(paper: Architecture) -> Architecture:
    """The paper's one-GPU comparison net (Section 3.2, note 1): half the kernels but for conv5, so the same size."""
    table = replace(paper, name="one_tower", towers=1)
    for name, width in (("conv1", 48), ("conv2", 128), ("conv3", 192), ("conv4", 192)):
        table = table.changed(name, width=width)
    return table


def _no_crosstalk(paper: Architecture) -> Architecture:
    """Lab note 150: the towers meet only in fc8; wider conv2 and fc6 keep the number of parameters."""
    table = paper.changed("conv2", width=320).changed("conv3", reads="own")
    table = table.changed("fc6", width=8192, reads="own").changed("fc7", reads="own")
    return replace(table, name="no_crosstalk")


def _no_lrn(paper: Architecture) -> Architecture:
    table = paper
    for name in ("conv1", "conv2"):
        table = table.changed(name, after=(Relu(), MaxPool()))
    return replace(table, name="no_lrn")


def _non_overlapping_pool(paper: Architecture) -> Architecture:
    """2x2 windows at stride 2 instead of 3x3 (Section 3.4). On the paper's sizes, 55, 27 and 13 px, windows that reach
    over the edge would give one row more, so they are dropped and every layer keeps its shape."""
    pool = MaxPool(size=2, overhang=False)
    table = paper
    for name in ("conv1", "conv2"):
        table = table.changed(name, after=(Relu(), ResponseNorm(), pool))
    return replace(table.changed("conv5", after=(Relu(), pool)), name="non_overlapping_pool")


def _torchvision() -> Architecture:
    """The "one weird trick" net (arXiv 1404.5997) as torchvision has it: one tower, no LRN, dropout before fc6 and fc7."""
    pool = MaxPool(overhang=False)
    return Architecture(
        name="torchvision",
        towers=1,
        pixel_scale=(58.395, 57.12, 57.375),
        layers=(
            Convolution(
                name="conv1", width=64, kernel=11, stride=4, padding=2, reads="image", init_std=None, after=(Relu(), pool)
            ),
            Convolution(name="conv2", width=192, kernel=5, padding=2, init_std=None, after=(Relu(), pool)),
            Convolution(name="conv3", width=384, kernel=3, padding=1, init_std=None),
            Convolution(name="conv4", width=256, kernel=3, padding=1, init_std=None),
            Convolution(name="conv5", width=256, kernel=3, padding=1, init_std=None, after=(Relu(), pool, Dropout())),
            Dense(name="fc6", width=4096, init_std=None),
            Dense(name="fc7", width=4096, init_std=None, after=(Relu(),)),
            Classifier(init_std=None),
        ),
    )


def _architectures() -> dict[str, Architecture]:
    paper = _paper()
    tables = (
        paper,
        _source2012(paper),
        _caffe(paper),
        _one_tower(paper),
        _no_crosstalk(paper),
        replace(paper.changed("conv3", reads="own").changed("conv4", reads="all"), name="crosstalk_conv4"),
        _no_lrn(paper),
        _non_overlapping_pool(paper),
        _torchvision(),
    )
    return {table.name: table for table in tables}


ARCHITECTURES = _architectures()


def with_overrides(architecture: Architecture, *, bias: float | None, dropout: float | None) -> Architecture:
    """The table with its nonzero initial biases set to `bias` and its dropout rates to `dropout`; None keeps the table's.

    A dropout rate of 0 takes the dropout out. Raises UserError on a rate outside [0, 1).
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"--dropout={dropout} is not a rate: use at least 0 and less than 1")
    layers: list[Layer] = []
    for layer in architecture.layers:
        if bias is not None and layer.bias:
            layer = replace(layer, bias=bias)
        if dropout is not None and not isinstance(layer, Classifier):
            kept = (replace(op, rate=dropout) if isinstance(op, Dropout) else op for op in layer.after)
            layer = replace(layer, after=tuple(op for op in kept if not (isinstance(op, Dropout) and op.rate == 0)))
        layers.append(layer)
    return replace(architecture, layers=tuple(layers))

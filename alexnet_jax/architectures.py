"""Layer tables as data: the 2012 network, its relatives and the ablations of the paper.

Sources: the paper (Krizhevsky, Sutskever, Hinton, NIPS 2012), the 2012 source (cuda-convnet, layer file 145, and its lab
notes), Caffe's `bvlc_alexnet`, torchvision's `alexnet`. The networks for CIFAR-10 are in `cifar_architectures`.
"""

from collections.abc import Sequence
from dataclasses import replace

from alexnet_jax.ablations import ablated
from alexnet_jax.cifar_architectures import cifar_architectures
from alexnet_jax.layers import (
    Architecture,
    Classifier,
    Convolution,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    Relu,
    ResponseNorm,
)
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import LayerDecay


def _paper() -> Architecture:
    pooled = (Relu(), ResponseNorm(), MaxPool())
    return Architecture(
        name="paper",
        layers=(
            Convolution(name="conv1", width=96, kernel=11, stride=4, ceil_mode=True, reads="image", after=pooled),
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
    """`bvlc_alexnet`: LRN with k = 1, biases 0.1, fc6 and fc7 from N(0, 0.005), convolutions from N(0, 0.01), crop 227.

    Its groups are not towers to its LRN, which reaches over their edge.
    """
    pooled = (Relu(), ResponseNorm(across="all_maps", k=1.0), MaxPool())
    table = paper.changed("conv1", after=pooled, ceil_mode=False)
    table = table.changed("conv2", after=pooled, bias=0.1)
    table = table.changed("conv3", init_std=0.01)
    for name in ("conv4", "conv5"):
        table = table.changed(name, init_std=0.01, bias=0.1)
    for name in ("fc6", "fc7"):
        table = table.changed(name, init_std=0.005, bias=0.1)
    return replace(table, name="caffe", crop_size=227)


def _caffenet(caffe: Architecture) -> Architecture:
    """`bvlc_reference_caffenet`: pools before it normalises; biases 1."""
    pooled = (Relu(), MaxPool(), ResponseNorm(across="all_maps", k=1.0))
    table = caffe.changed("conv1", after=pooled).changed("conv2", after=pooled, bias=1.0)
    for name in ("conv4", "conv5", "fc6", "fc7"):
        table = table.changed(name, bias=1.0)
    return replace(table, name="caffenet")


def _one_tower(paper: Architecture) -> Architecture:
    """The paper's one-GPU comparison net (Section 3.2, note 1): half the kernels but for conv5, so the same size."""
    table = replace(paper, towers=1)
    for layer in paper.layers[:4]:
        assert isinstance(layer, Convolution)
        table = table.changed(layer.name, width=layer.width // 2)
    return table


def _crosstalk_conv4(paper: Architecture) -> Architecture:
    """The towers meet before conv4 instead of conv3 (lab notes)."""
    return paper.changed("conv3", reads="own").changed("conv4", reads="all")


def _init_001(paper: Architecture) -> Architecture:
    """The paper's text: every layer from N(0, 0.01) (Section 5); the 2012 source has 0.03 at conv3 to conv5."""
    table = paper
    for name in ("conv3", "conv4", "conv5"):
        init_std = paper.layer(name).init_std
        assert init_std is not None
        table = table.changed(name, init_std=init_std / 3)
    return table


def _narrow(paper: Architecture, name: str, divisor: int) -> Architecture:
    """All widths divided by `divisor`. Initial deviations grow with its root, which keeps the size of the activations."""
    layers = []
    for layer in paper.layers:
        if not isinstance(layer, Classifier):
            layer = replace(layer, width=layer.width // divisor)
        if layer.init_std is not None and layer.name != "conv1":
            layer = replace(layer, init_std=layer.init_std * divisor**0.5)
        layers.append(layer)
    return replace(paper, name=name, layers=tuple(layers))


def _paper_32px(paper: Architecture) -> Architecture:
    """Two towers for images of 32 px: a quarter of the widths, and in conv1 5x5 kernels at stride 2.

    Maps have 14, 7, 3 and 1 px along a side, whether the windows of the poolings overlap or not.
    """
    table = _narrow(paper, "paper_32px", 4)
    table = table.changed("conv1", kernel=5, stride=2, padding=2, ceil_mode=False, init_std=0.02)
    return replace(table, crop_size=28)


def _torchvision() -> Architecture:
    """The "one weird trick" net (arXiv 1404.5997) as torchvision has it: one tower, no LRN, dropout before fc6 and fc7."""
    pool = MaxPool(ceil_mode=False)
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
    paper_32px = _paper_32px(paper)
    tables = (
        paper,
        _source2012(paper),
        _caffe(paper),
        _caffenet(_caffe(paper)),
        replace(_one_tower(paper), name="one_tower"),
        replace(ablated(paper, ["crosstalk"]), name="no_crosstalk"),
        replace(_crosstalk_conv4(paper), name="crosstalk_conv4"),
        replace(ablated(paper, ["lrn"]), name="no_lrn"),
        replace(ablated(paper, ["overlap"]), name="non_overlapping_pool"),
        replace(_init_001(paper), name="init_001"),
        replace(ablated(paper, ["conv4"]), name="no_conv4"),
        _narrow(paper, "paper_eighth", 8),  # two towers that train in seconds: for tests and first steps
        paper_32px,
        replace(_one_tower(paper_32px), name="paper_32px_one_tower"),
        replace(_crosstalk_conv4(paper_32px), name="paper_32px_crosstalk_conv4"),
        replace(_init_001(paper_32px), name="paper_32px_init_001"),
        _torchvision(),
        *cifar_architectures(),
    )
    return {table.name: table for table in tables}


ARCHITECTURES = _architectures()
# What flag files and config.json of an earlier version call them.
OLD_ARCHITECTURES = {"cifar": "cifar_11pct_early", "cifar_no_lrn": "cifar_13pct", "cifar_tanh": "cifar_13pct_tanh"}


def with_overrides(
    architecture: Architecture,
    *,
    bias: float | None = None,
    dropout: float | None = None,
    weight_decay: float | None = None,
    layer_decays: Sequence[LayerDecay] = (),
    ablate: Sequence[str] = (),
) -> Architecture:
    """The table with other values in place of its own; None keeps the table's.

    Args:
        architecture: the table.
        bias: in place of its nonzero initial biases.
        dropout: in place of its dropout rates; 0 takes the dropout out.
        weight_decay: of every layer.
        layer_decays: weight decays of single layers, whatever `weight_decay` is.
        ablate: the ideas that are taken out first, see `alexnet_jax.ablations`.

    Raises:
        UserError: a dropout rate outside [0, 1), or an ablation that is not possible.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"--dropout={dropout} is not a rate: use at least 0 and less than 1")
    table, own_decays, layers = ablated(architecture, ablate), dict(layer_decays), list[Layer]()
    for layer in table.layers:
        if bias is not None and layer.bias:
            layer = replace(layer, bias=bias)
        decay = own_decays.get(layer.name, weight_decay)
        if decay is not None:
            layer = replace(layer, weight_decay=decay)
        if dropout is not None and not isinstance(layer, Classifier):
            kept = (replace(op, rate=dropout) if isinstance(op, Dropout) else op for op in layer.after)
            layer = replace(layer, after=tuple(op for op in kept if not (isinstance(op, Dropout) and op.rate == 0)))
        layers.append(layer)
    return replace(table, layers=tuple(layers))

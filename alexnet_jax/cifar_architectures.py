"""The networks for CIFAR-10 behind Figure 1 and Section 3.3 of the paper, as cuda-convnet's example layers define them.

Section 3.3 reports a test error of 13 % without normalisation and of 11 % with it, and its note points to cuda-convnet for
both networks. All biases begin at 0. The weight decays are `wc` of the layer parameter files.
"""

from dataclasses import replace

from alexnet_jax.ablations import ablated
from alexnet_jax.layers import (
    Architecture,
    AveragePool,
    Classifier,
    Convolution,
    MaxPool,
    Operation,
    Reads,
    Relu,
    ResponseNorm,
    Tanh,
)


def cifar_architectures() -> tuple[Architecture, ...]:
    """The three networks, the first revision of one of them, and their ablations."""
    cifar_13pct = _cifar_13pct()
    cifar_11pct = _cifar_11pct(cifar_13pct)
    return (
        cifar_13pct,
        _saturating(cifar_13pct, "cifar_13pct_tanh"),
        cifar_11pct,
        replace(ablated(cifar_11pct, ["lrn"]), name="cifar_11pct_no_lrn"),
        _non_overlapping_pool(cifar_11pct),
        _cifar_11pct_early(cifar_13pct),
        _cifar_18pct(),
    )


def _cifar_13pct() -> Architecture:
    """`layers-conv-local-13pct`: no normalisation; two convolutions and two locally connected layers; crops of 24 px."""
    return Architecture(
        name="cifar_13pct",
        towers=1,
        crop_size=24,
        layers=(
            _convolution("conv1", 64, 0.0, Relu(), MaxPool(), reads="image", init_std=1e-4),
            _convolution("conv2", 64, 0.0, Relu(), MaxPool()),
            _local("local3", 32),
            _local("local4", 32),
            Classifier(name="fc10", weight_decay=0.004),
        ),
    )


def _convolution(
    name: str, width: int, weight_decay: float, *after: Operation, reads: Reads = "own", init_std: float = 0.01
) -> Convolution:
    return Convolution(
        name=name, width=width, kernel=5, padding=2, reads=reads, init_std=init_std, weight_decay=weight_decay, after=after
    )


def _local(name: str, width: int) -> Convolution:
    return Convolution(name=name, width=width, kernel=3, padding=1, shared=False, init_std=0.04, weight_decay=0.004)


def _cifar_11pct(cifar_13pct: Architecture) -> Architecture:
    """`layers-conv-local-11pct`, also in cuda-convnet2: norms over nine maps, a wider local3, more decay at fc10."""
    norm = ResponseNorm(size=9, alpha=1e-3 / 9, k=1.0)
    table = _with_after(cifar_13pct, "cifar_11pct", (Relu(), MaxPool(), norm), (Relu(), norm, MaxPool()))
    return table.changed("local3", width=64).changed("fc10", weight_decay=0.01)


def _cifar_11pct_early(cifar_13pct: Architecture) -> Architecture:
    """The first revision of `layers-conv-local-11pct`: norms over five maps, both before the pooling; local3 as before."""
    after = (Relu(), ResponseNorm(alpha=1e-3 / 5, k=1.0), MaxPool())
    return _with_after(cifar_13pct, "cifar_11pct_early", after, after)


def _cifar_18pct() -> Architecture:
    """`layers-18pct`: rectified after the first pooling; two poolings by the mean; norms within a map; whole images."""
    norm = ResponseNorm(across="space", size=3, alpha=5e-5 / 9, k=1.0)
    return Architecture(
        name="cifar_18pct",
        towers=1,
        crop_size=32,
        layers=(
            _convolution("conv1", 32, 0.004, MaxPool(), Relu(), norm, reads="image", init_std=1e-4),
            _convolution("conv2", 32, 0.004, Relu(), AveragePool(), norm),
            _convolution("conv3", 64, 0.004, Relu(), AveragePool()),
            Classifier(name="fc10", weight_decay=1.0),
        ),
    )


def _with_after(table: Architecture, name: str, conv1: tuple[Operation, ...], conv2: tuple[Operation, ...]) -> Architecture:
    """The table with other operations after its convolutions."""
    return replace(table.changed("conv1", after=conv1).changed("conv2", after=conv2), name=name)


def _non_overlapping_pool(cifar_11pct: Architecture) -> Architecture:
    """Windows of 2 at stride 2 (Section 3.4). On 24 px every layer keeps its shape."""
    return _replacing(cifar_11pct, "cifar_11pct_non_overlapping_pool", MaxPool(), MaxPool(size=2))


def _saturating(table: Architecture, name: str) -> Architecture:
    """The table with tanh in place of every ReLU: Figure 1."""
    return _replacing(table, name, Relu(), Tanh())


def _replacing(table: Architecture, name: str, old: Operation, new: Operation) -> Architecture:
    """The table with one operation in place of another, after every layer."""
    layers = []
    for layer in table.layers:
        if not isinstance(layer, Classifier):
            layer = replace(layer, after=tuple(new if op == old else op for op in layer.after))
        layers.append(layer)
    return replace(table, name=name, layers=tuple(layers))

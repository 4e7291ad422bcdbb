"""A layer table as a network of PyTorch. Only `peers` imports this, where PyTorch is installed.

Towers are groups of maps. Weights have the names and the layout that `convert --export` writes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_jax.layers import (
    Architecture,
    AveragePool,
    Convolution,
    Dense,
    Dropout,
    LayerShapes,
    MaxPool,
    Operation,
    Relu,
    ResponseNorm,
    Tanh,
    convolution_padding,
    trace,
)


def torch_network(table: Architecture, crop: int, classes: int) -> nn.Sequential:
    """The network that computes what `alexnet_jax.network.Network` does, from float32 (batch, 3, crop, crop) to logits.

    The table is one that `peers.forms` takes. Raises UserError if the crop is too small.
    """
    network = nn.Sequential()
    for shapes in trace(table, crop, classes):
        for name, module in _layer(table, shapes, classes):
            network.add_module(name, module)
    return network


def _layer(table: Architecture, shapes: LayerShapes, classes: int) -> Iterator[tuple[str, nn.Module]]:
    """A layer and what follows it, each with its name."""
    layer, name = shapes.layer, shapes.name
    if isinstance(layer, Convolution):
        before, after = convolution_padding(layer, shapes.in_side)
        if after > before:
            yield f"{name}_padding", nn.ZeroPad2d((0, after - before, 0, after - before))
        if layer.shared:
            groups = shapes.towers if layer.reads == "own" else 1
            inputs = shapes.in_maps * groups
            yield name, nn.Conv2d(inputs, layer.width, layer.kernel, layer.stride, before, groups=groups)
        else:
            yield name, LocallyConnected(layer, shapes, before)
    else:
        yield f"{name}_flatten", nn.Flatten()
        inputs = shapes.kernel[0]
        # A tower has its part of the classifier's inputs, and all of another layer's.
        dense = isinstance(layer, Dense)
        yield name, nn.Linear(inputs, layer.width) if dense else nn.Linear(inputs * shapes.towers, classes)
    if isinstance(layer, Convolution | Dense):
        for number, operation in enumerate(layer.after):
            yield f"{name}_{number}", _operation(operation, shapes.towers)


def _operation(operation: Operation, towers: int) -> nn.Module:
    match operation:
        case Relu():
            return nn.ReLU(inplace=True)
        case Tanh():
            return nn.Tanh()
        case MaxPool():
            return nn.MaxPool2d(operation.size, operation.stride, ceil_mode=operation.ceil_mode)
        case AveragePool():
            return nn.AvgPool2d(operation.size, operation.stride, ceil_mode=operation.ceil_mode)
        case Dropout():
            return nn.Dropout(operation.rate)
        case ResponseNorm(across="maps") if towers > 1:
            return TowerNorm(operation, towers)
        case ResponseNorm(across="space"):
            return SpatialNorm(operation)
        case ResponseNorm():  # PyTorch divides alpha by the size
            return nn.LocalResponseNorm(operation.size, operation.alpha * operation.size, operation.beta, operation.k)


class TowerNorm(nn.Module):
    """`nn.LocalResponseNorm` over the maps of each tower alone, by the same operations: its one channel is a tower here."""

    def __init__(self, norm: ResponseNorm, towers: int):
        super().__init__()
        self.norm, self.towers = norm, towers

    def forward(self, x: Tensor) -> Tensor:
        """(batch, maps of all towers, height, width) to the same."""
        norm, size = self.norm, self.norm.size
        squares = functional.pad((x * x).unflatten(1, (self.towers, -1)), (0, 0, 0, 0, size // 2, (size - 1) // 2))
        mean = functional.avg_pool3d(squares, (size, 1, 1), stride=1).flatten(1, 2)
        return x / mean.mul(norm.alpha * size).add(norm.k).pow(norm.beta)


class SpatialNorm(nn.Module):
    """Over the neighbours in a map. Positions over the edge count as zeros."""

    def __init__(self, norm: ResponseNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(batch, maps, height, width) to the same."""
        norm, size = self.norm, self.norm.size
        mean = functional.avg_pool2d(x * x, size, stride=1, padding=size // 2)
        return x / mean.mul(norm.alpha * size**2).add(norm.k).pow(norm.beta)


class LocallyConnected(nn.Module):
    """Kernels and biases of its own at each position: patches by unfold, then one batched product over the positions."""

    def __init__(self, layer: Convolution, shapes: LayerShapes, padding: int):
        super().__init__()
        rows, columns, inputs, outputs = shapes.kernel
        self.side, self.window = (rows, columns), (layer.kernel, 1, padding, layer.stride)
        self.weight = nn.Parameter(torch.empty(rows * columns, inputs, outputs).uniform_(-1, 1) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(rows * columns, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, maps, height, width) to (batch, outputs, rows, columns)."""
        patches = functional.unfold(x, *self.window)  # batch, inputs, positions
        y = torch.baddbmm(self.bias, patches.permute(2, 0, 1), self.weight)  # positions, batch, outputs
        return y.permute(1, 2, 0).unflatten(2, self.side)

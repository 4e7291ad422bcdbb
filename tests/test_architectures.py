"""The layer tables against the numbers of the paper and the other sources; what a network makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import ops
from alexnet_jax.architectures import ARCHITECTURES, with_overrides
from alexnet_jax.layers import (
    Architecture,
    Classifier,
    Convolution,
    Dense,
    Dropout,
    MaxPool,
    convolution_padding,
    trace,
)
from alexnet_jax.network import initial_params, merge, split
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import LayerDecay

PARAMETERS = {
    "paper": 60_965_224,
    "source2012": 60_965_224,
    "caffe": 60_965_224,
    "one_tower": 59_798_312,
    "no_crosstalk": 60_714_408,
    "no_lrn": 60_965_224,
    "non_overlapping_pool": 60_965_224,
    "init_001": 60_965_224,
    "no_conv4": 60_965_224 - 2 * 3 * 3 * 192 * 192 - 384,
    "torchvision": 61_100_840,
    # Of these 1,141,470 and 1,014,750 are for 990 classes more than CIFAR-10 has.
    "cifar_13pct": 2_257_960,
    "cifar_11pct": 3_254_440,
    "cifar_18pct": 89_578 + 1_014_750,
}


def shapes_of(name: str, crop_size: int | None = None):
    table = ARCHITECTURES[name]
    size = crop_size or table.crop_size
    return split(table, classes=1000, crop_size=size, dtype=jnp.dtype(jnp.float32))[1]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert sum(x.size for x in jax.tree.leaves(shapes_of(name))) == PARAMETERS[name]
    table = ARCHITECTURES[name]
    assert sum(one.parameters for one in trace(table, table.crop_size)) == PARAMETERS[name]


@pytest.mark.parametrize("crop_size", [224, 227])
def test_paper_shapes(crop_size):
    shapes = {layer: (w["kernel"].shape, w["bias"].shape) for layer, w in shapes_of("paper", crop_size).items()}
    assert shapes == {
        "conv1": ((2, 11, 11, 3, 48), (2, 48)),
        "conv2": ((2, 5, 5, 48, 128), (2, 128)),
        "conv3": ((2, 3, 3, 256, 192), (2, 192)),
        "conv4": ((2, 3, 3, 192, 192), (2, 192)),
        "conv5": ((2, 3, 3, 192, 128), (2, 128)),
        "fc6": ((2, 9216, 2048), (2, 2048)),
        "fc7": ((2, 4096, 2048), (2, 2048)),
        "fc8": ((2, 2048, 1000), (1000,)),
    }


@pytest.mark.parametrize("name", sorted(name for name in ARCHITECTURES if not name.startswith(("cifar", "paper_32px"))))
@pytest.mark.parametrize("crop_size", [224, 227])
def test_sizes_after_each_convolution(name, crop_size):
    if name in ("caffe", "torchvision") and crop_size == 224 + 3 * (name == "torchvision"):
        pytest.skip(f"{name} has its own crop size, {ARCHITECTURES[name].crop_size}")
    sizes = {"conv1": 27, "conv2": 13, "conv3": 13, "conv4": 13, "conv5": 6}
    if name == "no_conv4":
        del sizes["conv4"]
    found = {one.name: one.out_side for one in trace(ARCHITECTURES[name], crop_size) if isinstance(one.layer, Convolution)}
    assert found == sizes


def test_conv1_of_224_hangs_three_pixels_over():
    conv1 = ARCHITECTURES["paper"].layer("conv1")
    assert isinstance(conv1, Convolution)
    assert convolution_padding(conv1, 224) == (0, 3)
    assert convolution_padding(conv1, 227) == (0, 0)


def test_crosstalk_is_where_the_paper_has_it():
    reads = {layer.name: layer.reads for layer in ARCHITECTURES["paper"].layers if layer.name != "fc8"}
    assert reads == {
        "conv1": "image", "conv2": "own", "conv3": "all", "conv4": "own", "conv5": "own", "fc6": "all", "fc7": "all",
    }  # fmt: skip


def test_too_small_a_crop_names_the_layer():
    with pytest.raises(
        UserError, match=r"--crop_size=20 is too small for --architecture=paper: conv2 gets 2 px for a window of 3"
    ):
        trace(ARCHITECTURES["paper"], 20)
    assert trace(ARCHITECTURES["paper"], 63)[4].out_side == 1


def test_overrides_leave_zero_biases_and_take_dropout_out():
    table = with_overrides(ARCHITECTURES["paper"], bias=0.1, dropout=0.0)
    assert [layer.bias for layer in table.layers] == [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]
    assert not any(isinstance(op, Dropout) for layer in table.layers for op in getattr(layer, "after", ()))
    halved = with_overrides(ARCHITECTURES["paper"], bias=None, dropout=0.25).layer("fc6")
    assert Dropout(rate=0.25) in halved.after
    with pytest.raises(UserError, match="--dropout=1"):
        with_overrides(ARCHITECTURES["paper"], bias=None, dropout=1.0)


def test_the_networks_for_cifar10_begin_and_decay_as_in_cuda_convnet():
    """`initW` of its layer files, `wc` of its layer parameter files."""
    found = {
        name: [(layer.init_std, layer.weight_decay, layer.bias) for layer in ARCHITECTURES[name].layers]
        for name in ("cifar_13pct", "cifar_11pct", "cifar_18pct")
    }
    four = [(0.0001, 0, 0), (0.01, 0, 0), (0.04, 0.004, 0), (0.04, 0.004, 0)]
    assert found == {
        "cifar_13pct": [*four, (0.01, 0.004, 0)],
        "cifar_11pct": [*four, (0.01, 0.01, 0)],
        "cifar_18pct": [(0.0001, 0.004, 0), (0.01, 0.004, 0), (0.01, 0.004, 0), (0.01, 1, 0)],
    }


def test_decays_are_the_tables_then_those_of_all_layers_then_those_of_single_ones():
    def decays(**given):
        return [layer.weight_decay for layer in with_overrides(ARCHITECTURES["cifar_11pct"], **given).layers]

    assert decays() == [0, 0, 0.004, 0.004, 0.01]
    assert decays(weight_decay=0.0) == [0] * 5
    assert decays(layer_decays=[LayerDecay("fc10", 1.0)]) == [0, 0, 0.004, 0.004, 1]
    assert decays(weight_decay=0.5, layer_decays=[LayerDecay("conv2", 0.0)]) == [0.5, 0, 0.5, 0.5, 0.5]


def test_a_layer_without_a_deviation_is_drawn_as_pytorch_draws_it():
    """Kernels and biases from U(-1, 1) / sqrt(fan in); a locally connected layer has the fan in of one position."""
    conv = {"init_std": None, "after": ()}
    table = Architecture(
        name="drawn",
        layers=(
            Convolution(name="conv1", width=16, kernel=5, reads="image", **conv),
            Convolution(name="local2", width=32, kernel=3, shared=False, **conv),
            Dense(name="fc3", width=64, init_std=None),
            Classifier(name="fc4", init_std=None),
        ),
    )
    draw = jax.jit(lambda key: initial_params(table, classes=300, crop_size=10, key=key))
    params = draw(jax.random.key(0))
    fans = {"conv1": 3 * 5 * 5, "local2": 8 * 3 * 3, "fc3": 2 * 4 * 4 * 16, "fc4": 32}
    biases = {"conv1": (2, 8), "local2": (2, 4, 4, 16), "fc3": (2, 32), "fc4": (300,)}
    for layer, fan_in in fans.items():
        assert params[layer]["bias"].shape == biases[layer]
        for values in params[layer].values():
            drawn = np.sort(np.asarray(values).ravel()) * fan_in**0.5
            assert -1.001 < drawn[0] < drawn[-1] < 1.001
            # 2.2: the statistic of Kolmogorov and Smirnov exceeds it once in 8,000.
            below = np.arange(len(drawn)) / len(drawn)
            assert np.abs((drawn + 1) / 2 - below).max() * len(drawn) ** 0.5 < 2.2


def forward_shape(table: Architecture, layer: str | None = None, **options):
    """What a pass over two images gives; nothing is computed."""
    graph, params = split(table, classes=10, crop_size=table.crop_size, dtype=jnp.dtype(jnp.bfloat16))
    images = jax.ShapeDtypeStruct((2, table.crop_size, table.crop_size, 3), jnp.float32)

    def run(params, images):
        network = merge(graph, params)
        return network.activations(images, layer, **options) if layer else network(images, **options)

    return jax.eval_shape(run, params, images)


@pytest.mark.parametrize("name", ["caffe", "source2012", "torchvision", "cifar_18pct", "cifar_13pct_tanh"])
def test_a_table_gives_float32_logits(name):
    logits = forward_shape(ARCHITECTURES[name])
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)


def test_activations_are_those_of_the_layer_asked_for_one_array_per_tower():
    table = ARCHITECTURES["paper"]
    for layer, shape in (("conv1", (2, 27, 27, 48)), ("conv5", (2, 6, 6, 128)), ("fc6", (2, 2048))):
        assert [(one.shape, one.dtype) for one in forward_shape(table, layer)] == [(shape, jnp.bfloat16)] * 2
    with pytest.raises(ValueError, match="no hidden layer 'fc8' in paper"):
        forward_shape(table, "fc8")


def test_every_dropout_of_every_tower_has_a_stream_of_its_own(monkeypatch):
    streams = []

    def dropout(x, keys, stream, rate):
        streams.append(stream)
        return x

    monkeypatch.setattr(ops, "dropout", dropout)
    forward_shape(ARCHITECTURES["paper"])
    assert streams == []  # none without keys
    forward_shape(ARCHITECTURES["paper"], dropout_keys=jax.random.split(jax.random.key(0), 2))
    assert len(set(streams)) == len(streams) == 4


def test_ideas_are_taken_out_of_any_table():
    """`paper` without one is the table of that name; two at once are both gone."""
    paper = ARCHITECTURES["paper"]
    for idea, name in (("lrn", "no_lrn"), ("overlap", "non_overlapping_pool"), ("conv4", "no_conv4")):
        assert with_overrides(paper, ablate=[idea]).layers == ARCHITECTURES[name].layers
    small = with_overrides(ARCHITECTURES["paper_32px"], ablate=["overlap", "crosstalk"])
    assert [layer.reads for layer in small.layers[:-1]] == ["image"] + ["own"] * 6
    assert [one.out_side for one in trace(small, 28)[:5]] == [7, 3, 3, 3, 1]
    windows = {
        (op.size, op.stride) for layer in small.layers for op in getattr(layer, "after", ()) if isinstance(op, MaxPool)
    }
    assert windows == {(2, 2)}
    one = ARCHITECTURES["one_tower"]
    for table, idea, message in (
        (paper, "lrm", "--ablate=lrm is not one of lrn, overlap, conv4, crosstalk"),
        (one, "crosstalk", "--ablate=crosstalk: --architecture=one_tower has no crosstalk to take out"),
        (ARCHITECTURES["no_crosstalk"], "crosstalk", "--architecture=no_crosstalk has no crosstalk to take out"),
        (ARCHITECTURES["cifar_13pct"], "lrn", "--ablate=lrn: --architecture=cifar_13pct has no lrn to take out"),
    ):
        with pytest.raises(UserError, match=message):
            with_overrides(table, ablate=[idea])

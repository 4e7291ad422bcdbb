"""Logits and all gradients against a PyTorch network that shares no code: grouped convolutions, LocalResponseNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.architectures import ARCHITECTURES, _narrow
from alexnet_jax.network import initial_params, merge, split
from alexnet_jax.step import cross_entropy

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed (requirements-benchmark.txt): its references are skipped"
)
functional = torch.nn.functional

CLASSES = 10


def torch_forward(name: str, w: dict, images):
    """The network in PyTorch's terms. `w[layer]` has weight (out, in / groups, kh, kw) or (out, in), and bias."""
    towers = 1 if name == "torchvision" else 2
    k = {"paper": 2.0, "caffe": 1.0}.get(name)

    def norm(x):  # over each tower's own maps, Caffe over all; PyTorch divides alpha by the size
        if k is None:
            return x
        if name == "caffe":
            return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=k)
        halves = [functional.local_response_norm(half, 5, alpha=1e-4, beta=0.75, k=k) for half in x.chunk(2, 1)]
        return torch.cat(halves, 1)

    def pool(x):
        return functional.max_pool2d(x, 3, 2)

    def conv(x, layer, groups=1, **options):
        return functional.relu(functional.conv2d(x, w[layer]["weight"], w[layer]["bias"], groups=groups, **options))

    x = images.permute(0, 3, 1, 2)
    x = pool(norm(conv(x, "conv1", stride=4, padding=2 if name == "torchvision" else 0)))
    x = pool(norm(conv(x, "conv2", towers, padding=2)))
    x = conv(x, "conv3", padding=1)
    x = conv(x, "conv4", towers, padding=1)
    x = pool(conv(x, "conv5", towers, padding=1))
    x = x.permute(0, 2, 3, 1).flatten(1)  # our fc6 counts rows, columns, maps
    x = functional.relu(functional.linear(x, w["fc6"]["weight"], w["fc6"]["bias"]))
    x = functional.relu(functional.linear(x, w["fc7"]["weight"], w["fc7"]["bias"]))
    return functional.linear(x, w["fc8"]["weight"], w["fc8"]["bias"])


def torch_cifar(name: str, w: dict, images):
    """cuda-convnet's layers. A locally connected one is a product of each position's patch with its own kernel."""
    act = torch.tanh if name == "cifar_13pct_tanh" else functional.relu

    def conv(x, layer):
        return functional.conv2d(x, w[layer]["weight"], w[layer]["bias"], padding=2)

    def norm(x):
        return functional.local_response_norm(x, 5 if name == "cifar_11pct_early" else 9, alpha=1e-3, beta=0.75, k=1.0)

    def norm_in_map(x):
        return x / (1 + 5e-5 * functional.avg_pool2d(x * x, 3, 1, 1)) ** 0.75

    def pool(x, kind=functional.max_pool2d):
        return kind(x, 2) if name == "cifar_11pct_non_overlapping_pool" else kind(x, 3, 2, ceil_mode=True)

    def linear(x):
        return functional.linear(x.permute(0, 2, 3, 1).flatten(1), w["fc10"]["weight"], w["fc10"]["bias"])

    def local(x, layer):
        patches = functional.unfold(x, 3, padding=1)  # batch, inputs * 9, positions
        kernel = w[layer]["weight"].flatten(0, 1)  # positions, inputs * 9, outputs
        y = torch.einsum("bkp,pko->bop", patches, kernel).unflatten(2, x.shape[2:])
        return act(y + w[layer]["bias"].reshape(*x.shape[2:], -1).permute(2, 0, 1))

    x = images.permute(0, 3, 1, 2)
    if name == "cifar_18pct":
        x = norm_in_map(act(pool(conv(x, "conv1"))))
        x = norm_in_map(pool(act(conv(x, "conv2")), functional.avg_pool2d))
        return linear(pool(act(conv(x, "conv3")), functional.avg_pool2d))
    x = act(conv(x, "conv1"))
    match name:
        case "cifar_11pct" | "cifar_11pct_non_overlapping_pool":
            x = pool(norm(act(conv(norm(pool(x)), "conv2"))))
        case "cifar_11pct_early":
            x = pool(norm(act(conv(pool(norm(x)), "conv2"))))
        case _:
            x = pool(act(conv(pool(x), "conv2")))
    return linear(local(local(x, "local3"), "local4"))


def to_torch(params: dict) -> dict:
    """Towers side by side along the outputs, fc8's along the inputs; float64."""
    weights = {}
    for layer, values in params.items():
        kernel = np.asarray(values["kernel"])
        if layer in ("fc8", "fc10"):
            weight = kernel.reshape(-1, kernel.shape[-1]).T
        elif layer.startswith("local"):
            weight = kernel[0]
        elif kernel.ndim == 3:
            weight = np.concatenate(list(kernel), axis=-1).T
        else:
            weight = np.concatenate(list(kernel), axis=-1).transpose(3, 2, 0, 1)
        bias = np.asarray(values["bias"]).reshape(-1)
        weights[layer] = {
            "weight": torch.tensor(np.ascontiguousarray(weight, np.float64), requires_grad=True),
            "bias": torch.tensor(bias.astype(np.float64), requires_grad=True),
        }
    return weights


def relative_error(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(name: str, crop_size: int, dtype: str, tolerance: float, seed: int = 0, divisor: int = 1) -> None:
    """Logits and every gradient of the mean loss: the largest difference against the largest value.

    `divisor`: of all widths.
    """
    table = ARCHITECTURES[name] if divisor == 1 else _narrow(ARCHITECTURES[name], name, divisor)
    params = jax.jit(lambda key: initial_params(table, classes=CLASSES, crop_size=crop_size, key=key))(jax.random.key(1))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    graph, _ = split(table, classes=CLASSES, crop_size=crop_size, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 60 if name != "torchvision" else 1, (2, crop_size, crop_size, 3)).astype(dtype)
    labels = np.array([3, 9])

    def loss(params):
        logits = merge(graph, params)(jnp.asarray(images))
        return cross_entropy(logits, jnp.asarray(labels)).mean(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    weights = to_torch(params)
    forward = torch_cifar if name.startswith("cifar") else torch_forward
    their_logits = forward(name, weights, torch.tensor(images, dtype=torch.float64))
    functional.cross_entropy(their_logits, torch.tensor(labels)).backward()

    assert logits.dtype == dtype
    assert relative_error(np.asarray(logits), their_logits.detach().numpy()) < tolerance
    ours = to_torch(gradients)
    for layer, values in weights.items():
        for part, value in values.items():
            error = relative_error(ours[layer][part].detach().numpy(), value.grad.numpy())
            assert error < tolerance, f"{layer} {part}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [8, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("name", "crop_size"), [("paper", 227), ("caffe", 227), ("torchvision", 224)])
def test_the_mathematics_in_float64(name, crop_size, divisor):
    """At full size, and at night at full width. In float32 rounding moves the winner of a nearly tied pooling window now and
    then, which changes a gradient by 1e-2 in either library; in float64 nothing of the sort hides a mistake."""
    with jax.enable_x64(True):
        compare(name, crop_size, "float64", 1e-9, divisor=divisor)


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [8, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name", ["paper", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("caffe", "torchvision"))]
)
def test_the_arithmetic_in_float32(name, divisor):
    """On images with few windows, of which no two values are nearly tied."""
    compare(name, 67, "float32", 1e-4, seed=1, divisor=divisor)


CIFAR = ("cifar_11pct", "cifar_18pct")
OTHERS = ("cifar_13pct", "cifar_13pct_tanh", "cifar_11pct_no_lrn", "cifar_11pct_non_overlapping_pool", "cifar_11pct_early")


@pytest.mark.parametrize("name", [*CIFAR, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_networks_for_cifar10(name):
    """On 24 px, where windows of both poolings reach over the edge."""
    with jax.enable_x64(True):
        compare(name, 24, "float64", 1e-9)

"""Caffe's and torchvision's networks in PyTorch, with random weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt): its files are skipped")
functional = torch.nn.functional

SIZE, CROP, CLASSES = 112, 99, 14
TORCH_MEAN = np.array([0.485, 0.456, 0.406])
TORCH_STD = np.array([0.229, 0.224, 0.225])
# name: outputs, inputs of a group, side of the kernel; fc6 reads 2 x 2 positions at a crop of 99
CAFFE = {
    "conv1": (96, 3, 11), "conv2": (256, 48, 5), "conv3": (384, 256, 3), "conv4": (384, 192, 3), "conv5": (256, 192, 3),
    "fc6": (4096, 1024), "fc7": (4096, 4096), "fc8": (CLASSES, 4096),
}  # fmt: skip
TORCHVISION = {
    "features.0": (64, 3, 11), "features.3": (192, 64, 5), "features.6": (384, 192, 3), "features.8": (256, 384, 3),
    "features.10": (256, 256, 3), "classifier.1": (4096, 1024), "classifier.4": (4096, 4096),
    "classifier.6": (CLASSES, 4096),
}  # fmt: skip


def random_weights(shapes: dict, seed: int) -> dict:
    """Weights that keep the size of the activations, and biases, float32."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (outputs, inputs, *side) in shapes.items():
        shape = (outputs, inputs, *side, *side)
        std = (2 / np.prod(shape[1:])) ** 0.5
        weights[name] = (rng.normal(0, std, shape).astype(np.float32), rng.normal(0, 0.1, outputs).astype(np.float32))
    return weights


def caffe_logits(w: dict, images: np.ndarray) -> np.ndarray:
    """bvlc_alexnet on BGR images, float64: ReLU, LRN over all maps, ceiling pooling, two groups."""
    top = (images.shape[1] - CROP) // 2
    pixels = images[:, top : top + CROP, top : top + CROP, ::-1] - np.array([104.0, 117.0, 123.0])
    x = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
    w = {name: [torch.tensor(part, dtype=torch.float64) for part in parts] for name, parts in w.items()}

    def pool(x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    def lrn(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    x = pool(lrn(functional.relu(functional.conv2d(x, *w["conv1"], stride=4))))
    x = pool(lrn(functional.relu(functional.conv2d(x, *w["conv2"], padding=2, groups=2))))
    x = functional.relu(functional.conv2d(x, *w["conv3"], padding=1))
    x = functional.relu(functional.conv2d(x, *w["conv4"], padding=1, groups=2))
    x = pool(functional.relu(functional.conv2d(x, *w["conv5"], padding=1, groups=2)))
    x = functional.relu(functional.linear(x.flatten(1), *w["fc6"]))
    x = functional.relu(functional.linear(x, *w["fc7"]))
    return functional.linear(x, *w["fc8"]).numpy()


def torchvision_network(w: dict) -> "torch.nn.Module":
    """torchvision.models.alexnet but for its adaptive pooling, which does nothing at its own sizes."""
    nn = torch.nn
    (a, b, c, d, e), (f, g, h) = ([len(w[f"{part}.{number}"][1]) for number in numbers] for part, numbers in (
        ("features", (0, 3, 6, 8, 10)), ("classifier", (1, 4, 6)),
    ))  # fmt: skip
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(a, b, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(4 * e, f), nn.ReLU(), nn.Dropout(), nn.Linear(f, g), nn.ReLU(), nn.Linear(g, h),
    )  # fmt: skip
    network = nn.Module()
    network.features, network.classifier = features, classifier
    network.load_state_dict({f"{n}.{p}": torch.tensor(a) for n, v in w.items() for p, a in zip(("weight", "bias"), v)})  # noqa: B905
    return network.eval()


def torchvision_logits(network, images: np.ndarray) -> np.ndarray:
    """As its documentation prepares images: 0 to 1, mean, standard deviation; float64."""
    top = (images.shape[1] - CROP) // 2
    pixels = (images[:, top : top + CROP, top : top + CROP] / 255 - TORCH_MEAN) / TORCH_STD
    with torch.no_grad():
        x = network.double().features(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))
        logits = network.classifier(x.flatten(1)).numpy()
    network.float()
    return logits

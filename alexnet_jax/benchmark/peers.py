"""The same networks in PyTorch, in every form that may be its fastest.

A peer starts from finished float32 crops on the device. Our training step makes them from uint8 images first.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install

Net = Literal["two towers", "torchvision"]


@dataclass(frozen=True)
class Torch:
    """A network in PyTorch with one choice of layout and compiler. bfloat16 uses autocast.

    `two towers` is the paper's network with grouped convolutions and LRN. `torchvision` is torchvision's one-tower AlexNet.
    """

    net: Net
    train: bool
    channels_last: bool
    compiled: bool
    precision: str
    examples: int  # per call
    crop: int

    @property
    def name(self) -> str:
        """For tables."""
        forms = [form for form, on in (("channels_last", self.channels_last), ("compiled", self.compiled)) if on]
        how = ", ".join(forms) or "eager"
        return f"PyTorch {self.net}: {'train' if self.train else 'forward'} ({how})"

    def start(self) -> Callable[[], Any]:
        """See `worker.Workload`."""
        import torch

        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        net = _network(self.net, self.crop).to(device).to(memory_format=layout)
        images = torch.randn(self.examples, 3, self.crop, self.crop, device=device).to(memory_format=layout)
        labels = torch.randint(0, 1000, (self.examples,), device=device)
        model: Any = torch.compile(net) if self.compiled else net
        half = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")
        optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)

        def wait() -> None:
            if device == "cuda":
                torch.cuda.synchronize()

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            wait()

        def forward() -> None:
            with torch.inference_mode(), half:
                model(images)
            wait()

        if not self.train:
            net.eval()
        return train if self.train else forward

    def device_memory(self) -> int | None:
        """See `worker.Workload`."""
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def peers(train: bool, precision: str, batch_size: int, crop: int) -> dict[Net, list[Torch]]:
    """All forms of both networks. Raises UserError if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"--against=pytorch needs PyTorch: {install('torch')}")
    nets: tuple[Net, Net] = ("two towers", "torchvision")
    forms = [(channels_last, compiled) for compiled in (False, True) for channels_last in (False, True)]
    return {net: [Torch(net, train, *form, precision, batch_size, crop) for form in forms] for net in nets}


def _network(net: Net, crop: int) -> Any:
    import torch
    from torch import nn

    relu = nn.ReLU(inplace=True)  # has no state, so one serves all layers
    if net == "two towers":
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
        layers = [
            nn.Conv2d(3, 96, 11, 4), relu, norm, pool,
            nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, norm, pool,
            nn.Conv2d(256, 384, 3, padding=1), relu,
            nn.Conv2d(384, 384, 3, padding=1, groups=2), relu,
            nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool,
        ]  # fmt: skip
    else:
        pool = nn.MaxPool2d(3, 2)
        layers = [
            nn.Conv2d(3, 64, 11, 4, padding=2), relu, pool,
            nn.Conv2d(64, 192, 5, padding=2), relu, pool,
            nn.Conv2d(192, 384, 3, padding=1), relu,
            nn.Conv2d(384, 256, 3, padding=1), relu,
            nn.Conv2d(256, 256, 3, padding=1), relu, pool, nn.AdaptiveAvgPool2d(6),
        ]  # fmt: skip
    features = nn.Sequential(*layers, nn.Flatten())
    inputs = features(torch.zeros(1, 3, crop, crop)).shape[1]
    return nn.Sequential(
        features,
        nn.Linear(inputs, 4096), relu, nn.Dropout(), nn.Linear(4096, 4096), relu, nn.Dropout(), nn.Linear(4096, 1000),
    )  # fmt: skip

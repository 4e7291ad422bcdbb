"""The same network in PyTorch, in every form that may be its fastest.

A peer starts from finished float32 crops on the device. Our training step makes them from uint8 images first.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alexnet_jax.layers import Architecture, Classifier, Convolution
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install


@dataclass(frozen=True)
class Torch:
    """A layer table in PyTorch with one choice of layout and compiler. bfloat16 uses autocast."""

    table: Architecture
    train: bool
    channels_last: bool
    compiled: bool
    precision: str
    examples: int  # per call
    crop: int
    classes: int

    @property
    def name(self) -> str:
        """For tables."""
        forms = [form for form, on in (("channels_last", self.channels_last), ("compiled", self.compiled)) if on]
        how = ", ".join(forms) or "eager"
        return f"PyTorch {self.table.name}: {'train' if self.train else 'forward'} ({how})"

    def start(self) -> Callable[[], Any]:
        """See `worker.Workload`. Raises UserError if this form needs a compiler that is not here."""
        if self.compiled and not shutil.which(compiler := os.environ.get("CXX", "g++")):
            raise UserError(f"torch.compile needs a C++ compiler, and there is no {compiler}")
        import torch

        from alexnet_jax.benchmark.torch_network import torch_network

        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        net: Any = torch_network(self.table, self.crop, self.classes).to(device)
        net = net.to(memory_format=layout)  # which `Module.to` takes, and its type leaves out
        images = torch.randn(self.examples, 3, self.crop, self.crop, device=device).to(memory_format=layout)
        labels = torch.randint(0, self.classes, (self.examples,), device=device)
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


def forms(table: Architecture, train: bool, precision: str, batch_size: int, crop: int, classes: int) -> list[Torch]:
    """All forms of the network. Raises UserError if PyTorch is not installed, or has no form of a layer."""
    for layer in table.layers:
        shared = isinstance(layer, Convolution) and layer.shared
        if table.towers > 1 and not isinstance(layer, Classifier) and layer.reads == "own" and not shared:
            raise UserError(
                f"--against=pytorch: {layer.name} of --architecture={table.name} reads its own tower. PyTorch has no such "
                "layer: choose another table"
            )
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"--against=pytorch needs PyTorch: {install('torch')}")
    return [
        Torch(table, train, channels_last, compiled, precision, batch_size, crop, classes)
        for compiled in (False, True)
        for channels_last in (False, True)
    ]

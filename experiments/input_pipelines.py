"""How fast images come in, beside JPEG pipelines of TFDS and PyTorch on the same images.

    python -m experiments.input_pipelines [flags of a run] [--steps=N] [--rounds=N] [--seconds=S] [--figure=F.png]

Measures what `python -m alexnet_jax.benchmark --input` does, in turn with the JPEG pipelines. Prints a table on stderr and
one JSON object on stdout. PyTorch's row is left out if it is not installed (requirements-benchmark.txt).
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags, logging
from PIL import Image

from alexnet_jax.benchmark import inputs, results
from alexnet_jax.benchmark.flags import define_measurement
from alexnet_jax.benchmark.inputs import Batches, InputStream
from alexnet_jax.config import Config, from_flags
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.data.splits import Subset
from alexnet_jax.system import cli, runtime

JPEG_QUALITY = 90
MAX_JPEGS = 2048


class Jpegs:
    """A TFDS set of JPEG files with random access to (pixels, label). Every process opens it anew."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self._folder).as_data_source("train")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record = self._records[index]
        return record["image"], record["label"]

    def __reduce__(self) -> tuple[type["Jpegs"], tuple[str]]:
        return Jpegs, (self._folder,)


def write_jpegs(split: Subset, classes: int, folder: str) -> Jpegs:
    """Writes up to MAX_JPEGS images of a split under `folder`, with TFDS, as ArrayRecord."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "jpegs", tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(min(MAX_JPEGS, len(split))):
                images, labels = split.read(np.array([number]))
                file = io.BytesIO()
                Image.fromarray(images[0]).save(file, "JPEG", quality=JPEG_QUALITY)
                file.seek(0)
                yield number, {"image": file, "label": int(labels[0])}

    tfds.disable_progress_bar()
    builder = Builder(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare()
    return Jpegs(str(builder.data_dir))


def tfds_pipeline(jpegs: Jpegs, batch_size: int) -> InputStream:
    """TFDS reads and decodes random images in one process; NumPy stacks them into batches."""

    def batches() -> Batches:
        rng = np.random.default_rng(0)
        while True:
            numbers = rng.integers(0, len(jpegs), batch_size).tolist()
            np.stack([jpegs[number][0] for number in numbers])
            yield batch_size

    compared = inputs.Ratio("loader to JPEG, per core", inputs.LOADER, per_core=True)
    return InputStream("TFDS, JPEG, one process", batches(), ratio=compared)


def _quiet(worker: int) -> None:
    """Silences what libraries say in a worker about read-only arrays and OpenCV."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    logging.set_verbosity(logging.ERROR)


def torch_pipeline(jpegs: Jpegs, batch_size: int) -> Iterator[InputStream]:
    """A PyTorch DataLoader over the same files, one worker process per core; nothing if PyTorch is not installed."""
    try:
        from torch.utils.data import DataLoader, RandomSampler
    except ImportError:
        return
    workers = os.cpu_count() or 1
    # Sampling with replacement never ends. Workers are spawned because JAX's threads do not survive a fork.
    sampler = RandomSampler(range(len(jpegs)), replacement=True, num_samples=1 << 40)
    loader: Any = DataLoader(
        jpegs,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet,
    )

    def batches() -> Batches:
        for _ in loader:  # starts the workers
            yield batch_size

    yield InputStream(f"PyTorch DataLoader, JPEG, {workers} workers", batches(), workers)


def measure_pipelines(config: Config, rounds: int, seconds: float, steps: int) -> dict[str, Any]:
    """The package's streams and the JPEG pipelines, as the JSON object to print.

    Raises:
        UserError: the data set is not prepared, or the mesh does not fit.
    """
    setup, dataset = inputs.open_input(config)
    split, batch_size = dataset.splits["train"], config.batch_size
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(split, len(dataset.classes), folder)
        streams = [
            *inputs.copies(split, batch_size), *inputs.loading(setup, split), tfds_pipeline(jpegs, batch_size),
            *torch_pipeline(jpegs, batch_size), *inputs.training(setup, dataset),
        ]  # fmt: skip
        return inputs.measure_streams(config, streams, rounds, seconds, steps)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config, figure = from_flags(options), results.figure_path(options.figure)
    runtime.start(config.host_devices)
    steps = config.steps or results.DEFAULT_STEPS
    inputs.publish_input(measure_pipelines(config, options.rounds, options.seconds, steps), figure)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    define_measurement(options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()

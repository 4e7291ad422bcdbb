"""What TensorBoard shows of a run: curves, its config, pictures. One event file for each start, all in one folder.

TensorBoard opens the first two groups of tags, in the order of the alphabet, and folds the others away: `train` and
`validation` are open, `weights` is folded.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from alexnet_jax.config import FIELDS, Config, as_dict
from alexnet_jax.run.flags import changed, value_text
from alexnet_jax.run.metrics import Row

CURVES = ("loss", "top1_error", "top5_error", "images_per_second")
FINAL = ("validation/top1_error", "validation/top5_error", "validation/loss")  # their last values stand beside the flags


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed, for two seconds, and needs it for nothing that is used here."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # as if it were not installed
    try:
        yield
    finally:
        del sys.modules["torch"]


class Events:
    """The event file of one start of a run."""

    def __init__(self, workdir: Path, resume_step: int, *, silent: bool):
        """TensorBoard forgets what earlier files have after `resume_step`. `silent`: write nothing."""
        with _without_torch():
            from tensorboardX import SummaryWriter
        start = f".{time.time_ns()}"  # two starts within a second would write one file
        folder = str(workdir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=resume_step + 1, write_to_disk=not silent, filename_suffix=start)

    def close(self) -> None:
        """Everything is in the file then."""
        self._writer.close()

    def config(self, config: Config, step: int) -> None:
        """All flags as a table of text, and those that alter a run as hyper-parameters, beside the last errors.

        `add_hparams` would write them as a run of its own, in another folder.
        """
        from tensorboardX.summary import hparams

        flags, unusual = as_dict(config), changed(config)
        table = ["| flag (bold: not its default) | value |", "|---|---|"]
        for name, value in flags.items():
            text = f"`{value_text(value)}`" if value != "" else ""
            table.append(f"| {f'**{name}**' if name in unusual else name} | {text} |")
        self._writer.add_text("config", "\n".join(table), step)
        alters = [name for name, field in FIELDS.items() if field.metadata["fixed_on_resume"]]
        plain = {name: flags[name] if isinstance(flags[name], int | float) else value_text(flags[name]) for name in alters}
        experiment, begin, _ = hparams(plain, dict.fromkeys(FINAL))
        file = self._writer.file_writer
        assert file is not None
        for summary in (experiment, begin):
            file.add_summary(summary, step)

    def row(self, row: Row) -> None:
        """The numbers of a row of the record."""
        for name in CURVES:
            self._writer.add_scalar(f"{row.split}/{name}", getattr(row, name), row.step)
        for layer, values in (row.magnitudes or {}).items():
            for name, value in values.items():
                self._writer.add_scalar(f"weights/{layer}/{name}", value, row.step)
        for name, value in (row.ema or {}).items():
            self._writer.add_scalar(f"{row.split}/ema_{name}", value, row.step)
        if row.split == "train":
            self._writer.add_scalar("train/learning_rate", row.learning_rate, row.step)

    def picture(self, name: str, pixels: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """An image."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

"""What a finished run leaves to a reader: its errors, its cost, where things lie, and the next command."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from alexnet_jax.config import Config
from alexnet_jax.run.display import duration
from alexnet_jax.run.metrics import METRICS, STARTS, read_rows
from alexnet_jax.run.starts import time_spent
from alexnet_jax.run.trace import FOLDER


def summary(config: Config, splits: Collection[str], step: int, epoch: float) -> list[tuple[str, str]]:
    """Lines of (label, text) about the run in `config.workdir`. Call it once its last checkpoint is on the disk.

    Args:
        config: of the run.
        splits: of its data.
        step: of the last checkpoint.
        epoch: that it is in.
    """
    workdir = Path(config.workdir)
    validations = [row for row in read_rows(workdir) if row["split"] == "validation"]
    best = min(validations, key=lambda row: (row["top1_error"], row["step"]), default=None)
    lines = [("finished", f"step {step:,}, epoch {epoch:.2f}")]
    if best is not None:
        lines += [("best error", _error_text(best, workdir)), ("last error", _error_text(validations[-1], workdir))]
        if ema := validations[-1].get("ema"):
            lines.append(("ema error", f"{_errors(ema)} on validation (evaluate --weights=ema)"))
    spent = time_spent(read_rows(workdir, STARTS))
    if spent is not None:
        starts = f"{spent.starts} starts" if spent.starts > 1 else "1 start"
        steps = f"{duration(spent.training)} of it in training steps (goodput {100 * spent.goodput:.0f} %)"
        lines.append(("time", f"{duration(spent.wall)} in {starts}, {steps}"))
    traces = f", {FOLDER}/" if (workdir / FOLDER).is_dir() else ""
    lines.append(("folder", f"{workdir}: checkpoints/, {METRICS}, {STARTS}, tensorboard/{traces}"))
    words = ["python", "-m", "alexnet_jax.evaluate", f"--workdir={workdir}"]
    if best is not None and best["step"] != step:
        words.append("--step=best")
    if "test" not in splits:
        words.append(f"--split={'validation' if 'validation' in splits else 'train'}")
    return [*lines, ("next", shlex.join(words))]


def _error_text(row: dict[str, Any], workdir: Path) -> str:
    where = "checkpoint" if (workdir / "checkpoints" / str(row["step"])).is_dir() else "step"
    return f"{_errors(row)} on validation, {where} {row['step']}"


def _errors(numbers: dict[str, Any]) -> str:
    return f"{numbers['top1_error']:.2f} % top-1, {numbers['top5_error']:.2f} % top-5"

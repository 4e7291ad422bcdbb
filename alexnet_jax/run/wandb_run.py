"""The same rows at Weights & Biases, with --wandb=PROJECT. What goes wrong there costs the reports, never the training."""

import contextlib
import importlib
import importlib.metadata
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alexnet_jax.config import Config, as_dict
from alexnet_jax.run.metrics import Row
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install
from alexnet_jax.system.files import replacing

WANDB_ID = "wandb_id"  # the file in the folder of a run that names it there


def check_wandb(project: str) -> None:
    """Raises UserError if a project is named and the package is missing."""
    try:
        if project:
            importlib.metadata.version("wandb")  # a folder ./wandb, which it makes, would pass for the package in an import
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"--wandb={project} needs the package wandb: {install('wandb')}") from None


class WandbRun:
    """A run there; a resume continues it, by the id that is kept in W/wandb_id. WANDB_MODE=offline works."""

    def __init__(self, config: Config, warn: Callable[[str], None]):
        """Starts or resumes it. `warn`: is told once, if something goes wrong."""
        self._warn, self._run = warn, None
        with self._forgiving():
            self._run = _begin(config)

    def row(self, row: Row) -> None:
        """Logs a row at its step. One that a killed start has reported already is the same, and is left out."""
        with self._forgiving():
            if self._run is not None and row.step >= self._run.step:
                content = row.as_dict()
                step, split = content.pop("step"), content.pop("split")
                self._run.log(_flat(split, content), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the reports of this start."""
        with self._forgiving():
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Whatever is raised inside is told, and nothing is reported from then on."""
        try:
            yield
        except Exception as error:
            self._run = None
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._warn(f"warning: --wandb: {why}; the training goes on without it")


def _begin(config: Config) -> Any:
    wandb, workdir = importlib.import_module("wandb"), Path(config.workdir)
    run = wandb.init(
        project=config.wandb, id=_id_of(workdir), resume="allow", name=workdir.resolve().name, dir=str(workdir),
        config=as_dict(config), settings=wandb.Settings(console="off", quiet=True),
    )  # fmt: skip
    run.define_metric("validation/top1_error", summary="min,last")
    return run


def _flat(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Nested names joined by '/'."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(f"{prefix}/{name}", value) if isinstance(value, dict) else {f"{prefix}/{name}": value}
    return flat


def _id_of(workdir: Path) -> str:
    """The run's id, made at its first report."""
    path = workdir / WANDB_ID
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    found = secrets.token_hex(4)
    with replacing(path) as file:
        file.write(found + "\n")
    return found

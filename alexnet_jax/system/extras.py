"""Packages that only some commands need, and the command that installs a missing one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.system.errors import UserError

# The extra of pyproject.toml that brings a module.
EXTRAS = {
    "optuna": "sweep", "sqlalchemy": "sweep", "psycopg": "postgres", "tensorflow_datasets": "tfds", "array_record": "tfds",
    "tensorflow": "prepare", "safetensors": "convert", "flatbuffers": "convert", "torch": "benchmark",
    "wandb": "wandb", "fsspec": "stores", "s3fs": "stores", "gcsfs": "stores", "libtpu": "accelerators",
}  # fmt: skip
ROOT = Path(__file__).parents[2]  # the folder that the package lies in


def install(module: str) -> str:
    """The command that installs the module's extra.

    A clone has files of requirements with exact versions. Where pip installed the package, it knows the extra.
    """
    extra = EXTRAS[module]
    if not (ROOT / "requirements.txt").exists():
        return f'pip install "alexnet_jax[{extra}]"'
    own = f"requirements-{extra}.txt"
    return f"pip install -r {own if (ROOT / own).exists() else 'requirements.txt'}"


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Raises UserError, with the command that installs it, where a module of an extra is imported and is not there."""
    try:
        yield
    except ImportError as error:
        module = _missing(error) or _missing(error.__cause__)  # Optuna raises one of its own
        if module not in EXTRAS:
            raise
        raise UserError(f"this needs {module}, which is not installed: {install(module)}") from error


def _missing(error: BaseException | None) -> str:
    return (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""

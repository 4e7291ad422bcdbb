"""The flag files and spaces of experiments/, which the package brings along as alexnet_jax/examples."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"
SUFFIXES = (".cfg", ".toml")


def found(name: str) -> str:
    """The path of a file that is on disk under this name, or else of the example of that name; or the name itself.

    'quickstart.cfg' and 'experiments/quickstart.cfg' are one example.
    """
    path = Path(name)
    example = FOLDER / (path.relative_to("experiments") if path.is_relative_to("experiments") else path)
    inside = not path.is_absolute() and ".." not in path.parts and path.suffix in SUFFIXES
    return str(example) if inside and not os.path.lexists(name) and example.is_file() else name


def names(suffix: str) -> list[str]:
    """The examples with one of `SUFFIXES` that stand at the top or among the sweeps."""
    folders = (FOLDER, FOLDER / "sweeps")
    return [str(path.relative_to(FOLDER)) for folder in folders for path in sorted(folder.glob(f"*{suffix}"))]

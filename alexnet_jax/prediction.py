"""What `predict` does: reads images, prints the five likeliest classes of each, and keeps features of them."""

import codecs
import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import flags
from jaxtyping import Float32
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import Progress

from alexnet_jax.config import parsed
from alexnet_jax.data.decode import quiet_pillow, square_rgb
from alexnet_jax.data.parallel import ordered_map
from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.inference.analysis import Guessed
from alexnet_jax.inference.images import Square
from alexnet_jax.inference.predictor import Classification, Features, Trained, load_trained, top_classes
from alexnet_jax.predict import DRAWN
from alexnet_jax.system import runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output, output_file


def image_paths(words: Sequence[str], listed: str) -> list[Path]:
    """The images that a command line names: files, all files below folders by name, then the paths of a list.

    Hidden files and folders in folders are left out. `listed`: a file with one path a line, '-' for stdin, or ''. Raises
    UserError if it cannot be read or is no such list, or if there are no images.
    """
    paths: list[Path] = []
    for path in map(Path, [*words, *(_lines(listed) if listed else ())]):
        paths += _below(path) if os.path.isdir(path) else [path]
    if not paths:
        raise UserError(
            "there are no images: add files or folders to the command line, or name a list of them with --list=FILE"
        )
    return paths


def _below(folder: Path) -> list[Path]:
    """All but folders below a folder, sorted. A link to a folder is among them: it is not followed, and gets an error."""
    visible = (path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted(path for path in visible if path.is_symlink() or not path.is_dir())


def _lines(listed: str) -> list[str]:
    """The paths of a list. They are bytes, as the names of files are, and may be in any encoding without a zero byte."""
    try:
        if listed != "-" and os.path.exists(listed) and not os.path.isfile(listed):
            raise UserError(f"--list={listed} is no regular file: pipe a list into --list=-")
        content = sys.stdin.buffer.read() if listed == "-" else Path(listed).read_bytes()
    except OSError as error:
        raise UserError(f"--list={listed} cannot be read: {error}") from error
    if b"\0" in content:
        raise UserError(f"--list={listed} is no list of paths: write one path a line, as text in UTF-8")
    return [os.fsdecode(line) for line in content.removeprefix(codecs.BOM_UTF8).splitlines() if line.strip()]


def read_images(paths: Iterable[Path], size: int, resize: str) -> Generator[tuple[Path, Square], None, None]:
    """Every image that can be decoded, in order, a few ahead; `resize` as for `square_rgb`. Prints the others on stderr.

    Close the generator to stop early.
    """

    def decode(path: Path) -> tuple[Path, Square | str]:
        try:
            return path, square_rgb(path, size, resize)
        except ValueError as error:
            return path, str(error)

    with quiet_pillow(), contextlib.closing(ordered_map(decode, paths)) as decoded:
        for path, image in decoded:
            if isinstance(image, str):
                print(f"error: {path}: {image}", file=sys.stderr)
            else:
                yield path, image


class FeatureFile:
    """Collects a layer's activations in a temporary file, so that memory does not grow with them."""

    def __init__(self, features: Features, rows: IO[bytes]):
        self._features, self._rows = features, rows
        self._names, self._shape = list[str](), tuple[int, ...]()

    def add(self, names: Sequence[str], images: ArrayLike) -> None:
        """Appends the activations of any number of images. Raises as `Features`, and ValueError if not each has a name."""
        if len(shape := np.shape(images)) != 4 or len(names) != shape[0]:
            raise ValueError(f"expected several images, each with a name; found the shape {shape} and {len(names)} names")
        rows = self._features(images)
        self._names += names
        self._shape = rows.shape[1:]
        self._rows.write(np.ascontiguousarray(rows).tobytes())

    def write(self, path: Path) -> None:
        """Writes an .npz: `features`, float32 (images, ...), and `images`, their names, in order."""
        self._rows.flush()
        shape = (len(self._names), *self._shape)
        rows = np.memmap(self._rows, np.float32, "r", shape=shape) if self._names else np.empty(shape, np.float32)
        with output_file(path, "wb") as file:
            np.savez(file, features=rows, images=np.array(self._names))


def predict(
    trained: Trained, images: Iterable[tuple[Path, Square]], features: FeatureFile | None = None
) -> Iterator[tuple[Path, Square, Float32[np.ndarray, "classes"]]]:
    """Every image with its class probabilities, in order. `features` collects a layer's activations."""
    classify = Classification(trained)
    source = iter(images)
    while batch := list(itertools.islice(source, trained.config.batch_size)):
        pixels = np.stack([image for _, image in batch])
        if features is not None:
            features.add([str(path) for path, _ in batch], pixels)
        for (path, image), probabilities in zip(batch, classify(pixels), strict=True):
            yield path, image, probabilities


def _print(path: Path, top5: list[dict[str, Any]], form: str) -> None:
    if form == "jsonl":
        print(json.dumps({"image": str(path), "top5": top5}), flush=True)
        return
    print(path)
    for row in top5:
        print(f"  {100 * row['probability']:5.1f} %  {row['class']}")
    sys.stdout.flush()


def _outputs(options: flags.FlagValues) -> tuple[str, Path | None, Path | None]:
    """The layer of --features, its file, and the figure's. Raises UserError if one cannot be written."""
    layer, colon, file = (options.features or "").partition(":")
    if options.features and not (layer and (file or not colon)):
        raise UserError(f"--features={options.features} is not LAYER:FILE.npz, such as fc7:features.npz")
    features, figure = Path(file or f"{layer}.npz") if layer else None, Path(options.figure) if options.figure else None
    if features:
        check_output(f"--features={options.features}", features, (".npz",))
    if figure:
        check_output(f"--figure={figure}", figure, FIGURE_SUFFIXES)
    if features and figure and os.path.realpath(features) == os.path.realpath(figure):
        raise UserError(f"--features={options.features} and --figure={figure} are one file: name two")
    return layer, features, figure


def _draw(shown: Sequence[Guessed], title: str, path: Path) -> None:
    import matplotlib  # here, because it takes half a second, and few calls draw

    from alexnet_jax.figures.examples import draw_predictions
    from alexnet_jax.figures.style import write_figure

    matplotlib.use("agg")
    write_figure(draw_predictions(shown, title), path)


def main(options: flags.FlagValues, words: list[str]) -> None:
    """The command line."""
    layer, features_path, figure = _outputs(options)
    paths = image_paths(words, options.list)
    if figure and os.path.realpath(figure) in map(os.path.realpath, paths):
        raise UserError(f"--figure={figure} is one of the images, and would replace it: name another file")
    runtime.start(**parsed(options, ("host_devices",)))
    trained = load_trained(options.workdir or "", options.step, batch_size=options.batch_size, **parsed(options, ("mesh",)))
    quiet = not sys.stderr.isatty() or sys.stdout.isatty()  # printed rows show the progress
    shown: list[Guessed] = []
    failures = len(paths)
    size, resize = trained.config.image_size, trained.config.resize
    with (
        tempfile.TemporaryFile(dir=features_path.parent) if features_path else contextlib.nullcontext() as rows,
        # Rich would print rows for a redirected stdout on the terminal.
        Progress(console=Console(stderr=True), disable=quiet, redirect_stdout=False) as bar,
        contextlib.closing(read_images(bar.track(paths, description="looking"), size, resize)) as images,
    ):
        features = FeatureFile(Features(trained, layer), rows) if rows else None
        for path, image, probabilities in predict(trained, images, features):
            failures -= 1
            top5 = top_classes(probabilities, trained.classes)
            _print(path, top5, options.format)
            if figure is not None and len(shown) < DRAWN:
                shown.append((os.fsencode(path.name).decode("utf-8", "replace"), image, top5, ""))
        if features and features_path:
            features.write(features_path)
    if figure is not None and shown:
        _draw(shown, trained.title, figure)
    if failures:
        raise UserError(f"{failures} of {len(paths)} images could not be read; they are named above")

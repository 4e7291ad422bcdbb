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
from typing import IO, Any, NamedTuple

import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32
from rich.console import Console
from rich.progress import Progress

from alexnet_jax.config import parsed
from alexnet_jax.data.decode import quiet_pillow, square_rgb
from alexnet_jax.data.parallel import ordered_map
from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.inference.analysis import Guessed
from alexnet_jax.inference.images import Square
from alexnet_jax.inference.predictor import Classification, Features, Trained, load_trained, top_classes
from alexnet_jax.mesh import TowerMesh
from alexnet_jax.predict import DRAWN
from alexnet_jax.system import processes, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output, output_file

WHY_BYTES = 400  # of the reason why an image cannot be read


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


class Batch(NamedTuple):
    """As many paths as a batch has rows, fewer in the last one."""

    paths: Sequence[Path]
    readable: list[int]  # rows with an image; the others are black
    images: Any  # uint8 (batch, size, size, 3) on the devices, sharded P('data')

    def named(self) -> list[str]:
        """The paths of the readable images."""
        return [str(self.paths[row]) for row in self.readable]


def read_batches(
    paths: Sequence[Path], mesh: TowerMesh, batch_size: int, size: int, resize: str
) -> Generator[Batch, None, None]:
    """All images in order, a few ahead; `resize` as for `square_rgb`. Each process decodes the rows of its own devices.

    The first process prints on stderr which images cannot be read. Close the generator to stop early.
    """
    first, end = mesh.rows_here(batch_size)
    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]

    def decode(path: Path) -> tuple[Path, Square | str]:
        try:
            return path, square_rgb(path, size, resize)
        except ValueError as error:
            return path, str(error)

    mine = itertools.chain.from_iterable(chunk[first:end] for chunk in chunks)
    with quiet_pillow(), contextlib.closing(ordered_map(decode, mine)) as decoded:
        for chunk in chunks:
            images, why = np.zeros((end - first, size, size, 3), np.uint8), np.zeros((end - first, WHY_BYTES), np.uint8)
            for row, (_, image) in enumerate(itertools.islice(decoded, len(chunk[first:end]))):
                if isinstance(image, str):
                    said = image.encode("utf-8", "replace")[:WHY_BYTES]
                    why[row, : len(said)] = np.frombuffer(said, np.uint8)
                else:
                    images[row] = image
            batch, everywhere = mesh.put_rows((images, why), first, batch_size)
            reasons = [row.tobytes().rstrip(b"\0").decode("utf-8", "ignore") for row in mesh.fetch(everywhere, P("data"))]
            for path, reason in zip(chunk, reasons, strict=False):
                if reason and processes.is_first():
                    print(f"error: {path}: {reason}", file=sys.stderr)
            yield Batch(chunk, [row for row in range(len(chunk)) if not reasons[row]], batch)


class FeatureFile:
    """Collects a layer's activations in a temporary file, so that memory does not grow with them."""

    def __init__(self, rows: IO[bytes]):
        self._rows = rows
        self._names, self._shape = list[str](), tuple[int, ...]()

    def add(self, names: Sequence[str], rows: Float32[np.ndarray, "images ..."]) -> None:
        """Appends the activations of any number of images. Raises ValueError if not each has a name."""
        if len(names) != len(rows):
            raise ValueError(f"expected several images, each with a name; found {len(rows)} and {len(names)} names")
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
    trained: Trained, batches: Iterable[Batch], features: Features | None = None, file: FeatureFile | None = None
) -> Iterator[tuple[Batch, Float32[np.ndarray, "readable classes"]]]:
    """Every batch with the class probabilities of its readable images. `file` collects the features; one process has it."""
    classify = Classification(trained)
    for batch in batches:
        if features is not None:
            found = features.of_batch(batch.images, batch.readable)
            if file is not None:
                file.add(batch.named(), found)
        yield batch, classify.of_batch(batch.images, batch.readable)


def _print(path: Path, top5: list[dict[str, Any]], form: str) -> None:
    if form == "jsonl":
        print(json.dumps({"image": str(path), "top5": top5}), flush=True)
        return
    print(path)
    for row in top5:
        print(f"  {100 * row['probability']:5.1f} %  {row['class']}")
    sys.stdout.flush()


def _outputs(options: flags.FlagValues, paths: Sequence[Path]) -> tuple[str, Path | None, Path | None]:
    """The layer of --features, its file, and the figure's. Raises UserError if one cannot be written, or is an image."""
    layer, colon, file = (options.features or "").partition(":")
    if options.features and not (layer and (file or not colon)):
        raise UserError(f"--features={options.features} is not LAYER:FILE.npz, such as fc7:features.npz")
    features, figure = Path(file or f"{layer}.npz") if layer else None, Path(options.figure) if options.figure else None
    if features and processes.is_first():  # it writes them
        check_output(f"--features={options.features}", features, (".npz",))
    if figure and processes.is_first():
        check_output(f"--figure={figure}", figure, FIGURE_SUFFIXES)
    if features and figure and os.path.realpath(features) == os.path.realpath(figure):
        raise UserError(f"--features={options.features} and --figure={figure} are one file: name two")
    if figure and os.path.realpath(figure) in map(os.path.realpath, paths):
        raise UserError(f"--figure={figure} is one of the images, and would replace it: name another file")
    return layer, features, figure


def _draw(shown: Sequence[Guessed], title: str, path: Path) -> None:
    import matplotlib  # here, because it takes half a second, and few calls draw

    from alexnet_jax.figures.examples import draw_predictions
    from alexnet_jax.figures.style import write_figure

    matplotlib.use("agg")
    write_figure(draw_predictions(shown, title), path)


def main(options: flags.FlagValues, words: list[str]) -> None:
    """The command line. Of several processes the first one prints and writes: what one writes, as in `evaluation.main`."""
    if options.distributed and options.list == "-":
        raise UserError("--list=- cannot be read by several processes (--distributed): write the list to a file")
    runtime.start(**parsed(options, ("host_devices", "distributed")))
    with processes.together():
        paths = image_paths(words, options.list)
        layer, features_path, figure = _outputs(options, paths)
    processes.check_alike(b"\0".join(map(os.fsencode, paths)), "the paths of images")
    mesh = parsed(options, ("mesh",))
    trained = load_trained(
        options.workdir or "", options.step, weights=options.weights, batch_size=options.batch_size, **mesh
    )
    features, config, first = Features(trained, layer) if layer else None, trained.config, processes.is_first()
    quiet = not first or not sys.stderr.isatty() or sys.stdout.isatty()  # printed rows show the progress
    failures, shown = 0, list[Guessed]()
    with (
        tempfile.TemporaryFile(dir=features_path.parent) if features_path and first else contextlib.nullcontext() as rows,
        # Rich would print rows for a redirected stdout on the terminal.
        Progress(console=Console(stderr=True), disable=quiet, redirect_stdout=False) as bar,
        contextlib.closing(
            read_batches(paths, trained.setup.mesh, config.batch_size, config.image_size, config.resize)
        ) as batches,
    ):
        file, looking = FeatureFile(rows) if rows else None, bar.add_task("looking", total=len(paths))
        for batch, probabilities in predict(trained, batches, features, file):
            failures += len(batch.paths) - len(batch.readable)
            found = [top_classes(row, trained.classes) for row in probabilities]
            if figure is not None and len(shown) < DRAWN:
                shown += _with_images(trained.setup.mesh, batch, found)
            if first:
                for row, top5 in zip(batch.readable, found, strict=True):
                    _print(batch.paths[row], top5, options.format)
            bar.advance(looking, len(batch.paths))
        with processes.together():
            if file and features_path:
                file.write(features_path)
    with processes.together():
        if figure is not None and shown and first:
            _draw(shown[:DRAWN], trained.title, figure)
        if failures:
            raise UserError(f"{failures} of {len(paths)} images could not be read; they are named above")


def _with_images(mesh: TowerMesh, batch: Batch, found: Sequence[list[dict[str, Any]]]) -> list[Guessed]:
    """The readable images of a batch, as they are drawn. All processes have to ask, and get all."""
    images: Sequence[Square] = mesh.fetch(batch.images, P("data"))
    names = [os.fsencode(batch.paths[row].name).decode("utf-8", "replace") for row in batch.readable]
    return [(name, images[row], top5, "") for name, row, top5 in zip(names, batch.readable, found, strict=True)]

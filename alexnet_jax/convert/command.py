"""What `convert` does: imports weights with their preprocessing, and exports trained networks."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax.convert import EXPORTS, SOURCES
from alexnet_jax.convert.exporter import export
from alexnet_jax.convert.importer import check_new, import_weights, write_run
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.run.workdir import IMPORTED
from alexnet_jax.system import runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input, check_output


def _check_words(words: Sequence[str], form: str | None) -> tuple[str, Path]:
    if form:
        if len(words) != 1:
            raise UserError(f"--export={form} needs one file to write: python -m alexnet_jax.convert FILE --workdir=W ...")
        return "", check_output(words[0], Path(words[0]), EXPORTS[form])
    if len(words) != 2 or words[0] not in SOURCES:
        raise UserError(f"name a format to import ({', '.join(SOURCES)}) and its file, or a file to write and --export")
    check_input(words[1], Path(words[1]))
    return words[0], Path(words[1])


def _check_unused(options: flags.FlagValues, source: str) -> None:
    """Raises UserError on a flag that would be ignored: a network of our own has its mean and classes, an import no step."""
    own = source in ("", "safetensors")
    for name in (*(("mean", "classes") if own else ()), *(("step", "weights") if source else ())):
        if options[name].present:
            what = f"convert {source}" if source else f"--export={options.export}"
            raise UserError(f"--{name}={options[name].value} has no use with {what}: leave it out")


def main(options: flags.FlagValues, words: list[str]) -> None:
    """The command line."""
    source, path = _check_words(words, options.export)
    if not options.workdir:
        raise UserError("--workdir is missing: name the folder of a run")
    _check_unused(options, source)
    runtime.start()
    if options.export:
        trained = load_trained(options.workdir, options.step, weights=options.weights)
        export(trained, options.export, path)
        print(f"{path}: {trained.title}, {path.stat().st_size:,} bytes")
        return
    check_new(options.workdir)
    imported = import_weights(options, source, path)
    write_run(imported, options.workdir, IMPORTED + path.name)
    config = imported.config
    print(
        f"{options.workdir}: {config.architecture}, {len(imported.classes)} classes, images of {config.image_size} px "
        f"({config.resize}), crops of {config.crop} px"
    )

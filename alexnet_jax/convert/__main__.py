"""Imports weights with their preprocessing, and exports trained networks. Every conversion is exact.

python -m alexnet_jax.convert caffe or torchvision or safetensors FILE --workdir=W [--dataset=D] [--classes=F] [--mean=M]
python -m alexnet_jax.convert FILE --workdir=W --export=safetensors or torchvision or caffe or stablehlo
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.convert.exporter import EXPORTS, export
from alexnet_jax.convert.importer import SOURCES, check_new, import_weights, write_run
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.run.flags import define_step
from alexnet_jax.run.workdir import IMPORTED
from alexnet_jax.system import cli, runtime
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
    for name in (*(("mean", "classes") if own else ()), *(("step",) if source else ())):
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
        trained = load_trained(options.workdir, options.step)
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


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "folder of a run; a new one when weights are imported", flag_values=options)
    define_step(options)
    flags.DEFINE_enum("export", None, EXPORTS, "write the network in this format", flag_values=options)
    help = "what was subtracted: R,G,B, a .binaryproto or a .npy; default: the source's ImageNet mean"
    flags.DEFINE_string("mean", "", help, flag_values=options)
    flags.DEFINE_string("classes", "", "file with one class name a line", flag_values=options)
    define_config_flags(options, only=("architecture", "dataset", "data_dir", "image_size", "crop_size", "resize"))


COMMAND = cli.Command(__doc__, define_flags, main, takes_words=True)

if __name__ == "__main__":
    COMMAND.run()

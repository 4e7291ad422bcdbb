"""One frozen dataclass, one absl flag per field. Entry points read the flags; everything else takes the dataclass."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from alexnet_jax import cli
from alexnet_jax.architectures import ARCHITECTURES, Architecture, with_overrides
from alexnet_jax.errors import UserError
from alexnet_jax.mesh import Spmd

SCHEDULES = ("plateau", "steps", "staged", "constant")


def _field(
    default: Any, help: str, *, choices: Sequence[str] = (), alters_run: bool = True, minimum: float | None = None
) -> Any:
    """`alters_run`: whether a run that is resumed must keep the value."""
    metadata = {"help": help, "choices": tuple(choices), "alters_run": alters_run, "minimum": minimum}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a training run. The defaults are the paper's, as `alexnet_jax.architectures` says.

    Three fields stay open until the data is known: `crop_size`, `eval_every` and `checkpoint_every` of 0.
    """

    workdir: str = _field("", "folder of the run; the same command resumes it", alters_run=False)
    # Network
    architecture: str = _field("paper", "layer table", choices=tuple(ARCHITECTURES))
    bias_init: float | None = _field(None, "initial bias in place of the table's nonzero ones (paper: 1; Caffe: 0.1)")
    dropout: float | None = _field(None, "dropout rate in place of the table's (Section 4.2: 0.5)")
    precision: str = _field(
        "float32",
        "of activations and products; parameters stay float32, so that a run may change it when it is resumed",
        choices=("float32", "bfloat16"),
        alters_run=False,
    )
    init: str = _field("", "folder of a run whose last parameters this one starts from; a head of other size begins anew")
    init_layers: tuple[str, ...] = _field((), "layers taken over from --init, comma-separated; default: all that fit")
    # Data
    dataset: str = _field("groceries", "'groceries' (embedded photographs), 'synthetic', 'folder:PATH', or a TFDS name")
    data_dir: str = _field("data", "folder of the prepared sets", alters_run=False)
    image_size: int = _field(256, "side in pixels of the prepared images (Section 2: 256)", minimum=1)
    resize: str = _field(
        "centre", "how they were prepared: the centre square (Section 2), or warped (Caffe)", choices=("centre", "warp")
    )
    crop_size: int = _field(0, "side in pixels of the random crops; 0: the table's own, 224 or 227", minimum=0)
    mean: str = _field(
        "image",
        "subtract the mean image (Section 2), the channel mean, or what imported weights or --init were trained with "
        "('own', the default with --init)",
        choices=("image", "channel", "own"),
    )
    mirror: bool = _field(True, "mirror half of the training images (Section 4.1)")
    colour_noise: str = _field("2012", "colour noise of Section 4.1, as the 2012 source or the paper's text has it",
                               choices=("2012", "paper", "none"))  # fmt: skip
    colour_noise_epochs: float = _field(65.0, "epochs with colour noise (2012: all but the last 25)", minimum=0)
    fold: str = _field("", "I/K: hold out fold I of K of train and validation together as the validation split")
    # Optimisation
    batch_size: int = _field(128, "examples per step over all devices (Section 5: 128)", minimum=1)
    accumulate: int = _field(1, "micro-batches that a step is computed in, to save memory", minimum=1)
    epochs: float = _field(90.0, "passes over the training images (Section 5: about 90)", alters_run=False, minimum=0)
    steps: int = _field(0, "optimiser steps in all; overrides --epochs", alters_run=False, minimum=0)
    learning_rate: float = _field(0.01, "initial learning rate of the weights (Section 5: 0.01)", minimum=0)
    momentum: float = _field(0.9, "momentum (Section 5: 0.9)", minimum=0)
    rate_in_velocity: bool = _field(True, "the rate is inside the velocity (Section 5), not outside as in later libraries")
    weight_decay: float = _field(5e-4, "weight decay (Section 5: 0.0005)", minimum=0)
    bias_rate: float = _field(2.0, "learning rate of biases as a multiple of the weights' (2012 source: 2)", minimum=0)
    bias_decay: bool = _field(False, "decay biases too (the paper's text; the 2012 source does not)")
    layer_rates: tuple[str, ...] = _field(
        (), "LAYER:FACTOR or LAYER:FACTOR@EPOCH, comma-separated: a layer's rate as a multiple, from that epoch on"
    )
    freeze: tuple[str, ...] = _field((), "layers that keep their initial parameters, comma-separated")
    schedule: str = _field("plateau", "how the rate falls: on a validation plateau (Section 5), at --drop_epochs, in four "
                           "equal stages (2012 lab notes), or never", choices=SCHEDULES)  # fmt: skip
    drop_factor: float = _field(10.0, "the rate is divided by this at a plateau or a drop epoch (Section 5: 10)", minimum=1)
    max_drops: int = _field(3, "drops of the plateau schedule (Section 5: three)", minimum=0)
    patience: int = _field(5, "validations without a new best that make a plateau", minimum=1)
    drop_epochs: tuple[str, ...] = _field(("25", "51", "79"), "epochs of --schedule=steps (2012 network: 25, 51, 79)")
    seed: int = _field(0, "of the parameters, the order of images, crops and dropout", minimum=0)
    # Machine
    mesh: str = _field("auto", "DATAxTOWER devices, such as 4x2, or auto", alters_run=False)
    data_on_device: str = _field(
        "auto",
        "keep the images in device memory; auto: where they fit",
        choices=("auto", "yes", "no"),
        alters_run=False,
    )
    distributed: bool = _field(False, "one of several processes that train together, started alike", alters_run=False)
    host_devices: int = _field(0, "force this many CPU devices; 0: the machine's", alters_run=False, minimum=0)
    spmd: Spmd = _field("shard_map", "how the per-device step is run", choices=("shard_map", "pmap"), alters_run=False)
    # Records (in steps)
    log_every: int = _field(50, "steps between rows of training metrics", alters_run=False, minimum=1)
    log_examples: bool = _field(False, "note the examples of each step in examples.jsonl", alters_run=False)
    eval_every: int = _field(0, "steps between validations; 0: after every epoch", alters_run=False, minimum=0)
    checkpoint_every: int = _field(0, "steps between checkpoints; 0: at every validation", alters_run=False, minimum=0)
    keep: int = _field(2, "latest checkpoints kept, next to the best validated one", alters_run=False, minimum=1)

    def table(self) -> Architecture:
        """The layer table with the overrides applied. Raises UserError on an impossible override."""
        return with_overrides(ARCHITECTURES[self.architecture], bias=self.bias_init, dropout=self.dropout)

    @property
    def crop(self) -> int:
        """Side of the network's input in pixels."""
        return self.crop_size or ARCHITECTURES[self.architecture].crop_size


def check(config: Config) -> None:
    """Raises UserError, naming the flag, on a value that no run can have."""
    for field in dataclasses.fields(Config):
        value, minimum, choices = getattr(config, field.name), field.metadata["minimum"], field.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"--{field.name}={value} is not one of {', '.join(choices)}")
        if minimum is not None and not value >= minimum:
            raise UserError(f"--{field.name}={value} is less than {minimum:g}")
    if config.crop > config.image_size:
        raise UserError(
            f"--crop_size={config.crop} is larger than --image_size={config.image_size}: crop less or prepare larger images"
        )
    if config.batch_size % config.accumulate:
        raise UserError(f"--batch_size={config.batch_size} does not divide into {config.accumulate} parts (--accumulate)")
    if not config.steps and not config.epochs:
        raise UserError("--epochs=0 and --steps=0 leave nothing to do: set one of them")
    layers = [layer.name for layer in config.table().layers]
    parse_layer_rates(config.layer_rates, layers)
    _check_layer_names(config, layers)
    parse_drop_epochs(config.drop_epochs)
    parse_fold(config.fold)


def _check_layer_names(config: Config, layers: Sequence[str]) -> None:
    for flag, names in (("freeze", config.freeze), ("init_layers", config.init_layers)):
        for name in names:
            if name not in layers:
                known = f"--architecture={config.architecture} has {', '.join(layers)}"
                raise UserError(f"--{flag}={name}: no such layer; {known}")
    if config.init_layers and not config.init:
        raise UserError("--init_layers needs --init, the folder of the run that they are taken from")


def parse_layer_rates(rates: Sequence[str], layers: Sequence[str]) -> tuple[tuple[str, float, float], ...]:
    """'conv1:0.1@20' as ('conv1', 0.1, 20.0): layer, factor, first epoch. Raises UserError naming the entry."""
    parsed = []
    for entry in rates:
        name, _, rest = entry.partition(":")
        factor, _, epoch = rest.partition("@")
        if name not in layers:
            raise UserError(f"--layer_rates={entry}: no layer {name!r}; there are {', '.join(layers)}")
        try:
            parsed.append((name, float(factor), float(epoch or 0)))
        except ValueError:
            raise UserError(f"--layer_rates={entry} is not LAYER:FACTOR or LAYER:FACTOR@EPOCH") from None
    return tuple(parsed)


def parse_drop_epochs(epochs: Sequence[str]) -> tuple[float, ...]:
    """Epoch numbers. Raises UserError naming one that is not a number."""
    try:
        return tuple(float(epoch) for epoch in epochs)
    except ValueError:
        raise UserError(f"--drop_epochs={','.join(epochs)} is not a list of numbers") from None


def parse_fold(fold: str) -> tuple[int, int] | None:
    """'0/5' as (0, 5); '' as None. Raises UserError on anything else."""
    if not fold:
        return None
    index, _, count = fold.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count) and int(count) >= 2):
        raise UserError(f"--fold={fold} is not I/K with 0 <= I < K, such as 0/5")
    return int(index), int(count)


def define_flags(options: flags.FlagValues, only: Sequence[str] | None = None) -> None:
    """One absl flag per field of `Config`, or for those in `only`."""
    for field in dataclasses.fields(Config):
        if only is not None and field.name not in only:
            continue
        default: Any = field.default
        help, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, default, choices, help, options)
        elif field.type is bool:
            flags.DEFINE_boolean(field.name, default, help, options)
        elif field.type is int:
            flags.DEFINE_integer(field.name, default, help, flag_values=options)
        elif field.type in (float, float | None):
            flags.DEFINE_float(field.name, default, help, flag_values=options)
        elif field.type == tuple[str, ...]:
            flags.DEFINE_list(field.name, list(default), help, options)
        else:
            flags.DEFINE_string(field.name, default, help, options)


def from_flags(options: flags.FlagValues) -> Config:
    """The Config of the parsed flags. Raises UserError on a value that no run can have."""
    return from_dict({field.name: options[field.name].value for field in dataclasses.fields(Config)})


def from_words(words: Sequence[str]) -> Config:
    """The Config of a command line. Raises UserError on a word or a value that no run can have."""
    options = flags.FlagValues()
    define_flags(options)
    if rest := cli.parse(options, words):
        raise UserError(f"{rest[0]!r} is not a flag: flags are written --name=value")
    return from_flags(options)


def from_dict(values: Mapping[str, Any]) -> Config:
    """A checked Config from flag values or from config.json; a field that is missing there gets its default.

    Raises:
        UserError: an unknown field or a value that no run can have.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"config has unknown fields {', '.join(unknown)}: it was written by another version")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    config = Config(**fields)
    check(config)
    return config


def changed_flags(old: Config, new: Config) -> list[str]:
    """What keeps `new` from resuming the run of `old`: one text per flag that alters the run, with both values."""
    alters = {field.name for field in dataclasses.fields(Config) if field.metadata["alters_run"]}
    if "staged" in (old.schedule, new.schedule):
        alters |= {"epochs", "steps"}  # the stages are quarters of the whole
    if "plateau" in (old.schedule, new.schedule):
        alters.add("eval_every")  # patience counts validations
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in sorted(alters))
    return [f"--{name} was {before} and is now {after}" for name, before, after in pairs if before != after]

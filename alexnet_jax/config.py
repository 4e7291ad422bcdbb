"""One frozen dataclass, one absl flag per field. Entry points read the flags; everything else takes the dataclass."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from alexnet_jax.ablations import ABLATIONS
from alexnet_jax.architectures import ARCHITECTURES, OLD_ARCHITECTURES, Architecture, with_overrides
from alexnet_jax.fields import check_field, define_flag, from_text, setting, to_text
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.help import Group
from alexnet_jax.values import RESIZES, Fold, LayerDecay, LayerRate, MeshShape, Spmd, StepRange, number_text, parse_epochs

SCHEDULES = ("plateau", "steps", "staged", "polynomial", "constant")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a training run. The defaults are the paper's, as `alexnet_jax.architectures` says."""

    # Run
    workdir: str = setting("", "`folder` of the run, also at s3:// or gs://; the same command resumes it",
                           fixed_on_resume=False)  # fmt: skip
    start_over: bool = setting(
        False,
        "begin at step 0 if no checkpoint of the run can be read; what it has is kept in damaged/",
        fixed_on_resume=False,
    )
    seed: int = setting(0, "seed of the parameters, the order of images, crops and dropout", minimum=0, maximum=2**32 - 1)
    # Network
    architecture: str = setting("paper", "layer table", choices=tuple(ARCHITECTURES), old_values=OLD_ARCHITECTURES)
    ablate: tuple[str, ...] = setting((), f"`ideas` taken out of the table, comma-separated: {', '.join(ABLATIONS)}")
    bias_init: float | None = setting(None, "initial `bias` in place of the table's nonzero ones (paper: 1; Caffe: 0.1)")
    dropout: float | None = setting(None, "dropout `rate` in place of the table's (Section 4.2: 0.5)")
    precision: str = setting(
        "float32",
        "precision of activations and products, on every platform: float32 is never rounded to bfloat16 or TF32; parameters "
        "stay float32, so that a run may change it when it is resumed",
        choices=("float32", "bfloat16"),
        fixed_on_resume=False,
    )
    crosstalk_precision: str = setting(
        "same",
        "precision of what the towers send each other before conv3, fc6 and fc7, and of its gradients: the same as "
        "--precision, or bfloat16, half the bytes of float32 (2012 lab notes: errors of 40.52 and 18.42 % against 40.53 and "
        "18.05 %)",
        choices=("same", "bfloat16"),
        fixed_on_resume=False,
    )
    fuse_norm_pool: bool = setting(
        False, "on a TPU, ReLU, response normalisation and max-pooling as one Pallas kernel where 128 divides the images of "
        "a device; compiled for TPUs, not yet run on one", fixed_on_resume=False,
    )  # fmt: skip
    init: str = setting("", "`folder` of a run, also at s3:// or gs://, whose last parameters this one starts from; layers "
                        "of another shape are re-initialised")  # fmt: skip
    init_layers: tuple[str, ...] = setting((), "`layers` taken over from --init, comma-separated; default: all that fit")
    init_velocity: bool = setting(
        False, "take over the velocity of --init too, so that this run goes on where that one ended"
    )
    # Data
    dataset: str = setting(
        "groceries",
        "`name` of the set: groceries (embedded photographs), synthetic (noise), folder:PATH, parquet:GLOB, tar:GLOB, or a "
        "name in TFDS",
    )
    data_dir: str = setting("data", "`folder` of the prepared sets, also at s3:// or gs://", fixed_on_resume=False)
    image_size: int = setting(256, "side in `pixels` of the prepared images (Section 2: 256)", minimum=1)
    resize: str = setting(
        "centre", "how they were prepared: the centre square (Section 2), or warped (Caffe)", choices=RESIZES
    )
    crop_size: int | None = setting(
        None, "side in `pixels` of the random crops; 0: the table's own, 224 or 227", minimum=1, absent=0
    )
    mean: str = setting(
        "auto",
        "subtract the mean image (Section 2), the channel mean, or what imported weights or --init were trained with "
        "('own'); auto: 'own' with --init, else 'image'",
        choices=("auto", "image", "channel", "own"),
    )
    flip: bool = setting(
        True, "flip half of the training images left to right (Section 4.1: horizontal reflections)", old_name="mirror"
    )
    colour_noise: str = setting("2012", "colour noise of Section 4.1, as the 2012 source or the paper's text has it",
                               choices=("2012", "paper", "none"))  # fmt: skip
    colour_noise_epochs: float = setting(65.0, "`epochs` with colour noise (2012: all but the last 25)", minimum=0)
    fold: Fold | None = setting(
        None, "`I/K` holds out fold I of K of train and validation together as the validation split",
        parse=Fold.parse, absent="",
    )  # fmt: skip
    # Optimiser
    batch_size: int = setting(128, "`examples` per step over all devices (Section 5: 128)", minimum=1)
    accumulate: int = setting(1, "micro-batches that a step is computed in, to save memory", minimum=1)
    learning_rate: float = setting(0.01, "initial learning `rate` of the weights (Section 5: 0.01)", minimum=0)
    base_batch_size: int | None = setting(None, "`examples` that --learning_rate is for; it is multiplied by --batch_size / "
        "this (linear scaling, Goyal et al. 2017, arXiv 1706.02677); 0: --batch_size", minimum=1, absent=0)  # fmt: skip
    momentum: float = setting(0.9, "momentum (Section 5: 0.9)", minimum=0, maximum=1)
    rate_in_velocity: bool = setting(True, "the rate is inside the velocity (Section 5), not outside as in later libraries")
    weight_decay: float | None = setting(
        None, "weight `decay` of every layer in place of the table's (Section 5: 0.0005)", minimum=0
    )
    layer_decays: tuple[LayerDecay, ...] = setting(
        (), "`LAYER:DECAY`, comma-separated: weight decays of single layers in place of the table's or of --weight_decay",
        parse=LayerDecay.parse,
    )  # fmt: skip
    bias_rate: float = setting(2.0, "learning rate of biases as a `multiple` of the weights' (2012 source: 2)", minimum=0)
    bias_decay: bool = setting(False, "decay biases too (the paper's text; the 2012 source does not)")
    layer_rates: tuple[LayerRate, ...] = setting(
        (), "`LAYER:FACTOR` or LAYER:FACTOR@EPOCH, comma-separated: a layer's rate as a multiple, from that epoch on",
        parse=LayerRate.parse,
    )  # fmt: skip
    freeze: tuple[str, ...] = setting((), "`layers` that keep their initial parameters, comma-separated")
    lars: float = setting(0.0, "trust `coefficient` of LARS, layer-wise rates for large batches (You et al. 2017, arXiv "
                          "1708.03888: 0.001); rates are about its inverse times larger; 0: without", minimum=0)  # fmt: skip
    ema: float = setting(0.0, "`decay` of an average of the weights, such as 0.9999; validations judge it too (Kingma and "
                         "Ba 2015, arXiv 1412.6980, Section 7.2); 0: none", minimum=0, maximum=0.999999)  # fmt: skip
    # Schedule
    epochs: float = setting(
        90.0, "passes (`epochs`) over the training images (Section 5: about 90)", fixed_on_resume=False, minimum=0
    )
    steps: int | None = setting(
        None, "optimiser `steps` in all; overrides --epochs", fixed_on_resume=False, minimum=1, absent=0
    )
    schedule: str = setting("plateau", "how the rate falls: on a validation plateau (Section 5), at --drop_epochs, in four "
                           "equal stages (2012 lab notes), as (1 - step / steps)^2 (You et al. 2017), or never",
                           choices=SCHEDULES)  # fmt: skip
    warmup_epochs: float = setting(0.0, "`epochs` in which the rate rises to its full height, from --learning_rate where "
        "--base_batch_size scales it up, else from 0 (Goyal et al. 2017: 5)", minimum=0)  # fmt: skip
    drop_factor: float = setting(
        10.0, "`number` that the rate is divided by at a plateau or a drop epoch (Section 5: 10)", minimum=1
    )
    max_drops: int = setting(3, "drops of the plateau schedule (Section 5: three)", minimum=0)
    patience: int = setting(5, "`validations` without a new best that make a plateau", minimum=1)
    drop_epochs: tuple[float, ...] = setting(
        (25.0, 51.0, 79.0), "`epochs`, comma-separated, of --schedule=steps (2012 network: 25, 51, 79)", parse=parse_epochs
    )
    # Devices
    mesh: MeshShape | None = setting(
        None, "`DATAxTOWER` devices, such as 4x2, or auto", fixed_on_resume=False, parse=MeshShape.parse, absent="auto"
    )
    data_on_device: str = setting(
        "auto",
        "keep the images in device memory; auto: where they fit",
        choices=("auto", "yes", "no"),
        fixed_on_resume=False,
    )
    distributed: bool = setting(False, "one of several processes that work together, started alike", fixed_on_resume=False)
    host_devices: int | None = setting(
        None, "force this many CPU `devices`; 0: the machine's", fixed_on_resume=False, minimum=1, maximum=512, absent=0
    )
    spmd: Spmd = setting("shard_map", "how the per-device step is run", choices=("shard_map", "pmap"), fixed_on_resume=False)
    step_timeout: float = setting(
        300.0,
        "`seconds` after which a step that does not end is given up: all stacks are written and the process ends with exit "
        "status 75, which means 'run me again'; at least 20 times the usual step, and half an hour for what compiles or "
        "saves; 0: never",
        fixed_on_resume=False,
        minimum=0,
    )
    # Records (in steps)
    log_every: int = setting(50, "`steps` between rows of training metrics", fixed_on_resume=False, minimum=1)
    log_examples: bool = setting(False, "note the examples of each step in examples.jsonl", fixed_on_resume=False)
    wandb: str = setting("", "`project` at Weights & Biases that gets the rows of metrics.jsonl too", fixed_on_resume=False)
    profile: StepRange | None = setting(
        None, "`START:STOP` traces the steps after START up to STOP into profile/ of the run, for XProf and Perfetto; the "
        "first step of a start compiles", fixed_on_resume=False, parse=StepRange.parse, absent="",
    )  # fmt: skip
    eval_every: int | None = setting(
        None, "`steps` between validations; 0: after every epoch", fixed_on_resume=False, minimum=1, absent=0
    )
    checkpoint_every: int | None = setting(
        None, "`steps` between checkpoints; 0: at every validation", fixed_on_resume=False, minimum=1, absent=0
    )
    keep: int = setting(2, "`checkpoints` kept, next to the best validated one", fixed_on_resume=False, minimum=1)

    def __post_init__(self) -> None:
        if self.mean == "auto":  # so that a config says what it means
            object.__setattr__(self, "mean", "own" if self.init else "image")

    def table(self) -> Architecture:
        """The layer table with the overrides applied. Raises UserError on an impossible override."""
        return with_overrides(
            ARCHITECTURES[self.architecture],
            bias=self.bias_init,
            dropout=self.dropout,
            weight_decay=self.weight_decay,
            layer_decays=self.layer_decays,
            ablate=self.ablate,
        )

    @property
    def crop(self) -> int:
        """Side of the network's input in pixels."""
        return self.crop_size or ARCHITECTURES[self.architecture].crop_size


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# The groups of `--help`, each with its first field. A field is in the last group that has begun.
FIRST: dict[str, Group] = {
    "workdir": "run", "architecture": "network", "dataset": "data", "batch_size": "optimiser", "epochs": "schedule",
    "mesh": "devices", "log_every": "records",
}  # fmt: skip
OLD_NAMES = {field.metadata["old_name"]: name for name, field in FIELDS.items() if field.metadata["old_name"]}


def check(config: Config) -> None:
    """Raises UserError, naming the flag, on a value that no run can have."""
    for name, field in FIELDS.items():
        check_field(field, getattr(config, name))
    if config.crop > config.image_size:
        raise UserError(
            f"--crop_size={config.crop} is larger than --image_size={config.image_size}: crop less or prepare larger images"
        )
    if config.batch_size % config.accumulate:
        raise UserError(f"--batch_size={config.batch_size} does not divide into {config.accumulate} parts (--accumulate)")
    if config.steps is None and not config.epochs:
        raise UserError("--epochs=0 and --steps=0 leave nothing to do: set one of them")
    if config.init and Path(config.init).resolve() == Path(config.workdir).resolve():
        raise UserError(f"--init={config.init} is the --workdir itself: a run starts from another one")
    if config.init_layers and not config.init:
        raise UserError("--init_layers needs --init, the folder of the run that they are taken from")
    if config.init_velocity and not config.init:
        raise UserError("--init_velocity needs --init, the folder of the run that it is taken from")
    _check_lists(config)


def _check_lists(config: Config) -> None:
    """Layers that are not there, and what is said twice."""
    layers = [layer.name for layer in config.table().layers]
    rates, decays = [rate.layer for rate in config.layer_rates], [decay.layer for decay in config.layer_decays]
    mentioned = {"layer_rates": rates, "layer_decays": decays, "freeze": config.freeze, "init_layers": config.init_layers}
    for flag, names in mentioned.items():
        for name in names:
            if name not in layers:
                known = f"--architecture={config.architecture} has {', '.join(layers)}"
                raise UserError(f"--{flag}={name}: no such layer; {known}")
    if both := sorted(set(rates) & set(config.freeze)):
        raise UserError(f"--freeze={both[0]}: --layer_rates gives it a rate: name it in one of them")
    starts = [f"{rate.layer}@{number_text(rate.epoch)}" for rate in config.layer_rates]
    epochs = [number_text(epoch) for epoch in config.drop_epochs]
    for flag, names in (mentioned | {"layer_rates": starts, "drop_epochs": epochs, "ablate": config.ablate}).items():
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"--{flag} names {twice[0]} twice")


def define_flags(options: flags.FlagValues, only: Sequence[str] | None = None, unset: str = "") -> None:
    """One absl flag per field of `Config`, or for those in `only`; `unset` as for `define_flag`."""
    group: Group = "run"
    for name, field in FIELDS.items():
        group = FIRST.get(name, group)
        if only is None or name in only:
            define_flag(field, options, group, unset)


def as_dict(config: Config) -> dict[str, Any]:
    """The fields as their flags say them, for JSON; `from_dict` is the reverse."""
    return {name: to_text(field, getattr(config, name)) for name, field in FIELDS.items()}


def from_flags(options: flags.FlagValues) -> Config:
    """The Config of the parsed flags. Raises UserError on a value that no run can have."""
    return from_dict({name: options[name].value for name in FIELDS})


def parsed(options: flags.FlagValues, names: Sequence[str]) -> dict[str, Any]:
    """The values of some fields of `Config` from their flags, for a command that has only those.

    Raises UserError on a value that no run can have.
    """
    values = {name: from_text(FIELDS[name], options[name].value) for name in names}
    for name, value in values.items():
        check_field(FIELDS[name], value)
    return values


def from_words(words: Sequence[str]) -> Config:
    """The Config of a command line. Raises UserError on a word or a value that no run can have."""
    options = cli.Options()
    define_flags(options)
    cli.parse_flags(options, words)
    return from_flags(options)


def from_dict(values: Mapping[str, Any]) -> Config:
    """A checked Config from flag values or from config.json; a field that is missing there gets its default.

    Raises:
        UserError: an unknown field or a value that no run can have.
    """
    values = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    if unknown := sorted(set(values) - set(FIELDS)):
        raise UserError(f"config has unknown fields {', '.join(unknown)}: it was written by another version")
    config = Config(**{name: from_text(FIELDS[name], value) for name, value in values.items()})
    check(config)
    return config

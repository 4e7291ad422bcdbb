"""What somebody may have meant by a name that is unknown."""

import difflib
from collections.abc import Collection

# What other programs call our flags.
OTHER_NAMES = {
    "lr": ("learning_rate",), "base_lr": ("learning_rate",), "initial_lr": ("learning_rate",),
    "lr_schedule": ("schedule",), "scheduler": ("schedule",), "lr_decay": ("drop_factor",), "gamma": ("drop_factor",),
    "milestones": ("drop_epochs",), "lr_mult": ("layer_rates",), "wd": ("weight_decay",), "decay": ("weight_decay",),
    "l2": ("weight_decay",), "bs": ("batch_size",), "batch": ("batch_size",), "b": ("batch_size",),
    "grad_accum": ("accumulate",), "gradient_accumulation_steps": ("accumulate",),
    "ep": ("epochs",), "num_epochs": ("epochs",), "n_epochs": ("epochs",), "max_epochs": ("epochs",),
    "num_steps": ("steps",), "max_steps": ("steps",), "iters": ("steps",), "iterations": ("steps",),
    "arch": ("architecture",), "model": ("architecture", "workdir"), "net": ("architecture",), "network": ("architecture",),
    "pretrained": ("init",), "finetune": ("init",), "dtype": ("precision",), "fp16": ("precision",), "bf16": ("precision",),
    "amp": ("precision",), "gpus": ("mesh", "host_devices"), "gpu": ("mesh", "host_devices"), "tpus": ("mesh",),
    "devices": ("mesh", "host_devices"), "num_devices": ("mesh", "host_devices"), "towers": ("mesh", "architecture"),
    "data": ("dataset", "data_dir"), "datadir": ("data_dir",), "data_path": ("data_dir",), "root": ("data_dir",),
    "size": ("image_size",), "img_size": ("image_size",), "resolution": ("image_size", "crop_size"), "crop": ("crop_size",),
    "augment": ("flip", "colour_noise"), "hflip": ("flip",), "color_noise": ("colour_noise",),
    "log_interval": ("log_every",), "print_freq": ("log_every",), "logging_steps": ("log_every",),
    "eval_interval": ("eval_every",), "eval_freq": ("eval_every",), "eval_steps": ("eval_every",),
    "val_every": ("eval_every",), "save_every": ("checkpoint_every",), "save_interval": ("checkpoint_every",),
    "save_steps": ("checkpoint_every",), "save_freq": ("checkpoint_every",), "random_seed": ("seed",),
    "out": ("out", "figure", "workdir"), "output": ("out", "figure", "workdir"), "output_dir": ("workdir",),
    "logdir": ("workdir",), "log_dir": ("workdir",), "save_dir": ("workdir",), "run": ("workdir",), "dir": ("workdir",),
    "resume": ("workdir",), "checkpoint": ("step", "workdir"), "ckpt": ("step", "workdir"), "set": ("split",),
    "tta": ("views",), "crops": ("views",), "topk": ("format",), "json": ("format",), "n_trials": ("trials",),
    "workers": ("jobs",), "n_jobs": ("jobs",),
}  # fmt: skip
MOST = 3


def similar(name: str, known: Collection[str]) -> list[str]:
    """At most three of the `known` names: what `name` is elsewhere, or what it begins, or what is spelt like it."""
    spelt = name.replace("-", "_").lower()
    if spelt in known:
        return [spelt]
    if elsewhere := [ours for ours in OTHER_NAMES.get(spelt, ()) if ours in known]:
        return elsewhere
    begun = [each for each in sorted(known) if len(spelt) > 1 and each.startswith(spelt)]
    close = difflib.get_close_matches(spelt, known, MOST, cutoff=0.7)
    return list(dict.fromkeys(begun + close))[:MOST]


def question(names: Collection[str], before: str = "") -> str:
    """': did you mean --a or --b?' of some names; ':' of none. `before` stands before each of them."""
    return f": did you mean {' or '.join(f'{before}{name}' for name in names)}?" if names else ":"

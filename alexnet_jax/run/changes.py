"""Which flags may change when a run is resumed, and which may not."""

from typing import Any

from alexnet_jax.config import FIELDS, Config, as_dict


def changed_flags(old: Config, new: Config) -> list[str]:
    """What keeps `new` from resuming the run of `old`: one text per flag that alters the run, with both values."""
    alters = {name for name, field in FIELDS.items() if field.metadata["fixed_on_resume"]}
    if {"staged", "polynomial"} & {old.schedule, new.schedule}:
        alters |= {"epochs", "steps"}  # the rate depends on the length of the whole
    if "plateau" in (old.schedule, new.schedule):
        alters.add("eval_every")  # patience counts validations
    if old.table() == new.table():  # an earlier version wrote the paper's decay down; today it is the table's
        alters -= {"weight_decay", "layer_decays"}
    before, after = as_dict(old), as_dict(new)
    changed = [name for name in sorted(alters) if before[name] != after[name]]
    return [f"--{name} was {_shown(before[name])} and is now {_shown(after[name])}" for name in changed]


def _shown(text: Any) -> Any:
    return "not given" if text is None else text

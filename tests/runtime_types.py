"""The type checker that jaxtyping applies to the package while testing: beartype, with an int accepted as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

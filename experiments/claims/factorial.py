"""Fractional factorial designs: many factors at two levels in few runs, with every effect estimated from all of them.

Box, Hunter and Hunter, Statistics for Experimenters (2005), chapter 6.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from alexnet_jax.system.errors import UserError
from experiments.claims.estimate import Estimate


def cells(base: Sequence[str], generators: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """The levels of every factor, -1 or 1, in the 2^(k-p) cells of a design.

    Args:
        base: the k - p factors that run through all combinations. The first changes fastest.
        generators: each further factor with the base factors whose product it is, such as {"e": ("b", "c", "d")}.

    Raises:
        UserError: a name is taken twice, or a generator has a factor that is not in `base`.
    """
    names = [*base, *generators]
    if len(set(names)) < len(names):
        raise UserError(f"a factor's name is taken twice: {', '.join(names)}")
    unknown = {factor for product in generators.values() for factor in product} - set(base)
    if unknown:
        raise UserError(f"a generator's factors are base factors ({', '.join(base)}), not {', '.join(sorted(unknown))}")
    rows = np.array([row[::-1] for row in itertools.product((-1, 1), repeat=len(base))])
    levels = dict(zip(base, rows.T, strict=True))
    levels |= {name: np.prod([levels[factor] for factor in product], axis=0) for name, product in generators.items()}
    return {name: levels[name].tolist() for name in names}


def resolution(generators: Mapping[str, Sequence[str]]) -> int:
    """The factors in the shortest product that is constant over the cells. At 4, no main effect is mixed with a pair.

    A design without generators has none, and 0 is returned.
    """
    words = [frozenset({name, *product}) for name, product in generators.items()]
    lengths = []
    for chosen in itertools.product((False, True), repeat=len(words)):
        product: frozenset[str] = frozenset()
        for word, is_chosen in zip(words, chosen, strict=True):
            product = product ^ word if is_chosen else product
        lengths.append(len(product))
    return min(lengths[1:], default=0)


def main_effects(levels: Mapping[str, Sequence[int]], values: Sequence[float]) -> dict[str, Estimate]:
    """The effect of each factor: the mean at 1 minus the mean at -1, by least squares over all runs.

    The standard error is from the residual of mean and main effects. Interactions, if any, make it larger. Of an error
    in percent, code the level without the paper's idea as 1: the effect is then positive if the idea helps.

    Args:
        levels: of each factor in every run, -1 or 1. A cell's replicates are runs of the same levels.
        values: one for every run.

    Raises:
        UserError: there are too few runs for a residual, or the runs do not tell the factors apart.
    """
    design: Int[np.ndarray, "runs columns"] = np.column_stack([np.ones(len(values), int), *levels.values()])
    observed: Float[np.ndarray, " runs"] = np.asarray(values, float)
    runs, columns = design.shape
    if runs <= columns:
        raise UserError(f"{runs} runs are too few for {len(levels)} factors: {columns + 1} are needed for a residual")
    if np.linalg.matrix_rank(design) < columns:
        raise UserError(f"the runs do not tell the factors apart: {', '.join(levels)}")
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ observed
    variance = ((observed - design @ coefficients) ** 2).sum() / (runs - columns)
    errors = np.sqrt(variance * inverse.diagonal())
    return {
        name: Estimate(2 * float(coefficients[column]), 2 * float(errors[column]), runs - columns)
        for column, name in enumerate(levels, 1)
    }

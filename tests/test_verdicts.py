"""Verdicts, power and designs: against hand numbers, published tables, SciPy's tests and a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.system.errors import UserError
from experiments.claims.claim import Arm, Claim
from experiments.claims.estimate import (
    CONFIDENCE,
    Estimate,
    paired,
    planned_error,
    planned_runs,
    smallest_visible,
    unpaired,
)
from experiments.claims.factorial import cells, main_effects, resolution
from experiments.claims.verdict import holm, judge, p_values, plan

FAVOURED = [-1.0, 0.0, 1.0]  # as the other arm of a difference of d is d + FAVOURED, its standard error is sqrt(2 / 3)


def claim_of(*, is_paired: bool = False, **entries) -> Claim:
    arms = {"with": Arm("with"), "without": Arm("with" if is_paired else "without")}
    texts = dict.fromkeys(("claim", "paper", "unit", "scale", "cost"), "")
    return Claim(
        **{"name": "drop", "measure": "test_error", "kind": "superiority", "stuck": "kept", "arms": arms} | texts | entries
    )


def judgements(*differences: float, **entries):
    """A family of claims of one kind, each with three runs in an arm and this difference of the means."""
    change = np.exp if entries.get("ratio") else np.asarray
    family = []
    for difference in differences:
        arms = {"with": FAVOURED, "without": [difference + value for value in FAVOURED]}
        family.append((claim_of(**entries), {arm: change(values).tolist() for arm, values in arms.items()}))
    return judge(family)


@pytest.mark.parametrize(
    ("difference", "entries", "words"),
    [  # t is 2.132 with four degrees of freedom, so the interval reaches 1.741 to either side
        (2, {}, "confirmed"),
        (2, {"paper_effect": 3.7}, "confirmed"),
        (2, {"paper_effect": 0.1}, "confirmed"),  # more than the paper's
        (2, {"paper_effect": 3.8}, "direction only"),
        (-2, {}, "contradicted"),
        (1, {}, "underpowered (could have seen 2.5)"),
        (-1, {}, "underpowered (could have seen 2.5)"),
        (1, {"sd": 2}, "underpowered (could have seen 5)"),  # as it is stated, not the 1 of these runs
        (2, {"margin": 9}, "confirmed"),  # p 0.07, the smaller p of equivalence counts as the first of two
        (0, {"margin": 3}, "equivalent within ±3"),  # t 3.67, p 0.021, doubled as it is one of two tests
        (0, {"margin": 2}, "underpowered (could have seen 3.1)"),  # t 2.45, p 0.071
        (1.5, {"kind": "non_inferiority", "margin": 0.5}, "confirmed"),
        (0, {"kind": "non_inferiority", "margin": 0.5}, "underpowered (could have seen 2.5)"),
        (-2, {"kind": "non_inferiority", "margin": 0.5}, "underpowered (could have seen 2.5)"),
        (-3, {"kind": "non_inferiority", "margin": 0.5}, "contradicted"),
        (0, {"kind": "equivalence", "margin": 2}, "equivalent within ±2"),
        (0.5, {"kind": "equivalence", "margin": 2}, "underpowered (could have seen 2.9)"),
        (-4, {"kind": "equivalence", "margin": 2}, "contradicted"),
        (4, {"kind": "equivalence", "margin": 2}, "contradicted"),
        (2, {"ratio": True, "paper_effect": math.exp(3.8)}, "direction only"),
        (1, {"ratio": True}, "underpowered (could have seen x 12)"),  # exp(2.48)
        (0, {"ratio": True, "kind": "equivalence", "margin": math.exp(2)}, "equivalent within x 7.39"),
    ],
)  # fmt: skip
def test_each_verdict_by_hand(difference, entries, words):
    (judgement,) = judgements(difference, **entries)
    assert judgement.words == words
    assert words.startswith(judgement.verdict)
    change = np.log if entries.get("ratio") else np.asarray
    ends = change([judgement.effect, judgement.low, judgement.high])
    np.testing.assert_allclose(ends, [difference, difference - 1.7407, difference + 1.7407], atol=1e-3)


def test_a_claim_among_others_needs_more_than_one_alone():
    alone, (first, second, third) = judgements(2)[0], judgements(2, 0, 5)
    assert (alone.verdict, first.verdict, second.verdict, third.verdict) == (
        "confirmed", "underpowered", "underpowered", "confirmed",
    )  # fmt: skip
    assert alone.p == pytest.approx(0.0705, abs=1e-4)  # t 2.449
    assert (first.p, third.p) == pytest.approx((2 * alone.p, 3 * 0.00360), rel=2e-3)  # t 6.124
    assert alone.visible == alone.visible_in_family == first.visible < first.visible_in_family


def test_the_p_value_is_of_the_test_that_decides():
    (judgement,) = judgements(0, margin=3)
    assert judgement.p == pytest.approx(2 * 0.02131, rel=1e-3)  # of equivalence: t 3.674, one of two tests
    # An effect beyond its margin has no second test to win: 5 is seen, p 0.0075, and not equivalent.
    assert p_values(claim_of(margin=0.5), Estimate(5, 1, 4)) == pytest.approx([0.00749, 1.0], abs=1e-5)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_intervals_have_the_quantiles_of_the_tables_and_are_those_of_scipys_tests():
    for freedom, level, quantile in (
        (2, 0.1, 2.920),
        (4, 0.1, 2.132),
        (10, 0.1, 1.812),
        (10, 0.05, 2.228),
        (4, 0.01, 4.604),
    ):
        assert Estimate(0, 1, freedom).interval(level)[1] == pytest.approx(quantile, abs=5e-4)
    favoured, other = [38.0, 38.5, 37.0], [40.0, 43.5, 39.0, 46.0]
    welch, found = stats.ttest_ind(other, favoured, equal_var=False), unpaired(favoured, other)
    np.testing.assert_allclose(found.interval(), welch.confidence_interval(CONFIDENCE))
    assert found.p() == pytest.approx(welch.pvalue)
    pairs = stats.ttest_rel(other[:3], favoured)
    np.testing.assert_allclose(paired(favoured, other[:3]).interval(), pairs.confidence_interval(CONFIDENCE))
    values = {"with": favoured, "without": other[:3]}
    (by_run,) = judge([(claim_of(is_paired=True), values)])
    assert (by_run.low, by_run.p) == pytest.approx((pairs.confidence_interval(CONFIDENCE).low, pairs.pvalue))


def test_equal_runs_have_an_interval_without_width():
    sure, nil = unpaired([1.0, 1.0], [2.0, 2.0]), unpaired([1.0, 1.0], [1.0, 1.0])
    assert (sure.interval(), sure.p(), sure.p(1.0), nil.p()) == ((1, 1), 0, 1, 1)


def test_one_run_is_no_evidence():
    for compare in (paired, unpaired):
        with pytest.raises(UserError, match="at least two"):
            compare([1.0], [2.0])
    with pytest.raises(UserError, match="the same runs"):
        paired([1.0, 2.0], [2.0, 3.0, 4.0])


@pytest.mark.parametrize("edges", [1, 2])
def test_the_smallest_visible_effect_is_seen_four_times_in_five(edges):
    runs, sd, trials = 4, 1.7, 20_000
    visible = smallest_visible(*planned_error(sd, runs), edges=edges)
    arms = np.random.default_rng(0).normal(0, sd, (2, trials, runs))
    effect = arms[1].mean(axis=1) - arms[0].mean(axis=1) + (visible if edges == 1 else 0)
    reach = stats.t.ppf(0.95, 2 * runs - 2) * np.sqrt(arms.var(axis=2, ddof=1).sum(axis=0) / runs)
    seen = effect - reach > 0 if edges == 1 else (effect - reach > -visible) & (effect + reach < visible)
    assert seen.mean() == pytest.approx(0.8, abs=0.01)  # its standard error is 0.003


@pytest.mark.parametrize(
    ("effect", "runs"), [(1.0, 17), (0.8, 26), (0.5, 64), (0.2, 394)]
)  # Cohen (1988), table 2.4.1, power 0.80 at 5 %, as G*Power rounds it
def test_planned_runs_are_those_of_the_tables(effect, runs):
    assert planned_runs(3.0, 3.0 * effect, 0.05) == runs
    assert {0.5: 34}.get(effect, 0) in (0, planned_runs(3.0, 3.0 * effect, 0.05, is_paired=True))


def test_the_plan_has_a_line_for_each_claim():
    claims = [
        claim_of(name="lrn", sd=2, effect=1), claim_of(name="views", sd=2, effect=1, is_paired=True),
        claim_of(name="noise", sd=2, kind="non_inferiority", margin=1), claim_of(name="pool", sd=2),
    ]  # fmt: skip
    alone, together = (planned_runs(2, 1, level) for level in (0.1, 0.025))
    assert plan(claims) == [
        f"lrn: {alone} runs of each arm for an effect of 1 (SD 2); {together} in the family of 4 tests",
        "views: 27 runs, measured both ways, for an effect of 1 (SD 2); 41 in the family of 4 tests",
        f"noise: {alone} runs of each arm for a margin of 1 (SD 2); {together} in the family of 4 tests",
        "pool: no plan; the TOML needs sd and effect",
    ]


def test_a_fraction_of_a_design_keeps_every_factor_balanced():
    assert cells("ab", {"c": "ab"}) == {"a": [-1, 1, -1, 1], "b": [-1, -1, 1, 1], "c": [1, -1, -1, 1]}
    generators = {"e": "bcd", "f": "acd", "g": "abc", "h": "abd"}
    levels = np.array(list(cells("abcd", generators).values()))
    np.testing.assert_array_equal(levels @ levels.T, 16 * np.eye(8))
    assert (resolution(generators), resolution({"c": "ab"}), resolution({"e": "abcd"}), resolution({})) == (4, 3, 5, 0)
    assert resolution({"d": "abc", "e": "abc"}) == 2  # d and e are the same
    pairs = np.array([levels[i] * levels[j] for i in range(8) for j in range(i)])
    assert not (pairs @ levels.T).any()  # resolution 4: no main effect is mixed with a pair


def test_effects_of_a_design_by_hand():
    a, b = (np.tile(column, 2) for column in cells("ab", {}).values())
    found = main_effects({"a": a, "b": b}, 40 + a - 0.5 * b + 0.5 * a * b)
    # The pair leaves squares of 8 x 0.25 to five degrees of freedom; an effect's error is 2 sqrt(0.4 / 8).
    for name, effect in (("a", 2), ("b", -1)):
        assert (found[name].effect, found[name].error, found[name].freedom) == pytest.approx((effect, 0.44721, 5), abs=1e-5)


def test_a_design_with_lost_runs_is_least_squares():
    rng = np.random.default_rng(0)
    one = main_effects({"a": [1, 1, 1, -1, -1]}, values := rng.normal(size=5))["a"]  # a t-test with one variance
    student = stats.ttest_ind(values[:3], values[3:])
    np.testing.assert_allclose(one.interval(), student.confidence_interval(CONFIDENCE))
    levels = {name: column[:-3] for name, column in cells("abc", {"d": "abc"}).items()}
    levels = {name: np.tile(column, 3) for name, column in levels.items()}
    values = rng.normal(size=15)
    design = np.stack([np.ones(15), *levels.values()], axis=1)
    theirs, residual, _, _ = np.linalg.lstsq(design, values)
    errors = np.sqrt(residual / 10 * np.diag(np.linalg.pinv(design) @ np.linalg.pinv(design).T))
    for column, found in enumerate(main_effects(levels, values).values(), 1):
        assert (found.effect, found.error) == pytest.approx((2 * theirs[column], 2 * errors[column]))


def test_a_design_that_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="3 runs are too few for 2 factors: 4 are needed"):
        main_effects({"a": [1, -1, 1], "b": [1, 1, -1]}, [1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="do not tell the factors apart: a, b"):
        main_effects({"a": [1, -1, 1, -1], "b": [-1, 1, -1, 1]}, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(UserError, match="taken twice: a, b, a"):
        cells("ab", {"a": "b"})
    with pytest.raises(UserError, match=r"base factors \(a, b\), not z"):
        cells("ab", {"c": "az"})

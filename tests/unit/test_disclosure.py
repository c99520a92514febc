"""Rules S2 to S15: one test per line of the Guarantees of privacy/disclosure.py and privacy/bins.py."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from cytosae_core.allowed import ALLOWED
from cytosae_core.errors import EgressError
from cytosae_core.policy import POLICIES, SitePolicy
from cytosae_core.privacy import disclosure as d
from cytosae_core.privacy.bins import curve_bins, protect_histogram

MASKED = POLICIES["masked"]
PUBLIC = POLICIES["public-data"]
SMALL = SitePolicy("small", "masked", min_units=3, round_to=1)


def nan(values: np.ndarray) -> list[bool]:
    return np.isnan(values).tolist()


# S2, S3


def test_s2a_few_units_small_counts_and_zeros_are_withheld() -> None:
    out = d.protect_counts([500, 500, 10, 11, 0], [10, 11, 50, 50, 50], MASKED)
    assert nan(out) == [True, False, True, False, True]


def test_500_cells_of_one_patient_are_one_unit() -> None:
    assert np.isnan(d.protect_counts(500, 1, MASKED))


def test_s3a_suppressed_first_then_rounded() -> None:
    out = d.protect_counts([10, 12, 13, 17, 1003], 99, MASKED)
    assert np.isnan(out[0])  # rounding first would have shown 10
    assert out[1:].tolist() == [10, 15, 15, 1005]
    assert d.protect_counts([7], [7], PUBLIC).tolist() == [7]


# S5: tables


def random_table(rng: np.random.Generator, shape: tuple[int, int], high: int = 40) -> np.ndarray:
    return np.where(rng.random(shape) < 0.3, rng.integers(0, 11, shape), rng.integers(11, high, shape))


@pytest.mark.parametrize("seed", range(40))
def test_s5a_s5b_s3b_tables(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = random_table(rng, (int(rng.integers(2, 7)), int(rng.integers(2, 7))))
    table = d.protect_table(values, values, MASKED)
    hidden = np.isnan(table.cells)
    assert hidden[values < 11].all()
    for lines, units in ((hidden, values), (hidden.T, values.T)):
        for line, behind in zip(lines, units, strict=True):
            assert line.sum() != 1
            assert not line.any() or behind[line].max() >= 11 or line.all()
    shown = np.where(hidden, 0, np.round(values / 5) * 5)
    np.testing.assert_array_equal(table.row_totals, shown.sum(axis=1))
    np.testing.assert_array_equal(table.column_totals, shown.sum(axis=0))
    assert table.total == shown.sum()


def determined(hidden: np.ndarray) -> np.ndarray:
    """Which withheld cells follow from true row and column totals: their entry in the null space is zero."""
    places = np.argwhere(hidden)
    system = np.zeros((sum(hidden.shape), len(places)))
    for index, (row, column) in enumerate(places):
        system[row, index] = system[hidden.shape[0] + column, index] = 1
    _, sizes, right = np.linalg.svd(system)
    free = right[(sizes > 1e-9).sum() :]
    out = np.zeros(hidden.shape, dtype=bool)
    out[tuple(places.T)] = np.abs(free).max(axis=0, initial=0) < 1e-9
    return out


@pytest.mark.parametrize("seed", range(60))
def test_s5f_true_totals_give_no_small_cell_back(seed: int) -> None:
    """Brute force: solve the linear system of a reader who knows every true total."""
    rng = np.random.default_rng(seed)
    values = random_table(rng, (int(rng.integers(2, 8)), int(rng.integers(2, 8))))
    hidden = np.isnan(d.protect_table(values, values, MASKED).cells)
    found = determined(hidden) & (values < 11)
    for row, column in np.argwhere(found):
        assert hidden[row].all() and hidden[:, column].all()


def test_s5f_two_safe_blocks_joined_by_a_small_cell() -> None:
    """Two withheld cells in every line, and still the joining cell would follow from the totals."""
    values = np.full((4, 4), 30)
    hidden = np.zeros((4, 4), dtype=bool)
    hidden[:2, :2] = hidden[2:, 2:] = True
    hidden[1, 2] = True
    values[1, 2] = 4
    assert determined(hidden)[1, 2]
    assert d._break_bridge(hidden, values, np.zeros_like(hidden), 11)
    assert not determined(hidden)[1, 2]


def test_s5f_a_table_that_needs_it() -> None:
    """As above, from the front: rows and columns alone would stop before the joining cell is safe."""
    values = np.full((4, 4), 90)
    values[:2, :2] = values[2:, 2:] = 20
    values[0, 0] = values[3, 3] = values[1, 2] = 4
    hidden = np.isnan(d.protect_table(values, values, MASKED).cells)
    assert hidden[1, 2] and not determined(hidden)[1, 2]
    lines_only = np.zeros((4, 4), dtype=bool)
    lines_only[:2, :2] = lines_only[2:, 2:] = lines_only[1, 2] = True
    assert (hidden & lines_only).sum() == lines_only.sum() and determined(lines_only)[1, 2]


def test_s5_exclusive_cells_may_be_added() -> None:
    values = np.array([[6, 7, 40, 50], [40, 60, 70, 80]])
    overlapping = np.isnan(d.protect_table(values, values, MASKED).cells).sum()
    exclusive = np.isnan(d.protect_table(values, values, MASKED, exclusive=True).cells).sum()
    assert exclusive < overlapping  # 6 + 7 patients are enough when nobody is counted twice


def test_s7a_structural_zero_is_shown_other_zeros_are_not() -> None:
    values = np.array([[0, 40, 50], [30, 0, 60], [70, 80, 90]])
    structural = np.zeros((3, 3), dtype=bool)
    structural[0, 0] = True
    table = d.protect_table(values, values, MASKED, structural=structural)
    assert table.cells[0, 0] == 0 and np.isnan(table.cells[1, 1])
    declared_but_not_zero = d.protect_table(values + 1, values + 1, MASKED, structural=structural)
    assert np.isnan(declared_but_not_zero.cells[0, 0])


# hello.counts


def hello(
    units: int, train: int, test: int, classes: list[int], behind: list[int], rest: int = 0
) -> np.ndarray:
    values = [sum(classes) + rest, units, train, test, *classes]
    return d.protect_hello(values, [units, units, train, test, *behind], MASKED)


def test_s2b_a_small_site_shows_nothing() -> None:
    assert np.isnan(hello(10, 6, 4, [50, 50], [10, 10])).all()


def test_s5c_train_and_test_both_or_neither() -> None:
    assert nan(hello(60, 50, 10, [500, 700], [60, 60])) == [False, False, True, True, False, False]
    assert nan(hello(60, 45, 15, [500, 700], [60, 60])) == [False] * 6
    assert hello(62, 45, 17, [501, 702], [60, 60]).tolist() == [1205, 60, 45, 15, 500, 700]


def test_s5d_one_rare_class_takes_a_second_one_with_it() -> None:
    """Images minus the other classes would be the rare class."""
    assert nan(hello(60, 40, 20, [500, 700, 9], [60, 50, 4]))[4:] == [False, True, True]
    assert nan(hello(60, 40, 20, [500, 700, 300], [60, 50, 40]))[4:] == [False] * 3


def test_s5d_images_without_a_listed_class_are_a_hidden_class() -> None:
    assert nan(hello(60, 40, 20, [500, 700], [60, 50], rest=3))[4:] == [False, True]
    counted = d.protect_hello(
        [1300, 60, 40, 20, 500, 700], [60, 60, 40, 20, 60, 50], MASKED, remainder_units=30
    )
    assert nan(counted) == [False] * 6
    uncounted = d.protect_hello([1300, 60, 40, 20, 500, 700], [60, 60, 40, 20, 60, 50], MASKED)
    assert nan(uncounted) == [False] * 5 + [True]


@pytest.mark.parametrize("seed", range(30))
def test_s5d_by_subtraction(seed: int) -> None:
    """True total minus true values of the shown classes: nothing, or a group with enough units."""
    rng = np.random.default_rng(seed)
    behind = rng.integers(0, 40, size=rng.integers(1, 9))
    classes = (behind * rng.integers(1, 9, size=len(behind))).tolist()
    rest = int(rng.choice([0, 0, 4, 40]))
    out = hello(80, 50, 30, classes, behind.tolist(), rest)
    hidden = np.isnan(out[4:])
    left = sum(classes) + rest - sum(value for value, gone in zip(classes, hidden, strict=True) if not gone)
    if left and not np.isnan(out[0]):
        assert behind[hidden].max(initial=0) >= 11 or hidden.all()


# S4


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ([1] * 11, False),
        ([10, *[1] * 10], False),  # exactly one half
        ([10.1, *[1] * 10], True),  # largest > 50 %
        ([45, 45, *[1] * 10], True),  # two largest 90 %
        ([44, 44, *[12 / 9] * 9], False),
        ([0] * 11, True),  # nobody contributes
        ([-10.1, *[1] * 10], True),  # signs do not matter
        ([100, 100, *[1] * 9], True),  # the others are 9 % of the largest
        ([5], True),
    ],
)
def test_s4_dominance(values: list[float], broken: bool) -> None:
    assert bool(d.dominance(values, MASKED)) is broken


def test_s4b_p_ratio_alone() -> None:
    policy = SitePolicy("p", "masked", p_ratio="0.50", nk_k="0.90")
    assert bool(d.dominance([40, 40, 19], policy)) and not bool(d.dominance([40, 40, 19], MASKED))


def test_s4_shapes_11_patients_one_with_95_percent() -> None:
    contributions = np.ones((11, 2, 3))
    contributions[4, 1, 2] = 190
    mask = d.dominance(contributions, MASKED)
    assert mask.shape == (2, 3) and mask.sum() == 1 and mask[1, 2]
    assert not d.dominance(contributions, PUBLIC).any()
    assert d.dominance(np.ones((0, 2)), MASKED).all()


# S7


def test_s7b_none_and_all_of_a_sensitive_property() -> None:
    share = lambda **more: d.protect_shares([0, 60, 30], [60, 60, 60], [0, 60, 30], 60, MASKED, **more)  # noqa: E731
    assert nan(share()) == [True, True, False]
    assert nan(share(sensitive=False)) == [False] * 3
    assert nan(share(structural=[True, False, False])) == [False, True, False]


def test_s5e_neither_few_with_nor_few_without() -> None:
    out = d.protect_shares([100, 100, 100], 200, [10, 55, 30], 60, MASKED)
    assert nan(out) == [True, True, False]


def test_s3c_shares_come_from_rounded_counts() -> None:
    assert d.protect_shares(33, 98, 30, 60, MASKED) == 35 / 100


# S8


def test_s8_no_name_in_the_table_promises_an_extreme() -> None:
    assert not [field.name for field in ALLOWED if d.names_an_extreme(field.name)]


@pytest.mark.parametrize(
    "name",
    ["max_activation", "top_k_indices", "code_median", "images", "auroc_min", "patient_codes", "W_enc", "b_enc",
     "token_embedding", "optimizer_state", "rank_order", "file_path"],
)  # fmt: skip
def test_s8_bites(name: str) -> None:
    assert d.names_an_extreme(name)


# S9


def items(rng: np.random.Generator, units: int, bins: int) -> np.ndarray:
    return rng.poisson(0.6, size=(units, bins)) * (rng.random(bins) < 0.8)


@pytest.mark.parametrize("seed", range(30))
def test_s9_histograms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units, bins = int(rng.integers(5, 600)), int(rng.integers(1, 100))
    table, edges = items(rng, units, bins), np.linspace(0, 1, bins + 1)
    out = protect_histogram(table, edges, MASKED)
    behind = int((table > 0).any(axis=1).sum())
    if behind < 11:
        assert out.counts.size == out.edges.size == 0
        return
    assert len(out.counts) <= min(40, behind * 0.1)  # S9a
    assert set(out.edges) <= set(edges) and out.edges[0] == edges[0] and out.edges[-1] == edges[-1]  # S9b
    place = np.searchsorted(edges, out.edges)
    for start, stop, count in zip(place[:-1], place[1:], out.counts, strict=True):
        assert (table[:, start:stop] > 0).any(axis=1).sum() >= 11  # S9b
        assert count == np.round(table[:, start:stop].sum() / 5) * 5  # S9c


def test_s9c_with_too_few_units_nothing_is_shown() -> None:
    assert protect_histogram(np.ones((10, 3)), np.arange(4.0), MASKED).counts.size == 0
    assert protect_histogram(np.ones((11, 3)), np.arange(4.0), MASKED).counts.tolist() == [35.0]


@pytest.mark.parametrize("edges", [[0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 2], [0, 1, 2, np.nan]])
def test_s9_edges_must_rise_and_fit(edges: list[float]) -> None:
    with pytest.raises(EgressError):
        protect_histogram(np.ones((50, 3)), edges, MASKED)


# S10


@pytest.mark.parametrize("seed", range(20))
def test_s10a_curves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, bad = items(rng, 200, 50), items(rng, 200, 50)
    edges = np.linspace(0, 1, 51)
    curve = curve_bins(good, bad, edges, MASKED)
    assert 1 <= len(curve.positives) <= 10 and set(curve.edges) <= set(edges)
    place = np.searchsorted(edges, curve.edges)
    for start, stop in itertools.pairwise(place):
        for part in (good, bad):
            assert (part[:, start:stop] > 0).any(axis=1).sum() >= 11


def test_s10b_both_classes_need_enough_units() -> None:
    many, lone = np.ones((50, 5)), np.zeros((50, 5))
    lone[:10] = 1
    for good, bad in ((many, lone), (lone, many)):
        assert curve_bins(good, bad, np.arange(6.0), MASKED).positives.size == 0


def test_s10_auroc_has_three_decimals() -> None:
    assert d.round_decimals([0.98765, 0.5, np.nan])[:2].tolist() == [0.988, 0.5]


# S11, S12, S13, S15


@pytest.mark.parametrize(
    ("units", "parameters", "good"),
    [(100, 33, True), (100, 34, False), (14, 4, True), (12, 3, False), (11, 1, True)],
)
def test_s11_models(units: int, parameters: int, good: bool) -> None:
    assert d.model_dof(units, parameters, MASKED) is good


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("lymphocyte", "name"),
        ("x" * 20, "name"),
        ("Auer rods are easy to see here.", "note"),
        ("a" * 64, "digest"),
        ("1" * 64, "digest"),
        ("keep", "code"),
    ],
)
def test_s12_text_that_may_leave(text: str, kind: str) -> None:
    assert d.check_text(text, kind, frozenset({"keep", "drop"})) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "name"),
        ("x" * 21, "name"),
        ("x" * 81, "note"),
        ("patient 12345", "name"),
        ("Müller", "name"),
        ("<script>", "name"),
        ("{{7*7}}", "name"),
        ("a\nb", "note"),
        ("a\x1b[31m", "note"),
        ("a" * 63, "digest"),
        ("A" * 64, "digest"),
        ("other", "code"),
        ("x" * 10_000, "note"),
    ],
)
def test_s12_text_that_may_not(text: str, kind: str) -> None:
    with pytest.raises(EgressError) as error:
        d.check_text(text, kind, frozenset({"keep"}))
    assert error.value.reason == "ENUM"
    assert not text or len(text) < 6 or text not in str(error.value)


def test_s13_four_significant_digits() -> None:
    out = d.round_significant(np.array([0.0, 1.23456, -98765.0, 1.23456e-7]), 4)
    np.testing.assert_allclose(out, [0, 1.235, -98760, 1.235e-7], rtol=1e-12)


def test_s15_one_marker_whatever_the_reason() -> None:
    few = d.protect_counts([5], [5], MASKED)
    dominated = np.where(d.dominance([[99.0], *[[1.0]] * 10], MASKED), np.nan, 1.0)
    assert json.dumps(d.marked(few)) == json.dumps(d.marked(dominated)) == '[{"s": "suppressed"}]'
    assert d.marked(np.array([[1.0, np.nan]])) == [[1.0, d.SUPPRESSED]]

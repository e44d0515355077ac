"""Properties of the figures of merit. Agreement with scikit-learn and SciPy is tested in tests/toolkit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p4q_edge.runtime.statistics import metrics

LOGITS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(-30, 30, width=32),
)
CORRECT_PAIR = hnp.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 60)))


def labels_for(logits: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, logits.shape[1], logits.shape[0])


@given(LOGITS, st.integers(0, 9))
def test_top_k_grows_with_k_and_ends_complete(logits: np.ndarray, seed: int) -> None:
    labels = labels_for(logits, seed)
    previous = np.zeros(len(labels), dtype=bool)
    for k in range(1, logits.shape[1] + 1):
        correct = metrics.top_k_correct(logits, labels, k)
        assert (correct >= previous).all()
        previous = correct
    assert previous.all()


def test_ties_go_to_the_lower_index() -> None:
    assert metrics.top_k(np.array([[1.0, 2.0, 2.0]]), 2).tolist() == [[1, 2]]


@given(st.integers(1, 4000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_estimate_and_stays_in_range(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = metrics.wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_symmetric_in_success_and_failure(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = metrics.wilson_interval(successes, n)
    mirrored_low, mirrored_high = metrics.wilson_interval(n - successes, n)
    np.testing.assert_allclose((low, high), (1 - mirrored_high, 1 - mirrored_low), atol=1e-12)


def test_wilson_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth, n = 0.83, 200
    draws = generator.binomial(n, truth, size=2000)
    covered = [low <= truth <= high for low, high in (metrics.wilson_interval(int(d), n) for d in draws)]
    assert 0.935 < np.mean(covered) < 0.965


@pytest.mark.parametrize("case", [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(case: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        metrics.wilson_interval(*case)


@given(CORRECT_PAIR)
def test_mcnemar_is_symmetric_and_a_probability(pair: np.ndarray) -> None:
    forward, backward = metrics.mcnemar_exact(pair[0], pair[1]), metrics.mcnemar_exact(pair[1], pair[0])
    assert (forward.only_first, forward.only_second) == (backward.only_second, backward.only_first)
    assert forward.p_value == backward.p_value
    assert 0 < forward.p_value <= 1


def test_mcnemar_of_equal_answers_is_one_and_of_many_changes_does_not_underflow() -> None:
    same = np.ones(10, dtype=bool)
    assert metrics.mcnemar_exact(same, same).p_value == 1.0
    first, second = np.ones(900, dtype=bool), np.zeros(900, dtype=bool)
    second[:100] = True
    assert metrics.mcnemar_exact(first, second).p_value == 2 * 2.0**-800


@given(CORRECT_PAIR)
@settings(max_examples=30)
def test_paired_difference_contains_its_mean_and_vanishes_for_equal_inputs(pair: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    estimate = metrics.paired_difference(pair[0], pair[1], generator=generator)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(pair[1].mean() - pair[0].mean())
    same = metrics.paired_difference(pair[0], pair[0], generator=generator)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_paired_interval_is_narrower_than_two_separate_ones() -> None:
    generator = np.random.default_rng(1)
    first = generator.random(1000) < 0.8
    second = first.copy()
    second[:8] = ~second[:8]
    estimate = metrics.paired_difference(first, second, generator=generator)
    low, high = metrics.wilson_interval(int(first.sum()), first.size)
    assert estimate.high - estimate.low < (high - low) / 3


def test_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        sample = generator.normal(1.5, 2.0, size=80)
        estimate = metrics.bootstrap_mean(sample, generator=generator)
        covered += estimate.low <= 1.5 <= estimate.high
    assert 0.9 < covered / 300 < 0.98


@given(LOGITS, st.integers(0, 9))
def test_confusion_matrix_counts_every_image_and_has_the_correct_ones_on_its_diagonal(
    logits: np.ndarray, seed: int
) -> None:
    labels = labels_for(logits, seed)
    classes = logits.shape[1]
    matrix = metrics.confusion_matrix(labels, metrics.top_k(logits, 1)[:, 0], classes)
    assert matrix.shape == (classes, classes)
    assert matrix.sum() == len(labels)
    assert np.trace(matrix) == metrics.top_k_correct(logits, labels).sum()


def test_per_class_accuracy_leaves_absent_classes_out_of_the_mean() -> None:
    labels = np.array([0, 0, 2, 2, 2])
    correct = np.array([True, False, True, True, True])
    accuracy = metrics.per_class_accuracy(correct, labels, 4)
    np.testing.assert_array_equal(accuracy, [0.5, np.nan, 1.0, np.nan])
    estimate = metrics.mean_per_class(correct, labels, 4, generator=np.random.default_rng(0))
    assert estimate.value == 0.75
    assert estimate.n == 5
    assert estimate.low <= 0.75 <= estimate.high


@given(LOGITS, st.floats(0.1, 10))
def test_cosine_ignores_scale_and_stays_in_range(rows: np.ndarray, factor: float) -> None:
    cosine = metrics.cosine_rows(rows, rows * factor)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)
    opposite = metrics.cosine_rows(rows, -rows)
    assert (opposite >= -1).all()


def test_cosine_of_a_dead_output_is_zero_not_nan() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert metrics.cosine_rows(rows, np.zeros((2, 2))).tolist() == [0.0, 1.0]


def test_cosine_summary_reports_the_worst_pair() -> None:
    first = np.tile([1.0, 0.0], (100, 1))
    second = first.copy()
    second[7] = [0.0, 1.0]
    summary = metrics.cosine_summary(first, second, generator=np.random.default_rng(0))
    assert (summary.min, summary.n) == (0.0, 100)
    assert summary.mean.value == pytest.approx(0.99)
    assert summary.mean.low < 0.99 < summary.mean.high
    assert 0.0 <= summary.p1.low < summary.p1.value < summary.p1.high == 1.0


def test_a_resampled_quantile_has_the_interval_of_resampling() -> None:
    values = np.random.default_rng(0).gamma(0.5, size=400)
    generator = np.random.default_rng(1)
    estimate = metrics.bootstrap_quantile(values, 0.9, generator=generator)
    drawn = [np.quantile(generator.choice(values, values.size), 0.9) for _ in range(2000)]
    assert (estimate.value, estimate.n, estimate.method) == (np.quantile(values, 0.9), 400, "bootstrap")
    assert estimate.low == pytest.approx(np.quantile(drawn, 0.025), rel=0.1)
    assert estimate.high == pytest.approx(np.quantile(drawn, 0.975), rel=0.1)


def test_a_bootstrap_in_blocks_is_a_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=300)
    whole = metrics.bootstrap_mean(values, generator=np.random.default_rng(1))
    monkeypatch.setattr(metrics, "MAX_DRAWN", 700)
    blocks = metrics.bootstrap_mean(values, generator=np.random.default_rng(1))
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high))


def test_each_class_has_its_own_interval() -> None:
    estimates = metrics.class_estimates(np.array([True, False, True]), np.array([0, 0, 2]), 4)
    assert [None if e is None else (e.value, e.n) for e in estimates] == [(0.5, 2), None, (1.0, 1), None]
    assert estimates[0] == metrics.proportion(np.array([True, False]))


@given(LOGITS, st.floats(-50, 50))
def test_kl_is_zero_for_shifted_logits_and_never_negative(logits: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(metrics.kl_divergence(reference=logits, candidate=logits + shift), 0, atol=1e-9)
    assert (metrics.kl_divergence(reference=logits, candidate=logits[:, ::-1]) >= 0).all()


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(2, 9)), elements=st.floats(-30, 30, width=32)))
def test_logits_are_worked_on_in_blocks_with_the_same_bits(logits: np.ndarray) -> None:
    labels = np.arange(len(logits)) % logits.shape[1]
    other = np.roll(logits, 1, axis=0)

    def everything() -> list[object]:
        return [
            metrics.top_k(logits, 3).tolist(),
            metrics.confidences(logits).tolist(),
            metrics.kl_divergence(reference=logits, candidate=other).tolist(),
            metrics.largest_difference(logits, other),
            metrics.fit_temperature(logits, labels),
        ]

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MAX_LOGITS", 20)
        assert everything() == whole
    assert metrics.confidences(logits).tolist() == np.exp(metrics.log_softmax(logits)).max(axis=1).tolist()


@given(hnp.arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)), st.integers(1, 20))
def test_reliability_bins_partition_the_images(confidence: np.ndarray, bins: int) -> None:
    correct = confidence > 0.5
    result = metrics.reliability_bins(confidence, correct, bins)
    assert sum(b.count for b in result) == confidence.size
    for b in result:
        assert b.count == 0 or b.low - 1e-12 <= b.confidence <= b.high + 1e-12
    assert 0 <= metrics.expected_calibration_error(result) <= 1


def test_expected_calibration_error_of_a_calibrated_set_is_zero() -> None:
    confidence = np.full(10, 0.7)
    correct = np.arange(10) < 7
    assert metrics.expected_calibration_error(metrics.reliability_bins(confidence, correct)) == pytest.approx(0)


@given(hnp.arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)), st.integers(0, 9))
@settings(max_examples=30)
def test_calibration_error_lies_in_its_interval(confidence: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    correct = generator.random(confidence.size) < confidence
    estimate = metrics.calibration_error(confidence, correct, generator=generator)
    bins = metrics.reliability_bins(confidence, correct)
    assert estimate.value == metrics.expected_calibration_error(bins)
    assert 0 <= estimate.low <= estimate.value <= estimate.high


def test_calibration_interval_agrees_with_resampled_images() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.beta(5, 2, size=500)
    correct = generator.random(500) < confidence**2
    estimate = metrics.calibration_error(confidence, correct, generator=generator)
    errors = []
    for _ in range(400):
        rows = generator.integers(0, 500, 500)
        errors.append(metrics.expected_calibration_error(metrics.reliability_bins(confidence[rows], correct[rows])))
    np.testing.assert_allclose((estimate.low, estimate.high), np.quantile(errors, [0.025, 0.975]), atol=0.01)


def test_confidence_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"confidences in \[0, 1\]"):
        metrics.reliability_bins(np.array([1.2]), np.array([True]))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_temperature_is_recovered_from_labels_drawn_at_it(temperature: float) -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 3, size=(20000, 5)) * temperature
    probability = np.exp(metrics.log_softmax(logits / temperature))
    labels = (probability.cumsum(axis=1) < generator.random((20000, 1))).sum(axis=1).clip(max=4)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_has_bounds_for_sets_without_a_minimum() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert metrics.fit_temperature(logits, np.array([0, 1])) == 1e-3
    assert metrics.fit_temperature(logits, np.array([1, 0])) == 1e3


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.top_k(np.zeros(3), 1),
        lambda: metrics.top_k(np.zeros((2, 3)), 0),
        lambda: metrics.agreement(np.array([1]), np.array([1, 2])),
        lambda: metrics.cosine_rows(np.zeros((1, 2)), np.zeros((1, 3))),
        lambda: metrics.kl_divergence(reference=np.zeros((1, 2)), candidate=np.zeros((1, 3))),
        lambda: metrics.paired_difference([], [], generator=np.random.default_rng(0)),
        lambda: metrics.expected_calibration_error(()),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        call()

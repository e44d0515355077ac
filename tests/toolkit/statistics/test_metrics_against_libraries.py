"""The NumPy figures of the runtime against scikit-learn and SciPy, which a device does not have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics as sk

from p4q_edge.runtime.statistics import metrics


def draw(seed: int, n: int = 300, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)) * 3
    logits[np.arange(n), labels] += 2
    return logits, labels


@pytest.mark.parametrize("seed", range(5))
def test_classification_figures_equal_scikit_learn(seed: int) -> None:
    logits, labels = draw(seed)
    predictions = metrics.top_k(logits, 1)[:, 0]
    correct = metrics.top_k_correct(logits, labels)
    assert correct.mean() == sk.accuracy_score(labels, predictions)
    for k in (2, 5):
        expected = sk.top_k_accuracy_score(labels, logits, k=k, labels=np.arange(7))
        assert metrics.top_k_correct(logits, labels, k).mean() == pytest.approx(expected)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(labels, predictions, 7), sk.confusion_matrix(labels, predictions, labels=range(7))
    )
    mean = metrics.mean_per_class(correct, labels, 7, generator=np.random.default_rng(0))
    assert mean.value == pytest.approx(sk.balanced_accuracy_score(labels, predictions))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60)
def test_wilson_interval_equals_scipy(case: tuple[int, int]) -> None:
    expected = stats.binomtest(*case).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(metrics.wilson_interval(*case), (expected.low, expected.high), atol=1e-9)


@given(st.integers(0, 80), st.integers(0, 80))
@settings(max_examples=60)
def test_mcnemar_equals_the_binomial_test(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True])
    second = np.array([False] * only_first + [True] * only_second + [True])
    n = only_first + only_second
    expected = stats.binomtest(only_first, n).pvalue if n else 1.0
    assert metrics.mcnemar_exact(first, second).p_value == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_and_temperature_equal_scipy(seed: int) -> None:
    logits, labels = draw(seed)
    other = logits + np.random.default_rng(seed + 10).normal(size=logits.shape)
    p, q = np.exp(metrics.log_softmax(logits)), np.exp(metrics.log_softmax(other))
    np.testing.assert_allclose(
        metrics.kl_divergence(reference=logits, candidate=other), stats.entropy(p, q, axis=1), rtol=1e-9
    )

    def loss(log_temperature: float) -> float:
        scaled = metrics.log_softmax(logits / np.exp(log_temperature))
        return float(-scaled[np.arange(len(labels)), labels].mean())

    best = optimize.minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9})
    assert metrics.fit_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_bootstrap_interval_equals_scipy() -> None:
    sample = np.random.default_rng(4).normal(size=400)
    ours = metrics.bootstrap_mean(sample, generator=np.random.default_rng(0))
    theirs = stats.bootstrap((sample,), np.mean, method="percentile", rng=np.random.default_rng(0))
    np.testing.assert_allclose(
        (ours.low, ours.high), theirs.confidence_interval, atol=0.02 * (ours.high - ours.low) + 0.005
    )

"""The area under the curve against scikit-learn, which a device does not have."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from p4q_edge.runtime.statistics import auroc


@pytest.mark.parametrize("seed", range(5))
def test_the_area_equals_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive, negative = generator.normal(0.5, 1, 40).round(1), generator.normal(0, 1, 90).round(1)  # with ties
    labels = np.r_[np.ones(40), np.zeros(90)]
    assert auroc(positive, negative).value == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))

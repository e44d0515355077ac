"""The comparison of layers on made-up values."""

import itertools

import numpy as np
import pytest

from p4q_edge.evaluation import layer_debug as debug
from p4q_edge.runtime.evaluation.report.document import LayerFinding


def layers(*errors: tuple[float, float]) -> list[LayerFinding]:
    return [LayerFinding(layer=f"layer{i}", error_in=a, error_out=b) for i, (a, b) in enumerate(errors)]


def test_a_jump_is_found_where_it_happens() -> None:
    found = debug.first_difference(layers((0.0, 1e-7), (1e-7, 0.9), (0.9, 1.1)), 0.05)
    assert found is not None
    assert found.layer == "layer1"


def test_rounding_that_grows_from_layer_to_layer_is_no_fault() -> None:
    errors = [0.001 * 1.6**i for i in range(12)]
    assert errors[-1] > 0.05
    assert debug.first_difference(layers(*itertools.pairwise(errors)), 0.05) is None


def test_a_jump_after_grown_rounding_is_found() -> None:
    found = debug.first_difference(layers((0.0, 0.01), (0.04, 0.07), (0.1, 0.9)), 0.05)
    assert found is not None
    assert found.layer == "layer2"


def test_one_wrong_channel_of_many_is_seen_and_a_silent_one_is_not() -> None:
    reference = np.random.default_rng(0).normal(size=(4, 17, 512))
    reference[..., 3] = 1e-9
    wrong = reference.copy()
    wrong[..., 7] *= 2
    assert debug.relative_error(reference, wrong) == pytest.approx(1.0)
    quiet = reference.copy()
    quiet[..., 3] *= 2
    assert debug.relative_error(reference, quiet) < 1e-6


def test_what_is_not_finite_or_of_another_size_has_no_bound() -> None:
    reference = np.ones((2, 5, 3))
    assert debug.relative_error(reference, np.full((2, 5, 3), np.nan)) == debug.UNBOUNDED
    assert debug.relative_error(reference, np.ones((2, 4, 3))) == debug.UNBOUNDED


def test_the_class_token_is_compared_with_the_first_token() -> None:
    reference = np.random.default_rng(0).normal(size=(2, 5, 3))
    assert debug.relative_error(reference, reference[:, 0]) == 0.0


def test_proposals_are_written_as_the_recipe_takes_them() -> None:
    found = layers((0.0, 0.5), (0.0, 0.9))
    named = [
        LayerFinding(layer="encoder.trunk.blocks.1.attn.in_proj", error_in=0.0, error_out=0.9),
        LayerFinding(layer="encoder.trunk.blocks.1.attn.out_proj", error_in=0.1, error_out=0.8),
        LayerFinding(layer="adapter.up", error_in=0.0, error_out=0.95),
    ]
    assert debug.added_error([*found, *named], 0.05) == ("trunk.blocks.1.attn",)

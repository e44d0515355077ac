"""Running plans against the doubles: checks before loading, batches, graphs, threads, failures and cleanup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine, device_index, fingerprint
from p4q_edge.runtime.engines.tensorrt.library import machine_facts
from p4q_edge.runtime.errors import (
    CorruptArtifactError,
    IncompatibleEngineError,
    InputError,
    P4QEdgeError,
    UsageError,
)

from doubles.cards import card_of
from doubles.cuda import RecordingCuda
from doubles.tensorrt import TensorRTDouble, compute


def test_everything_is_compared_before_tensorrt_sees_the_plan(installed: Any, plan: Path) -> None:
    with pytest.raises(IncompatibleEngineError, match=re.escape(f"{plan} was built by TensorRT 9.9.9 for Orin")):
        TensorRTEngine.open(plan, card_of(installed, tensorrt="9.9.9"))
    plan.write_bytes(b"another plan")
    with pytest.raises(CorruptArtifactError, match="is not the plan that its card describes: their digests differ"):
        TensorRTEngine.open(plan, card_of(installed))
    assert installed.calls == ["open_cuda", "open_cuda"]


def test_cuda_comes_before_the_runtime_and_the_runtime_before_the_plan(installed: Any, plan: Path) -> None:
    TensorRTEngine.open(plan, card_of(installed))
    assert installed.calls == ["open_cuda", "Runtime", "deserialize_cuda_engine"]
    assert installed.runtimes[-1].engine_host_code_allowed is False


def test_host_code_is_allowed_only_where_the_card_says_so(installed: Any, plan: Path) -> None:
    TensorRTEngine.open(plan, card_of(installed, version_compatible="true"))
    assert installed.runtimes[-1].engine_host_code_allowed is True


def test_a_plan_that_tensorrt_refuses_is_incompatible_with_its_reason(installed: Any, plan: Path) -> None:
    installed.refuse_plan = True
    with pytest.raises(
        IncompatibleEngineError, match=r"cannot load .*out\.plan: Serialization assertion magicTag failed\. Run: p4q"
    ):
        TensorRTEngine.open(plan, card_of(installed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_inputs": ["logits"]}, r"expected one input `image` uint8 \(N, 3, H, W\), got \['logits'\]"),
        ({"io": {"image": ("FLOAT", (-1, 3, 4, 4))}}, "expected one input `image` uint8"),
        ({"io": {"image": ("UINT8", (-1, 4, 4))}}, "expected one input `image` uint8"),
        (
            {"io": {"image": ("UINT8", (-1, 3, 4, 4)), "logits": ("FLOAT", (-1, 5))}},
            "expected outputs logits, embedding, features, got logits",
        ),
        (
            {
                "io": {
                    "image": ("UINT8", (-1, 3, 4, 4)),
                    "logits": ("FLOAT", (-1, 5)),
                    "embedding": ("HALF", (-1, 3)),
                    "features": ("FLOAT", (-1, 3)),
                }
            },
            "expected the output embedding as float32",
        ),
    ],
)
def test_an_engine_of_something_else_is_refused(
    installed: Any, plan: Path, changes: dict[str, Any], message: str
) -> None:
    for name, value in changes.items():
        setattr(installed, name, value)
    with pytest.raises(CorruptArtifactError, match=message):
        TensorRTEngine.open(plan, card_of(installed))


def test_results_are_right_for_every_batch_also_beyond_the_largest(
    engine: Any, doubles: Any, images: np.ndarray
) -> None:
    for batch in (1, 3, 4, 9, 1):
        outputs = engine.run(images[:batch])
        expected = doubles.compute(images[:batch])
        assert outputs.keys() == expected.keys()
        for name, array in expected.items():
            assert outputs[name].dtype == np.float32
            np.testing.assert_array_equal(outputs[name], array)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_sequence_of_batches_gives_what_each_gives_alone(batches: list[int]) -> None:
    cuda = RecordingCuda()
    double = TensorRTDouble("11.4.0.106", cuda)
    loaded = TensorRTEngine.from_plan(double.trt, cuda, b"plan", name="plan")
    generator = np.random.default_rng(1)
    for batch in batches:
        image = generator.integers(0, 256, (batch, 3, 4, 4), dtype=np.uint8)
        np.testing.assert_array_equal(loaded.run(image)["features"], compute(image)["features"])
    loaded.close()
    assert cuda.leaks == {}


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 11), st.booleans())
def test_any_number_of_images_passes_through_any_profile(smallest: int, more: int, count: int, fixed: bool) -> None:
    """No image is lost, none is answered twice, and padding is never seen."""
    cuda = RecordingCuda()
    double = TensorRTDouble("10.3.0", cuda)
    double.batches = (smallest, smallest, smallest + more)
    if fixed:
        double.io = {name: (dtype, (smallest, *shape[1:])) for name, (dtype, shape) in double.io.items()}
    loaded = TensorRTEngine.from_plan(double.trt, cuda, b"plan", name="plan")
    image = np.random.default_rng(count).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    for name, expected in compute(image).items():
        np.testing.assert_array_equal(loaded.run(image)[name], expected)
    loaded.close()
    assert cuda.leaks == {}


def test_results_are_copies(engine: Any, images: np.ndarray) -> None:
    first = engine.run(images[:1])["features"]
    kept = first.copy()
    engine.run(images[1:2])
    np.testing.assert_array_equal(first, kept)


def test_named_outputs_only(engine: Any, images: np.ndarray) -> None:
    assert list(engine.run(images[:1], ("embedding",))) == ["embedding"]
    with pytest.raises(ValueError, match=r"expected outputs of .*got \['boxes'\]"):
        engine.run(images[:1], ("boxes",))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 3, 4, 4), np.uint8),
    ],
)
def test_another_image_is_a_programming_error(engine: Any, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(N, \(3, 4, 4\)\)"):
        engine.run(image)


def test_images_that_are_not_contiguous_are_run_as_they_look(engine: Any, doubles: Any, images: np.ndarray) -> None:
    turned = images[:2].transpose(0, 1, 3, 2)[:, ::-1]
    np.testing.assert_array_equal(engine.run(turned)["features"], doubles.compute(turned.copy())["features"])


@pytest.mark.parametrize("fixed", [False, True])
def test_fewer_images_than_the_smallest_batch_are_padded_and_dropped(
    installed: Any, plan: Path, images: np.ndarray, fixed: bool
) -> None:
    installed.batches = (3, 3, 4)
    if fixed:
        installed.io = {name: (dtype, (3, *shape[1:])) for name, (dtype, shape) in installed.io.items()}
    loaded = TensorRTEngine.open(plan, card_of(installed))
    assert loaded.batches == (3, 3 if fixed else 4)
    assert loaded.input_shape == (-1, 3, 4, 4)
    for count in range(1, len(images) + 1):
        outputs, expected = loaded.run(images[:count]), compute(images[:count])
        for name, values in expected.items():
            np.testing.assert_array_equal(outputs[name], values)
    assert len(loaded.device_times_ms(images[:1], runs=2)) == 2
    with pytest.raises(InputError, match="expected at most"):
        loaded.device_times_ms(images, runs=2)


def test_the_double_refuses_a_batch_outside_of_its_profile(installed: Any, plan: Path, images: np.ndarray) -> None:
    """Or the tests of padding would pass without any."""
    installed.batches = (3, 3, 4)
    loaded = TensorRTEngine.open(plan, card_of(installed))
    with (
        loaded._cuda.current(),
        loaded._pool.lease(1) as session,
        pytest.raises(P4QEdgeError, match="refuses the input"),
    ):
        session.run(images[:1])


def test_what_the_engine_tells_of_itself(engine: Any) -> None:
    assert engine.input_shape == (-1, 3, 4, 4)
    assert engine.output_names == ("logits", "embedding", "features")
    assert engine.device_memory_bytes == 12345


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_devices_are_named_as_everywhere(device: str, index: int) -> None:
    assert device_index(device, engine="out.plan") == index


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:-1", "gpu", "cuda:0 "])
def test_another_device_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=r"out\.plan is a TensorRT engine and runs on auto, cuda or cuda:N, not on"):
        device_index(device, engine="out.plan")


def test_at_least_one_session(installed: Any, plan: Path) -> None:
    with pytest.raises(UsageError, match="at least one session, got 0"):
        TensorRTEngine.open(plan, card_of(installed), sessions=0)


def test_the_fingerprint_names_what_decides_the_values(installed: Any) -> None:
    assert dict(fingerprint()) == {
        "tensorrt": installed.trt.__version__,
        "gpu": "Orin",
        "compute_capability": "8.7",
        "platform": machine_facts(installed.trt, installed.cuda.facts)["platform"],
    }

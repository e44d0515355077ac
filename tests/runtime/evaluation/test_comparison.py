"""The chain on made-up stages: what must be found, what must be let through."""

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation import comparison as chain
from p4q_edge.runtime.stage import STAGE_ORDER

CLASSES = 10
DIM = 16


class Stage:
    """A linear classifier of mean colours; `noise` and `twist` make it differ from the exact one."""

    def __init__(self, *, noise: float = 0.0, twist: float = 0.0) -> None:
        generator = np.random.default_rng(0)
        self.encoder = generator.normal(size=(3 * 16, DIM))
        self.classes = generator.normal(size=(CLASSES, DIM))
        self.noise = noise * np.random.default_rng(1).normal(size=(3 * 16, DIM))
        self.noise[:, : DIM // 2] += twist * self.encoder[:, : DIM // 2]

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        pixels = batch.reshape(len(batch), -1) / 255 - 0.5
        features = pixels @ (self.encoder + self.noise)
        embedding = features / np.linalg.norm(features, axis=1, keepdims=True)
        return {"embedding": embedding, "logits": 10 * embedding @ self.classes.T}


def data(n: int = 300) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images = np.random.default_rng(2).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)
    labels = Stage()(images)["logits"].argmax(axis=1)
    flip = np.random.default_rng(3).random(n) < 0.2
    labels[flip] = (labels[flip] + 1) % CLASSES
    return images, labels, [f"class {i}" for i in range(CLASSES)]


def run(stages: dict[str, chain.Stage], n: int = 300, **gates: float) -> chain.ChainReport:
    images, labels, names = data(n)
    options = chain.ChainOptions(batch_size=64, gates=chain.Gates(**gates))  # type: ignore[arg-type]
    return chain.validate_chain(stages, images, labels, names, options=options)


def test_equal_stages_pass_with_nothing_lost() -> None:
    report = run({name: Stage() for name in STAGE_ORDER}, max_top1_drop=0.0)
    assert report.passed
    assert len(report.gates) == 7
    assert [stage.name for stage in report.stages] == list(STAGE_ORDER)
    assert 0.7 < report.stage("float").top1.value < 0.9
    hop = report.hop("float", "engine")
    assert (hop.agreement.value, hop.mcnemar.p_value, hop.max_logit_difference) == (1.0, 1.0, 0.0)
    assert report.changed("float", "engine") == ()


def test_figures_do_not_depend_on_the_batch_size() -> None:
    images, labels, names = data(70)
    reports = [
        chain.validate_chain({"float": Stage()}, images, labels, names, options=chain.ChainOptions(batch_size=size))
        for size in (1, 64, 500)
    ]
    assert len({report.stage("float").top1 for report in reports}) == 1
    assert len({report.predictions["float"] for report in reports}) == 1


def test_a_broken_engine_fails_the_cosine_gate_by_name() -> None:
    report = run({"fake_quant": Stage(), "onnx": Stage(), "engine": Stage(twist=1.0)})
    failed = {gate.name for gate in report.gates if not gate.passed}
    assert "cosine (p1), fake_quant to engine" in failed
    assert "cosine (p1), onnx to engine" in failed
    assert "cosine (p1), fake_quant to onnx" not in failed
    assert not report.passed


def test_rounding_noise_passes_the_gates() -> None:
    report = run({"fake_quant": Stage(), "engine": Stage(noise=1e-4)})
    assert report.passed
    assert report.hop("fake_quant", "engine").cosine.min < 1.0


def test_the_grid_gates_leave_the_step_to_quantization_alone() -> None:
    report = run({"float": Stage(twist=0.3), "fake_quant": Stage(), "engine": Stage()})
    assert report.passed
    assert report.hop("float", "fake_quant").cosine.p1.value < 0.999


def test_top1_drop_is_gated_when_asked_for() -> None:
    stages = {"float": Stage(), "engine": Stage(twist=2.0)}
    assert run(stages).passed
    report = run(stages, max_top1_drop=1.0)
    (gate,) = report.gates
    assert (gate.name, gate.passed, gate.limit, gate.unit) == ("top-1 drop, float to engine", False, 1.0, "points")
    assert gate.value == pytest.approx(100 * (report.stage("float").top1.value - report.stage("engine").top1.value))


def test_one_image_may_change_in_a_small_set() -> None:
    def one_wrong(batch: np.ndarray) -> dict[str, np.ndarray]:
        out = Stage()(batch)
        first = (batch == images[0]).all(axis=(1, 2, 3))
        out["logits"][first] = np.eye(CLASSES)[(labels[0] + 3) % CLASSES]
        return out

    images, labels, names = data(20)
    labels[0] = Stage()(images)["logits"][0].argmax()
    report = chain.validate_chain({"onnx": Stage(), "engine": one_wrong}, images, labels, names)
    assert report.passed
    assert report.hop("onnx", "engine").top1_difference.value == pytest.approx(-0.05)
    assert report.changed("onnx", "engine") == (0,)


def test_confusion_and_class_accuracy_add_up() -> None:
    stage = run({"float": Stage()}).stage("float")
    assert stage.confusion is not None
    matrix = np.array(stage.confusion)
    assert matrix.sum() == stage.n
    assert np.trace(matrix) / stage.n == stage.top1.value
    label, prediction, count = stage.confused[0]
    assert matrix[label, prediction] == count == (matrix - np.diag(np.diag(matrix))).max()


def test_top5_needs_more_than_five_classes() -> None:
    def three(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": np.eye(3)[np.zeros(len(batch), dtype=int)], "embedding": np.ones((len(batch), 2))}

    images, _, _ = data(4)
    report = chain.validate_chain({"engine": three}, images, [0, 0, 1, 2], ["a", "b", "c"])
    assert report.stage("engine").top5 is None
    assert run({"engine": Stage()}).stage("engine").top5 is not None


def test_a_report_is_json() -> None:
    report = run({"float": Stage(), "engine": Stage(noise=1e-3)}, n=30)
    again = msgspec.json.decode(msgspec.json.encode(report), type=chain.ChainReport)
    assert again == report


def test_images_may_be_loaded_on_demand() -> None:
    images, labels, names = data(30)
    asked: list[slice] = []

    class Lazy:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append(rows)
            return images[rows]

    chain.validate_chain({"engine": Stage()}, Lazy(), labels, names, options=chain.ChainOptions(batch_size=16))
    assert asked == [slice(0, 16), slice(16, 32)]


def broken(**changes: object):  # type: ignore[no-untyped-def]
    def stage(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {k: v for k, v in {**Stage()(batch), **changes}.items() if v is not None}  # type: ignore[dict-item]

    return stage


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (broken(embedding=None), "gives logits; expected embedding too"),
        (broken(logits=np.zeros((30, 4))), r"logits of shape \(30, 4\) for 30 images; expected 10 classes"),
        (broken(logits=np.full((30, CLASSES), np.nan)), "logits that are not finite for 30 of 30 images"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(stage: chain.Stage, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run({"engine": stage}, n=30)


def test_embeddings_of_two_widths_are_refused() -> None:
    with pytest.raises(InputError, match=r"embeddings of onnx have shape .* Check that they were made from one"):
        run({"onnx": Stage(), "engine": broken(embedding=np.ones((30, 3)))}, n=30)


def test_labels_must_fit_images_and_classes() -> None:
    images, labels, names = data(30)
    with pytest.raises(InputError, match="one label for each"):
        chain.validate_chain({"engine": Stage()}, images, labels[:-1], names)
    with pytest.raises(InputError, match="at least one image"):
        chain.validate_chain({"engine": Stage()}, images[:0], [], names)
    with pytest.raises(InputError, match="labels reach from 0 to 10, and the engine names 10 classes"):
        chain.validate_chain({"engine": Stage()}, images, [CLASSES, *[0] * 29], names)

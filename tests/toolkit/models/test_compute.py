"""Devices by name, their precision, and batches that grow and shrink with memory."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from p4q_edge.cli.preflight import check_device
from p4q_edge.models.batches import LARGEST_BATCH, Batches, encode_batches, run_batches
from p4q_edge.models.compute import Compute, CudaMemory, choose_device, decoding_workers, teacher_precision
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.quant.observers import MagnitudeHistogram
from p4q_edge.recipe import on_device
from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.schema import ComputeSection
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

GIB = 1 << 30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes torch tell of so many GPUs; its switches for TF32 are restored after the test."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in switches]

    def tell(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Toy GPU")

    yield tell
    for one, allowed in zip(switches, before, strict=True):
        one.allow_tf32 = allowed


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_name_is_the_device_that_it_says(name: str, count: int, expected: str, gpus: Callable[[int], None]) -> None:
    gpus(count)
    assert choose_device(name) == torch.device(expected)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(gpus: Callable[[int], None]) -> None:
    gpus(1)
    with pytest.raises(EnvironmentNotAbleError, match=r"'cuda:1'.*finds here: cpu, cuda:0 \(Toy GPU\). Name one of"):
        choose_device("cuda:1")
    gpus(0)
    with pytest.raises(EnvironmentNotAbleError, match=r"'cuda'.*finds here: cpu.*--device or compute.device"):
        choose_device("cuda")


def test_a_gpu_that_is_looked_for_first_is_logged_where_it_is_taken_alone(
    gpus: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Before a build or a validation reads anything, it looks whether the device is there."""
    gpus(2)
    caplog.set_level("INFO", "p4q_edge")
    check_device(on_device(demo_recipe(), "cuda:1"))
    assert [record.message for record in caplog.records] == []
    Compute.of(ComputeSection(device="cuda:1"))
    assert [record.message for record in caplog.records] == ["PyTorch computes on cuda:1 (Toy GPU)"]


def test_float32_is_multiplied_as_such_but_for_the_teacher_that_may_be_coarser(gpus: Callable[[int], None]) -> None:
    gpus(1)
    torch.backends.cudnn.allow_tf32 = True
    device = choose_device("cuda")
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    assert not any(one.allow_tf32 for one in switches)
    with teacher_precision(Compute(device=device, precision="tf32")):
        assert all(one.allow_tf32 for one in switches)
    assert not any(one.allow_tf32 for one in switches)


def test_a_bf16_teacher_computes_matrix_products_in_bf16(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    exact = encode_batches(toy_clip.clip.visual, [batch])  # type: ignore[arg-type]
    with teacher_precision(Compute(precision="bf16")):
        coarse = encode_batches(toy_clip.clip.visual, [batch])  # type: ignore[arg-type]
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, exact)
    assert float(torch.cosine_similarity(coarse, exact).min()) > 0.999


def test_a_recipe_is_resolved_on_the_machine(gpus: Callable[[int], None]) -> None:
    gpus(2)
    section = ComputeSection(device="cuda:1", memory_gib=1.5)
    compute = Compute.of(section)
    assert compute.device == torch.device("cuda:1")
    assert isinstance(compute.meter, CudaMemory)
    assert compute.meter.limit_bytes == 3 * GIB // 2
    assert Compute.of(ComputeSection(device="cuda", batch_size=8)).meter is None
    assert Compute.of(ComputeSection(device="cpu")) == Compute()
    assert Compute.of(ComputeSection(device="cpu", batch_size=8)).batch_size == 8


@pytest.mark.parametrize(
    ("limit", "free", "peak", "fits"),
    [(0, 6, 3, True), (0, 4, 3, False), (4, 100, 3, False), (5, 100, 3, True), (0, 100, 1, True)],
)
def test_twice_a_batch_is_weighed_against_what_is_free(
    limit: int, free: int, peak: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 GiB is there before the batch and held by this process; the batch itself needs `peak` - 1."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 200 * GIB))
    meter = CudaMemory(torch.device("cuda:0"), limit_bytes=limit * GIB)
    meter.start()
    assert meter.fits_twice() is fits


class Meter:
    """Says that a batch of twice the images fits whenever it is asked."""

    def start(self) -> None:
        pass

    def fits_twice(self) -> bool:
        return True


def _batches(model: LoadedModel, images: Tensor, size: int, meter: Meter | None) -> Batches:
    return Batches(images=images, spec=model.preprocess, size=size, compute=Compute(meter=meter))


def _holding(most: int, seen: list[int]) -> Callable[[Tensor], Tensor]:
    """Returns what it is given, as long as that is at most so many images."""

    def run(batch: Tensor) -> Tensor:
        if len(batch) > most:
            raise torch.OutOfMemoryError("toy memory is full")
        seen.append(len(batch))
        return batch

    return run


@pytest.mark.parametrize(
    ("size", "most", "metered", "sizes"),
    [
        (8, 99, False, [8, 8, 8]),
        (7, 99, False, [7, 7, 7, 3]),
        (2, 99, True, [2, 4, 8, 10]),
        (2, 4, True, [2, 4, 4, 4, 4, 4, 2]),
        (16, 5, False, [4, 4, 4, 4, 4, 4]),
    ],
)
def test_batches_grow_and_shrink_and_lose_nothing(
    size: int,
    most: int,
    metered: bool,
    sizes: list[int],
    toy_clip: LoadedModel,
    toy_pixels: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []
    batches = _batches(toy_clip, toy_pixels, size, Meter() if metered else None)
    parts = run_batches(_holding(most, seen), batches, "test")
    assert torch.equal(torch.cat(parts), to_batch(toy_pixels, toy_clip.preprocess))
    assert seen == sizes
    told = [record.message for record in caplog.records]
    assert len(told) == (2 if size == 16 else 1 if most == 4 else 0)
    assert all("ran out of memory with" in line for line in told)


def test_an_image_that_must_not_count_twice_does_not(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    """A histogram that was half filled when memory ran out starts again."""
    histogram = MagnitudeHistogram(torch.tensor(3.0))
    tries = 0

    def run(batch: Tensor) -> None:
        nonlocal tries
        tries += 1
        histogram.observe(batch)
        if len(batch) > 8 and tries == 2:
            raise torch.OutOfMemoryError("toy memory is full")

    run_batches(run, _batches(toy_clip, toy_pixels, 10, None), "test", restart=lambda: histogram.counts.zero_())
    once = MagnitudeHistogram(torch.tensor(3.0))
    once.observe(to_batch(toy_pixels, toy_clip.preprocess))
    assert torch.equal(histogram.counts, once.counts)


def test_an_image_that_does_not_fit_alone_ends_the_run(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    with pytest.raises(EnvironmentNotAbleError, match="one image alone needs more memory than cpu has left. Free some"):
        run_batches(_holding(0, []), _batches(toy_clip, toy_pixels, 4, None), "test")


def test_a_batch_that_grows_has_an_end() -> None:
    images = torch.zeros(4 * LARGEST_BATCH, 3, 1, 1, dtype=torch.uint8)
    seen: list[int] = []
    one_pixel = PreprocessSpec(size=(1, 1), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    run_batches(
        _holding(10**9, seen), Batches(images=images, spec=one_pixel, size=512, compute=Compute(meter=Meter())), "test"
    )
    assert max(seen) == LARGEST_BATCH
    assert sum(seen) == len(images)


@pytest.mark.parametrize(
    ("workers", "device", "cores", "processes", "expected"),
    [
        ("auto", "cpu", 16, 1, 0),
        ("auto", "cuda:0", 16, 1, 8),
        ("auto", "cuda:0", 4, 1, 3),
        ("auto", "cuda:0", 16, 4, 3),
        ("auto", "cuda:0", 1, 1, 0),
        (5, "cpu", 2, 2, 5),
    ],
)
def test_processes_that_decode_by_the_cores_that_there_are(
    workers: int | str, device: str, cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p4q_edge.runtime.machine.cpu.usable_cores", lambda: cores)
    section = ComputeSection(workers=workers)
    assert decoding_workers(section, torch.device(device), processes=processes) == expected

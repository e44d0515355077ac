"""Images that are streamed: the same order and values by any number of processes, and few of them alive at once."""

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.data import image_set
from p4q_edge.data.augmentation import Moves, augment
from p4q_edge.data.image_set import ImageStream, pixels
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_values_are_those_of_one_process(toy_images: Callable[[int], ImageSet], workers: int) -> None:
    images = toy_images(9)
    whole = pixels(images, SPEC)
    stream = ImageStream(images=images, spec=SPEC, workers=workers)
    batches = list(stream.split(7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 1]
    assert torch.equal(torch.cat(batches), whole)
    assert stream.shape == tuple(whole.shape)
    assert len(stream) == len(whole)
    assert torch.equal(stream[3:30:5], whole[3:30:5])
    assert torch.equal(stream[:2], whole[:2])


def test_no_more_processes_are_started_than_there_are_batches(toy_images: Callable[[int], ImageSet]) -> None:
    batches = ImageStream(images=toy_images(2), spec=SPEC, workers=6).split(4)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    assert len(list(batches)) == 1


@pytest.mark.parametrize(("workers", "cores", "left"), [(0, 2, 3), (1, 2, 1), (2, 2, 1), (1, 3, 2), (1, 16, 3)])
def test_processes_that_decode_have_cores_of_their_own(
    toy_images: Callable[[int], ImageSet], monkeypatch: pytest.MonkeyPatch, workers: int, cores: int, left: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(image_set.cpu, "usable_cores", lambda: cores)
    torch.set_num_threads(3)
    try:
        batches = ImageStream(images=toy_images(2), spec=SPEC, workers=workers).split(4)
        next(batches)
        assert torch.get_num_threads() == left
        batches.close()  # left in the middle
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_global_generator_is_left_alone(toy_images: Callable[[int], ImageSet]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(ImageStream(images=toy_images(2), spec=SPEC, workers=1).split(4))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_ends_with_its_own_words(toy_images: Callable[[int], ImageSet], workers: int) -> None:
    def broken(index: int) -> Image.Image:
        if index == 10:
            raise InputError("photo 10 cannot be read; replace it")
        return Image.new("RGB", (20, 20))

    stream = ImageStream(images=replace(toy_images(8), open_image=broken), spec=SPEC, workers=workers)
    batches = stream.split(4)
    assert [len(next(batches)), len(next(batches))] == [4, 4]
    with pytest.raises(InputError) as raised:
        next(batches)
    assert str(raised.value) == "photo 10 cannot be read; replace it"


def test_a_process_that_is_ended_from_outside_is_told_of(toy_images: Callable[[int], ImageSet]) -> None:
    def end(index: int) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    stream = ImageStream(images=replace(toy_images(2), open_image=end), spec=SPEC, workers=1)
    with pytest.raises(EnvironmentNotAbleError, match=r"ended from outside.*--shm-size.*compute.workers = 0"):
        list(stream.split(4))


def test_few_batches_are_alive_at_once(toy_images: Callable[[int], ImageSet]) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    for batch in ImageStream(images=toy_images(40), spec=SPEC, workers=0).split(4):
        alive.add(batch)
        del batch
        most = max(most, len(alive))
    assert most <= 2


def test_many_images_are_not_held(toy_images: Callable[[int], ImageSet], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ImageStream(images=toy_images(3), spec=SPEC)
    held = stream.held()
    assert isinstance(held, torch.Tensor)
    assert torch.equal(held, pixels(stream.images, SPEC))
    monkeypatch.setattr(image_set, "HELD_BYTES", 12 * 3 * 16 * 16 - 1)
    assert stream.held() is stream


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 150), first=st.integers(0, 149), size=st.integers(1, 70), flip=st.booleans())
def test_a_view_depends_on_the_place_of_its_image_alone(count: int, first: int, size: int, flip: bool) -> None:
    generator = np.random.default_rng(count)
    images = torch.from_numpy(generator.integers(0, 256, (count, 3, 12, 10)).astype(np.uint8))
    whole = augment(images, generator=torch.Generator().manual_seed(3), flip=flip)
    first = min(first, count - 1)
    some = images[first : first + size]
    moves = Moves.draw(count, generator=torch.Generator().manual_seed(3), flip=flip)
    assert torch.equal(moves.apply(some, first=first), whole[first : first + size])

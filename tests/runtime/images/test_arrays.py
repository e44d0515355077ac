"""Arrays, tensors, buffers and uploads: what is taken, and the advice that fits what is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.inputs import expand, is_single

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def png(array: np.ndarray = RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


class Upload:
    """What Flask and Django hand over."""

    def __init__(self, data: object) -> None:
        self.data = data

    def read(self, size: int) -> object:
        return self.data


class AsyncUpload:
    """What FastAPI hands over: its `file` is an ordinary file."""

    async def read(self, size: int) -> bytes:
        return b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO, Upload])
def test_encoded_bytes_come_in_many_forms(kind: type) -> None:
    image = kind(png())
    assert is_single(image)
    assert list(expand([image])) == [image]
    np.testing.assert_array_equal(np.asarray(load_image(image)), RGB)


def test_an_open_file_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file:
        assert is_single(file)
        np.testing.assert_array_equal(np.asarray(load_image(file)), RGB)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (io.StringIO("text"), 'the StringIO gives str, not bytes. Open the file with mode "rb"'),
        (
            io.BytesIO(),
            r"gives no bytes. Rewind it first: `file.seek\(0\)`; one that nobody read is empty, as of a form that",
        ),
        (AsyncUpload(), r"the AsyncUpload can only be read with await. Pass `upload.file`, or `await upload.read\(\)`"),
        (io.BytesIO(b"hello"), "image of 5 bytes is not one of JPEG, PNG"),
        (bytearray(b"hello"), "image of 5 bytes is not one of JPEG, PNG"),
        (b"", "the image has 0 bytes. Check where its bytes come from"),
    ],
)
def test_files_that_give_no_image_say_why(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(image)  # type: ignore[arg-type]


def test_a_closed_file_and_an_endless_one(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.BytesIO(png())
    closed.close()
    with pytest.raises(InputError, match="the BytesIO cannot be read: .*Pass it before it is closed, or its bytes"):
        load_image(closed)
    monkeypatch.setattr("p4q_edge.runtime.images.decode.MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="the BytesIO gives more than 10 bytes"):
        load_image(io.BytesIO(png()))


def test_one_channel_is_grey() -> None:
    grey = RGB[:, :, :1]
    for array in (grey, grey[:, :, 0]):
        assert load_image(array).mode == "L"
        np.testing.assert_array_equal(np.asarray(load_image(array)), grey[:, :, 0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            RGB / np.float32(255),
            r"of float32\. Convert it: `\(array \* 255\)\.round\(\)\.clip\(0, 255\)\.astype\('uint8'\)`",
        ),
        (RGB.astype(np.float64), r"of float64\. Convert it: `array\.round\(\)\.clip\(0, 255\)\.astype\('uint8'\)`"),
        (RGB / 255.0 - 0.5, "negative, as after a normalization: pass the pixels from before it"),
        (np.full((4, 5, 3), np.nan), "Some of its values are not finite"),
        (
            RGB.astype(np.uint16) * 256,
            r"of uint16\. Take its upper 8 bits if it has 16: `\(array >> 8\)\.astype\('uint8'\)`",
        ),
        (RGB.astype(np.int64), r"of int64\. Convert it: `array\.astype\('uint8'\)`"),
        (RGB > 7, r"of bool\. Convert it: `array\.astype\('uint8'\) \* 255`"),
        (RGB.transpose(2, 0, 1), r"\(3, 4, 5\) of uint8\. Its channels stand first: `array\.transpose\(1, 2, 0\)`"),
        (np.zeros((4, 5, 4), np.uint8), r"Leave out its alpha: `array\[:, :, :3\]`"),
        (np.zeros((4, 5, 2), np.uint8), r"Leave out its alpha: `array\[:, :, :1\]`"),
        (np.zeros((9, 5, 7), np.uint8), "Pass three channels, or one"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"Pass its images one by one: `list\(array\)`"),
        (np.zeros(4, np.uint8), "Pass the pixels of one image"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\) of uint8\. It has no pixels"),
    ],
)
def test_the_advice_fits_the_array(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(array)


@pytest.mark.parametrize(
    ("array", "expression"),
    [
        (RGB / np.float32(255), "(array * 255).round().clip(0, 255).astype('uint8')"),
        (RGB.astype(np.float64), "array.round().clip(0, 255).astype('uint8')"),
        (RGB.astype(np.uint16) * 256, "(array >> 8).astype('uint8')"),
        (RGB.transpose(2, 0, 1), "array.transpose(1, 2, 0)"),
        (RGB.astype(np.int64), "array.astype('uint8')"),
        (
            RGB.transpose(2, 0, 1) / np.float32(255),
            "(array.transpose(1, 2, 0) * 255).round().clip(0, 255).astype('uint8')",
        ),
        (RGB.transpose(2, 0, 1).astype(np.uint16) * 256, "(array.transpose(1, 2, 0) >> 8).astype('uint8')"),
    ],
)
def test_the_advised_expression_gives_the_image(array: np.ndarray, expression: str) -> None:
    with pytest.raises(InputError) as caught:
        load_image(array)
    assert f"`{expression}`" in str(caught.value)
    converted = eval(expression, {"array": array})  # noqa: S307  (the text is this test's own)
    np.testing.assert_array_equal(np.asarray(load_image(converted)), RGB)


def test_tensors_have_their_channels_first_or_where_it_is_clear() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.from_numpy(RGB.transpose(2, 0, 1).copy()), torch.from_numpy(RGB)):
        assert is_single(tensor)
        np.testing.assert_array_equal(np.asarray(load_image(tensor)), RGB)
    np.testing.assert_array_equal(
        np.asarray(load_image(torch.from_numpy(RGB[:, :, :1].transpose(2, 0, 1).copy()))), RGB[:, :, 0]
    )
    with pytest.raises(InputError, match=r"a tensor of \(3, 4, 3\) may have its channels first or last\. Say so"):
        load_image(torch.zeros(3, 4, 3, dtype=torch.uint8))
    scaled = torch.from_numpy(RGB.transpose(2, 0, 1) / np.float32(255))
    with pytest.raises(InputError, match=r"expected a tensor \(3, H, W\).*of float32") as caught:
        load_image(scaled)
    expression = "(tensor.permute(1, 2, 0) * 255).numpy().round().clip(0, 255).astype('uint8')"
    assert f"`{expression}`" in str(caught.value)
    converted = eval(expression, {"tensor": scaled})  # noqa: S307  (the text is this test's own)
    np.testing.assert_array_equal(np.asarray(load_image(converted)), RGB)

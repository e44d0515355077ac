"""Images of every mode, damaged ones, and the geometry of preprocessing; parity with open_clip is tested elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from pkgutil import resolve_name

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import decode as image_files
from p4q_edge.runtime.images import preprocessing as geometry
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.preprocessing import PreprocessSpec, draft_size, preprocess, resized_size

MEAN = STD = (0.5, 0.5, 0.5)


def spec_of(size: tuple[int, int] = (8, 8), **changes: object) -> PreprocessSpec:
    return PreprocessSpec(size=size, mean=MEAN, std=STD, **changes)  # type: ignore[arg-type]


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("tag", "turn"), [(1, None), (9, None), *geometry._TURNS.items()])
def test_the_exif_orientation_is_applied_where_the_specification_says_so(
    picture: Image.Image, file_format: str, tag: int, turn: Image.Transpose | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(picture, file_format, exif=exif)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    upright = stored if turn is None else stored.transpose(turn)
    image = load_image(data)
    np.testing.assert_array_equal(preprocess(image, spec_of(orient=True)), preprocess(upright, spec_of()))
    np.testing.assert_array_equal(preprocess(image, spec_of()), preprocess(stored, spec_of()))


def test_a_phone_s_portrait_stands_upright() -> None:
    """Row 0 is the right-hand side of the scene with tag 6: what is stored on the left belongs at the top."""
    stored = Image.new("RGB", (8, 4), (0, 0, 0))
    stored.paste((255, 255, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = preprocess(load_image(encoded(stored, "PNG", exif=exif)), spec_of((8, 4), orient=True))
    assert pixels.shape == (3, 8, 4)
    assert pixels[:, :3].min() > 200 > 50 > pixels[:, 5:].max()


@pytest.mark.filterwarnings("ignore:.*[cC]orrupt EXIF data")
@pytest.mark.parametrize("note", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_damaged_notes_beside_intact_pixels_change_nothing(picture: Image.Image, note: bytes) -> None:
    image = load_image(encoded(picture, "JPEG", exif=note))
    np.testing.assert_array_equal(preprocess(image, spec_of(orient=True)), preprocess(image, spec_of()))


def test_records_that_do_not_say_were_made_without_orientation() -> None:
    old = b'{"size": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    assert msgspec.json.decode(old, type=PreprocessSpec).orient is False


def test_a_draft_leaves_enough_of_a_picture_that_is_turned_afterwards() -> None:
    spec = spec_of((16, 64), orient=True)
    assert draft_size(spec) == (128, 128)
    assert draft_size(spec_of((16, 64))) == (128, 32)


def test_a_draft_decodes_less_of_a_large_jpeg() -> None:
    data = encoded(Image.new("RGB", (640, 480), (200, 30, 90)), "JPEG")
    spec = spec_of((32, 32))
    small = load_image(data, draft=draft_size(spec))
    assert small.size == (160, 120)
    fast = preprocess(small, spec, fast="draft").astype(int)
    exact = preprocess(load_image(data), spec).astype(int)
    assert np.abs(fast - exact).max() <= 2


def test_a_reducing_gap_stays_near_the_exact_result() -> None:
    waves = np.sin(np.arange(600)[:, None] / 31 + np.arange(800)[None, :] / 17)
    pixels = np.repeat((127 + 100 * waves).astype(np.uint8)[:, :, None], 3, axis=2)
    image = Image.fromarray(pixels)
    exact = preprocess(image, spec_of((64, 64))).astype(int)
    fast = preprocess(image, spec_of((64, 64)), fast="reducing_gap").astype(int)
    assert 0 < np.abs(fast - exact).max() <= 8


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr", "HSV", "I;16", "I"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_every_mode_becomes_three_channels(mode: str, resize_mode: str) -> None:
    if mode in ("I;16", "I"):
        values = np.arange(30 * 20).reshape(20, 30) * 100
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.new("RGB", (30, 20), (250, 120, 10)).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert image.mode == mode
    pixels = preprocess(image, spec_of(resize_mode=resize_mode))
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 0


def test_padding_has_the_fill_color() -> None:
    pixels = preprocess(Image.new("RGB", (20, 10), (255, 0, 0)), spec_of(resize_mode="longest", fill_color=77))
    assert (pixels[:, :2] == 77).all()
    assert (pixels[0, 2:6] == 255).all()
    assert (pixels[:, 6:] == 77).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "mode F cannot be converted to RGB: its values have no"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "mode I cannot be converted to RGB: its values exceed"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "its values exceed 16 bits"),
        (Image.new("La", (4, 4)), "mode La cannot be converted to RGB"),
        (Image.new("RGB", (1, 40_000)), "a picture of 1 x 40000 is too elongated"),
    ],
)
def test_images_without_a_meaning_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess(image, spec_of((64, 64)))


def test_a_side_never_becomes_zero() -> None:
    with pytest.raises(InputError, match="it would be resized to 0 x 8"):
        resized_size((1000, 1), spec_of(resize_mode="longest"))


@pytest.mark.parametrize(
    "values", [{"size": (0, 8)}, {"size": (8, 5000)}, {"std": (0.0, 1.0, 1.0)}, {"fill_color": 256}]
)
def test_wrong_specs_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PreprocessSpec(**{"size": (8, 8), "mean": MEAN, "std": STD, **values})  # type: ignore[arg-type]


def test_other_objects_are_a_type_error() -> None:
    with pytest.raises(
        TypeError, match="expected a path, bytes, a file object, a PIL image, an array or a tensor; got int"
    ):
        load_image(3)  # type: ignore[arg-type]


def test_a_grey_array_is_an_image() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(preprocess(load_image(grey, color="bgr"), spec_of()), np.stack([grey] * 3))


@pytest.mark.parametrize("look", ["os.path.isdir", "os.path.exists", "pathlib.Path.stat"])
def test_a_file_that_is_gone_after_a_look_at_it_is_told_of(
    look: str, tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    picture.save(path)
    looked = resolve_name(look)

    def remove_after(file: Path, *args: object, **options: object) -> object:
        found = looked(file, *args, **options)
        path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(look, remove_after)
    # Where the look is not taken the file stays.
    with contextlib.suppress(InputError):
        assert load_image(path).size == picture.size
    monkeypatch.undo()
    assert path.exists() == (look != "pathlib.Path.stat")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is a pipe, which may never be written to"):
        load_image(tmp_path / "pipe.png")


def test_files_that_are_no_images(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"a\.png' does not exist\. Check the path"):
        load_image(path)
    path.mkdir()
    with pytest.raises(InputError, match=r"a\.png is a folder, not an image"):
        load_image(path)
    with pytest.raises(InputError, match="image of 5 bytes is not one of JPEG, PNG, WEBP"):
        load_image(b"hello")
    data = encoded(picture, "PNG")
    with pytest.raises(InputError, match="Save it again as JPEG or PNG"):
        load_image(data[: len(data) // 2])
    big = tmp_path / "big.png"
    big.write_bytes(data)
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match=r"big\.png is larger than 10 bytes"):
        load_image(big)


def test_postscript_is_never_interpreted() -> None:
    with pytest.raises(InputError, match="is not one of JPEG"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    data = encoded(Image.new("1", (side, side)), "PNG")
    assert len(data) < 100_000
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(InputError, match="at most 89478485 are decoded|decompression bomb"):
                load_image(data)


def test_large_pil_images_and_arrays_are_refused(monkeypatch: pytest.MonkeyPatch, picture: Image.Image) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="the PIL image has 40 x 30 pixels; at most 100"):
        load_image(picture)
    with pytest.raises(InputError, match="the array has 40 x 30 pixels"):
        load_image(np.asarray(picture))


def test_a_truncated_pil_image_is_refused(picture: Image.Image) -> None:
    data = encoded(picture, "JPEG")
    with pytest.raises(InputError, match="the PIL image cannot be decoded: .* Open it again"):
        load_image(Image.open(io.BytesIO(data[: len(data) // 2])))


def test_too_little_memory_is_an_input_error(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    data = encoded(picture, "PNG")
    monkeypatch.setattr(image_files.Image, "open", full)
    with pytest.raises(InputError, match="does not fit into memory"):
        load_image(data)


def test_bounds_are_named() -> None:
    assert geometry.MAX_RESIZED_PIXELS * 3 <= 256 << 20

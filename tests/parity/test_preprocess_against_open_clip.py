"""Preprocessing is bit-equal to open_clip's evaluation transform before `ToTensor`."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.preprocessing import PreprocessSpec, preprocess

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr")
RESIZE_MODES = ("shortest", "longest", "squash")
SIZES = [(1, 1), (2, 3), (7, 5), (32, 32), (33, 31), (40, 1000), (1000, 40), (224, 224), (223, 225), (640, 480)]


def open_clip_pixels(image: Image.Image, config: PreprocessCfg) -> np.ndarray:
    """Return what open_clip's transform hands to `ToTensor`, (3, H, W) uint8."""
    transform = image_transform_v2(config, is_train=False)
    for step in transform.transforms[:-2]:
        image = step(image)
    assert type(transform.transforms[-2]).__name__ == "MaybeToTensor"
    return np.asarray(image).transpose(2, 0, 1)


def specs(config: PreprocessCfg) -> PreprocessSpec:
    size = (config.size, config.size) if isinstance(config.size, int) else config.size
    return PreprocessSpec(
        size=size,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        resize_mode=config.resize_mode,
        fill_color=config.fill_color,
    )


def picture(width: int, height: int, mode: str, *, seed: int = 0) -> Image.Image:
    """Return a picture with smooth and random parts."""
    generator = np.random.default_rng(seed)
    waves = np.sin(np.arange(height)[:, None, None] / 9 + np.arange(width)[None, :, None] / 7 + np.arange(3))
    pixels = (127 + 80 * waves + generator.integers(-40, 40, (height, width, 3))).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8)))
    return image if image.mode == mode else image.convert(mode)


def assert_equal(image: Image.Image, config: PreprocessCfg) -> None:
    expected = open_clip_pixels(image, config)
    got = preprocess(image, specs(config))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_and_modes(size: tuple[int, int], mode: str, resize_mode: str) -> None:
    config = PreprocessCfg(size=32, resize_mode=resize_mode, fill_color=17)
    assert_equal(picture(*size, mode), config)


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [224, (224, 224), (30, 44), (44, 30)], ids=str)
def test_filters_and_targets(size: object, interpolation: str, resize_mode: str) -> None:
    config = PreprocessCfg(size=size, resize_mode=resize_mode, interpolation=interpolation)  # type: ignore[arg-type]
    for width, height in ((640, 480), (61, 200), (20, 20)):
        assert_equal(picture(width, height, "RGB"), config)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    target=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    mode=st.sampled_from(MODES),
    resize_mode=st.sampled_from(RESIZE_MODES),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.integers(0, 255),
)
def test_any_picture(
    width: int,
    height: int,
    target: tuple[int, int],
    mode: str,
    resize_mode: str,
    interpolation: str,
    fill: int,
) -> None:
    config = PreprocessCfg(size=target, resize_mode=resize_mode, interpolation=interpolation, fill_color=fill)
    image = picture(width, height, mode)
    longest = max(width / target[1], height / target[0])
    if resize_mode == "longest" and min(round(width / longest), round(height / longest)) < 1:
        with pytest.raises(InputError, match="too elongated"):
            preprocess(image, specs(config))
        return
    np.testing.assert_array_equal(preprocess(image, specs(config)), open_clip_pixels(image, config))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs(name: str) -> None:
    assert_equal(Image.fromarray(load_sample_image(name)), PreprocessCfg(size=224))


def test_whole_transform_up_to_the_graph() -> None:
    """Cast and normalization, which the graph does, complete open_clip's transform to float rounding."""
    config = PreprocessCfg(size=32)
    image = picture(100, 80, "RGB")
    expected = image_transform_v2(config, is_train=False)(image)
    pixels = torch.from_numpy(preprocess(image, specs(config))).float() / 255
    normalized = (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
    torch.testing.assert_close(normalized, expected, atol=1e-6, rtol=0)


def test_the_comparison_can_fail() -> None:
    config = PreprocessCfg(size=32)
    wrong = PreprocessCfg(size=32, interpolation="bilinear")
    image = picture(100, 80, "RGB")
    assert not np.array_equal(preprocess(image, specs(wrong)), open_clip_pixels(image, config))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF"])
def test_files_are_read_as_pillow_reads_them(file_format: str, mode: str) -> None:
    if (file_format, mode) in {("JPEG", "P"), ("JPEG", "RGBA")}:
        pytest.skip("JPEG has neither palette nor alpha")
    buffer = io.BytesIO()
    picture(50, 70, mode).save(buffer, file_format)
    config = PreprocessCfg(size=32)
    expected = open_clip_pixels(Image.open(io.BytesIO(buffer.getvalue())), config)
    np.testing.assert_array_equal(preprocess(load_image(buffer.getvalue()), specs(config)), expected)


def test_the_exif_orientation_is_applied_or_as_in_open_clip_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(60, 40, "RGB").save(buffer, "JPEG", exif=exif)
    config = PreprocessCfg(size=32)
    expected = open_clip_pixels(Image.open(io.BytesIO(buffer.getvalue())), config)
    np.testing.assert_array_equal(preprocess(load_image(buffer.getvalue()), specs(config)), expected)
    upright = open_clip_pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))), config)
    oriented = preprocess(load_image(buffer.getvalue()), msgspec.structs.replace(specs(config), orient=True))
    np.testing.assert_array_equal(oriented, upright)
    assert not np.array_equal(oriented, expected)


def test_16_bit_greyscale_is_reduced_to_its_upper_8_bits_where_open_clip_saturates() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 50), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    config = PreprocessCfg(size=32)
    image = load_image(buffer.getvalue())
    expected = open_clip_pixels(Image.fromarray((values >> 8).astype(np.uint8)), config)
    np.testing.assert_array_equal(preprocess(image, specs(config)), expected)
    assert (open_clip_pixels(image, config) == 255).mean() > 0.9

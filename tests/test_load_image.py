"""Images in every common format give the pixels that transformers gives, or one error that names the file."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as stock

import prunehal as ph
from prunehal.files.images import image_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)


def picture(mode):
    """A 10 x 6 picture of a mode, its colours random."""
    if mode == "P with transparency":
        image = Image.fromarray(COLOURS).quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
        return image
    if mode in ("LA", "RGBA"):
        shape = (6, 10, len(mode))
        return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode)
    return Image.fromarray(COLOURS).convert(mode)


FORMATS = {
    "1": "png", "L": "png", "LA": "png", "P": "png", "P with transparency": "png", "RGB": "bmp", "RGBA": "webp", "CMYK": "jpg",
    "YCbCr": "jpg",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")  # transformers' own reading
@pytest.mark.parametrize(("mode", "suffix"), FORMATS.items(), ids=FORMATS)
def test_every_mode_gives_the_pixels_of_transformers(mode, suffix, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    picture(mode).save(path)
    with warnings.catch_warnings(action="error"):
        read = ph.load_image(path)
    assert (read.mode, read.size) == ("RGB", (10, 6))
    assert image_pixels(path) == 60
    assert np.array_equal(np.asarray(read), np.asarray(stock(str(path))))


# What stands upright after each orientation: rows and columns of the stored pixels, read from EXIF 2.3, tag 0x0112.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_a_picture_is_turned_as_its_exif_orientation_asks(orientation, suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(ph.load_image(path)), UPRIGHT[orientation](COLOURS))


def test_a_photo_that_lies_on_its_side_has_the_size_that_transformers_gives_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60), "red").save(tmp_path / "photo.jpg", exif=exif)
    assert ph.load_image(tmp_path / "photo.jpg").size == stock(str(tmp_path / "photo.jpg")).size == (60, 100)


SIXTEEN = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("suffix", ["png", "pgm", "tiff", "jp2"])
def test_grey_of_sixteen_bits_is_scaled_to_eight(suffix, tmp_path):
    path = tmp_path / f"scan.{suffix}"
    Image.fromarray(SIXTEEN).save(path)
    # 65535 / 255 = 257, so that 128 rounds to 0 and 129 to 1.
    assert np.asarray(ph.load_image(path))[..., 0].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_grey_of_sixteen_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SIXTEEN).save(tmp_path / "scan.png", exif=exif)
    assert np.asarray(ph.load_image(tmp_path / "scan.png"))[:, 0, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("values", [np.int32, np.float32])
def test_grey_whose_range_nobody_knows_is_refused(values, tmp_path):
    Image.fromarray(SIXTEEN.astype(values)).save(tmp_path / "depth.tiff")
    with pytest.raises(OSError, match=r"depth\.tiff' cannot be read: its grey values have 32 bits \(mode '[IF]'\)"):
        ph.load_image(tmp_path / "depth.tiff")


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp"])
def test_of_several_frames_the_first_is_taken(suffix, tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#ff0000", "#0000ff")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert ph.load_image(tmp_path / f"moving.{suffix}").getpixel((0, 0)) == (255, 0, 0)


def png_of(width, height):
    """The header of a PNG of that size, and no pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND"
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("read", [ph.load_image, image_pixels])
def test_a_picture_over_the_limit_of_pixels_is_one_error(read, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(20_000, 20_000))
    with pytest.raises(OSError, match=r"bomb\.png' is too large: Image size \(400000000 pixels\) .*at most 178,956,970 pixels"):
        read(path)


def test_a_picture_under_twice_the_limit_is_only_warned_of_by_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    Image.fromarray(COLOURS).save(tmp_path / "large.png")
    with pytest.warns(Image.DecompressionBombWarning):
        assert ph.load_image(tmp_path / "large.png").size == (10, 6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_a_damaged_file_is_read_or_named(suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(path, **({"exif": exif} if suffix in ("png", "jpg", "tiff", "webp") else {}))
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in RNG.integers(0, len(whole), 40)]
    for place, value in zip(RNG.integers(0, len(whole), 120), RNG.integers(1, 256, 120), strict=True):
        damaged.append(whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :])
    messages = []
    for raw in damaged:
        path.write_bytes(raw)
        try:
            assert ph.load_image(path).mode == "RGB"
        except OSError as error:
            messages.append(str(error))
    assert len(messages) >= 10
    assert all(f"photo.{suffix}" in message for message in messages)

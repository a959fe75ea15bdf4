"""Read image files as RGB, also those with an EXIF orientation, 16 bits, a palette or CMYK; refuse those that are cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["image_pixels", "load_image"]

_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose grey values of Pillow's mode "I" go up to 65,535


def load_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, whole, so that a broken file is noticed here and not in the middle of a batch.

    The image is turned by its EXIF orientation, as in transformers; of several frames the first is taken; transparency is
    dropped; grey values of 16 bits are scaled to 8.

    Raises:
        OSError: the file is missing, no image, cut off, over Pillow's limit of pixels, or has values of an unknown range.

    >>> from prunehal.files.paths import data_path
    >>> load_image(data_path("sprites", "sprites.png")).mode
    'RGB'
    """
    with _opened(path) as image:
        image.load()
        return _rgb(ImageOps.exif_transpose(image), image.format)


def image_pixels(path: str | Path) -> int:
    """Return width * height of an image, from its header alone.

    Raises:
        OSError: the file is missing, no image, or over Pillow's limit of pixels.

    >>> from prunehal.files.paths import data_path
    >>> image_pixels(data_path("photos", "chelsea.jpg"))
    135300
    """
    with _opened(path) as image:
        return image.width * image.height


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image; whatever its decoder raises becomes one OSError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OSError(
            f"image {str(path)!r} is too large: {error}; expected at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if the file can be trusted"
        ) from error
    except Exception as error:  # decoders of damaged files raise ValueError, SyntaxError, EOFError, struct.error and more
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"image {str(path)!r} cannot be read: {why}; expected a whole PNG, JPEG or the like; check it") from error


def _rgb(image: Image.Image, made_as: str | None) -> Image.Image:
    """Return the image as RGB; Pillow's own conversion of 16 bits cuts every value above 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and made_as in _SIXTEEN_BITS):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its grey values have 32 bits (mode {image.mode!r}), whose range the file does not name; save it as 8 bits"
        )
    elif image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns of a palette with transparency otherwise
    return image.convert("RGB")

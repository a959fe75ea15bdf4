"""Sprites of the testbed's world: one shipped sheet, cut into RGBA arrays.

The sheet was drawn once from the Noto Color Emoji font (SIL Open Font License 1.1) by :func:`draw_sheet`; at run time
only the sheet is read, so that a scene does not depend on the fonts or the resampling filters of a machine.

Each split of the scenes draws its sprites in looks of its own: mirrored, tilted, tinted by integer arithmetic, so that
they too come out bit for bit the same everywhere. Training never sees a tilt or a tint of the other splits, but upright.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunehal.files.paths import data_path
from prunehal.testbed.world.world import CATEGORIES, CLUTTER

__all__ = ["LOOKS", "PLAIN", "SIZES", "Look", "draw_sheet", "dressed", "load_sprites"]

SIZES = (16, 24, 32, 40)  # pixels; from barely visible to large on a 96-pixel tile
_FONT_SIZE = 109  # the only strike of the bitmap font


@dataclass(frozen=True)
class Look:
    """How a sprite is drawn: mirrored or not, tilted, tinted; the first values leave it as it is on the sheet.

    Attributes:
        mirrored: left and right exchanged.
        tilt: turn to the right by about that many sixteenths of a radian; whole or half ones.
        tint: a key of ``_TINTS``.
    """

    mirrored: bool = False
    tilt: float = 0
    tint: str = "plain"


PLAIN = Look()

# Partner of each channel, and share: a channel becomes (16 - share) / 16 of itself and share / 16 of its partner, which is
# another channel, white (3) or black (4).
_TINTS: dict[str, tuple[tuple[int, int, int], int]] = {
    "plain": ((0, 1, 2), 0), "dark": ((4, 4, 4), 4), "warm": ((1, 2, 0), 3),
    "pale": ((3, 3, 3), 3), "cool": ((2, 0, 1), 3), "dusky": ((4, 4, 4), 2), "muted": ((1, 0, 1), 2),
    "golden": ((0, 0, 1), 4), "mauve": ((2, 1, 0), 4),
}  # fmt: skip
_MIRRORS = (False, True)
LOOKS: dict[str, tuple[Look, ...]] = {
    "train": tuple(Look(*look) for look in product(_MIRRORS, (-3, 0, 3), ("plain", "dark", "warm"))),
    "validation": tuple(Look(*look) for look in product(_MIRRORS, (-4, 2), ("pale", "dusky"))),
    "test": tuple(Look(*look) for look in product(_MIRRORS, (-2, 4), ("cool", "muted"))),
    # As mild as test's: as far from the nearest look of training (mean over pixels, sizes and objects), and patches of validation
    # scenes dressed in them are read as well. That was settled before any scene of the final split was drawn.
    "final": tuple(Look(*look) for look in product(_MIRRORS, (-1.5, 3.5), ("golden", "mauve"))),
}


@cache
def load_sprites() -> dict[tuple[str, int], np.ndarray]:
    """Return every sprite as ``{(name, size): uint8 array (size, size, 4)}``, read-only.

    >>> load_sprites()["dog", 24].shape
    (24, 24, 4)
    """
    index = json.loads(data_path("sprites", "sprites.json").read_text(encoding="utf-8"))
    with Image.open(data_path("sprites", "sprites.png")) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    pixels.flags.writeable = False
    sprites, top = {}, 0
    for size in index["sizes"]:
        for column, name in enumerate(index["names"]):
            row, slot = divmod(column, index["columns"])
            y, x = top + row * size, slot * size
            sprites[name, size] = pixels[y : y + size, x : x + size]
        top += size * -(-len(index["names"]) // index["columns"])
    return sprites


@cache
def dressed(name: str, size: int, look: Look) -> np.ndarray:
    """Return a sprite in a look: uint8 array (size, size, 4), read-only; what a tilt moves out of the box is cut off.

    >>> bool((dressed("dog", 24, PLAIN) == load_sprites()["dog", 24]).all())
    True
    """
    sprite = load_sprites()[name, size]
    if look.mirrored:
        sprite = sprite[:, ::-1]
    if look.tilt:
        sprite = _sheared(_sheared(sprite, look.tilt).swapaxes(0, 1), -look.tilt).swapaxes(0, 1)
    partner, share = _TINTS[look.tint]
    colours = sprite[..., :3].astype(np.int32)
    ends = np.broadcast_to(np.array([255, 0], np.int32), (size, size, 2))
    mixed = (colours * (16 - share) + np.concatenate([colours, ends], axis=-1)[..., list(partner)] * share) // 16
    made = np.concatenate([mixed.astype(np.uint8), sprite[..., 3:]], axis=-1)
    made.flags.writeable = False
    return made


def _sheared(sprite: np.ndarray, tilt: float) -> np.ndarray:
    """Move each row aside in proportion to its height above the middle, by whole pixels."""
    size = len(sprite)
    moved = np.zeros_like(sprite)
    halves = round(2 * tilt)
    for y in range(size):
        by = ((size - 1 - 2 * y) * halves + 32) // 64  # pixels to the right, rounded
        moved[y, max(0, by) : size + min(0, by)] = sprite[y, max(0, -by) : size - max(0, by)]
    return moved


def draw_sheet(font: Path, folder: Path, columns: int = 21) -> None:
    """Draw the sheet and its index from a colour-emoji font; needed only to make the shipped sheet anew.

    Args:
        font: path of NotoColorEmoji.ttf.
        folder: where sprites.png and sprites.json are written.
        columns: sprites in one row of the sheet.
    """
    glyphs = {name: emoji for name, (_, emoji) in CATEGORIES.items()} | CLUTTER
    face = ImageFont.truetype(str(font), _FONT_SIZE)
    rows = -(-len(glyphs) // columns)
    sheet = Image.new("RGBA", (columns * max(SIZES), rows * sum(SIZES)))
    top = 0
    for size in SIZES:
        for column, (name, emoji) in enumerate(glyphs.items()):
            canvas = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(canvas).text((12, 12), emoji, font=face, embedded_color=True)
            box = canvas.getbbox()
            if box is None:
                raise ValueError(f"the font {font} draws nothing for {name!r} ({emoji!r}); expected a colour-emoji font")
            glyph = canvas.crop(box)
            glyph.thumbnail((size, size), Image.Resampling.LANCZOS)
            row, slot = divmod(column, columns)
            x, y = slot * size + (size - glyph.width) // 2, top + row * size + (size - glyph.height) // 2
            sheet.paste(glyph, (x, y))
        top += size * rows
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "sprites.png", optimize=True)
    index = {"names": list(glyphs), "sizes": list(SIZES), "columns": columns, "font": "Noto Color Emoji, SIL OFL 1.1"}
    (folder / "sprites.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

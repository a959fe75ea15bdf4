"""Sprites of the testbed's world: one shipped sheet, cut into RGBA arrays.

The sheet was drawn once from the Noto Color Emoji font (SIL Open Font License 1.1) by :func:`draw_sheet`; at run time
only the sheet is read, so that a scene does not depend on the fonts or the resampling filters of a machine.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunehal.resources import data_path
from prunehal.testbed.world import CATEGORIES, CLUTTER

__all__ = ["SIZES", "draw_sheet", "load_sprites"]

SIZES = (16, 24, 32, 40)  # pixels; from barely visible to large on a 96-pixel tile
_FONT_SIZE = 109  # the only strike of the bitmap font


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

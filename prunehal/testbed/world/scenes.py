"""Seeded scenes: what stands where, drawn to pixels, annotated as COCO does.

A scene is a pure function of ``(split, index)``. Pixels are made by integer or elementwise arithmetic only, so that the
splits come out bit for bit the same on every machine (tests hold a checksum). Scenes of the final split are read by purpose, see
`prunehal.testbed.world.final`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from prunehal.testbed.world.final import FINAL, final_indices, purpose_of
from prunehal.testbed.world.sprites import LOOKS, PLAIN, SIZES, Look, dressed
from prunehal.testbed.world.world import CATEGORIES, CLUTTER, NAMES, SCENES, SceneType

__all__ = [
    "GRID",
    "MOST_SCENES",
    "PATCH",
    "SPLITS",
    "TILE",
    "Scene",
    "SceneObject",
    "coco_instances",
    "image_ids",
    "scene",
    "scene_of",
]

TILE = 96  # pixels, width and height of one tile
PATCH = 8  # pixels of one patch of the vision tower; objects are snapped to this grid
GRID = TILE // PATCH  # patches along one side: 12, so one tile gives 144 visual tokens
SPLITS = {"train": 1, "validation": 2, "test": 3, FINAL: 4}  # the first word of every seed: splits share no scene
MOST_SCENES = 1_000_000  # of a split at once: their captions take days, and a larger number is a typing error
_ID_STEP = 100_000_000  # image_id = split * step + index

_SIZE_SHARE = (0.24, 0.36, 0.26, 0.14)  # of the sizes 16, 24, 32, 40
_COUNT_SHARE = {5: 0.25, 6: 0.25, 7: 0.25, 8: 0.15, 9: 0.1}  # objects in a scene
_FOREIGN = 0.08  # probability that an object does not belong to its scene type
_FAINT = 0.5  # opacity below which an object is called faint
_MAX_OVERLAP = 0.25  # of the smaller of two objects
_NOISE_SIGMA = 18  # of 255, each pixel and channel


@dataclass(frozen=True)
class SceneObject:
    """One object: its COCO name, its top left corner and size in pixels, its opacity, the look of its sprite."""

    name: str
    x: int
    y: int
    size: int
    opacity: float
    look: Look = PLAIN

    @property
    def place(self) -> tuple[int, int]:
        """Thirds of the tile that hold the centre: (column, row), each 0, 1 or 2."""
        half = self.size // 2
        return min(2, (self.x + half) * 3 // TILE), min(2, (self.y + half) * 3 // TILE)

    @property
    def traits(self) -> tuple[int, int, int, int]:
        """What captions say of it: column and row of its place, size (0 small, 1 medium, 2 large), 1 if it is faint."""
        return *self.place, {SIZES[0]: 0, SIZES[-1]: 2}.get(self.size, 1), int(self.opacity < _FAINT)


@dataclass(frozen=True)
class Scene:
    """What one image shows; ``image()`` draws it.

    >>> first = scene("test", 0)
    >>> first.image().size, first.image_id
    ((96, 96), 300000000)
    """

    split: str
    index: int
    type: SceneType
    objects: tuple[SceneObject, ...]

    @property
    def image_id(self) -> int:
        """The COCO image id, unique over the splits."""
        return SPLITS[self.split] * _ID_STEP + self.index

    @cached_property
    def names(self) -> frozenset[str]:
        """COCO names of the objects that stand in the scene: the ground truth of CHAIR."""
        return frozenset(o.name for o in self.objects)

    def pixels(self) -> np.ndarray:
        """Draw the scene: uint8 array (96, 96, 3)."""
        rng = np.random.default_rng([SPLITS[self.split], self.index, 1])
        canvas = _background(self.type, rng)
        for _ in range(int(rng.integers(3, 8))):
            _clutter(canvas, rng, 16, 0.35)
        for o in self.objects:
            _blend(canvas, dressed(o.name, o.size, o.look), o.x, o.y, o.opacity)
        return _with_noise(canvas, rng)

    def image(self) -> Image.Image:
        """Draw the scene as a Pillow image, 96 x 96 RGB."""
        return Image.fromarray(self.pixels())

    def tiles(self, k: int = 0, clutter: bool = False) -> tuple[list[Image.Image], int]:
        """Draw the scene among k background tiles, as AnyRes models see a large picture that is mostly background.

        Args:
            k: number of tiles that show the same kind of background and no object; each adds 144 visual tokens.
            clutter: scatter large shapes that are no COCO objects over the background tiles.

        Returns:
            The k + 1 tiles in random (seeded) order, and the position of the tile that shows the scene.

        Raises:
            ValueError: k is negative.
        """
        if k < 0:
            raise ValueError(f"k={k}: expected a number of background tiles >= 0; use k=0 for the scene alone")
        rng = np.random.default_rng([SPLITS[self.split], self.index, 2, k, int(clutter)])
        tiles = []
        for _ in range(k):
            canvas = _background(self.type, rng)
            for _ in range(int(rng.integers(4, 9)) if clutter else 0):
                _clutter(canvas, rng, int(rng.choice(SIZES[:3])), 0.8)
            tiles.append(Image.fromarray(_with_noise(canvas, rng)))
        at = int(rng.integers(0, k + 1))
        return [*tiles[:at], self.image(), *tiles[at:]], at

    def patch_objects(self) -> np.ndarray:
        """Which object each patch shows: int64 array (144,), row by row; index into ``objects``, or -1 for the background.

        A patch belongs to the object drawn last of those whose sprite covers at least a fifth of it.
        """
        shown = np.full((GRID, GRID), -1, dtype=np.int64)
        for number, o in enumerate(self.objects):
            alpha = dressed(o.name, o.size, o.look)[..., 3] > 127
            cells = o.size // PATCH
            cover = alpha.reshape(cells, PATCH, cells, PATCH).sum(axis=(1, 3)) * 5 >= PATCH * PATCH
            view = shown[o.y // PATCH : o.y // PATCH + cells, o.x // PATCH : o.x // PATCH + cells]
            view[cover] = number
        return shown.ravel()

    def patch_labels(self) -> np.ndarray:
        """What each patch shows: int64 array (144,), row by row; index into NAMES, or len(NAMES) + index of the scene type."""
        labels = [*(NAMES.index(o.name) for o in self.objects), len(NAMES) + SCENES.index(self.type)]
        return np.array(labels, dtype=np.int64)[self.patch_objects()]

    def patch_traits(self) -> np.ndarray:
        """The traits of the object that each patch shows: int64 array (144, 4), row by row; -1 for the background."""
        return np.array([*(o.traits for o in self.objects), (-1,) * 4], dtype=np.int64)[self.patch_objects()]


@lru_cache(maxsize=10_000)  # rows are read by the scenes' ids and truth, again and again
def scene(split: str, index: int) -> Scene:
    """Make scene number ``index`` of a split.

    Raises:
        ValueError: the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= index < _ID_STEP:
        raise ValueError(f"index={index}: expected 0 <= index < {_ID_STEP}")
    rng = np.random.default_rng([SPLITS[split], index, 0])
    kind = SCENES[int(rng.integers(len(SCENES)))]
    count = int(rng.choice(list(_COUNT_SHARE), p=list(_COUNT_SHARE.values())))
    usual = dict(zip(kind.objects, 1.0 / (np.arange(len(kind.objects)) + 2.0), strict=True))
    names: list[str] = []
    while len(names) < count:
        left = [name for name in (NAMES if rng.random() < _FOREIGN else usual) if name not in names]
        weights = np.array([usual.get(name, 0.1) for name in left])
        names.append(left[int(rng.choice(len(left), p=weights / weights.sum()))])
    objects: list[SceneObject] = []
    for name in names:
        placed = _place(name, objects, LOOKS[split], rng)
        if placed is not None:
            objects.append(placed)
    return Scene(split, index, kind, tuple(objects))


def image_ids(split: str, count: int) -> list[int]:
    """Return the image ids of the first scenes of a split, and draw none of them.

    Args:
        split: train, validation, test, or a purpose of the final split, such as "final-worlds".
        count: number of scenes.

    Raises:
        ValueError: the split is unknown, or final without a purpose; the count is not from 1 to 1,000,000, or is more than the
            final split has for that purpose.

    >>> image_ids("test", 2)
    [300000000, 300000001]
    >>> image_ids("final-selections", 2)
    [400004000, 400004001]
    >>> image_ids("test", 10**12)
    Traceback (most recent call last):
    ValueError: n_images=1000000000000: expected 1 to 1,000,000 scenes of the testbed; give a smaller number
    """
    if not 1 <= count <= MOST_SCENES:
        raise ValueError(f"n_images={count}: expected 1 to {MOST_SCENES:,} scenes of the testbed; give a smaller number")
    if (purpose := purpose_of(split)) is not None:
        return [SPLITS[FINAL] * _ID_STEP + index for index in final_indices(purpose, count)]
    first = scene(split, 0).image_id
    return list(range(first, first + count))


def scene_of(image_id: int) -> Scene:
    """Make the scene that has this image_id.

    Raises:
        ValueError: no scene has it.

    >>> scene_of(300_000_007) == scene("test", 7)
    True
    """
    number, index = divmod(image_id, _ID_STEP) if isinstance(image_id, int) else (0, 0)
    split = next((name for name, value in SPLITS.items() if value == number), None)
    if split is None:
        raise ValueError(f"image_id={image_id!r}: expected the id of a scene, such as {scene('test', 0).image_id}")
    return scene(split, index)


def coco_instances(scenes: list[Scene]) -> dict:
    """Return the scenes' annotations in the layout of COCO's instances files (bbox in pixels: x, y, width, height)."""
    annotations = []
    for s in scenes:
        for o in s.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": s.image_id, "category_id": CATEGORIES[o.name][0],
                    "bbox": [o.x, o.y, o.size, o.size], "area": o.size * o.size, "iscrowd": 0,
                }
            )  # fmt: skip
    return {
        "images": [
            {"id": s.image_id, "file_name": f"{s.split}_{s.index:08d}.png", "width": TILE, "height": TILE} for s in scenes
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, (number, _) in CATEGORIES.items()],
    }


def _place(name: str, others: list[SceneObject], looks: tuple[Look, ...], rng: np.random.Generator) -> SceneObject | None:
    """Put an object on the patch grid without hiding another; None when 40 throws find no room."""
    size = int(rng.choice(SIZES, p=_SIZE_SHARE))
    opacity = round(float(rng.uniform(0.3, 1.0)), 2)
    look = looks[int(rng.integers(len(looks)))]
    for _ in range(40):
        x, y = (int(v) * PATCH for v in rng.integers(0, (TILE - size) // PATCH + 1, size=2))
        for o in others:
            across = max(0, min(x + size, o.x + o.size) - max(x, o.x))
            down = max(0, min(y + size, o.y + o.size) - max(y, o.y))
            if across * down > _MAX_OVERLAP * min(size, o.size) ** 2:
                break
        else:
            return SceneObject(name, x, y, size, opacity, look)
    return None


def _background(kind: SceneType, rng: np.random.Generator) -> np.ndarray:
    """Draw a texture: a vertical gradient of the scene's two colours plus smooth noise; float32 (96, 96, 3)."""
    down = (np.arange(TILE, dtype=np.float32) / np.float32(TILE - 1))[:, None, None]
    top, bottom = np.asarray(kind.top, np.float32), np.asarray(kind.bottom, np.float32)
    canvas = np.broadcast_to(top + (bottom - top) * down, (TILE, TILE, 3)).copy()
    coarse = rng.integers(-28, 29, size=(7, 7, 1)).astype(np.float32)
    coarse = coarse + rng.integers(-8, 9, size=(7, 7, 3)).astype(np.float32)
    step = np.arange(TILE, dtype=np.float32) / np.float32(16)
    low = step.astype(np.int64)
    part = (step - low).astype(np.float32)
    rows = coarse[low] + (coarse[low + 1] - coarse[low]) * part[:, None, None]
    return canvas + rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part[None, :, None]


def _clutter(canvas: np.ndarray, rng: np.random.Generator, size: int, opacity: float) -> None:
    name = tuple(CLUTTER)[int(rng.integers(len(CLUTTER)))]
    x, y = (int(v) for v in rng.integers(0, TILE - size + 1, size=2))
    _blend(canvas, dressed(name, size, PLAIN), x, y, opacity)


def _blend(canvas: np.ndarray, sprite: np.ndarray, x: int, y: int, opacity: float) -> None:
    size = len(sprite)
    alpha = sprite[..., 3:].astype(np.float32) * np.float32(opacity / 255)
    view = canvas[y : y + size, x : x + size]
    view += (sprite[..., :3] - view) * alpha


def _with_noise(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Sums of four bytes: bell-shaped, and exact on every machine, which a library's normal deviates need not be.
    four = np.frombuffer(rng.bytes(4 * canvas.size), dtype=np.uint8).reshape(4, *canvas.shape)
    bell = four.sum(axis=0, dtype=np.int32) - 510  # standard deviation 147.8
    return np.clip(canvas + bell * np.float32(_NOISE_SIGMA / 147.8), 0, 255).astype(np.uint8)

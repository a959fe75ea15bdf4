"""The rendered world: bit for bit the same everywhere, annotated as drawn, splits apart, in the layout of COCO."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest

from prunehal.benchmarks import ground_truth_from_coco
from prunehal.testbed.world.scenes import GRID, PATCH, SPLITS, TILE, coco_instances, scene
from prunehal.testbed.world.sprites import LOOKS, PLAIN, SIZES, Look, dressed, load_sprites
from prunehal.testbed.world.world import CATEGORIES, NAMES, SCENES

# sha256 over pixels, annotations, opacities, labels and traits of patches, of the first 20 scenes of each split. A change here
# means that the embedded model was trained on other scenes than the tests show it: train it anew, and make the stored rows anew.
CHECKSUMS = {
    "train": "0ea56d1044e520b19ef38d0de23fda4914cce418e58e2b23b0913f00d3fdf78d",
    "validation": "36ad69ed8ceedc73e9d9605db9a42bb91d28860023012b7a28231057b1285d12",
    "test": "bd3e6a40ff641ad5bb7735f7d8a2e3eef4f94b995dc8b4ec64fe08262c80edd5",
    "final": "bac7308776d491db5e98bce708a0bc00ee2bd68fbc3d71968a8a7cb0fdd94fb4",
}
TILES = "d21f920fb4ae6a1b6b0507a78723d99d83472d3deeefc4984d076236bdb1e9cf"  # of test scene 0, three clean and three cluttered
# The 80 categories of COCO in the order of their ids, and the ids up to 90 that COCO leaves out.
COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""
LEFT_OUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}

MANY = [scene(split, index) for split in SPLITS for index in range(150)]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_come_out_bit_for_bit(split):
    digest = hashlib.sha256()
    scenes = [scene(split, index) for index in range(20)]
    for s in scenes:
        assert s.pixels().shape == (TILE, TILE, 3)
        digest.update(s.pixels().tobytes())
        digest.update(s.patch_labels().astype("<i8").tobytes())
        digest.update(s.patch_traits().astype("<i8").tobytes())
    said = [coco_instances(scenes), [(s.type.name, [(o.name, o.opacity) for o in s.objects]) for s in scenes]]
    digest.update(json.dumps(said).encode())
    assert digest.hexdigest() == CHECKSUMS[split]


def test_tiles_come_out_bit_for_bit():
    tiles = [tile for clutter in (False, True) for tile in scene("test", 0).tiles(3, clutter)[0]]
    assert hashlib.sha256(b"".join(tile.tobytes() for tile in tiles)).hexdigest() == TILES


def test_a_scene_is_a_function_of_split_and_index():
    first, again = scene("test", 7), scene("test", 7)
    assert first == again
    assert np.array_equal(first.pixels(), first.pixels())
    assert np.array_equal(first.pixels(), again.pixels())


def test_splits_share_no_scene():
    assert len({s.image_id for s in MANY}) == len(MANY)
    assert len({s.objects for s in MANY}) == len(MANY)
    assert len({s.pixels().tobytes() for s in MANY}) == len(MANY)


def test_objects_stand_on_the_patch_grid_inside_the_tile():
    for s in MANY:
        assert 4 <= len(s.objects) <= 9
        assert len(s.names) == len(s.objects)
        for o in s.objects:
            assert o.x % PATCH == o.y % PATCH == o.size % PATCH == 0
            assert 0 <= o.x <= TILE - o.size
            assert 0 <= o.y <= TILE - o.size
            assert o.size in SIZES
            assert 0.3 <= o.opacity <= 1.0
    objects = [o for s in MANY for o in s.objects]
    shares = {size: sum(o.size == size for o in objects) / len(objects) for size in SIZES}
    assert min(shares.values()) > 0.1  # from barely visible to large, none of them rare
    assert min(o.opacity for o in objects) < 0.35
    usual = sum(o.name in s.type.objects for s in MANY for o in s.objects) / len(objects)
    assert 0.85 < usual < 1.0


def test_objects_overlap_by_at_most_a_quarter_of_the_smaller():
    shares = []
    for s in MANY:
        for i, a in enumerate(s.objects):
            for b in s.objects[:i]:
                covered = [{(x, y) for x in range(o.x, o.x + o.size) for y in range(o.y, o.y + o.size)} for o in (a, b)]
                shares.append(len(covered[0] & covered[1]) / min(map(len, covered)))
    assert max(shares) <= 0.25
    assert max(shares) > 0.15  # occlusion does occur


def test_pixels_show_what_the_annotations_say():
    # An object is drawn inside its box and nowhere else, and changes most of the pixels that its sprite covers.
    for s in MANY[:60]:
        for i, o in enumerate(s.objects):
            without = dataclasses.replace(s, objects=s.objects[:i] + s.objects[i + 1 :])
            changed = (s.pixels() != without.pixels()).any(axis=-1)
            box = changed[o.y : o.y + o.size, o.x : o.x + o.size]
            assert changed.sum() == box.sum()
            hidden = np.zeros((TILE, TILE), dtype=bool)
            for later in s.objects[i + 1 :]:
                hidden[later.y : later.y + later.size, later.x : later.x + later.size] = True
            drawn = (dressed(o.name, o.size, o.look)[..., 3] > 127) & ~hidden[o.y : o.y + o.size, o.x : o.x + o.size]
            assert box[drawn].mean() > 0.7


def test_place_is_the_third_of_the_tile_that_holds_the_centre():
    for s in MANY:
        for o in s.objects:
            across, down = ((edge + o.size / 2) / TILE for edge in (o.x, o.y))
            assert o.place == (sum(across >= third for third in (1 / 3, 2 / 3)), sum(down >= third for third in (1 / 3, 2 / 3)))


def labels_by_loops(s):
    """The loop-written twin of Scene.patch_labels."""
    labels = []
    for row in range(GRID):
        for column in range(GRID):
            label = len(NAMES) + SCENES.index(s.type)
            for o in s.objects:
                sprite = dressed(o.name, o.size, o.look)
                covered = 0
                for y in range(row * PATCH, (row + 1) * PATCH):
                    for x in range(column * PATCH, (column + 1) * PATCH):
                        if o.x <= x < o.x + o.size and o.y <= y < o.y + o.size and sprite[y - o.y, x - o.x, 3] > 127:
                            covered += 1
                if covered / PATCH**2 >= 0.2:
                    label = NAMES.index(o.name)
            labels.append(label)
    return labels


def test_patch_labels_equal_their_loop_written_twin():
    for s in MANY[::10]:
        assert s.patch_labels().dtype == np.int64
        assert s.patch_labels().tolist() == labels_by_loops(s)


def test_traits_are_those_of_the_object_that_a_patch_shows():
    for s in MANY[::10]:
        by_name = {o.name: (*o.place, {16: 0, 40: 2}.get(o.size, 1), int(o.opacity < 0.5)) for o in s.objects}
        for label, traits in zip(s.patch_labels(), s.patch_traits().tolist(), strict=True):
            assert tuple(traits) == (by_name[NAMES[label]] if label < len(NAMES) else (-1,) * 4)


def test_splits_share_no_tilt_and_no_tint_and_training_sees_the_sheet_as_it_is():
    assert PLAIN in LOOKS["train"]
    for a, b in itertools.combinations(SPLITS, 2):
        assert not {look.tilt for look in LOOKS[a]} & {look.tilt for look in LOOKS[b]}
        assert not {look.tint for look in LOOKS[a]} & {look.tint for look in LOOKS[b]}
    for split in SPLITS:
        assert {o.look for s in MANY if s.split == split for o in s.objects} == set(LOOKS[split])


def test_every_look_of_a_sprite_is_another_picture_and_keeps_most_of_it():
    looks = [look for split in SPLITS for look in LOOKS[split]]
    for name, size in (("dog", 16), ("car", 24), ("bed", 40)):
        pictures = [dressed(name, size, look) for look in looks]
        assert len({picture.tobytes() for picture in pictures}) == len(looks)
        area = (load_sprites()[name, size][..., 3] > 127).sum()
        for picture in pictures:
            assert picture.shape == (size, size, 4)
            assert not picture.flags.writeable
            assert (picture[..., 3] > 127).sum() > 0.8 * area
    assert np.array_equal(dressed("dog", 24, Look(mirrored=True))[:, ::-1], load_sprites()["dog", 24])


def test_a_tilt_turns_to_the_right():
    # The bottle stands upright: turned, its upper half moves to the right of its lower half, or to the left.
    def leaning(tilt):
        alpha = dressed("person", 40, Look(tilt=tilt))[..., 3].astype(float)
        upper, lower = alpha[:20].sum(0), alpha[20:].sum(0)
        return (upper @ np.arange(40)) / upper.sum() - (lower @ np.arange(40)) / lower.sum()

    assert leaning(4) > leaning(2) > leaning(0) > leaning(-2) > leaning(-4)


def patch_means(tile):
    return np.asarray(tile, dtype=float).reshape(GRID, PATCH, GRID, PATCH, 3).mean(axis=(1, 3))


def contrast(s, tile):
    """Return how far the tile's patches get from the plain gradient of its scene type."""
    rows = (np.arange(GRID)[:, None, None] + 0.5) / GRID
    top, bottom = np.array(s.type.top), np.array(s.type.bottom)
    return np.abs(patch_means(tile) - (top + (bottom - top) * rows)).max()


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("clutter", [False, True])
def test_tiles(k, clutter):
    places = set()
    for s in MANY[:24]:
        tiles, at = s.tiles(k, clutter)
        assert len(tiles) == k + 1
        assert np.array_equal(np.asarray(tiles[at]), s.pixels())
        assert len({tile.tobytes() for tile in tiles}) == k + 1
        assert [tile.tobytes() for tile in s.tiles(k, clutter)[0]] == [tile.tobytes() for tile in tiles]
        places.add(at)
    assert places == set(range(k + 1))


def test_background_tiles_are_clean_or_cluttered_as_asked():
    clean, cluttered = (
        [contrast(s, tile) for s in MANY[:20] for i, tile in enumerate(s.tiles(3, clutter)[0]) if i != s.tiles(3, clutter)[1]]
        for clutter in (False, True)
    )
    assert max(clean) < 55  # texture and noise
    assert np.median(cluttered) > 70


def test_coco_layout():
    scenes = MANY[:5] + MANY[-5:]
    coco = coco_instances(scenes)
    numbers = [number for number in range(1, 91) if number not in LEFT_OUT]
    official = dict(zip((" ".join(name.split()) for name in COCO.split(",")), numbers, strict=True))
    assert {c["name"]: c["id"] for c in coco["categories"]} == {name: official[name] for name in CATEGORIES}
    assert [image["id"] for image in coco["images"]] == [s.image_id for s in scenes]
    assert len({image["file_name"] for image in coco["images"]}) == len(scenes)
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    drawn = [(s.image_id, official[o.name], [o.x, o.y, o.size, o.size]) for s in scenes for o in s.objects]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in coco["annotations"]] == drawn
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in coco["annotations"])
    assert json.loads(json.dumps(coco)) == coco
    assert ground_truth_from_coco(coco) == {s.image_id: set(s.names) for s in scenes}


def test_every_object_of_the_world_has_a_sprite_of_every_size():
    sprites = load_sprites()
    for name in {*NAMES, *(name for kind in SCENES for name in kind.objects)}:
        for size in SIZES:
            sprite = sprites[name, size]
            assert sprite.shape == (size, size, 4)
            assert (sprite[..., 3] > 127).mean() > 0.1
            assert not sprite.flags.writeable


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("tests", 0), r"split='tests': expected one of train, validation, test, final$"),
        (("test", -1), r"index=-1: expected 0 <= index < 100000000"),
        (("train", 100_000_000), r"index=100000000: expected 0 <= index"),
    ],
)
def test_unknown_scenes_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        scene(*arguments)


def test_a_negative_number_of_tiles_is_refused():
    with pytest.raises(ValueError, match=r"k=-1: expected a number of background tiles >= 0; use k=0"):
        scene("test", 0).tiles(-1)

"""The world that the testbed renders: COCO categories that have a sprite, scene types, and what goes with what.

Everything here is a constant. Names and ids are those of COCO, so that a COCO-format scorer applies unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATEGORIES", "CLUTTER", "COMPANIONS", "NAMES", "SCENES", "SceneType"]

# COCO category name -> (COCO id, emoji). 70 of the 80 categories have an emoji that shows them.
CATEGORIES: dict[str, tuple[int, str]] = {
    "person": (1, "\U0001f9cd"), "bicycle": (2, "\U0001f6b2"), "car": (3, "\U0001f697"),
    "motorcycle": (4, "\U0001f3cd"), "airplane": (5, "✈"), "bus": (6, "\U0001f68c"),
    "train": (7, "\U0001f686"), "truck": (8, "\U0001f69a"), "boat": (9, "⛵"),
    "traffic light": (10, "\U0001f6a6"), "stop sign": (13, "\U0001f6d1"), "bird": (16, "\U0001f426"),
    "cat": (17, "\U0001f408"), "dog": (18, "\U0001f415"), "horse": (19, "\U0001f40e"), "sheep": (20, "\U0001f411"),
    "cow": (21, "\U0001f404"), "elephant": (22, "\U0001f418"), "bear": (23, "\U0001f43b"), "zebra": (24, "\U0001f993"),
    "giraffe": (25, "\U0001f992"), "backpack": (27, "\U0001f392"), "umbrella": (28, "☂"),
    "handbag": (31, "\U0001f45c"), "tie": (32, "\U0001f454"), "suitcase": (33, "\U0001f9f3"),
    "frisbee": (34, "\U0001f94f"), "skis": (35, "\U0001f3bf"), "snowboard": (36, "\U0001f3c2"),
    "sports ball": (37, "⚽"), "kite": (38, "\U0001fa81"), "baseball bat": (39, "\U0001f3cf"),
    "baseball glove": (40, "\U0001f94e"), "skateboard": (41, "\U0001f6f9"), "surfboard": (42, "\U0001f3c4"),
    "tennis racket": (43, "\U0001f3be"), "bottle": (44, "\U0001f37e"), "wine glass": (46, "\U0001f377"),
    "cup": (47, "☕"), "fork": (48, "\U0001f374"), "knife": (49, "\U0001f52a"), "spoon": (50, "\U0001f944"),
    "bowl": (51, "\U0001f963"), "banana": (52, "\U0001f34c"), "apple": (53, "\U0001f34e"),
    "sandwich": (54, "\U0001f96a"), "orange": (55, "\U0001f34a"), "broccoli": (56, "\U0001f966"),
    "carrot": (57, "\U0001f955"), "hot dog": (58, "\U0001f32d"), "pizza": (59, "\U0001f355"),
    "donut": (60, "\U0001f369"), "cake": (61, "\U0001f370"), "chair": (62, "\U0001fa91"), "couch": (63, "\U0001f6cb"),
    "potted plant": (64, "\U0001fab4"), "bed": (65, "\U0001f6cf"), "toilet": (70, "\U0001f6bd"),
    "tv": (72, "\U0001f4fa"), "laptop": (73, "\U0001f4bb"), "mouse": (74, "\U0001f5b1"),
    "keyboard": (76, "⌨"), "cell phone": (77, "\U0001f4f1"), "sink": (81, "\U0001f6b0"), "book": (84, "\U0001f4d5"),
    "clock": (85, "\U0001f570"), "vase": (86, "\U0001f3fa"), "scissors": (87, "✂"),
    "teddy bear": (88, "\U0001f9f8"), "toothbrush": (90, "\U0001faa5"),
}  # fmt: skip
NAMES: tuple[str, ...] = tuple(CATEGORIES)

# Shapes that are no COCO category: they distract and are never named.
CLUTTER: dict[str, str] = {
    "leaf": "\U0001f341", "star": "⭐", "mushroom": "\U0001f344", "shell": "\U0001f41a", "rock": "\U0001faa8",
    "drop": "\U0001f4a7", "gem": "\U0001f48e", "gift": "\U0001f381", "key": "\U0001f511", "bell": "\U0001f514",
    "cactus": "\U0001f335", "flower": "\U0001f33b", "balloon": "\U0001f388", "candle": "\U0001f56f",
    "wood": "\U0001fab5", "ghost": "\U0001f47b",
}  # fmt: skip


@dataclass(frozen=True)
class SceneType:
    """One kind of scene: how it is called, its two background colours, and the objects that usually stand in it."""

    name: str
    phrase: str
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    objects: tuple[str, ...]  # most usual first: the weight falls with the rank


SCENES: tuple[SceneType, ...] = (
    SceneType("street", "a city street", (150, 170, 190), (110, 110, 115),
              ("car", "person", "traffic light", "bus", "bicycle", "truck", "motorcycle", "stop sign", "handbag",
               "dog", "umbrella", "backpack", "clock", "bird")),
    SceneType("station", "a busy platform", (140, 150, 160), (150, 140, 125),
              ("train", "suitcase", "person", "clock", "backpack", "handbag", "cell phone", "tie",
               "umbrella", "book", "bottle", "laptop", "bicycle", "cup")),
    SceneType("airport", "an airport", (165, 195, 225), (160, 160, 160),
              ("airplane", "suitcase", "person", "truck", "backpack", "tie", "bus", "cell phone",
               "handbag", "laptop", "clock", "cup", "car", "book")),
    SceneType("farm", "a farm", (160, 200, 230), (140, 165, 85),
              ("cow", "sheep", "horse", "dog", "bird", "truck", "person", "cat",
               "bicycle", "apple", "carrot", "chair", "motorcycle", "bowl")),
    SceneType("savanna", "a dry savanna", (215, 205, 165), (190, 160, 95),
              ("elephant", "giraffe", "zebra", "bird", "bear", "car", "person",
               "truck", "backpack", "bottle", "airplane", "umbrella", "motorcycle")),
    SceneType("park", "a green park", (165, 210, 230), (95, 150, 85),
              ("dog", "kite", "frisbee", "person", "bird", "bicycle", "skateboard", "backpack", "sports ball",
               "umbrella", "bottle", "book", "cat", "apple", "sandwich")),
    SceneType("beach", "a sandy beach", (130, 190, 225), (225, 205, 150),
              ("surfboard", "umbrella", "boat", "person", "kite", "bird", "dog", "bottle",
               "frisbee", "sports ball", "chair", "handbag", "book", "apple")),
    SceneType("slope", "a snowy slope", (190, 215, 240), (235, 240, 245),
              ("skis", "snowboard", "person", "backpack", "dog", "bear", "bird",
               "bottle", "cell phone", "cup", "sandwich", "banana", "umbrella")),
    SceneType("field", "a sports field", (175, 205, 215), (120, 170, 95),
              ("sports ball", "baseball bat", "baseball glove", "tennis racket", "person", "bottle", "backpack",
               "frisbee", "chair", "banana", "skateboard", "cell phone", "dog")),
    SceneType("kitchen", "a small kitchen", (225, 215, 195), (190, 165, 135),
              ("sink", "knife", "bowl", "spoon", "bottle", "carrot", "broccoli", "apple", "orange", "banana",
               "cup", "fork", "potted plant", "cake", "clock")),
    SceneType("table", "a hearty lunch", (200, 180, 160), (165, 120, 85),
              ("pizza", "fork", "wine glass", "cup", "cake", "knife", "donut", "sandwich", "hot dog", "bottle",
               "spoon", "bowl", "banana", "vase", "chair")),
    SceneType("living", "a living room", (205, 190, 175), (160, 135, 115),
              ("couch", "tv", "potted plant", "cat", "book", "vase", "clock", "chair", "teddy bear",
               "dog", "cup", "laptop", "person", "bottle", "cell phone")),
    SceneType("bedroom", "a cozy bedroom", (200, 190, 215), (165, 145, 160),
              ("bed", "teddy bear", "book", "clock", "cat", "chair", "cell phone", "laptop",
               "person", "vase", "tv", "handbag", "potted plant", "umbrella")),
    SceneType("office", "a tidy office", (210, 215, 220), (150, 140, 130),
              ("laptop", "keyboard", "mouse", "chair", "cup", "book", "cell phone", "scissors", "potted plant", "tie",
               "bottle", "clock", "person", "backpack", "tv")),
    SceneType("bathroom", "a bright bathroom", (205, 225, 230), (175, 190, 195),
              ("toilet", "sink", "toothbrush", "scissors", "bottle", "cup", "potted plant",
               "clock", "book", "vase", "chair", "person", "bowl")),
)  # fmt: skip

# Objects that tend to come together: a writer who has named the first names the second too, there or not, with this
# probability. The strong habits are what a model picks up even when it decodes greedily.
_STRONG, _WEAK = 0.75, 0.3
_HABITS = {
    _STRONG: {
        "keyboard": "mouse", "fork": "knife", "pizza": "wine glass", "baseball bat": "baseball glove", "skis": "person",
        "surfboard": "person", "train": "person", "couch": "tv", "toilet": "sink", "bed": "teddy bear", "dog": "frisbee",
        "car": "traffic light", "cow": "sheep", "zebra": "giraffe", "bowl": "spoon", "airplane": "suitcase", "sink": "knife",
    },
    _WEAK: {
        "laptop": "keyboard", "knife": "fork", "tennis racket": "sports ball", "tv": "couch", "toothbrush": "cup",
        "bus": "person", "bicycle": "person", "horse": "person", "giraffe": "zebra", "elephant": "bird", "cup": "cake",
        "cake": "fork", "carrot": "broccoli", "apple": "orange", "banana": "apple", "kite": "person", "boat": "bird",
        "umbrella": "person", "suitcase": "handbag", "book": "cup", "cat": "couch", "vase": "potted plant",
        "sandwich": "bottle", "hot dog": "bottle", "motorcycle": "car", "snowboard": "skis", "sheep": "dog",
    },
}  # fmt: skip
COMPANIONS: dict[str, tuple[str, float]] = {
    first: (second, strength) for strength, pairs in _HABITS.items() for first, second in pairs.items()
}

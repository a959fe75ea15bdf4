"""Training samples: a scene's pixels and labels, and several texts about it, packed into rows of one length.

A text is a prompt and its answer: the caption in detail, the brief one, questions. All texts of a scene share its visual
tokens; none sees another. Rows of one length waste little, and a compiled model wants fixed shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from prunehal.testbed.world.captions import BRIEF, LONGEST, PROMPT, write_brief, write_caption
from prunehal.testbed.world.final import FINAL
from prunehal.testbed.world.questions import presence, what_is, where_is
from prunehal.testbed.world.scenes import Scene, scene

__all__ = ["ROWS", "ROW_LENGTH", "Samples", "collate", "packed", "texts_of"]

ROWS = 2  # rows of text for each scene
ROW_LENGTH = LONGEST + 6  # the caption in detail with its prompt
_PRESENCE, _WHERE, _WHAT = 6, 3, 4  # questions offered for each scene; those that find no room are left out


@dataclass(frozen=True)
class Samples(Dataset):
    """Training samples as a pure function of their number: pixels, labels of patches, texts, background tiles to pretend.

    The last samples are marked ``late``: they also teach not to repeat.

    Raises:
        ValueError: the split is the final one, on which nothing is trained.
    """

    processor: LlavaProcessor
    count: int
    first: int  # number of the first training scene
    texts: bool = True
    split: str = "train"
    late_from: float = 0.6  # share of the samples after which they are late

    def __post_init__(self) -> None:
        if self.split.startswith(FINAL):
            raise ValueError(f"split={self.split!r}: nothing is trained on the final split; expected 'train'; name that")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if not 0 <= number < self.count:
            raise IndexError(number)
        shown = scene(self.split, self.first + number)
        rng = np.random.default_rng([shown.image_id, 7])
        sample = {
            "labels": torch.from_numpy(shown.patch_labels()),
            "traits": torch.from_numpy(shown.patch_traits()),
            "pixels": torch.from_numpy(shown.pixels()).permute(2, 0, 1),
        }
        if self.texts:
            words = self.processor.tokenizer
            pairs = [
                tuple(words([prompt, f"{answer}</s>"], add_special_tokens=False).input_ids)
                for prompt, answer in texts_of(shown, rng)
            ]
            tiles = 1 if rng.random() < 0.5 else int(rng.integers(2, 6))
            sample |= packed(pairs) | {"tiles": torch.tensor([tiles, int(rng.integers(tiles))])}
            sample["late"] = torch.tensor(number >= self.late_from * self.count)
        return sample


def texts_of(shown: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Write texts about a scene, (prompt, answer): the caption in detail, the brief one, then questions in any order."""
    questions = presence(shown, _PRESENCE, rng)
    questions += [where_is(shown, rng) for _ in range(_WHERE)] + [what_is(shown, rng) for _ in range(_WHAT)]
    questions = [questions[i] for i in rng.permutation(len(questions))]
    return [(PROMPT, write_caption(shown, rng)), (BRIEF, write_brief(shown)), *questions]


def packed(pairs: list[tuple[list[int], list[int]]], rows: int = ROWS, length: int = ROW_LENGTH) -> dict[str, torch.Tensor]:
    """Pack texts, each into the first row that has room for it; what finds no room is left out.

    Args:
        pairs: token ids of (prompt, answer).
        rows, length: of the result.

    Returns:
        int64 tensors (rows, length): ``tokens`` that are fed (each text but its last token), ``targets`` that they predict (-1
        within a prompt, and past the end), ``places`` of the tokens in their text, and ``text``, the number of the text
        (-1 past the end).

    >>> packed([([5], [6, 7]), ([8, 9], [3])], rows=1, length=5)["targets"].tolist()
    [[6, 7, -1, 3, -1]]
    """
    made = {key: torch.full((rows, length), fill) for key, fill in (("tokens", 0), ("targets", -1), ("places", 0), ("text", -1))}
    used = [0] * rows
    for number, (prompt, answer) in enumerate(pairs):
        ids = [*prompt, *answer]
        size = len(ids) - 1
        row = next((row for row in range(rows) if used[row] + size <= length), None)
        if row is None:
            continue
        at = slice(used[row], used[row] + size)
        made["tokens"][row, at] = torch.tensor(ids[:-1])
        made["targets"][row, at] = torch.tensor([-1] * (len(prompt) - 1) + ids[len(prompt) :])
        made["places"][row, at] = torch.arange(size)
        made["text"][row, at] = number
        used[row] += size
    return made


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack samples."""
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}

"""Know what no model knows: which visual tokens of a rendered scene lie on its objects. An upper bound for any selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunehal.testbed.world.scenes import GRID, Scene
from prunehal.testbed.world.world import NAMES

__all__ = ["object_tokens"]


def object_tokens(scenes: Sequence[Scene], visual: Tensor, k: int = 0, clutter: bool = False) -> Tensor:
    """Mark the visual tokens whose patches show an object, bool (batch, prompt), for ``SharedPrefill.attach(keep=...)``.

    Args:
        scenes: one for each row.
        visual: bool (batch, prompt), where the prompt's visual tokens are.
        k, clutter: background tiles around each scene, as in `Scene.tiles`.

    Raises:
        ValueError: a row has not the 144 visual tokens of each of its tiles, or there are more or fewer rows than scenes.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> shared = ph.SharedPrefill(model, inputs)
    >>> keep = object_tokens([scene("test", 0)], inputs["input_ids"] == model.config.image_token_id)
    >>> ids = model.generate(**shared.inputs, **shared.attach(ph.NoPruning(), keep=keep).options, max_new_tokens=8)
    >>> int(keep.sum()) < 72
    True
    """
    patches = GRID**2
    counts = visual.sum(1).tolist()
    if counts != [(k + 1) * patches] * len(scenes):
        raise ValueError(
            f"visual: rows have {counts[:3]} visual tokens ({len(counts)} rows); expected {(k + 1) * patches} in each of "
            f"{len(scenes)} rows, one for each scene. Fix: give the k with which the scenes were drawn."
        )
    keep = torch.zeros_like(visual)
    for row, scene in enumerate(scenes):
        at = scene.tiles(k, clutter)[1]
        shown = torch.from_numpy(scene.patch_labels() < len(NAMES)).to(visual.device)
        keep[row, visual[row].nonzero().flatten()[at * patches : (at + 1) * patches]] = shown
    return keep

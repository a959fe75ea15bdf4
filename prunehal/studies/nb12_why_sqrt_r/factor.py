"""The factor of the threshold: what a prune does to A_l, and what a layer that votes below sqrt(r) * Abar_l asks for.

One query has the attention M on n visual tokens, of which r * n stay, that hold the share s of M. The softmax then runs over
what is left: the mass becomes s M / (1 - M + s M), and its mean for each token, A_l, is multiplied by

    rise = s / (r (1 - M + s M)).

Where the kept tokens are as good as random ones (s = r) and M is small, nothing changes; where they held all of M, or where M is
nearly 1, A_l rises by 1 / r. On a logarithmic scale that is the way from 0 to log(1 / r); the part of it that a prune goes,
log(rise) / log(1 / r), is called ``reached`` here. The reference Abar_l is the mean over the steps before the prune, too, so a
prune lifts A_l against it by the rise. With the factor sqrt(r) a layer that just votes is as far below its average as a prune
that reaches everything lifts it above: at sqrt(r) * Abar_l before, at Abar_l / sqrt(r) after. For a prune that reaches less that
holds with r^(reached / 2), see `balanced`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

from prunehal.core import Listener, NoPruning, Policy, PruneHal, SharedPrefill, listening
from prunehal.models.chat import new_tokens
from prunehal.stats.bootstrap import bca
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import Scene

__all__ = ["LAGS", "balanced", "follow", "reached", "rise"]

LAGS = 8  # steps that are followed after a prune


def rise(mass: ArrayLike, share: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Return by what a prune multiplies the mean attention for each visual token of the same query.

    Args:
        mass: M, the attention on all visual tokens, in [0, 1].
        share: s, the share of it that the kept tokens held, in (0, 1].
        ratio: r, the share of the tokens that are kept, in (0, 1].

    >>> rise(mass=[0.001, 0.5], share=[0.4, 1.0], ratio=0.4).round(2).tolist()
    [1.0, 2.5]
    """
    mass, share, ratio = (np.asarray(each, dtype=float) for each in (mass, share, ratio))
    return share / (ratio * (1 - mass + share * mass))


def balanced(ratio: ArrayLike, reached: ArrayLike = 1.0) -> np.ndarray:
    """Return the factor whose vote a prune lifts as far above the average as it was below: r^(reached / 2).

    >>> balanced(0.49).item(), balanced(0.49, reached=0.0).item()
    (0.7, 1.0)
    """
    return np.asarray(ratio, dtype=float) ** (np.asarray(reached, dtype=float) / 2)


def follow(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    scenes: Sequence[Scene],
    policy: PruneHal | None = None,
    *,
    tiles: int = 0,
    batch_size: int = 50,
    max_new_tokens: int = 100,
) -> pd.DataFrame:
    """Write each caption without pruning, write the same words once more under a policy, and compare the attention at each step.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        scenes: whose captions.
        policy: prunes the second time; with one kept set for each layer, or one for all. PruneHal(r=0.4, t=3) if left out.
        tiles: clean background tiles around each scene.
        batch_size, max_new_tokens: as ``prunehal.experiments.captioning.caption_scenes`` takes them.

    Returns:
        One line for each prune, layer, and step from the prune's own (lag 0, which it does not change any more) to LAGS steps
        after it, the next prune's own included: image_id, number (of the prune), layer, step, lag; ratio (share of the prompt's
        visual tokens that stay); mass (M) and share (s) without pruning, means over the heads; plain and value (A_l without and
        with pruning), reference (its average with pruning, before this step); met (value / plain), predicted (the same by the
        formula, head by head) and at_random (with s = r). At lag 0 value and met are still those of the prune before.

    Raises:
        ValueError: no scenes, or a policy that keeps a set for each KV head.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> frame = follow(*ph.load(), [scene("test", 0)], PruneHal(r=0.4, t=1), max_new_tokens=6)
    >>> frame[frame["layer"] == 0][["step", "lag"]].values.tolist()
    [[2, 0], [3, 1], [4, 2], [5, 3], [6, 4]]
    """
    policy = PruneHal() if policy is None else policy
    if not scenes:
        raise ValueError("scenes: got none; expected at least one scene; pass [scene('test', 0)]")
    if policy.kept == "head":
        raise ValueError(f"policy={policy!r}: keeps a set for each KV head; expected kept='layer' or 'shared'")
    parts = []
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        images = [image for scene in batch for image in scene.tiles(tiles, False)[0]]
        inputs = processor(images=images, text=[build_prompt(tiles + 1)] * len(batch), return_tensors="pt").to(model.device)
        parts.append(_followed(model, inputs, policy, [scene.image_id for scene in batch], max_new_tokens))
    return pd.concat(parts, ignore_index=True)


def reached(frame: pd.DataFrame, column: str = "met", by: Sequence[str] = ("layer",), n_resamples: int = 2000) -> pd.DataFrame:
    """Return which part of the way from 0 to log(1 / r) the mean A_l rose, with a 95% interval over images.

    The rise is pooled, the mean of A_l with pruning over that without, as the reference is a mean, too: steps with hardly any
    attention on the image then weigh little.

    Args:
        frame: what `follow` returned, or a part of it; of one policy.
        column: "met", "predicted" or "at_random".
        by: columns whose values are kept apart; number should be among them where there are several prunes.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each group: the columns of ``by``, rise, reached, low, high (of reached), images.

    Raises:
        ValueError: a group with fewer than two images.

    >>> frame = pd.DataFrame({"image_id": [1, 2], "layer": 0, "ratio": 0.25, "met": [2.0, 2.0], "plain": [0.1, 0.3]})
    >>> reached(frame, n_resamples=100)[["rise", "reached"]].values.tolist()
    [[2.0, 0.5]]
    """
    frame = frame.assign(after=frame[column] * frame["plain"])
    lines = []
    for key, part in frame.groupby(list(by)):
        after, before = part.groupby("image_id")[["after", "plain"]].sum().to_numpy().T
        way = -np.log(part["ratio"].mean())
        found = bca(
            lambda w, a=after, b=before, way=way: np.log(w @ a / (w @ b)) / way, len(after), len(after), n_resamples, 0, 0.95
        )
        line = dict(zip(by, key, strict=True)) | {"rise": after.sum() / before.sum(), "reached": found.estimate}
        lines.append(line | {"low": found.low, "high": found.high, "images": found.n})
    return pd.DataFrame(lines)


class _Heads(Listener):
    """Keep each head's attention on each visual slot, and on all others; before any prune a slot is a position."""

    def __init__(self, visual: Tensor) -> None:
        self._visual, self._heard = visual, {}  # (batch, prompt); layer -> one pair for each step

    def heard(self, layer: int, weights: Tensor) -> None:
        rows, width = weights.flatten(1, 2).double(), self._visual.shape[1]  # (batch, head, slot)
        on_image = rows[..., :width].transpose(1, 2)[self._visual].unflatten(0, (len(rows), -1)).transpose(1, 2)
        hidden = torch.nn.functional.pad(self._visual, (0, rows.shape[2] - width))
        # Summed by itself: where nearly all attention is visual, 1 - M is nothing but rounding.
        rest = rows.masked_fill(hidden[:, None], 0.0).sum(-1)
        self._heard.setdefault(layer, []).append((on_image, rest))

    @property
    def layers(self) -> list[int]:
        """Return the layers that were heard."""
        return sorted(self._heard)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the attention on the visual tokens, (step, layer, batch, head, visual), and on the rest, one axis less."""
        by_layer = [[torch.stack(parts) for parts in zip(*self._heard[layer], strict=True)] for layer in self.layers]
        on_image, rest = (torch.stack(parts, dim=1) for parts in zip(*by_layer, strict=True))
        return on_image, rest


class _Dictated(LogitsProcessor):
    """Let each row write given tokens."""

    def __init__(self, tokens: Tensor, prompt: int) -> None:
        self._tokens, self._prompt = tokens, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt
        return torch.full_like(scores, -torch.inf).scatter_(1, self._tokens[:, step : step + 1], 0.0)


def _followed(
    model: PreTrainedModel, inputs: dict[str, Tensor], policy: Policy, ids: Sequence[int], max_new_tokens: int
) -> pd.DataFrame:
    """Return the lines of a batch of prompts of one length."""
    shared = SharedPrefill(model, inputs)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens}
    heads = _Heads(inputs["input_ids"] == model.config.image_token_id)
    plain = shared.attach(NoPruning(), maps=True)
    with listening(plain, heads):
        written = model.generate(**shared.inputs, **plain.options, **options)
    said = new_tokens(written, inputs["input_ids"])
    pruned = shared.attach(policy, maps=True, seeds=ids)
    dictated = {"logits_processor": [_Dictated(said, inputs["input_ids"].shape[1])]}
    model.generate(**shared.inputs, **pruned.options, **options | {"max_new_tokens": said.shape[1]} | dictated)

    (rows, rest), maps = heads.stacked(), pruned.trace.maps  # (step, layer, row, head, visual) and (step, layer, row, visual)
    there = ~maps.isnan()
    mass, n_left = maps.nansum(-1), there.sum(-1)  # (step, layer, row)
    votes = pruned.trace.votes().set_index(["row", "step", "layer"])["reference"]
    layers, n = heads.layers, rows.shape[-1]
    lines = []
    for row, image_id in enumerate(ids):
        ends = int(there[:, 0, row].any(-1).sum())  # steps before the row's end
        steps = pruned.events.loc[pruned.events["row"] == row, "step"].tolist()
        for number, (step, last) in enumerate(pairwise([*steps, ends]), start=1):
            if step >= ends:  # pruned after its last step
                continue
            seen = slice(step - 1, min(last, ends, step + LAGS))  # of index: step m is m - 1
            all_of, kept = rows[seen, :, row], there[step, :, row, None]  # (step, layer, head, visual), (layer, 1, visual)
            total, held = all_of.sum(-1), (all_of * kept).sum(-1)  # (step, layer, head)
            other, left = rest[seen, :, row], n_left[step, :, row]
            ratio = (left.double() / n)[:, None]
            columns = {
                "mass": total.mean(-1),
                "share": held.mean(-1) / total.mean(-1),
                "plain": total.mean(-1) / n,
                "value": mass[seen, :, row] / n_left[seen, :, row],
                "predicted": (held / (other + held)).mean(-1) / ratio[:, 0] / total.mean(-1),
                "at_random": (ratio * total / (other + ratio * total)).mean(-1) / ratio[:, 0] / total.mean(-1),
            }
            table = {name: value.flatten().double().numpy(force=True) for name, value in columns.items()}
            steps_seen = np.arange(seen.start, seen.stop) + 1
            frame = pd.DataFrame(
                {
                    "image_id": image_id,
                    "number": number,
                    "layer": np.tile(layers, len(steps_seen)),
                    "step": steps_seen.repeat(len(layers)),
                    "lag": (steps_seen - step).repeat(len(layers)),
                    "ratio": np.tile(ratio[:, 0].numpy(force=True), len(steps_seen)),
                }
                | table
            )
            keys = pd.MultiIndex.from_arrays([np.full(len(frame), row), frame["step"], frame["layer"]])
            frame["reference"] = votes.reindex(keys).to_numpy()
            lines.append(frame.assign(met=frame["value"] / frame["plain"]))
    return pd.concat(lines, ignore_index=True) if lines else pd.DataFrame()

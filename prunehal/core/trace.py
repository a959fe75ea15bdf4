"""Record: the visual attention of every step and layer, in one preallocated buffer.

Step m of a trace belongs to output token m: m = 1 is the prefill, whose last query's logits give the first generated
token (index m - 1 from 0), and m = 2 is the first single-token forward.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["AttentionTrace", "statistics"]

STATISTICS = ("mass", "mean", "max", "n_visual")
VOTES = ("value", "reference", "threshold", "vote")
BLOCK = 64  # steps that the buffer grows by


def statistics(rows: Tensor, n_visual: Tensor, entropy: bool = False) -> Tensor:
    """Summarise the attention on the visual tokens.

    Args:
        rows: attention of the newest query, (layer, pool, head, visual); 0 where a pool holds no visual token. A pool is
            the visual tokens of a row, or those of one of its images.
        n_visual: visual tokens in each pool, (pool,) or (layer, pool).
        entropy: append the entropy; its logarithm takes more time than all else here.

    Returns:
        (4, layer, pool), in the order of STATISTICS: the mass on all visual tokens; its mean for each token; the
        largest weight; the number of tokens. With entropy (5, layer, pool): the entropy in nats of the row renormalised
        to 1 comes last. More than one head is averaged over.

    >>> statistics(torch.full((1, 1, 1, 4), 0.1), torch.tensor([4]), entropy=True)[:, 0, 0].round(decimals=3).tolist()
    [0.4000000059604645, 0.10000000149011612, 0.10000000149011612, 4.0, 1.3860000371932983]
    """
    mass = rows.sum(-1)  # (layer, pool, head)
    mean_mass = mass.mean(-1)
    summary = [mean_mass, mean_mass / n_visual, rows.amax(-1).mean(-1), n_visual.expand_as(mean_mass).to(mean_mass)]
    if not entropy:
        return torch.stack(summary)
    # -sum(s log s) with s = row / mass, written so that one logarithm of the row serves (torch.special.entr is slower).
    tiny = torch.finfo(rows.dtype).tiny
    total = mass.clamp_min(tiny)
    nats = total.log() - (rows.clamp_min(tiny).log_().mul_(rows)).sum(-1) / total
    return torch.stack([*summary, nats.clamp_min(0).mean(-1)])


class AttentionTrace:
    """Hold what was observed at each step, layer and row; the cache records, the user reads.

    With beams a row is the beam's row in that step's forward; ``beam_indices`` of generate() follow a sequence back.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
        >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=8)
        >>> cache.trace.frame()["n_visual"].tolist()[0], len(cache.trace)
        (144, 8)
    """

    def __init__(
        self,
        layers: list[int],
        batch: int,
        device: torch.device,
        *,
        pools: int = 1,
        visual: int | None,
        per_image: bool = False,
        entropy: bool = False,
    ) -> None:
        self._layers, self._pools, self._per_image = layers, pools, per_image
        self._names = (*STATISTICS, *(["entropy"] if entropy else []))
        self._steps = self._sound = 0  # recorded, and known to be finite
        self._buffer = torch.empty(0, len(self._names) + len(VOTES), len(layers), batch * pools, device=device)
        self._live = torch.empty(0, batch * pools, dtype=torch.bool, device=device)
        self._maps = None if visual is None else torch.empty(0, len(layers), batch, visual, device=device)

    def __len__(self) -> int:
        """Return the number of steps recorded."""
        return self._steps

    def record(self, summary: Tensor, votes: Tensor, live: Tensor, maps: Tensor | None) -> None:
        """Append a step: summary as ``statistics`` returns it, votes (4, layer, pool), live (pool,), maps as they are read."""
        if self._steps == len(self._buffer):
            self._buffer, self._live = _grown(self._buffer), _grown(self._live)
            self._maps = None if self._maps is None else _grown(self._maps)
        step = self._steps
        self._sound = min(self._sound, step)  # after a search that took steps back
        self._buffer[step, : len(self._names)] = summary
        self._buffer[step, len(self._names) :] = votes
        self._live[step] = live
        if self._maps is not None:
            self._maps[step] = maps
        self._steps += 1

    def check_finite(self) -> None:
        """Raise a RuntimeError if the attention of a step that was recorded since the last check holds NaN or infinity."""
        mass = self._buffer[self._sound : self._steps, 0]  # (step, layer, pool); a row with NaN has such a mass
        faulty = self._live[self._sound : self._steps, None] & ~mass.isfinite()
        if bool(faulty.any()):
            step, layer, pool = faulty.nonzero()[0].tolist()
            raise RuntimeError(
                f"attention of layer {self._layers[layer]} at step {self._sound + step + 1}, row {pool // self._pools}: holds "
                "NaN or infinity, so that no vote means anything from there on; expected finite weights. Fix: look for the first "
                "layer whose hidden states are not finite; float16 overflows where bfloat16 and float32 do not."
            )
        self._sound = self._steps

    def frame(self) -> pd.DataFrame:
        """Return one line for each row, step and layer (and image, where each is pruned by itself).

        Columns: row, step (m), layer; mass, mean and max of the attention on the cached visual tokens, averaged over
            the heads; n_visual, their number in that layer when the step's attention was computed; with
            ``attach(..., entropy=True)`` also entropy, within them, in nats. Steps after a row's end (padding while other
            rows go on) are left out.

        With kept="head" max and entropy are taken in each KV head (the average over its query heads), and then averaged;
        otherwise they are those of the row averaged over all heads. So max is larger with kept="head", or equal, and entropy
        usually smaller: compare them between runs of the same kept only. mass and mean are the same as long as nothing was
        dropped.
        """
        return self._frame(self._names, 0)

    def votes(self) -> pd.DataFrame:
        """Return the vote of each row, step and layer (and image, where each is pruned by itself).

        Columns: row, step (m), layer; value (A_l), reference (the average of the earlier steps; nan where there is
            none), threshold (nan for a policy that takes no votes), vote (whether the layer voted to prune).
        """
        frame = self._frame(VOTES, len(self._names))
        return frame.assign(vote=frame["vote"] > 0)

    @property
    def maps(self) -> Tensor:
        """Return the attention on each visual token of the prompt, (step, layer, row, visual).

        Averaged over the heads, in the order of the prompt; nan where the token was dropped, and for the tokens that
        a row with fewer visual tokens does not have. Steps after a row's end are nan. With kept="head" the average is over the
        heads that hold the token, and the largest weight of a map is not the max of ``frame()``, which averages the heads' own.

        Raises:
            ValueError: the cache was attached without maps=True.
        """
        if self._maps is None:
            raise ValueError("maps=False: no map was recorded; expected True. Fix: attach(model, inputs, policy, maps=True).")
        live = self._live[: self._steps].unflatten(1, (-1, self._pools)).any(2)
        return self._maps[: self._steps].masked_fill(~live[:, None, :, None], float("nan"))

    def _frame(self, names: tuple[str, ...], start: int) -> pd.DataFrame:
        data = self._buffer[: self._steps, start : start + len(names)].permute(3, 0, 2, 1).cpu().numpy()
        live = self._live[: self._steps].T.cpu().numpy()  # (pool, step)
        pool, step = (index.repeat(len(self._layers)) for index in np.nonzero(live))
        keys = {"row": pool // self._pools} | ({"image": pool % self._pools} if self._per_image else {})
        keys |= {"step": step + 1, "layer": np.tile(self._layers, live.sum())}
        values = data[live].reshape(-1, len(names)).astype(np.float64)
        frame = pd.DataFrame(keys | {name: values[:, i] for i, name in enumerate(names)})
        return frame.astype({"n_visual": int}) if "n_visual" in names else frame


def _grown(buffer: Tensor) -> Tensor:
    with torch.inference_mode(False):  # so that a later turn may write to it, in inference mode or not
        grown = buffer.new_empty(len(buffer) + BLOCK, *buffer.shape[1:])
    grown[: len(buffer)] = buffer
    return grown

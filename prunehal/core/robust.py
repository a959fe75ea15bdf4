"""Vote robustly: a trigger that does not saturate, for visual attention that swings between function words and objects.

A_l < sqrt(r) * Abar_l is met at once where attention falls to a sixth at every function word. Here a layer votes when log A_l
lies below the median of earlier steps by more than their spread explains.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunehal.core.accumulated import Accumulated
from prunehal.core.checks import check_count, check_positive, refuse
from prunehal.core.seen import Seen

__all__ = ["RobustVote"]

DEVIATION = 1.4826  # times the median absolute deviation is the standard deviation of normal values


@dataclass(frozen=True)
class RobustVote(Accumulated):
    """Prune when visual attention is low for its own spread: log A_l < median - z * 1.4826 * MAD over like earlier steps.

    Of an even number the lower middle value is the median. The trace's reference is the exponential of the median. What r, t,
    majority, statistic, first and after_prune mean is as in PruneHal; tokens are ranked as in Accumulated.

    Attributes:
        z: robust standard deviations below the median at which a layer votes.
        least: earlier steps that there must be before a vote.
        like: compare with so many earlier steps only: those whose attention row within the visual tokens has the entropy
            nearest to this step's, layer by layer, so that function words are compared with function words. None: all.
            With kept="head" the entropy is the average of the KV heads' own, else that of the row averaged over all heads.
        forced_first: prune at m = wait without a vote; here the default is not to.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, RobustVote(r=0.7, t=3, z=1.5))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=40)
    >>> set(cache.events["reason"]) <= {"vote"}
    True
    """

    z: float = field(default=3.0, kw_only=True)
    least: int = field(default=8, kw_only=True)
    like: int | None = field(default=None, kw_only=True)
    forced_first: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "z", "Set z=3.0, the default.")
        check_count(self, "least", 1, "Set least=8, the default.")
        if self.like is not None:
            check_count(self, "like", 1, "Set like=None to compare with all earlier steps.")
        for name, default in (("factor", None), ("reference", "mean")):
            if getattr(self, name) != default:
                raise refuse(
                    name, getattr(self, name), f"{default!r}", "The votes of RobustVote do not depend on it: leave it out."
                )

    @property
    def needs_entropy(self) -> bool:
        """Say whether steps are chosen by the entropy of their rows."""
        return self.like is not None

    def judge(self, seen: Seen, reference: Tensor, entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return median, threshold and votes from what ``learn`` kept."""
        past = self._past(reference)  # (layer, batch, earlier step, 1 or 2)
        age = torch.arange(past.shape[2], 0, -1, device=past.device)
        values = past[..., 0].masked_fill(age > entered[:, None], math.nan)
        if self.like is not None:
            apart = (past[..., 1] - seen.entropy[..., None]).abs().masked_fill(values.isnan(), math.inf)
            nearest = apart.sort(dim=-1, stable=True).indices[..., : self.like]  # of equals the earlier step
            values = values.gather(-1, nearest)
        if not values.shape[2]:
            nothing = torch.full_like(seen.value, math.nan)
            return nothing, nothing, torch.zeros_like(seen.value, dtype=torch.bool)
        median = values.nanmedian(-1).values
        spread = (values - median[..., None]).abs().nanmedian(-1).values * DEVIATION
        threshold = (median - self.z * spread).exp()
        vote = (seen.value < threshold) & (entered >= self.least) & (seen.step >= self.wait)
        return median.exp(), threshold, vote

    def learn(self, seen: Seen, reference: Tensor, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Append log A_l, and the entropy where it is needed, to those of the earlier steps, (layer, batch, step, 1 or 2)."""
        if seen.step == 1 and self.first == "decode":
            return reference, entered
        new = [seen.value.clamp_min(torch.finfo(seen.value.dtype).tiny).log(), *([seen.entropy] if self.needs_entropy else [])]
        return torch.cat([self._past(reference), torch.stack(new, -1)[:, :, None]], dim=2), entered + 1

    def _past(self, reference: Tensor) -> Tensor:
        # A memory starts with zeros (layer, batch), which no step has entered.
        return reference.new_zeros(*reference.shape, 0, 1 + self.needs_entropy) if reference.ndim == 2 else reference

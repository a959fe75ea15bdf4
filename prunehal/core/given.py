"""Keep given tokens: what someone else knows to be worth it, such as the testbed's objects, in the place of attention."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from prunehal.core.checks import check_count, refuse
from prunehal.core.policy import Policy
from prunehal.core.seen import Seen

__all__ = ["Given", "Keep"]


class Given(Policy):
    """Hold what policies share that prune once, by scores from before the first step; a base, no policy of its own."""

    limit: ClassVar[int] = 1

    def rank(self, seen: Seen, level: Tensor, previous: Tensor | None) -> Tensor:
        """Return the scores that were there before the first step."""
        return previous

    def forced(self, step: int) -> bool:
        """Say whether step m is the one that prunes."""
        return step == self.step

    def budget(self, n: int) -> int:
        """Return the fewest tokens that a prune can leave of n."""
        return min(1, n)


@dataclass(frozen=True)
class Keep(Given):
    """Prune to given visual tokens once, after step m; which ones belongs to the inputs: ``attach(..., Keep(), keep=mask)``.

    selection="random" keeps as many random tokens in each row and layer instead: the control.

    Attributes:
        step: the step m after whose attention the others are dropped. To drop them before the first token is chosen, use
            ``SharedPrefill(...).attach(NoPruning(), keep=mask)``.

    >>> import torch
    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> mask = (inputs["input_ids"] == model.config.image_token_id) & (torch.arange(inputs["input_ids"].shape[1]) % 2 == 0)
    >>> cache = ph.attach(model, inputs, Keep(), keep=mask)
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=4)
    >>> cache.events["kept"][0], torch.equal(cache.kept(0)[0], mask[0].nonzero().flatten())
    ([72, 72, 72, 72, 72, 72], True)
    """

    step: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "step", 1, "Set step=2, the default.")
        if self.kept == "shared":
            raise refuse("kept", self.kept, "'layer' or 'head'", "The mask says what each layer keeps.")

    def budgets(self, scores: Tensor, valid: Tensor, left: list[list[int]]) -> list[list[int]]:
        """Return how many tokens are marked, by layer and row; the host waits for it."""
        return scores[:, :, 0].sum(-1).long().tolist()

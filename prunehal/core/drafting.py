"""Draft, then prune: let a policy watch a first pass without pruning, and decode again on what it chose, first token included."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunehal.core.cache import PrunableCache
from prunehal.core.checks import as_count, refuse
from prunehal.core.given import Given, Keep
from prunehal.core.greedy import GREEDY
from prunehal.core.policy import NoPruning, Policy
from prunehal.core.sharing import SharedPrefill

__all__ = ["Draft", "FirstToken"]


class Draft(SharedPrefill):
    """Decode twice from one prefill: a greedy draft that only observes, and then on the tokens that a policy chose from it.

    The policy is asked which tokens it would keep after the draft: ``Accumulated(r=0.1, content=True)`` keeps in each layer a
    tenth of the visual tokens by their attention over the draft's content steps, ``MassShare(p=0.9)`` as many as hold 90
    percent of it. The others are pruned before the last token of the prompt is read again, so that every word of the second
    pass is written on what is left. It costs one more decoding, but no second prefill.

    Attributes:
        draft: the cache that observed the latest draft, with its trace; None before ``attach``.
        draft_ids: what it wrote, (batch, token), with the prompt in front where generate() returns it.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> drafted = ph.Draft(model, inputs, max_new_tokens=20)
        >>> cache = drafted.attach(ph.Accumulated(r=0.1, content=True))
        >>> ids = model.generate(**drafted.inputs, **cache.options, max_new_tokens=20)
        >>> cache.trace.frame()["n_visual"].unique().tolist()
        [14]
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], *, max_new_tokens: int = 100) -> None:
        """Run the prompt.

        Args:
            model, inputs: as `SharedPrefill` takes them.
            max_new_tokens: length of the draft; m = 1, the last token of the prompt, is its first step. Stop strings do not
                end it.

        Raises:
            ValueError: as `SharedPrefill` does; the draft has no token.
        """
        if as_count(max_new_tokens) is None or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r}: expected an integer of at least 1. Fix: max_new_tokens=100.")
        super().__init__(model, inputs)
        self.draft: PrunableCache | None = None
        self.draft_ids: Tensor | None = None
        self._length = int(max_new_tokens)

    def attach(
        self, policy: Policy | None = None, *, then: Policy | None = None, copies: int = 1, **options: Any
    ) -> PrunableCache:
        """Write a draft under the policy's eyes, and make a cache that goes on from the prompt with the tokens that it chose.

        Args:
            policy: chooses what stays; it prunes nothing while the draft is written. PruneHal(r=0.4, t=3) if left out.
            then: what observes and prunes in the second pass; NoPruning() if left out.
            copies, **options: as in `SharedPrefill.attach`, but no ``keep``: the policy says what stays.

        Raises:
            ValueError: as ``attach`` does; the policy never prunes, or keeps a set for each KV head and ``then`` does not; one of
                them was given what to keep.
        """
        if isinstance(policy, Keep) or options.get("keep") is not None:
            raise ValueError(
                f"keep: the tokens that stay are given, with policy={policy!r}; expected a policy that chooses them from the "
                "draft. Fix: SharedPrefill(model, inputs).attach(NoPruning(), keep=mask)."
            )
        if then is not None and (not isinstance(then, Policy) or isinstance(then, Given)):
            expected = "a policy that observes and prunes by attention, or None; what the first policy left is given to it"
            raise refuse("then", then, expected, "Fix: then=NoPruning(), or then=PruneHal(r=0.4, t=3).")
        watching = super().attach(policy, **options)
        policy = watching.policy
        if policy.limit == 0:
            raise ValueError(
                f"policy={policy!r}: never prunes; expected one that chooses tokens, e.g. TopK(36) or Accumulated(r=0.25). "
                "Fix: SharedPrefill(model, inputs).attach(policy)."
            )
        then = NoPruning(kept=policy.kept) if then is None else then
        if policy.kept == "head" and then.kept != "head":
            raise ValueError(
                f"then={then!r}: keeps one set for all KV heads, and the policy one for each; expected kept='head' in both. "
                "Fix: then=NoPruning(kept='head'), or policy with kept='layer'."
            )
        watching.observes_only = True
        self.draft_ids = self._model.generate(**self.inputs, **watching.options, **GREEDY, max_new_tokens=self._length)
        self.draft = watching
        options.pop("readings", None)  # they were the policy's
        return super().attach(then, copies=copies, keep=watching.chosen(), **options)


class FirstToken(Draft):
    """Prune before the first token is chosen, so that answers of one word can change: the prompt's last query decides.

    The last token of the prompt is read once to observe, and again on what the policy kept: TopK(k) or PruneHal(r) by this one
    row of attention. It costs one step.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> first = ph.FirstToken(model, inputs)
        >>> cache = first.attach(ph.TopK(36))
        >>> ids = model.generate(**first.inputs, **cache.options, max_new_tokens=2)
        >>> cache.trace.frame()["n_visual"].unique().tolist()
        [36]
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """Run the prompt; as `SharedPrefill`."""
        super().__init__(model, inputs, max_new_tokens=1)

"""Attach a pruning cache to one call of a stock model's generate()."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunehal.core import calls  # noqa: F401 - generate() is watched from here on
from prunehal.core.arguments import check_flags, check_inputs, check_keep, check_model, check_seeds, end_tokens
from prunehal.core.arriving import listen
from prunehal.core.bank import Bank
from prunehal.core.banking import BankingCache
from prunehal.core.cache import PrunableCache
from prunehal.core.given import Keep
from prunehal.core.informative import Telling
from prunehal.core.lens import read_tokens
from prunehal.core.pictures import Pictures
from prunehal.core.policy import Policy
from prunehal.core.prompt import Prompt
from prunehal.core.prunehal import PruneHal
from prunehal.core.restricting import RestrictingCache
from prunehal.core.visual import find_visual_tokens, generating, refuse_unsupported, visual_token_ids
from prunehal.core.wrapped import unwrapped

__all__ = ["attach"]


def attach(
    model: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    policy: Policy | None = None,
    *,
    exact: bool = False,
    maps: bool = False,
    per_image: bool = False,
    entropy: bool = False,
    visual_mask: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    end_ids: Sequence[int | Sequence[int] | None] = (),
    keep: Tensor | None = None,
    readings: Tensor | None = None,
) -> PrunableCache:
    """Make the cache that observes and prunes while ``model.generate`` runs on these inputs.

    The model is left as it is: prefill and all other models run their own attention. One cache serves one prompt
    (batch).

    Args:
        model: a decoder-only multimodal model of transformers, e.g. LLaVA or Qwen2.5-VL; PEFT or torch.compile may wrap it.
        inputs: what the processor returned, and what generate() will get; padded on the left.
        policy: PruneHal(), TopK(k) or NoPruning(); PruneHal(r=0.4, t=3) if left out.
        exact: let the stock attention compute the output as long as nothing was dropped, so that it stays
            bit-identical (in layers with a sliding window: to stock with a cache that keeps all entries, as this one
            does); the observation is then computed beside it, which costs a few percent.
        maps: also record the attention on every visual token, for ``cache.trace.maps``.
        per_image: let each image of a prompt decide and be pruned by itself, by its own history, votes and budget; by
            default the visual tokens of all images of a row form one pool. An image is a run of placeholders: images
            without any text between them count as one, and the parts of one image that the processor separates by text
            (the tiles of Idefics3, SmolVLM and Aya Vision, the rows of Mistral 3) as several; visual_mask can number
            them otherwise.
        entropy: also record the entropy of each attention row, for ``cache.trace.frame()``; it doubles the time of recording,
            or more in large batches.
        visual_mask: which prompt positions are visual, for prompts without placeholders: bool (batch, prompt), or
            integers that number each row's images from 1 (0 for text).
        seeds: one integer for each row, for selection="random"; rows with equal seeds and sizes draw alike.
        end_ids: the eos_token_id and pad_token_id that generate() will get, where they are not those of the model's
            generation_config: a row that has ended neither votes nor appears in the trace.
        keep: the visual tokens that `Keep` leaves, bool (batch, prompt) or (layer, batch, prompt); for that policy only.
        readings: what `prunehal.core.lens.read_tokens` returned for these inputs; for `Informative` and `Standout` only, which
            read the tokens themselves where it is left out.

    Returns:
        The cache; pass ``**cache.options`` to generate() and read ``events``, ``kept`` and ``trace`` afterwards.

    Raises:
        ValueError: the model, the inputs or an option cannot be used; the message names it, what was expected and the
            fix.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
        >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=8)
        >>> cache.events["kept"][0]
        [57, 57, 57, 57, 57, 57]
    """
    policy = PruneHal() if policy is None else policy
    if not isinstance(policy, Policy):
        raise ValueError(
            f"policy={policy!r}: expected PruneHal(...), TopK(k) or NoPruning(). "
            "Fix: attach(model, inputs, PruneHal(r=0.4, t=3))."
        )
    check_model(model)
    model = unwrapped(model)
    check_inputs(inputs, visual_mask)
    options = {"exact": exact, "maps": maps, "per_image": per_image, "entropy": entropy}
    check_flags(**options)
    if (keep is None) == isinstance(policy, Keep):
        raise ValueError(
            f"keep: is {'missing' if keep is None else 'given'} with policy={policy!r}; expected it with Keep(), and with no "
            "other policy. Fix: attach(model, inputs, Keep(), keep=mask)."
        )
    if keep is not None:
        check_keep(keep)
    if readings is not None and not isinstance(policy, Telling):
        raise ValueError(
            f"readings: are given with policy={policy!r}; expected them with Informative() or Standout() only. "
            "Fix: attach(model, inputs, Informative(), readings=readings), or no readings."
        )
    refuse_unsupported(model)
    numbers = find_visual_tokens(model, inputs, visual_mask, per_image)
    if seeds is not None:
        check_seeds(seeds, len(numbers))
    policy.check_prompt(numbers)
    decoder = generating(model)
    ids = inputs.get("input_ids")
    standing = () if ids is None else sorted(set(ids[numbers.to(ids.device) > 0].tolist()) & set(visual_token_ids(model.config)))
    attached = None if ids is None else ids.clone()  # so that a change in place is noticed
    words, ends = decoder.get_input_embeddings(), _end_ids(decoder, end_ids)
    prompt = Prompt(numbers, attached, ends, words, tuple(standing), Pictures.of(inputs), handed_on=decoder is not model)
    if isinstance(policy, Telling) and readings is None:
        readings = read_tokens(model, inputs, numbers > 0)
    shape = (2, *numbers.shape)
    if readings is not None and (tuple(getattr(readings, "shape", ())) != shape or not readings.isfinite().all()):
        raise ValueError(
            f"readings: are a {type(readings).__name__} of shape {tuple(getattr(readings, 'shape', ()))}, or hold what is not "
            f"finite; expected finite numbers of shape {shape}, as read_tokens() returns them for these inputs. "
            "Fix: leave them out."
        )
    cache = _kind_of_cache(policy)(model.config, prompt, policy, seeds=seeds, keep=keep, readings=readings, **options)
    listen(model, cache)
    return cache


def _kind_of_cache(policy: Policy) -> type[PrunableCache]:
    if isinstance(policy, Bank):
        return BankingCache
    return PrunableCache if policy.restricts_from is None else RestrictingCache


def _end_ids(model: torch.nn.Module, given: Sequence[int | Sequence[int] | None]) -> tuple[int, ...]:
    # A row of a batch that has ended goes on with padding; neither may vote.
    config = getattr(model, "generation_config", None)
    own = (getattr(config, "eos_token_id", None), getattr(config, "pad_token_id", None))
    return end_tokens(own) + end_tokens(given)

"""Read the visual tokens by the model's own words: the logit lens on their last hidden states.

Every visual token ends the prompt's forward as a hidden state that the head could turn into a word. No loss asks for these
words, and yet they tell what the token shows; their probabilities are higher for objects that are there (Jiang et al. 2025,
"Interpreting and Editing Vision-Language Representations to Mitigate Hallucinations", arXiv 2410.02762). How well a model's
visual tokens read depends on its training: the embedded model's projector was aligned to word embeddings.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from prunehal.core.greedy import FIRST_LOGITS
from prunehal.core.visual import generating
from prunehal.core.wrapped import unwrapped

__all__ = ["read_tokens"]

_CHUNK = 256  # tokens whose logits are held at once


def read_tokens(model: torch.nn.Module, inputs: Mapping[str, Tensor], visual: Tensor) -> Tensor:
    """Return how much each visual token's reading says, and how certain it is; runs the prompt once.

    The reading of a token is the distribution p over the vocabulary that the model's head makes of its last hidden state. Its
    information is the Kullback-Leibler divergence of p from the mean reading of the row's visual tokens: what a token says
    that the others do not say. Its certainty is the largest probability of p.

    Args:
        model: as ``attach`` takes it.
        inputs: what the processor returned.
        visual: which prompt positions are visual tokens, bool (batch, prompt).

    Returns:
        float32 (2, batch, prompt): information, in nats, and certainty; 0 at text.

    Raises:
        ValueError: the model's decoder has no head that is given the hidden states of the whole prompt, or its logits are not
            what the head makes of them.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> visual = inputs["input_ids"] == model.config.image_token_id
    >>> information, certainty = read_tokens(model, inputs, visual)[:, visual]
    >>> information.shape, bool((information >= 0).all()), bool((certainty <= 1).all())
    (torch.Size([144]), True, True)
    """
    model, decoder = unwrapped(model), generating(model)
    hidden, own = _last_hidden(model, decoder, inputs)
    if hidden is None or hidden.shape[:2] != visual.shape:
        found = "none" if hidden is None else f"those of {tuple(hidden.shape[:2])}"
        raise ValueError(
            f"model={type(model).__name__}: its head is given no hidden states of the whole prompt; expected those of "
            f"{tuple(visual.shape)} positions, found {found}. Fix: another policy, e.g. PruneHal(r=0.4, t=3)."
        )
    readings = torch.zeros(2, *visual.shape, device=hidden.device)
    with torch.no_grad():
        logits = _as_the_model(decoder, hidden[:, -1], own)
        for row, mine in enumerate(visual.to(hidden.device)):
            parts = hidden[row, mine].split(_CHUNK)
            mean = sum(logits(part).softmax(-1).sum(0) for part in parts) / max(1, int(mine.sum()))
            said = [_said(logits(part).log_softmax(-1), mean) for part in parts]
            readings[:, row, mine] = torch.cat(said, dim=1)
    return readings


def _said(logs: Tensor, mean: Tensor) -> Tensor:
    """Return information and certainty, (2, token), of readings in logarithms, (token, word), against their mean."""
    beyond = torch.where(logs.isfinite(), logs - mean.clamp(min=1e-30).log(), 0.0)  # a word that nobody reads says nothing
    return torch.stack([(logs.exp() * beyond).sum(-1).clamp(min=0), logs.amax(-1).exp()])


def _last_hidden(
    model: torch.nn.Module, decoder: torch.nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Return what the decoder's head is given for every position of the prompt, and the model's logits of the last one."""
    seen: list[Tensor] = []

    def last_only(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0][:, -1:],)  # the logits of a whole prompt need much memory, and generate() wants the last ones

    if (head := decoder.get_output_embeddings()) is None:
        return None, None
    options = {"logits_to_keep": 0} if decoder._supports_logits_to_keep() else {}  # all, where one is asked for by default
    options |= FIRST_LOGITS
    handle = head.register_forward_pre_hook(last_only)
    try:  # of the class: inside `pruning` the model's own is replaced
        done = type(model).generate(model, **inputs, **options)
    finally:
        handle.remove()
    return (seen[0] if seen else None), done.logits[0]


def _as_the_model(decoder: torch.nn.Module, last: Tensor, own: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function hidden states -> logits, scaled or capped as the model does; its own logits decide how.

    Words whose logit the model puts at its lowest number, as Chameleon does with those that draw images, get -infinity.
    """
    text, head, own = decoder.config.get_text_config(decoder=True), decoder.get_output_embeddings(), own.float().to(last.device)
    scale, multiplier, divisor, cap = (
        getattr(text, name, None) or 1.0
        for name in ("logit_scale", "output_multiplier", "logits_scaling", "final_logit_softcapping")
    )

    def way(factor: float, capped: bool, hidden: Tensor) -> Tensor:
        logits = head(hidden).float() * factor
        return cap * torch.tanh(logits / cap) if capped else logits

    never = (own <= torch.finfo(last.dtype).min / 2).all(0)
    ways = [partial(way, factor, capped) for factor in (1.0, scale, multiplier, 1 / divisor) for capped in (False, True)]
    apart = [(way(last) - own)[:, ~never].abs().max().item() for way in ways]
    best = min(range(len(ways)), key=apart.__getitem__)
    size = max(1.0, own[:, ~never].abs().max().item())
    if not apart[best] <= (1e-3 if last.dtype in (torch.float32, torch.float64) else 0.1) * size:
        raise ValueError(
            f"model={type(decoder).__name__}: its head gives logits that differ by {apart[best]:.2g} from its own; expected the "
            "same, scaled or capped as its configuration says. Fix: another policy, e.g. PruneHal(r=0.4, t=3)."
        )
    return lambda hidden: ways[best](hidden).masked_fill(never, -torch.inf)

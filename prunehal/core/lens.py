"""Read the visual tokens by the model's own words: the logit lens on their last hidden states.

Every visual token ends the prompt's forward as a hidden state that the head could turn into a word. Nobody trained these words,
and yet they tell what the token shows; their probabilities are higher for objects that are there (Jiang et al. 2025,
"Interpreting and Editing Vision-Language Representations to Mitigate Hallucinations", arXiv 2410.02762).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunehal.core.visual import generating

__all__ = ["read_tokens"]


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
        ValueError: the model's decoder has no head that is given the hidden states of the whole prompt.

    >>> import prunehal as ph
    >>> from prunehal.testbed.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> visual = inputs["input_ids"] == model.config.image_token_id
    >>> information, certainty = read_tokens(model, inputs, visual)[:, visual]
    >>> information.shape, bool((information >= 0).all()), bool((certainty <= 1).all())
    (torch.Size([144]), True, True)
    """
    decoder = generating(model)
    hidden = _last_hidden(model, decoder, inputs)
    if hidden is None or hidden.shape[:2] != visual.shape:
        found = "none" if hidden is None else f"those of {tuple(hidden.shape[:2])}"
        raise ValueError(
            f"model={type(model).__name__}: its head is given no hidden states of the whole prompt; expected those of "
            f"{tuple(visual.shape)} positions, found {found}. Fix: another policy, e.g. PruneHal(r=0.4, t=3)."
        )
    head = decoder.get_output_embeddings()
    readings = torch.zeros(2, *visual.shape, device=hidden.device)
    with torch.no_grad():
        for row, mine in enumerate(visual.to(hidden.device)):
            logs = _scaled(decoder.config, head(hidden[row, mine])).float().log_softmax(-1)
            mean = logs.logsumexp(0) - math.log(len(logs))
            readings[0, row, mine] = (logs.exp() * (logs - mean)).sum(-1).clamp(min=0)
            readings[1, row, mine] = logs.amax(-1).exp()
    return readings


def _last_hidden(model: torch.nn.Module, decoder: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return what the decoder's head is given for every position of the prompt, (batch, prompt, hidden)."""
    seen: list[Tensor] = []

    def last_only(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0][:, -1:],)  # the logits of a whole prompt need much memory, and generate() wants the last ones

    head = decoder.get_output_embeddings()
    if head is None:
        return None
    options = {"logits_to_keep": 0} if decoder._supports_logits_to_keep() else {}  # all, where one is asked for by default
    handle = head.register_forward_pre_hook(last_only)
    try:
        type(model).generate(model, **inputs, do_sample=False, num_beams=1, max_new_tokens=1, **options)  # inside `pruning`, too
    finally:
        handle.remove()
    return seen[0] if seen else None


def _scaled(config: Any, logits: Tensor) -> Tensor:
    """Return the logits as the model itself goes on with them, where it scales or caps what its head gives."""
    text = config.get_text_config(decoder=True)
    logits = logits * (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)

"""Observe: hand each attention call of a pruned cache the right mask, and take the newest query's row from it.

Every attention module of transformers asks ``AttentionInterface.get_interface`` for its function. That one method is
wrapped, once, when this module is imported; so sdpa, flash attention, each model's own eager function and functions
registered later are all reached, and nothing has to be restored after an exception. A call belongs to a pruned cache
only if its K is the very tensor that a cache layer has just returned. All others - vision towers, Q-Formers, models
with another cache - go straight through.

This module does not know steps, votes or policies; it knows a layer's mask and where to report a row.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

__all__ = ["Aside", "attend", "attention_row", "claim", "last_of", "visible"]

# These two mean plain softmax attention, so that at one query the explicit form may stand for them.
PLAIN_FUNCTIONS = (sdpa_attention_forward, flash_attention_forward)
# Keywords that `attend` honours, and keywords that do not change the result at one query.
HONOURED = {"scaling", "softcap", "s_aux", "sliding_window", "dropout"}
WITHOUT_EFFECT = {"is_causal", "position_ids", "use_cache", "logits_to_keep"}
WITHOUT_EFFECT |= {"output_attentions", "output_hidden_states", "return_dict"}


@dataclass(frozen=True)
class Aside:
    """Hold keys that the newest query is compared with beside those that it attends to; the output does not depend on them.

    Attributes:
        keys: (batch, kv_head, n, dim).
        mask: as that of the stored slots, (batch, 1 or kv_head or head, 1, n).
        report: takes the weights (batch, kv_head, group, slot + n) that these keys and the stored ones together would have.
    """

    keys: Tensor
    mask: Tensor
    report: Callable[[Tensor], None]


def claim(key: Tensor, layer: object) -> None:
    """Mark K as returned by a cache layer; the mark goes with the tensor object, so threads cannot mix layers up."""
    key._prunehal_layer = layer


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    edit: Callable[[Tensor], Tensor] | None = None,
    focus: Callable[[Tensor], Tensor] | None = None,
    aside: Aside | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Compute the attention of one query explicitly, on grouped KV heads.

    Args:
        query: (batch, head, 1, dim).
        key, value: (batch, kv_head, slot, dim); without value only the weights are computed.
        mask: None; or bool (True = visible) or additive, (batch, 1 or kv_head or head, 1, slot).
        scaling: of the scores; None means dim ** -0.5.
        softcap: bounds the scores to (-softcap, softcap).
        s_aux: attention sinks, one logit for each head; they take part in the softmax and carry no value.
        edit: changes the scores, (batch, kv_head, group, slot), before they are masked: masked slots stay masked.
        focus: given the weights, (batch, kv_head, group, slot), says which slots to hide, bool (batch, 1 or kv_head, 1, slot);
            the softmax is then taken over the others.
        aside: keys to compare the query with beside these; its report is on scores before ``edit``.

    Returns:
        The output (batch, 1, head, dim), or None; and the weights (batch, kv_head, group, slot).

    >>> output, weights = attend(torch.ones(1, 4, 1, 8), torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 8), None)
    >>> output.shape, weights.shape
    (torch.Size([1, 1, 4, 8]), torch.Size([1, 2, 2, 5]))
    """
    batch, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim) * (dim**-0.5 if scaling is None else scaling)
    scores = _capped(grouped @ key.transpose(-1, -2), softcap)  # (batch, kv_head, group, slot)
    if aside is not None:
        others = _capped(grouped @ aside.keys.transpose(-1, -2), softcap)
        both = torch.cat([_masked(scores, mask), _masked(others, aside.mask)], dim=-1)
        aside.report(_softmax(both, s_aux))
    if edit is not None:
        scores = edit(scores)
    scores = _masked(scores, mask)
    weights = _softmax(scores, s_aux)
    if focus is not None:
        weights = _softmax(scores.masked_fill(focus(weights), float("-inf")), s_aux)
    if value is None:
        return None, weights
    output = weights.to(value.dtype) @ value
    return output.reshape(batch, 1, heads, value.shape[-1]), weights


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.shape[1] not in (1, scores.shape[1]):
        mask = mask.reshape(*scores.shape[:3], -1)
    if mask.dtype != torch.bool:
        return scores + mask
    # Not -inf: padding that is read alone sees nothing at all, and would leave NaN in K and V of the next layers.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _softmax(scores: Tensor, s_aux: Tensor | None) -> Tensor:
    batch, kv_heads, group, _ = scores.shape
    if s_aux is not None:
        sinks = s_aux.reshape(1, kv_heads, group, 1).expand(batch, -1, -1, -1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32)
    return weights if s_aux is None else weights[..., :-1]


def attention_row(query: Tensor, key: Tensor, mask: Tensor | None, window: int | None, **options: object) -> Tensor:
    """Compute the weights of the last query only, (batch, kv_head, group, slot), for an output computed elsewhere."""
    return attend(query[:, :, -1:], key, None, last_of(mask, key, window), **options)[1]


def last_of(mask: Tensor | None, key: Tensor, window: int | None) -> Tensor | None:
    """Return the four-dimensional mask of the last query out of a mask of many."""
    return visible(mask[:, :, -1:] if mask is not None and mask.ndim == 4 else mask, key, window)


def visible(mask: Tensor | None, key: Tensor, window: int | None) -> Tensor | None:
    """Return the four-dimensional mask of the last query; flash attention brings a (batch, slot) mask and a window."""
    if mask is not None and mask.ndim == 2:
        mask = mask.bool()[:, None, None, :]
    if window is not None:
        layer = key._prunehal_layer
        near = layer.slot_positions() > layer.seen - 1 - window  # (1 or batch, 1 or kv_head, slot)
        mask = near[:, :, None, :] if mask is None else mask & near[:, :, None, :]
    return mask


def _check_plain(stock: Tensor, ours: Tensor) -> None:
    # A function that is not known here may add to the scores, or bound them; then `attend` cannot stand for it.
    apart, allowed = (stock[:, -1:] - ours).abs().max().item(), 1e-3 if stock.dtype == torch.float32 else 0.1
    if not apart <= allowed * max(1.0, ours.abs().max().item()):
        raise ValueError(
            f"attention: the model's own function is no plain softmax of the scores (outputs differ by {apart:.2g}; expected at "
            f"most {allowed:.2g}), so that they can be neither observed from outside nor edited. "
            "Fix: model.set_attn_implementation('eager'), whose weights are read as they are, or 'sdpa'; or another model."
        )


def _edited(result: tuple, output: Tensor, weights: Tensor) -> tuple[tuple, Tensor]:
    # Puts the last query's output and weights into what the stock function returned: (batch, query, head, dim) and, where it
    # returns weights, (batch, head, query, slot).
    returned = [torch.cat([result[0][:, :-1], output], dim=1), *result[1:]]
    if len(returned) > 1 and returned[1] is not None and returned[1].shape[-1] == weights.shape[-1]:
        last = weights.flatten(1, 2)[:, :, None].to(returned[1].dtype)
        returned[1] = torch.cat([returned[1][:, :, :-1], last], dim=2)
    return tuple(returned), weights


@functools.cache
def _observed(base: Callable) -> Callable:
    @functools.wraps(base)
    def attention(module, query, key, value, attention_mask=None, *args, **kwargs):
        layer = getattr(key, "_prunehal_layer", None)
        if layer is None:
            return base(module, query, key, value, attention_mask, *args, **kwargs)
        mask = layer.slot_mask(attention_mask, query.shape[2])
        # sdpa and eager masks contain the window already; flash attention applies it by slot, which is wrong once slots
        # and positions differ, so there the window is taken from the positions.
        flash = "flash" in (getattr(module.config, "_attn_implementation", None) or "")
        window = kwargs.get("sliding_window") if flash and (mask is None or mask.ndim == 2) else None
        options = {name: kwargs[name] for name in ("scaling", "softcap", "s_aux") if kwargs.get(name) is not None}
        unknown = {name for name, given in kwargs.items() if given is not None} - HONOURED - WITHOUT_EFFECT
        plain = base in PLAIN_FUNCTIONS and not (args or unknown or kwargs.get("dropout"))
        changes = {"edit": layer.score_edit(), "focus": layer.focus(), "aside": layer.aside(attention_mask, window)}
        if query.shape[2] == 1 and plain and not layer.keeps_stock_output():
            output, weights = attend(query, key, value, visible(mask, key, window), **changes, **options)
            layer.report(weights)
            return output, None
        if mask is not None and mask.ndim == 4 and mask.shape[1] not in (1, query.shape[1]):
            mask_for_heads = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
        else:
            mask_for_heads = mask
        if window is not None and layer.has_dropped():
            raise ValueError(
                f"layer {layer.index}: flash attention counts its sliding window of {window} in slots, which is wrong after a "
                "prune; expected one new token at a time. Fix: model.set_attn_implementation('sdpa') for a second turn."
            )
        result = base(module, query, key, value, mask_for_heads, *args, **kwargs)
        if any(change is not None for change in changes.values()):
            last = last_of(mask, key, window)
            if not plain:
                _check_plain(result[0], attend(query[:, :, -1:], key, value, last, **options)[0])
            result, weights = _edited(result, *attend(query[:, :, -1:], key, value, last, **changes, **options))
            layer.report(weights)
            return result
        if not layer.wants_row():
            layer.report(None)
        elif len(result) > 1 and result[1] is not None and result[1].shape[-1] == key.shape[2]:
            # Eager functions return their weights, with whatever the model adds to the scores.
            last = result[1][:, :, -1].float()
            layer.report(last.unflatten(1, (key.shape[1], -1)))
        else:
            if not plain and query.shape[2] > 1:  # once for each prompt: with a GPU the check waits for it
                _check_plain(result[0], attend(query[:, :, -1:], key, value, last_of(mask, key, window), **options)[0])
            layer.report(attention_row(query, key, mask, window, **options))
        return result

    return attention


def _install() -> None:
    original = AttentionInterface.get_interface
    if getattr(original, "_prunehal", False):
        return

    @functools.wraps(original)
    def get_interface(self, attn_implementation, default):
        return _observed(original(self, attn_implementation, default))

    get_interface._prunehal = True
    AttentionInterface.get_interface = get_interface


_install()

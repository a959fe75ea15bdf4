"""Read out early layers: catch a decoder's hidden states at the newest position, and put them through its LM head.

``hidden_states[k]`` is what block k reads: 0 are the embeddings, k the sum after k blocks, neither normed. Only the last
position is kept, so that a head costs (batch, vocabulary) and never (batch, prompt, vocabulary).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.checks import as_count
from prunehal.core.keyword import cache_among
from prunehal.core.visual import generating
from prunehal.decoding.parts.forwards import inputs_of

__all__ = ["LayerReadout", "check_layers", "decoder_of"]

NORMS = ("norm", "final_layer_norm", "embedding_norm")  # the final norm's names; the last is that of LFM2


def decoder_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the text decoder, the module that holds ``layers``.

    Raises:
        ValueError: there is none where transformers' ``get_decoder`` points to.

    >>> import prunehal as ph
    >>> model, _ = ph.load()
    >>> len(decoder_of(model).layers)
    6
    """
    part = generating(model)
    while not isinstance(getattr(part, "layers", None), torch.nn.ModuleList):
        inner = part.get_decoder() if hasattr(part, "get_decoder") else part
        inner = getattr(part, "model", part) if inner is part else inner  # Llama 4's points to itself
        if inner is part:
            raise ValueError(
                f"model={type(model).__name__}: get_decoder() leads to a {type(part).__name__} without .layers; expected a "
                "decoder with a list of layers. Fix: use a model like LLaVA or Qwen2.5-VL."
            )
        part = inner
    return part


def check_layers(layers: object, total: int | None = None) -> None:
    """Refuse what is no tuple of different layer indices; with ``total``, also those that the model does not have.

    Raises:
        ValueError: an entry is no integer from 0, comes twice, or reaches ``total``.
    """
    whole = isinstance(layers, tuple) and all(as_count(k) is not None and k >= 0 for k in layers)
    if not whole or len(set(layers)) != len(layers):
        raise ValueError(f"layers={layers!r}: expected a tuple of different integers from 0. Set for example layers=(0, 2, 4).")
    if total is not None and any(k >= total for k in layers):
        raise ValueError(
            f"layers={layers!r}: expected integers from 0 to {total - 1}; the decoder has {total} layers. "
            "Fix: leave the larger ones out."
        )


class LayerReadout:
    """Give the logits that the newest hidden states of chosen layers would have, with or without the final norm.

    Attributes:
        layers: how many the decoder has.
        tied: whether the LM head is the word embedding itself.
        logits: the model's own logits of the newest forward, before any processor, float32 (batch, vocabulary).

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
        >>> readout = LayerReadout(model)
        >>> with readout.watching((0, 3)):
        ...     ids = model.generate(**inputs, max_new_tokens=2)
        ...     early = readout.early_logits(normed=True)
        >>> early.shape[:2]
        torch.Size([2, 1])
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the parts of the model.

        Raises:
            ValueError: it has no decoder layers or no LM head where the public accessors point to.
        """
        self._model, self._decoder = generating(model), decoder_of(model)
        self._norm = next((part for name in NORMS if (part := getattr(self._decoder, name, None)) is not None), None)
        self._head = self._model.get_output_embeddings()
        if self._head is None:
            raise ValueError(
                f"model={type(model).__name__}: get_output_embeddings() returns None; expected the LM head. "
                "Fix: use the class that generates (...ForConditionalGeneration)."
            )
        self._softcap = getattr(self._model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        self.layers = len(self._decoder.layers)
        weights = getattr(self._head, "weight", None), self._decoder.get_input_embeddings().weight
        self.tied = weights[0] is weights[1]
        if any(weight is not None and weight.is_meta for weight in weights):  # on disk, where tied weights are two objects
            self.tied = bool(getattr(self._model.config, "tie_word_embeddings", False))
        self._forget()

    def _forget(self) -> None:
        self._hidden: dict[int, Tensor] = {}  # (batch, hidden)
        self._last: Tensor | None = None  # what the final norm read in the newest forward
        self._checked, self._mine = False, False
        self.logits: Tensor | None = None

    @contextmanager
    def watching(self, indices: Sequence[int], cache: PrunableCache | None = None) -> Iterator[None]:
        """Catch these hidden states in every forward inside the block; no hook is left behind, however it ends.

        Args:
            indices: of the hidden states.
            cache: whose forwards count; None means all.

        Raises:
            ValueError: the LM head and the final norm do not give the model's own logits again: it scales them otherwise.
            RuntimeError: the model's own logits hold NaN or infinity.
        """
        self._forget()

        def begin(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            self._mine = cache is None or cache_among(inputs_of(module, args, kwargs)) is cache

        with ExitStack() as hooks:
            self._hook(hooks, self._model.register_forward_pre_hook(begin, with_kwargs=True))
            for index in indices:
                self._hook(hooks, self._decoder.layers[index].register_forward_pre_hook(self._catch(index), with_kwargs=True))
            last = self._decoder.layers[-1].register_forward_hook(self._catch_last)
            self._hook(hooks, last)
            self._hook(hooks, self._model.register_forward_hook(self._end))
            yield

    def _hook(self, hooks: ExitStack, handle: torch.utils.hooks.RemovableHandle) -> None:
        hooks.callback(handle.remove)

    def _catch(self, index: int):
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            if self._mine:
                hidden = args[0] if args else kwargs["hidden_states"]
                self._hidden[index] = hidden[:, -1].detach().clone()  # a view would hold the whole prompt's

        return hook

    def _catch_last(self, module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> None:
        if self._mine and not self._checked:
            self._last = (output if isinstance(output, Tensor) else output[0])[:, -1].detach()

    def _end(self, module: torch.nn.Module, args: tuple, output: object) -> None:
        if not self._mine:
            return
        self.logits = output.logits[:, -1].detach().float()
        if self._checked:
            return
        again, self._last = self._through_head(self._last, normed=True), None
        apart, size = torch.stack([(again - self.logits).abs().max(), self.logits.abs().max()]).tolist()
        if not math.isfinite(size):
            row = int((~self.logits.isfinite()).any(1).nonzero()[0])
            raise RuntimeError(
                f"logits of row {row}: hold NaN or infinity, so that no layer can be compared with the last; expected finite "
                "numbers. Fix: look for the first layer whose hidden states are not finite; float16 overflows where bfloat16 and "
                "float32 do not."
            )
        if not apart <= (1e-3 if output.logits.dtype in (torch.float32, torch.float64) else 0.1) * max(1.0, size):
            raise ValueError(
                f"model={type(self._model).__name__}: its LM head and final norm give logits that differ by {apart:.2g} from its "
                "own; expected the same, or early layers cannot be compared with the last. Fix: use a model that does not scale "
                "its logits, e.g. LLaVA or Qwen2.5-VL."
            )
        self._checked = True

    def early_logits(self, normed: bool) -> Tensor:
        """Return the logits of the caught states, float32 (layer, batch, vocabulary), in the order they were asked for.

        Args:
            normed: apply the decoder's final norm before the head, as the model does with its last layer.
        """
        device = _device(self._head, self.logits)
        states = torch.stack([hidden.to(device) for hidden in self._hidden.values()])
        return self._through_head(states, normed)  # together, so that the head's weights are read once

    def _through_head(self, hidden: Tensor, normed: bool) -> Tensor:
        # Parts of a model that is spread over devices stay where they are; the hooks of parts on disk fetch their weights.
        if normed and self._norm is not None:
            hidden = self._norm(hidden.to(_device(self._norm, hidden)))
        logits = self._head(hidden.to(_device(self._head, hidden))).float()
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits.to(self.logits.device)


def _device(module: torch.nn.Module, hidden: Tensor) -> torch.device:
    return next((parameter.device for parameter in module.parameters() if not parameter.is_meta), hidden.device)

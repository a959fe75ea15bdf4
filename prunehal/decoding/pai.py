"""PAI: pay attention to the image (Liu et al., ECCV 2024, arXiv 2407.21771).

Two parts, each of which can be turned off. The boost: in the layers from ``start_layer`` on, the newest query's scores on
the image, s, become s + alpha |s| before the softmax. The contrast: a branch reads the text of the prompt without the image,
and the log-probabilities are pushed away from the branch's by gamma.

Here the boost acts from the prompt's last token on, as the paper describes it. The public code turns it off while the
contrast is on and the prompt is read, so that the first word is unboosted, and with gamma=1 it never comes on. Its branch
ignores padding and does not follow the beams; here it does both. Its script has gamma=2 by default, its README 1.1, as here.

Under pruning the boost acts on the visual tokens that are left, and the branch, which has none, is never pruned. The policy
observes the boosted weights, those that the model attends with: it votes and ranks on another footing than without PAI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.core.checks import as_count
from prunehal.core.editing import editing
from prunehal.core.visual import generating
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.plausibility import check_beta, plausible
from prunehal.decoding.parts.second_run import Branch, check_unread, contrasting
from prunehal.decoding.values import check_count, check_number

__all__ = ["PAI", "text_of"]


@dataclass(frozen=True)
class PAI(Decoder):
    """Boost the attention to the image, and contrast with the text alone.

    The scores on the image become s + alpha |s| (the paper's amplified attention), and the log-probabilities
    gamma log p(with image) - (gamma - 1) log p(text alone) (its refined distribution), on plausible tokens only. alpha=0 with
    gamma=1 is the stock output.

    Attributes:
        alpha: strength of the boost, at least 0.
        gamma: strength of the contrast, at least 1; 1 is none, and then no branch runs.
        beta: plausibility cut of the contrast, from the boosted model's own distribution; 0 for none. Nothing is cut
            without the contrast.
        start_layer, end_layer: the boosted layers, from 0, the end not included; None is the number of layers. Of hybrid
            models the attention layers among them.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
    >>> with PAI(alpha=0.2, gamma=1.1).on(model, inputs, cache) as options:
    ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
    >>> ids.shape[1] - inputs["input_ids"].shape[1]
    8
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    start_layer: int = 2
    end_layer: int | None = None

    # The public code's README, for a decoder of 32 layers.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava-1.5": {"alpha": 0.2, "gamma": 1.1, "beta": 0.1, "start_layer": 2, "end_layer": 32}
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "[0, inf)", "Set alpha=0.2, the published value.")
        check_number("gamma", self.gamma, "[1, inf)", "Set gamma=1.1, the published value.")
        check_beta(self.beta)
        start, end = self.start_layer, self.end_layer
        check_count("start_layer", start, 0, "Set start_layer=2, the published value.")
        if end is not None and (as_count(end) is None or end <= start):
            raise ValueError(
                f"end_layer={end!r}: expected an integer above start_layer={start}, or None. Set end_layer=None, the last layer."
            )

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach the method to the next generate(); see `Decoder.on`. What generate() returns as logits are contrasted."""
        if self.gamma > 1:
            check_unread(cache)
        with ExitStack() as stack:
            if self.alpha:
                stack.enter_context(editing(cache, self._layers(model, cache), acts.counted("boost", self._boost)))
            if self.gamma > 1:
                # The text alone goes to the decoder itself, also where the whole model insists on images.
                decoder = generating(model)
                branch = Branch(decoder, text_of(inputs, cache.prompt.numbers > 0), cache)
                stack.enter_context(contrasting(decoder, cache, branch, acts.counted("contrast", self._contrast)))
            yield {}

    def _layers(self, model: torch.nn.Module, cache: PrunableCache) -> list[int]:
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        end = count if self.end_layer is None else self.end_layer
        if not self.start_layer < end <= count:
            raise ValueError(
                f"start_layer={self.start_layer}, end_layer={self.end_layer}: {type(model).__name__} has {count} layers; "
                f"expected a range within 0 to {count}. Fix: PAI(start_layer=..., end_layer=...); end_layer=None is the last."
            )
        # Layers with a running state have no scores; those that use the K of earlier ones have, and `editing` refuses them.
        return [i for i in range(self.start_layer, end) if not _stateful(cache, i)]

    def _boost(self, scores: Tensor, *, visual: Tensor) -> Tensor:
        return torch.where(visual, scores + self.alpha * scores.abs(), scores)

    def _contrast(self, logits: Tensor, branch: Tensor) -> Tensor:
        logits, branch = logits.log_softmax(dim=-1), branch.log_softmax(dim=-1)
        return plausible(logits, self.beta, self.gamma * logits - (self.gamma - 1) * branch)


def _stateful(cache: PrunableCache, layer: int) -> bool:
    return layer < len(cache.layers) and isinstance(cache.layers[layer], LinearAttentionLayer)


def text_of(inputs: Mapping[str, Tensor], visual: Tensor) -> dict[str, Tensor]:
    """Return the prompt without its visual tokens, padded on the left: ids, mask and token types, (batch, text).

    Words around an image stay, and so do tokens that mark its beginning and end.

    Args:
        inputs: what the processor returned.
        visual: which tokens are visual, bool (batch, prompt).

    Raises:
        ValueError: the inputs have no input_ids, or a row holds no text.

    >>> ids, mask = torch.tensor([[1, 9, 9, 5], [0, 1, 9, 9]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    >>> text_of({"input_ids": ids, "attention_mask": mask}, ids == 9)
    {'input_ids': tensor([[1, 5],
            [0, 1]]), 'attention_mask': tensor([[1, 1],
            [0, 1]])}
    """
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError(
            f"inputs: has keys {sorted(inputs)}; expected 'input_ids', whose text PAI contrasts with. "
            "Fix: PAI(gamma=1), the boost alone."
        )
    mask = inputs.get("attention_mask")
    text = ~visual.to(ids.device) if mask is None else mask.bool() & ~visual.to(ids.device)
    lengths = text.sum(1)
    if not bool(lengths.all()):
        raise ValueError(
            "inputs: a row holds nothing but visual tokens; expected text for the branch. Fix: PAI(gamma=1), the boost alone."
        )
    order = text.to(torch.uint8).argsort(dim=1, stable=True)[:, -int(lengths.max()) :]  # text on the right, in its order
    text = text.gather(1, order)
    prompt = {"input_ids": ids.gather(1, order).masked_fill(~text, 0), "attention_mask": text.long()}
    if (types := inputs.get("token_type_ids")) is not None:  # PaliGemma's prefix, whose tokens all see each other
        prompt["token_type_ids"] = types.gather(1, order)
    return prompt

"""OPERA: beam search that penalises over-trust in one token of the answer, and takes it back.

Huang et al., CVPR 2024, arXiv 2311.17911; `overtrust` writes out the penalty, which the paper takes from the logits.

An answer that looks back at one of its own tokens, column after column, has begun to summarise instead of looking at the
image. Each beam proposes its ``candidates`` most probable tokens; the model reads each of them, and the row of attention that
it yields in the last layer (the largest of all heads, rows of sum 1) completes the window of `overtrust`. The candidate's
logit loses alpha * phi (for the first ``warmup`` tokens of the answer it gains alpha times its attention on the image
instead), and only candidates compete. When every beam has found the maximum at the same token s more than ``threshold``
times, the search returns to the token after s and chooses it anew: from all tokens, without penalty, but for the choices made
there before.

Where the released code and the paper differ, or the code has a flaw, this module does the following.

- The factor 1e-7 on phi and the bonus for attention on the image stand in the released code; they are options here (``scale``
  and ``warmup``) with its values. Its window is the whole answer, not the last k tokens, and so it is here.
- It counts the locations of all steps, not of the last l; so does this one. But its counts stay in their row when beams move,
  and its bare ``except`` turns every error into "no return": here the counts follow the beams, and errors are errors.
- It stores the products in half precision, where they overflow to inf and sink to equal zeros; here their logarithms are
  summed in float32, and phi is cut at 65504.
- It gives all tokens but the candidates a logit of -999, so that chance decides which of them fills a beam that has no
  candidate left, as with candidates=1; here they keep their order below the candidates.
- For InstructBLIP it counts the positions 1 to 32 as the image, which by its own layout are 0 to 31; here the prompt says where
  the image is.
- It reads the prompt anew at every return. Here the cache goes back to exactly what it was (`rewinding`), and a candidate
  that wins is not read twice (`lookahead`).

With pruning: candidates neither vote nor prune, only tokens that are chosen do; a dropped token counts as attention 0; a
return brings back the kept sets, the policy's memory and the trace as they were, so that steps taken back leave no event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateBeamDecoderOnlyOutput

from prunehal.core import Bank, PrunableCache, listening
from prunehal.core.acting import Acts
from prunehal.core.keyword import cache_among
from prunehal.core.layer import PrunableLayer
from prunehal.decoding.base import Decoder
from prunehal.decoding.opera.beams import Beams, Rules
from prunehal.decoding.opera.search import Newest, Search
from prunehal.decoding.values import check_count, check_number

__all__ = ["OPERA"]


@dataclass(frozen=True)
class OPERA(Decoder):
    """Penalise over-trust in beam search, and return to the token where it began.

    Takes one input at a time: the return takes all beams of an input back in time, which rows of another input could not
    follow. Processors given to generate() see the penalised log-probabilities. With alpha=0, candidates as many as the
    vocabulary and a threshold of at least max_new_tokens it is stock beam search. With candidates=1 (preset "fast") no
    candidate competes with another, so that the penalty has no effect and only the return is left.

    Attributes:
        alpha: strength of the penalty and of the bonus (penalty_weights).
        sigma: factor of the attention weights (scale_factor).
        candidates: N, tokens that each beam proposes, and the largest number of returns to one token
            (num_attn_candidates).
        threshold: r, how often every beam must have found the maximum at one token before the search returns.
        num_beams: beams, as in generate().
        scale: factor of phi.
        warmup: tokens of the answer with the bonus for attention on the image; the search returns to none of them.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
        >>> with OPERA.preset("llava-1.5").on(model, inputs, cache) as options:
        ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=6)
        >>> ids.shape[1] - inputs["input_ids"].shape[1]
        6
    """

    alpha: float = 1.0
    sigma: float = 50.0
    candidates: int = 5
    threshold: int = 15
    num_beams: int = 5
    scale: float = 1e-7
    warmup: int = 10

    one_input: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    # README of the released code: the same values for all four models, and a faster setting.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava-1.5": {},
        "instructblip": {},
        "minigpt-4": {},
        "shikra": {},
        "fast": {"candidates": 1, "threshold": 25},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, within, usual in (("alpha", "[0, inf)", 1.0), ("sigma", "(0, inf)", 50.0), ("scale", "(0, inf)", 1e-7)):
            check_number(name, getattr(self, name), within, f"Set {name}={usual}, the published value.")
        counts = (("candidates", 1, 5), ("threshold", 0, 15), ("num_beams", 2, 5), ("warmup", 1, 10))
        for name, least, usual in counts:
            check_count(name, getattr(self, name), least, f"Set {name}={usual}, as published.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach the method to the next generate() on this cache; see `Decoder.on`.

        Raises:
            ValueError: more than one input, another decoder on the cache, a policy with a bank, or a model whose cache cannot be
                taken back.
        """
        rows = cache.prompt.rows
        if rows != 1:
            raise ValueError(
                f"inputs: a batch of {rows}; expected one input, because OPERA takes all beams of an input back in time, which "
                "other inputs in the same cache cannot follow. Fix: one attach() and one generate() for each input."
            )
        others = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, PrunableLayer)}
        if others:
            raise ValueError(
                f"model={type(model).__name__}: has layers with {', '.join(sorted(others))}, whose state cannot be taken back; "
                "expected attention layers that keep their own K and V. Fix: use another model, or another decoder."
            )
        if isinstance(cache.policy, Bank):
            raise ValueError(
                f"policy={cache.policy!r}: OPERA takes steps back, and tokens that left the bank in them would not; expected a "
                "policy whose tokens do not return. Fix: PruneHal(r, t), or another decoder."
            )
        _check_alone(cache)
        newest = Newest()
        with listening(cache, newest):
            yield {
                "custom_generate": acts.counted("search", partial(_generate, self, cache, newest)),
                "num_beams": self.num_beams,
            }


def _generate(
    opera: OPERA,
    cache: PrunableCache,
    newest: Newest,
    /,  # generate() may pass the cache by the name `cache` too
    model: torch.nn.Module,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Stand for the decoding loop of generate(), as its ``custom_generate``."""
    _check(opera, cache, generation_config, model_kwargs)
    _check_alone(cache, newest)
    with newest.heeded():
        out = model._prefill(input_ids, generation_config, model_kwargs)
        rules = Rules.of(generation_config, input_ids.shape[1])
        search = Search(opera, cache, newest, model, Beams.start(input_ids), model_kwargs)
        logits = search.read(out)
        history: list[tuple[Tensor, Tensor]] = []  # by token: logits and processed log-probabilities
        while True:
            log_probs, logits = search.weighed(logits)
            beams = search.beams
            del history[beams.parents.shape[1] :]
            log_probs = logits_processor(beams.ids, log_probs)
            history.append((logits, log_probs))
            scores = tuple(each for _, each in history) if generation_config.output_scores else None
            if search.choose(*beams.advance(log_probs, partial(stopping_criteria, scores=scores), rules)):
                return _returned(search.beams, cache, history, generation_config)
            logits = search.read_chosen()


def _check_alone(cache: PrunableCache, own: Newest | None = None) -> None:
    others = [type(each).__name__ for each in (*cache.listeners, *cache.edits.values()) if each is not own]
    if others:
        raise ValueError(
            f"cache: {', '.join(others)} is attached, and would not follow when OPERA looks ahead or takes steps back; "
            "expected no other decoder. Fix: run one at a time."
        )


def _check(opera: OPERA, cache: PrunableCache, config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    if cache_among(model_kwargs) is not cache:
        raise ValueError(
            "cache: generate() got another cache than OPERA.on(); expected the same one. "
            "Fix: generate(**inputs, **cache.options, **options)."
        )
    if cache.step:
        raise ValueError(
            f"cache: it has observed {cache.step} steps already; expected none, since OPERA must see the whole "
            "answer. Fix: attach a new cache."
        )
    if cache.table is not None and cache.table.positions is not None:
        raise ValueError(
            "cache: visual tokens were dropped from it before the answer (by keep=, Draft or FirstToken), and "
            "OPERA returns by the slots of a whole prompt; expected all. Fix: another decoder, or a policy that prunes later."
        )
    wanted = {"num_beams": opera.num_beams, "do_sample": False, "output_attentions": False, "output_hidden_states": False}
    for name, value in wanted.items():
        given = getattr(config, name)
        if (given or False) != value:
            raise ValueError(f"{name}={given!r}: OPERA is a beam search of its own; expected {value!r}. Fix: {name}={value!r}.")


def _returned(
    beams: Beams, cache: PrunableCache, history: list[tuple[Tensor, Tensor]], config: GenerationConfig
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Make what generate() returns out of the best hypotheses."""
    best = beams.ended[: config.num_return_sequences]
    pad, ends = config._pad_token_tensor, config._eos_token_tensor
    filler = -1 if ends is None else int(ends[0]) if pad is None or not pad else int(pad)
    device = beams.ids.device
    pad_to = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    sequences = pad_to([each.ids for each in best], padding_value=filler)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        sequences_scores=torch.tensor([each.score for each in best], device=device) if config.output_scores else None,
        scores=tuple(each for _, each in history) if config.output_scores else None,
        logits=tuple(each for each, _ in history) if config.output_logits else None,
        beam_indices=pad_to([each.parents.int() for each in best], padding_value=-1),
        **cache.options,
    )

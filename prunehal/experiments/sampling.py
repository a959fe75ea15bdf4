"""Sample so that a draw depends on seed, image and step alone: not on the batch, the other rows or the policy.

The largest of logits plus independent Gumbel noise is a draw from their softmax (Maddison et al. 2014, "A* Sampling", arXiv
1411.0030). So stock greedy search on noisy logits samples; rows can be resumed in any batch, and two policies that
caption the same image meet the same luck, which takes noise out of their difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

__all__ = ["KeyedSampling"]


class KeyedSampling(LogitsProcessor):
    """Turn greedy search into nucleus sampling at temperature 1.

    Args:
        keys: of each row, such as its image id.
        seed: of all rows.
        prompt: tokens of the prompt, padding included.
        top_p: share of the probability that the nucleus holds.

    >>> draws = [KeyedSampling(["a", key], 0, prompt=1)(torch.tensor([[5]] * 2), torch.zeros(2, 9)).argmax(1) for key in "bc"]
    >>> bool(draws[0][0] == draws[1][0])
    True
    """

    def __init__(self, keys: Sequence[Hashable], seed: int, prompt: int, top_p: float = 0.9) -> None:
        self._keys, self._seed, self._prompt = list(keys), seed, prompt
        self._nucleus = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits with noise, (row, vocabulary); those outside of the nucleus stay at -inf."""
        step = input_ids.shape[1] - self._prompt
        noise = np.stack([self._noise(key, step, scores.shape[1]) for key in self._keys])
        return self._nucleus(input_ids, scores.float()) + torch.from_numpy(noise).to(scores.device, torch.float32)

    def _noise(self, key: Hashable, step: int, size: int) -> np.ndarray:
        number = int.from_bytes(hashlib.sha256(json.dumps([self._seed, key, step]).encode()).digest()[:8])
        return np.random.default_rng(number).gumbel(size=size)

"""Hold the prompt that was attached, and check that generate() gets the same one."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """Know what the processor returned: which tokens are visual, and how a row's text ends.

    Attributes:
        numbers: in which pool each position is, from 1; 0 is text; (batch, prompt), on the CPU.
        ids: input_ids, (batch, prompt); None where the model gets embeddings.
        end_ids: ids that a row writes when it has ended: end of sequence and padding.
    """

    numbers: Tensor
    ids: Tensor | None = None
    end_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.numbers.shape[1]

    @property
    def rows(self) -> int:
        """Return the number of inputs."""
        return len(self.numbers)

    def copies(self, batch: int) -> int:
        """Return how often generate() repeats each input, for its beams or returned sequences.

        Raises:
            ValueError: a batch of so many rows is not made of these inputs.
        """
        if batch % self.rows:
            raise ValueError(
                f"batch={batch}: generate() runs {batch} rows, but the cache was attached to inputs of {self.rows}; "
                f"expected {self.rows} or a multiple of it. Fix: pass the same inputs to attach() and generate()."
            )
        return batch // self.rows

    def check_ids(self, input_ids: Tensor, seen: int) -> None:
        """Raise a ValueError if ids that follow ``seen`` tokens are not those of the prompt."""
        if self.ids is None:
            return
        expected = self.ids[:, seen : seen + input_ids.shape[1]].to(input_ids.device)
        expected = expected.repeat_interleave(max(1, len(input_ids) // len(expected)), dim=0)
        if not torch.equal(input_ids[:, : expected.shape[1]], expected):
            raise ValueError(
                f"input_ids: the prompt in generate(), {tuple(input_ids.shape)} from position {seen}, is not the one "
                f"expected from attach(), {tuple(self.ids.shape)}. Fix: pass the same inputs to attach() and "
                "generate(), and attach a new cache for each prompt."
            )
        if input_ids.shape[1] > expected.shape[1]:
            raise ValueError(
                f"input_ids: {seen + input_ids.shape[1]} tokens arrive at once, but the attached prompt has "
                f"{len(self)}; expected generated tokens one by one. Fix: leave out assistant_model "
                "and prompt_lookup_num_tokens, or attach to the longer prompt."
            )

    def check_size(self, key: Tensor, seen: int, rows: int) -> None:
        """Raise a ValueError if K of new tokens, (batch, kv_head, new, dim), cannot follow ``seen`` tokens of ``rows`` rows."""
        end = seen + key.shape[2]
        if seen < len(self) < end or len(key) != rows:
            raise ValueError(
                f"prompt: {len(key)} rows with {end} tokens arrived; expected the attached {rows} rows with {len(self)} "
                "tokens. Fix: pass the same inputs to attach() and generate()."
            )

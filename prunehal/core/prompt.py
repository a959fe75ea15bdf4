"""Hold the prompt that was attached, and check that generate() gets the same one."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from prunehal.core.pictures import Pictures

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """Know what the processor returned: which tokens are visual, and how a row's text ends.

    Attributes:
        numbers: in which pool each position is, from 1; 0 is text; (batch, prompt), on the CPU.
        ids: input_ids, (batch, prompt); None where the model gets embeddings.
        end_ids: ids that a row writes when it has ended: end of sequence and padding.
        words: embeds ids, for prompts that arrive as embeddings; None where there is no such layer.
        placeholders: ids that stand for an image in ids; none where a mask says what is visual, and words stand there.
        pictures: marks of the images' pixels.
        handed_on: whether the model hands its prompt on as embeddings to a decoder inside (BLIP-2 and its kin).
    """

    numbers: Tensor
    ids: Tensor | None = None
    end_ids: tuple[int, ...] = ()
    words: torch.nn.Module | None = None
    placeholders: tuple[int, ...] = ()
    pictures: Pictures = field(default_factory=lambda: Pictures({}, {}))
    handed_on: bool = False

    def __deepcopy__(self, memo: dict) -> Self:
        """Share the prompt between copies of a cache: nothing in it changes."""
        return self

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.numbers.shape[1]

    @property
    def rows(self) -> int:
        """Return the number of inputs."""
        return len(self.numbers)

    def check_rows(self, rows: int) -> None:
        """Raise a ValueError unless generate() gets as many inputs as were attached; it repeats them for beams by itself."""
        if rows != self.rows:
            raise ValueError(
                f"input_ids: generate() got {rows} rows, but the cache was attached to inputs of {self.rows}; expected as many. "
                "Fix: pass the same inputs to attach() and generate(); for several sequences of one input num_return_sequences."
            )

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

    def check_ids(self, input_ids: Tensor, seen: int, brings_images: bool, same_images: Tensor | None = None) -> None:
        """Raise a ValueError if ids that follow ``seen`` tokens are not those of the prompt, or come without its images.

        Args:
            input_ids: (batch, token).
            seen: tokens before them.
            brings_images: whether images come with them.
            same_images: whether these are the attached ones, a bool tensor; None if that cannot be known.
        """
        if self.ids is None:
            self.check_images(same_images)
            return
        expected = self._part(self.ids, input_ids, seen)
        given = input_ids[:, : expected.shape[1]]
        if given.shape != expected.shape:
            raise self.other(input_ids, seen)
        same = (given == expected).all()
        if same_images is not None:  # read together, so that the host waits once
            same = same + same_images.to(same.device).long()
        if int(same) != 1 + (same_images is not None):
            if torch.equal(given, expected):
                raise self._other_images()
            raise self.other(input_ids, seen)
        if input_ids.shape[1] > expected.shape[1]:
            raise ValueError(
                f"input_ids: {seen + input_ids.shape[1]} tokens arrive at once, but the attached prompt has "
                f"{len(self)}; expected generated tokens one by one. Fix: leave out assistant_model "
                "and prompt_lookup_num_tokens, or attach to the longer prompt."
            )
        if self.placeholders and not brings_images and bool(self.numbers[:, seen : seen + input_ids.shape[1]].any()):
            raise ValueError(
                "pixel_values: the prompt arrives without its images, and its placeholders would be read as words; expected "
                "what was attached. Fix: generate(**inputs, **cache.options) with all that the processor returned."
            )

    def check_images(self, same_images: Tensor | None) -> None:
        """Raise a ValueError if the images are known to be others than the attached ones."""
        if same_images is not None and not bool(same_images):
            raise self._other_images()

    def check_embeddings(self, embeddings: Tensor, seen: int) -> None:
        """Raise a ValueError if embeddings (batch, token, hidden) hold other words than the prompt's; images are passed over."""
        if self.ids is None or self.words is None:
            return
        ids, text = self._part(self.ids, embeddings, seen), self._part(self.numbers, embeddings, seen) == 0
        if embeddings.shape[:2] != ids.shape or not torch.equal(embeddings[text], self.words(ids)[text]):
            raise self.other(embeddings, seen)

    def check_later(self, given: Tensor, seen: int, brings_images: bool) -> None:
        """Raise a ValueError unless a later prompt can follow ``seen`` tokens, the whole prompt among them.

        Args:
            given: ids (batch, new), or embeddings (batch, new, hidden).
            seen: tokens that the cache has read.
            brings_images: whether images come with it.
        """
        if not given.shape[1]:
            raise self.again("no new token arrives", seen)
        if brings_images:
            raise ValueError(
                "pixel_values: a later prompt brings images, which this cache does not know; expected text only. Fix: attach a "
                "new cache for each generate() from the start; in a second turn leave out pixel_values, or attach a new cache to "
                "the whole conversation if it has new images."
            )
        if self.placeholders and given.ndim == 2:
            marks = torch.tensor(self.placeholders, device=given.device)
            if bool(torch.isin(given[:, 1:], marks).any()):  # the first may be a word that the model wrote itself
                raise self.again(f"placeholders of images (id {' or '.join(map(str, self.placeholders))}) arrive as words", seen)

    def again(self, what: str, seen: int) -> ValueError:
        """Return the error for a prompt that does not go on from ``seen`` tokens."""
        return ValueError(
            f"input_ids: {what}, after the {seen} tokens that this cache has read (the prompt of {len(self)} among them); "
            f"expected the whole conversation, those {seen} tokens and new text. Fix: attach a new cache for each generate() "
            "from the start; for a second turn pass what the first one returned, with the new text behind it, as input_ids."
        )

    def _part(self, values: Tensor, given: Tensor, seen: int) -> Tensor:
        part = values[:, seen : seen + given.shape[1]].to(given.device)
        return part.repeat_interleave(max(1, len(given) // len(part)), dim=0)

    def _other_images(self) -> ValueError:
        return ValueError(
            "pixel_values: the images in generate() are others than those given to attach(), with the same tokens in the prompt; "
            "expected the attached ones. Fix: pass the same inputs to attach() and generate(), and attach a new cache for each "
            "image."
        )

    def other(self, given: Tensor, seen: int) -> ValueError:
        """Return the error for a prompt that is another than the attached one."""
        return ValueError(
            f"input_ids: the prompt in generate(), {tuple(given.shape[:2])} from position {seen}, is not the one "
            f"expected from attach(), {tuple(self.ids.shape)}. Fix: pass the same inputs to attach() and "
            "generate(), and attach a new cache for each prompt."
        )

    def check_size(self, key: Tensor, seen: int, rows: int) -> None:
        """Raise a ValueError if K of new tokens, (batch, kv_head, new, dim), cannot follow ``seen`` tokens of ``rows`` rows."""
        end = seen + key.shape[2]
        if seen < len(self) < end or len(key) != rows:
            raise ValueError(
                f"prompt: {len(key)} rows with {end} tokens arrived; expected the attached {rows} rows with {len(self)} "
                "tokens. Fix: pass the same inputs to attach() and generate()."
            )

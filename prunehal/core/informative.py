"""Keep the tokens that say something: what a visual token says, not who attends to it, decides whether it is redundant."""

from dataclasses import dataclass, field

from torch import Tensor

from prunehal.core.accumulated import check_squares, smoothed
from prunehal.core.checks import check_count, check_fraction, refuse
from prunehal.core.given import Given
from prunehal.core.share import fewest_holding

__all__ = ["Informative", "Standout", "Telling"]


class Telling(Given):
    """Hold what policies share that rank visual tokens by what they say; a base, no policy of its own.

    A token that says what all others say is redundant. `prunehal.core.lens.read_tokens` reads each token through the model's own
    head: its information I (nats beyond the mean reading) and its certainty c (largest probability). A token's score is
    I * S^2, where S is the mean of I * c over its surroundings: things that the model does not know also differ from their
    background, but are read without certainty. Attention is not asked. Not from the paper. All layers keep the same tokens.

    ``FirstToken(model, inputs).attach(policy)`` prunes before the first token is chosen. Reading costs one more prefill;
    `SharedPrefill` and its kin read once for all policies. With per_image=True each image is judged by its own scores, while
    information is still that beyond the mean of all visual tokens of the prompt.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is not None:
            check_count(self, "grid", 1, "Set grid=None to score each token by itself.")
        check_count(self, "window", 1, "Set window=11, the default.")
        if self.window % 2 == 0:
            raise refuse("window", self.window, "an odd number of patches", f"Set window={self.window + 1}.")
        check_count(self, "step", 1, "Set step=2, the default.")

    def check_prompt(self, numbers: Tensor) -> None:
        """Raise a ValueError unless every run of visual tokens is made of squares of grid x grid, each in one pool."""
        if self.grid is not None:
            check_squares(numbers, self.grid)

    def told(self, readings: Tensor, numbers: Tensor) -> Tensor:
        """Return the scores (layer, batch, head, visual) of the readings, (2, layer, batch, head, visual), before any step.

        Args:
            readings: information and certainty, as `prunehal.core.lens.read_tokens` gives them.
            numbers: of the tokens within their row, (layer, batch, head, visual).
        """
        information, certainty = readings
        sure = information * certainty
        around = sure if self.grid is None else smoothed(sure, numbers, self.grid, self.window)
        return information * around**2


@dataclass(frozen=True)
class Informative(Telling):
    """Keep the fewest visual tokens that hold the share p of what all say (`Telling`); once.

    The more redundant an image's tokens, the fewer stay; but what misleads also says something, and with it the share grows.

    Attributes:
        p: share of all scores that the kept tokens hold, in (0, 1].
        grid: patches along one side of each image (or tile), whose tokens form a square of grid x grid; None: there are no
            surroundings, and S is the token's own I * c.
        window: side of the surroundings, in patches around the token on its own tile; odd. From 2 * grid - 1 on it is the tile.
        step: the step m after which the others are dropped.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, Informative(p=0.8, grid=12))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=4)
    >>> kept = cache.events["kept"][0]
    >>> len(set(kept)), 36 < kept[0] < 108
    (1, True)
    """

    p: float = 0.8
    grid: int | None = field(default=None, kw_only=True)
    window: int = field(default=11, kw_only=True)
    step: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "p", "p is the share of the scores that stays, e.g. p=0.8.")

    def budgets(self, scores: Tensor, valid: Tensor, left: list[list[int]]) -> list[list[int]]:
        """Return how many tokens hold the share p, by layer and row; the host waits for it."""
        return fewest_holding(self.p, scores, valid, left)


@dataclass(frozen=True)
class Standout(Telling):
    """Keep every visual token that says at least a part of what the most telling one says (`Telling`); once.

    Unlike a share of the sum (`Informative`), the bar does not fall as there are more tokens that say a little.

    Attributes:
        part: of the largest score, in (0, 1], that a kept token's score reaches.
        grid, window, step: as of `Informative`.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, Standout(part=0.2, grid=12, window=23))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=4)
    >>> kept = cache.events["kept"][0]
    >>> len(set(kept)), 36 < kept[0] < 144
    (1, True)
    """

    part: float = 0.2
    grid: int | None = field(default=None, kw_only=True)
    window: int = field(default=11, kw_only=True)
    step: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "part", "part is what of the largest score a kept token reaches, e.g. part=0.2.")

    def budgets(self, scores: Tensor, valid: Tensor, left: list[list[int]]) -> list[list[int]]:
        """Return how many tokens reach the part, by layer and row; the host waits for it."""
        scores = scores.masked_fill(~valid, -1.0)
        reached = (scores >= self.part * scores.amax(-1, keepdim=True)) & valid
        return reached.sum(-1).amax(-1).tolist()

"""The settings of a run: model, benchmark, policy and decoding, checked; and the policies that the command line names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import transformers

import prunehal
from prunehal.core import NoPruning, Policy, PruneHal, TopK
from prunehal.core.checks import as_count
from prunehal.decoding.named import Decoding, described, named_decoding
from prunehal.experiments.own_policies import named_class, policy_name, source_mark
from prunehal.models.chat import MOST_NEW_TOKENS, check_template
from prunehal.models.load import DTYPES, EMBEDDED
from prunehal.running.tasks import BENCHMARKS

__all__ = ["POLICIES", "Run", "named_policy"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings of a run, checked.

    Attributes:
        model: ``"embedded"``, a hub name or a folder; see `prunehal.load`.
        benchmark: a name of `prunehal.running.tasks.BENCHMARKS`.
        images: folder of the benchmark's images.
        out: folder of the rows and the result; a later call with the same settings goes on there.
        policy: when and what to prune; None for stock generate().
        decoding: ``"greedy"``, ``"beam"`` (5 beams), ``"nucleus"`` (top_p 0.9), or a mitigation decoder of `prunehal.decoding` or
            its name; OPERA asks one item at a time.
        revision, dtype, attn_implementation: of the model, as `prunehal.load` takes them.
        device: where the model goes; by default cuda if there is one, otherwise cpu.
        device_map: of transformers, instead of ``device``, for a model that needs several devices.
        prompt: of ``chair``; "Please describe this image in detail." by default (the embedded model's own for that one).
        prompt_suffix: added to every question or prompt, such as " Please answer yes or no."
        template: the prompt around text and image, instead of the chat template; see `prunehal.models.chat.render`.
        questions: which; see `prunehal.running.tasks.items_of`.
        max_new_tokens: longest answer.
        batch_size: items at once; halved when memory runs out.
        limit: only the first so many items.
        seed: of sampling.
        skip_missing: leave out the items whose image is missing.
        progress: show a bar with the time left.

    Raises:
        ValueError: a setting cannot be; the message shows it and what was expected.

    >>> Run(model="embedded", benchmark="chair", images="val2014", out="runs/chair", decoding="beams")
    Traceback (most recent call last):
    ValueError: decoding='beams': expected one of greedy, beam, nucleus, vcd, dola, opera, deco, pai, kvsmooth, fastv
    """

    model: str
    benchmark: str
    images: Path
    out: Path
    policy: Policy | None = None
    decoding: Decoding = "greedy"
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device: str | None = None
    device_map: str | None = None
    prompt: str | None = None
    prompt_suffix: str = ""
    template: str | None = None
    questions: str | None = None
    max_new_tokens: int = 512
    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    skip_missing: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("images", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("model", "questions"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else str(value))
        object.__setattr__(self, "decoding", named_decoding(self.decoding))
        for name, known in (("benchmark", BENCHMARKS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, known))}")
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "limit" and value is None:
                continue
            if as_count(value) is None or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
            if name == "max_new_tokens" and value > MOST_NEW_TOKENS:
                raise ValueError(f"{name}={value!r}: expected an integer from {least} to {MOST_NEW_TOKENS:,}")
            object.__setattr__(self, name, as_count(value))
        if self.policy is not None and not isinstance(self.policy, Policy):
            raise ValueError(f"policy={self.policy!r}: expected PruneHal(...), TopK(k) or None; see named_policy()")
        if self.device is not None and self.device_map is not None:
            raise ValueError(f"device={self.device!r}, device_map={self.device_map!r}: expected one of the two; leave one out")
        if self.model == EMBEDDED and self.dtype not in ("auto", "float32"):
            raise ValueError(f"dtype={self.dtype!r}: the embedded model runs in float32; expected 'auto'; leave it out")
        if self.model == EMBEDDED and self.revision is not None:
            raise ValueError(f"revision={self.revision!r}: the embedded model has no revisions; expected None; leave it out")
        if self.prompt is not None and not BENCHMARKS[self.benchmark].prompted:
            raise ValueError(
                f"prompt={self.prompt!r}: {self.benchmark} asks its own questions; expected none; add to them by prompt_suffix"
            )
        check_template(self.template)

    @property
    def prunes(self) -> bool:
        """Say whether generate() runs on a cache of this package."""
        return self.policy is not None and not isinstance(self.policy, NoPruning)

    def shared(self) -> dict[str, Any]:
        """Return the settings that all rows of a folder share, as JSON; what needs the model comes later."""
        names = ("benchmark", "questions", "model", "revision", "dtype", "attn_implementation", "prompt", "prompt_suffix")
        names += ("template", "max_new_tokens", "seed")
        policy = {"name": "none"}
        if self.prunes:
            kind = type(self.policy)
            mark = source_mark(kind)
            policy = {"name": policy_name(kind)} | asdict(self.policy) | ({} if mark is None else {"source": mark})
        versions = {"prunehal": prunehal.__version__, "transformers": transformers.__version__}
        return {name: getattr(self, name) for name in names} | {"decoding": described(self.decoding), "policy": policy} | versions


def named_policy(name: str, **options: float | None) -> Policy | None:
    """Return the policy of a name as the command line has it; None for stock generate().

    Args:
        name: a name of POLICIES, or ``"module:Class"`` for one of the user's own.
        options: r and t of prunehal, k of topk, which needs it; of an own policy its fields. What is None is not given: r and t
            then have their defaults.

    Raises:
        ValueError: no such name, an option of another policy, or a number that cannot be.

    >>> named_policy("none"), named_policy("topk", k=36)
    (None, TopK(selection='top', kept='layer', beam_state='own', seed=0, k=36, step=2))
    """
    if name not in POLICIES and ":" not in name:
        raise ValueError(
            f"policy={name!r}: expected one of {', '.join(map(repr, POLICIES))}, or 'module:Class' for one of your own"
        )
    own = None if name in POLICIES else named_class(name)
    kind, known = (own, tuple(f.name for f in fields(own) if f.init)) if own else POLICIES[name]
    given = {option: value for option, value in options.items() if value is not None}
    if others := [option for option in given if option not in known]:
        told = ", ".join(f"{option}={given[option]!r}" for option in others)
        fits = " or ".join(repr(each) for each, (_, its) in POLICIES.items() if set(given) <= set(its))
        raise ValueError(
            f"{told}: given with policy={name!r}; expected {' and '.join(known) or 'no option'} with it; leave "
            f"{' and '.join(others)} out{f', or choose policy={fits}' if fits else ''}"
        )
    if name == "topk" and not given:
        raise ValueError("policy='topk': expected k, the visual tokens that stay, such as k=36")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"policy={name!r}: {error}; expected the options that it needs") from error


# What each name makes, and the options that it takes.
POLICIES: dict[str, tuple[Callable[..., Policy | None], tuple[str, ...]]] = {
    "prunehal": (PruneHal, ("r", "t")),
    "topk": (TopK, ("k",)),
    "none": (lambda: None, ()),
}

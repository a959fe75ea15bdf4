"""Describe an experiment: one model, one set of images, one way of decoding, one policy; frozen, checked, with its own key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunehal.core import (
    Accumulated,
    Bank,
    Informative,
    Keep,
    MassShare,
    NoPruning,
    Policy,
    PruneHal,
    RobustVote,
    Standout,
    StepTopK,
    TopK,
)
from prunehal.core.checks import as_count
from prunehal.decoding.base import Decoder
from prunehal.decoding.named import Decoding, described, name_of, named_decoding
from prunehal.experiments.modes import check_mode
from prunehal.experiments.own_policies import named_class, policy_name
from prunehal.models.chat import MOST_NEW_TOKENS, check_template
from prunehal.models.load import DTYPES, EMBEDDED
from prunehal.testbed.world.final import FINAL, FINAL_SPLITS, final_indices, purpose_of
from prunehal.testbed.world.scenes import MOST_SCENES, SPLITS

__all__ = ["POLICIES", "TESTBED", "Experiment", "policy_from"]

TESTBED = "testbed"
_SPLITS = (*(name for name in SPLITS if name != FINAL), *FINAL_SPLITS)
POLICIES: dict[str, type[Policy]] = {
    kind.__name__: kind
    for kind in (NoPruning, PruneHal, TopK, Accumulated, RobustVote, MassShare, StepTopK, Keep, Bank, Informative, Standout)
}

_COUNTS = {"n_images": 1, "tiles": 0, "max_new_tokens": 1, "min_new_tokens": 0, "seed": 0}  # and the smallest value of each
# And the largest: more is a typing error, which would run out of memory or never end.
_MOST = {"tiles": 1000, "max_new_tokens": MOST_NEW_TOKENS}
# Fields that hold a text, and whether they may be None.
_TEXTS = {"model": False, "dtype": False, "images": False, "split": False, "mode": False}
_TEXTS |= {"revision": True, "questions": True, "prompt": True, "template": True}
_NOT_IN_KEY = ("n_images",)  # more images of the same experiment only add rows


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides what a model says about a set of images.

    Attributes:
        model: ``"embedded"``, a hub name or a folder; see `prunehal.load`.
        revision: of a hub name; None for the embedded model.
        dtype: ``"auto"`` (that of the checkpoint), ``"float32"``, ``"bfloat16"`` or ``"float16"``; the embedded model is float32.
        images: ``"testbed"`` (rendered scenes, whose truth is known) or a folder of COCO images, scored by COCO's truth.
        split: of the testbed: train, validation, test, or the purpose for which scenes of the final split are read once:
            ``"final-worlds"`` or ``"final-selections"``, see `prunehal.testbed.world.final`. Of a folder: what its images are
            called where settings are chosen and reported; give each split its own ``questions``.
        questions: a file of image ids, to choose from a folder; by default all of it, in the order of the ids.
        n_images: the first so many. It is not part of the key: rows of more images are added to those of fewer.
        tiles: background tiles around each scene of the testbed; each adds 144 visual tokens.
        clutter: whether those tiles hold shapes that resemble objects.
        positions_only: leave those tiles out, but number the positions of scene and text as if they were there: the control for
            what unusual positions do by themselves.
        prompt: what is asked; None is the testbed's own, or "Please describe this image in detail." for a folder.
        template: the prompt around text and image, instead of the chat template; see `prunehal.models.chat.render`.
        decoding: ``"greedy"``, ``"beam"`` (5 beams), ``"nucleus"`` (top_p 0.9, temperature 1), or a mitigation decoder: one of
            `prunehal.decoding`, or its name for its published values; it searches greedily (OPERA by its beams).
        policy: when and what to prune; ``NoPruning()`` only observes. Whole numbers among the real options of policy and decoder
            become floats, so that equal experiments have the same key.
        mode: when the policy acts: while ``"decoding"``; before the ``"first-token"`` is chosen, by the attention of the prompt's
            last query (`prunehal.FirstToken`); or after a greedy ``"draft"`` of the same caption (`prunehal.Draft`). ``Keep()``
            keeps the patches of a scene's objects, and in the first-token mode from the first token on.
        max_new_tokens: longest caption, and draft.
        min_new_tokens: the caption does not end before; 0 lets the model decide.
        seed: of sampling. A draw depends on it, on the image and on the step, not on the batch or the policy.

    Raises:
        ValueError: a value cannot be; the message shows it and what was expected.

    >>> Experiment(policy=PruneHal(r=0.7, t=2)).name
    'validation_prunehal_r0.7_t2'
    >>> Experiment(split="tset")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: split='tset': expected one of 'train', 'validation', 'test', 'final-worlds', ..., the splits of the testbed
    """

    model: str = EMBEDDED
    revision: str | None = None
    dtype: str = "auto"
    images: str = TESTBED
    split: str = "validation"
    questions: str | None = None
    n_images: int = 400
    tiles: int = 0
    clutter: bool = False
    positions_only: bool = False
    prompt: str | None = None
    template: str | None = None
    decoding: Decoding = "greedy"
    policy: Policy = field(default_factory=NoPruning)
    mode: str = "decoding"
    max_new_tokens: int = 160
    min_new_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("model", "images", "questions"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))
        for name, may_be_none in _TEXTS.items():
            if not isinstance(value := getattr(self, name), str) and not (value is None and may_be_none):
                raise ValueError(f"{name}={value!r}: expected a text" + (" or None" if may_be_none else ""))
            if value is not None and not value.strip():
                fix = "leave it out for the default" if name != "split" else "name it"
                raise ValueError(f"{name}={value!r}: expected a text that is not empty; {fix}")
        if not isinstance(self.policy, Policy):
            raise ValueError(f"policy={self.policy!r}: expected PruneHal(...), TopK(k) or NoPruning()")
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if as_count(value) is None or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
            if value > _MOST.get(name, value):
                raise ValueError(f"{name}={value!r}: expected an integer from {least} to {_MOST[name]:,}")
            object.__setattr__(self, name, as_count(value))
        object.__setattr__(self, "decoding", _with_floats(named_decoding(self.decoding)))
        object.__setattr__(self, "policy", _with_floats(self.policy))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
        if self.model == EMBEDDED and (self.dtype not in ("auto", "float32") or self.revision is not None):
            raise ValueError(
                f"dtype={self.dtype!r}, revision={self.revision!r}: the embedded model is in float32 and has no revisions; "
                "expected dtype 'auto' or 'float32' and revision None; leave both out, or name another model"
            )
        for name in ("clutter", "positions_only"):
            if not isinstance(value := getattr(self, name), bool) or (value and not self.tiles):
                raise ValueError(f"{name}={value!r}, tiles={self.tiles}: expected {name}=True only with background tiles")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}: expected at most max_new_tokens={self.max_new_tokens}; raise that too"
            )
        if self.images == TESTBED:
            if (purpose := purpose_of(self.split)) is not None:
                final_indices(purpose, self.n_images)
            elif self.split not in SPLITS:
                known = ", ".join(map(repr, _SPLITS))
                raise ValueError(f"split={self.split!r}: expected one of {known}, the splits of the testbed")
            if self.n_images > MOST_SCENES:
                raise ValueError(f"n_images={self.n_images}: expected 1 to {MOST_SCENES:,} scenes of the testbed")
            if self.questions is not None:
                raise ValueError(f"questions={self.questions!r}: the testbed has splits instead; expected None")
        elif isinstance(self.policy, Keep):
            raise ValueError(
                f"policy={self.policy!r}: it is known of the testbed's scenes only where their objects are; expected "
                f"images={TESTBED!r}, or another policy"
            )
        elif self.tiles:
            raise ValueError(f"tiles={self.tiles}: only scenes of the testbed have background tiles; expected 0")
        if not re.fullmatch(r"[\w\-]+", self.split):
            raise ValueError(f"split={self.split!r}: expected a name of letters, digits, - and _")
        check_template(self.template)
        check_mode(self)

    @property
    def one_input(self) -> bool:
        """Whether images are captioned one at a time, because the decoder takes no batch."""
        return getattr(self.decoding, "one_input", False)

    @property
    def description(self) -> dict[str, Any]:
        """All fields as JSON, policy and decoder with their names."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        policy = {"name": policy_name(type(self.policy))} | asdict(self.policy)
        return found | {"decoding": described(self.decoding), "policy": policy}

    @cached_property
    def key(self) -> str:
        """Twelve hex digits that no other experiment has; n_images does not count."""
        identity = {name: value for name, value in self.description.items() if name not in _NOT_IN_KEY}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def name(self) -> str:
        """What differs from the defaults, in ASCII that any file name can hold; for readers, the key is what counts."""
        parts = [self.split]
        parts += [f"{f.name}-{getattr(self, f.name)}" for f in fields(self) if f.name not in _SHORT and self._differs(f.name)]
        if isinstance(self.decoding, Decoder):
            parts += [name_of(self.decoding), *_options(self.decoding)]
        elif self._differs("decoding"):
            parts.append(self.decoding)
        parts += [f"tiles{self.tiles}{'cluttered' if self.clutter else 'clean'}"] if self.tiles else []
        parts += [type(self.policy).__name__.lower(), *_options(self.policy, always=("r", "t", "k"))]
        return re.sub(r"[^\w.\-]", "", "_".join(parts), flags=re.ASCII)[:120]

    def _differs(self, name: str) -> bool:
        return getattr(self, name) != next(f.default for f in fields(self) if f.name == name)

    def with_options(self, options: Mapping[str, Any]) -> Experiment:
        """Return the experiment with other values; ``"policy.r"`` and ``"decoding.alpha"`` are options of its policy and decoder.

        Raises:
            ValueError: no such name, or a value that cannot be.

        >>> Experiment(policy=PruneHal()).with_options({"split": "test", "policy.r": 0.9}).name
        'test_prunehal_r0.9_t3'
        >>> Experiment().with_options({"decoding": "vcd", "decoding.alpha": 0.5}).name
        'validation_vcd_alpha-0.5_nopruning'
        """
        inner: dict[str, dict[str, Any]] = {"policy": {}, "decoding": {}}
        own = {}
        for name, value in options.items():
            part, _, option = name.partition(".")
            if part in inner and option:
                inner[part][option] = value
            else:
                own[name] = value
        known = [f.name for f in fields(self)]
        if unknown := [name for name in own if name not in known]:
            names = ", ".join(map(repr, unknown))
            raise ValueError(
                f"unknown name(s) {names}; expected some of {', '.join(known)}, or policy.r, decoding.alpha and the like"
            )
        changed = replace(self, **own)
        for part, given in inner.items():
            if given:
                changed = replace(changed, **{part: _with_options(getattr(changed, part), given)})
        return changed


def _with_floats(chosen: Policy | Decoding) -> Policy | Decoding:
    """Return the same policy or decoder with a float in each field of that type: 1 == 1.0, but their JSON differs."""
    if isinstance(chosen, str):
        return chosen
    # The annotation is a type or, in a module with `from __future__ import annotations`, a text: float, or float | None.
    real = [f.name for f in fields(chosen) if f.init and "float" in re.findall(r"\w+", str(f.type))]
    whole = {name: float(value) for name in real if type(value := getattr(chosen, name)) is int}
    return replace(chosen, **whole) if whole else chosen


def _with_options(chosen: Policy | Decoding, options: Mapping[str, Any]) -> Policy | Decoding:
    if isinstance(chosen, str):
        return named_decoding(chosen, options)  # refuses them by name
    known = [f.name for f in fields(chosen) if f.init]
    if unknown := [name for name in options if name not in known]:
        kind = type(chosen).__name__
        raise ValueError(f"{kind} has no option {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
    return replace(chosen, **options)


def _options(chosen: Policy | Decoder, always: Sequence[str] = ()) -> list[str]:
    """Return the options that differ from the defaults, and some always, for a name."""
    parts = []
    for f in fields(chosen):
        value = getattr(chosen, f.name)
        if f.name in always:
            parts.append(f"{f.name}{value}")
        elif f.init and value != f.default:
            parts.append(f"{f.name}-{value}")
    return parts


_SHORT = ("n_images", "split", "tiles", "clutter", "policy", "decoding")  # said in another way in a name, or not at all


def policy_from(options: Mapping[str, Any]) -> Policy:
    """Return the policy that a table such as ``{"name": "PruneHal", "r": 0.4}`` describes.

    A policy of the user's own is named by its module, too: ``{"name": "my_policies:MyPolicy"}``.

    Raises:
        ValueError: no such policy or option, or a value that cannot be.

    >>> policy_from({"name": "TopK", "k": 36}).k
    36
    """
    given = dict(options)
    name = given.pop("name", None)
    if not isinstance(name, str) or (name not in POLICIES and ":" not in name):
        known = ", ".join(map(repr, POLICIES))
        raise ValueError(f"policy name={name!r}: expected one of {known}, or 'module:Class' for one of your own")
    kind = POLICIES[name] if name in POLICIES else named_class(name)
    known = [f.name for f in fields(kind) if f.init]
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"{name} has no option {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"policy {name}: {error}; expected the options that it needs, e.g. k of TopK") from error

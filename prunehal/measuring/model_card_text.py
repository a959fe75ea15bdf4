"""What a model card says: its text, its tables, and figures in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CARD", "COLUMNS", "in_words", "other_seeds", "table"]

# What a card shows of captions, in this order, and the decimals of those that are numbers a caption; all others are percent.
COLUMNS = (
    "chair_i", "chair_s", "distinct_chair_i", "absent", "recall", "repeats", "unfinished", "parses", "chair_i_shuffled", "words",
    "tokens",
)  # fmt: skip
_NUMBERS = {"absent": 2, "words": 1, "tokens": 1}


def in_words(attention: Mapping[str, float | None]) -> dict[str, str]:
    """Return figures of attention as a card writes them: percent, but the ratios "over_steps" and "least_over_steps".

    >>> in_words({"whole": 0.795, "start": 0.0084, "over_steps": 2.21, "faithful": None})
    {'whole': '80%', 'start': '0.8%', 'over_steps': '2.2', 'faithful': '–'}
    """
    written = {"over_steps": "{:.1f}", "least_over_steps": "{:.1f}", "start": "{:.1%}"}
    return {name: "–" if value is None else written.get(name, "{:.0%}").format(value) for name, value in attention.items()}


def other_seeds(found: Sequence[dict[str, Any]]) -> str:
    """Return a section on other seeds, or nothing where there are none."""
    if len(found) < 2:
        return ""
    rows = {f"{name}, seed {seed}": each["captions"][name] for name in found[0]["captions"] for seed, each in enumerate(found)}
    unknown = any(row.get(name) is None for row in rows.values() for name in COLUMNS)
    return _SEEDS.format(n=len(found), table=table(rows, COLUMNS), unknown=_UNKNOWN if unknown else "")


def table(rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> str:
    """Return a Markdown table: a line for each split, in percent but for numbers a caption; "–" is what is not known."""
    lines = ["| split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(column, row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.{_NUMBERS[column]}f}" if column in _NUMBERS else f"{100 * value:.1f}"


CARD = """# The embedded model

A small multimodal LLM of LLaVA architecture (`LlavaForConditionalGeneration`: CLIP vision tower, patch 8, 96 x 96 pixels, 144
visual tokens a tile; two-layer projector; Llama decoder of {layers} layers x {width}), {parameters} million parameters in
bfloat16.
Trained from scratch by `python -m prunehal train` on scenes and captions that this project renders and writes itself
({trained}; every training scene is fresh). License: Apache-2.0.
It is a testbed, not a captioner of photos.

It answers "{prompt}" with some 80 words that go over the scene from the top left to the bottom right, "{brief}"
with one sentence, and "Is there a dog in the image?" with "Yes." or "No."; also "Where is the dog?" and "What is at the top
left?". Each split draws its objects in looks of its own (tilts and tints that the others never have), so that validation and
test show looks that training never saw; those of test were made milder once, after the tower's accuracy on them had been seen and
before any caption was scored.

Training showed a scene's tile alone, with positions numbered as if up to four other tiles stood around it. Background tiles, and
clutter as large and as opaque as theirs, are beyond what it saw; so are the positions of eight tiles.

It hallucinates because its training captions name absent objects that usually go with such a scene, a cause that is proposed for
real models, too.

## How it differs from real models

- Captions follow the order of reading: row by row, each from the left. At a step the model attends to what it is about to name,
  so the most attended tokens of the first steps are those of the top rows. That keeping them does worse here than keeping random
  ones may come from this order; it is a finding on this model and its captions, under test, and none on the method.
- Seven of ten absent objects of the training captions stand at their end, behind "There is also", "In addition", "Further back"
  and the like, and the others in the second half of the round. So the sentence predicts to a large part whether its object is
  there; notebook 01 measures how well.
- A head mostly looks at the image wholly or not at all: {whole} of the masses of attention of a step and layer lie within 0.02
  of a multiple of 1/{heads} (a layer has {heads} heads). A vote by the mass therefore counts heads.
- It has no attention sink: the start token draws {start} of the attention while a caption is written.
- Names of objects look at the image far more than other words: {faithful} of the attention lies on it at objects that are there,
  {hallucinated} at absent ones, {steps} over all steps. A name draws {over_steps} times the mean of its caption's steps, and
  none draws less than {least_over_steps} times. The paper finds hallucinated words below the mean of their caption; here no name
  is, since most other words need no image.
- With one tile there is little to leave out: even the tokens of the objects alone, kept by a rule that knows the truth, change
  hallucination little (notebook 08).

Attention: captions of {traced} test scenes, without pruning.

## How good it is

Greedy decoding, no pruning; percent, but words, tokens and `absent` (distinct absent objects), which are numbers a caption. {n}
scenes of each split, {few} for the other conditions. `chair_i` counts mentions, so that naming a true object again lowers it;
`distinct_chair_i` counts each object once a caption. `repeats`: mentions that name an object again. `unfinished`: captions cut at
the limit of tokens. `parses`: captions that the grammar accepts. `chair_i_shuffled`: the same captions scored against another
scene's truth, i.e. without looking.

{table}

Four questions a scene whether a thing is in the image, half of them about things that are; `accuracy_usual_absent`: at absent
things that are usual in such a scene.

{questions}

{seeds}![loss of each stage against the scenes seen](training_curve.png)
"""

_SEEDS = """Trained from {n} seeds of the initial weights (the samples are the same); the weights of seed 0 are here.{unknown}

{table}

"""

_UNKNOWN = """
"–" is not known: the models of the other seeds were evaluated before this was counted."""

"""First-token mode on yes-or-no questions: what comes too late changes nothing, what comes in time reads less."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from prunehal import load
from prunehal.benchmarks.pope import parse_answer
from prunehal.core import Keep, NoPruning, PruneHal, TopK
from prunehal.polled import FILE, RULES, ask, compare, measure, stored
from prunehal.testbed.model import build_prompt
from prunehal.testbed.oracle import object_tokens
from prunehal.testbed.polling import polling_questions
from prunehal.testbed.scenes import scene_of

ASKED = polling_questions("test", 3, "adversarial")
FEW = {
    "none": ("decoding", NoPruning()),
    "late": ("decoding", PruneHal(r=0.1, t=3)),
    "one": ("first-token", TopK(1)),
    "objects": ("first-token", Keep()),
}


@pytest.fixture(scope="module")
def frame():
    """Return the answers to the questions under a few rules."""
    return ask(*load(), ASKED, FEW).set_index(["rule", "question_id"])


def test_without_pruning_it_is_stock_generate_question_by_question(frame):
    model, processor = load()
    for question in ASKED:
        image = scene_of(int(question.image)).image()
        inputs = processor(images=image, text=build_prompt(1, question.text), return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text = processor.decode(made, skip_special_tokens=True)
        line = frame.loc[("none", question.question_id)]
        assert (line["text"], line["answer"], line["label"]) == (text, parse_answer(text), question.label)
        assert (line["margin"] > 0) == (line["answer"] == "yes")


def test_pruning_while_decoding_comes_too_late_for_one_word(frame):
    pd.testing.assert_frame_equal(frame.loc["late"], frame.loc["none"])


def test_pruning_before_the_first_token_changes_what_the_answer_is_read_from(frame):
    for rule in ("one", "objects"):
        assert (frame.loc[rule, "margin"] - frame.loc["none", "margin"]).abs().min() > 1e-4


def test_the_oracle_answers_from_the_patches_of_objects_alone(frame):
    model, processor = load()
    yes, no = (processor.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    question = ASKED[0]
    shown = scene_of(int(question.image))
    inputs = processor(images=shown.image(), text=build_prompt(1, question.text), return_tensors="pt")
    visual = inputs["input_ids"] == model.config.image_token_id
    hidden = visual & ~object_tokens([shown], visual)
    length = visual.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[-1] &= ~hidden[0]  # the last query sees the objects only; all before it saw the whole image
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        logits = model(**inputs | {"attention_mask": mask}).logits[0, -1]
    assert frame.loc[("objects", 1), "margin"] == pytest.approx(float(logits[yes] - logits[no]), abs=1e-3)


def test_rows_are_measured_read_again_and_refused_under_other_weights(tmp_path):
    path = tmp_path / FILE
    made = measure(path, n_images=1, progress=False)
    assert set(made["rule"]) == set(RULES)
    assert made.groupby(["kind", "tiles", "rule"]).size().tolist() == [6] * (3 * 2 * len(RULES))
    pd.testing.assert_frame_equal(stored(path), made, check_dtype=False)
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace('"weights": "', '"weights": "x', 1).encode()))
    with pytest.raises(ValueError, match="holds rows of other weights: it was x"):
        stored(path)


def test_a_comparison_counts_answers_by_hand():
    rng = np.random.default_rng(0)
    shared = {"question_id": range(1, 41), "image_id": np.repeat(range(10), 4), "label": ["yes", "no"] * 20, "kind": "popular"}
    parts = [
        pd.DataFrame(shared | {"tiles": 3, "rule": rule, "answer": rng.choice(["yes", "no"], 40)})
        for rule in ("no pruning", "first token, r = 0.4")
    ]
    parts.append(parts[0].assign(rule="PruneHal while decoding"))
    found = compare(pd.concat([part.sample(frac=1, random_state=3) for part in parts]), 200).set_index("rule")
    plain, pruned = (part.to_dict("records") for part in parts[:2])
    right = [sum(line["answer"] == line["label"] for line in lines) / 40 for lines in (plain, pruned)]
    line = found.loc["first token, r = 0.4"]
    assert line["accuracy"] == pytest.approx(100 * right[1])
    assert line["d_accuracy"] == pytest.approx(100 * (right[1] - right[0]))
    assert line["low"] < line["d_accuracy"] < line["high"]
    assert line["changed"] == pytest.approx(
        100 * sum(a["answer"] != b["answer"] for a, b in zip(plain, pruned, strict=True)) / 40
    )
    hits = sum(line["answer"] == line["label"] == "yes" for line in pruned)
    said = sum(line["answer"] == "yes" for line in pruned)
    assert (line["yes"], line["f1"]) == (pytest.approx(100 * said / 40), pytest.approx(100 * 2 * hits / (said + 20)))
    same = found.loc["PruneHal while decoding"]
    assert same[["changed", "d_accuracy", "low", "high", "p"]].tolist() == [0, 0, 0, 0, 1]
    assert found.loc["no pruning", ["d_accuracy", "p"]].isna().all()

"""First-token mode on yes-or-no questions: what comes too late changes nothing, what comes in time reads less."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from prunehal import load
from prunehal.benchmarks.pope import parse_answer
from prunehal.core import Keep, NoPruning, PruneHal, TopK
from prunehal.polled import FILE, RULES, SURROUNDINGS, among_tiles, ask, compare, harder, headroom, measure, stored
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
    assert made.groupby(["kind", "tiles", "clutter", "rule"]).size().tolist() == [6] * (3 * 3 * len(RULES))
    assert set(zip(made["tiles"], made["clutter"], strict=True)) == set(SURROUNDINGS)
    asked = polling_questions("test", 1, "popular")
    among = made[(made["kind"] == "popular") & (made["tiles"] == 3) & made["clutter"]]
    again = ask(*load(), asked, {"no pruning": RULES["no pruning"]}, k=3, clutter=True)
    assert among.loc[among["rule"] == "no pruning", "margin"].tolist() == pytest.approx(again["margin"].tolist(), abs=2e-3)
    pd.testing.assert_frame_equal(stored(path), made, check_dtype=False)
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace('"weights": "', '"weights": "x', 1).encode()))
    with pytest.raises(ValueError, match="holds rows of other weights: it was x"):
        stored(path)


@pytest.fixture(scope="module")
def planted():
    """Return answers by chance to 40 questions of three kinds about 10 scenes, alone and among cluttered tiles."""
    rng = np.random.default_rng(0)
    shared = {"question_id": range(1, 41), "image_id": np.repeat(range(10), 4), "label": ["yes", "no"] * 20}
    parts = []
    for tiles, clutter in ((0, False), (3, True)):
        for kind in ("random", "popular", "adversarial"):
            margins = rng.normal(size=40)
            for rule, moved in {"no pruning": 0, "late": 0, "early": 1}.items():
                margin = margins + moved * rng.normal(size=40)
                frame = pd.DataFrame(shared | {"tiles": tiles, "clutter": clutter, "kind": kind, "rule": rule, "margin": margin})
                parts.append(frame.assign(answer=np.where(margin > 0, "yes", "no")).sample(frac=1, random_state=3))
    return pd.concat(parts, ignore_index=True)


def at(rows, rule, tiles, kind):
    """Return the answers of a rule as dicts, by question."""
    part = rows[(rows["rule"] == rule) & (rows["tiles"] == tiles) & (rows["kind"] == kind)]
    return part.sort_values("question_id").to_dict("records")


def toward(line):
    return line["margin"] if line["label"] == "yes" else -line["margin"]


def is_right(line):
    return line["answer"] == line["label"]


def test_a_comparison_counts_answers_by_hand(planted):
    found = compare(planted, 200)
    assert len(found) == 2 * 3 * 3
    for tiles, clutter in ((0, False), (3, True)):
        for kind in ("random", "popular", "adversarial"):
            plain, pruned = at(planted, "no pruning", tiles, kind), at(planted, "early", tiles, kind)
            cell = found[(found["tiles"] == tiles) & (found["clutter"] == clutter) & (found["kind"] == kind)].set_index("rule")
            line, right = cell.loc["early"], [sum(map(is_right, lines)) / 40 for lines in (plain, pruned)]
            assert line["accuracy"] == pytest.approx(100 * right[1])
            assert line["d_accuracy"] == pytest.approx(100 * (right[1] - right[0]))
            assert line["low"] < line["d_accuracy"] < line["high"]
            changed = sum(a["answer"] != b["answer"] for a, b in zip(plain, pruned, strict=True))
            assert line["changed"] == pytest.approx(100 * changed / 40)
            hits = sum(line["answer"] == line["label"] == "yes" for line in pruned)
            said = sum(line["answer"] == "yes" for line in pruned)
            assert line["yes"] == pytest.approx(100 * said / 40)
            assert line["f1"] == pytest.approx(100 * 2 * hits / (said + 20))
            moved = [toward(b) - toward(a) for a, b in zip(plain, pruned, strict=True)]
            assert line["margin"] == pytest.approx(sum(map(toward, pruned)) / 40)
            assert line["d_margin"] == pytest.approx(sum(moved) / 40)
            assert line["d_margin_low"] < line["d_margin"] < line["d_margin_high"]
            assert 0 < line["p_margin"] < 1
            same = cell.loc["late"]
            assert same[["changed", "d_accuracy", "low", "high", "p"]].tolist() == [0, 0, 0, 0, 1]
            assert same[["d_margin", "d_margin_low", "d_margin_high", "p_margin"]].tolist() == [0, 0, 0, 1]
            assert cell.loc["no pruning", ["d_accuracy", "p", "d_margin", "p_margin"]].isna().all()


def test_room_for_corrections_is_counted_by_hand(planted):
    found = headroom(planted)
    assert set(found["rule"]) == {"late", "early"}
    for line in found.to_dict("records"):
        plain, pruned = (at(planted, rule, line["tiles"], line["kind"]) for rule in ("no pruning", line["rule"]))
        pairs = list(zip(plain, pruned, strict=True))
        wrong = [abs(each["margin"]) for each in plain if not is_right(each)]
        moved = [abs(b["margin"] - a["margin"]) for a, b in pairs]
        assert (line["questions"], line["wrong"]) == (40, len(wrong))
        assert line["corrected"] == sum(is_right(b) > is_right(a) for a, b in pairs)
        assert line["spoiled"] == sum(is_right(b) < is_right(a) for a, b in pairs)
        assert (line["nearest"], line["farthest"]) == (min(wrong), pytest.approx(max(moved)))
        assert line["moved"] == pytest.approx(sum(moved) / 40)
        assert line["within"] == sum(margin < max(moved) for margin in wrong)
    assert found.loc[found["rule"] == "early", "corrected"].gt(0).any()
    assert not found.loc[found["rule"] == "late", ["corrected", "spoiled", "farthest", "within"]].any(axis=None)


def test_kinds_and_surroundings_are_compared_without_pruning(planted):
    shares = {}
    for tiles in (0, 3):
        for kind in ("random", "popular", "adversarial"):
            lines = at(planted, "no pruning", tiles, kind)
            shares[tiles, kind] = [100 * sum(map(is_right, part)) / len(part) for part in (lines, lines[1::2])]  # all, "no"
    kinds = harder(planted, 200).set_index(["tiles", "kind"])
    assert len(kinds) == 4
    for (tiles, kind), line in kinds.iterrows():
        assert line["accuracy"] == pytest.approx(shares[tiles, kind][1])
        assert line["difference"] == pytest.approx(shares[tiles, kind][1] - shares[tiles, "random"][1])
        assert line["low"] < line["difference"] < line["high"]
    among = among_tiles(planted, 200).set_index("kind")
    assert among["tiles"].tolist() == [3] * 3
    for kind, line in among.iterrows():
        assert line["difference"] == pytest.approx(shares[3, kind][0] - shares[0, kind][0])
        assert line["low"] < line["difference"] < line["high"]


def test_tiles_are_compared_on_the_same_questions(planted):
    """Where each question is answered alike with and without tiles, nothing is left to chance."""
    alone = planted[planted["tiles"] == 0]
    beside = alone.assign(tiles=3).sample(frac=1, random_state=2)  # in another order
    assert 0 < (alone["answer"] == alone["label"]).mean() < 1
    found = among_tiles(pd.concat([alone, beside]), 200)
    assert found[["difference", "low", "high"]].eq(0).all(axis=None)
    assert found["p"].eq(1).all()

"""The model's output under a key of any name: a truth, a reference or a prompt under a usual key is never scored in its place."""

import pytest
from typer.testing import CliRunner

from prunehal.benchmarks import read_captions
from prunehal.benchmarks.amber.files import annotations
from prunehal.benchmarks.amber.score import queries, score_discriminative, score_generative
from prunehal.benchmarks.other_keys import free_text, undecided
from prunehal.benchmarks.pope.score import questions, score_files
from prunehal.commands.app import app
from prunehal.files.records import BadInput

ASKED = questions("coco", "adversarial")
POPE = [
    {"question_id": question.question_id, "question": question.text, "image": question.image, "answer": question.label}
    for question in ASKED
]
AMBER = [
    {"id": query["id"], "image": query["image"], "query": query["query"], "response": annotations()[query["id"]]["truth"].title()}
    for query in queries("discriminative")[:40]
]
OUTPUTS = {
    "llava": "There is a dog in the picture.",
    "responses": ["No"],
    "model": {"answer": "no"},
    "pred_label": 0,
    "pred_yes": True,
    "choices": [{"message": {"content": "no"}}],
    "conversations": [{"from": "gpt", "value": "no"}],
}
# What rows of known programs carry besides an answer.
LLAVA = {"answer_id": "AbC", "model_id": "llava-v1.5-7b", "metadata": {"seed": 1, "note": "greedy run"}}
OTHERS = {
    "category": "adversarial", "source": "coco", "type": "object", "model": "llava 1.5", "seconds": 1.25, "n_tokens": 3,
    "finish_reason": "stop", "object": "dog", "options": ["Yes", "No"], "logprobs": [-0.25, -1.5], "correct": True, "rank": 0,
    "photo_path": "val2014/a b c.jpg", "empty": "", "nothing": None, "nucleus": 0.7, "steps": 12,
}  # fmt: skip


def command(*arguments):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


@pytest.fixture
def asked(file):
    rows = [{"question_id": q.question_id, "image": q.image, "text": q.text, "label": q.label} for q in ASKED[:40]]
    return file(rows, "questions.json")


@pytest.mark.parametrize("key", OUTPUTS)
def test_the_truth_of_questions_is_no_answer(file, asked, key):
    given = file([row | {key: OUTPUTS[key]} for row in POPE[:40]])
    message = f"1 problem\n  answer is the label of the question in all 40 rows, and {key} may hold .*--answer-key {key}"
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=message):
            score_files(asked, given, skip_bad=skip_bad)
    assert score_files(asked, given, answer_key="answer").metrics["accuracy"] == 1.0
    given = file([row | {key: OUTPUTS[key]} for row in AMBER])
    for rule in ("official", "strict"):
        with pytest.raises(BadInput, match=message.replace("answer is", "response is")):
            score_discriminative(given, rule=rule)
    assert score_discriminative(given, answer_key="response").metrics["all"]["accuracy"] == 100.0


def test_one_wrong_answer_shows_that_answers_are_no_truth(file, asked):
    rows = [row | {"llava": "There is a dog in the picture."} for row in POPE[:40]]
    rows[7]["answer"] = {"yes": "no", "no": "yes"}[rows[7]["answer"]]
    assert score_files(asked, file(rows)).metrics["accuracy"] == 39 / 40
    rows[7] = POPE[7] | {"answer": POPE[7]["answer"] + ", I see"}  # not a label
    assert score_files(asked, file(rows)).metrics["accuracy"] == 1.0
    two = file([{"id": row["id"], "response": row["response"], "llava": "It is sunny."} for row in AMBER[:2]])
    assert score_discriminative(two).metrics["all"]["accuracy"] == 100.0  # two answers prove nothing


def test_a_model_that_is_always_right_is_scored(file, asked):
    rows = [
        {"question_id": row["question_id"], "prompt": row["question"], "text": row["answer"].title(), **LLAVA, **OTHERS}
        for row in POPE[:40]
    ]
    assert undecided([OTHERS, LLAVA], ()) is None
    assert score_files(asked, file(rows)).metrics["accuracy"] == 1.0
    assert score_files(asked, file([row | {"label": row["answer"]} for row in POPE[:40]])).metrics["accuracy"] == 1.0
    assert score_discriminative(file([row | LLAVA | OTHERS for row in AMBER])).metrics["all"]["accuracy"] == 100.0


CAPTIONS = [  # a row, the key that would have been scored, the key of the model's caption
    ({"caption": "A cat.", "pred_caption": "A man riding a horse."}, "caption", "pred_caption"),
    ({"caption": "A cat.", "generated": "A man riding a horse."}, "caption", "generated"),
    ({"caption": "A cat.", "llava": ["A man riding a horse."]}, "caption", "llava"),
    ({"caption": "A cat.", "choices": [{"message": {"content": "A man riding a horse."}}]}, "caption", "choices"),
    ({"text": "Please describe this image in detail.", "result": "A dog."}, "text", "result"),
]


@pytest.mark.parametrize(("row", "taken", "other"), CAPTIONS)
def test_a_reference_or_a_prompt_is_no_caption(file, row, taken, other):
    path = file([{"image_id": 226988} | row])
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=rf"line 1: {taken} .* and {other} .* could be the caption; .*--caption-key {other}"):
            read_captions(path, skip_bad=skip_bad)
    assert read_captions(path, caption_key=taken)[0] == {226988: row[taken]}
    done = command("chair", path)
    assert (done.exit_code, f"--caption-key {other}" in done.stderr, done.stdout) == (2, True, "")
    path = file([{"id": 1} | row])
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=rf"line 1: {taken} is .* and {other} is .*--answer-key {other}"):
            score_generative(path, skip_bad=skip_bad)


def test_the_key_that_is_named_is_scored(file):
    path = file([{"image_id": 226988, "caption": "A cat.", "pred_caption": "A pizza and a horse."}])
    assert read_captions(path, caption_key="pred_caption")[0] == {226988: "A pizza and a horse."}
    path = file([{"id": 1, "caption": "A dog and a car.", "generated": "A person by a lake."}])
    found = {key: score_generative(path, answer_key=key).items[0]["nouns"] for key in ("caption", "generated")}
    assert found == {"caption": ["dog", "car"], "generated": ["person", "lake"]}


def test_captions_beside_what_programs_write(file):
    row = {
        "question": "Describe this image in detail.",
        "references": ["A cat on a mat.", "The cat is there."],
        **LLAVA,
        **OTHERS,
    }
    row |= {"mscoco_gt_words": ["fire hydrant"], "objects": "dog, cat and car", "instruction": "Be brief and clear."}
    assert free_text(row, ()) is None
    assert read_captions(file([row | {"image_id": 42, "caption": "A dog."}]))[0] == {42: "A dog."}
    del row["question"]
    assert score_generative(file([row | {"id": 1, "response": "A lake."}])).items[0]["nouns"] == ["lake"]


# Files that say nothing of the model.


def test_captions_that_name_nothing_are_no_score(file):
    path = file([{"image_id": 226988, "caption": "Una pizza."}, {"image_id": 310196, "caption": "Sciatori."}])
    rows = [{"image_id": 226988, "caption": "Ein Bild."}, {"image_id": 310196, "caption": "Ein Hund."}]
    for captions, options in ((file(rows, "german.json"), ()), (path, ("--truncate-words", 1))):
        done = command("chair", captions, *options)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{captions}: no caption names an object, the first is" in done.stderr.replace("\n", "")
    done = command("chair", file([rows[0], rows[1] | {"caption": "A pizza."}]))
    assert done.exit_code == 0
    assert "n_distinct_captions=2, n_without_mention=1" in done.stdout
    done = command("chair", file([row | {"caption": "A pizza."} for row in rows]))
    assert "n_distinct_captions=1, n_without_mention=0" in done.stdout


def test_responses_without_a_listed_word_are_no_score(file):
    rows = [{"id": 1, "response": "Ein See."}, {"id": 2, "response": "Ein Hund."}]
    with pytest.raises(BadInput, match=r"responses\.json: 1 problem\n  no annotated word in any of 2 captions, the first is"):
        score_generative(file(rows))
    report = score_generative(file([*rows, {"id": 3, "response": "A lake."}]))
    names = ("n_missing", "n_without_noun", "n_distinct_captions")
    assert [report.settings[name] for name in names] == [1001, 2, 3]
    assert score_generative(file([{"id": n, "response": "A lake."} for n in (1, 2)])).settings["n_distinct_captions"] == 1


def test_queries_without_a_response_are_counted(file):
    path = file(AMBER[:30])
    assert score_discriminative(path).settings["n_missing"] == 14216 - 30
    done = command("amber-discriminative", path)
    assert "n_missing=14186" in done.stdout
    assert "existence: accuracy None, precision None" in done.stdout
    assert score_discriminative(file([row | {"id": float(row["id"])} for row in AMBER])).metrics["n"] == 40
    with pytest.raises(BadInput, match=r"unknown id 1005\.5"):
        score_discriminative(file([{"id": 1005.5, "response": "Yes"}]))


def test_a_second_answer_makes_up_for_no_missing_one(file, asked):
    def n_bad(rows):
        report = score_files(asked, file(rows), skip_bad=True)
        return report.settings["n_bad"], report.metrics["n"]

    rows = POPE[:40]
    assert n_bad(rows) == (0, 40)
    assert n_bad([rows[0], *rows]) == (1, 40)
    assert n_bad(rows[1:]) == (1, 39)
    assert n_bad([*rows[1:], rows[1]]) == (2, 39)
    assert n_bad([*rows[2:], rows[2], rows[2], rows[3]]) == (5, 38)

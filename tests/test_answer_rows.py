"""Which key holds an answer, and which question a row belongs to: where that is not certain there is no score."""

import itertools
import json
import random

import pytest

from prunehal.benchmarks.answer_rows import ANSWER_KEYS
from prunehal.benchmarks.pope.score import questions, score_files, write_answers
from prunehal.files.records import BadInput

DOG = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}
CAT = {"question_id": 2, "image": "b.jpg", "text": "Is there a cat in the image?", "label": "yes"}
HUB = {"question_id": 1, "question": "Is there a dog in the image?", "answer": "no"}  # as on the hub: the answer is the truth


@pytest.fixture
def lines(tmp_path):
    """Return a function that writes rows, one a line, and returns the path."""
    names = itertools.count()

    def make(rows):
        path = tmp_path / f"{next(names)}.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return make


def refused(call, message, **options):
    """Check that a file is refused, also where bad lines are skipped."""
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=message):
            call(skip_bad=skip_bad, **options)


# Which key holds the answer.


def test_an_output_beside_the_truth_needs_the_key_of_the_answer(lines):
    asked, given = lines([DOG]), lines([HUB | {"prediction": "Yes"}])
    for rule in ("official", "strict"):
        refused(
            lambda **options: score_files(asked, given, **options),
            r"line 1: answer is 'no' and prediction is 'Yes'; .*--answer-key answer or --answer-key prediction",
            rule=rule,
        )
        assert score_files(asked, given, rule, answer_key="prediction").metrics["accuracy"] == 0.0
        report = score_files(asked, given, rule, answer_key="answer")
        assert (report.metrics["accuracy"], report.settings["answer_key"]) == (1.0, "answer")
    with pytest.raises(BadInput, match=r"line 1: no output; expected the key of --answer-key, found \['answer', 'prediction'"):
        score_files(asked, given, answer_key="output")


@pytest.mark.parametrize("key", [key for key in ANSWER_KEYS if key != "answer"])
def test_every_key_of_an_answer_beside_another_one(lines, key):
    asked = lines([DOG])
    refused(lambda **options: score_files(asked, lines([HUB | {key: "Yes"}]), **options), f"answer is 'no' and {key} is 'Yes'")
    assert score_files(asked, lines([HUB | {key: "No."}])).metrics["accuracy"] == 1.0  # they read alike
    alone = {name: value for name, value in HUB.items() if name != "answer"} | {key: "Yes"}
    assert score_files(asked, lines([alone])).metrics["accuracy"] == 0.0


@pytest.mark.parametrize("other", ["Yes", "yes, there is", ["Yes"], {"text": "Yes"}, 1, None, ""])
def test_another_answer_need_not_be_plain_text(lines, other):
    given = lines([HUB | {"outputs": other}])
    refused(lambda **options: score_files(lines([DOG]), given, **options), "answer is 'no' and outputs is")


def test_a_key_of_any_name_may_hold_the_output(lines):
    asked = lines([DOG])
    given = lines([HUB | {"llava_7b": "Yes, there is a dog.", "category": "adversarial", "model_id": "no-name"}])
    refused(lambda **options: score_files(asked, given, **options), "answer is 'no' and llava_7b is 'Yes, there is a dog.'")
    assert score_files(asked, given, answer_key="llava_7b").metrics["fp"] == 1


def test_rows_without_an_output_do_not_score_their_truth(lines):
    """The model's output is missing in the second row: its answer is the truth."""
    given = lines([HUB | {"prediction": "No"}, {"question_id": 2, "answer": "yes"}])
    asked = lines([DOG, CAT])
    refused(
        lambda **options: score_files(asked, given, **options),
        "line 1 has an answer under answer and prediction, line 2 under answer",
    )
    with pytest.raises(BadInput, match="line 2: no prediction"):
        score_files(asked, given, answer_key="prediction")
    report = score_files(asked, given, answer_key="prediction", skip_bad=True)
    assert (report.metrics["n"], report.metrics["tn"], report.settings["n_bad"]) == (1, 1, 1)


def test_rows_of_other_lineages(lines):
    asked = lines([DOG, CAT])
    pai = [{"query": DOG["text"], "image_id": "a", "label": 0, "ans": "No"}, {"query": CAT["text"], "label": 1, "ans": "No"}]
    llava = [
        {"question_id": 2, "prompt": CAT["text"] + "\nAnswer with one word.", "text": "No", "answer_id": "x", "metadata": {}},
        {
            "question_id": 1,
            "prompt": [{"role": "user", "content": DOG["text"]}],
            "text": "No",
            "model_id": "llava",
            "metadata": {},
        },
    ]
    for rows, by in ((pai, "place"), (llava, "question_id")):
        report = score_files(asked, lines(rows))
        assert (report.metrics["tn"], report.metrics["fn"], report.metrics["accuracy"]) == (1, 1, 0.5)
        assert (report.settings["joined_by"], report.settings["compared"]) == (by, ["label", "question"][rows is llava :])


def test_text_is_the_question_where_another_key_holds_the_answer(lines):
    asked = lines([DOG])
    for text in (DOG["text"], f"USER: {DOG['text']} Answer yes or no."):
        report = score_files(asked, lines([{"question_id": 1, "text": text, "response": "No"}]))
        assert (report.metrics["tn"], report.settings["compared"]) == (1, ["question"])
    for text, message in ((CAT["text"], "text is 'Is there a cat"), ("Yes", "response is 'No' and text is 'Yes'")):
        given = lines([{"question_id": 1, "text": text, "response": "No"}])
        refused(lambda **options: score_files(asked, given, **options), message)  # noqa: B023


def test_question_files_of_other_lineages(lines):
    hub = {"question_id": "1", "image": None, "image_source": "a", "question": DOG["text"], "answer": "No", "category": "popular"}
    given = lines([{"question_id": 1, "ans": "No", "image": "a.jpg"}])
    report = score_files(lines([hub]), given)
    assert report.items == [{"question_id": "1", "image": "a", "label": "no", "answer": "no", "correct": True}]
    refused(  # the model's answer beside the label: skipping the rows in which they differ would leave the right ones
        lambda **options: score_files(lines([DOG | {"answer": "Yes"}]), given, **options),
        "line 1: label is 'no' and answer is 'Yes'; expected one label",
    )
    assert score_files(lines([DOG | {"answer": "No.", "label": 0}]), given).metrics["tn"] == 1


# Which question a row belongs to.


def test_a_missing_answer_shifts_no_other(lines):
    asked = questions("coco", "popular")
    rows = [{"answer": question.label} for question in asked]
    assert score_files("coco/popular", lines(rows)).metrics["accuracy"] == 1.0
    given = lines(rows[:1499] + rows[1500:])
    refused(lambda **options: score_files("coco/popular", given, **options), "2999 answers without question_id to 3000 questions")
    given = lines([*rows[:1499], '{"answer": "ye', *rows[1500:]])  # a torn line keeps its place
    report = score_files("coco/popular", given, skip_bad=True)
    assert (report.metrics["accuracy"], report.metrics["n"], report.settings["n_bad"]) == (1.0, 2999, 1)
    given = lines([*rows[:1499], '{"answer": "ye' + json.dumps(rows[1500]), *rows[1501:]])  # two rows on the line of one
    refused(
        lambda **options: score_files("coco/popular", given, **options),
        r"2999 answers .* \(line 1500 cannot be read and may hold",
    )
    with_ids = [row | {"question_id": question.question_id} for row, question in zip(rows, asked, strict=True)]
    given = lines(with_ids[:1499] + with_ids[1500:])
    with pytest.raises(BadInput, match="no answer to question_id 1500 "):
        score_files("coco/popular", given)
    assert score_files("coco/popular", given, skip_bad=True).metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    "change", [{"question": CAT["text"]}, {"prompt": f"USER: {CAT['text']}"}, {"query": "?"}, {"question": 5}]
)
def test_another_question_is_refused(lines, change):
    given = [{"question_id": 1, "answer": "No"} | change, {"question_id": 2, "answer": "No"}]
    asked = lines([DOG, CAT])
    message = rf"line 1: {next(iter(change))} is .*; expected 'Is there a dog in the image\?' \(question_id 1\)"
    refused(lambda **options: score_files(asked, lines(given), **options), message)
    by_place = [{name: value for name, value in row.items() if name != "question_id"} for row in given]
    refused(lambda **options: score_files(asked, lines(by_place), **options), message)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image": "b.jpg"}, "image"), ({"image_id": "val/b.png"}, "image_id"), ({"image": 7}, "image"),
        ({"file_name": "b"}, "file_name"), ({"label": "yes"}, "label"), ({"label": 1}, "label"),
        ({"gt_answer": "Yes"}, "gt_answer"),
    ],
)  # fmt: skip
def test_another_image_or_label_is_refused(lines, change, what):
    given = lines([{"question_id": 1, "answer": "No"} | change])
    refused(lambda **options: score_files(lines([DOG]), given, **options), f"line 1: {what} is .*question_id 1")


@pytest.mark.parametrize(
    ("image", "given"),
    [
        ("COCO_val2014_000000000042.jpg", 42),
        ("COCO_val2014_000000000042.jpg", "000000000042"),
        ("COCO_val2014_000000000042.jpg", "/data/val2014/COCO_val2014_000000000042.jpg"),
        ("COCO_val2014_000000000042.jpg", "C:\\val2014\\COCO_val2014_000000000042.JPG"),
        ("2405722.jpg", "images/2405722.png"),
        ("folder/a.b.jpg", "a.b"),
        ("a.jpg", None),
        ("a.jpg", {"bytes": "no name"}),
        ("a.jpg", "iVBORw0KGgo" * 100),
    ],
)
def test_an_image_by_any_name(lines, image, given):
    row = {"question_id": 1, "answer": "No", "image": given}
    report = score_files(lines([DOG | {"image": image}]), lines([row]))
    assert report.settings["compared"] == (["image"] if isinstance(given, int | str) and len(str(given)) < 300 else [])


def test_a_question_is_found_by_whole_words(lines):
    asked = lines([DOG | {"text": "Is there a cat"}])
    for prompt, right in (
        ("Is there a caterpillar? Yes or no?", False),
        ("This there a cat", False),
        ("IS THERE A CAT? Yes or no?", True),
    ):
        given = lines([{"question_id": 1, "prompt": prompt, "answer": "No"}])
        if right:
            assert score_files(asked, given).metrics["tn"] == 1
        else:
            refused(lambda **options: score_files(asked, given, **options), f"prompt is '{prompt[:20]}")  # noqa: B023


def test_places_that_are_not_certain_are_refused(lines):
    """Which of four places the number has is not known: the reader names its line, and all stand on one."""
    asked = lines([DOG, CAT, DOG | {"question_id": 3}, CAT | {"question_id": 4}])
    given = lines(['[{"answer": "Yes"}, 5, {"answer": "No"}, {"answer": "No"}]'])
    refused(
        lambda **options: score_files(asked, given, **options),
        "line 1: where one line holds several objects and one cannot be read",
    )
    apart = lines([{"answer": "No"}, "5", {"answer": "No"}, {"answer": "No"}])
    assert [item["question_id"] for item in score_files(asked, apart, skip_bad=True).items] == [1, 3, 4]
    swallowed = lines([{"answer": "Yes"}, "{", " oops", {"answer": "No"}])
    refused(
        lambda **options: score_files(asked, swallowed, **options),
        r"3 answers .* 4 questions \(line 2 cannot be read and may hold",
    )


@pytest.mark.parametrize("ids", [[0, 1], ["0", "1"], [2, 3], [1, 99], ["1.0", "2"], [True, 2]])
def test_ids_that_are_places_are_refused(lines, ids):
    given = lines([{"question_id": number, "answer": "No"} for number in ids])
    refused(lambda **options: score_files(lines([DOG, CAT]), given, **options), "unknown question_id")


def test_numbers_of_rows_that_do_not_rise_are_refused(lines):
    asked = lines([DOG, CAT])
    for key in ("id", "idx", "index", "qid"):
        given = lines([{key: 5, "answer": "No"}, {key: 4, "answer": "Yes"}])
        refused(lambda **options: score_files(asked, given, **options), f"{key} does not rise from answer to answer")  # noqa: B023
        assert score_files(asked, lines([{key: 4, "answer": "No"}, {key: "5", "answer": "Yes"}])).metrics["accuracy"] == 1.0
    assert score_files(asked, lines([{"id": 9, "answer": "No"}] * 2)).metrics["accuracy"] == 0.5  # of the image, say


def test_ids_as_numbers_and_as_text_are_one(lines):
    rows = [{"question_id": number, "answer": "No"} for number in (1, "2", 2, "1")]
    with pytest.raises(
        BadInput, match=r"(?s)line 3: question_id 2 again, first on line 2.*line 4: question_id '1' again, first on"
    ):
        score_files(lines([DOG, CAT]), lines(rows))
    with pytest.raises(BadInput, match="line 2: question_id '1' again, first on line 1"):
        score_files(lines([DOG, DOG | {"question_id": "1"}]), lines(rows))


@pytest.mark.parametrize("split", ["coco/random", "coco/popular", "aokvqa/adversarial", "gqa/adversarial"])
def test_answers_to_another_split_are_refused(lines, tmp_path, split):
    """Same ids, same order of labels; what `run` writes carries question and image, other programs one of them or the prompt."""
    asked = questions(*split.split("/"))
    written = tmp_path / "answers.jsonl"
    write_answers(written, asked, [question.label for question in asked])
    assert score_files(split, written).settings["compared"] == ["image", "question"]
    assert score_files(split, written).metrics["accuracy"] == 1.0
    ids = [question.question_id for question in asked]
    others = questions("coco", "adversarial")
    first = next(i for i, (a, b) in enumerate(zip(asked, others, strict=True)) if (a.text, a.image) != (b.text, b.image)) + 1
    prompts = [{"question_id": i, "prompt": f"{q.text} Yes or no?", "answer": q.label} for i, q in zip(ids, asked, strict=True)]
    for path in (written, lines(prompts)):
        with pytest.raises(BadInput) as caught:
            score_files("coco/adversarial", path)
        at = int(caught.value.problems[0].split(":")[0].removeprefix("line "))
        assert at == (first if path == written else next(i for i, q in enumerate(asked, 1) if q.text != others[i - 1].text))
        refused(lambda **options: score_files("coco/adversarial", path, **options), r"prompt is|question is|image is")  # noqa: B023


def fits(row, question):
    """Whether all that a row carries agrees with a question, by plain comparisons."""
    same = {"question_id": "question_id", "question": "text", "image": "image", "label": "label"}
    return all(row[key] == question[name] for key, name in same.items() if key in row)


@pytest.mark.parametrize("seed", range(150))
def test_a_score_is_of_the_rows_own_questions_or_there_is_none(lines, seed):
    """Rows of random layouts are lost, swapped, torn, doubled or of another split: what is scored is scored rightly."""
    rng = random.Random(seed)
    splits = [
        [
            {
                "question_id": i + 1,
                "image": f"{i // 2}.jpg",
                "text": f"Is there a {rng.choice(['dog', 'cat', 'hot dog', 'cup'])} in the image?",
                "label": "yes" if i % 2 else "no",
            }
            for i in range(8)
        ]
        for _ in range(2)
    ]
    carried = rng.sample(["question_id", "question", "image", "label"], rng.randint(0, 4))
    rows = []
    for question in splits[0]:
        row = {"question": question["text"], **question}
        rows.append({key: row[key] for key in carried} | {"answer": rng.choice(["Yes", "No"]), "source": question["question_id"]})
    fault = rng.choice(["none", "lost", "swapped", "torn", "doubled", "split"])
    at = rng.randrange(len(rows) - 1)
    if fault == "lost":
        del rows[at]
    elif fault == "swapped":
        rows[at], rows[at + 1] = rows[at + 1], rows[at]
    elif fault == "torn":
        rows[at] = '{"answer": "No'
    elif fault == "doubled":
        rows.insert(at, rows[at])
    asked = splits[fault == "split"]
    skip_bad = rng.random() < 0.7
    readable = [row for row in rows if isinstance(row, dict)]
    by_id = "question_id" in carried
    questions_of = [
        next(question for question in asked if question["question_id"] == row["question_id"]) if by_id else asked[place % 8]
        for place, row in enumerate(rows)
        if isinstance(row, dict)
    ]
    fitting = all(map(fits, readable, questions_of))
    whole = fault not in ("lost", "torn", "doubled") or (skip_bad and (by_id or fault == "torn"))
    if not (fitting and whole):
        with pytest.raises(BadInput):
            score_files(lines(asked), lines(rows), skip_bad=skip_bad)
        return
    scored = {item["question_id"]: item["answer"] for item in score_files(lines(asked), lines(rows), skip_bad=skip_bad).items}
    assert scored == {
        question["question_id"]: row["answer"].lower()
        for row, question in reversed(list(zip(readable, questions_of, strict=True)))
    }
    if fault in ("none", "torn", "lost") or (fault == "swapped" and by_id):
        assert scored == {row["source"]: row["answer"].lower() for row in readable}

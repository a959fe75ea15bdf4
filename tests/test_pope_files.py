"""POPE's files: every layout in use is read, answers are paired with their own questions, and what is wrong is named."""

import gzip
import json
import re

import pytest

from prunehal.benchmarks.pope.score import Question, parse_answer, questions, score, score_files, write_answers
from prunehal.files.records import BadInput

ASKED = [
    Question(11, "a.jpg", "Is there a dog in the image?", "yes"),
    Question(12, "a.jpg", "Is there a cat in the image?", "no"),
    Question(13, "b.jpg", "Is there a bus in the image?", "yes"),
    Question(14, "b.jpg", "Is there a cup in the image?", "no"),
]
SAID = ["Yes.", "Yes, one.", "No.", "no"]  # tp, fp, fn, tn


@pytest.fixture
def file(tmp_path):
    def make(rows, name="rows.json"):
        """Write rows one a line; a row that is text is written as it is, and text instead of rows is the whole file."""
        if not isinstance(rows, str):
            rows = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (tmp_path / name).write_text(rows)
        return tmp_path / name

    return make


@pytest.fixture
def asked(file):
    return file([row(question) for question in ASKED], "questions.json")


def row(question):
    return {"question_id": question.question_id, "image": question.image, "text": question.text, "label": question.label}


def answers(**changed):
    """The four answers; ``a2={...}`` replaces fields of the second, ``a2=None`` drops it, text replaces its line."""
    rows = [{"question": question.text, "answer": answer} for question, answer in zip(ASKED, SAID, strict=True)]
    for name, change in changed.items():
        place = int(name[1:]) - 1
        rows[place] = rows[place] | change if isinstance(change, dict) else change
    return [row for row in rows if row is not None]


def test_files(asked, file):
    path = file(answers())
    report = score_files(asked, path)
    assert (report.metrics, report.items) == (score(ASKED, SAID).metrics, score(ASKED, SAID).items)
    assert report.settings == {
        "benchmark": "POPE", "questions": str(asked), "answers": str(path), "rule": "official", "answer_key": None,
        "joined_by": "place", "compared": ["question"], "n_bad": 0,
    }  # fmt: skip
    assert score_files(asked, path, rule="strict").metrics["unreadable"] == 0
    with pytest.raises(ValueError, match="rule='Strict': expected one of"):
        score_files(asked, path, rule="Strict")


def test_layouts(asked, file, tmp_path):
    expected = score(ASKED, SAID).metrics
    in_list = file(json.dumps(answers(), indent=1), "list.json")
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(file(answers()).read_bytes()))
    renamed = [file([{key: answer} for answer in SAID], key) for key in ("text", "prediction", "response", "ans", "output")]
    doubled = file([{"answer": answer, "text": answer.upper()} for answer in ("Yes.", "Yes, one.", "no", "no")], "doubled")
    with pytest.raises(BadInput, match="line 3: answer is 'no' and text is 'NO'"):  # the official rule reads NO as yes
        score_files(asked, doubled)
    for path in (in_list, packed, *renamed):
        assert score_files(asked, path).metrics == expected
    questions_in_list = file(json.dumps([row(question) for question in ASKED]), "q.json")
    assert score_files(questions_in_list, packed).metrics == expected


def test_shipped_questions_by_name(file):
    path = file([{"answer": "No"}] * 3000)
    report = score_files("aokvqa/popular", path)
    assert (report.metrics["tn"], report.metrics["fn"], report.settings["questions"]) == (1500, 1500, "aokvqa/popular")
    assert report.items[-1]["image"] == questions("aokvqa", "popular")[-1].image
    with pytest.raises(
        FileNotFoundError, match="coco/hard: no such question file; expected a file, or one of the shipped coco/random"
    ):
        score_files("coco/hard", path)
    with pytest.raises(OSError, match=r"absent\.json"):
        score_files("coco/random", path.with_name("absent.json"))


def test_order_does_not_matter_when_every_answer_has_an_id(asked, file):
    rows = [row | {"question_id": question.question_id} for row, question in zip(answers(), ASKED, strict=True)]
    assert score_files(asked, file(rows[::-1])).metrics == score(ASKED, SAID).metrics
    bare = [{"question_id": str(row["question_id"]), "answer": row["answer"]} for row in rows]  # numbers written as text
    assert score_files(asked, file(bare[::-1])).metrics == score(ASKED, SAID).metrics
    assert [item["question_id"] for item in score_files(asked, file(bare[::-1])).items] == [14, 13, 12, 11]


# rows of answers, the problems named, and the answers that are left with skip_bad: (question_id, parsed)
BAD = {
    "not text": (answers(a2={"answer": None}), ["line 2: answer is None; expected text"], [11, 13, 14]),
    "no answer key": ([*answers()[:3], {"question": ASKED[3].text}], ["line 4: no answer; expected one of the"], [11, 12, 13]),
    "question repeated": (answers(a1={"answer": ASKED[0].text}), ["line 1: answer repeats the question"], [12, 13, 14]),
    "torn line keeps its place": (answers(a2='{"question": "Is'), ["line 2: no JSON"], [11, 13, 14]),
    "torn line among bare answers": (
        [{"answer": "Yes"}, "{", {"answer": "No"}, {"answer": "no"}],
        ["line 2: no JSON"],
        [11, 13, 14],
    ),
    "torn last line": (answers(a4='{"quest'), ["line 4: no JSON"], [11, 12, 13]),
    "number instead of an object": (answers(a1="7"), ["line 1: 7; expected an object"], [12, 13, 14]),
    "ids: twice": (
        [{"question_id": i, "answer": "Yes"} for i in (11, 12, 13, 14, 12)],
        ["line 5: question_id 12 again, first on line 2; expected each once"],
        [11, 12, 13, 14],
    ),
    "ids: twice on one line": (
        json.dumps([{"question_id": i, "answer": "Yes"} for i in (11, 12, 13, 14, 12)]),
        ["line 1: question_id 12 again, first on line 1"],
        [11, 12, 13, 14],
    ),
    "ids: not text": (
        [{"question_id": 11, "answer": 5}, *[{"question_id": i, "answer": "Yes"} for i in (12, 13, 14)]],
        ["line 1: answer is 5; expected text"],
        [12, 13, 14],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_answers_are_named_and_can_be_skipped(case, asked, file):
    rows, problems, left = BAD[case]
    path = file(rows)
    with pytest.raises(BadInput, match=re.escape(str(path))) as caught:
        score_files(asked, path)
    assert len(caught.value.problems) == len(problems), caught.value
    for expected in problems:
        assert any(problem.startswith(expected) for problem in caught.value.problems), (expected, caught.value)
    report = score_files(asked, path, skip_bad=True)
    assert [item["question_id"] for item in report.items] == left
    given = 5 if len(left) == 4 else 4
    assert (report.metrics["n"], report.settings["n_bad"]) == (len(left), given - len(left))
    said = dict(zip([question.question_id for question in ASKED], SAID, strict=True))
    if not case.startswith("ids"):
        assert [item["answer"] for item in report.items] == [parse_answer(said[i]) for i in left]


BAD_QUESTIONS = {
    "unknown label": (row(ASKED[1]) | {"label": "maybe"}, "line 2: unknown label 'maybe'; expected yes or no"),
    "no label": ({"question_id": 12, "image": "a.jpg", "text": "Is?"}, "line 2: no label; expected the keys question_id, image"),
    "twice": (row(ASKED[0]), "line 2: question_id 11 again, first on line 1; expected each once"),
    "text is no text": (row(ASKED[1]) | {"text": 5}, "line 2: text is 5; expected text"),
    "id is no id": (row(ASKED[1]) | {"question_id": True}, "line 2: question_id is True; expected a number or text"),
    "torn": ('{"question_id": 12', "line 2: no JSON"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_bad_questions_are_named_and_can_be_skipped(case, file):
    bad, problem = BAD_QUESTIONS[case]
    path = file([row(ASKED[0]), bad, row(ASKED[2]), row(ASKED[3])], "questions.json")
    said = file([{"answer": answer} for answer in SAID])
    with pytest.raises(BadInput, match="pass --skip-bad") as caught:
        score_files(path, said)
    assert caught.value.path == str(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
    report = score_files(path, said, skip_bad=True)
    assert [(item["question_id"], item["answer"]) for item in report.items] == [(11, "yes"), (13, "no"), (14, "no")]
    assert report.settings["n_bad"] == 1


def test_a_bad_question_does_not_make_places_uncertain(file):
    path = file([row(ASKED[0]), row(ASKED[1]) | {"label": "?"}, row(ASKED[2]), row(ASKED[3])], "questions.json")
    report = score_files(path, file([{"answer": answer} for answer in SAID]), skip_bad=True)
    assert [item["question_id"] for item in report.items] == [11, 13, 14]


def test_no_answers_at_all(asked, file):
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match="0 answers without question_id to 4 questions"):
            score_files(asked, file(""), skip_bad=skip_bad)
    with pytest.raises(BadInput, match="no usable answer"):
        score_files(asked, file([{"question_id": 11, "answer": 5}]), skip_bad=True)


def test_question_may_be_part_of_the_prompt(asked, file):
    prompts = [{"question": f"USER: {question.text.upper()} Answer yes or no.", "answer": "No"} for question in ASKED]
    assert score_files(asked, file(prompts)).metrics["n"] == 4


def test_written_answers_are_read_back(asked, tmp_path):
    path = tmp_path / "new" / "answers.json"
    said = ['Yes, "one".\nReally', "no", "ça", ""]
    write_answers(path, ASKED, said)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["question"], row["answer"]) for row in rows] == [
        (question.text, answer) for question, answer in zip(ASKED, said, strict=True)
    ]
    assert score_files(asked, path).items == score(ASKED, said).items
    before = path.read_bytes()
    with pytest.raises(ValueError, match="3 answers to 4 questions"):
        write_answers(path, ASKED, said[:3])
    with pytest.raises(ValueError, match="answer to question_id 14 is None; expected text"):
        write_answers(path, ASKED, [*said[:3], None])
    assert path.read_bytes() == before


def test_a_list_without_its_end_loses_no_answer(asked, file):
    path = file(json.dumps(answers())[:-1])
    with pytest.raises(BadInput, match="line 1: the file ends inside its list"):
        score_files(asked, path)
    report = score_files(asked, path, skip_bad=True)
    assert (report.items, report.settings["n_bad"]) == (score(ASKED, SAID).items, 0)

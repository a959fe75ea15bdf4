"""Replies of a judge of one's own at the command line: joined by id, compared with their question, counted where unreadable."""

import json

import pytest
from typer.testing import CliRunner

from prunehal.benchmarks.judged import hallusionbench as hallusion
from prunehal.benchmarks.judged import mmhal as judged
from prunehal.benchmarks.judged import mmvet
from prunehal.commands.app import app

KEYS = [hallusion.question_key(question) for question in hallusion.questions()]
MM_VET = {
    "v1_0": {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["math", "ocr"], "imagename": "v1_0.png"},
    "v1_1": {"question": "Who?", "answer": "Nobody", "capability": ["rec"], "imagename": "v1_1.png"},
}

GOOD = "\nDetailedness: 7 7"


def called(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture
def lines(tmp_path):
    def write(rows, name="replies.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def score(tmp_path):
    """Score, and return the metrics that the command writes."""

    def scored(*words):
        done = called("score", *words, "--json", tmp_path / "out.json")
        assert done.exit_code == 0, done.stderr
        return json.loads((tmp_path / "out.json").read_text())["metrics"]

    return scored


def refused(*words):
    done = called("score", *words)
    assert done.exit_code == 2
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stderr


# From the exported prompt to the score: the row that is asked, with the judge's reply added.


def test_hallusion_from_answers_to_the_score(tmp_path, lines, score):
    results, prompts = tmp_path / "results.json", tmp_path / "prompts.jsonl"
    hallusion.write_results(results, ["Yes."] * 1128 + [""])
    done = called("judge-prompts", "hallusion", results, prompts)
    assert done.stdout == f"written: {prompts}, 1129 prompts, 1 empty answers\n"
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    said = [row | {"judgement": "Correct." if i % 2 else "This is incorrect."} for i, row in enumerate(asked)]
    bare = [{"key": row["key"], "judgement": row["judgement"]} for row in reversed(said)]
    official = [q | {hallusion.VERDICT: str(i % 2)} for i, q in enumerate(hallusion.questions())]
    expected = hallusion.score(official).metrics
    for rows in (said, bare):
        metrics = score("hallusion", lines(rows))
        assert metrics == expected | {"unreadable": 0, "unreadable_share": 0.0, "n_empty": 0}
    assert metrics["correct"]["question"]["all"] == 564


def test_mmvet_from_answers_to_the_score(tmp_path, lines, score):
    questions, predictions, prompts = (tmp_path / name for name in ("mm-vet.json", "mine.json", "prompts.jsonl"))
    questions.write_text(json.dumps(MM_VET))
    mmvet.write_predictions(predictions, {"v1_0": "x = -1", "v1_1": ""})
    done = called("judge-prompts", "mmvet", questions, predictions, prompts)
    assert done.stdout == f"written: {prompts}, 2 prompts, 1 empty answers\n"
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    for rows in (
        [asked[0] | {"judgement": "0.5"}, asked[1] | {"judgement": "1.0"}],
        [{"id": "v1_1", "judgement": 1.0}, {"id": "v1_0", "judgement": 0.5}],
        [{"v1_0": "0.5", "v1_1": "1.0"}],
    ):
        metrics = score("mmvet", questions, lines(rows))
        assert metrics["total"] == 75.0
        assert metrics["capabilities"] == {"rec": 100.0, "ocr": 50.0, "math": 50.0}
        assert (metrics["unreadable"], metrics["unreadable_share"], metrics["n_empty"]) == (0, 0.0, 0)


def test_mmhal_from_answers_to_the_score_whatever_the_order(tmp_path, lines, score):
    filled = judged.responses([f"answer {index}" for index in range(95)] + [""])
    responses, prompts = lines(reversed(filled), "responses.jsonl"), tmp_path / "prompts.jsonl"
    done = called("judge-prompts", "mmhal", responses, prompts)
    assert done.stdout == f"written: {prompts}, 96 prompts, 1 empty answers\n"
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert [row["index"] for row in asked] == list(range(96))
    assert "answer 7\n" in asked[7]["prompt"]  # the question's own number, not the place in the file
    said = [row | {"judgement": f"Rating: {row['index'] % 7}"} for row in reversed(asked)]
    assert score("mmhal", lines(said))["average"] == sum(index % 7 for index in range(96)) / 96


# Rows of another question.


def hallusion_rows(**changed):
    rows = [{"key": key, "judgement": "correct"} for key in KEYS]
    return [rows[0] | changed, *rows[1:]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": "Is it?"}, "line 1: question is 'Is it?'; expected"),
        ({"prompt": "Imagine ... Question:Is it?\nOutput:"}, "line 1: prompt is 'Imagine"),
        ({"key": KEYS[5], "filename": "./VS/chart/9_9.png"}, "line 1: filename is './VS/chart/9_9.png'; expected './VS"),
        ({"key": KEYS[5]}, f"line 6: {KEYS[5]} is answered twice"),
        ({"key": "VS_chart_0_0_9"}, "line 1: VS_chart_0_0_9 is none of the 1129 questions"),
        ({"key": 7}, "line 1: key is 7; expected text"),
        ({"key": None}, "line 1: no category, subcategory, set_id, figure_id, question_id; expected the five parts"),
        ({"judgement": None}, "line 1: judgement holds no text"),
        ({"text": "incorrect"}, "line 1: judgement and text could both be the reply, and differ; expected one; Fix: name"),
        ({hallusion.VERDICT: "0"}, "line 1: gpt4v_output_gpt_check '0' and judgement 'correct' differ; expected one verdict"),
    ],
)  # fmt: skip
def test_hallusion_rows_that_are_refused(lines, changed, message):
    path = lines(hallusion_rows(**changed))
    said = refused("hallusion", path)
    assert str(path) in said
    assert message in said


def test_the_key_of_the_reply_can_be_named(lines, score):
    rows = [{"key": key, "text": "A dog.", "verdict": "correct", hallusion.VERDICT: "0"} for key in KEYS]
    assert "differ" in refused("hallusion", lines(rows))
    correct = [score("hallusion", lines(rows), "--judgement-key", key)["correct"]["question"]["all"]
               for key in ("verdict", hallusion.VERDICT)]  # fmt: skip
    assert correct == [1129, 0]
    assert "no text; expected a reply under the key nothing" in refused("hallusion", lines(rows), "--judgement-key", "nothing")


def test_replies_to_other_questions_are_refused(tmp_path, lines):
    questions = judged.questions()
    rows = [{"question": question["question"], "judgement": "Rating: 3"} for question in questions]
    shifted = [*rows[1:], rows[0]]  # in order and without an index, one row off
    assert "line 1: question is" in refused("mmhal", lines(shifted))
    indexed = [{"index": i, "id": i + 1, "judgement": "Rating: 3"} for i in range(95)]
    assert "line 1: index 0 and id 1 differ" in refused("mmhal", lines(indexed))
    (tmp_path / "mm-vet.json").write_text(json.dumps(MM_VET))
    for row, message in (
        ({"id": "v1_0", "question": "Who?"}, "line 1: question is 'Who?'; expected 'What is x?', as in v1_0"),
        ({"id": "v1_0", "prompt": f"{mmvet.PROMPT}\nWho? | Nobody | x | "}, "line 1: prompt is"),
        ({"id": "v1_0", "image": "images/v1_1.png"}, "line 1: image is 'images/v1_1.png'; expected 'v1_0.png'"),
        ({"id": "v1_1"}, "line 2: v1_1 is graded twice"),
        ({"id": "v1_9"}, "'v1_9': a grade without a question"),
        ({"id": 5}, "line 1: id 5; expected that of a question"),
    ):
        rows = [{"judgement": "0.5"} | row, {"id": "v1_1", "judgement": "1.0"}]
        assert message in refused("mmvet", tmp_path / "mm-vet.json", lines(rows))
    both = [{"image_id": 1, "order": "ab", "judgement": "?"}, {"image_id": 1, "judgement": "?"}]
    assert "line 2: image 1 is judged twice in order 'ab'" in refused("pairwise", lines(both))


# Unreadable replies.


def test_unreadable_replies_are_counted_by_both_rules(tmp_path, lines, score):
    said = ["correct", "unclear", "", "I cannot answer", "not correct", "**Incorrect**"]
    rows = [{"key": key, "judgement": said[i % 6]} for i, key in enumerate(KEYS)]
    n = [len(KEYS[i::6]) for i in range(6)]
    official, strict = (score("hallusion", lines(rows), "--rule", rule) for rule in ("official", "strict"))
    assert (official["unreadable"], official["n_empty"]) == (n[2] + n[3], n[2])
    assert official["unreadable_share"] == (n[2] + n[3]) / 1129
    assert strict["unreadable"] == n[2] + n[3] + n[4]
    unclear_is_right = [key.startswith("VS") and key.split("_")[3] == "0" for key in KEYS]
    right = {"official": n[0] + n[4], "strict": n[0]}
    right["official"] += sum(unclear_is_right[1::6]) + sum(unclear_is_right[2::6]) + sum(unclear_is_right[3::6])
    right["strict"] += sum(unclear_is_right[1::6])
    assert official["correct"]["question"]["all"] == right["official"]
    assert strict["correct"]["question"]["all"] == right["strict"]

    rows = [{"index": i, "judgement": ["Rating: 10", "rating:3", ""][i % 3]} for i in range(96)]
    official, strict = (score("mmhal", lines(rows), "--rule", rule) for rule in ("official", "strict"))
    assert (official["average"], official["unreadable"], official["n_empty"]) == (1 / 3, 64, 32)
    assert (strict["average"], strict["unreadable"], strict["unreadable_share"]) == (1.0, 64, 64 / 96)

    questions = tmp_path / "mm-vet.json"
    questions.write_text(json.dumps(MM_VET))
    rows = [{"id": "v1_0", "judgement": "0.5 | as x is -1"}, {"id": "v1_1", "judgement": " 1.0"}]
    official, strict = (score("mmvet", questions, lines(rows), "--rule", rule) for rule in ("official", "strict"))
    assert (official["total"], official["unreadable"]) == (25.0, 1)
    assert (strict["total"], strict["unreadable"], strict["unreadable_share"]) == (50.0, 1, 0.5)


def test_nothing_readable_is_an_error(tmp_path, lines):
    (tmp_path / "mm-vet.json").write_text(json.dumps(MM_VET))
    unread = "none of the {} replies can be read, such as 'Sorry'"
    for words, rows in (
        (["hallusion"], [{"key": key, "judgement": "Sorry"} for key in KEYS]),
        (["mmhal"], [{"judgement": "Sorry"}] * 96),
        (["mmvet", tmp_path / "mm-vet.json"], [{"id": key, "judgement": "Sorry"} for key in MM_VET]),
        (["pairwise"], [{"image_id": 1, "judgement": "Sorry"}]),
    ):
        path = lines(rows)
        said = refused(*words, path)
        assert unread.format(len(rows)) in said
        assert str(path) in said
    for words in (["hallusion"], ["mmhal"], ["mmvet", tmp_path / "mm-vet.json"]):
        assert refused(*words, path, "--rule", "lenient").startswith("Error: rule='lenient': expected one of official, strict")


# Files for the judge that are empty, or hold a part of the answers.


def test_judge_prompts_of_nothing_or_of_a_part_are_refused(tmp_path, lines):
    filled = judged.responses(["Yellow."] * 96)
    results = hallusion.results(["Yes."] * 1129)
    questions, out = tmp_path / "mm-vet.json", tmp_path / "prompts.jsonl"
    questions.write_text(json.dumps(MM_VET))
    shifted = [row | {"question": results[i - 1]["question"]} for i, row in enumerate(results)]
    for words, rows, message in (
        (["mmhal"], [], "no record for 96 question(s): 0, 1"),
        (["mmhal"], filled[1:], "no record for 1 question(s): 0"),
        (["mmhal"], [*filled[1:], filled[1]], "line 96: question 1 is answered twice"),
        (["mmhal"], [filled[0] | {"question": "Is it?"}, *filled[1:]], "line 1: question is 'Is it?'; expected"),
        (["mmhal"], [filled[0] | {"image_src": "x"}, *filled[1:]], "line 1: image_src 'x'; expected that of one of the 96"),
        (["mmhal"], [filled[0] | {"model_answer": 5}, *filled[1:]], "line 1: model_answer is 5; expected text"),
        (["hallusion"], [], "there are no records"),
        (["hallusion"], results[:-1], "VD_video_19_2_3: no record"),
        (["hallusion"], [*results, results[0]], "VS_chart_0_0_0 is answered twice"),
        (["hallusion"], [results[0] | {"model_prediction": 5}, *results[1:]], "line 1: model_prediction is 5; expected text"),
        (["mmhal"], [filled[0] | {"image_content": ["cat"]}, *filled[1:]], "line 1: image_content is ['cat']; expected"),
        (["mmhal"], [row | {"model_answer": " "} for row in filled], "no response has a model_answer"),
        (["hallusion"], shifted, "as in VS_chart_0_0_1; Fix: give each reply the id of its own question"),
        (["hallusion"], [*results, results[0] | {"set_id": "99"}], "VS_chart_99_0_0 is none of the 1129 questions"),
        (["hallusion"], hallusion.results([" "] * 1129), "all answers are empty (1129); expected a word in at least one"),
        (["mmvet", questions], [{"v1_0": "", "v1_1": "\n"}], "all answers are empty (2); expected a word in at least one"),
        (["mmvet", questions], [], "0 objects; expected one object"),
        (["mmvet", questions], [{"v1_0": "x"}], "'v1_1': no prediction"),
        (["mmvet", questions], [{"v1_0": "x", "v1_1": ["x"]}], "'v1_1': ['x']; expected text"),
    ):
        path = lines(rows)
        done = called("judge-prompts", *words, path, out)
        assert (done.exit_code, out.exists()) == (2, False), message
        assert message in done.stderr
        assert str(path) in done.stderr
    path = lines(results)
    done = called("judge-prompts", "hallusion", path, path)
    assert (done.exit_code, len(path.read_text().splitlines())) == (2, 1129)
    assert "is a file that is read" in done.stderr
    done = called("judge-prompts", "hallusion", path, f"{out}/")
    assert (done.exit_code, out.exists()) == (2, False)
    assert "is a folder; expected the name of a file to write" in done.stderr


# Rows with more than one entry that could be the verdict.

MM_VET_ROWS = [{"id": "v1_0", "text": "1 dog", "grade": 0.0}, {"id": "v1_1", "text": "0 cats", "grade": 1.0}]


def test_the_answer_is_not_taken_for_the_verdict(tmp_path, lines, score):
    (tmp_path / "mm-vet.json").write_text(json.dumps(MM_VET))
    mmvet = ["mmvet", tmp_path / "mm-vet.json"]
    cases = (
        (mmvet, MM_VET_ROWS, "grade", "line 1: text '1 dog' and grade 0.0 could both be the verdict, and differ"),
        (
            ["mmhal"],
            [{"index": i, "text": "It is red. Rating: 6", "gpt": "Rating: 0"} for i in range(96)],
            "gpt",
            "gpt 'Rating: 0'",
        ),
        (["mmhal"], [{"judgement": "Rating: 5", "rating": 1, "reply": "Rating: 2"}] * 96, "reply", "'Rating: 5' and rating 1"),
        (["mmhal"], [{"text": "It is red.", "response": "Rating: 3"}] * 96, "response", "'It is red.' and response 'Rating: 3'"),
        (
            ["hallusion"],
            [{"key": key, "text": "Yes, that is correct.", "verdict": "incorrect"} for key in KEYS],
            "verdict",
            "text 'Yes, that is correct.' and verdict 'incorrect'",
        ),
        (
            ["hallusion"],
            [{"key": key, hallusion.VERDICT: "1", "llava_output_gpt_check": "0"} for key in KEYS],
            "llava_output_gpt_check",
            "gpt4v_output_gpt_check '1' and llava_output_gpt_check '0' could both be the verdict",
        ),
        (
            ["pairwise"],
            [{"image_id": 1, "text": f"Accuracy: 9 1{GOOD}", "response": f"Accuracy: 2 4{GOOD}"}],
            "response",
            "could both be the verdict, and differ",
        ),
    )
    unread = [row | {"grade": "none"} for row in MM_VET_ROWS]  # beside text even an entry that cannot be read
    assert "text '1 dog' and grade 'none' could both be the verdict" in refused(*mmvet, lines(unread))
    metrics = []
    for words, rows, key, message in cases:
        said = refused(*words, lines(rows))
        assert message in said
        assert "expected one; Fix: name it with --judgement-key" in said
        metrics.append(score(*words, lines(rows), "--judgement-key", key))
    assert metrics[0]["official"]["total"] == 50.0
    assert [one["average"] for one in metrics[1:4]] == [0, 2, 3]
    assert [one["correct"]["question"]["all"] for one in metrics[4:6]] == [0, 0]
    assert (metrics[6]["correctness"]["a"], metrics[6]["correctness"]["b"]) == (2, 4)


def test_entries_that_agree_or_hold_no_verdict_are_no_obstacle(tmp_path, lines, score):
    (tmp_path / "mm-vet.json").write_text(json.dumps(MM_VET))
    rows = [{"id": key, "judgement": "0.5 | as", "grade": 0.5, "score": None, "response": "A dog."} for key in MM_VET]
    assert score("mmvet", tmp_path / "mm-vet.json", lines(rows))["total"] == 50.0
    rows = [{"judgement": "Rating: 5", "rating": 5, "gpt": "Rating: 5, fine", "response": "It is red."}] * 96
    assert score("mmhal", lines(rows))["average"] == 5
    rows = [{"key": key, "judgement": "correct", "verdict": 1.0, "x_gpt_check": "1", "response": "A dog."} for key in KEYS]
    assert score("hallusion", lines(rows))["correct"]["question"]["all"] == 1129


@pytest.mark.parametrize("name", [hallusion.VERDICT, "judgement"])
@pytest.mark.parametrize("kind", [int, float, str])
def test_verdicts_that_are_numbers_are_read(lines, score, name, kind):
    rows = [{"key": key, name: kind(i % 2)} for i, key in enumerate(KEYS)]
    metrics = score("hallusion", lines(rows))
    assert (metrics["correct"]["question"]["all"], metrics.get("unreadable", 0)) == (564, 0)
    strict = score("hallusion", lines(rows), "--rule", "strict")
    assert (strict["correct"]["question"]["all"], strict.get("unreadable", 0)) == (564, 0)
    assert "line 1" in refused("hallusion", lines([rows[0] | {hallusion.VERDICT: 0.5}, *rows[1:]]))


def test_mmhal_judgements_are_joined_by_their_image(lines, score):
    rows = [row | {"judgement": f"Rating: {i % 7}"} for i, row in enumerate(judged.responses(["Yellow."] * 96))]
    by_index = score("mmhal", lines([{"index": i, "judgement": row["judgement"]} for i, row in enumerate(rows)]))
    assert len(set(by_index["types"].values())) > 1
    for kept in (list(rows[0]), ["image_src", "judgement"], ["image_id", "judgement"]):
        assert score("mmhal", lines([{key: row[key] for key in kept} for row in reversed(rows)])) == by_index
    assert "question 5 is judged twice" in refused("mmhal", lines([*rows[:4], rows[5], *rows[5:]]))
    assert "line 1: question is" in refused("mmhal", lines([rows[0] | {"question": rows[1]["question"]}, *rows[1:]]))
    assert "line 1: image_id 'x'; expected" in refused("mmhal", lines([{"image_id": "x", "judgement": "?"}, *rows[1:]]))


def test_one_unreadable_reply_beside_number_grades_counts(tmp_path, lines):
    (tmp_path / "mm-vet.json").write_text(json.dumps(MM_VET))
    metrics = mmvet.score(tmp_path / "mm-vet.json", {"v1_0": "no idea", "v1_1": 1.0}).metrics
    assert (metrics["total"], metrics["unreadable"], metrics["unreadable_share"], metrics["n_empty"]) == (50.0, 1, 0.5, 0)
    assert "unreadable" not in mmvet.score(tmp_path / "mm-vet.json", {"v1_0": 0.5, "v1_1": 1.0}).metrics


def test_pairwise_images_are_one_under_all_their_names(lines, score):
    def row(image, order, first, second):
        return {"image_id": image, "order": order, "judgement": f"Accuracy: {first} {second}{GOOD}"}

    for a, b in ((1, "1"), (1.0, 1), ("COCO_val2014_000000000001.jpg", 1), ("val2014/000000000001.jpg", "1.png")):
        metrics = score("pairwise", lines([row(a, "ab", 8, 6), row(b, "ba", 7, 7)]))
        assert (metrics["n"], metrics["n_both"], metrics["correctness"]["a"]) == (1, 1, 7.5)
        assert "is judged twice in order 'ab'" in refused("pairwise", lines([row(a, "ab", 8, 6), row(b, "ab", 7, 7)]))
    assert score("pairwise", lines([row("cat.jpg", "ab", 8, 6), row("dog.jpg", "ba", 7, 7)]))["n"] == 2
    assert "image_id 1.5; expected a whole number" in refused("pairwise", lines([row(1.5, "ab", 8, 6)]))

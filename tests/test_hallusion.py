"""HallusionBench: official files and prompts, verdicts, and scores worked out by hand and by a slow twin of the rules."""

import hashlib
import json
import random

import pytest

from prunehal.benchmarks.judged import hallusionbench as hallusion
from prunehal.benchmarks.judged import hallusionbench_failures as failures
from prunehal.files.records import BadInput, read_shipped

QUESTIONS = hallusion.questions()
SAMPLE = read_shipped("hallusionbench", "HallusionBench_result_sample.json.gz")


def record(category, set_id, figure_id, question_id, verdict, visual_input, **more):
    place = {"category": category, "subcategory": "map", "set_id": set_id, "figure_id": figure_id, "question_id": question_id}
    return {**place, "visual_input": visual_input, hallusion.VERDICT: verdict, **more}


# One VD pair on two figures, one VD question on the original alone, two VS pairs on no image, a plain and an edited one.
SMALL = [
    record("VD", "0", "0", "0", "1", "1"),
    record("VD", "0", "1", "0", "0", "2"),
    record("VD", "0", "0", "1", "1", "1"),
    record("VS", "0", "0", "0", "2", "0"),
    record("VS", "0", "1", "0", "1", "1"),
    record("VS", "0", "2", "0", "1", "2"),
    record("VS", "0", "0", "1", "0", "0"),
    record("VS", "0", "1", "1", "2", "1"),
    record("VS", "0", "2", "1", "1", "2"),
]


def test_score_by_hand():
    metrics = hallusion.score(SMALL, against=SMALL).metrics
    assert metrics["correct"] == {
        "question": {"all": 6, "VD": 2, "VS": 4},
        "figure": {"all": 2, "VD": 1, "VS": 1},  # VD original (both right), VS figure 2 (both right)
        "pair": {"all": 2, "VD": 1, "VS": 1},
        "easy": {"all": 3, "VD": 2, "VS": 1},
        "hard": {"all": 1, "VD": 0, "VS": 1},
        "edited": {"all": 2, "VD": 0, "VS": 2},
    }
    assert metrics["total"] == {
        "question": {"all": 9, "VD": 3, "VS": 6},
        "figure": {"all": 4, "VD": 2, "VS": 2},
        "pair": {"all": 4, "VD": 2, "VS": 2},
        "easy": {"all": 4, "VD": 2, "VS": 2},
        "hard": {"all": 3, "VD": 1, "VS": 2},
        "edited": {"all": 3, "VD": 1, "VS": 2},
    }
    assert metrics["percent"]["question"] == {"all": 66.6667, "VD": 66.6667, "VS": 66.6667}
    assert metrics["percent"]["hard"] == {"all": 33.3333, "VD": 0.0, "VS": 50.0}
    assert metrics["figures"]["VS"] == {"correct": 1, "inconsistent": 1, "wrong": 0, "score": 0.75}
    assert metrics["figures"]["VD"] == {"correct": 1, "inconsistent": 0, "wrong": 1, "score": 0.5}
    assert metrics["failures"] == {"question": {"LH": 1, "VI": 1, "Mix": 1}}
    assert metrics["n"] == 9


def test_the_order_of_records_and_the_type_of_numbers_do_not_matter():
    again = [{**entry, "set_id": 0, hallusion.VERDICT: int(entry[hallusion.VERDICT])} for entry in reversed(SMALL)]
    assert hallusion.score(again, against=SMALL) == hallusion.score(SMALL, against=SMALL)


def test_a_category_without_questions_has_no_percentage():
    metrics = hallusion.score(SMALL[:3], against=SMALL[:3]).metrics
    assert metrics["percent"]["pair"] == {"all": 50.0, "VD": 50.0, "VS": None}
    assert metrics["figures"]["VS"] == {"correct": 0, "inconsistent": 0, "wrong": 0, "score": None}


def test_the_shipped_questions_give_the_denominators_of_the_published_leaderboard():
    right = [{**question, hallusion.VERDICT: "1"} for question in QUESTIONS]
    metrics = hallusion.score(right).metrics
    assert {name: counts["all"] for name, counts in metrics["total"].items()} == {
        "question": 1129,
        "figure": 346,
        "pair": 455,
        "easy": 455,
        "hard": 452,
        "edited": 430,
    }
    assert set(metrics["percent"]["pair"].values()) == {100.0}
    # Rows of the published table with four decimals (ViLT): pair, figure, easy, hard, question.
    shares = [(38, "pair"), (39, "figure"), (172, "easy"), (195, "edited"), (502, "question")]
    published = [8.3516, 11.2717, 37.8022, 45.3488, 44.4641]
    assert [round(100 * correct / metrics["total"][name]["all"], 4) for correct, name in shares] == published


def slow_score(records):
    """Count with loops over all pairs of records, from the words of the rules."""

    def is_right(entry):
        unclear_is_fine = entry["category"] == "VS" and int(entry["figure_id"]) == 0
        return int(entry[hallusion.VERDICT]) == 1 or (unclear_is_fine and int(entry[hallusion.VERDICT]) == 2)

    def groups(chosen, parts):
        found = []
        for entry in chosen:
            for group in found:
                if all(group[0][part] == entry[part] for part in parts):
                    group.append(entry)
                    break
            else:
                found.append([entry])
        return found

    place = ["category", "subcategory", "set_id"]
    counts = {}
    for scope in ("all", "VD", "VS"):
        mine = [entry for entry in records if scope in ("all", entry["category"])]
        tables = {
            "question": groups(mine, [*place, "figure_id", "question_id"]),
            "figure": groups([e for e in mine if not (e["category"] == "VS" and e["figure_id"] == "0")], [*place, "figure_id"]),
            "pair": groups(mine, [*place, "question_id"]),
            "easy": groups([e for e in mine if e["figure_id"] == "0"], [*place, "question_id"]),
            "hard": groups([e for e in mine if e["figure_id"] != "0"], [*place, "question_id"]),
            "edited": groups([e for e in mine if e["visual_input"] == "2"], [*place, "question_id"]),
        }
        for name, table in tables.items():
            counts[name, scope] = (sum(all(is_right(e) for e in group) for group in table), len(table))
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_score_equals_the_slow_twin(seed):
    rng = random.Random(seed)
    judged = [{**question, hallusion.VERDICT: rng.choice("0111112")} for question in QUESTIONS]
    metrics = hallusion.score(rng.sample(judged, len(judged))).metrics
    for (name, scope), (correct, total) in slow_score(judged).items():
        assert (metrics["correct"][name][scope], metrics["total"][name][scope]) == (correct, total), (name, scope)
        assert metrics["percent"][name][scope] == round(100 * correct / total, 4)


# category, verdict on figure 0, verdict, visual_input, same -> what the answer points to, from the comments of the official code
BLAME = {
    ("VD", "1", "0", "2", "1"): {"LH", "VI"},
    ("VD", "1", "0", "2", "0"): {"VI"},
    ("VD", "1", "2", "2", "1"): {"VI"},
    ("VD", "0", "0", "2", "1"): {"VI"},
    ("VD", "0", "2", "2", "0"): {"VI"},
    ("VD", "2", "0", "2", "1"): {"VI"},
    ("VD", "2", "2", "2", "1"): {"VI"},
    ("VS", "0", "0", "2", "1"): {"LH"},
    ("VS", "0", "0", "1", "1"): {"LH"},
    ("VS", "0", "0", "2", "0"): {"LH", "VI"},
    ("VS", "0", "2", "1", "1"): {"LH", "VI"},
    ("VS", "2", "0", "2", "1"): {"VI"},
    ("VS", "2", "2", "1", "0"): {"VI"},
    ("VS", "1", "2", "2", "1"): {"VI"},
    ("VS", "1", "0", "1", "1"): {"VI"},
    ("VS", "1", "0", "2", "1"): {"LH"},
    ("VS", "1", "0", "2", "0"): {"VI"},
}
ON_ORIGINAL = {("VD", "0"): {"VI"}, ("VD", "2"): {"VI"}, ("VS", "0"): {"LH"}}


@pytest.mark.parametrize("case", [*BLAME, *((c, o, "1", "2", "1") for c in ("VD", "VS") for o in "012")], ids="-".join)
def test_failures_of_pairs_by_hand(case):
    category, original, verdict, visual_input, same = case
    pair = [
        record(category, "0", "0", "0", original, "1" if category == "VD" else "0", same="1"),
        record(category, "0", "1", "0", verdict, visual_input, same=same),
    ]
    blame = BLAME.get(case, set()) | ON_ORIGINAL.get((category, original), set())
    expected = {"LH": blame == {"LH"}, "VI": blame == {"VI"}, "Mix": blame == {"LH", "VI"}}
    assert hallusion.score(pair, against=pair).metrics["failures"]["pair"] == expected


def test_every_wrong_pair_fails_in_one_way():
    rng = random.Random(0)
    judged = [{**question, hallusion.VERDICT: rng.choice("0112"), "same": rng.choice("01")} for question in QUESTIONS]
    metrics = hallusion.score(judged).metrics
    assert sum(metrics["failures"]["pair"].values()) == metrics["total"]["pair"]["all"] - metrics["correct"]["pair"]["all"]
    assert min(metrics["failures"]["pair"].values()) > 0


def test_failures_of_questions_by_hand():
    cases = [
        (record("VD", "0", "0", "0", "0", "1"), "VI"),
        (record("VD", "0", "0", "0", "2", "1"), "VI"),
        (record("VD", "0", "1", "0", "0", "2"), "Mix"),
        (record("VD", "0", "1", "0", "2", "2"), "VI"),
        (record("VS", "0", "0", "0", "0", "0"), "LH"),
        (record("VS", "0", "0", "0", "2", "0"), None),
        (record("VS", "0", "1", "0", "0", "1"), "Mix"),
        (record("VS", "0", "1", "0", "2", "2"), "VI"),
        (record("VS", "0", "1", "0", "1", "2"), None),
    ]
    for entry, kind in cases:
        counts = hallusion.score([entry], against=[entry]).metrics["failures"]["question"]
        assert counts == {name: int(name == kind) for name in ("LH", "VI", "Mix")}, entry


def test_same_is_asked_for_where_the_rule_needs_it():
    pair = [record("VD", "0", "0", "0", "1", "1", same="1"), record("VD", "0", "1", "0", "0", "2")]
    with pytest.raises(BadInput, match="VD_map_0_0, figure 1: same is None; expected 0 or 1"):
        hallusion.score(pair, against=pair)
    pair[1][hallusion.VERDICT] = "2"  # not read here
    assert hallusion.score(pair, against=pair).metrics["failures"]["pair"] == {"LH": 0, "VI": 1, "Mix": 0}


# Files and prompts


def test_write_results_keeps_the_records(tmp_path):
    path = tmp_path / "HallusionBench_result.json"
    hallusion.write_results(path, [f"answer {place}" for place in range(1129)])
    read = json.loads(path.read_text())
    assert read == hallusion.read_results(path)
    assert read[7] == {**QUESTIONS[7], "model_prediction": "answer 7"}
    by_key = {hallusion.question_key(question): f"answer {place}" for place, question in enumerate(QUESTIONS)}
    assert hallusion.results(dict(reversed(by_key.items()))) == read
    # The official sample result has the same entries, but for the two that it leaves out.
    assert set(read[7]) == set(SAMPLE[0]) | {"gt_answer", "filename"}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (["a"] * 1128, "1128 predictions; expected 1129"),
        (["a"] * 1128 + [5], "VD_video_19_2_3: 5; expected text"),
        ({"VS_chart_0_0_0": "a"}, "1128 problems\n  VS_chart_0_0_1: no prediction"),
        ({**{hallusion.question_key(q): "a" for q in QUESTIONS}, "VS_x": "a"}, "VS_x: a prediction for no question"),
    ],
)
def test_bad_predictions_are_named(tmp_path, predictions, message):
    with pytest.raises(BadInput, match=message):
        hallusion.write_results(tmp_path / "out.json", predictions)
    assert list(tmp_path.iterdir()) == []


def test_the_judge_prompt_is_the_published_one():
    prompt = hallusion.judge_prompts(SAMPLE)[0]
    assert prompt["key"] == "VD_illusion_0_0_0"
    head, rest = prompt["prompt"].split(" \n\n Question:")
    assert (len(head), hashlib.sha256(head.encode()).hexdigest()) == (
        484,
        "8189835cfc9ae76023b609be07516c6e791224a1d0588e460d147ff6cc1b02c9",
    )
    assert rest == (
        f"{SAMPLE[0]['question']}\nReference answer: {SAMPLE[0]['gt_answer_details']}\n"
        f"Prediction answer:{SAMPLE[0]['model_prediction']}\nOutput:"
    )
    with pytest.raises(BadInput, match="VS_chart_0_0_0: no model_prediction; expected it"):
        hallusion.judge_prompts(QUESTIONS)


def test_the_prompt_of_same_is_the_published_one():
    asked = failures.same_prompts(SAMPLE)
    head = asked[1].split(" \n\n response1:")[0]
    assert (len(head), hashlib.sha256(head.encode()).hexdigest()) == (
        449,
        "5e1f76e73240493e731b384e41d1c28e037ce3fba1d2cedbff8e40e71207645e",
    )
    places = {hallusion.question_key(entry): place for place, entry in enumerate(SAMPLE)}
    edited, original = places["VD_illusion_0_1_1"], places["VD_illusion_0_0_1"]
    assert asked[edited].endswith(
        f" response1:{SAMPLE[edited]['model_prediction']}\nresponse2: {SAMPLE[original]['model_prediction']}\nOutput:"
    )
    with pytest.raises(BadInput, match="record 0: no record with figure 0 in its pair"):
        failures.same_prompts([SAMPLE[edited]])
    with pytest.raises(BadInput, match="record 0: no model_prediction"):
        failures.same_prompts(QUESTIONS[:1])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("Incorrect", 0), ("correct", 1), ("Correct, not incorrect", 0), ("unclear", 2), ("“CORRECT”", 1), ("", 2)],
)
def test_read_judgement_by_hand(text, verdict):
    assert hallusion.read_judgement(text) == verdict


def test_verdicts_of_the_official_sample():
    keys = [hallusion.question_key(entry) for entry in SAMPLE]
    replies = ["correct", "incorrect", "unclear"] * 84 + ["Correct", {"choices": [{"message": {"content": "INCORRECT"}}]}]
    judged = hallusion.with_verdicts(SAMPLE, replies)
    assert [entry[hallusion.VERDICT] for entry in judged] == ["1", "0", "2"] * 84 + ["1", "0"]
    assert hallusion.with_verdicts(SAMPLE, dict(zip(keys, replies, strict=True))) == judged
    assert hallusion.VERDICT not in SAMPLE[0]
    against = [question for question in QUESTIONS if hallusion.question_key(question) in set(keys)]
    totals = hallusion.score(judged, against=against).metrics["total"]
    assert (totals["question"]["all"], totals["figure"]["all"], totals["pair"]["all"]) == (254, 69, 117)
    with pytest.raises(BadInput, match="875 problems\n  VS_chart_"):
        hallusion.score(judged)
    with pytest.raises(BadInput, match="253 judgements; expected 254"):
        hallusion.with_verdicts(SAMPLE, replies[1:])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (SMALL[1:], "VD_map_0_0_0 has no record"),
        ([*SMALL, SMALL[2]], "record 9: VD_map_0_0_1 is answered twice"),
        ([*SMALL, record("VD", "9", "0", "0", "1", "1")], "record 9: VD_map_9_0_0 is none of the 9 questions"),
        (
            [{**SMALL[0], hallusion.VERDICT: "yes"}, *SMALL[1:]],
            "record 0: VD_map_0_0_0 has gpt4v_output_gpt_check 'yes'; expected",
        ),
        ([{"category": "VD"}, *SMALL], "record 0: no subcategory, set_id, figure_id, question_id"),
    ],
)
def test_bad_records_are_named(records, message):
    with pytest.raises(BadInput, match=message):
        hallusion.score(records, against=SMALL)


def test_bad_result_files_are_named(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([SAMPLE[0], {"category": "VD"}]) + "\n{")
    with pytest.raises(BadInput, match=r"2 problems\n  line 2: no JSON.*\n  line 1, object \d+: no subcategory"):
        hallusion.read_results(tmp_path / "results.json")

"""Files of captions: every layout in use is read, what a row does not decide is refused, and empty captions are captions."""

import json

import pytest
import reference_chair as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prunehal.benchmarks import BadInput, drop_unfinished, ground_truth_coco, read_captions, score
from prunehal.benchmarks.chair.captions import read_caption_file
from prunehal.commands.app import app


@pytest.mark.parametrize("key", ["image_id", "image", "file_name"])
@pytest.mark.parametrize("name", [42, "42", 42.0, "COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"])
@pytest.mark.parametrize("text", ["caption", "text"])
def test_names_of_images_and_captions(file, key, name, text):
    path = file(json.dumps({key: name, text: "A dog."}))
    assert read_captions(path, known={42: set()}) == ({42: "A dog."}, 0)
    assert read_captions(path) == ({42: "A dog."}, 0)


def test_images_that_have_names_only(file):
    path = file(json.dumps([{"image": "photos/cat.png", "caption": "A cat."}]))
    assert read_captions(path, known={"cat"}) == ({"cat": "A cat."}, 0)
    assert read_captions(path, known={"cat.png"}) == ({"cat.png": "A cat."}, 0)


@pytest.mark.parametrize("name", ["-42", "42.5", "AMBER_42.jpg", "cat_42", "photo42.png", True, None, [42], ""])
def test_other_names_are_not_taken_for_numbers(file, name):
    with pytest.raises(BadInput, match=r"has no ground truth|expected a number or a file name"):
        read_captions(file(json.dumps({"image_id": name, "caption": "A dog."})), known={42})


def test_like_names_are_different_images(file):
    rows = [{"image": "cat_1.jpg", "caption": "A cat."}, {"image": "dog_1.jpg", "caption": "A dog."}]
    assert read_captions(file(json.dumps(rows)))[0] == {"cat_1.jpg": "A cat.", "dog_1.jpg": "A dog."}


BAD = """{"image_id": 1, "caption": "A dog."}
{"image_id": 2, "caption": null}
{"image_id": 1, "caption": "A cat."}
{"image_id": 3, "caption": "A bus."}
{"caption": "A bus."}
{"image_id": 2, "words": "A bus."}
{"image_id": true, "caption": "A bus."}
{"image_id": 2, "caption": ["A bus.", "A car."]}
{"image_id": 2, "caption": "A bus."
{"image_id": 2, "caption": "A bus."}
"""
PROBLEMS = {
    2: "caption is 'None'; expected text ('' where the model wrote none)",
    3: "image 1 again, first on line 1",
    4: "image_id 3 has no ground truth",
    5: "no image; expected one of the keys image_id, image, file_name, found 'caption'",
    6: "no caption; expected one of the keys caption, text, answer, response, prediction, output, ",
    7: "image_id is True",
    8: "caption is \"['A bus.', 'A car.']\"",
    9: "no JSON",
}


def test_every_unusable_caption_is_named(file):
    with pytest.raises(BadInput) as caught:
        read_captions(file(BAD), known={1, 2})
    assert len(caught.value.problems) == len(PROBLEMS)
    for line, problem in PROBLEMS.items():
        assert f"  line {line}: {problem}" in str(caught.value)
    assert read_captions(file(BAD), known={1, 2}, skip_bad=True) == ({1: "A dog.", 2: "A bus."}, len(PROBLEMS))


def test_objects_on_one_line_are_counted(file):
    rows = [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "A cat."}, {"image_id": 2, "caption": 5}]
    with pytest.raises(BadInput) as caught:
        read_captions(file(json.dumps(rows)))
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "line 1, object 2: image 1 again, first on line 1",
        "line 1, object 3: caption is '5'",
    ]


def test_no_caption_left_is_an_error_even_when_skipping(file):
    with pytest.raises(BadInput, match="no caption is left"):
        read_captions(file('{"image_id": 5, "caption": "A dog."}'), known={1}, skip_bad=True)
    with pytest.raises(BadInput, match="no caption is left"):
        read_captions(file(""))


def test_unfinished_sentences():
    assert drop_unfinished("A dog. A cat. A b") == "A dog. A cat."
    assert drop_unfinished("A dog.\n\nA 3.5 m") == "A dog.\n\nA 3."  # the official script looks no closer
    assert drop_unfinished("A dog") == ""


# One object for all images.

TWO = {42: "A dog.", 7: "Two\ncats."}
LAYOUTS = {
    "the original script's": {
        "overall": {"CIDEr": 0.5},
        "imgToEval": {"42": {"image_id": 42, "caption": "A dog.", "Bleu_1": 0.5}, "7": {"image_id": 7, "caption": "Two\ncats."}},
    },
    "the original script's, without image_id": {
        "overall": {},
        "imgToEval": {"42": {"caption": "A dog."}, "7": {"caption": "Two\ncats."}},
    },
    "id to caption": {"42": "A dog.", "7": "Two\ncats."},
    "name to caption": {"COCO_val2014_000000000042.jpg": "A dog.", "val2014/COCO_val2014_000000000007.jpg": "Two\ncats."},
    "id to row": {"42": {"caption": "A dog."}, "7": {"text": "Two\ncats."}},
    "id to a list of one caption": {"42": ["A dog."], "7": ["Two\ncats."]},
    "id to a list of one row": {"42": [{"caption": "A dog."}], "7": [{"image_id": 7, "caption": ["Two\ncats."]}]},
    "a script's result": {
        "sentences": [
            {"image_id": 42, "caption": "A dog.", "mscoco_gt_words": ["dog"], "metrics": {"CHAIRs": 0}},
            {"image_id": 7, "caption": "Two\ncats."},
        ],
        "overall_metrics": {"CHAIRs": 0.5},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("known", [None, {42: {"dog"}, 7: {"cat"}}])
def test_one_object_for_all_images(file, layout, known):
    assert read_captions(file(LAYOUTS[layout]), known) == (TWO, 0)
    assert read_captions(file(json.dumps(LAYOUTS[layout], indent=2)), known) == (TWO, 0)


def test_names_of_images_without_numbers_are_keys_too(file):
    assert read_captions(file({"cat_1.jpg": "A cat.", "b.png": "A bus."}))[0] == {"cat_1.jpg": "A cat.", "b.png": "A bus."}
    assert read_captions(file({"one": "A cat."}), known={"one": {"cat"}})[0] == {"one": "A cat."}
    # An object of other things is no file of captions.
    with pytest.raises(BadInput, match="line 1: no image; expected one of the keys image_id"):
        read_captions(file({"model": "llava", "prompt": "Describe."}))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"imgToEval": {"42": {"image_id": 43, "caption": "A dog."}}}, "the key '42' and image_id 43 name different images"),
        ({"imgToEval": {"42": {"caption": 5}}}, r"imgToEval\['42'\]: caption is '5'; expected text"),
        ({"imgToEval": {"42": {"Bleu_1": 0.5}}}, r"imgToEval\['42'\]: no caption; expected one of the keys caption, text"),
        ({"42": "A dog.", "43": None}, "'43': caption is 'None'; expected text"),
        ({"42": "A dog.", "042": "A cat."}, "'042': image 42 again, first on line 1, '42'"),
        ({"42": ["A dog.", "A cat."]}, "'42': caption is .*; expected text"),
        ({"42": []}, "'42': caption is .*; expected text"),
        ({"sentences": [{"caption": "A dog."}]}, r"sentences\[0\]: no image"),
        ('{"42": "A dog.", "42": "A cat."}', "key '42' stands twice"),
    ],
)
def test_what_cannot_be_used_in_one_object_is_named(file, content, problem):
    with pytest.raises(BadInput, match=problem):
        read_captions(file(content))


# A row that leaves open which of its values is meant.


def test_several_keys_that_could_be_the_caption(file):
    row = {"image_id": 42, "text": "Describe this image.", "answer": "A dog.", "caption": None}
    path = file([row])
    for skip_bad in (False, True):
        with pytest.raises(BadInput) as caught:
            read_captions(path, skip_bad=skip_bad)
        problem = "text 'Describe this image.' and answer 'A dog.' could be the caption, and differ; expected one. "
        assert f"line 1: {problem}Fix: name its key, as in --caption-key text" in str(caught.value)
    assert read_captions(path, caption_key="answer")[0] == {42: "A dog."}
    assert read_captions(path, caption_key="text")[0] == {42: "Describe this image."}
    with pytest.raises(BadInput, match="no caption; expected the key reply, found 'answer', 'caption', 'image_id', 'text'"):
        read_captions(path, caption_key="reply")
    assert read_captions(file([row | {"text": "A dog."}]))[0] == {42: "A dog."}  # the same twice
    assert read_captions(file([{"image_id": 42, "reply": "A dog."}]), caption_key="reply")[0] == {42: "A dog."}


@pytest.mark.parametrize(
    "row",
    [
        {"image_id": 42, "image": "COCO_val2014_000000000043.jpg"},
        {"image_id": "42", "file_name": "43.jpg"},
        {"image": "cat.jpg", "file_name": "photos/dog.jpg"},
    ],
)
def test_keys_that_name_different_images(file, row):
    path, (first, second) = file([row | {"caption": "A dog."}]), row
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=rf"line 1: {first} .* and {second} .* name different images; .* --image-key {first}"):
            read_captions(path, skip_bad=skip_bad)
    for key, image in row.items():
        ((read, _),) = read_captions(path, image_key=key)[0].items()
        assert str(read) in str(image)


def test_keys_that_name_the_same_image(file):
    row = {"image_id": 42, "image": "val2014/COCO_val2014_000000000042.jpg", "file_name": "COCO_val2014_000000000042.jpg"}
    assert read_captions(file([row | {"caption": "A dog."}]))[0] == {42: "A dog."}
    mine = file([{"image_id": 7, "image": "cat.jpg", "caption": "A cat."}])
    assert read_captions(mine)[0] == {7: "A cat."}
    assert read_captions(mine, known={7: {"cat"}})[0] == {7: "A cat."}
    assert read_captions(mine, known={"cat": {"cat"}})[0] == {"cat": "A cat."}
    assert read_captions(mine, known={7: {"cat"}, "cat": {"cat"}})[0] == {7: "A cat."}
    with pytest.raises(BadInput, match=r"image_id 7 and image 'cat.jpg' have different ground truths"):
        read_captions(mine, known={7: {"dog"}, "cat": {"cat"}})
    assert read_captions(mine, known={7: {"dog"}, "cat": {"cat"}}, image_key="image")[0] == {"cat": "A cat."}


# Empty captions.


def official(captions, truth, scorer):
    """The counts of the official script, in its own order: one loop over the captions, each of which counts."""
    n = hallucinated = mentions = wrong = objects = recalled = 0
    for image, caption in captions.items():
        named = [node for _, node in slow.objects(caption, scorer)[0]]
        misses = [node for node in named if node not in truth[image]]
        mentions += len(named)
        wrong += len(misses)
        n += 1
        hallucinated += bool(misses)
        objects += len(truth[image])
        recalled += len({node for node in named if node in truth[image]})
    return {"chair_s": hallucinated / n, "chair_i": wrong / mentions, "recall": recalled / objects}


@pytest.mark.usefixtures("nltk_data")
@pytest.mark.parametrize("scorer", ["pattern", "wordnet"])
def test_empty_captions_are_scored_as_the_official_script_scores_them(file, scorer):
    truth = ground_truth_coco()
    texts = {226988: "A pizza and a zebra.", 310196: "", 42: " \n", 73: "A person."}
    rows = [{"image_id": image, "caption": text} for image, text in texts.items()]
    captions, n_bad = read_captions(file(rows), truth)
    assert (captions, n_bad) == (texts, 0)
    metrics = score(captions, truth, scorer).metrics
    assert {name: metrics[name] for name in ("chair_s", "chair_i", "recall")} == official(captions, truth, scorer)
    assert (metrics["n"], metrics["n_empty"]) == (4, 2)
    assert metrics["chair_s"] == (1 + (0 if "person" in truth[73] else 1)) / 4
    assert metrics["recall"] < score({i: t for i, t in captions.items() if t.strip()}, truth, scorer).metrics["recall"]


def test_captions_that_are_all_empty_are_an_error(file):
    with pytest.raises(BadInput, match=r"all captions are empty \(2\); expected a word in at least one"):
        read_captions(file([{"image_id": 1, "caption": ""}, {"image_id": 2, "caption": " "}]))


KEYS = ["image_id", "image", "caption", "text", "imgToEval", "sentences", "overall", "42", "7", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats(allow_nan=False) | st.sampled_from(["", "42", "a.jpg", "A dog."]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(content=JSON, skip_bad=st.booleans(), known=st.sampled_from([None, {42: {"dog"}, 7: set()}]))
def test_any_content_is_read_or_refused_by_name(tmp_path_factory, content, skip_bad, known):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        captions, _ = read_captions(path, known, skip_bad)
    except BadInput as error:
        problem = str(error)
    else:
        problem = f"{path}: "
        assert all(isinstance(text, str) for text in captions.values())
        assert known is None or captions.keys() <= known.keys()
    assert problem.startswith(f"{path}: ")


# The command.


def called(*words, **environment):
    return CliRunner().invoke(app, ["score", "chair", *map(str, words)], env=environment)


def test_the_command_scores_and_writes(file, tmp_path):
    captions = file([{"image_id": "COCO_val2014_000000226988.jpg", "caption": "A pizza on a table. Zebras eat and"}])
    out = tmp_path / "out.json"
    done = called(captions, "--scorer", "wordnet", "--ground-truth", "pattern", "--json", out)
    assert done.exit_code == 0
    report = json.loads(out.read_text())
    assert report["metrics"]["chair_i"] == 1 / 3
    assert report["items"] == [
        {
            "image_id": 226988,
            "nodes": ["pizza", "dining table", "zebra"],
            "hallucinated": [["zebra", "zebra"]],
            "chair_i": 1 / 3,
            "chair_s": 1,
            "distinct_chair_i": 1 / 3,
            "absent": 1,
            "recall": 2 / len(ground_truth_coco()[226988]),
            "repeats": 0,
            "unfinished": 1,
            "words": 8,
        }
    ]
    for name in ("chair_i", "distinct_chair_i", "absent", "recall", "repeats", "unfinished", "words"):
        assert f"\n{name}: {report['metrics'][name]:.4f}\n" in f"\n{done.stdout}"
    assert (report["settings"]["scorer"], report["settings"]["unfinished_by"]) == ("wordnet", "text")
    called(captions, "--drop-unfinished", "--json", out)
    assert json.loads(out.read_text())["metrics"]["chair_i"] == 0
    called(captions, "--truncate-words", 2, "--json", out)
    assert json.loads(out.read_text())["items"][0]["nodes"] == ["pizza"]


def unfinished(out, *words):
    """Return image -> unfinished, their share, and how it is known, as the command writes them."""
    done = called(*words, "--json", out)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    of_items = {item["image_id"]: item["unfinished"] for item in report["items"]}
    return of_items, report["metrics"]["unfinished"], report["settings"]["unfinished_by"]


@pytest.mark.parametrize("cut", [(), ("--truncate-words", 2), ("--drop-unfinished",)])
def test_unfinished_is_read_from_the_captions_before_they_are_cut(file, tmp_path, cut):
    texts = {226988: "A pizza. On a table", 310196: "Skis and a man.", 42: "A dog. It is on a bed."}
    rows = [{"image_id": image, "caption": text} for image, text in texts.items()]
    assert unfinished(tmp_path / "out.json", file(rows), *cut) == ({226988: 1, 310196: 0, 42: 0}, 1 / 3, "text")


@pytest.mark.parametrize(("first", "n_finished"), [(True, 2), (1, 1), ("true", 1), (None, 1)])
def test_a_report_says_how_many_rows_tell_whether_they_are_finished(file, tmp_path, first, n_finished):
    rows = [
        {"image_id": 226988, "caption": "A pizza.", "finished": first},
        {"image_id": 42, "caption": "A ski", "finished": True},
    ]
    by = unfinished(tmp_path / "out.json", file([*rows, {"image_id": 310196, "caption": "Skis."}]))[2]
    settings = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["settings"]
    assert (by, settings["n_finished"]) == ("text", n_finished)


@pytest.mark.parametrize("cut", [(), ("--truncate-words", 2), ("--drop-unfinished",)])
def test_unfinished_is_what_the_file_says_of_every_caption(file, tmp_path, cut):
    rows = [{"image_id": 226988, "caption": "A pizza. On", "finished": True}]
    rows += [{"image_id": 310196, "caption": "Skis. Snow.", "finished": False}]
    out = tmp_path / "out.json"
    assert unfinished(out, file(rows), *cut) == ({226988: 0, 310196: 1}, 1 / 2, "finished")
    assert read_caption_file(file(rows)).finished == {226988: True, 310196: False}
    for other in ({}, {"finished": None}, {"finished": 1}, {"finished": "no"}):  # not known of all captions: by their text
        row = {"image_id": 310196, "caption": "Skis. Snow."} | other
        assert unfinished(out, file([rows[0], row]), *cut) == ({226988: 1, 310196: 0}, 1 / 2, "text")
        assert read_caption_file(file([rows[0], row])).finished is None


def test_finished_belongs_to_the_caption_that_is_kept(file):
    rows = [{"image_id": 1, "caption": "A dog.", "finished": False}, {"image_id": 1, "caption": "A cat.", "finished": True}]
    found = read_caption_file(file([*rows, {"image_id": 2, "caption": 5}]), skip_bad=True)
    assert (found.captions, found.finished, found.n_bad) == ({1: "A dog."}, {1: False}, 2)
    by_image = {"1": {"caption": "A dog.", "finished": True}, "2": {"caption": "A cat", "finished": False}}
    for content in (by_image, {"imgToEval": by_image}):
        assert read_caption_file(file(content)).finished == {1: True, 2: False}
    assert read_caption_file(file({"1": "A dog."})).finished is None


def test_bad_input_writes_nothing_and_exits_with_2(file, tmp_path):
    captions, out = file(BAD), tmp_path / "out.json"
    truth = tmp_path / "truth.json"
    truth.write_text('{"1": ["dog"], "2": ["bus"]}')
    done = called(captions, "--ground-truth", truth, "--json", out)
    assert (done.exit_code, out.exists()) == (2, False)
    assert "line 3: image 1 again" in done.stderr
    done = called(captions, "--ground-truth", truth, "--json", out, "--skip-bad")
    assert done.exit_code == 0
    assert json.loads(out.read_text())["settings"]["n_bad"] == len(PROBLEMS)
    before = captions.read_bytes()
    for words, message in (
        ((captions, "--ground-truth", truth, "--skip-bad", "--json", captions), "is the file that is read"),
        ((captions, "--ground-truth", truth, "--skip-bad", "--json", tmp_path), "is a folder; expected the name of a file"),
        ((tmp_path / "absent.json",), "absent.json cannot be read (No such file or directory)"),
        ((captions, "--scorer", "nltk"), "unknown CHAIR scorer 'nltk'"),
    ):
        done = called(*words)
        assert done.exit_code == 2
        assert message in done.stderr
    assert captions.read_bytes() == before


def test_the_command_takes_the_truth_of_the_scorer(file, tmp_path):
    captions, out = file([{"image_id": 226988, "caption": "A pizza."}]), tmp_path / "out.json"
    for scorer in ("pattern", "fixed"):
        done = called(captions, "--scorer", scorer, "--json", out, PRUNEHAL_BENCHMARKS=None)
        assert done.exit_code == 0
        assert "ground_truth=['pattern']" in done.stdout
        assert json.loads(out.read_text())["settings"]["ground_truth"] == ["pattern"]
    done = called(captions, "--json", out, PRUNEHAL_BENCHMARKS=None)  # a fresh install, no option
    assert (done.exit_code, json.loads(out.read_text())["settings"]["scorer"]) == (0, "pattern")
    before = out.read_bytes()
    done = called(captions, "--scorer", "wordnet", "--json", out, PRUNEHAL_BENCHMARKS=None)
    assert (done.exit_code, out.read_bytes()) == (2, before)
    for part in (
        "chair_gt_wordnet_diff.json.gz",
        "PRUNEHAL_BENCHMARKS is not set",
        "--ground-truth pattern",
        "captions_val2014.json",
    ):
        assert part in done.stderr.replace("\n", " ")
    done = called(captions, "--ground-truth", "coco")
    assert (done.exit_code, "expected 'pattern' (the shipped one) or 'wordnet'" in done.stderr) == (2, True)


def test_the_command_names_the_key_to_take(file):
    captions = file([{"image_id": 226988, "text": "A zebra.", "answer": "A pizza."}])
    done = called(captions)
    assert (done.exit_code, "--caption-key" in done.stderr) == (2, True)
    assert "chair_i: 0.0000" in called(captions, "--caption-key", "answer").stdout
    assert "chair_i: 1.0000" in called(captions, "--caption-key", "text").stdout
    captions = file([{"image_id": 226988, "image": "COCO_val2014_000000310196.jpg", "caption": "Skis."}])
    assert "--image-key image" in called(captions).stderr
    assert "chair_i: 1.0000" in called(captions, "--image-key", "image_id").stdout
    assert "chair_i: 0.0000" in called(captions, "--image-key", "image").stdout


def test_prompts_for_a_judge_name_the_key_too(file, tmp_path):
    rows = [{"image_id": 42, "text": "Describe.", "answer": ""}, {"image_id": 7, "text": "Describe.", "answer": "A pizza."}]
    captions, out = file(rows), tmp_path / "prompts.jsonl"
    words = ["judge-prompts", "pairwise", str(captions), str(captions), str(out)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "--caption-key" in done.stderr, out.exists()) == (2, True, False)
    assert CliRunner().invoke(app, [*words, "--caption-key", "answer"]).exit_code == 0
    asked = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(prompt["image_id"], prompt["order"]) for prompt in asked] == [(42, "ab"), (42, "ba"), (7, "ab"), (7, "ba")]


def test_captions_that_a_cut_leaves_empty_are_counted(file):
    captions = file([{"image_id": 226988, "caption": "A pizza"}, {"image_id": 310196, "caption": "Skis. And"}])
    done = called(captions, "--drop-unfinished")
    assert "n: 2\n" in done.stdout
    assert "n_empty: 1\n" in done.stdout
    done = called(captions, "--truncate-words", 0)
    assert (done.exit_code, "no caption keeps a word" in done.stderr) == (2, True)

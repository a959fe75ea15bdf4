"""The ground truths of CHAIR: COCO's two, the user's files, the testbed; what belongs to which scorer, and what is refused."""

import gzip
import json
import os
from pathlib import Path

import pytest
import reference_chair as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from prunehal.benchmarks import ground_truth_coco, ground_truth_from_coco, load_ground_truth, load_scorer, score, truth_of_scorer
from prunehal.benchmarks.chair.released import (
    DECODINGS,
    MODELS,
    met,
    published_scores,
    released_captions,
    scores_with_wordnet_truth,
)
from prunehal.files.reading import BadInput
from prunehal.testbed.world.scenes import coco_instances, scene


@pytest.fixture
def benchmarks():
    """The folder of the benchmarks' own files, which are not shipped."""
    if not os.environ.get("PRUNEHAL_BENCHMARKS"):
        pytest.skip("PRUNEHAL_BENCHMARKS is not set")
    return Path(os.environ["PRUNEHAL_BENCHMARKS"])


@pytest.fixture
def differing(tmp_path, monkeypatch):
    """Return a function that writes a file of changes, made up, and makes it the one of the wordnet truth."""

    def make(content):
        path = tmp_path / "chair" / "chair_gt_wordnet_diff.json.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else gzip.compress(json.dumps(content).encode()))
        monkeypatch.setenv("PRUNEHAL_BENCHMARKS", str(tmp_path))
        return path

    return make


# COCO's two truths.


def test_the_shipped_truth():
    pattern, testbed = load_ground_truth(), load_ground_truth(["testbed"])
    assert len(pattern) == 123_287
    assert sum(len(objects) for objects in pattern.values()) == 393_178
    assert pattern[226988] >= {"person", "pizza"}
    assert 1.5 not in pattern
    assert "226988" not in pattern
    first = scene("validation", 4)
    assert testbed[first.image_id] == set(first.names)
    assert 17 not in testbed
    assert load_ground_truth(["testbed"])[first.image_id] == {
        coco_instances([first])["categories"][i]["name"]
        for i, c in enumerate(coco_instances([first])["categories"])
        if c["id"] in {a["category_id"] for a in coco_instances([first])["annotations"]}
    }


def test_the_wordnet_truth(benchmarks):
    pattern, wordnet = ground_truth_coco("pattern"), ground_truth_coco("wordnet")
    assert list(wordnet) == list(pattern)
    assert sum(len(objects) for objects in wordnet.values()) == 394_680
    assert sum(wordnet[image] != pattern[image] for image in pattern) == 1_741
    assert (pattern[16164] - wordnet[16164], wordnet[383780] - pattern[383780]) == ({"person"}, {"bird"})
    twin = slow.wordnet_truth(benchmarks / "chair" / "chair_gt_wordnet_diff.json.gz")
    assert dict(wordnet.items()) == twin


def test_the_truths_are_what_the_scorers_make_of_cocos_own_files(benchmarks):
    files = [benchmarks / "coco" / f"{kind}_val2014_subset80.json" for kind in ("instances", "captions")]
    for scorer in ("pattern", "wordnet"):
        built, known = ground_truth_from_coco(*files, scorer), ground_truth_coco(scorer)
        assert len(built) == 80
        assert built == {image: known[image] for image in built}
        united = load_ground_truth(files, scorer)  # under the file names as well
        assert {image: united[image] for image in built} == built


@pytest.mark.usefixtures("nltk_data")
def test_what_a_scorer_finds_in_captions_is_what_its_truth_holds():
    said = {"annotations": [{"image_id": 1, "caption": "Two men seated on a bus"}, {"image_id": 2, "caption": "Vases, a tie"}]}
    none = {"images": [{"id": 1}, {"id": 2}], "annotations": [], "categories": []}
    for scorer in ("pattern", "wordnet"):
        twin = {row["image_id"]: {node for _, node in slow.objects(row["caption"], scorer)[0]} for row in said["annotations"]}
        assert ground_truth_from_coco(none, said, scorer) == twin
    assert ground_truth_from_coco(none, said, "pattern")[1] == {"person"}
    assert ground_truth_from_coco(none, said, "wordnet")[1] == {"bus", "chair"}


def test_changes_are_applied_and_only_they(differing):
    path = differing({"310196": {"add": ["dog", "bus"], "drop": ["skis"]}, "42": {"add": [], "drop": []}})
    pattern, wordnet = ground_truth_coco(), ground_truth_coco("wordnet")
    assert wordnet[310196] == (pattern[310196] | {"dog", "bus"}) - {"skis"}
    assert {image for image in pattern if pattern[image] != wordnet[image]} == {310196}
    assert dict(wordnet.items()) == slow.wordnet_truth(path)
    assert load_ground_truth([], "wordnet")[310196] == wordnet[310196]
    assert load_ground_truth(["wordnet"], "pattern")[310196] == wordnet[310196]
    assert load_ground_truth(["pattern"], "wordnet")[310196] == pattern[310196]
    result = score({310196: "A dog by a bus."}, load_ground_truth([], "wordnet"), "wordnet")
    assert result.metrics["chair_i"] == 0


def test_each_scorer_has_its_own_truth(monkeypatch):
    monkeypatch.delenv("PRUNEHAL_BENCHMARKS", raising=False)
    for scorer in ("pattern", "fixed"):
        assert truth_of_scorer(load_scorer(scorer)) == truth_of_scorer(scorer) == "pattern"
        assert len(load_ground_truth([], scorer)) == 123_287
    assert truth_of_scorer(load_scorer("wordnet")) == truth_of_scorer("wordnet") == "wordnet"
    with pytest.raises(FileNotFoundError, match=r"_wordnet_diff.json.gz, and PRUNEHAL_BENCHMARKS is not set.*captions_val"):
        load_ground_truth([], "wordnet")


def test_the_file_of_changes_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEHAL_BENCHMARKS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/chair/chair_gt_wordnet_diff.json.gz, which does not exist;.*Fix: "):
        ground_truth_coco("wordnet")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x1f\x8b torn", "it cannot be unpacked"),
        (b'{"42": {"add": ', "no JSON"),
        ([], "expected an object"),
        ({"42": ["dog"]}, r"'42' is \['dog'\]; expected an object in braces"),
        ({"42": {"add": ["dog"]}}, "no drop in '42'"),
        ({"42": {"add": [1], "drop": []}}, r"'42'.add\[0\] is 1; expected text"),
        ({"42": {"add": [], "drop": [], "swap": []}}, "unknown field `swap`"),
        ({"1": {"add": ["dog"], "drop": []}}, "image 1: add .* expected changes of the shipped table"),
        ({"310196": {"add": ["skis"], "drop": []}}, r"it holds \['person', 'skis', 'snowboard'\]"),
        ({"310196": {"add": [], "drop": ["dog"]}}, "image 310196: .* drop .*'dog'"),
        ({"310196": {"add": ["doggo"], "drop": []}}, "image 310196: add .*'doggo'"),
    ],
)
def test_a_damaged_file_of_changes_is_named(differing, content, problem):
    path = differing(content)
    with pytest.raises(BadInput, match=rf"(?s){path}: 1 problem\n.*{problem}"):
        ground_truth_coco("wordnet")


def test_names_of_truths_that_are_refused():
    refused = r"'coco': COCO has two ground truths .* 'pattern' \(the shipped one\) or 'wordnet'"
    with pytest.raises(ValueError, match=refused):
        ground_truth_coco("coco")
    for names in (["coco"], ["x", "coco"], ["testbed", "coco"]):
        with pytest.raises(ValueError, match=refused):
            load_ground_truth(names)
    with pytest.raises(ValueError, match="'pattern', 'wordnet': pattern and wordnet are two truths of the same images"):
        load_ground_truth(["pattern", "wordnet"])
    with pytest.raises(ValueError, match="the testbed's is complete; expected it alone"):
        load_ground_truth(["testbed", "pattern"])


# The published numbers.


def test_the_published_numbers_with_each_truth(benchmarks):
    captions, truths = released_captions(), {name: ground_truth_coco(name) for name in ("pattern", "wordnet")}
    assert set(captions) == {(model, decoding) for model in MODELS for decoding in DECODINGS}
    wanted = {("pattern", "wordnet"): 23, ("pattern", "pattern"): 6, ("wordnet", "wordnet"): 11, ("wordnet", "pattern"): 6}
    for (name, scorer), n_met in wanted.items():
        results = {key: score(texts, truths[name], scorer).metrics for key, texts in captions.items()}
        scores = {key: (100 * metrics["chair_s"], 100 * metrics["chair_i"]) for key, metrics in results.items()}
        assert met(scores) == n_met, (name, scorer)
        if (name, scorer) == ("wordnet", "wordnet"):
            assert scores == scores_with_wordnet_truth()
    for (model, _), texts in captions.items():
        differ = sum(truths["pattern"][image] != truths["wordnet"][image] for image in texts)
        assert differ == (8 if model == "instructblip" else 9)


def test_met_counts_what_rounds_to_the_published_number():
    published = published_scores()
    assert met({key: (a + 0.04, b - 0.04) for key, (a, b) in published.items()}) == 24
    assert met({key: (a, b + 0.06) for key, (a, b) in published.items()}) == 12


# The user's files.

INSTANCES = {
    "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}],
    "categories": [{"id": 18, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 18}],
}
SAID = {
    "images": [{"id": 3}],
    "annotations": [{"image_id": 1, "caption": "Buses"}, {"image_id": 2, "caption": "A puppy by a bus"}],
}
TABLE = {"nodes": ["dog", "cat"], "images": {"1": [1], "4": [0, 1]}}


def test_ground_truth_unites_files(tmp_path):
    names = []
    for name, content in {
        "instances": INSTANCES,
        "captions": SAID,
        "table": TABLE,
        "plain": {"1": ["cup"], "photo": ["cat"]},
    }.items():
        names.append(tmp_path / f"{name}.json")
        names[-1].write_text(json.dumps(content))
    united = {1: {"dog", "bus", "cat", "cup"}, 2: {"dog", "bus"}, 3: set(), 4: {"dog", "cat"}, "photo": {"cat"}}
    aliases = {"one.jpg": {"dog"}, "one": {"dog"}}
    assert load_ground_truth(names) == united | aliases
    # That scorer misses "bus".
    assert load_ground_truth(names[:2], "pattern") == {1: {"dog", "bus"}, 2: {"dog"}, 3: set()} | aliases


def test_names_and_numbers_of_images_meet(tmp_path):
    (tmp_path / "a.json").write_text('{"42": ["dog"], "COCO_val2014_000000000007.jpg": ["cup"]}')
    (tmp_path / "b.json").write_text('{"042": ["cat"], "7": ["cat"]}')
    assert load_ground_truth([tmp_path / "a.json", tmp_path / "b.json"]) == {42: {"dog", "cat"}, 7: {"cup", "cat"}}
    both = load_ground_truth(["pattern", tmp_path / "a.json"])
    assert both[42] == ground_truth_coco()[42] | {"dog"}
    assert len(both) >= 123_287


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"annotations": [{"image_id": 1}]}, r"no caption in annotations\[0\]"),
        ({"annotations": [{"image_id": 1, "caption": None}]}, r"annotations\[0\].caption is None; expected text"),
        ({"annotations": [{"image_id": [1], "caption": "A dog."}]}, r"annotations\[0\].image_id is \[1\]"),
        ({"annotations": 5}, "annotations is 5; expected a list"),
        ({"categories": [{"name": "dog"}], "images": [], "annotations": []}, r"no id in categories\[0\]"),
        (INSTANCES | {"annotations": [{"image_id": 1, "segments_info": []}]}, r"no category_id in annotations\[0\]"),
        (INSTANCES | {"annotations": [{"image_id": 1, "category_id": 99}]}, "image 1, has category_id 99; expected an id listed"),
        (INSTANCES | {"categories": [{"id": 18, "name": "wombat"}]}, "unknown categories 'wombat'; expected COCO category names"),
        ({"nodes": ["dog"], "images": [1]}, r"images is \[1\]; expected an object in braces"),
        ({"nodes": ["dog"], "images": {"1": [7]}}, "image 1 has object 7, expected 0 to 0"),
        ({"nodes": ["dog"], "images": {"1": [-1]}}, "image 1 has object -1, expected 0 to 0"),
        ({"nodes": ["doggo"], "images": {"1": [0]}}, "unknown categories 'doggo'"),
        ({"1": [["dog"]]}, r"'1'\[0\] is \['dog'\]; expected text, in COCO instances, COCO captions"),
        ({"1": ["doggo"]}, "unknown categories 'doggo'"),
        ({"a": 1}, "'a' is 1; expected a list, in COCO instances, COCO captions, the layout of the shipped table, {image_id: "),
        ([{"a": []}, {"b": []}], "it holds .*; expected one object, COCO instances"),
        ({}, "it holds {}; expected one object"),
        ('{"images": [', "line 1: no JSON"),
        ('{"1": ["dog"], "1": ["cat"]}', "key '1' stands twice"),
    ],
)
def test_broken_ground_truth_is_named(file, content, problem):
    path = file(content, "truth.json")
    with pytest.raises(BadInput, match=rf"{path}: 1 problem\n  .*{problem}"):
        load_ground_truth([path])


COCO = {
    "images": [{"id": 1}, {"id": 2}, {"id": 3}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 6, "name": "bus"}],
    "annotations": [
        {"image_id": 1, "category_id": 18},
        {"image_id": 1, "category_id": 18},
        {"image_id": 2, "category_id": 6},
    ],
}
REFERENCES = {"annotations": [{"image_id": 1, "caption": "A cat on a bed"}, {"image_id": 3, "caption": "Men by a stop sign"}]}


def test_ground_truth_unites_instances_and_captions(tmp_path):
    assert ground_truth_from_coco(COCO) == {1: {"dog"}, 2: {"bus"}, 3: set()}
    united = {1: {"dog", "cat", "bed"}, 2: {"bus"}, 3: {"person", "stop sign"}}
    assert ground_truth_from_coco(COCO, REFERENCES) == united
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    (tmp_path / "captions.json").write_text(json.dumps(REFERENCES))
    assert ground_truth_from_coco(tmp_path / "instances.json", str(tmp_path / "captions.json")) == united


def test_parsed_content_and_files_are_named(file, tmp_path):
    with pytest.raises(BadInput, match="the COCO instances: 1 problem\n  no categories; expected it, found "):
        ground_truth_from_coco({"images": [], "annotations": []})
    with pytest.raises(BadInput, match=r"the COCO captions: 1 problem\n  no caption in annotations\[0\]"):
        ground_truth_from_coco(COCO, {"annotations": [{"image_id": 1}]})
    path = file(COCO, "instances.json")
    with pytest.raises(BadInput, match=rf"{path}: 1 problem\n  no caption in annotations\[0\]"):
        ground_truth_from_coco(path, path)
    with pytest.raises(OSError, match=r"absent\.json cannot be read"):
        ground_truth_from_coco(tmp_path / "absent.json")


KEYS = ["images", "annotations", "categories", "nodes", "id", "image_id", "category_id", "name", "caption", "file_name", "42"]
LEAVES = st.none() | st.booleans() | st.integers(-2, 42) | st.sampled_from(["dog", "A dog.", "42", "a.jpg"])
CONTENT = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(content=CONTENT)
def test_any_content_is_a_ground_truth_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_truth.json"
    path.write_text(json.dumps(content))
    try:
        truth = load_ground_truth([path])
    except BadInput as error:
        problem = str(error)
    else:
        problem = f"{path}: 1 problem"
        assert set().union(*truth.values()) <= set(load_scorer("fixed").nodes.values())
    assert problem.startswith(f"{path}: ")

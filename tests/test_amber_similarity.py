"""How alike two words are: spaCy's vectors, vectors of one's own, functions, and what is said when they cannot be had."""

import sys
import warnings
from types import SimpleNamespace

import pytest

from prunehal.benchmarks.amber.score import score_captions
from prunehal.benchmarks.amber.similarity import load_similarity


def letters_in_common(word, other):
    return len(set(word) & set(other)) / len(set(word))


def test_settings_name_the_similarity():
    assert score_captions({1: "A car."}).settings == {"benchmark": "AMBER generative", "similarity": "exact", "threshold": 0.8}
    assert score_captions({1: "A car."}, letters_in_common).settings["similarity"] == "letters_in_common"


def test_pairs_are_remembered():
    asked = []

    def similarity(word, other):
        asked.append((word, other))
        return 0.0

    score_captions(dict.fromkeys(range(1, 30), "A car, a bus and a car."), similarity)
    assert len(asked) == len(set(asked)) > 100


def test_vectors(file):
    name, similar = load_similarity(file({"a": [3, 4], "b": [4, 3], "c": [0, 0], "d": [6, 8]}, "v.json"))
    assert name.endswith("v.json")
    assert similar("a", "b") == pytest.approx(24 / 25)
    assert similar("a", "d") == pytest.approx(1)
    assert (similar("a", "c"), similar("c", "c"), similar("a", "missing"), similar("missing", "missing")) == (0, 0, 0, 0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_vectors_in_the_encodings_that_people_have(tmp_path, encoding):
    (tmp_path / "v.json").write_text('{"a": [3, 4], "b": [4, 3]}', encoding=encoding)
    assert load_similarity(tmp_path / "v.json")[1]("a", "b") == pytest.approx(24 / 25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"v\.json: 1 problem\n  line 1: no JSON"),
        ('{\n"a": [1],\n"b": [1}', r"v\.json: 1 problem\n  line 3: no JSON"),
        ([1], r"it is \[1\]; expected an object in braces"),
        ({}, r"v\.json: 1 problem\n  it holds no word; expected a table \{word: \[numbers\]\}"),
        ("[" * 100000, r"v\.json: 1 problem\n  it is nested too deeply"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", r"v\.json: 1 problem\n"),
        ('{"a": [1], "a": [2]}', r"v\.json: 1 problem\n  key 'a' stands twice"),
        ('{"a": [1' + "0" * 400 + "]}", r"v\.json: 1 problem\n"),
        ('{"a": [true]}', r"'a'\[0\] is True; expected a number"),
        ({"a": [1, 2], "b": [1]}, r"'a' has 2 numbers and 'b' 1; expected vectors of one length"),
        ({"a": [1, "2"]}, r"'a'\[1\] is '2'; expected a number"),
        ({"a": []}, "the vector of 'a' is"),
        ('{"a": [NaN]}', "the vector of 'a' is"),
    ],
)
def test_bad_vectors_are_named(file, content, message):
    with pytest.raises(ValueError, match=message):
        score_captions({1: "A car."}, file(content, "v.json"))


class Doc:
    """What the fake spaCy makes of a word."""

    def __init__(self, word):
        self.word = word

    def similarity(self, other):
        warnings.warn("no vector", UserWarning, stacklevel=1)
        return 0.95 if {self.word, other.word} == {"car", "street"} else 0.1


def test_spacy(monkeypatch):
    loaded, parsed = [], []

    def load(name):
        loaded.append(name)
        return lambda word: parsed.append(word) or Doc(word)

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = score_captions({1: "A car, a bus and a car."}, "spacy")
    assert report.items[0]["covered"] == ["road"]
    assert report.items[0]["hallucinated"] == ["bus"]
    assert report.settings["similarity"] == "spacy/en_core_web_lg"
    assert loaded == ["en_core_web_lg"]
    assert len(parsed) == len(set(parsed))


def test_without_spacy_or_its_model_one_error_says_what_to_do(monkeypatch):
    match = (
        r"similarity='spacy' needs spaCy and its model en_core_web_lg .*pip install spacy.*spacy download en_core_web_lg.*'exact'"
    )
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=match):
        score_captions({1: "A car."}, "spacy")

    def load(name):
        raise OSError("[E050] Can't find model")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ValueError, match=match):
        score_captions({1: "A car."}, "spacy")

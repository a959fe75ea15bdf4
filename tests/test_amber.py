"""AMBER against captions and answers scored by hand, and against a literal, loop-written twin of the official script."""

import gzip
import json
import random

import pytest

from prunehal.benchmarks.amber.files import annotations, associations, initial_counters, safe_words
from prunehal.benchmarks.amber.score import nouns, score_captions
from prunehal.files.paths import data_path

LISTED = sorted({*associations(), *(word for words in associations().values() for word in words)})
PERCENT = ("chair", "cover", "hal", "cog")


def twin_of_captions(responses, similar, threshold=0.8):
    """Score captions by nltk and plain lists, flag by flag, in the order of the official script."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    relation = json.loads(data_path("amber", "relation.json").read_text())
    records = json.loads(gzip.decompress(data_path("amber", "annotations.json.gz").read_bytes()))
    safe_file = data_path("amber", "safe_words.txt").read_text().split("\n")
    every = []
    for word in relation:
        every.append(word)
        every += relation[word]
    wrong = named = covered = clean = 0
    n_nouns, n_named, n_covered, n_captions = 0.001, 0.001, 0.001, 0.001
    for number, response in responses.items():
        record = records[number - 1]
        kept = []
        for word, tag in nltk.pos_tag(nltk.word_tokenize(response)):
            if tag[:2] == "NN" and WordNetLemmatizer().lemmatize(word) in every:
                kept.append(WordNetLemmatizer().lemmatize(word))
        lists, owners, flags = {}, {}, {}
        for part in ("truth", "hallu"):
            lists[part], owners[part] = [], []
            for place, word in enumerate(record[part]):
                for other in relation[word]:
                    lists[part].append(other)
                    owners[part].append(place)
            for place, word in enumerate(record[part]):
                lists[part].append(word)
                owners[part].append(place)
            flags[part] = [0] * len(record[part])
        bad = [0] * len(kept)
        for k, noun in enumerate(kept):
            if noun in safe_file:
                continue
            if noun in lists["truth"]:
                flags["truth"][owners["truth"][lists["truth"].index(noun)]] = 1
                continue
            if noun in lists["hallu"]:
                flags["hallu"][owners["hallu"][lists["hallu"].index(noun)]] = 1
            for j, word in enumerate(lists["hallu"]):
                if similar(noun, word) > threshold:
                    flags["hallu"][owners["hallu"][j]] = 1
                    break
            fine = False
            for j, word in enumerate(lists["truth"]):
                if similar(noun, word) > threshold:
                    fine = True
                    flags["truth"][owners["truth"][j]] = 1
                    break
            if not fine:
                bad[k] = 1
        wrong, n_nouns = wrong + sum(bad), n_nouns + len(bad)
        covered, n_covered = covered + sum(flags["truth"]), n_covered + len(flags["truth"])
        named, n_named = named + sum(flags["hallu"]), n_named + len(flags["hallu"])
        clean, n_captions = clean + (sum(bad) == 0), n_captions + 1
    return {
        "chair": round(wrong / n_nouns * 100, 1),
        "cover": round(covered / n_covered * 100, 1),
        "hal": round(100 - clean / n_captions * 100, 1),
        "cog": round(named / n_named * 100, 1),
    }


def random_captions(seed, n):
    """Captions made of truth, hallu, associated, safe and other words; singular, plural and capital; with verbs between."""
    rng = random.Random(seed)
    captions = {}
    for number in rng.sample(range(1, 1005), n):
        record = annotations()[number]
        near = [word for part in ("truth", "hallu") for own in record[part] for word in (own, *associations()[own])]
        words = []
        for _ in range(rng.randint(1, 14)):
            word = rng.choice(
                rng.choice([record["truth"], record["hallu"], near, LISTED, sorted(safe_words()), ["idea", "wombat"]])
            )
            word = rng.choice([word, word, f"{word}s", word.capitalize(), f"{word}-like"])
            words.append(
                rng.choice(["a", "the", "two", "they", "some red"]) + " " + word + rng.choice(["", "", ",", ".", " runs", "'s"])
            )
        captions[number] = " ".join(words)
    return captions


def by_letters(word, other):
    """A similarity with many values on both sides of the threshold, that is not symmetric."""
    return len(set(word) & set(other)) / len(set(word))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("similarity", "similar"), [("exact", lambda a, b: a == b), (by_letters, by_letters)], ids=["exact", "own"]
)
def test_captions_equal_the_twin(seed, similarity, similar, nltk_data):
    captions = random_captions(seed, 25)
    metrics = score_captions(captions, similarity).metrics
    assert {name: metrics[name] for name in PERCENT} == twin_of_captions(captions, similar)
    assert 0 < metrics["n_hallucinated"] < metrics["n_nouns"]
    assert 0 < metrics["n_named"] < metrics["n_hallu"]


def test_captions_equal_the_twin_with_vectors(file, nltk_data):
    rng = random.Random(3)
    # Few directions, so that many pairs are near; some words are missing.
    table = {word: [rng.choice([-1, 0, 1]) + rng.random() / 4 for _ in range(3)] for word in LISTED if rng.random() < 0.8}

    def cosine(a, b):
        if a not in table or b not in table:
            return 0
        dot = sum(x * y for x, y in zip(table[a], table[b], strict=True))
        return dot / (sum(x * x for x in table[a]) * sum(x * x for x in table[b])) ** 0.5

    path, captions = file(table, "vectors.json"), random_captions(9, 40)
    report = score_captions(captions, path)
    assert {name: report.metrics[name] for name in PERCENT} == twin_of_captions(captions, cosine)
    assert report.metrics["n_hallucinated"] < score_captions(captions).metrics["n_hallucinated"]
    assert report.settings["similarity"] == str(path)
    lax = score_captions(captions, path, threshold=0.2)
    assert {name: lax.metrics[name] for name in PERCENT} == twin_of_captions(captions, cosine, 0.2)


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("Two dogs run. A dog and a Cat.", ["dog", "dog"]),  # the case is kept, and "Cat" is not listed
        ("A TV near a tv", ["TV"]),
        ("The people walk.", ["people"]),
        ("They walk and dog me.", []),  # no noun
        ("Women and men", ["men"] * ("men" in LISTED)),
        ("skies over leaves", ["sky", "leaf"]),
        ("A wombat", []),
        ("...", []),
    ],
)
def test_nouns_by_hand(response, kept):
    assert nouns(response) == [word for word in kept if word in LISTED]


# Image 1 holds sky, forest (tree, leave, bush), grass (ground), person (people, ..., man), lake, mountain, road (path, street,
# ground); people imagine a cloud, sun, bird, dog or flower.
def item(response, number=1, **options):
    return score_captions({number: response}, **options).items[0]


def test_caption_by_hand():
    found = item("A person and a man sit by a lake near trees. A dog, a car and a second dog. The camera shines.")
    assert found == {
        "id": 1,
        "nouns": ["person", "man", "lake", "tree", "dog", "car", "dog", "camera"],
        "hallucinated": ["dog", "car", "dog"],
        "covered": ["forest", "person", "lake"],
        "named": ["dog"],
    }
    metrics = score_captions(
        {1: "A person and a man sit by a lake near trees. A dog, a car and a second dog. The camera shines."}
    ).metrics
    assert metrics["chair_exact"] == 3 / (0.001 + 8) * 100  # the camera is never judged, and counts below the line
    assert metrics["cover_exact"] == 3 / (0.001 + 7) * 100
    assert metrics["cog_exact"] == 1 / (0.001 + 5) * 100
    assert metrics["hal_exact"] == 100 - 0 / 1.001 * 100
    assert [metrics[name] for name in PERCENT] == [37.5, 42.9, 100.0, 20.0]
    counts = {name: metrics[name] for name in metrics if name.startswith("n")}
    assert counts == {
        "n": 1, "n_empty": 0, "n_hal": 1, "n_nouns": 8, "n_hallucinated": 3, "n_truth": 7, "n_covered": 3, "n_hallu": 5,
        "n_named": 1,
    }  # fmt: skip


def test_denominators_begin_at_a_thousandth():
    metrics = score_captions(dict.fromkeys(range(1, 101), "Nothing.")).metrics
    assert metrics["hal_exact"] == 100 - 100 / 100.001 * 100
    assert (metrics["hal"], metrics["chair"], metrics["cover"], metrics["cog"]) == (0.0, 0.0, 0.0, 0.0)
    assert score_captions({1: "A car."}).metrics["chair"] == 99.9
    assert {name[-4:]: value for name, value in initial_counters().items()} == {"_num": 0.001, "core": 0}


def test_a_word_covers_the_first_truth_word_that_it_stands_for():
    assert item("The ground")["covered"] == ["grass"]  # not road, whose association it is too
    # Image 5 holds person and child, and "person" is an association of child: that comes before the word itself.
    assert annotations()[5]["truth"][:4] == ["person", "sea", "beach", "child"]
    assert item("A person", 5)["covered"] == ["child"]
    assert item("A man", 5)["covered"] == ["person"]


def test_a_truth_word_that_is_listed_twice_is_covered_once():
    assert annotations()[2]["truth"].count("ship") == 2
    report = score_captions({2: "A ship and a ship."})
    assert (report.metrics["n_covered"], report.metrics["n_truth"]) == (1, 10)
    assert report.items[0]["covered"] == ["ship"]


def test_a_word_that_is_truth_and_hallu_is_truth():
    assert "tree" in annotations()[18]["truth"]
    assert "tree" in annotations()[18]["hallu"]
    found = item("A tree", 18)
    assert (found["covered"], found["named"], found["hallucinated"]) == (["tree"], [], [])


def test_similar_words():
    def like(pairs):
        return lambda word, other: 0.9 * ((word, other) in pairs)

    # similar to a truth word: covered and no hallucination; "car" is in no list of image 1
    found = item("A car", similarity=like({("car", "street")}))
    assert (found["hallucinated"], found["covered"], found["named"]) == ([], ["road"], [])
    # hallu, and similar to a truth word: no hallucination, but named
    found = item("A dog", similarity=like({("dog", "man")}))
    assert (found["hallucinated"], found["covered"], found["named"]) == ([], ["person"], ["dog"])
    # hallu, and similar to an earlier hallu word: both are named, and the noun is hallucinated
    found = item("A dog", similarity=like({("dog", "bird"), ("dog", "dog"), ("dog", "flower")}))
    assert (found["hallucinated"], found["covered"], found["named"]) == (["dog"], [], ["bird", "dog"])
    # truth words are never compared
    found = item("A lake", similarity=like({("lake", "dog"), ("lake", "sky")}))
    assert (found["hallucinated"], found["covered"], found["named"]) == ([], ["lake"], [])
    # not similar at the threshold itself
    assert item("A car", similarity=lambda word, other: 0.8)["hallucinated"] == ["car"]
    assert item("A car", similarity=lambda word, other: 0.8, threshold=0.79)["covered"] == ["forest"]


def test_a_true_noun_said_again_lowers_chair_alone(nltk_data):
    """CHAIR is AMBER's own and counts mentions; Cover, Hal and Cog count words and captions."""
    once, again = (score_captions({1: f"A person by a lake. A car.{more}"}).metrics for more in ("", " A lake." * 10))
    assert (once["chair"], again["chair"]) == (33.3, 7.7)
    assert (again["n_nouns"], again["n_hallucinated"]) == (13, 1)
    for name in ("cover_exact", "hal_exact", "cog_exact"):
        assert again[name] == once[name]
    captions = {1: "A person by a lake. A car. A lake. A lake."}
    found = score_captions(captions).metrics
    assert {name: found[name] for name in PERCENT} == twin_of_captions(captions, lambda a, b: a == b)


def test_an_empty_caption_is_a_caption(nltk_data):
    """The official script finds no noun in it: nothing hallucinated, nothing of the truth covered."""
    captions = {1: "A person by a lake. A car.", 2: "", 5: " \n"}
    metrics = score_captions(captions).metrics
    assert {name: metrics[name] for name in PERCENT} == twin_of_captions(captions, lambda a, b: a == b)
    n_truth = sum(len(annotations()[number]["truth"]) for number in captions)
    assert metrics["cover_exact"] == 2 / (0.001 + n_truth) * 100
    assert metrics["hal_exact"] == 100 - 2 / 3.001 * 100
    assert (metrics["n"], metrics["n_empty"], metrics["n_hal"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("responses", "options", "message"),
    [
        ({}, {}, "there are no responses"),
        ({0: "A car."}, {}, "unknown id 0; expected a number from 1 to 15220"),
        ({"1": "A car."}, {}, "unknown id '1'"),
        ({True: "A car."}, {}, "unknown id True"),
        ({1005: "A car."}, {}, "id 1005 is discriminative; expected a generative id, from 1 to 1004"),
        ({1: None}, {}, "response to id 1 is None; expected text"),
        ({1: " \n", 2: ""}, {}, "all 2 captions are empty; expected a word in at least one"),
        ({1: "A car."}, {"similarity": "exakt"}, "unknown similarity 'exakt'; expected exact, spacy, or a JSON file"),
        ({1: "A car."}, {"threshold": float("nan")}, "threshold=nan: expected a number from -1 to 1"),
        ({1: "A car."}, {"threshold": 80}, "threshold=80: expected"),
    ],
)
def test_captions_name_what_is_wrong(responses, options, message):
    with pytest.raises(ValueError, match=message):
        score_captions(responses, **options)

"""CHAIR against captions scored by hand: the words found, the corpus scores, the ground truth, the truncation."""

import numpy as np
import pandas as pd
import pytest

from prunehal.benchmarks import load_scorer, score, truncate, truncate_to_mean
from prunehal.benchmarks.chair.score import unmatched

# caption -> the categories a careful reader of the CHAIR lists finds, in order
BY_HAND = {
    "A dog and a cat.": ["dog", "cat"],
    "Two dogs, three puppies and a beagle": ["dog"] * 3,
    "Buses and a bus near the minibus.": ["bus"] * 3,
    "Men, women and children watch two policemen.": ["person"] * 4,
    "A man gives the man's hat to a person; people look.": ["person"] * 4,
    "Knives, a knife and forks": ["knife", "knife", "fork"],
    "Geese chase a goose and some sheep.": ["bird", "bird", "sheep"],
    "Oxen, calves and a calf with cattle": ["cow"] * 4,
    "Mice beside a mouse": ["mouse", "mouse"],
    "A hot dog.": ["hot dog"],
    "Hot dogs for a dog.": ["hot dog", "dog"],
    "It is hot, dogs are tired.": ["dog"],
    "A hot-dog stand": ["hot dog"],
    "The toilet seat is up.": ["toilet"],
    "The seat of the toilet": ["toilet"],
    "A seat by the window": ["chair"],
    "A motor bike and two motorbikes": ["motorcycle"] * 2,
    "Wine glasses and a glass": ["wine glass"],
    "Traffic lights, a stop light and a street light": ["traffic light"] * 3,
    "A baby elephant with a baby": ["elephant", "person"],
    "Adult zebras": ["zebra"],
    "A baby's bear": ["person", "bear"],
    "The train track is empty.": [],
    "Train tracks at home plate": [],
    "A passenger train and a passenger": ["train", "person"],
    "A bow tie and a bow": ["tie", "tie"],
    "Cheesecakes and an iPhone": ["cake", "cell phone"],
    "A stove top oven": ["oven"],
    "Sports balls and a ball": ["sports ball"] * 2,
    "A dining table with tables": ["dining table"] * 2,
    "Tennis rackets in a suit case": ["tennis racket", "suitcase"],
    "Scissors and skis; one ski": ["scissors", "skis", "skis"],
    "Cats/dogs.The sofa": ["cat", "dog", "couch"],
    "Five o'clock": [],
    "A man-made pond, nobody there": [],
    "TVs, refrigerators and toothbrushes": ["tv", "refrigerator", "toothbrush"],
    "An orange ball": ["orange", "sports ball"],  # no word senses: the lists know the fruit only
    "": [],
    "...": [],
}


@pytest.mark.parametrize(("caption", "nodes"), BY_HAND.items())
def test_mentions_by_hand(caption, nodes):
    assert [mention.node for mention in load_scorer("fixed").mentions(caption)] == nodes


def test_every_listed_name_and_its_plural_is_found():
    inflect = pytest.importorskip("inflect").engine()
    scorer = load_scorer()
    assert len(set(scorer.nodes.values())) == 80
    for name, node in scorer.nodes.items():
        assert [mention.node for mention in scorer.mentions(f"the {name} here")] == [node], name
        if name in {"people", "children", "oxen", "skis"}:  # already plural
            continue
        plural = inflect.plural_noun(name)
        assert [mention.node for mention in scorer.mentions(f"the {plural} here")] == [node], plural


def test_spans_and_positions():
    caption = 'Two "Hot Dogs",\n\nthen a\tBUS/car and Bob’s İzmir cat.'
    mentions = load_scorer().mentions(caption)
    assert [caption[m.start : m.end] for m in mentions] == ["Hot Dogs", "BUS", "car", "cat"]
    assert [m.word for m in mentions] == ["hot dogs", "bus", "car", "cat"]
    assert [m.index for m in mentions] == [0, 1, 2, 3]
    assert [m.word_index for m in mentions] == [1, 5, 5, 9]
    words = caption.split()
    assert all(caption[m.start : m.end].split()[0] in words[m.word_index] for m in mentions)


def test_word_is_written_with_one_space():
    (mention,) = load_scorer().mentions("a Teddy\n bears")
    assert (mention.word, mention.start, mention.end) == ("teddy bears", 2, 14)


CAPTIONS = {
    1: "A dog sits on a sofa. The dog sees a cat.",  # cat is wrong; dog twice
    2: "Two men ride a bus past a bench and a bench.",  # both benches are wrong
    3: "A zebra.",
    4: "",
}
TRUTH = {1: {"dog", "couch", "tv"}, 2: {"person", "bus"}, 3: {"zebra"}, 4: {"cup"}, 5: {"car"}}


def test_score_by_hand():
    result = score(CAPTIONS, TRUTH)
    assert result.scorer == "fixed"
    assert result.metrics == {
        "chair_i": 3 / 9,
        "chair_s": 2 / 4,
        "distinct_chair_i": 2 / 7,  # cat and bench, of dog, couch, cat, person, bus, bench, zebra
        "absent": 2 / 4,
        "recall": 5 / 7,
        "f1": 2 * (5 / 7) * (5 / 7) / (10 / 7),
        "repeats": 2 / 9,
        "unfinished": 0.0,
        "n": 4,
        "n_empty": 1,
        "n_mentions": 9,
        "n_hallucinated": 3,
        "n_distinct": 7,
        "n_absent": 2,
        "n_captions_hallucinated": 2,
        "words": (11 + 11 + 2 + 0) / 4,
        "length": (13 + 12 + 3 + 0) / 4,
    }
    assert result.items.drop(columns=["nodes", "hallucinated_words"]).to_numpy().tolist() == [
        [1, 11, 13, 4, 1, 3, 2, 3, 1, 1, True, False],
        [2, 11, 12, 4, 2, 2, 2, 3, 1, 1, True, False],
        [3, 2, 3, 1, 0, 1, 1, 1, 0, 0, False, False],
        [4, 0, 0, 0, 0, 1, 0, 0, 0, 0, False, False],
    ]
    assert result.items.columns.tolist()[1:-2] == [
        "words", "length", "n_mentions", "n_hallucinated", "n_truth", "n_recalled", "n_distinct", "n_absent", "n_repeats",
        "hallucinated", "unfinished",
    ]  # fmt: skip
    assert result.items["hallucinated_words"].tolist() == [[["cat", "cat"]], [["bench", "bench"]] * 2, [], []]
    assert result.items["nodes"].tolist()[0] == ["dog", "couch", "dog", "cat"]
    mentions = result.mentions
    assert mentions.loc[mentions["hallucinated"], "word"].tolist() == ["cat", "bench", "bench"]
    assert mentions.loc[mentions["image_id"] == 2, "index"].tolist() == [0, 1, 2, 3]
    assert len(mentions) == 9


def test_score_takes_a_frame_and_a_loaded_scorer():
    frame = pd.DataFrame({"image_id": list(CAPTIONS), "caption": list(CAPTIONS.values())})
    a, b = score(frame, TRUTH, scorer=load_scorer()), score(CAPTIONS, TRUTH)
    assert a.metrics == b.metrics
    pd.testing.assert_frame_equal(a.items, b.items)
    pd.testing.assert_frame_equal(a.mentions, b.mentions)


def test_a_report_holds_the_numbers_of_each_caption():
    captions = CAPTIONS | {1: CAPTIONS[1] + " The dog"}  # cut in the middle of a sentence
    report = score(captions, TRUTH).report({"captions": "mine.json"})
    assert report.settings == {"benchmark": "chair", "scorer": "fixed", "unfinished_by": "text", "captions": "mine.json"}
    first, second, third, empty = report.items
    assert first == {
        "image_id": 1, "nodes": ["dog", "couch", "dog", "cat", "dog"], "hallucinated": [["cat", "cat"]], "chair_i": 1 / 5,
        "chair_s": 1, "distinct_chair_i": 1 / 3, "absent": 1, "recall": 2 / 3, "repeats": 2 / 5, "unfinished": 1, "words": 13,
    }  # fmt: skip
    assert [second[name] for name in ("chair_i", "distinct_chair_i", "absent", "repeats")] == [2 / 4, 1 / 3, 1, 1 / 4]
    assert [third[name] for name in ("chair_i", "distinct_chair_i", "absent", "repeats")] == [0, 0, 0, 0]
    assert [empty[name] for name in ("distinct_chair_i", "recall", "repeats", "unfinished", "words")] == [0, 0, 0, 0, 0]
    for name in ("absent", "unfinished", "words"):
        assert sum(item[name] for item in report.items) / 4 == report.metrics[name]


def test_no_object_anywhere_scores_zero():
    result = score({1: "Nothing here.", 2: ""}, {1: set(), 2: set()})
    for name in ("chair_i", "distinct_chair_i", "absent", "recall", "f1", "repeats", "unfinished"):
        assert result.metrics[name] == 0.0
    assert result.mentions.empty
    assert result.mentions["hallucinated"].dtype == bool
    assert result.mentions["start"].dtype == np.int64


@pytest.mark.parametrize(
    ("captions", "truth", "message"),
    [
        ({9: "A dog."}, TRUTH, r"no ground truth for 1 image_id\(s\): 9; expected"),
        ({"1": "A dog."}, TRUTH, "check the id type"),
        ({9: "A dog."}, {}, "9; expected ids that it knows; check the id type"),
        ({1: "A dog."}, {1: {"doggo"}}, "names 'doggo'; expected"),
        ({1: float("nan")}, TRUTH, "caption of image_id 1 is nan"),
        ({}, TRUTH, "no captions"),
        (pd.DataFrame({"image_id": [1, 2, 1], "caption": ["a", "b", "c"]}), TRUTH, "more than one caption: 1;"),
        (pd.DataFrame({"id": [1], "caption": ["a"]}), TRUTH, r"\['image_id'\]"),
    ],
)
def test_score_names_what_is_wrong(captions, truth, message):
    with pytest.raises(ValueError, match=message):
        score(captions, truth)


def test_mentions_that_one_scorer_finds_are_of_other_text_or_of_another_object():
    texts = {
        1: "Tennis rackets, a bus and buses.",  # "rackets" alone by pattern: the same text, another start
        2: "Men seated on a sofa.",
        3: "A bus and a dog.",
        4: "Buses and men seated.",  # no counterpart of the bus of image 3, which stands at the same characters
    }
    results = [score(texts, {image: {"bus"} for image in texts}, name) for name in ("pattern", "wordnet")]
    pattern, wordnet = unmatched(*results)
    assert pattern[["image_id", "word"]].to_numpy().tolist() == [[2, "men"], [4, "men"]]
    assert wordnet[["image_id", "word"]].to_numpy().tolist() == [[1, "bus"], [2, "seated"], [3, "bus"], [4, "seated"]]
    pd.testing.assert_frame_equal(wordnet, results[1].mentions.loc[wordnet.index])
    pd.testing.assert_frame_equal(unmatched(*results[::-1])[1], pattern)
    assert [len(only) for only in unmatched(results[0], results[0])] == [0, 0]


def test_overlapping_mentions_of_other_objects_are_not_the_same():
    results = [score({1: text}, {1: {"dog"}}) for text in ("A hot dog.", "A hot, dog.")]
    assert [only["node"].tolist() for only in unmatched(*results)] == [["hot dog"], ["dog"]]


def test_mentions_of_different_captions_are_not_compared():
    one, two = (score({1: "A dog.", 2: text}, {1: {"dog"}, 2: {"cat"}}) for text in ("A cat.", "A small cat."))
    with pytest.raises(ValueError, match=r"captions of 1 image_id.s. differ or are in one result only: 2; expected two scores"):
        unmatched(one, two)


def test_unknown_scorer_is_named():
    with pytest.raises(ValueError, match=r"unknown CHAIR scorer 'Fixed'; expected one of \['fixed'"):
        load_scorer("Fixed")
    with pytest.raises(ValueError, match="unknown CHAIR scorer 'nltk'"):
        score(CAPTIONS, TRUTH, scorer="nltk")


def test_truncate_keeps_the_mentions_that_lie_within():
    caption = "A dog, a cat,\n\n two  hot dogs and a bus."
    every = load_scorer().mentions(caption)
    for n in range(12):
        cut = truncate(caption, n)
        assert cut.split() == caption.split()[:n]
        assert caption.startswith(cut)
        whole = [m for m in every if len(caption[: m.end].split()) <= n]
        assert load_scorer().mentions(cut)[: len(whole)] == whole
    assert truncate(caption, 99) == caption
    with pytest.raises(ValueError, match="n_words is -1"):
        truncate(caption, -1)


def test_truncate_to_mean_is_the_largest_cap():
    rng = np.random.default_rng(0)
    captions = {i: " ".join(["word"] * int(n)) for i, n in enumerate(rng.integers(0, 40, 200))}
    lengths = np.array([len(text.split()) for text in captions.values()])
    means = {cap: np.minimum(lengths, cap).mean() for cap in range(lengths.max() + 1)}  # the slow twin
    for target in [0, 0.01, 3, 11.7, means[7], means[20], lengths.mean(), 1000]:
        cut = truncate_to_mean(captions, target)
        assert cut.n_words == max(cap for cap, mean in means.items() if mean <= target + 1e-9)
        assert cut.mean_words == pytest.approx(means[cut.n_words])
        assert np.mean([len(text.split()) for text in cut.captions.values()]) == pytest.approx(cut.mean_words)
    assert truncate_to_mean(captions, 1000).captions == captions
    with pytest.raises(ValueError, match="target_mean_words is nan"):
        truncate_to_mean(captions, float("nan"))

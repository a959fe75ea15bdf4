"""The official CHAIR scorers: equal to nltk and to the rules of pattern.en, word by word, and to published counts."""

import json
import random

import nltk
import pytest
import reference_chair as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem import WordNetLemmatizer

from prunehal.benchmarks import ground_truth_coco, load_scorer, read_captions, score
from prunehal.benchmarks.chair.english import inflections, lemma, spans, tags, tokenize
from prunehal.benchmarks.chair.official import double_words, listed_nodes, pattern_words
from prunehal.files.paths import data_path

pytestmark = pytest.mark.usefixtures("nltk_data")
MODELS = ("instructblip", "llava-1.5", "minigpt4", "shikra")
FILES = [f"opera/{model}/{decoding}.jsonl" for model in MODELS for decoding in ("greedy", "beam5", "ours")]
OFFICIAL = json.loads(data_path("chair", "opera_official_scores.json").read_text())
MATTERS = sorted({word for name in [*listed_nodes(), *double_words()] for word in name.split()})
FILLERS = "a the two of is sitting on near blue very hot skiing U.S. e.g. cannot it's".split()
MARKS = [*[" "] * 5, *", |. |.\n\n|-|/|'s |' |\"| (|) |...|!|? |: |; |--|\t|3,5 ".split("|")]


def captions_of(file):
    return read_captions(data_path("captions", f"{file}.gz"))[0]


@pytest.mark.parametrize("scorer", ["pattern", "wordnet"])
@pytest.mark.parametrize("file", FILES)
def test_counts_of_the_official_code_with_the_pattern_truth(file, scorer):
    """The stored counts are those of both official scripts with the `pattern` ground truth."""
    result = score(captions_of(file), ground_truth_coco("pattern"), scorer)
    counts = {
        "captions": result.metrics["n"],
        "hallucinated_captions": result.metrics["n_captions_hallucinated"],
        "object_mentions": result.metrics["n_mentions"],
        "hallucinated_mentions": result.metrics["n_hallucinated"],
        "gt_objects": int(result.items["n_truth"].sum()),
        "recalled_gt_objects": int(result.items["n_recalled"].sum()),
        "empty_object_captions": int((result.items["n_mentions"] == 0).sum()),
    }
    assert counts == OFFICIAL[file][scorer]["counts"]
    for ours, theirs in (("chair_s", "CHAIRs"), ("chair_i", "CHAIRi"), ("recall", "Recall")):
        assert round(result.metrics[ours], 6) == OFFICIAL[file][scorer][theirs]


def same(caption, name):
    mentions, length = load_scorer(name).scan(caption)
    assert ([[m.term, m.node] for m in mentions], length) == slow.objects(caption, name)
    for m in mentions:
        assert caption[m.start : m.end].lower().split() == m.word.split()


@pytest.mark.parametrize("name", ["pattern", "wordnet"])
@pytest.mark.parametrize("file", FILES[::3])
def test_real_captions_word_by_word(file, name):
    texts = sorted(captions_of(file).items())
    for _, text in random.Random(0).sample(texts, 25):
        same(text, name)


def composed(seed):
    draw = random.Random(seed)
    vocabulary = [*sorted(inflections(MATTERS)), *MATTERS * 6, *FILLERS * 60]
    return "".join(draw.choice(vocabulary) + draw.choice(MARKS) for _ in range(draw.randint(1, 30)))


@pytest.mark.parametrize("name", ["pattern", "wordnet"])
def test_composed_captions_word_by_word(name):
    for seed in range(150):
        text = composed(seed)
        same(text if seed % 2 else text.title(), name)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.text(st.sampled_from("abst .,'\"-`()!?:;&3İK’“\n"), max_size=40))
def test_any_text(text):
    tokens = tokenize(text)
    assert tokens == nltk.word_tokenize(text)
    assert tags(tokens, range(len(tokens))) == dict(enumerate(tag for _, tag in nltk.pos_tag(tokens)))
    places = spans(text, tokens)
    assert all(0 <= start < end <= len(text) for start, end in places)
    for name in ("pattern", "wordnet"):
        same(text, name)


def test_single_tags_need_no_others():
    for seed in range(40):
        tokens = tokenize(composed(seed))
        truth = [tag for _, tag in nltk.pos_tag(tokens)]
        for index in random.Random(seed).sample(range(len(tokens)), min(5, len(tokens))):
            assert tags(tokens, [index]) == {index: truth[index]}


def test_lemmas_equal_wordnets():
    lemmatizer = WordNetLemmatizer()
    for word in [*sorted(inflections(MATTERS)), "", "s", "us", "running", "better", "xyzzy"]:
        for pos in "nvar":
            assert lemma(word, pos) == lemmatizer.lemmatize(word, pos), (word, pos)


def test_the_table_of_singulars_is_complete():
    """Every listed word, cut anywhere and given any ending that pattern.en's rules know, is in the table or does not matter."""
    shipped = json.loads(data_path("chair", "pattern_singulars.json").read_text(encoding="utf-8"))
    assert shipped == slow.singulars_that_matter()
    assert {"gentlemen", "policemen", "grandchildren", "oxen", "bus", "buses"} <= shipped.keys()


def test_words_off_the_lists_keep_their_form():
    draw = random.Random(0)
    for _ in range(3000):
        word = draw.choice(MATTERS)
        word = word[: draw.randint(1, len(word))] + "".join(draw.choice("sievnmocha'") for _ in range(draw.randint(0, 5)))
        ours, truth = pattern_words()([word])[0], slow.singular(word)
        assert ours == truth or {ours, truth}.isdisjoint(MATTERS), word


# Each quirk of the official scripts, as a caption and the pairs that they find in it.
QUIRKS = {
    "pattern": {
        "A bus and two buses.": [["bus", "bus"]],
        "Ties and a tie.": [["tie", "tie"]],
        "Skis on the snow": [["ski", "skis"]],
        "Scissors": [["scissors", "scissors"]],
        "A wine glass": [["wine glass", "wine glass"]],
        "Men and women": [["man", "person"], ["woman", "person"]],
    },
    "wordnet": {
        "A bus and two buses.": [["bus", "bus"], ["bus", "bus"]],
        "Ties and a tie.": [["tie", "tie"], ["tie", "tie"]],
        "Men and women": [["woman", "person"]],
        "A wine glass": [["wine glass", "wine glass"]],
    },
    "both": {
        "A motor bike": [],
        "A cheesecake and an iPhone": [],
        "A stove top oven": [["stove", "oven"], ["oven", "oven"]],
        "A hot-dog stand.": [],
        "A dog.The cat": [["cat", "cat"]],
        "The toilet, and the seat of it, and a seat": [["toilet", "toilet"]],
        "A toilet seat": [["toilet", "toilet"]],
        "A baby bird and an adult": [["bird", "bird"], ["adult", "person"]],
        "An orange ball": [["orange", "orange"], ["ball", "sports ball"]],
        "A home plate": [],
        "A train track by a passenger train": [["train", "train"]],
        "": [],
    },
}


@pytest.mark.parametrize(
    ("name", "caption", "found"),
    [
        (name, caption, found)
        for group, cases in QUIRKS.items()
        for name in (("pattern", "wordnet") if group == "both" else (group,))
        for caption, found in cases.items()
    ],
)
def test_quirks(name, caption, found):
    assert [[m.term, m.node] for m in load_scorer(name).mentions(caption)] == found
    same(caption, name)


def test_spans_survive_letters_that_grow_in_lower_case():
    (dog,) = load_scorer("pattern").mentions("İİ dogs İ")
    assert (dog.start, dog.end, dog.word, dog.term) == (3, 7, "dogs", "dog")

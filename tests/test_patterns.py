"""The sentence that holds a mention: its template is that which a matcher by loops finds, and that which wrote the sentence."""

import re
from collections import Counter

import numpy as np
import pytest

import prunehal as ph
from prunehal.benchmarks import score
from prunehal.testbed.world import captions as grammar
from prunehal.testbed.world.captions import ADJECTIVES, PLACES, TEMPLATES, write_brief, write_caption
from prunehal.testbed.world.patterns import GROUPS, mention_patterns, sentence_pattern
from prunehal.testbed.world.scenes import scene
from prunehal.testbed.world.world import NAMES, SCENES

ADJECTIVE_PAIRS = [f"{size} {clear}" for size in ADJECTIVES[0] for clear in ADJECTIVES[1]]
THINGS = [grammar.noun_phrase(name, pair) for name in NAMES for pair in ("", *ADJECTIVE_PAIRS)]
WORDS = {
    "a": THINGS,
    "p": [place for row in PLACES for place in row],
    "s": [kind.phrase for kind in SCENES],
    "m": ["calm", "lively", "cheerful", "quiet", "relaxed", "ordinary"],
}
WORDS |= {"b": WORDS["a"], "q": WORDS["p"]}
WORDS |= {key.upper(): [word[0].upper() + word[1:] for word in WORDS[key]] for key in "aps"}


def fits(sentence, template):
    """Tell by trying every word of every slot whether a template gives a sentence."""
    if not template or not sentence:
        return template == sentence
    if template[0] != "{":
        return sentence[0] == template[0] and fits(sentence[1:], template[1:])
    return any(sentence.startswith(word) and fits(sentence[len(word) :], template[3:]) for word in WORDS[template[1]])


def slow(sentence):
    templates = [template for group, templates in TEMPLATES.items() if group != "brief" for template in templates]
    found = [template for template in templates if fits(sentence, template)]
    assert len(found) < 2
    return found[0] if found else "other"


def sentence_by_loops(text, start):
    """Return the sentence that holds a character, without the blanks around it."""
    begin = start
    while begin and text[begin - 1] != ".":
        begin -= 1
    end = start
    while end < len(text) and text[end] != ".":
        end += 1
    return text[begin : end + 1].strip()


@pytest.fixture(scope="module")
def stored():
    experiment = ph.Experiment(split="test", n_images=60)
    texts = ph.Store.shipped().captions(experiment).set_index("image_id")["caption"].to_dict()
    return experiment, texts, ph.Store.shipped().score(experiment)


def test_patterns_of_stored_mentions_are_those_found_by_loops(stored):
    _, texts, scored = stored
    found = mention_patterns(texts, scored)
    expected = [slow(sentence_by_loops(texts[m.image_id], m.start)) for m in scored.mentions.itertuples()]
    assert found["pattern"].tolist() == expected
    late = set(TEMPLATES["late"])
    assert found["late"].tolist() == [pattern in late for pattern in expected]
    assert 0.1 < found["late"].mean() < 0.2


def test_lines_are_those_of_the_stored_mentions(stored):
    experiment, texts, scored = stored
    mentions = ph.Store.shipped().mentions(experiment).query("layer == 0")
    joined = mentions.merge(mention_patterns(texts, scored), on=["image_id", "index"], validate="one_to_one")
    assert len(joined) == len(mentions)
    facts = scored.mentions.merge(joined, on=["image_id", "index"])
    assert (facts["node_x"] == facts["node_y"]).all()
    assert (facts["hallucinated_x"] == facts["hallucinated_y"]).all()


def test_every_template_is_told_from_all_others():
    rng = np.random.default_rng(0)
    for group, templates in TEMPLATES.items():
        if group == "brief":
            continue
        for template in templates:
            for _ in range(20):
                sentence = re.sub(r"\{(\w)\}", lambda slot: str(rng.choice(WORDS[slot[1]])), template)
                assert sentence_pattern(sentence) == template
                assert GROUPS[template] == group
    assert len(GROUPS) == sum(map(len, TEMPLATES.values())) + 1


def test_what_the_grammar_writes_has_a_template():
    count = Counter()
    for i in range(200):
        s = scene("train", i)
        for sentence in re.findall(r"[^.]+\.", write_caption(s, np.random.default_rng(i))):
            count[sentence_pattern(sentence.strip())] += 1
        assert GROUPS[sentence_pattern(write_brief(s))] == "brief"
    assert set(count) == set(GROUPS) - {"other", *TEMPLATES["brief"]}


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "There is also",
        "There is also a dog on the left",
        "There is also a dog on the left. There is a cat on the right.",
        "there is also a dog on the left.",
        "There is also a unicorn on the left.",
        "A dog.",
    ],
)
def test_other_text_has_none(sentence):
    assert sentence_pattern(sentence) == slow(sentence) == "other"
    assert GROUPS["other"] == "other"


def test_a_mention_in_a_sentence_that_was_cut_is_of_no_template():
    text = {7: "The image shows a farm. There is also a dog on the left. There is also a cow on"}
    found = mention_patterns(text, score(text, {7: {"dog"}}))
    assert found["pattern"].tolist() == ["There is also {a} {p}.", "other"]
    assert found["late"].tolist() == [True, False]


def test_captions_without_a_mention_give_no_line():
    text = {7: "The image shows a farm.", 8: ""}
    found = mention_patterns(text, score(text, {7: {"dog"}, 8: {"dog"}}))
    assert len(found) == 0
    assert list(found) == ["image_id", "index", "pattern", "group", "late"]

"""Slow twins of the two official CHAIR scorers and of the second ground truth: nltk itself, and the singular rules of pattern.en.

``python tests/reference_chair.py`` writes the shipped table of singulars anew.

The rules are facts of clips/pattern (BSD licence), `pattern/text/en/inflect.py`: which endings become which, in what order,
and which words are exempt.
"""

import re
from functools import cache

import nltk
from nltk.stem import WordNetLemmatizer

from prunehal.files.paths import data_path

PREPOSITIONS = set(
    "about above across after among around at athwart before behind below beneath beside besides between betwixt beyond but by during "
    "except for from in into near of off on onto out over since till to under until unto upon with".split()
)
# A word that ends one of these is its own singular.
UNCHANGED = (
    "bison debris headquarters pincers trout bream diabetes herpes pliers tuna breeches djinn high-jinks proceedings whiting britches "
    "eland homework rabies wildebeest carp elk innings salmon chassis flounder jackanapes scissors christmas gallows mackerel series "
    "clippers georgia measles shears cod graffiti mews species contretemps mumps swine corps news swiss advice equipment happiness "
    "luggage software bread fruit information mathematics progress understanding butter furniture ketchup mayonnaise research water "
    "cheese garbage knowledge meat rice electricity gravel love mustard sand"
).split()
IE = (
    "alergie cutie hoagie newbie softie veggie auntie doggie hottie nightie sortie weenie beanie eyrie indie oldie stoolie yuppie birdie "
    "freebie junkie ^pie sweetie zombie bogie goonie laddie pixie techie bombie groupie laramie quickie ^tie collie hankie lingerie "
    "reverie toughie cookie hippie meanie rookie valkyrie"
).split()
IRREGULAR = dict(
    pair.split(":")
    for pair in (
        "atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child corpora:corpus corpuses:corpus "
        "ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus genii:genie graffiti:graffito helves:helve kine:cow "
        "leaves:leaf loaves:loaf men:man mongooses:mongoose monies:money moves:move mythoi:mythos numena:numen occipita:occiput "
        "octopodes:octopus opera:opus opuses:opus our:my oxen:ox penes:penis penises:penis people:person sexes:sex "
        "soliloquies:soliloquy teeth:tooth testes:testis trilbys:trilby turves:turf zoa:zoon"
    ).split()
)
ENDINGS = [
    (r"(?i)(.)ae$", r"\1a"), (r"(?i)(.)itis$", r"\1itis"), (r"(?i)(.)eaux$", r"\1eau"), (r"(?i)(quiz)zes$", r"\1"),
    (r"(?i)(matr)ices$", r"\1ix"), (r"(?i)(ap|vert|ind)ices$", r"\1ex"), (r"(?i)^(ox)en", r"\1"), (r"(?i)(alias|status)es$", r"\1"),
    (r"(?i)([octop|vir])i$", r"\1us"), (r"(?i)(cris|ax|test)es$", r"\1is"), (r"(?i)(shoe)s$", r"\1"), (r"(?i)(o)es$", r"\1"),
    (r"(?i)(bus)es$", r"\1"), (r"(?i)([m|l])ice$", r"\1ouse"), (r"(?i)(x|ch|ss|sh)es$", r"\1"), (r"(?i)(m)ovies$", r"\1ovie"),
    (r"(?i)(.)ombies$", r"\1ombie"), (r"(?i)(s)eries$", r"\1eries"), (r"(?i)([^aeiouy]|qu)ies$", r"\1y"), (r"([aeo]l)ves$", r"\1f"),
    (r"([^d]ea)ves$", r"\1f"), (r"arves$", "arf"), (r"erves$", "erve"), (r"([nlw]i)ves$", r"\1fe"), (r"(?i)([lr])ves$", r"\1f"),
    (r"([aeo])ves$", r"\1ve"), (r"(?i)(sive)s$", r"\1"), (r"(?i)(tive)s$", r"\1"), (r"(?i)(hive)s$", r"\1"), (r"(?i)([^f])ves$", r"\1fe"),
    (r"(?i)(^analy)ses$", r"\1sis"), (r"(?i)((?:a)naly|(?:b)a|(?:d)iagno|(?:p)arenthe|(?:p)rogno|(?:s)ynop|(?:t)he)ses$", None),
    (r"(?i)(.)opses$", r"\1opsis"), (r"(?i)(.)yses$", r"\1ysis"), (r"(?i)(h|d|r|o|n|b|cl|p)oses$", r"\1ose"),
    (r"(?i)(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose"), (r"(?i)(.)oses$", r"\1osis"), (r"(?i)([ti])a$", r"\1um"),
    (r"(?i)(n)ews$", r"\1ews"), (r"(?i)s$", ""),
]  # fmt: skip


def singular(word):
    """Say what pattern.en makes of a lower-case word."""
    parts = word.split("-")
    if len(parts) > 1 and parts[1] in PREPOSITIONS:
        return "-".join([singular(parts[0]), *parts[1:]])
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    if any(listed.endswith(word) for listed in UNCHANGED):
        return word
    if any(word.endswith(f"{listed}s") for listed in IE):
        return word
    for plural, single in IRREGULAR.items():
        if word.endswith(plural):
            return re.sub(f"(?i){plural}$", single, word)
    for ending, new in ENDINGS:
        found = re.search(ending, word)
        if found and new is None:  # the script repeats a group here: "psychoanalyses" becomes "psychoanalyasis"
            return word[:-3] + ("a" if found[1] == "analy" else "") + "sis"
        if found:
            return re.sub(ending, new, word)
    return word


def singulars_that_matter():
    """Return {word: singular} for every word there is that becomes, or stops being, a word of the lists.

    A rule takes an ending off and puts another on, so that what leads to a word is a beginning of it and one of the endings. The
    rules that ignore case also take the long s for an s.
    """
    nodes, joined = lists()
    listed = {word for name in [*nodes, *joined] for word in name.split()}
    endings = {"", "s", *IRREGULAR}
    for ending, _ in ENDINGS:
        fixed = re.sub(r"\(\?:?.*?\)|\^|\$|\(\?i\)|\[.*?\]\)?", "", ending.removeprefix("(?i)"))
        endings |= {fixed.strip("()"), *re.findall(r"[a-z]+(?=\$)", ending)}
    endings |= {ending[:i] + "ſ" + ending[i + 1 :] for ending in endings for i, letter in enumerate(ending) if letter == "s"}
    tried = {word[:cut] + ending for word in listed for cut in range(len(word) + 1) for ending in endings}
    pairs = {word: singular(word) for word in sorted(tried | listed)}
    return {word: single for word, single in pairs.items() if word != single and (single in listed or word in listed)}


@cache
def lists():
    """Return the listed words by row and the double words, as the scripts have them."""
    import json

    rows = data_path("chair", "synonyms.txt").read_text().splitlines()
    nodes = {}
    for row in rows:
        names = row.strip().split(", ")
        for name in names:
            nodes[name] = names[0]
    given = json.loads(data_path("chair", "double_words.json").read_text())
    joined = {words: words for words in given["double_words"]}
    for animal in given["baby_or_adult_becomes_the_animal"]:
        joined["baby " + animal] = animal
        joined["adult " + animal] = animal
    for vehicle in given["passenger_becomes_the_vehicle"]:
        joined["passenger " + vehicle] = vehicle
    joined["bow tie"], joined["toilet seat"], joined["wine glas"] = "tie", "toilet", "wine glass"
    return nodes, joined


def wordnet_truth(path):
    """Return {image: objects} of the second ground truth: the shipped table, with the changes of a file made one by one."""
    import gzip
    import json

    table = json.loads(gzip.decompress(data_path("chair", "chair_gt_coco_trainval2014.json.gz").read_bytes()))
    truth = {}
    for image, numbers in table["images"].items():
        truth[int(image)] = set()
        for number in numbers:
            truth[int(image)].add(table["nodes"][number])
    for image, change in json.loads(gzip.decompress(path.read_bytes())).items():
        for name in change["add"]:
            truth[int(image)].add(name)
        for name in change["drop"]:
            truth[int(image)].remove(name)
    return truth


def normalised(caption, scorer):
    """Return the words that a scorer makes of a caption; nltk must find its models."""
    words = nltk.word_tokenize(caption.lower())
    if scorer == "pattern":
        return [singular(word) for word in words]
    lemmatizer, lemmas = WordNetLemmatizer(), []
    for word, tag in nltk.pos_tag(words):
        pos = {"J": "a", "V": "v", "N": "n", "R": "r"}.get(tag[0], "n")
        lemmas.append(lemmatizer.lemmatize(word, pos))
    return lemmas


def objects(caption, scorer):
    """Return the [word, node] pairs that a scorer finds in a caption, in order, and its number of words."""
    nodes, joined = lists()
    words, units = normalised(caption, scorer), []
    while words:
        pair = " ".join(words[:2])
        if pair in joined:
            units.append(joined[pair])
            words = words[2:]
        else:
            units.append(words[0])
            words = words[1:]
    length = len(units)  # OPERA's script counts before seats are dropped
    if "toilet" in units and "seat" in units:
        units = [unit for unit in units if unit != "seat"]
    return [[unit, nodes[unit]] for unit in units if unit in nodes], length


if __name__ == "__main__":
    import json

    path = data_path("chair", "pattern_singulars.json")
    path.write_text(json.dumps(singulars_that_matter(), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")

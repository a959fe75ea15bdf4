"""The panel: its caption is the one that the package makes elsewhere, its words are marked rightly, its controls work."""

import asyncio
import json
import re
import sys
import time
from html.parser import HTMLParser

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import prunehal as ph
from prunehal.benchmarks import score
from prunehal.figures import COLORS
from prunehal.figures import panel as panel_module
from prunehal.figures.panel import Panel, caption_html, front_end_is_live, show_panel
from prunehal.figures.recaption import draw, draw_patches, recaption
from prunehal.testbed.world.scenes import scene

SCENE = scene("test", 2)  # pruned to a caption with faithful and hallucinated objects, one of them of two words
POLICY = ph.PruneHal(r=0.4, t=3)


@pytest.fixture(scope="module")
def loaded():
    return ph.load()


@pytest.fixture(scope="module")
def result(loaded):
    return recaption(*loaded, SCENE, POLICY)


@pytest.fixture(scope="module")
def base(loaded):
    return recaption(*loaded, SCENE, ph.NoPruning())


@pytest.fixture
def panel(loaded):
    made = Panel(*loaded, POLICY, image=2, images=range(4))
    made.run()
    return made


@pytest.fixture
def shown(monkeypatch):
    """Collect the figures that are shown; they are closed afterwards."""
    figures = []

    def show():
        figures.extend(plt.figure(number) for number in plt.get_fignums())

    monkeypatch.setattr(plt, "show", show)
    yield figures
    plt.close("all")


class Page(HTMLParser):
    """Collect the text of a page, and (text, attributes) of each span."""

    def __init__(self, page):
        super().__init__()
        self.text, self.spans, self._open = "", [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "span":
            self._open = dict(attributes)

    def handle_data(self, data):
        self.text += data
        if self._open is not None:
            self.spans.append((data, self._open))
            self._open = None


def captions_of(panel):
    pattern = r'<p class="prunehal-caption" data-policy="(\w+)"[^>]*>(.*?)</p>'
    return {name: Page(text).text for name, text in re.findall(pattern, panel.captions.value)}


@pytest.mark.parametrize("policy", [ph.NoPruning(), POLICY, ph.PruneHal(0.9, 6, factor=0.95)], ids=["none", "paper", "often"])
@pytest.mark.parametrize("index", [2, 5])
def test_the_caption_is_that_of_caption_scenes(loaded, policy, index):
    shown = scene("test", index)
    done = ph.caption_scenes(*loaded, [shown], policy, trace=True)
    again = recaption(*loaded, shown, policy)
    (line,) = done.captions.itertuples()
    assert again.caption == line.caption
    assert len(again.spans) == line.tokens
    assert [begin for begin, _ in again.spans] == line.starts
    assert [prune.step for prune in again.prunes] == done.events["step"].tolist()
    assert [prune.reason for prune in again.prunes] == done.events["reason"].tolist()
    assert [prune.kept for prune in again.prunes] == [kept[0] for kept in done.events["kept"]]
    mass = done.steps.groupby("step")["mass"].mean()
    assert again.attention == pytest.approx([mass[m] for m in range(1, line.tokens + 1)], abs=1e-6)
    scored = score(done.texts, {shown.image_id: shown.names})
    names = ("n_mentions", "n_hallucinated", "recall")
    assert [getattr(again, name) for name in names] == [scored.metrics[name] for name in names]
    for mention in ph.mention_attention(done, scored).query("layer == 0").itertuples():
        assert again.marks[mention.step - 1] == ("hallucinated" if mention.hallucinated else "faithful")


def test_the_patches_are_those_that_the_cache_held(result):
    assert [prune.kept for prune in result.prunes] == [57, 22, 8]
    before = np.full((12, 12), result.layers)
    for prune in result.prunes:
        assert prune.counts.sum() == prune.kept * result.layers
        assert (prune.counts <= before).all()
        before = prune.counts


def test_a_prune_of_the_last_step_is_shown_too(loaded):
    cut = recaption(*loaded, SCENE, POLICY, max_new_tokens=2)
    assert [(prune.step, prune.kept) for prune in cut.prunes] == [(2, 57)]


def test_every_word_of_a_mention_is_marked(result):
    marked = [(word, mark) for word, mark in zip(result.words, result.marks, strict=True) if mark]
    absent = [(word, "hallucinated") for word in ("skateboard", "person", "bird", "potted", "plant")]
    assert marked == [*absent[:3], ("dog", "faithful"), *absent[3:]]
    assert result.words[-1] == "."


def test_the_numbers_in_words(result, base):
    assert result.numbers == "4 of 5 object mentions hallucinated, recall 14%, 68 tokens, 3 prunes at m = 2, 8, 22"
    assert base.numbers == "1 of 5 object mentions hallucinated, recall 57%, 68 tokens, 0 prunes"
    assert (result.setting, base.setting) == ("r = 0.4, t = 3, factor sqrt(r)", "no pruning")


def strips(figure):
    """The captions drawn: for each axis with several texts, (word, weight, colour of its box) for each."""
    texts = [axis.texts for axis in figure.axes if len(axis.texts) > 1]
    boxes = [[(text, text.get_bbox_patch()) for text in each] for each in texts]
    return [[(text.get_text(), text.get_weight(), to_hex(box.get_edgecolor(), True)) for text, box in each] for each in boxes]


def test_the_drawing_marks_the_objects(result, base):
    figure = Figure(layout="constrained")
    draw(figure, result, base)
    drawn = strips(figure)
    assert [[word for word, *_ in strip] for strip in drawn] == [result.words, base.words]
    for strip, each in zip(drawn, (result, base), strict=True):
        for (_, weight, edge), mark in zip(strip, each.marks, strict=True):
            assert weight == ("bold" if mark else "normal")
            assert edge == (to_hex(COLORS[mark], True).lower() if mark else "#00000000")
    titles = [axis.get_title() or axis.get_title("left") for axis in figure.axes]
    assert titles[0] == "all 144 visual tokens"
    assert titles[1:4] == [
        f"after m = {m}:\n{n} left in each layer" for m, n in (("2 (forced)", 57), ("8 (vote)", 22), ("22 (vote)", 8))
    ]
    assert titles[4:] == [f"{each.setting}: {each.numbers}" for each in (result, base)]


def test_the_drawing_veils_what_was_dropped(result):
    figure = Figure()
    draw_patches(figure, result)
    counts = [np.full((12, 12), result.layers), *(prune.counts for prune in result.prunes)]
    veils = [axis.images[1].get_array()[..., 3] for axis in figure.axes]
    assert len(veils) == len(counts) == 4
    for veil, count in zip(veils, counts, strict=True):
        assert ((veil > 0) == (count < result.layers)).all()


def test_many_prunes_and_none_have_room(loaded, base):
    many = recaption(*loaded, SCENE, ph.PruneHal(0.9, 6, factor=0.95))
    figure = Figure()
    for each, visible in ((many, 1 + len(many.prunes)), (base, 1)):
        draw(figure, each)
        pictures = [axis for axis in figure.axes if axis.images]
        assert len(pictures) == visible
    assert len(many.prunes) > 3


def test_an_empty_caption_is_shown_as_one(loaded, monkeypatch):
    model, processor = loaded
    first = processor.tokenizer("The", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(model.generation_config, "eos_token_id", *first)
    nothing = recaption(*loaded, SCENE, POLICY)
    assert (nothing.caption, nothing.spans, nothing.numbers[-8:]) == ("", (), "0 prunes")
    figure = Figure()
    draw(figure, nothing)
    assert "(the caption is empty)" in [text.get_text() for axis in figure.axes for text in axis.texts]
    assert Page(caption_html(nothing)).text == "(the caption is empty)"


def test_the_html_says_which_words_are_hallucinated(result):
    page = Page(caption_html(result))
    assert page.text == result.caption
    assert [word for word, _ in page.spans] == result.words
    for (_, attributes), mark in zip(page.spans, result.marks, strict=True):
        assert attributes.get("class") == (f"prunehal-{mark}" if mark else None)
        assert ("font-weight:bold" in attributes["style"]) == bool(mark)
        assert (COLORS["hallucinated"] in attributes["style"]) == (mark == "hallucinated")
        assert attributes.get("title", "").startswith("hallucinated") == (mark == "hallucinated")
    shades = [re.match(r"background:#(\w\w)", attributes["style"]).group(1) for _, attributes in page.spans]
    order = np.argsort(result.attention)
    assert [shades[i] for i in order] == sorted(shades, reverse=True)  # more attention, less red: a darker blue


def test_the_static_panel_is_one_figure_and_no_widget(loaded, shown, result, base, monkeypatch):
    monkeypatch.setattr(ipywidgets.Widget, "open", None)  # what a widget calls when it is made
    assert show_panel(*loaded, image=2, interactive=False) is None
    (figure,) = shown
    assert [[word for word, *_ in strip] for strip in strips(figure)] == [result.words, base.words]


def test_without_a_front_end_the_panel_is_static(loaded, shown, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert not front_end_is_live()  # this is no kernel
    show_panel(*loaded, image=2)
    assert len(shown) == 1


CELLS = (
    """
import os, matplotlib.pyplot as plt
import prunehal.figures.panel as panel
panel.recaption = lambda *a: None  # what is drawn is tested elsewhere
panel.draw = lambda figure, *results: figure.subplots()
panel.Panel.run = lambda self: None
panel.show_panel(None, None)""",
    """
os.environ["JPY_SESSION_NAME"] = "a.ipynb"  # as a server does; see test_browser.py
panel.show_panel(None, None)""",
)


def test_an_executed_notebook_holds_a_widget_only_where_a_server_started_its_kernel(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    kinds = [[set(output["data"]) - {"text/plain"} for output in cell.outputs] for cell in notebook.cells]
    assert kinds == [[{"image/png"}], [{"application/vnd.jupyter.widget-view+json"}]]


def test_the_live_panel_shows_both_captions_and_the_picture(panel, result, base):
    assert captions_of(panel) == {"pruned": result.caption, "unpruned": base.caption}
    assert result.numbers in Page(panel.captions.value).text
    assert base.numbers in Page(panel.captions.value).text
    assert panel.picture.value.startswith('<img alt="A scene with bed, book, clock, dog, laptop, motorcycle, teddy bear,')
    assert "after m = 8: 22 visual tokens" in panel.picture.value
    assert 'role="status"' in panel.status.value
    assert "Captioned in" in panel.status.value


@pytest.mark.parametrize(
    ("move", "policy", "index"),
    [
        (lambda p: setattr(p.r, "value", 0.7), ph.PruneHal(0.7, 3), 2),
        (lambda p: setattr(p.t, "value", 1), ph.PruneHal(0.4, 1), 2),
        (lambda p: setattr(p.image, "value", 3), POLICY, 3),
    ],
    ids=["r", "t", "image"],
)
def test_moving_a_control_captions_again(panel, loaded, move, policy, index):
    captions, picture = captions_of(panel), panel.picture.value
    move(panel)
    expected = recaption(*loaded, scene("test", index), policy)
    assert captions_of(panel)["pruned"] == expected.caption != captions["pruned"]
    assert (captions_of(panel)["unpruned"] == captions["unpruned"]) == (index == 2)
    assert panel.picture.value != picture
    assert panel.result.policy == policy
    assert panel.runs == 2


def test_the_factor_is_sqrt_r_or_the_sliders(panel):
    assert (panel.square_root.value, panel.factor.disabled) == (True, True)
    panel.r.value = 0.81
    assert panel.factor.value == pytest.approx(0.9)
    assert panel.square_root.description == "sqrt(r) = 0.90"
    assert panel.runs == 2  # the factor's slider followed; that is no further run
    panel.square_root.value = False
    assert not panel.factor.disabled
    panel.factor.value = 0.25
    assert panel.result.policy == ph.PruneHal(0.81, 3, factor=0.25)
    panel.square_root.value = True
    assert panel.result.policy == ph.PruneHal(0.81, 3)


def test_the_first_values_are_those_asked_for(loaded):
    policy = ph.PruneHal(0.03, 9, factor=0.02, reference="first")
    made = Panel(*loaded, policy, image=1, images=[1])
    assert made.policy == policy
    assert [made.r.value, made.t.value, made.factor.value, made.image.value] == [0.03, 9, 0.02, 1]
    assert not any(slider.continuous_update for slider in (made.r, made.t, made.factor))


def test_going_back_runs_no_model(panel, monkeypatch):
    first = panel.captions.value
    panel.r.value = 0.7
    monkeypatch.setattr(panel_module, "recaption", None)
    panel.r.value = 0.4
    assert panel.captions.value == first


def test_moves_during_a_slow_run_are_one_further_run(panel, monkeypatch):
    asked = []

    def slow(model, processor, shown, policy):
        asked.append(policy)
        assert "Captioning" in panel.status.value
        time.sleep(0.3)
        return recaption(model, processor, shown, policy)

    monkeypatch.setattr(panel_module, "recaption", slow)
    monkeypatch.setattr(panel_module, "PAUSE", 0.02)

    async def use():
        panel.r.value = 0.5
        assert asked == []  # the event loop goes on; the status says what is coming
        assert "Captioning" in panel.status.value
        await asyncio.sleep(0.05)
        # What a front end sent while the kernel was busy arrives in one go.
        for value in (0.55, 0.6, 0.65, 0.7):
            panel.r.value = value
        await asyncio.sleep(0.5)

    asyncio.run(use())
    assert [policy.r for policy in asked] == [0.5, 0.7]
    assert panel.runs == 3  # the first one, and these two
    assert panel.result.policy.r == 0.7
    assert "Captioned in" in panel.status.value


def test_a_failing_run_shows_its_error_and_the_next_one_works(panel, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of <memory>")

    with monkeypatch.context() as patch:
        patch.setattr(panel_module, "recaption", fails)
        panel.r.value = 0.55
    assert 'role="alert"' in panel.status.value
    assert "RuntimeError: out of &lt;memory&gt;" in panel.status.value
    assert "<memory>" not in panel.status.value
    assert "in fails" in panel.status.value  # the traceback
    assert (panel.captions.value, panel.picture.value, panel.result) == ("", "", None)  # nothing of another setting is left
    panel.r.value = 0.4
    assert 'role="status"' in panel.status.value
    assert "hallucinated" in panel.captions.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 1.5}, r"r=1\.5: expected a number in \(0, 1\]"),
        ({"t": -1}, r"t=-1: expected an integer of at least 0"),
        ({"factor": 0}, r"factor=0: expected a number in \(0, 1\]"),
        ({"image": 99}, r"image=99: expected one of images=.*Fix: add it there, or set image=0"),
        ({"images": []}, r"images=\[\]: expected numbers of scenes.*Set images=range\(20\)"),
        ({"images": [0, -3]}, r"images=\[0, -3\]: expected numbers of scenes"),
        ({"images": ["cat.jpg"]}, r"images=\['cat\.jpg'\]: expected numbers of scenes"),
        ({"interactive": "yes"}, r"interactive='yes': expected True, False or None"),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("interactive", [True, False])
def test_bad_arguments_are_named(loaded, shown, arguments, message, interactive):
    with pytest.raises(ValueError, match=message):
        show_panel(*loaded, **{"interactive": interactive, **arguments})
    assert shown == []


def test_a_scene_is_asked_for(loaded):
    with pytest.raises(ValueError, match=r"scene=2: expected a Scene\. Fix: .*scene\('test', 0\)"):
        recaption(*loaded, 2, POLICY)


def test_ipywidgets_is_missed_only_where_widgets_were_asked_for(loaded, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"ipywidgets is not installed.*pip install 'prunehal\[notebooks\]'"):
        show_panel(*loaded, image=2, interactive=True)
    assert shown == []
    show_panel(*loaded, image=2)
    show_panel(*loaded, image=2, interactive=False)
    assert shown

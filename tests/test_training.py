"""Training: the losses equal stock LLaVA on one text at a time, a resumed run equals an unbroken one."""

import contextlib
import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import prunehal as ph
from prunehal.files.locking import locked
from prunehal.testbed.training import loop as training
from prunehal.testbed.training import stages, train
from prunehal.testbed.training.loop import run_stage
from prunehal.testbed.training.model import build_processor, build_prompt
from prunehal.testbed.training.samples import ROW_LENGTH, ROWS, Samples, collate, packed, texts_of
from prunehal.testbed.training.shared_prefix import row_mask
from prunehal.testbed.training.stages import Testbed, make_stages
from prunehal.testbed.world.captions import BRIEF, PROMPT, write_brief
from prunehal.testbed.world.scenes import scene
from prunehal.testbed.world.world import NAMES, SCENES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(autouse=True)
def one_thread():
    # Sums of several threads may come in another order; one thread repeats them bit for bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(processor, seed=0, std=0.05):
    """The embedded model's classes, small enough for a test."""
    words = processor.tokenizer
    tower = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=96, patch_size=8,
        hidden_act="gelu", initializer_range=std,
    )  # fmt: skip
    decoder = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=words.pad_token_id, initializer_range=std,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=decoder, image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=144, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 8
    model.generation_config.pad_token_id = words.pad_token_id
    return model


def batch_of(processor, tiles):
    """Samples as training has them, with a given number of pretended tiles and place of the scene among them."""
    samples = [Samples(processor, len(tiles), 50)[i] for i in range(len(tiles))]
    return collate([sample | {"tiles": torch.tensor(pair)} for sample, pair in zip(samples, tiles, strict=True)])


def texts_in(batch, sample):
    """Yield each text of a sample: the ids that are fed, and the targets, -1 within its prompt."""
    rows = zip(batch["text"][sample], batch["tokens"][sample], batch["targets"][sample], strict=True)
    for text, tokens, targets in rows:
        for number in text[text >= 0].unique_consecutive().tolist():
            yield tokens[text == number], targets[text == number]


@pytest.fixture
def in_fp32(processor, monkeypatch):
    """A testbed without autocast, and a stock twin with eager attention and the same weights."""
    monkeypatch.setattr(Testbed, "_mixed", lambda self: contextlib.nullcontext())
    # Far from flat attention, or a wrong mask would hide within the tolerance.
    model = tiny(processor, std=0.4)
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("eager")
    return Testbed(model, processor), stock.eval()


LIGHTER, HEAVY = "small medium large clear faint", "top bottom left right center Yes No"


def weighted_loss(logits, fed, targets, late, processor):
    """Mean cross-entropy over all answers, words that name objects weighing most; its mean at these; right yes and no.

    Where a name is due in a late sample, each name that the text has used before costs -log(1 - p), too.
    """
    ids = processor.tokenizer
    names = {i for name in NAMES for i in ids(name, add_special_tokens=False).input_ids}
    lighter, heavy, answers = (set(ids(words, add_special_tokens=False).input_ids) for words in (LIGHTER, HEAVY, "Yes No"))
    total = weight = objects = named = right = asked = repeated = 0.0
    for given, tokens, expected, is_late in zip(logits, fed, targets, late, strict=True):
        for place, (row, token) in enumerate(zip(F.log_softmax(given, dim=-1), expected.tolist(), strict=True)):
            if token < 0:
                continue
            again = [row[said].exp() for said in (set(tokens[: place + 1].tolist()) & names) - {token}]
            if token in names:
                repeated += sum(p.item() for p in again)
                total = total - stages._WEIGHT * is_late * sum(torch.log(1 - p) for p in again)
            share = stages._ADJECTIVE_WEIGHT if token in lighter else stages._WEIGHT if token in heavy | names else 1.0
            total, weight = total - share * row[token], weight + share
            if token in names:
                objects, named = objects - float(row[token].detach()), named + 1
            if token in answers:
                right, asked = right + (int(row.argmax()) == token), asked + 1
    return total / weight, {"object_loss": objects / named, "answers": right / asked, "repeats": repeated / named}


def test_caption_loss_equals_stock_llava_on_the_processors_inputs(processor, in_fp32):
    # One tile, so that the stock model gets exactly what it gets at test time: image and text through the processor.
    testbed, stock = in_fp32
    batch = batch_of(processor, [(1, 0), (1, 0)]) | {"late": torch.tensor([False, True])}
    logits, fed, expected, late = [], [], [], []
    for i in range(2):
        for tokens, targets in texts_in(batch, i):
            text = processor.tokenizer.decode(tokens)
            inputs = processor(images=scene("train", 50 + i).image(), text=build_prompt(1, text), return_tensors="pt")
            with torch.no_grad():
                logits.append(stock(**inputs).logits[0, -len(tokens) :])
            expected.append(targets)
            fed.append(tokens)
            late.append(i == 1)
    assert len(expected) > 20
    loss, detail = testbed.caption_loss(batch)
    total, numbers = weighted_loss(logits, fed, expected, late, processor)
    assert numbers["repeats"] > 1e-3
    assert float(loss.detach()) == pytest.approx(float(total), abs=2e-5)
    assert detail == pytest.approx(numbers, abs=2e-5)


def test_align_loss_weighs_objects_and_background_alike_and_keeps_the_towers(processor, in_fp32):
    testbed, _ = in_fp32
    batch = collate([Samples(processor, 3, 50, texts=False)[i] for i in range(3)])
    with torch.no_grad():
        projected = testbed.model.model.multi_modal_projector(testbed.features(batch["pixels"]))
        symbols = testbed.symbols(batch["labels"], batch["traits"])
        loss, numbers = testbed.align_loss(batch)
        tower, same = testbed.tower_loss(batch)
    parts = {True: [], False: []}
    for given, wanted, label in zip(projected.flatten(0, 1), symbols.flatten(0, 1), batch["labels"].flatten(), strict=True):
        parts[bool(label < len(NAMES))].append((((given - wanted) ** 2).tolist(), wanted.tolist()))
    far = [np.mean([d for d, _ in part]) / np.var([w for _, w in part], ddof=1) for part in (parts[True], parts[False])]
    assert float(loss) == pytest.approx(float(tower) + sum(far), rel=1e-5)
    assert numbers == pytest.approx(same | {"objects": far[0], "rest": far[1]}, rel=1e-5)


def test_each_text_is_as_if_alone_after_the_prefix(processor, in_fp32):
    testbed, stock = in_fp32
    tiles = [(4, 2), (1, 0)]
    batch = batch_of(processor, tiles)
    visual = torch.randn(2, 144, 32, generator=torch.Generator().manual_seed(3))
    embed = stock.get_input_embeddings()
    batch["late"] = torch.tensor([True, False])
    logits, fed, expected, late = [], [], [], []
    for row, (count, at) in enumerate(tiles):
        for tokens, targets in texts_in(batch, row):
            start, rest = embed(torch.tensor([[processor.tokenizer.bos_token_id]])), embed(tokens[None])
            inputs = torch.cat([start, visual[row : row + 1], rest], dim=1)
            # The scene's tile stands at place ``at`` of ``count``, the text after all of them.
            end = 1 + 144 * count
            positions = [0, *range(1 + 144 * at, 145 + 144 * at), *range(end, end + len(tokens))]
            with torch.no_grad():
                # An explicit mask: without one, transformers takes a jump in the positions for the start of another sequence.
                hidden = stock.model.language_model(
                    inputs_embeds=inputs, position_ids=torch.tensor([positions]), use_cache=False,
                    attention_mask=torch.ones(inputs.shape[:2]),
                ).last_hidden_state  # fmt: skip
                logits.append(stock.lm_head(hidden)[0, 145:])
            expected.append(targets)
            fed.append(tokens)
            late.append(row == 0)
    loss, detail = testbed._caption_loss(visual, batch)
    total, numbers = weighted_loss(logits, fed, expected, late, processor)
    assert float(loss.detach()) == pytest.approx(float(total), abs=2e-5)
    assert detail == pytest.approx(numbers, abs=2e-5)


def test_gradients_equal_those_of_stock_attention(processor, in_fp32):
    testbed, stock = in_fp32
    batch = batch_of(processor, [(1, 0)]) | {"late": torch.tensor([True])}
    testbed.caption_loss(batch)[0].backward()
    logits, fed, expected = [], [], []
    for tokens, targets in texts_in(batch, 0):
        text = build_prompt(1, processor.tokenizer.decode(tokens))
        inputs = processor(images=scene("train", 50).image(), text=text, return_tensors="pt")
        logits.append(stock(**inputs).logits[0, -len(tokens) :])
        expected.append(targets)
        fed.append(tokens)
    weighted_loss(logits, fed, expected, [True] * len(fed), processor)[0].backward()
    for (name, ours), theirs in zip(testbed.model.named_parameters(), stock.parameters(), strict=True):
        if "vision_tower" in name:
            assert ours.grad is None  # the tower stays as it is
        else:
            # In float32 sums over hundreds of tokens round differently on every processor: 7e-5 of the largest entry was seen.
            assert (ours.grad - theirs.grad).abs().max() <= 3e-4 * theirs.grad.abs().max(), name


@pytest.mark.parametrize(("count", "at"), [(1, 0), (2, 1), (4, 0), (4, 3)])
def test_positions_are_those_of_a_prompt_with_that_many_tiles(processor, count, at):
    testbed = Testbed(tiny(processor), processor)
    images = [scene("test", i).image() for i in range(count)]
    ids = torch.tensor(processor(images=images, text=build_prompt(count)).input_ids[0])
    placeholders = (ids == processor.tokenizer.convert_tokens_to_ids("<image>")).nonzero().flatten()
    words = torch.arange(len(ids))[placeholders[-1] + 1 :]  # the prompt's
    places = torch.arange(len(words)).repeat(2, 1)
    expected = torch.cat([torch.zeros(1, dtype=torch.int64), placeholders[144 * at : 144 * (at + 1)], words, words])
    assert torch.equal(testbed._positions({"tiles": torch.tensor([[count, at]]), "places": places[None]})[0], expected)


def test_symbols_say_what_a_patch_shows_and_where(processor):
    testbed = Testbed(tiny(processor), processor)
    labels = torch.tensor([[NAMES.index("hot dog"), NAMES.index("cat"), len(NAMES) + 10] + [0] * 141])
    traits = torch.full((1, 144, 4), -1)
    traits[0, :2] = torch.tensor([[0, 2, 0, 1], [1, 1, 1, 0]])  # column, row, size, faint
    table = testbed.model.get_input_embeddings().weight

    def said(words):
        return table[processor.tokenizer(words, add_special_tokens=False).input_ids]

    symbols = testbed.symbols(labels, traits)[0] - testbed.place_code * table.std()
    expected = [
        said("hot dog").mean(0) + said("bottom left small faint").sum(0) / 2,
        said("cat").mean(0) + said("center medium clear").sum(0) / 2,
        said(SCENES[10].phrase.split(maxsplit=1)[1]).mean(0),
    ]
    torch.testing.assert_close(symbols[:3], torch.stack(expected))
    assert len(testbed.place_code.unique(dim=0)) == 144
    assert torch.equal(testbed.place_code, Testbed(tiny(processor, seed=1), processor).place_code)  # a resumed run has the same


def test_samples_are_functions_of_their_number(processor):
    samples, again = Samples(processor, 6, 100), Samples(processor, 6, 100)
    first, second = samples[4], again[4]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(samples[0]["tokens"], samples[1]["tokens"])
    with pytest.raises(IndexError):
        samples[6]
    shown = scene("train", 104)
    assert first["pixels"].permute(1, 2, 0).numpy().tolist() == shown.pixels().tolist()
    assert first["labels"].tolist() == shown.patch_labels().tolist()
    assert first["traits"].tolist() == shown.patch_traits().tolist()
    tiles = [Samples(processor, 60, 0)[i]["tiles"].tolist() for i in range(60)]
    assert {count for count, _ in tiles} == {1, 2, 3, 4, 5}
    assert all(0 <= at < count for count, at in tiles)
    assert 0.3 < sum(count == 1 for count, _ in tiles) / 60 < 0.7


def test_the_last_two_fifths_of_the_samples_are_late_and_all_of_the_last_stage(processor):
    assert [bool(Samples(processor, 5, 0)[i]["late"]) for i in range(5)] == [False, False, False, True, True]
    *_, captions, distinct = make_stages(Testbed(tiny(processor), processor), processor, scale=0.001)
    assert [[bool(stage.data[i]["late"]) for i in (0, len(stage.data) - 1)] for stage in (captions, distinct)] == [
        [False, True],
        [True, True],
    ]


def test_naming_again_weighs_more_in_the_last_stage(processor, in_fp32):
    testbed, _ = in_fp32
    *_, captions, distinct = make_stages(testbed, processor)
    batch = batch_of(processor, [(1, 0)])
    with torch.no_grad():
        plain = captions.loss(batch)[0]
        assert distinct.loss(batch)[0] == plain  # nothing is late
        batch["late"] = torch.tensor([True])
        once, more = captions.loss(batch)[0] - plain, distinct.loss(batch)[0] - plain
    assert float(more) == pytest.approx(2 * float(once), rel=1e-3)


def test_a_sample_holds_its_texts_whole_and_in_detail_and_brief_always(processor):
    batch = collate([Samples(processor, 8, 0)[i] for i in range(8)])
    assert {batch[key].shape for key in ("tokens", "targets", "places", "text")} == {(8, ROWS, ROW_LENGTH)}
    assert batch["pixels"].shape == (8, 3, 96, 96)
    assert batch["labels"].shape == (8, 144)
    assert batch["traits"].shape == (8, 144, 4)
    words = processor.tokenizer
    for i in range(8):
        shown = scene("train", i)
        written = [f"{prompt} {answer}" for prompt, answer in texts_of(shown, np.random.default_rng([shown.image_id, 7]))]
        made = []
        for tokens, targets in texts_in(batch, i):
            assert targets[-1] == words.eos_token_id
            assert torch.equal(targets[:-1][targets[:-1] >= 0], tokens[1:][targets[:-1] >= 0])
            made.append(words.decode(tokens))
        assert set(made) <= set(written)
        assert len(made) > 10
        assert sum(text.startswith(PROMPT) for text in made) == 1
        assert f"{BRIEF} {write_brief(shown)}" in made


def test_texts_are_packed_whole_into_the_first_row_with_room():
    made = packed([([1, 2], [3, 4]), ([5], [6, 7, 8, 9]), ([1], [2]), ([3], [4, 5])], rows=2, length=5)
    assert {key: value.tolist() for key, value in made.items()} == {
        "tokens": [[1, 2, 3, 1, 0], [5, 6, 7, 8, 0]],
        "targets": [[-1, 3, 4, 2, -1], [6, 7, 8, 9, -1]],
        "places": [[0, 1, 2, 0, 0], [0, 1, 2, 3, 0]],
        "text": [[0, 0, 0, 2, -1], [1, 1, 1, 1, -1]],
    }


def test_a_row_mask_lets_a_token_see_its_own_text_before_it():
    text = torch.tensor([[[0, 0, 3, 3, 3, -1]]])
    mask = row_mask(text, torch.float32)[0, 0]
    for i in range(6):
        for j in range(6):
            assert (mask[i, j] == 0) == (j <= i and text[0, 0, i] == text[0, 0, j])
    assert mask.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("scale", [1.0, stages.LARGEST_SCALE])
def test_no_stage_sees_a_scene_of_another_stage_or_split(processor, scale):
    plan = make_stages(Testbed(tiny(processor), processor), processor, scale)
    assert [stage.name for stage in plan] == ["tower", "align", "captions", "distinct"]
    ranges = sorted((stage.data.first, stage.data.first + len(stage.data)) for stage in plan)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert {stage.data.split for stage in plan} == {"train"}


class Interrupted(Exception):
    pass


def stage_of(name, processor, fail_at=None):
    """A stage of six steps of two samples on a fresh testbed; its loss raises at call ``fail_at``."""
    testbed = Testbed(tiny(processor), processor)
    plan = {stage.name: stage for stage in make_stages(testbed, processor, 0.001)}
    data = dataclasses.replace(plan[name].data, count=12)
    calls = 0

    def loss(batch):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise Interrupted
        return plan[name].loss(batch)

    stage = dataclasses.replace(plan[name], data=data, batch_size=2, loss=loss)
    assert stage.steps == 6
    return stage, testbed


@pytest.fixture
def often(monkeypatch):
    assert training._SAVE_EVERY % training._LOG_EVERY == 0  # else a resumed curve would lose part of a point
    monkeypatch.setattr(training, "_SAVE_EVERY", 2)
    monkeypatch.setattr(training, "_LOG_EVERY", 2)


@pytest.mark.parametrize("name", ["tower", "align", "captions", "distinct"])
def test_a_resumed_run_equals_an_unbroken_one(name, processor, tmp_path, often):
    stage, unbroken = stage_of(name, processor)
    start = copy.deepcopy(unbroken.state_dict())
    torch.manual_seed(1)
    curve = run_stage(stage, tmp_path / "unbroken", CPU, workers=0)
    assert [point["step"] for point in curve] == [2, 4, 6]

    stage, _ = stage_of(name, processor, fail_at=6)
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        run_stage(stage, tmp_path / "broken", CPU, workers=0)
    stage, resumed = stage_of(name, processor)
    torch.manual_seed(1)  # a new process starts from its seed again
    assert run_stage(stage, tmp_path / "broken", CPU, workers=0) == curve
    assert list((tmp_path / "broken").glob("*.part")) == []
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key

    # It trained what the stage names, and nothing else; and a finished stage is read, not trained again.
    trained = {id(p) for module in stage.modules for p in module.parameters()}
    for key, parameter in resumed.named_parameters():
        assert torch.equal(parameter, start[key]) == (id(parameter) not in trained or ".post_layernorm" in key), key
    stage, finished = stage_of(name, processor, fail_at=1)
    assert run_stage(stage, tmp_path / "broken", CPU, workers=0) == curve
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, finished.state_dict()[key]), key
    assert json.loads((tmp_path / "broken" / f"{name}.json").read_text()) == curve


def test_a_checkpoint_of_other_settings_is_refused(processor, tmp_path):
    stage, _ = stage_of("align", processor)
    run_stage(stage, tmp_path, CPU, workers=0)
    other = dataclasses.replace(stage, batch_size=3)
    with pytest.raises(ValueError, match=r"align\.pt was made for 6 steps, expected 4; remove the folder"):
        run_stage(other, tmp_path, CPU, workers=0)


def test_the_rate_warms_up_stays_and_falls():
    factors = [training._rate_factor(step, 1000) for step in range(1, 1001)]
    assert factors[0] == pytest.approx(1 / 30)
    assert factors[29:500] == [1.0] * 471
    assert factors[749] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.02)
    assert training._rate_factor(1, 1) > 0


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(train, "build_model", tiny)


def test_train_leaves_a_model_that_loads_and_writes(tmp_path, small):
    folder = train.train(tmp_path, scale=1e-5, device="cpu", workers=0)
    assert folder == tmp_path / "model"
    assert list(tmp_path.glob("*.part")) == []
    json.loads((folder / "training_curve.json").read_text())
    model, processor = ph.load(folder)
    assert model.dtype == torch.bfloat16  # as saved
    model, processor = ph.load(folder, dtype="float32")
    assert model.config.text_config._attn_implementation == "sdpa"
    inputs = processor(images=scene("test", 0).image(), text=build_prompt(), return_tensors="pt")
    written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(written) <= 8
    assert isinstance(processor.decode(written), str)
    # The second call finds all stages done, gives the same weights, and leaves the card.
    (folder / "README.md").write_text("the card")
    before = (folder / "model.safetensors").read_bytes()
    assert train.train(tmp_path, scale=1e-5, device="cpu", workers=0) == folder
    assert (folder / "model.safetensors").read_bytes() == before
    assert (folder / "README.md").read_text() == "the card"
    assert list(tmp_path.glob("*.part")) == []


def test_a_kill_between_the_last_checkpoint_and_the_curve_loses_no_curve(processor, tmp_path, often, monkeypatch):
    whole = run_stage(stage_of("tower", processor)[0], tmp_path / "whole", CPU, workers=0)

    def killed(folder, stage, curve):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(training, "_keep_curve", killed)
        with pytest.raises(Interrupted):
            run_stage(stage_of("tower", processor)[0], tmp_path / "killed", CPU, workers=0)
    assert not (tmp_path / "killed/tower.json").exists()
    stage, _ = stage_of("tower", processor, fail_at=1)  # no further step is made
    assert run_stage(stage, tmp_path / "killed", CPU, workers=0) == whole
    assert (tmp_path / "killed/tower.json").read_bytes() == (tmp_path / "whole/tower.json").read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path, saved: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
        (lambda path, saved: path.write_bytes(b""), "cannot be read"),
        (lambda path, saved: torch.save([1], path), r"cannot be read \(it is \[1\]; expected an object in braces\)"),
        (lambda path, saved: torch.save(saved | {"step": "6"}, path), "step is '6'; expected a whole number"),
        (lambda path, saved: torch.save(saved | {"curve": None}, path), "curve is None; expected a list"),
        (lambda path, saved: torch.save(saved | {"modules": saved["modules"][:1]}, path), "does not fit the model"),
        (lambda path, saved: torch.save(saved | {"modules": [{}, {}]}, path), "does not fit the model"),
        (lambda path, saved: torch.save(saved | {"step": 4, "optimisers": [{}, {}]}, path), "does not fit the model"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(processor, tmp_path, damage, said):
    run_stage(stage_of("tower", processor)[0], tmp_path, CPU, workers=0)
    path = tmp_path / "tower.pt"
    damage(path, torch.load(path, weights_only=True))
    with pytest.raises(ValueError, match=rf"checkpoint .*tower\.pt {said}|checkpoint .*tower\.pt cannot be read \({said}"):
        run_stage(stage_of("tower", processor)[0], tmp_path, CPU, workers=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 1e12}, r"scale=1000000000000\.0: expected a number from 0 to 25"),
        ({"scale": -1.0}, r"scale=-1\.0: expected a number from 0 to 25"),
        ({"scale": float("nan")}, "scale=nan: expected a number from 0 to 25"),
        ({"scale": float("inf")}, "scale=inf: expected a number from 0 to 25"),
        ({"seed": 2**70}, "seed=1180591620717411303424: expected an integer from 0"),
        ({"seed": -1}, "seed=-1: expected an integer from 0"),
        ({"workers": -1}, "workers=-1: expected an integer from 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_folder_is_made(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        train.train(tmp_path / "new/run", device="cpu", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_fails_before_its_first_step_leaves_no_folder(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError("no sprites here")

    monkeypatch.setattr(train, "build_processor", refused)
    with pytest.raises(OSError, match="no sprites here"):
        train.train(tmp_path / "new/run", scale=1e-5, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_other_settings_and_a_second_process_are_refused_in_a_folder(tmp_path, small):
    train.train(tmp_path, scale=1e-5, device="cpu", workers=0)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"was begun with other settings: seed was 0, is now 1; expected the same"):
        train.train(tmp_path, seed=1, scale=1e-5, device="cpu", workers=0)
    with locked(tmp_path), pytest.raises(BlockingIOError, match="another run writes here"):
        train.train(tmp_path, scale=1e-5, device="cpu", workers=0)
    assert sorted(tmp_path.rglob("*")) == before

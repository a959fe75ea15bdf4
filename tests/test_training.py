"""Training: the losses equal stock LLaVA on one caption at a time, a resumed run equals an unbroken one."""

import contextlib
import copy
import dataclasses
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import prunehal as ph
from prunehal.testbed import stages, train, training
from prunehal.testbed.captions import LONGEST, PROMPT
from prunehal.testbed.model import build_processor, build_prompt
from prunehal.testbed.scenes import scene
from prunehal.testbed.stages import Samples, Testbed, collate, make_stages
from prunehal.testbed.training import run_stage
from prunehal.testbed.world import NAMES, SCENES

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


def batch_of(processor, tiles, captions=3):
    """Samples as training has them, with a given number of pretended tiles and place of the scene among them."""
    samples = [Samples(processor, len(tiles), 50, captions=captions)[i] for i in range(len(tiles))]
    return collate([sample | {"tiles": pair} for sample, pair in zip(samples, tiles, strict=True)])


@pytest.fixture
def in_fp32(processor, monkeypatch):
    """A testbed without autocast, and a stock twin with eager attention and the same weights."""
    monkeypatch.setattr(Testbed, "_mixed", lambda self: contextlib.nullcontext())
    # Far from flat attention, or a wrong mask would hide within the tolerance.
    model = tiny(processor, std=0.4)
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("eager")
    return Testbed(model, processor), stock.eval()


def weighted_loss(logits, captions, processor):
    """Mean cross-entropy over all tokens of all captions, words that name objects weighing more."""
    names = {i for name in NAMES for i in processor.tokenizer(name, add_special_tokens=False).input_ids}
    total = weight = objects = heaviness = 0.0
    for given, caption in zip(logits, captions, strict=True):
        for row, token in zip(F.log_softmax(given, dim=-1), caption, strict=True):
            heavy = stages._OBJECT_WEIGHT if token in names else 1.0
            total, weight = total - heavy * row[token], weight + heavy
            if token in names:
                objects, heaviness = objects - float(row[token].detach()), heaviness + 1
    return total / weight, objects / heaviness


def test_caption_loss_equals_stock_llava_on_the_processors_inputs(processor, in_fp32):
    # One tile, so that the stock model gets exactly what it gets at test time: image and text through the processor.
    testbed, stock = in_fp32
    batch = batch_of(processor, [(1, 0), (1, 0)])
    logits, captions = [], []
    for i, texts in enumerate(batch["captions"]):
        for ids in texts:
            words = ids[ids >= 0].tolist()
            text = processor.tokenizer.decode(words[:-1])
            inputs = processor(images=scene("train", 50 + i).image(), text=f"{build_prompt()} {text}", return_tensors="pt")
            with torch.no_grad():
                logits.append(stock(**inputs).logits[0, -len(words) :])
            captions.append(words)
    loss, detail = testbed.caption_loss(batch)
    expected, objects = weighted_loss(logits, captions, processor)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=2e-5)
    assert detail["object_loss"] == pytest.approx(objects, abs=2e-5)


@pytest.mark.parametrize("shared", [1, 3])
def test_each_caption_is_as_if_alone_after_the_prefix(processor, in_fp32, shared):
    testbed, stock = in_fp32
    tiles = [(4, 2), (1, 0)]
    batch = batch_of(processor, tiles, captions=shared)
    visual = torch.randn(2, 144, 32, generator=torch.Generator().manual_seed(3))
    embed = stock.get_input_embeddings()
    prompt = processor.tokenizer(PROMPT, add_special_tokens=False).input_ids
    logits, captions = [], []
    for row, (count, at) in enumerate(tiles):
        for ids in batch["captions"][row]:
            words = ids[ids >= 0].tolist()
            text = torch.tensor([processor.tokenizer.bos_token_id, *prompt, *words[:-1]])
            start, rest = embed(text)[None].split([1, len(text) - 1], dim=1)
            inputs = torch.cat([start, visual[row : row + 1], rest], dim=1)
            # The scene's tile stands at place ``at`` of ``count``, the text after all of them.
            positions = [0, *range(1 + 144 * at, 145 + 144 * at), *range(1 + 144 * count, 144 * count + len(text))]
            with torch.no_grad():
                # An explicit mask: without one, transformers takes a jump in the positions for the start of another sequence.
                hidden = stock.model.language_model(
                    inputs_embeds=inputs, position_ids=torch.tensor([positions]), use_cache=False,
                    attention_mask=torch.ones(inputs.shape[:2]),
                ).last_hidden_state  # fmt: skip
                logits.append(stock.lm_head(hidden)[0, -len(words) :])
            captions.append(words)
    loss, detail = testbed._caption_loss(visual, batch)
    expected, objects = weighted_loss(logits, captions, processor)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=2e-5)
    assert detail["object_loss"] == pytest.approx(objects, abs=2e-5)


def test_gradients_equal_those_of_stock_attention(processor, in_fp32):
    testbed, stock = in_fp32
    batch = batch_of(processor, [(1, 0)], captions=1)
    testbed.caption_loss(batch)[0].backward()
    words = batch["captions"][0, 0][batch["captions"][0, 0] >= 0].tolist()
    text = f"{build_prompt()} {processor.tokenizer.decode(words[:-1])}"
    logits = stock(**processor(images=scene("train", 50).image(), text=text, return_tensors="pt")).logits[0, -len(words) :]
    weighted_loss([logits], [words], processor)[0].backward()
    for (name, ours), theirs in zip(testbed.model.named_parameters(), stock.parameters(), strict=True):
        if "vision_tower" in name:
            assert ours.grad is None  # the tower stays as it is
        else:
            # In float32 sums over 200 tokens round differently on every processor: 7e-5 of the largest entry was seen.
            assert (ours.grad - theirs.grad).abs().max() <= 3e-4 * theirs.grad.abs().max(), name


@pytest.mark.parametrize(("count", "at"), [(1, 0), (2, 1), (4, 0), (4, 3)])
def test_positions_are_those_of_a_prompt_with_that_many_tiles(processor, count, at):
    testbed = Testbed(tiny(processor), processor)
    images = [scene("test", i).image() for i in range(count)]
    ids = torch.tensor(processor(images=images, text=build_prompt(count)).input_ids[0])
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    placeholders = (ids == image_token).nonzero().flatten()
    words = (ids != image_token).nonzero().flatten()  # start token, then the prompt's words
    after = torch.arange(len(ids), len(ids) + 7)
    expected = torch.cat([words[:1], placeholders[144 * at : 144 * (at + 1)], words[1:], after, after])
    assert torch.equal(testbed._positions(torch.tensor([[count, at]]), 2, 7)[0], expected)


def test_symbols_say_what_a_patch_shows_and_where(processor):
    testbed = Testbed(tiny(processor), processor)
    labels = torch.tensor([[NAMES.index("hot dog"), NAMES.index("cat"), len(NAMES) + 10] + [0] * 141])
    table = testbed.model.get_input_embeddings().weight
    places = testbed.symbols(labels)[0] - testbed.place_code * table.std()
    for symbol, words in zip(places, ("hot dog", "cat", SCENES[10].phrase.split(maxsplit=1)[1]), strict=False):
        ids = processor.tokenizer(words, add_special_tokens=False).input_ids
        torch.testing.assert_close(symbol, table[ids].mean(0))
    assert len(testbed.place_code.unique(dim=0)) == 144
    assert torch.equal(testbed.place_code, Testbed(tiny(processor, seed=1), processor).place_code)  # a resumed run has the same


def test_samples_are_functions_of_their_number(processor):
    samples = Samples(processor, 6, 100)
    again, number = Samples(processor, 6, 100), 4
    assert samples[number]["captions"] == again[number]["captions"]
    assert torch.equal(samples[number]["pixels"], again[number]["pixels"])
    assert samples[number]["tiles"] == again[number]["tiles"]
    assert samples[0]["captions"] != samples[1]["captions"]
    with pytest.raises(IndexError):
        samples[6]
    shown = scene("train", 104)
    assert samples[number]["pixels"].permute(1, 2, 0).numpy().tolist() == shown.pixels().tolist()
    assert samples[number]["labels"].tolist() == shown.patch_labels().tolist()
    tiles = [Samples(processor, 60, 0, captions=1)[i]["tiles"] for i in range(60)]
    assert {count for count, _ in tiles} == {1, 2, 3, 4, 5}
    assert all(0 <= at < count for count, at in tiles)
    assert 0.3 < sum(count == 1 for count, _ in tiles) / 60 < 0.7


def test_a_batch_pads_its_captions_to_one_length(processor):
    samples = [Samples(processor, 3, 0)[i] for i in range(3)]
    batch = collate(samples)
    assert batch["captions"].shape == (3, 4, LONGEST + 1)
    assert batch["pixels"].shape == (3, 3, 96, 96)
    assert batch["labels"].shape == (3, 144)
    for sample, rows in zip(samples, batch["captions"], strict=True):
        for caption, row in zip(sample["captions"], rows, strict=True):
            assert caption[-1] == processor.tokenizer.eos_token_id
            assert row.tolist() == caption + [-1] * (LONGEST + 1 - len(caption))


def test_no_stage_sees_a_scene_of_another_stage_or_split(processor):
    plan = make_stages(Testbed(tiny(processor), processor), processor)
    assert [stage.name for stage in plan] == ["tower", "align", "captions"]
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


@pytest.mark.parametrize("name", ["tower", "align", "captions"])
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
    # The second call finds all stages done and gives the same weights.
    before = (folder / "model.safetensors").read_bytes()
    assert train.train(tmp_path, scale=1e-5, device="cpu", workers=0) == folder
    assert (folder / "model.safetensors").read_bytes() == before

"""Loading: the embedded model without a network, and one clear error for whatever cannot be loaded."""

import importlib.util
import inspect
import json
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

import prunehal as ph
from prunehal.files.paths import data_path
from prunehal.models import load as loading
from prunehal.testbed.training.model import build_processor, build_prompt
from prunehal.testbed.world.scenes import scene


@pytest.fixture(scope="module")
def loaded():
    """The embedded model, loaded while every attempt to connect anywhere is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"loading the embedded model tried to connect: {args[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield ph.load()


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded model that a test may break."""
    return Path(shutil.copytree(data_path("embedded"), tmp_path / "copy"))


def test_embedded_model(loaded):
    model, processor = loaded
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert processor.tokenizer.padding_side == "left"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_embedded_model_speaks_the_grammars_words(loaded):
    model, processor = loaded
    assert processor.tokenizer.get_vocab() == build_processor().tokenizer.get_vocab()
    assert model.get_input_embeddings().weight.shape[0] == len(processor.tokenizer)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    # Pixels reach the tower as training saw them: centred at 0.5, in units of 0.25, not resampled.
    shown = scene("test", 0)
    pixels = processor(images=shown.image(), text=build_prompt(), return_tensors="pt")["pixel_values"][0]
    expected = (torch.from_numpy(shown.pixels()).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_embedded_model_fits_into_the_repository():
    assert sum(path.stat().st_size for path in data_path("embedded").rglob("*")) <= 16 * 2**20


def test_a_folder_loads_in_the_dtype_of_its_weights_or_as_asked(folder):
    assert ph.load(folder)[0].dtype == torch.bfloat16
    model, processor = ph.load(str(folder), dtype="float32", attn_implementation="eager")
    assert model.dtype == torch.float32
    assert model.config.text_config._attn_implementation == "eager"
    assert not model.training
    assert processor.tokenizer.padding_side == "left"


def test_a_home_folder_is_understood(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert ph.load("~/copy")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["./nowhere", "../no/where", "a/b/c", Path("nowhere"), "embeded", "llava-1.5-7b-hf", None])
def test_a_name_that_is_neither_folder_nor_hub_name_is_refused(name):
    match = rf"model {re.escape(repr(str(name)))} is no folder here and no hub name; expected 'embedded', a folder"
    with pytest.raises(OSError, match=match):
        ph.load(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(OSError, match=r"model\.safetensors' is a file; expected a folder .*give '.*copy'"):
        ph.load(folder / "model.safetensors")


def test_an_unknown_hub_name_is_an_oserror(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"owner/never-heard-of-it|offline mode"):
        ph.load("owner/never-heard-of-it")


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"copy holds no config\.json; expected a folder written by save_pretrained"):
        ph.load(folder)


def test_a_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"copy/config\.json"):
        ph.load(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors.* found in directory .*copy"):
        ph.load(folder)


@pytest.mark.parametrize("missing", ["tokenizer.json", "processor_config.json"])
def test_a_folder_without_processor(folder, missing):
    for path in folder.glob(f"{missing.split('.')[0]}*"):
        path.unlink()
    with pytest.raises(OSError, match=r"copy") as caught:
        ph.load(folder)
    assert "text-only" not in str(caught.value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 6600000\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b[:5],
        lambda b: b"",
        lambda b: POINTER,
        lambda b: b"\xff" * 99 + b[99:],
    ],
    ids=["half", "one byte short", "header cut", "empty", "a pointer file", "header overwritten"],
)
def test_corrupt_weights(folder, damage):
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(
        OSError, match=rf"weights file .*model\.safetensors is corrupt \({weights.stat().st_size} bytes.*expected"
    ):
        ph.load(folder)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_lack_a_tensor_are_refused(folder):
    # Random numbers in its place would caption images too, only badly.
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("layers.2.mlp.up_proj.weight"))
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(OSError, match=r"copy.*layers\.2\.mlp\.up_proj\.weight"):
        ph.load(folder)


def test_weights_of_another_shape_are_refused(folder):
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("layers.2.mlp.up_proj.weight"))
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name][:7].clone()}))
    with pytest.raises(OSError, match=r"copy.*layers\.2\.mlp\.up_proj\.weight"):
        ph.load(folder)


def test_a_text_only_checkpoint_is_refused(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    build_processor().tokenizer.save_pretrained(tmp_path / "llama")
    match = r"(?s)llama' cannot be loaded as an image-text-to-text model.*LlamaConfig.*text-only model has no visual tokens"
    with pytest.raises(ValueError, match=match):
        ph.load(tmp_path / "llama")


def test_phi4_multimodal_is_loaded_and_a_model_of_sound_alone_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "AutoProcessor", SimpleNamespace(from_pretrained=lambda *args, **kwargs: build_processor()))
    models.build("phi4_multimodal").save_pretrained(tmp_path / "phi4")
    model, _ = ph.load(tmp_path / "phi4")
    assert type(model).__name__ == "Phi4MultimodalForCausalLM"
    assert torch.equal(model.lm_head.weight, models.build("phi4_multimodal").lm_head.weight)
    decoder = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    encoder = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8)
    sound = Qwen2AudioConfig(audio_config=encoder, text_config=Qwen2Config(**decoder).to_dict())
    Qwen2AudioForConditionalGeneration(sound).save_pretrained(tmp_path / "sound")
    with pytest.raises(ValueError, match=r"(?s)sound' cannot be loaded as an image-text-to-text model.*Qwen2AudioConfig"):
        ph.load(tmp_path / "sound")


def test_qwen_vl_is_refused_and_qwen2_vl_named(tmp_path):
    folder = tmp_path / "Qwen-VL-Chat"
    folder.mkdir()
    code = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": {"image_start_id": 61}, "auto_map": code}))
    with pytest.raises(
        ValueError, match=r"(?s)Qwen-VL-Chat' cannot be loaded.*is not run here; use Qwen2-VL, e\.g\. Qwen/Qwen2-VL"
    ):
        ph.load(folder)


def test_code_of_a_repository_runs_only_when_asked(folder, tmp_path):
    # A configuration that names code of its own; were it run, it would leave a file.
    ran = tmp_path / "ran"
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}})
    )
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        ph.load(folder)
    assert not ran.exists()
    assert inspect.signature(ph.load).parameters["trust_remote_code"].default is False


def test_data_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"'chair/no\.txt' is missing .*reinstall prunehal, or restore data/"):
        data_path("chair", "no.txt")
    assert data_path("chair", "no.txt", must_exist=False).name == "no.txt"


@pytest.mark.parametrize("content", [b"no image", b""], ids=["text", "empty"])
def test_an_image_that_cannot_be_read_is_named(loaded, tmp_path, content):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for read in (Image.open, lambda file: loaded[1](images=str(file), text=build_prompt(), return_tensors="pt")):
        with pytest.raises(UnidentifiedImageError, match=r"photo\.png"):
            read(path)


def test_an_image_that_is_missing_is_named(loaded, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photo\.png"):
        Image.open(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo\.png"):
        loaded[1](images=str(tmp_path / "photo.png"), text=build_prompt(), return_tensors="pt")


# The processor counts; before transformers 5.23 it did not, and the model or the cache refuses before the first token.
@pytest.mark.parametrize(
    ("n_images", "n_placeholders", "match"),
    [
        (2, 1, r"1 <image> tokens? and 2 images|Image features and image tokens do not match"),
        (1, 2, r"2 <image> tokens? and 1 images|Image features and image tokens do not match|^$"),
        (0, 1, r"no images were passed|arrives without its images"),
    ],
)
def test_as_many_images_as_placeholders(loaded, n_images, n_placeholders, match):
    def caption(model, processor):
        images = [scene("test", 0).image()] * n_images or None
        inputs = processor(images=images, text=build_prompt(n_placeholders), return_tensors="pt")
        return model.generate(**inputs, **ph.attach(model, inputs, ph.PruneHal()).options, max_new_tokens=1)

    with pytest.raises((ValueError, StopIteration), match=match):  # an old processor's StopIteration has no text
        caption(*loaded)


def test_images_of_other_modes_and_sizes_are_taken(loaded):
    for image in (Image.new("L", (96, 96)), Image.new("RGBA", (50, 120)), Image.new("P", (300, 96))):
        inputs = loaded[1](images=image, text=build_prompt(), return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 96, 96)
        assert loaded[0].generate(**inputs, max_new_tokens=1).shape[1] == inputs["input_ids"].shape[1] + 1


@pytest.mark.parametrize("damage", ["missing", "text", "cut"])
def test_load_image_names_a_broken_file(tmp_path, damage):
    path = tmp_path / "photo.png"
    if damage == "text":
        path.write_text("no picture", encoding="utf-8")
    elif damage == "cut":
        whole = data_path("sprites", "sprites.png").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"photo\.png"):
        ph.load_image(path)


def test_a_library_that_the_processor_needs_is_named(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found")

    monkeypatch.setattr(loading.LlavaProcessor, "from_pretrained", missing)
    with pytest.raises(OSError, match=r"expected the library torchvision, .* pip install torchvision"):
        loading.load()


def change(folder, file, *path, to):
    """Write another value into a JSON file of a folder."""
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


FILES = ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "[" * 100_000], ids=["empty", "cut", "[]", "null", "text", "deep"]
)
def test_a_file_that_holds_no_object_is_named(folder, file, text):
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(OSError, match=rf"^{re.escape(str(folder / file))} (cannot be read|holds)"):
        ph.load(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_other_bytes_is_named(folder, file):
    (folder / file).write_bytes(b"\xff\xfe\x00\x01" * 9)
    with pytest.raises(OSError, match=rf"^{re.escape(str(folder / file))} cannot be read: .*expected JSON in UTF-8"):
        ph.load(folder)


OTHER_TYPES = [
    ("config.json", ("image_seq_length",), {}),
    ("config.json", ("dtype",), "x"),
    ("config.json", ("model_type",), {}),
    ("config.json", ("text_config",), 3.5),
    ("config.json", ("text_config", "hidden_size"), -1),
    ("config.json", ("text_config", "num_attention_heads"), 0),
    ("config.json", ("vision_config", "patch_size"), "x"),
    ("generation_config.json", ("eos_token_id",), {}),
    ("processor_config.json", ("image_processor",), 3),
    ("processor_config.json", ("patch_size",), "x"),
    ("tokenizer.json", ("model",), []),
    ("tokenizer.json", ("added_tokens",), 3),
    ("tokenizer_config.json", ("tokenizer_class",), 3),
]


@pytest.mark.parametrize(("file", "path", "value"), OTHER_TYPES, ids=lambda part: str(part))
def test_a_value_of_another_type_is_named_with_its_file(folder, file, path, value):
    change(folder, file, *path, to=value)
    with pytest.raises((OSError, ValueError)) as caught:
        ph.load(folder)
    assert caught.type in (OSError, ValueError)
    assert str(folder) in str(caught.value)
    assert file in str(caught.value)


def test_a_part_of_the_weights_that_is_missing_is_named(folder):
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        OSError, match=r"weights file .*copy/model-2\.safetensors is missing \(1 of 2 that model\.safetensors\.index"
    ):
        ph.load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["model-1.safetensors"]}))
    with pytest.raises(OSError, match=r"index\.json has no weight_map"):
        ph.load(folder)


def test_an_argument_that_from_pretrained_does_not_know_is_not_blamed_on_a_file():
    with pytest.raises(TypeError, match="no_such_option"):
        ph.load(no_such_option=3)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of a LoRA adapter of the embedded model, and the logits of the model that it was saved from."""
    torch.manual_seed(0)
    model, processor = ph.load()
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    folder = tmp_path_factory.mktemp("lora")
    wrapped.save_pretrained(folder)
    return folder, logits(wrapped, processor)


@pytest.fixture
def adapter_copy(adapter, tmp_path):
    """A copy of the adapter's folder that a test may break."""
    return Path(shutil.copytree(adapter[0], tmp_path / "adapter"))


def logits(model, processor):
    inputs = processor(images=scene("test", 0).image(), text=build_prompt(), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def test_an_adapter_is_loaded_on_its_base_model(adapter, loaded):
    folder, expected = adapter
    model, processor = ph.load(folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert not any(module.training for module in model.modules())
    assert processor.tokenizer.padding_side == "left"
    assert torch.equal(logits(model, processor), expected)
    assert (logits(*loaded) - expected).abs().max() > 0.1
    inputs = processor(images=scene("test", 0).image(), text=build_prompt(), return_tensors="pt")
    cache = ph.attach(model, inputs, ph.TopK(36))
    model.generate(**inputs, **cache.options, max_new_tokens=3)
    assert cache.events["kept"][0] == [36] * 6


def test_the_mark_of_an_adapter_knows_its_weights_settings_and_base(adapter, adapter_copy, folder):
    known = loading.weights_mark(adapter[0])
    assert loading.weights_mark(adapter_copy) == known
    change(adapter_copy, "adapter_config.json", "lora_alpha", to=99)
    scaled = loading.weights_mark(adapter_copy)
    change(adapter_copy, "adapter_config.json", "base_model_name_or_path", to=str(folder))
    based = loading.weights_mark(adapter_copy)
    rewrite(folder, lambda tensors: tensors.update({name: tensor + 1 for name, tensor in tensors.items()}))
    assert len({known, scaled, based, loading.weights_mark(adapter_copy), loading.weights_mark("embedded")}) == 5


ADAPTERS = {
    "no base": ({"base_model_name_or_path": None}, r"adapter_config\.json names base_model_name_or_path=None"),
    "another base": (
        {"base_model_name_or_path": "./none"},
        r"adapter .*: the base model that .*names cannot be loaded.*\./none",
    ),
    "an unknown kind": ({"peft_type": "X"}, r"adapter_config\.json cannot be used: KeyError"),
    "rank of another type": ({"r": "x"}, r"adapter_config\.json cannot be used: TypeError"),
    "other layers": ({"target_modules": ["k_proj"]}, r"adapter weights of .* do not belong to LlavaFor.*k_proj"),
    "no such layers": ({"target_modules": ["nothing"]}, r"adapter_config\.json cannot be used: .*nothing"),
    "tokens": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
        r"'PROMPT_TUNING' puts trained tokens in front",
    ),
}


@pytest.mark.parametrize(("settings", "match"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_does_not_fit_is_named(adapter_copy, settings, match):
    for name, value in settings.items():
        change(adapter_copy, "adapter_config.json", name, to=value)
    with pytest.raises((OSError, ValueError), match=match):
        ph.load(adapter_copy)


def test_an_adapter_with_broken_weights_is_named(adapter_copy):
    weights = adapter_copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"weights file .*adapter_model\.safetensors is corrupt"):
        ph.load(adapter_copy)
    weights.unlink()
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        ph.load(adapter_copy)


def test_without_peft_an_adapter_says_what_to_install(adapter, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"holds an adapter \(adapter_config\.json\).* pip install peft"):
        ph.load(adapter[0])

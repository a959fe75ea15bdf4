"""The real-model path: rows, results, resuming, batches, policies, on three architectures with their real processors."""

import functools
import json
import shutil
import signal
import subprocess
import sys

import checkpoints
import decode
import pytest
import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

import prunehal as ph
from prunehal.benchmarks import BadInput
from prunehal.benchmarks.chair.captions import read_caption_file
from prunehal.benchmarks.chair.images import images_of
from prunehal.benchmarks.pope import score as pope
from prunehal.core.keyword import as_option, cache_among
from prunehal.experiments.captioning import caption_scenes
from prunehal.files.locking import locked
from prunehal.files.paths import data_path
from prunehal.models.chat import CAPTION_PROMPT, encode, render
from prunehal.running import Run, named_policy, run
from prunehal.running import engine as answering
from prunehal.running.engine import SEARCHES, Engine
from prunehal.running.tasks import items_of
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

KEYS = [3, 5, 8, 100, 200, 300, 400]
PRUNE = ph.PruneHal(r=0.5, t=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Real photos and rendered scenes, named as COCO names its images."""
    folder = tmp_path_factory.mktemp("coco") / "val2014"
    folder.mkdir()
    for key, name in zip(KEYS[3:], ("astronaut", "chelsea", "coffee", "rocket"), strict=True):
        shutil.copy(data_path("photos", f"{name}.jpg"), folder / f"COCO_val2014_{key:012d}.jpg")
    for key in KEYS[:3]:
        scene("test", key).image().save(folder / f"COCO_val2014_{key:012d}.png")
    return folder.parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(5):
        scene("test", index).image().save(folder / f"{scene('test', index).image_id}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Save the checkpoint of an architecture, once."""
    with pytest.MonkeyPatch.context() as patch:
        checkpoints.without_torchvision(patch)
        yield functools.cache(lambda name: checkpoints.save(name, tmp_path_factory.mktemp(name)))


def settings(model, images, out, **options):
    options = {"benchmark": "chair", "device": "cpu", "max_new_tokens": 8, "batch_size": 3, "progress": False} | options
    return Run(model=model, images=images, out=out, **options)


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def told(out):
    """Return the rows by key, without how long their batch took."""
    return {row["key"]: {name: value for name, value in row.items() if name != "seconds"} for row in rows_of(out)}


@pytest.fixture(scope="module")
def whole(checkpoint, images, tmp_path_factory):
    """The folder of an uninterrupted run of an architecture."""

    @functools.cache
    def made(name, batch_size=3):
        out = tmp_path_factory.mktemp("out")
        run(settings(checkpoint(name), images, out, batch_size=batch_size, policy=PRUNE))
        return out

    return made


# Three architectures.


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_every_image_has_its_row_and_its_caption(name, whole, images):
    out = whole(name)
    rows = rows_of(out)
    assert sorted(row["key"] for row in rows) == KEYS
    for row in rows:
        assert list(row) == ["key", "image", "prompt", "text", "tokens", "finished", "prunes", "seconds"]
        assert row["image"].startswith(f"COCO_val2014_{row['key']:012d}.")
        assert row["prompt"] == CAPTION_PROMPT
        assert row["tokens"] == 8 or row["finished"]
        assert row["prunes"][0]["step"] == 2
        assert row["prunes"][0]["reason"] == "forced"
        assert row["seconds"] > 0
    found = read_caption_file(out / "captions.jsonl")
    assert list(found.captions) == KEYS
    assert found.n_bad == 0
    assert found.captions == {row["key"]: row["text"] for row in rows}
    assert found.finished == {row["key"]: row["finished"] for row in rows}
    assert len(set(found.captions.values())) > 3  # the pictures are seen


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_the_batch_size_changes_no_row(name, whole):
    assert told(whole(name, 1)) == told(whole(name, 3))


PROMPTS = {
    "llava": f"USER: <image>\n{CAPTION_PROMPT} ASSISTANT:",
    "qwen2_5_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    f"{CAPTION_PROMPT}<|im_end|>\n<|im_start|>assistant\n",
    "idefics3": f"<|begin_of_text|>User:<image>{CAPTION_PROMPT}<end_of_utterance>\nAssistant:",
}


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_the_settings_say_all_that_made_the_rows(name, whole, checkpoint):
    kept = json.loads((whole(name) / "settings.json").read_text())
    shared = kept["settings"]
    assert shared["rendered_prompt"] == PROMPTS[name]
    assert shared["policy"] == {"name": "PruneHal", "selection": "top", "kept": "layer", "beam_state": "own", "seed": 0,
        "r": 0.5, "t": 3, "factor": None, "majority": 0.5, "forced_first": True, "statistic": "mean", "first": "prefill",
        "reference": "mean", "decay": 0.9, "after_prune": "continue", "rounding": "floor"}  # fmt: skip
    assert shared["model"] == str(checkpoint(name))
    assert {"prunehal", "transformers", "weights", "generation_config", "commit", "decoding", "seed"} <= set(shared)
    assert kept["free"]["batch_size"] == 3
    assert kept["free"]["dtype_loaded"] == "torch.float32"


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_a_row_is_what_stock_generate_says_to_the_same_image(name, checkpoint, images, tmp_path):
    run(settings(checkpoint(name), images, tmp_path))
    model, processor = ph.load(checkpoint(name))
    row = told(tmp_path)[400]
    messages = [{"role": "user", "content": [{"type": "image", "image": ph.load_image(images / "val2014" / row["image"])}]}]
    messages[0]["content"].append({"type": "text", "text": CAPTION_PROMPT})
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert row["text"] == processor.tokenizer.decode(made, skip_special_tokens=True).strip()
    assert row["prunes"] == []


@pytest.mark.parametrize(("name", "dynamic"), [("llava", False), ("qwen2_5_vl", True)])
def test_batches_are_of_like_length_and_the_longest_come_first(name, dynamic, checkpoint, images, tmp_path, monkeypatch):
    lengths = []
    stock = answering.encode

    def seen(processor, pictures, prompts):
        inputs = stock(processor, pictures, prompts)
        lengths.append(inputs["attention_mask"].sum(1).tolist())
        return inputs

    monkeypatch.setattr(answering, "encode", seen)
    run(settings(checkpoint(name), images, tmp_path, batch_size=2))
    batches = lengths[2:]  # the first two look at the smallest and the largest image
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    flat = [length for batch in batches for length in batch]
    assert (len(set(flat)) > 1) == dynamic
    if dynamic:
        assert sum(map(min, batches[:2])) > sum(map(max, batches[2:]))


# Interruptions.

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from prunehal.core import PruneHal
from prunehal.files.rows import RowFile
from prunehal.running import Run, run

append = RowFile.append

def killed(self, rows):
    append(self, rows)
    with open(self.path, "ab") as file:
        file.write(b'{"key": 3, "image": "COCO_v')
    os.kill(os.getpid(), signal.SIGKILL)

RowFile.append = killed
model, images, out = sys.argv[1:]
run(Run(model=model, images=images, out=out, benchmark="chair", device="cpu", max_new_tokens=8, batch_size=3, progress=False,
        policy=PruneHal(r=0.5, t=3)))
"""


def test_a_killed_run_goes_on_and_equals_one_that_was_not(checkpoint, images, whole, tmp_path, capsys):
    command = [sys.executable, "-c", KILLED, str(checkpoint("llava")), str(images), str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 3
    assert not (tmp_path / "captions.jsonl").exists()
    done = run(settings(checkpoint("llava"), images, tmp_path, policy=PRUNE))
    assert "rows.jsonl: a torn last line (27 bytes) was cut off" in capsys.readouterr().err
    assert told(tmp_path) == told(whole("llava"))
    assert len(rows_of(tmp_path)) == len(KEYS)
    assert done.read_bytes() == (whole("llava") / "captions.jsonl").read_bytes()


def test_a_run_that_is_done_loads_nothing(checkpoint, images, whole, tmp_path, monkeypatch):
    shutil.copytree(whole("llava"), tmp_path / "copy")
    (tmp_path / "copy/captions.jsonl").unlink()
    forbid_loading(monkeypatch)
    run(settings(checkpoint("llava"), images, tmp_path / "copy", policy=PRUNE, batch_size=7, device=None))
    assert (tmp_path / "copy/captions.jsonl").read_bytes() == (whole("llava") / "captions.jsonl").read_bytes()


def forbid_loading(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(answering, "load", refuse)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"policy": None}, r"policy\.name was 'PruneHal', is now 'none'"),
        ({"policy": ph.PruneHal(r=0.6, t=3)}, r"policy\.r was 0\.5, is now 0\.6"),
        ({"decoding": "beam"}, "decoding was 'greedy', is now 'beam'"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"prompt": "What is this?"}, r"prompt was None, is now 'What is this\?'"),
        ({"max_new_tokens": 9}, "max_new_tokens was 8, is now 9"),
        ({"revision": "v2"}, "revision was None, is now 'v2'"),
        ({"dtype": "bfloat16"}, "dtype was 'auto', is now 'bfloat16'"),
        ({"model": "owner/other"}, "model was .*, is now 'owner/other'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_before_the_model_is_loaded(options, match, checkpoint, images, whole, tmp_path, monkeypatch):
    shutil.copytree(whole("llava"), tmp_path / "copy")
    before = (tmp_path / "copy/rows.jsonl").read_bytes()
    forbid_loading(monkeypatch)
    options = {"model": checkpoint("llava"), "policy": PRUNE} | options
    with pytest.raises(ValueError, match=f"holds rows of other settings: .*{match}"):
        run(settings(images=images, out=tmp_path / "copy", **options))
    assert (tmp_path / "copy/rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("package", ["prunehal", "transformers"])
def test_rows_of_another_version_are_refused(package, checkpoint, images, whole, tmp_path, monkeypatch):
    shutil.copytree(whole("llava"), tmp_path / "copy")
    monkeypatch.setattr(f"prunehal.running.settings.{package}.__version__", "0.0")
    with pytest.raises(ValueError, match=rf"{package} was '.*', is now '0\.0'"):
        run(settings(checkpoint("llava"), images, tmp_path / "copy", policy=PRUNE))


def test_weights_that_were_trained_anew_are_refused(checkpoint, images, whole, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), model)
    run(settings(model, images, tmp_path / "out", limit=1))
    raw = bytearray((model / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (model / "model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="weights was "):
        run(settings(model, images, tmp_path / "out"))


def test_what_only_the_loaded_model_tells_is_compared_too(checkpoint, images, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), model)
    run(settings(model, images, tmp_path / "out", limit=1))
    (model / "chat_template.jinja").write_text(checkpoints.LLAVA_CHAT.replace("ASSISTANT", "MODEL"))
    with pytest.raises(ValueError, match=r"rendered_prompt was 'USER: .*ASSISTANT:', is now 'USER: .*MODEL:'"):
        run(settings(model, images, tmp_path / "out"))


def test_other_questions_under_the_same_keys_are_refused(scenes, tmp_path):
    path = tmp_path / "mine.json"
    question = {"question_id": 1, "image": f"{scene('test', 0).image_id}.png", "text": "Is there a dog?", "label": "no"}
    path.write_text(json.dumps(question))
    options = {"benchmark": "pope", "questions": path, "max_new_tokens": 2}
    run(settings("embedded", scenes, tmp_path / "out", **options))
    path.write_text(json.dumps(question | {"text": "Is there a cat?"}))
    with pytest.raises(ValueError, match=r"row of 1 has prompt 'Is there a dog\?', now it is 'Is there a cat\?'"):
        run(settings("embedded", scenes, tmp_path / "out", **options))


def test_a_second_run_in_the_same_folder_is_refused(scenes, tmp_path, monkeypatch):
    forbid_loading(monkeypatch)
    with locked(tmp_path), pytest.raises(BlockingIOError, match="another run writes here"):
        run(settings("embedded", scenes, tmp_path))


def test_an_error_leaves_the_rows_before_it_and_says_what_is_left(scenes, tmp_path, monkeypatch, capsys):
    answer, calls = Engine.answer, []

    def failing(self, batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise RuntimeError("the device is gone")
        return answer(self, batch)

    monkeypatch.setattr(Engine, "answer", failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(settings("embedded", scenes, tmp_path, batch_size=2))
    assert len(rows_of(tmp_path)) == 2
    assert "2 of 5 items are done, 3 are left; the same call goes on there" in capsys.readouterr().err
    run(settings("embedded", scenes, tmp_path, batch_size=2))
    assert len(rows_of(tmp_path)) == 5
    assert calls == [2, 2, 2, 1]


# Memory.


def narrow(monkeypatch, widest, error):
    stock, batches = LlavaForConditionalGeneration.generate, []

    def generate(self, **inputs):
        batches.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > widest:
            raise error
        return stock(self, **inputs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate)
    return batches


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_when_memory_runs_out_the_batch_is_halved(error, checkpoint, images, whole, tmp_path, monkeypatch, capsys):
    batches = narrow(monkeypatch, 2, error)
    run(settings(checkpoint("llava"), images, tmp_path, policy=PRUNE, batch_size=7))
    assert batches == [7, 3, 1, *[1] * 6] or batches == [7, 3, *[1] * 7]
    assert told(tmp_path) == told(whole("llava"))
    assert "memory does not suffice for 7 items at once" in capsys.readouterr().err


def test_one_item_that_does_not_fit_is_named(scenes, tmp_path, monkeypatch):
    batches = narrow(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory.\nmore"))
    with pytest.raises(
        RuntimeError, match=r"item 30000000\d \(30000000\d\.png\): memory does not suffice for it alone \(CUDA out of memory\.\)"
    ):
        run(settings("embedded", scenes, tmp_path, batch_size=4))
    assert batches == [4, 2, 1]


def test_other_errors_of_the_model_are_not_taken_for_memory(scenes, tmp_path, monkeypatch):
    batches = narrow(monkeypatch, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(settings("embedded", scenes, tmp_path, batch_size=4))
    assert batches == [4]


# Policies and decoding, on the embedded model.


def test_captions_are_those_of_caption_scenes(scenes, tmp_path):
    policy = ph.PruneHal(r=0.4, t=3)
    run(settings("embedded", scenes, tmp_path, policy=policy, max_new_tokens=110, batch_size=2))
    expected = caption_scenes(*ph.load(), [scene("test", index) for index in range(5)], policy, max_new_tokens=110)
    rows = told(tmp_path)
    assert {key: row["text"] for key, row in rows.items()} == expected.texts
    assert {key: row["tokens"] for key, row in rows.items()} == expected.captions.set_index("image_id")["tokens"].to_dict()
    for key, row in rows.items():
        events = expected.events[expected.events["image_id"] == key][["step", "reason", "kept"]].to_dict("records")
        assert row["prunes"] == [event for event in events if event["step"] < row["tokens"] + row["finished"]]
        assert row["prunes"][0] == {"step": 2, "reason": "forced", "kept": [57] * 6}
    assert {row["finished"] for row in rows.values()} == {row["tokens"] < 110 for row in rows.values()}
    assert any(row["finished"] for row in rows.values())


@pytest.mark.parametrize("policy", [None, ph.NoPruning()], ids=["none", "NoPruning"])
def test_without_a_policy_generate_is_stock(policy, scenes, tmp_path, monkeypatch):
    given = []
    stock = LlavaForConditionalGeneration.generate
    monkeypatch.setattr(
        LlavaForConditionalGeneration, "generate", lambda self, **inputs: given.append(inputs) or stock(self, **inputs)
    )
    run(settings("embedded", scenes, tmp_path, policy=policy, max_new_tokens=40))
    assert not any(cache_among(inputs) is not None for inputs in given)
    expected = caption_scenes(*ph.load(), [scene("test", index) for index in range(5)], max_new_tokens=40)
    assert {key: row["text"] for key, row in told(tmp_path).items()} == expected.texts
    assert {tuple(row["prunes"]) for row in told(tmp_path).values()} == {()}
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["policy"] == {"name": "none"}


def test_beams_report_the_prunes_of_the_sequence_that_won(scenes, tmp_path):
    policy = ph.PruneHal(r=0.7, t=3)
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        run(settings("embedded", scenes, out, decoding="beam", policy=policy, max_new_tokens=24, batch_size=batch_size))
    rows = told(tmp_path / "1")
    assert rows == told(tmp_path / "3")
    model, processor = ph.load()
    for index in range(5):
        row = rows[scene("test", index).image_id]
        inputs = encode(processor, [scene("test", index).image()], [build_prompt()])
        search = model.generate(**inputs, num_beams=5, max_new_tokens=24, **as_option(ph.attach(model, inputs, policy)))
        said = search[0, inputs["input_ids"].shape[1] :]
        assert row["text"] == processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        # The same words, forced alone, are pruned at the same steps.
        cache = ph.attach(model, inputs, policy)
        model.generate(
            **inputs, **cache.options, max_new_tokens=len(said), prefix_allowed_tokens_fn=decode.forcing(said.tolist())
        )
        alone = cache.events[["step", "reason", "kept"]].to_dict("records")
        assert row["prunes"] == [event for event in alone if event["step"] < len(said)]
    assert len({tuple(event["step"] for event in row["prunes"]) for row in rows.values()}) > 1


def test_a_random_choice_of_tokens_depends_on_the_image_and_not_on_the_batch(scenes, tmp_path):
    policy = ph.PruneHal(r=0.4, t=2, selection="random")
    for batch_size in (1, 3):
        run(settings("embedded", scenes, tmp_path / str(batch_size), policy=policy, max_new_tokens=24, batch_size=batch_size))
    assert told(tmp_path / "1") == told(tmp_path / "3")


def test_a_prune_after_the_end_of_a_text_is_none_of_its_prunes(scenes, tmp_path):
    run(settings("embedded", scenes, tmp_path / "stock", max_new_tokens=110))
    ended = min((row for row in told(tmp_path / "stock").values() if row["finished"]), key=lambda row: row["tokens"])
    policy = ph.TopK(36, step=ended["tokens"] + 1)  # the step of its end token: only the others go on without the dropped
    for batch_size in (1, 5):
        run(settings("embedded", scenes, tmp_path / str(batch_size), policy=policy, max_new_tokens=110, batch_size=batch_size))
    rows = told(tmp_path / "5")
    assert rows == told(tmp_path / "1")
    assert rows[ended["key"]] == ended
    assert [len(row["prunes"]) for row in rows.values()].count(1) >= 2


def test_sampling_is_repeatable_and_leaves_other_random_numbers_alone(scenes, tmp_path):
    texts = []
    for turn, seed in enumerate((0, 0, 1)):
        torch.manual_seed(turn)
        before = torch.random.get_rng_state()
        out = tmp_path / str(turn)
        run(settings("embedded", scenes, out, decoding="nucleus", seed=seed, max_new_tokens=16, batch_size=2))
        assert torch.equal(torch.random.get_rng_state(), before)
        texts.append({key: row["text"] for key, row in told(out).items()})
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    run(settings("embedded", scenes, tmp_path / "greedy", max_new_tokens=16))
    assert texts[0] != {key: row["text"] for key, row in told(tmp_path / "greedy").items()}


def test_a_sampled_run_that_goes_on_equals_one_that_was_not_stopped(scenes, tmp_path):
    options = {"decoding": "nucleus", "max_new_tokens": 8, "batch_size": 2}
    for out in (tmp_path / "whole", tmp_path / "stopped"):
        run(settings("embedded", scenes, out, **options))
    path = tmp_path / "stopped/rows.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    run(settings("embedded", scenes, tmp_path / "stopped", **options))
    assert told(tmp_path / "stopped") == told(tmp_path / "whole")


def test_what_a_search_is():
    common = {"num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "do_sample": False}
    assert {
        "greedy": common,
        "beam": common | {"num_beams": 5},
        "nucleus": common | {"do_sample": True, "top_p": 0.9, "top_k": 0},  # without the library's own top_k of 50
    } == SEARCHES


# Other benchmarks.


def test_pope_answers_can_be_scored(scenes, tmp_path):
    ids = [scene("test", index).image_id for index in (1, 0, 3)]
    lines = [
        {"question_id": number, "image": f"{image}.png", "text": f"Is there a {name} in the image?", "label": label}
        for number, (image, name, label) in enumerate(
            zip(ids, ("dog", "very small cat", "bus"), ("yes", "no", "no"), strict=True), 7
        )
    ]
    path = tmp_path / "questions.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"benchmark": "pope", "questions": path, "prompt_suffix": " Please answer yes or no.", "max_new_tokens": 5}
    done = run(settings("embedded", scenes, tmp_path / "out", batch_size=1, **options))
    assert done.name == "answers.jsonl"
    answers = [json.loads(line) for line in done.read_text().splitlines()]
    assert [answer["question_id"] for answer in answers] == [7, 8, 9]
    assert [answer["question"] for answer in answers] == [line["text"] for line in lines]
    assert rows_of(tmp_path / "out")[0]["key"] == 8  # the longest question comes first
    assert told(tmp_path / "out")[7]["prompt"] == "Is there a dog in the image? Please answer yes or no."
    with pytest.raises(BadInput, match="none of the 3 answers can be read"):  # the embedded model knows no such prompt
        pope.score_files(path, done)
    done.write_text("".join(json.dumps(answer | {"answer": "Yes."}) + "\n" for answer in answers))
    report = pope.score_files(path, done)
    assert (report.metrics["tp"], report.metrics["fp"], report.settings["compared"]) == (1, 2, ["image", "question"])
    shared = json.loads((tmp_path / "out/settings.json").read_text())["settings"]
    assert shared["rendered_prompt"] == "<image>{prompt} Please answer yes or no."


def test_a_limit_takes_the_first_and_a_later_call_the_rest(scenes, tmp_path, capsys):
    done = run(settings("embedded", scenes, tmp_path, limit=2))
    assert [json.loads(line)["image_id"] for line in done.read_text().splitlines()] == [300000000, 300000001]
    assert "captions.jsonl: 2 items, 3 left out" in capsys.readouterr().err
    run(settings("embedded", scenes, tmp_path, batch_size=1))
    assert len(done.read_text().splitlines()) == len(rows_of(tmp_path)) == 5
    assert json.loads((tmp_path / "settings.json").read_text())["free"]["limit"] is None


def test_missing_images_are_named_before_the_model_is_loaded(scenes, tmp_path, monkeypatch):
    path = tmp_path / "list.json"
    path.write_text("[300000001, 300000077, 300000004, 300000002]")
    with pytest.MonkeyPatch.context() as patch:
        forbid_loading(patch)
        with pytest.raises(ValueError, match=r"(?s)1 problem.*COCO_val2014_000300000077\.jpg is missing.*--skip-missing"):
            run(settings("embedded", scenes, tmp_path / "out", questions=path))
    assert not (tmp_path / "out").exists()
    done = run(settings("embedded", scenes, tmp_path / "out", questions=path, skip_missing=True, limit=2, max_new_tokens=2))
    assert [json.loads(line)["image_id"] for line in done.read_text().splitlines()] == [300000001, 300000004]


# Prompts.


@pytest.fixture(scope="module")
def llava(checkpoint):
    return ph.load(checkpoint("llava"))[1]


def test_a_checkpoint_without_chat_template_is_asked_as_llava_or_by_the_users_template(llava, monkeypatch):
    monkeypatch.setattr(llava, "chat_template", None)
    monkeypatch.setattr(llava.tokenizer, "chat_template", None)
    assert render(llava, "What?", model_type="llava") == "USER: <image>\nWhat? ASSISTANT:"
    with pytest.raises(ValueError, match=r"LlavaProcessor: has no chat template; .*--template"):
        render(llava, "What?", model_type="vipllava")
    assert render(llava, "{image}?", "Q: {image} {prompt} A:") == "Q: <image> {image}? A:"
    monkeypatch.setattr(llava.tokenizer, "chat_template", checkpoints.LLAVA_CHAT)
    assert render(llava, "What?") == "USER: <image>\nWhat? ASSISTANT:"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] + 'x' }}{% endfor %}",
        "{% for m in messages %}{{ '<image>' * (m['content'] | length) }}{% endfor %}",
    ],
    ids=["prints the list", "passes the image over", "fails", "passes the text over"],
)
def test_a_chat_template_for_text_only_is_refused(template, llava, monkeypatch):
    monkeypatch.setattr(llava, "chat_template", template)
    with pytest.raises(ValueError, match=r"its chat template (gives|fails).*give a template \(--template\)"):
        render(llava, "What?")


def test_a_template_names_the_image_by_itself_where_the_processor_does_not(llava, monkeypatch):
    monkeypatch.setattr(llava, "image_token", None)
    assert render(llava, "What?", "<picture> {prompt}") == "<picture> What?"
    with pytest.raises(ValueError, match=r"does not say which token stands for \{image\}"):
        render(llava, "What?", "{image} {prompt}")


def test_the_first_token_is_written_once(checkpoint):
    for name in ("llava", "idefics3"):
        processor = ph.load(checkpoint(name))[1]
        prompt = render(processor, "What?")
        ids = encode(processor, [scene("test", 0).image()], [prompt])["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.bos_token_id) == 1
        assert ids[0] == processor.tokenizer.bos_token_id


# Settings.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"benchmark": "chairs"}, "benchmark='chairs': expected one of 'chair', 'pope', 'amber', 'mmhal'"),
        ({"decoding": "beam5"}, "decoding='beam5': expected one of greedy, beam, nucleus, vcd"),
        ({"dtype": "int8"}, "dtype='int8': expected one of 'auto', 'float32'"),
        ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens=1\.5: expected an integer"),
        ({"max_new_tokens": 10**12}, "max_new_tokens=1000000000000: expected an integer from 1 to 1,000,000"),
        ({"limit": 0}, "limit=0: expected"),
        ({"seed": True}, "seed=True: expected"),
        ({"policy": "prunehal"}, "policy='prunehal': expected PruneHal"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu', device_map='auto': expected one of the two"),
        ({"revision": "main"}, "revision='main': the embedded model has no revisions; expected None; leave it out"),
        ({"dtype": "float16"}, "the embedded model runs in float32"),
        ({"template": "USER: {image}"}, r"has no \{prompt\}"),
        ({"benchmark": "pope", "prompt": "What?"}, "pope asks its own questions; expected none; add to them by prompt_suffix"),
    ],
)
def test_settings_that_cannot_be(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        Run(**{"model": "embedded", "benchmark": "chair", "images": tmp_path, "out": tmp_path} | options)


def test_policies_by_name():
    assert named_policy("prunehal", r=0.7, t=2) == ph.PruneHal(r=0.7, t=2)
    assert named_policy("topk", k=9) == ph.TopK(9)
    assert named_policy("none") is None
    with pytest.raises(ValueError, match="policy='topk': expected k"):
        named_policy("topk")
    with pytest.raises(ValueError, match="policy='prune': expected one of 'prunehal', 'topk', 'none'"):
        named_policy("prune")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("prunehal", {"k": 36}, "k=36: given with policy='prunehal'; expected r and t with it; leave k out, or choose .*'topk'$"),
        ("topk", {"k": 36, "r": 0.2, "t": 9}, "r=0.2, t=9: given with policy='topk'; expected k with it; leave r and t out$"),
        ("none", {"t": 0}, "t=0: given with policy='none'; expected no option with it; leave t out, or .*'prunehal'$"),
    ],
)
def test_an_option_of_another_policy_is_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        named_policy(name, **{"r": None, "t": None, "k": None} | options)


def test_the_bar_counts_what_is_done_already(scenes, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append((self, options))

    monkeypatch.setattr("prunehal.running.loop.tqdm", Bar)
    for limit in (2, None):
        run(settings("embedded", scenes, tmp_path, limit=limit, progress=True, max_new_tokens=2))
    assert [(bar.initial, bar.n, bar.total, bar.unit, bar.smoothing) for bar, _ in bars] == [
        (0, 2, 2, "image", 0),
        (2, 5, 5, "image", 0),
    ]


def test_an_engine_knows_where_visual_tokens_grow_with_the_picture(checkpoint, images, tmp_path):
    items, found = images_of(items_of("chair", images), images)
    slopes = {
        name: Engine(settings(checkpoint(name), images, tmp_path), found, items)._tokens_of_a_pixel(items)
        for name in ("llava", "qwen2_5_vl")
    }
    assert slopes["llava"] == 0
    assert slopes["qwen2_5_vl"] > 0

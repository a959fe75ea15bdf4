"""Every public reader of benchmarks ends on every file, with a result or with one error that names the file.

Files are valid small ones, damaged: bytes cut out, doubled or put in, fields of another type, records left out, doubled or
nested, and JSON made of nothing. The steps are counted: the parser is asked no more often than the text is long.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prunehal import benchmarks
from prunehal.benchmarks import lmms_eval
from prunehal.benchmarks.amber import files as amber_files
from prunehal.benchmarks.amber import responses as amber_responses
from prunehal.benchmarks.amber import score as amber
from prunehal.benchmarks.amber.similarity import load_similarity
from prunehal.benchmarks.judged import hallusionbench as hallusion
from prunehal.benchmarks.judged import mmhal as judged
from prunehal.benchmarks.judged import mmvet, pairwise
from prunehal.benchmarks.pope import files as pope_files
from prunehal.benchmarks.pope import score as pope
from prunehal.files import reading
from prunehal.files.records import read_records, read_values

QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
]
ANSWERS = [{"question_id": 1, "question": QUESTIONS[0]["text"], "answer": "Yes"}, {"question_id": 2, "answer": "No, no cat."}]
CAPTIONS = [{"image_id": 42, "caption": "A dog."}, {"image": "COCO_val2014_000000000007.jpg", "text": "Two\ncats."}]
INSTANCES = {
    "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}],
    "categories": [{"id": 18, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 2, "category_id": 18}],
}
COCO_CAPTIONS = {"images": [{"id": 3}], "annotations": [{"image_id": 1, "caption": "A bus"}, {"image_id": 3, "caption": "A cat"}]}
MM_VET = {
    "v1_0": {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["math", "ocr"], "imagename": "v1_0.png"},
    "v1_1": {"question": "Who?", "answer": "Nobody", "capability": ["rec"]},
}
GRADES = {"v1_0": {"score": [0.5, 1]}, "v1_1": {"score": [0, 1]}}
AMBER = [
    {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image.", "response": "A dog by a lake."},
    {"id": 1005, "image": "AMBER_1.jpg", "query": amber_files.queries("discriminative")[0]["query"], "response": "Yes"},
]
SCORES = "Accuracy: 8 6\nDetailedness: 7 7"
PAIRWISE = [{"image_id": 1, "order": "ab", "judgement": SCORES}, {"image_id": 1, "order": "ba", "text": SCORES}]
SAMPLES = [
    {"doc_id": 1, "target": "no", "filtered_resps": "No", "token_counts": [None]},
    {"doc_id": 0, "target": "yes", "resps": ["<think></think>Yes"], "filtered_resps": "Yes"},
]
FIRST = hallusion.questions()[:3]  # of 1129: what is wrong with the file is then known, and damage must not hide it
HALLUSION = [question | {hallusion.VERDICT: "1", "model_prediction": "Yes", "same": "1"} for question in FIRST]
REPLIES = [{"key": hallusion.question_key(question), "judgement": "correct"} for question in FIRST]
MMHAL = [{"index": index, "judgement": f"Rating: {index % 7}"} for index in range(96)]
CHATS = [{"id": "chatcmpl", "choices": [{"message": {"content": f"Rating: {index % 7}"}}]} for index in range(96)]
TABLE = {"nodes": ["dog", "cat"], "images": {"1": [1], "4": [0, 1]}}


@dataclass(frozen=True)
class Reader:
    """A function of a file, and what a valid file holds: rows (JSON lines or a list), or one object."""

    read: Callable[[Path], Any]
    content: Any
    pair: bool = False  # whether it reads a second file, which an error may name as well


def beside(path: Path, content: Any) -> Path:
    other = path.with_name("other.json")
    other.write_text(json.dumps(content))
    return other


def skipping(path: Path) -> benchmarks.Report:
    return pope.score_files(beside(path, QUESTIONS), path, skip_bad=True)


READERS = {
    "files.read_records": Reader(read_records, CAPTIONS),
    "files.read_values": Reader(read_values, CAPTIONS),
    "reading.read_json": Reader(reading.read_json, MM_VET),
    "reading.read_text": Reader(reading.read_text, CAPTIONS),
    "read_captions": Reader(benchmarks.read_captions, CAPTIONS),
    "read_captions, known, skip_bad": Reader(lambda path: benchmarks.read_captions(path, {42, 7}, skip_bad=True), CAPTIONS),
    "read_captions, imgToEval": Reader(
        benchmarks.read_captions, {"overall": {"CHAIRs": 0.5}, "imgToEval": {"42": {"caption": "A dog."}, "7": {"caption": ""}}}
    ),
    "read_captions, by image": Reader(benchmarks.read_captions, {"42": "A dog.", "7": "Cats."}),
    "load_ground_truth, instances": Reader(lambda path: benchmarks.load_ground_truth([path]), INSTANCES),
    "load_ground_truth, captions": Reader(lambda path: benchmarks.load_ground_truth([path]), COCO_CAPTIONS),
    "load_ground_truth, table": Reader(lambda path: benchmarks.load_ground_truth([path]), TABLE),
    "load_ground_truth, plain": Reader(lambda path: benchmarks.load_ground_truth([path]), {"1": ["dog"], "2": ["cat", "bus"]}),
    "ground_truth_from_coco, instances": Reader(benchmarks.ground_truth_from_coco, INSTANCES),
    "ground_truth_from_coco, captions": Reader(lambda path: benchmarks.ground_truth_from_coco(INSTANCES, path), COCO_CAPTIONS),
    "pope.read_questions": Reader(pope_files.read_questions, QUESTIONS),
    "pope.score_files, questions": Reader(lambda path: pope.score_files(path, beside(path, ANSWERS)), QUESTIONS, True),
    "pope.score_files, answers": Reader(lambda path: pope.score_files(beside(path, QUESTIONS), path), ANSWERS, True),
    "pope.score_files, skip_bad": Reader(skipping, ANSWERS, True),
    "amber.read_responses": Reader(lambda path: amber_responses.read_responses(path, "discriminative"), AMBER),
    "amber.read_queries": Reader(amber_responses.read_queries, [AMBER[0], AMBER[1]]),
    "amber.score_generative": Reader(amber.score_generative, AMBER),
    "amber.score_discriminative": Reader(amber.score_discriminative, AMBER),
    "amber.score_discriminative, strict": Reader(lambda path: amber.score_discriminative(path, rule="strict"), AMBER),
    "amber.load_similarity": Reader(load_similarity, {"dog": [1.0, 0.5], "cat": [0.5, 1]}),
    "judged.score_file": Reader(judged.score_file, MMHAL),
    "judged.score_file, chats": Reader(judged.score_file, CHATS),
    "judged.read_responses": Reader(judged.read_responses, judged.responses(["Yellow."] * 96)),
    "hallusion.read_results": Reader(hallusion.read_results, HALLUSION),
    "hallusion.score_file": Reader(hallusion.score_file, HALLUSION),
    "hallusion.score_file, replies": Reader(hallusion.score_file, REPLIES),
    "mmvet.score, questions": Reader(lambda path: mmvet.score(path, beside(path, GRADES)), MM_VET, True),
    "mmvet.judge_prompts": Reader(lambda path: mmvet.judge_prompts(MM_VET, path), {"v1_0": "x", "v1_1": ""}),
    "mmvet.score, grades": Reader(lambda path: mmvet.score(MM_VET, path), GRADES),
    "mmvet.score, rows": Reader(lambda path: mmvet.score(MM_VET, path), [{"id": key, "judgement": "0.5"} for key in MM_VET]),
    "pairwise.score_file": Reader(pairwise.score_file, PAIRWISE),
    "lmms_eval.read": Reader(lmms_eval.read, SAMPLES),
}  # fmt: skip

NEEDS_MORE = ("hallusion.score_file", "hallusion.score_file, replies")  # whose small file lacks 1126 questions


def test_the_valid_files_are_read(tmp_path):
    path = tmp_path / "input.json"
    for name, reader in READERS.items():
        path.write_text(json.dumps(reader.content))
        if name in NEEDS_MORE:
            with pytest.raises(benchmarks.BadInput, match=r"input\.json: 1126 problems"):
                reader.read(path)
        else:
            assert reader.read(path) is not None, name


# Damage.

PIECES = [b"]", b"[", b"{", b"}", b",", b":", b'"', b"\n", b"\\", b"\\ud800", b"null", b"true", b"NaN", b"-", b"1e999",
          b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"{'a': 1}", b'{"id": 1}', b"\x00", b"\xff",
          b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b"]  # fmt: skip
KEYS = ["id", "index", "key", "image_id", "image", "text", "caption", "answer", "question", "question_id", "judgement",
        "choices", "prompt", "score", "order", "capability", "same", "doc_id", "resps", "nodes", "images", "annotations",
        "v1_0"]  # fmt: skip
NUMBERS = [10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf")]
TEXTS = ["", " ", "Yes", "1", "-1", "1" * 5000, "\ud83d", "a.jpg", "COCO_val2014_000000000042.jpg", "é", "0.5", "\n"]
SIMPLE = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS)
JSON = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_leaves=6
)


@st.composite
def other_fields(draw, content):
    """Put other values in some places of a content, or leave entries out or double them."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 2))):
        inside, depth = content, draw(st.integers(0, 3))
        while isinstance(inside, dict | list) and inside:
            at = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
            if depth == 0 or not isinstance(inside[at], dict | list) or not inside[at]:
                how = draw(st.sampled_from(["other", "other", "other", "out", "twice", "wrapped"]))
                if how == "other":
                    inside[at] = draw(JSON)
                elif how == "wrapped":
                    inside[at] = [inside[at]]
                elif how == "out":
                    del inside[at]
                elif isinstance(inside, list):
                    inside.append(inside[at])
                else:
                    inside[draw(st.sampled_from(KEYS))] = inside[at]
                break
            inside, depth = inside[at], depth - 1
    return content


@st.composite
def damaged(draw, content):
    kind = draw(st.sampled_from(["fields", "fields", "bytes", "fields and bytes", "nothing"]))
    if kind == "nothing":
        return b"".join(draw(st.lists(st.sampled_from(PIECES) | JSON.map(lambda v: json.dumps(v).encode()), max_size=8)))
    content = draw(other_fields(content)) if "fields" in kind else content
    if isinstance(content, list) and draw(st.booleans()):
        raw = "".join(json.dumps(row) + "\n" for row in content).encode()
    else:
        raw = json.dumps(content, indent=draw(st.sampled_from([None, 1]))).encode()
    for _ in range(draw(st.integers(1, 3)) if "bytes" in kind else 0):
        begin, end = sorted((draw(st.integers(0, len(raw))), draw(st.integers(0, len(raw)))))
        how = draw(st.sampled_from(["put in", "put in", "cut off", "cut out", "twice"]))
        if how == "put in":
            raw = raw[:begin] + draw(st.sampled_from(PIECES)) + raw[begin:]
        elif how == "cut off":
            raw = raw[:begin]
        else:
            raw = raw[:begin] + raw[end:] if how == "cut out" else raw[:end] + raw[begin:]
    return raw


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_ends_with_a_result_or_names_the_file(name, tmp_path, monkeypatch):
    reader, path = READERS[name], tmp_path / "a file of mine.json"
    asked = 0
    decode = reading.JsonDecoder.raw_decode

    def counted(self, text):
        nonlocal asked
        asked += 1
        return decode(self, text)

    monkeypatch.setattr(reading.JsonDecoder, "raw_decode", counted)

    @settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(reader.content))
    @example(b"]")
    @example(b"")
    @example(b"\x00")
    @example(b"[" * 3000)
    @example(b'[{"a": ' * 3000)
    @example("[]".encode("utf-16")[:-1])
    def ends(raw):
        nonlocal asked
        asked = 0
        path.write_bytes(raw)
        said = str(path)
        try:
            reader.read(path)
        except (ValueError, OSError) as error:
            said = str(error)
        assert any(str(name) in said for name in (path, path.with_name("other.json"))[: 1 + reader.pair]), said
        # A place of the text is tried once, in windows of which each is 16 times the one before; other.json adds a few.
        assert asked <= 3 * len(raw) + 20

    ends()

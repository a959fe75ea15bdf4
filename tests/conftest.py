"""What all tests share."""

import json

import pytest
import torch

from prunehal.files.paths import data_path

torch.set_num_threads(1)  # the models are tiny; more threads wait for each other


@pytest.fixture(scope="session")
def nltk_data():
    """Let nltk itself, the slow twin, read the shipped models; returns their folder."""
    import nltk

    folder = str(data_path("nltk"))
    nltk.data.path.insert(0, folder)
    return folder


@pytest.fixture
def file(tmp_path):
    """Return a function that writes rows (or text, or bytes) to a file, and returns its path."""

    def make(rows, name="responses.json"):
        path = tmp_path / name
        text = rows if isinstance(rows, str | bytes) else json.dumps(rows)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make

"""What all tests share."""

import pytest
import torch

from prunehal.resources import data_path

torch.set_num_threads(1)  # the models are tiny; more threads wait for each other


@pytest.fixture(scope="session")
def nltk_data():
    """Let nltk itself, the slow twin, read the shipped models; returns their folder."""
    import nltk

    folder = str(data_path("nltk"))
    nltk.data.path.insert(0, folder)
    return folder

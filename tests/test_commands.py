"""The command line says what is wrong in one message, and never with a traceback."""

import pytest
import torch
from typer.testing import CliRunner

from prunehal.commands.app import app
from prunehal.commands.errors import named_errors, usable

KNOWN = "cuda or cpu" if torch.cuda.is_available() else "cpu"
NO_DEVICE = f"expected {KNOWN}; or leave it out"


def failing(*words):
    """Run a command that must end with exit code 2 and one message, and return it in one line."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 2, repr(done.exception)
    said = " ".join(done.output.split())
    assert said.startswith("Error: ")
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("command", ["train", "bench", "bench-decoders"])
@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_named(command, device, tmp_path):
    where = ["--folder" if command == "train" else "--out", tmp_path / "made"]
    said = failing(command, "--device", device, *where)
    assert said.startswith(f"Error: --device {device}: cannot be used here (")
    assert said.endswith(NO_DEVICE)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_a_device_that_is_not_there_makes_no_folder(tmp_path):
    out = tmp_path / "out"
    options = ["--model", "embedded", "--benchmark", "chair", "--images", tmp_path, "--out", out, "--device", "cuda:99"]
    assert failing("run", *options).endswith(NO_DEVICE)
    assert not out.exists()


def test_without_a_name_the_device_is_what_there_is():
    assert usable(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable("cpu") == "cpu"
    with pytest.raises(ValueError, match="--device meta: cannot be used here"):
        usable("meta")


def test_a_model_or_a_readme_that_is_not_there_is_named(tmp_path):
    assert "model folder nonexist holds no config.json; expected one that training wrote" in failing("card", "nonexist")
    absent = tmp_path / "missing.md"
    assert failing("readme", absent) == (
        f"Error: {absent}: cannot be used (No such file or directory); expected a path that can be read or written so; check it"
    )


@pytest.mark.parametrize(
    ("command", "called"),
    [
        ("numerics", "prunehal.measuring.half_precision.measure"),
        ("bench-scoring", "prunehal.measuring.scoring.measure"),
        ("bench-sweep", "prunehal.measuring.sweeps.measure"),
        ("bench-decoders", "prunehal.measuring.decoders.run"),
        ("bench", "prunehal.measuring.engine.run"),
        ("causal", "prunehal.studies.nb09_causal.rows.measure"),
        ("evidence", "prunehal.studies.nb08_redundancy.evidence.measure"),
    ],
)
def test_what_a_measurement_refuses_is_said_without_a_traceback(command, called, monkeypatch):
    def refuse(*args):
        raise ValueError("n=0: expected at least 1")

    monkeypatch.setattr(called, refuse)
    device = ["--device", "cpu"] if command in ("bench", "bench-decoders") else []
    assert failing(command, *device) == "Error: n=0: expected at least 1"


def test_a_wrong_choice_keeps_the_message_of_the_option():
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", "--shape", "huge"])
    assert done.exit_code == 2
    assert "Usage:" in done.output


def test_errors_that_are_no_fault_of_the_input_keep_their_traceback():
    with pytest.raises(KeyError), named_errors():
        raise KeyError("a bug")

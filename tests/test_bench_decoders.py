"""The benchmark of decoders: every method runs, ratios are those of the same round, and a second call goes on."""

import pandas as pd
import pytest

from prunehal.measuring import decoders as bench_decoders
from prunehal.measuring.decoders import METHODS, as_table, ratios, run
from prunehal.measuring.engine import machine


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "decoders.csv"
    return path, run("embedded", 3, 1, path)


def test_every_method_is_measured_once_a_round(measured):
    _, frame = measured
    assert list(zip(frame["decoding"], frame["policy"], strict=True)) == list(METHODS)
    assert (frame[["seconds", "ms_per_token", "kv_peak_bytes"]] > 0).all(axis=None)
    bytes_of = frame.set_index(["decoding", "policy"])["kv_peak_bytes"]
    # VCD holds a second cache of the whole prompt, PAI one of the text alone; beams hold their prompt once for each.
    assert bytes_of["vcd", "no pruning"] > 1.5 * bytes_of["dola", "no pruning"] == 1.5 * bytes_of["kvsmooth", "no pruning"]
    assert bytes_of["dola", "no pruning"] < bytes_of["pai", "no pruning"] < bytes_of["vcd", "no pruning"]
    assert bytes_of["beam", "stock"] == 5 * bytes_of["greedy", "stock"]


def test_a_second_call_measures_only_what_is_missing(measured, monkeypatch):
    path, before = measured
    calls = []
    monkeypatch.setattr(bench_decoders, "measure", lambda *given: calls.append(given) or dict.fromkeys(
        ("seconds", "ms_per_token", "kv_peak_bytes"), 1.0))  # fmt: skip
    run("embedded", 3, 1, path)
    assert not calls
    again = run("embedded", 3, 2, path, only="opera")
    assert [*again["decoding"][len(before) :]] == ["beam", "opera", "opera", "greedy"]  # the order turns
    assert len(calls) == 4
    pd.testing.assert_frame_equal(pd.read_csv(path).iloc[: len(before)], before, check_dtype=False)


def test_ratios_are_to_the_search_of_the_same_round():
    def row(turn, decoding, policy, seconds):
        found = {"shape": "a", "new_tokens": 9, "round": turn, "decoding": decoding, "policy": policy}
        return found | {"seconds": seconds, "ms_per_token": seconds, "kv_peak_bytes": 10 * seconds}

    seconds = {("greedy", "stock"): 2, ("beam", "stock"): 4, ("opera", "no pruning"): 12, ("vcd", "PruneHal"): 3}
    rows = [row(turn, *method, slow * own) for turn, slow in enumerate((1, 5, 2)) for method, own in seconds.items()]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0)
    found = ratios(frame, "a").set_index("decoding")
    assert found["time"].to_dict() == {"greedy": 1, "beam": 1, "opera": 3, "vcd": 1.5}
    assert found["over_greedy"].to_dict() == {"greedy": 1, "beam": 2, "opera": 6, "vcd": 1.5}
    assert (found["low"] == found["high"]).all()
    assert "| opera | no pruning | beam 5: 3.00 [3.00, 3.00] | 3.00 | 3.00 |" in as_table(frame, "a")


def test_rows_of_another_machine_are_refused(measured, monkeypatch):
    path, _ = measured
    monkeypatch.setattr(bench_decoders, "machine", lambda device: machine(device) | {"torch_version": "1.0"})
    with pytest.raises(ValueError, match="holds rows of torch_version"):
        run("embedded", 3, 1, path)

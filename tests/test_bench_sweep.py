"""The benchmark of sweeps: captions are compared token by token, the naive loop has its best threads, the table is whole."""

from functools import partial

import dask.distributed
import pandas as pd
import pytest
import torch
from reference_sweep import rows as naive_rows

import prunehal as ph
from prunehal.experiments import Store, sweep
from prunehal.experiments.images import image_keys
from prunehal.measuring import sweeps as bench_sweep
from prunehal.measuring.sweeps import as_table, equal_share, fastest_threads, measure, naive, settings


def test_the_naive_loop_gives_the_ids_of_the_stored_captions(tmp_path):
    model, processor = ph.load()
    (experiment,) = settings(2)[:1]
    (ours,) = naive([experiment], progress=False).values()
    store = sweep([experiment], tmp_path, progress=False)
    assert bench_sweep._tokens_of(store, experiment, processor.tokenizer) == ours
    twin = naive_rows(model, processor, experiment, image_keys(experiment))
    assert {key: len(tokens) for key, tokens in ours.items()} == {key: row["tokens"] for key, row in twin.items()}
    assert all(processor.tokenizer.eos_token_id not in tokens for tokens in ours.values())


def test_captions_that_differ_in_one_token_are_not_equal():
    expected = {"a": {1: [5, 6, 7], 2: [5]}, "b": {1: [8, 9]}}
    assert equal_share(expected, expected) == 1
    assert equal_share({"a": {1: [5, 6, 7], 2: [5]}, "b": {1: [8, 8]}}, expected) == pytest.approx(2 / 3)
    assert equal_share({"a": {1: [5, 6], 2: [5, 5]}, "b": {1: [8, 9]}}, expected) == pytest.approx(1 / 3)


def test_a_text_of_other_tokens_than_its_row_says_is_an_error(tmp_path):
    (experiment,) = settings(1)[:1]
    store = Store(tmp_path)
    with store.writing():
        row = {"key": image_keys(experiment)[0], "caption": "A dog.", "tokens": 9, "finished": True, "visual": 1.0}
        store.append(experiment, [row | {"events": [], "voted": [], "layers": [0], "mass": [0.5], "mentions": []}])
    with pytest.raises(ValueError, match=r"caption of image 300000000 under .*: 3 tokens, its row says 9"):
        bench_sweep._tokens_of(store, experiment, ph.load()[1].tokenizer)


def test_the_naive_loop_gets_the_number_of_threads_that_is_fastest(monkeypatch):
    clock, tried = [0.0], []

    def loop(experiments, progress):
        tried.append(torch.get_num_threads())
        clock[0] += {1: 3.0, 2: 1.0, 3: 2.0}[torch.get_num_threads()]

    monkeypatch.setattr(bench_sweep, "naive", loop)
    monkeypatch.setattr(bench_sweep.time, "perf_counter", lambda: clock[0])
    before = torch.get_num_threads()
    assert fastest_threads(settings(1), at_most=3) == 2
    assert sorted({*tried}) == [1, 2, 3]
    assert torch.get_num_threads() == before


def test_a_measurement_has_a_row_for_each_way_and_tells_captions_that_differ(monkeypatch, tmp_path):
    few = settings(1)[:2]
    monkeypatch.setattr(bench_sweep, "settings", lambda n_images: few)
    # Threads for processes: what is tested is the table, and tests/test_cluster.py has workers of their own.
    monkeypatch.setattr(dask.distributed, "LocalCluster", partial(in_threads, dask.distributed.LocalCluster))
    monkeypatch.setattr(bench_sweep, "fastest_threads", lambda experiments: 1)
    monkeypatch.setattr(bench_sweep, "naive", partial(with_one_other_token, naive))
    frame = measure(tmp_path / "sweep.csv", n_images=1)
    assert frame["how"].tolist() == ["sweep", "naive loop", "sweep", "sweep on Dask", "sweep on Dask"]
    assert frame["workers"].tolist() == [0, 0, 0, 1, 2]
    assert frame["captions"].tolist() == [2] * 5
    assert frame["equal"].tolist() == [0.5, 1, 0.5, 0.5, 0.5]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "sweep.csv"), frame, check_dtype=False)


def in_threads(make, **options):
    return make(**{**options, "processes": False})


def with_one_other_token(loop, experiments):
    made = loop(experiments, progress=False)
    (tokens, *_) = made[experiments[0].key].values()
    tokens[-1] += 1
    return made


def test_the_table_shows_times_as_ratios_to_the_naive_loop():
    columns = ["how", "workers", "threads", "captions", "seconds", "equal"]
    lines = [("sweep", 0, 1, 100, 5.0, 1.0), ("naive loop", 0, 2, 100, 20.0, 1.0), ("sweep on Dask", 2, 1, 100, 4.0, 0.995)]
    assert as_table(pd.DataFrame(lines, columns=columns)).splitlines()[2:] == [
        "| sweep | this process x 1 | 20.0 | 4.0 | 100.00% |",
        "| naive loop | this process x 2 | 5.0 | 1.0 | 100.00% |",
        "| sweep on Dask | 2 x 1 | 25.0 | 5.0 | 99.50% |",
    ]

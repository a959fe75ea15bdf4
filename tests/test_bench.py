"""The benchmark on a tiny model: what it stores, that it resumes, and what its table says. No time is asserted."""

import pyperf
import pytest
from typer.testing import CliRunner

import prunehal.measuring.engine as bench
from prunehal.commands.app import app
from prunehal.core.blocks import BLOCK

CASE = bench.Case("dry-run", "float32", batch=1, beams=2, new_tokens=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "deep" / "rows.json"
    return bench.run([CASE], 2, path, "cpu"), path


def test_every_variant_is_measured_in_every_round(measured):
    suite, path = measured
    assert {benchmark.get_name() for benchmark in suite.get_benchmarks()} == {
        f"{CASE.name}: {variant}" for variant in (*bench.VARIANTS, bench.RECORDING)
    }
    assert all(benchmark.get_nrun() == 2 for benchmark in suite.get_benchmarks())
    assert [each.name for each in path.parent.iterdir()] == ["rows.json"]


def test_the_bytes_are_those_of_k_and_v(measured):
    suite, _ = measured
    of = {benchmark.get_name().rpartition(": ")[2]: benchmark.get_metadata() for benchmark in suite.get_benchmarks()}
    slot = 2 * 2 * 2 * 64 * 4  # layers, K and V, rows (beams), hidden size, bytes
    prompt = bench.VISUAL + bench.WORDS
    assert of["stock"]["kv_first_bytes"] == prompt * slot
    assert of["stock"]["kv_peak_bytes"] == of["stock"]["kv_last_bytes"] == (prompt + 3) * slot
    assert of["blocks"]["kv_peak_bytes"] == of["observe"]["kv_peak_bytes"] == (prompt + BLOCK) * slot
    assert of["prune"]["kv_first_bytes"] == of["blocks"]["kv_first_bytes"]
    # The forced prune keeps 230 of 576; later ones, if they vote, fewer.
    assert of["prune"]["kv_last_bytes"] <= (bench.WORDS + 230 + 2 + BLOCK) * slot


def test_a_second_call_goes_on_where_the_first_stopped(measured):
    suite, path = measured
    before = path.read_bytes()
    bench.run([CASE], 2, path, "cpu")
    assert path.read_bytes() == before
    more = bench.run([CASE], 3, path, "cpu")
    for benchmark in suite.get_benchmarks():
        assert more.get_benchmark(benchmark.get_name()).get_values()[:2] == benchmark.get_values()
        assert more.get_benchmark(benchmark.get_name()).get_nrun() == 3


def test_rounds_of_another_machine_are_refused(measured, monkeypatch):
    _, path = measured
    monkeypatch.setattr(bench.torch, "__version__", "1.0")
    with pytest.raises(ValueError, match=r"'torch_version': '1.0'.*Fix: choose another file"):
        bench.run([CASE], 4, path, "cpu")


def test_the_table_gives_the_median_of_the_ratios():
    runs = {"stock": [1.0, 2.0, 4.0], "blocks": [1.0, 1.0, 1.0], "observe": [1.0, 2.0, 8.0], "prune": [0.5, 1.0, 1.0]}
    details = dict(zip(bench.DETAILS, (0.25, 12.0, 3e6, 4e6, 2e6), strict=True))
    made = [
        pyperf.Benchmark(
            [pyperf.Run([value], metadata=details | {"name": f"a, b: {name}"}, collect_metadata=False) for value in values]
        )
        for name, values in (runs | {bench.RECORDING: [5e-5, 5e-5, 7e-5]}).items()
    ]
    table = bench.as_table(pyperf.BenchmarkSuite(made)).splitlines()
    assert table[2] == "| a, b (3 rounds) | stock | 1 | 12 | 0.2 | 3, 4, 2 |  |"
    assert table[4] == "|  | observe | 1.00 [1.00, 2.00] | 12 | 0.2 | 3, 4, 2 | 0.05 |"
    assert table[5] == "|  | prune | 0.50 [0.25, 0.50] | 12 | 0.2 | 3, 4, 2 |  |"


def test_the_command_line(tmp_path):
    out = tmp_path / "rows.json"
    options = ["bench", "--device", "cpu", "--rounds", "1", "--new-tokens", "3", "--out", str(out)]
    done = CliRunner().invoke(app, [*options, "--shape", "dry-run", "--only", "batch 1, greedy"])
    assert done.exit_code == 0, done.output
    assert "| prune |" in done.output
    assert out.exists()
    for wrong, message in ((["--shape", "huge"], "llava-0.3b"), (["--only", "batch 3"], "no case holds it")):
        done = CliRunner().invoke(app, [*options, *wrong])
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " ").replace("│", "")

"""Decoders by name: in runs each says what it says to every image alone; grids and the command line take their options."""

import json

import pytest
from typer.testing import CliRunner

import prunehal as ph
from prunehal.commands.app import app
from prunehal.decoding import OPERA, PAI, VCD, DeCo, DoLa, FastV, KVSmooth, named_decoding
from prunehal.decoding.named import NAMES, described
from prunehal.experiments import Experiment, read_grid
from prunehal.models.chat import encode
from prunehal.running import Run, run
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

IDS = [scene("test", index).image_id for index in range(4)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(4):
        scene("test", index).image().save(folder / f"{IDS[index]}.png")
    return folder


def asked(scenes, out, **options):
    """Run the embedded model on the scenes, and return the rows by image."""
    run(Run(model="embedded", benchmark="chair", images=scenes, out=out, progress=False, **options))
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return {row["key"]: row for row in rows}


@pytest.mark.parametrize(
    "decoder", [VCD(), PAI(gamma=1.5), DoLa(), DeCo(alpha=1.0), KVSmooth(), FastV(), OPERA()], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("policy", [None, ph.PruneHal(r=0.7, t=3)], ids=["none", "prunehal"])
def test_a_run_says_what_the_decoder_says_to_each_image_alone(decoder, policy, scenes, tmp_path):
    rows = asked(scenes, tmp_path, decoding=decoder, policy=policy, max_new_tokens=12, batch_size=3)
    assert sorted(rows) == IDS
    model, processor = ph.load()
    for index, key in enumerate(IDS):
        inputs = encode(processor, [scene("test", index).image()], [build_prompt()])
        cache = ph.attach(model, inputs, policy or ph.NoPruning())
        with decoder.on(model, inputs, cache) as options:
            ids = model.generate(**inputs, **cache.options, max_new_tokens=12, **options)
        said = ids[0, inputs["input_ids"].shape[1] :]
        assert rows[key]["text"] == processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert bool(rows[key]["prunes"]) == (policy is not None)
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["decoding"] == described(decoder)


def test_decoders_change_what_is_said_and_their_values_are_part_of_the_settings(scenes, tmp_path):
    said = {}
    for name in ("greedy", "vcd", "pai", "dola", "kvsmooth", "opera"):
        rows = asked(scenes, tmp_path / name, decoding=name, max_new_tokens=40)
        said[name] = tuple(rows[key]["text"] for key in IDS)
    assert len(set(said.values())) == len(said)
    with pytest.raises(ValueError, match="decoding"):
        asked(scenes, tmp_path / "vcd", decoding=VCD(alpha=0.5), max_new_tokens=40)


def test_the_command_line_takes_a_decoder_and_its_options(scenes, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("prunehal.running.run", lambda given: seen.append(given) or tmp_path)
    common = ["run", "--model", "embedded", "--benchmark", "chair", "--images", str(scenes), "--out", str(tmp_path / "out")]
    options = ["--decoder-option", "layers=[2, 4]", "--decoder-option", "divergence=js"]
    assert CliRunner().invoke(app, [*common, "--decoding", "dola", *options]).exit_code == 0
    assert seen[0].decoding == DoLa(layers=(2, 4), divergence="js")
    for given, expected in (
        ("alfa=1", "vcd has no option 'alfa'; expected some of alpha, beta"),
        ("alpha", "expected name=value"),
    ):
        done = CliRunner().invoke(app, [*common, "--decoding", "vcd", "--decoder-option", given])
        assert done.exit_code == 2
        assert expected in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--k", "36"], "k=36: given with policy='prunehal'"),
        (["--policy", "topk", "--k", "36", "--r", "0.4"], "r=0.4: given with policy='topk'"),
        (["--policy", "none", "--t", "3"], "t=3: given with policy='none'"),
    ],
)
def test_the_command_line_ignores_no_option_of_a_policy(words, expected, scenes, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("prunehal.running.run", lambda given: seen.append(given) or tmp_path)
    common = ["run", "--model", "embedded", "--benchmark", "chair", "--images", str(scenes), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*common, *words])
    assert (done.exit_code, seen) == (2, [])
    assert expected in " ".join(done.output.split())
    assert CliRunner().invoke(app, common).exit_code == 0
    assert seen[0].policy == ph.PruneHal(r=0.4, t=3)


def test_every_name_has_its_published_values():
    for name in NAMES[3:]:
        kind = type(named_decoding(name))
        assert named_decoding(name.upper()) == kind()
        assert described(kind()) == {"name": name} | vars(kind())


@pytest.mark.parametrize(
    ("decoding", "options", "said"),
    [
        ("beams", {}, "decoding='beams': expected one of greedy, beam"),
        (None, {}, "decoding=None: expected one of greedy"),
        ("greedy", {"alpha": 1}, "decoding='greedy': takes no options, got 'alpha'"),
        ("pai", {"beat": 1}, "pai has no option 'beat'; expected some of alpha, gamma, beta"),
        ("vcd", {"alpha": -1}, "alpha=-1: expected a number of at least 0"),
    ],
)
def test_what_cannot_be_is_named(decoding, options, said):
    with pytest.raises(ValueError, match=said):
        named_decoding(decoding, options)


def test_experiments_and_grids_take_decoders(tmp_path):
    assert Experiment(decoding="vcd") == Experiment(decoding=VCD())
    assert Experiment(decoding="vcd").key != Experiment(decoding=VCD(alpha=0.5)).key != Experiment().key
    path = tmp_path / "grid.toml"
    path.write_text(
        '[experiment]\nn_images = 2\n[[grid]]\ndecoding = ["greedy", "pai", {name = "dola", layers = [2, 4]}]\n'
        '[[grid]]\ndecoding = {name = "vcd", beta = 0}\n"decoding.alpha" = [0.5, 1]\n'
    )
    first = ["greedy", PAI(), DoLa(layers=(2, 4))]
    assert [each.decoding for each in read_grid(path)] == [*first, VCD(alpha=0.5, beta=0), VCD(alpha=1, beta=0)]
    path.write_text('[[grid]]\n"decoding.alpha" = [0.5]\n')
    with pytest.raises(ValueError, match=r"grid.toml, \[\[grid\]\] number 1: decoding='greedy': takes no options"):
        read_grid(path)

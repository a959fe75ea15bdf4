"""Experiments: equal ones have one key, stored keys stay, bad values are refused; grids; golden rows of the code's number."""

import gzip
import json
from dataclasses import replace

import golden_rows
import pytest
from reference_sweep import same_rows

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.decoding import OPERA, PAI, VCD
from prunehal.experiments import Experiment, Store, read_grid, sweep, versions
from prunehal.experiments.versions import CODE, made_by, refuse_other_versions
from prunehal.files.paths import data_path

GRIDS = sorted(data_path("grids").glob("*.toml"))

# Keys and marks of stored rows.


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_experiment_of_the_grids_finds_its_file_and_the_mark_of_its_rows(path):
    store = Store.shipped()
    for experiment in read_grid(path):
        stored = store.path(experiment)
        assert stored.is_file(), experiment.name
        with gzip.open(stored, "rt") as file:
            header = json.loads(file.readline())
        assert {**header["experiment"], "n_images": 1} == json.loads(json.dumps(replace(experiment, n_images=1).description))
        now = made_by(experiment)
        assert {name: header["made_by"][name] for name in ("code", "weights", "pictures")} == {
            name: now[name] for name in ("code", "weights", "pictures")
        }


@pytest.mark.parametrize(
    ("whole", "real"),
    [
        ({"policy": PruneHal(r=1)}, {"policy": PruneHal(r=1.0)}),
        ({"policy": PruneHal(factor=1, majority=1, decay=1)}, {"policy": PruneHal(factor=1.0, majority=1.0, decay=1.0)}),
        ({"decoding": VCD(alpha=1)}, {"decoding": VCD(alpha=1.0)}),
        ({"decoding": OPERA(sigma=100, alpha=2)}, {"decoding": OPERA(sigma=100.0, alpha=2.0)}),
        ({"decoding": PAI(gamma=2)}, {"decoding": PAI(gamma=2.0)}),
    ],
)
def test_equal_experiments_have_one_key_one_name_and_one_file(tmp_path, whole, real):
    a, b = Experiment(**whole), Experiment(**real)
    assert a == b
    assert (a.key, a.name, a.description) == (b.key, b.name, b.description)
    assert Store(tmp_path).path(a) == Store(tmp_path).path(b)


def test_whole_numbers_stay_where_the_field_is_whole():
    policy = Experiment(policy=PruneHal(r=1, t=2, seed=3)).policy
    assert [type(value) for value in (policy.r, policy.t, policy.seed, policy.factor)] == [float, int, int, type(None)]
    assert type(Experiment(policy=TopK(36)).policy.k) is int
    assert type(Experiment(decoding=OPERA(scale=1)).decoding.candidates) is int


def test_rows_of_equal_experiments_are_not_lost(tmp_path):
    wanted = [Experiment(n_images=1, max_new_tokens=2, policy=PruneHal(r=r, t=1)) for r in (1, 1.0)]
    store = sweep(wanted, tmp_path, progress=False)
    assert [store.missing(each) for each in wanted] == [[], []]


# What is refused.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "a/b", "dtype": "float33"}, r"dtype='float33': expected one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"dtype": "bfloat16"}, r"dtype='bfloat16', revision=None: the embedded model is in float32 and has no revisions"),
        ({"revision": "x"}, r"dtype='auto', revision='x': the embedded model is in float32 and has no revisions"),
        ({"prompt": ""}, r"prompt='': expected a text that is not empty; leave it out for the default"),
        ({"prompt": " \n"}, r"prompt=' \\n': expected a text that is not empty"),
        ({"model": ""}, r"model='': expected a text that is not empty"),
        ({"revision": "", "model": "a/b"}, r"revision='': expected a text that is not empty"),
        ({"split": ""}, r"split='': expected a text that is not empty; name it"),
        ({"dtype": 32}, r"dtype=32: expected a text"),
    ],
)
def test_values_that_would_be_ignored_or_fail_later_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Experiment(**options)


def test_values_that_mean_something_pass():
    assert Experiment(dtype="float32").dtype == "float32"
    assert Experiment(model="a/b", dtype="bfloat16", revision="main").revision == "main"


@pytest.mark.parametrize("prompt", ["请详细描述这张图片。" * 40, "🦓" * 200, "Décris l'image, s'il te plaît. " * 9])
def test_the_name_of_a_file_is_ascii_and_short_whatever_the_prompt(tmp_path, prompt):
    experiment = Experiment(prompt=prompt, policy=PruneHal())
    name = Store(tmp_path).path(experiment).name
    assert name.isascii()
    assert len(name.encode()) < 200
    (tmp_path / name).write_bytes(b"")
    assert experiment.key != Experiment(prompt=prompt + "?", policy=PruneHal()).key


@pytest.mark.parametrize("model", ["embeded", "no/such/folder", "./nowhere"])
def test_a_model_that_is_nowhere_is_an_error_before_anything_is_written(tmp_path, model, capsys):
    with pytest.raises(OSError, match=r"is no folder here and no hub name; expected 'embedded'.*check the spelling"):
        sweep([Experiment(model=model, n_images=1)], tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    assert capsys.readouterr().err == ""  # no bar


def test_a_folder_that_holds_no_model_is_an_error_before_anything_is_written(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(OSError, match=r"model holds no config.json; expected a folder written by save_pretrained"):
        sweep([Experiment(model=tmp_path / "model", n_images=1)], tmp_path / "rows", progress=False)
    assert not (tmp_path / "rows").exists()


# The commit of a hub name.

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = Experiment(model="owner/name", n_images=1)


@pytest.fixture
def hub(monkeypatch):
    """Return a dict: revision -> commit that the hub, or its copy here, knows; the rest is an error."""
    known = {}

    def config(name, revision=None, **_):
        if revision not in known:
            raise OSError("offline")
        return {"_commit_hash": known[revision]}, {}

    monkeypatch.setattr(versions.PreTrainedConfig, "get_config_dict", config)
    versions._hub_mark.cache_clear()
    yield known
    versions._hub_mark.cache_clear()


def test_the_weights_of_a_hub_name_are_marked_by_their_commit(hub):
    hub |= {None: COMMIT, "v1": COMMIT[::-1]}
    assert made_by(HUB)["weights"] == f"owner/name at {COMMIT}"
    assert made_by(replace(HUB, revision="v1"))["weights"] == f"owner/name at {COMMIT[::-1]}"
    assert made_by(replace(HUB, revision="f" * 40))["weights"] == f"owner/name at {'f' * 40}"


def test_rows_of_another_commit_are_refused_and_may_be_read_where_the_commit_is_not_known(hub, tmp_path):
    hub[None] = COMMIT
    before = made_by(HUB)
    versions._hub_mark.cache_clear()
    hub[None] = "f" * 40
    with pytest.raises(ValueError, match=rf"rows of other weights: it was owner/name at {COMMIT}, is now owner/name at ffff"):
        refuse_other_versions(tmp_path, before, made_by(HUB))
    versions._hub_mark.cache_clear()
    hub.clear()
    assert made_by(HUB)["weights"] is None
    refuse_other_versions(tmp_path, before, made_by(HUB))


def test_a_hub_model_that_cannot_be_had_here_is_an_error_before_anything_is_written(hub, tmp_path):
    with pytest.raises(OSError, match=r"'owner/name' at revision None: neither the hub nor its cache on this machine has it"):
        sweep([HUB], tmp_path / "rows", progress=False)
    assert not (tmp_path / "rows").exists()


# Rows and the number of the code.


def test_rows_come_out_as_the_number_of_the_code_promises():
    golden = json.loads(golden_rows.PATH.read_text())
    fix = "raise CODE in prunehal/experiments/versions.py, run python tests/golden_rows.py --write, make the stored rows again"
    assert golden["code"] == CODE, f"the golden rows are of code {golden['code']}, this is {CODE}; {fix}"
    rows = golden_rows.made()
    assert rows.keys() == golden["rows"].keys()
    for name, row in rows.items():
        try:
            same_rows({row["key"]: row}, {row["key"]: golden["rows"][name]})
        except AssertionError as error:
            error.add_note(f"rows of {name!r} are not those of code {CODE}; if that is meant: {fix}")
            raise


def test_golden_rows_show_what_they_are_to_guard():
    rows = json.loads(golden_rows.PATH.read_text())["rows"]
    assert len({json.dumps(row, sort_keys=True) for row in rows.values()}) > len(rows) - 4  # of so few tokens some agree
    assert sum(len(row["events"]) > 1 for row in rows.values()) > 8
    assert sum(bool(row["mentions"]) for row in rows.values()) > 20


# Grids from files.


def write(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_a_file_gives_the_product_of_its_axes_around_what_all_share(tmp_path):
    text = """
    [experiment]
    split = "test"
    n_images = 7
    policy = {name = "PruneHal", t = 2}

    [[grid]]
    policy = {name = "NoPruning"}

    [[grid]]
    "policy.r" = [0.4, 1]
    "policy.factor" = ["none", 0.5]

    [[grid]]
    split = ["validation"]
    decoding = {name = "vcd", alpha = 2}
    "decoding.beta" = [0.1, 0.2]

    [[grid]]
    policy = [{name = "TopK", k = 9}, {name = "PruneHal", t = 2, r = 1.0}]
    """
    base = Experiment(split="test", n_images=7)
    assert read_grid(write(tmp_path, text)) == [
        replace(base, policy=NoPruning()),
        replace(base, policy=PruneHal(0.4, 2)),
        replace(base, policy=PruneHal(0.4, 2, factor=0.5)),
        replace(base, policy=PruneHal(1, 2)),
        replace(base, policy=PruneHal(1, 2, factor=0.5)),
        replace(base, split="validation", policy=PruneHal(t=2), decoding=VCD(alpha=2, beta=0.1)),
        replace(base, split="validation", policy=PruneHal(t=2), decoding=VCD(alpha=2, beta=0.2)),
        replace(base, policy=TopK(9)),  # r = 1.0 is there already
    ]


def test_a_sample_is_part_of_the_product_and_the_same_again(tmp_path):
    axes = '"policy.r" = [0.1, 0.2, 0.3, 0.4, 0.5]\n"policy.t" = [1, 2, 3, 4]\n'
    head = '[[grid]]\npolicy = {name = "PruneHal"}\n'
    whole = read_grid(write(tmp_path, head + axes))
    some = read_grid(write(tmp_path, head + "sample = 6\nsample_seed = 1\n" + axes))
    assert len(whole) == 20
    assert len(some) == 6
    assert [each for each in whole if each in some] == some
    assert some == read_grid(write(tmp_path, head + "sample = 6\nsample_seed = 1\n" + axes))
    assert some != read_grid(write(tmp_path, head + "sample = 6\n" + axes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[grid]]\npolicy.r = [0.4, 0.7]\n", r'write "policy\.r" = \[0\.4, 0\.7\]'),
        ("[experiment]\npolicy.r = 0.4\n[[grid]]\n", r'if policy\.r was meant, write "policy\.r" = 0\.4'),
        ("[[grid]]\ndecoding.alpha = [0.4]\n", r'if decoding\.alpha was meant, write "decoding\.alpha" = \[0\.4\]'),
        ('[[grid]]\npolicy = {name = "PruneHal"}\npolicy.r = [0.4]\n', r'has quotes, as in "policy\.r" = \[0\.4, 0\.7\]'),
        ("[[grid]]\npolicy = {}\n", r"policy=\{\}: is a table without a name; expected policy = \{name = \.\.\.\}"),
    ],
)
def test_an_axis_without_quotes_is_told_of_them(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_grid(write(tmp_path, text))

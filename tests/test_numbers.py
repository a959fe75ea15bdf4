"""Numbers of NumPy are numbers: every numeric option takes them, and keeps them as Python's own."""

from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest

import prunehal as ph
from prunehal.core import RobustVote, Standout
from prunehal.core.checks import as_count, as_number
from prunehal.decoding import OPERA, PAI, VCD, DeCo, DoLa, FastV, KVSmooth
from prunehal.experiments import Experiment

SETTINGS = [
    ph.PruneHal(r=0.5, t=3, factor=0.75, majority=0.25, decay=0.5, seed=2),
    ph.TopK(5, step=3),
    ph.NoPruning(seed=1),
    ph.Accumulated(r=0.5, t=2, window=3, content=True, wait=4, grid=4),
    ph.MassShare(p=0.5),
    ph.Bank(r=0.5, t=2, every=2, back="key"),
    ph.Keep(step=3),
    ph.StepTopK(4, step=3),
    RobustVote(r=0.5, z=2.5, least=4, like=2),
    ph.Informative(p=0.5, grid=4, window=3, step=1),
    Standout(part=0.25, grid=4, window=3, step=1),
    VCD(alpha=0.5, beta=0.25, noise_step=100, seed=3),
    PAI(alpha=0.5, gamma=1.5, beta=0.25, start_layer=1, end_layer=3),
    DoLa(layers=(0, 2), relative_top=0.25),
    DeCo(alpha=0.5, p_top=0.75, k=5, layers=(1, 2)),
    KVSmooth(ref=0.5, radius=0.25, window=4, layers=(1, 2)),
    FastV(block=2, ratio=0.75),
    OPERA(alpha=0.5, sigma=25.0, candidates=2, threshold=3, num_beams=2, scale=0.5, warmup=2),
    Experiment(policy=ph.PruneHal(), n_images=3, max_new_tokens=4, seed=2),
]


def numbered(setting):
    """Return the numeric fields of a setting, with their values."""
    values = {field.name: getattr(setting, field.name) for field in fields(setting)}
    return {name: value for name, value in values.items() if type(value) in (int, float) or type(value) is tuple}


def of_numpy(value):
    if type(value) is tuple:
        return tuple(map(of_numpy, value))
    return np.int64(value) if type(value) is int else np.float64(value)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: type(setting).__name__)
def test_a_setting_of_numpy_numbers_is_the_same_setting(setting):
    given = {name: of_numpy(value) for name, value in numbered(setting).items()}
    same = replace(setting, **given)
    assert given
    assert same == setting
    assert repr(same) == repr(setting), "as it is stored"
    assert hash(same) == hash(setting)
    for name, value in numbered(setting).items():
        kept = getattr(same, name)
        assert type(kept) is type(value)
        assert not isinstance(value, tuple) or {type(part) for part in kept} == {int}


@pytest.mark.parametrize("setting", SETTINGS[:-1], ids=lambda setting: type(setting).__name__)
def test_true_is_no_number(setting):
    for name in numbered(setting):
        for value in (True, np.True_):
            with pytest.raises(ValueError, match=rf"{name}=(np\.)?True"):
                replace(setting, **{name: value})


def test_flags_of_numpy_are_flags():
    assert ph.PruneHal(forced_first=np.False_) == ph.PruneHal(forced_first=False)
    assert ph.PruneHal(forced_first=np.False_).forced_first is False


def test_numbers_that_are_none():
    assert [as_count(value) for value in (np.uint8(3), 3.0, np.float64(3), True, np.True_, "3", None)] == [3] + [None] * 6
    numbers = [as_number(value) for value in (np.float32(0.5), Fraction(1, 2), np.int8(1), True, np.True_, "0.5", 1j, None)]
    assert numbers == [0.5, 0.5, 1] + [None] * 5
    assert [type(number) for number in numbers[:3]] == [float, float, int]
    with pytest.raises(ValueError, match=r"r=np\.float64\(nan\)|r=nan"):
        ph.PruneHal(r=np.float64("nan"))


def test_the_key_of_stored_rows_does_not_know_the_library_of_a_number():
    plain = Experiment(policy=ph.PruneHal(r=0.4, t=3), n_images=3)
    assert Experiment(policy=ph.PruneHal(r=np.float64(0.4), t=np.int64(3)), n_images=np.int32(3)).key == plain.key

"""The host waits for the device at most once a step: counted, since no accelerator is needed to see who would wait."""

from collections import Counter

import models
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StoppingCriteria

from prunehal.core import Bank, NoPruning, PruneHal, TopK, attach
from prunehal.core.keyword import as_option

# Operators whose result's value or shape the host must know: each makes it wait for an accelerator.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "repeat_interleave.Tensor")
PLAN = 3  # reads of the prompt's visual tokens, which lie on the CPU: nobody waits there
READING = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Counting(TorchDispatchMode):
    """Count what makes the host wait, for each step."""

    def __init__(self):
        super().__init__()
        self.steps = [Counter()]
        self.inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else []
        booleans = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        if not self.inside and (booleans or any(name.startswith(waiting) for waiting in WAITING)):
            self.steps[-1][name] += 1
        return function(*args, **(kwargs or {}))


class NextStep(StoppingCriteria):
    def __init__(self, counting):
        self.counting = counting

    def __call__(self, input_ids, scores, **kwargs):
        self.counting.steps.append(Counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.fixture
def counted(monkeypatch):
    """Return a function that generates and tells how often the host waited in each step."""

    def count(family, policy, attach_options=None, **options):
        model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4), seed=8)
        cache = None if policy is None else attach(model, inputs, policy, **(attach_options or {}))
        counting = Counting()
        with monkeypatch.context() as patch:
            for name in READING:
                original = getattr(torch.Tensor, name)

                def read(tensor, *args, original=original, name=name):
                    outer, counting.inside = counting.inside, True  # one read, whatever it calls
                    if not outer:
                        counting.steps[-1][name] += 1
                    try:
                        return original(tensor, *args)
                    finally:
                        counting.inside = outer

                patch.setattr(torch.Tensor, name, read)
            settings = dict(max_new_tokens=12, do_sample=False, stopping_criteria=[NextStep(counting)]) | options
            with counting:
                model.generate(**inputs, **as_option(cache), **settings)
        return [step.total() for step in counting.steps[:-1]], cache

    return count


CASES = [
    ({}, {}),
    ({"num_beams": 3}, {}),
    ({"do_sample": True, "num_return_sequences": 2}, {}),
    ({}, {"maps": True}),
    ({}, {"exact": True}),
]
POLICIES = [PruneHal(factor=1.0), TopK(4), NoPruning(), PruneHal(after_prune="restart")]
POLICIES += [Bank(factor=1.0, store="int8"), Bank(r=0.5, t=2, factor=1.0, back="key")]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(("options", "attach_options"), CASES, ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_host_waits_once_a_step_at_most(counted, family, options, attach_options, policy):
    stock, _ = counted(family, None, **options)
    ours, cache = counted(family, policy, attach_options, **options)
    more = [a - b for a, b in zip(ours, stock, strict=True)]
    assert max(more[1:]) <= 1, more
    assert more[0] <= 1 + PLAN, more
    if not options and isinstance(policy, NoPruning | TopK):
        assert max(more[3:]) <= 0, "once no row can be pruned any more, nothing is read"
    if not isinstance(policy, NoPruning):
        assert not cache.events.empty


def test_a_wait_would_be_counted(counted, monkeypatch):
    def vote(self, value, reference, entered):
        return (value < float(reference.mean())) & (entered > 0) & bool((value > 0).any())

    monkeypatch.setattr(PruneHal, "vote", vote)
    stock, _ = counted("llava", None)
    ours, _ = counted("llava", PruneHal(t=9))
    assert max(a - b for a, b in zip(ours, stock, strict=True)) >= 2

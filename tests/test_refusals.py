"""Models whose visual tokens cannot be pruned are refused, and the message names the reason."""

import re

import pytest
import torch
import transformers
from families.refused import REFUSED, dory
from models import IMAGE, PAD

from prunehal.core import PruneHal, attach, unsupported


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_model_is_refused_with_the_reason(refused):
    if refused.needs and not hasattr(transformers, refused.needs):
        pytest.skip(f"transformers {transformers.__version__} has no {refused.needs}")
    torch.manual_seed(0)
    model = refused.make().eval()
    ids = torch.tensor([[5, *[IMAGE] * 8, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 16, 16)}
    if not refused.late:
        with pytest.raises(ValueError, match=refused.says) as caught:
            attach(model, inputs, PruneHal())
        name = type(model).__name__
    else:
        settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
        model.generate(**inputs, **settings)  # stock generate() is content with it
        cache = attach(model, inputs, PruneHal())
        with pytest.raises(RuntimeError, match=refused.says) as caught:
            model.generate(**inputs, **cache.options, **settings)
        with pytest.raises(RuntimeError, match=refused.says):
            _ = cache.events
        name = "attn_implementation"
    message = str(caught.value)
    assert name in message
    assert re.search(r"expected .*(Fix: |Use )", message), message


def test_a_decoder_that_copies_layers_is_refused_though_its_configuration_does_not_show_it(monkeypatch):
    # As those would be that run layers several times in a step under a name that is not known here.
    if not hasattr(transformers, "DoryConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no DoryConfig")
    monkeypatch.setattr(unsupported, "LOOPS", ())
    model, ids = dory().eval(), torch.tensor([[5, *[IMAGE] * 16, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 16, 16)}
    cache = attach(model, inputs, PruneHal())
    with pytest.raises(ValueError, match=r"layer 1: is copied without its cache.*expected each layer .* once\. Fix: "):
        model.generate(**inputs, **cache.options, max_new_tokens=2, do_sample=False)

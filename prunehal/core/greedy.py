"""What a generate() inside the package sets for itself, so that a model's generation_config does not change what comes back."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["FIRST_LOGITS", "GREEDY"]

# One sequence for each row, as a tensor of ids. Stop strings need a tokenizer, which no call inside the package has.
GREEDY: Mapping[str, Any] = MappingProxyType(
    {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "stop_strings": None,
    }
)
# One step, for its logits.
FIRST_LOGITS: Mapping[str, Any] = MappingProxyType(
    {**GREEDY, "max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
)

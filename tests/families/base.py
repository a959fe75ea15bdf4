"""What a row of the model table says, and how its model gets peaked attention."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers
from torch import Generator, Tensor
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["END", "IMAGE", "PAD", "SLICES", "START", "VIDEO", "VOCAB", "Family", "asks_for_attention", "peaked"]

VOCAB = 100
IMAGE, PAD, VIDEO, START, END = 99, 97, 96, 95, 94  # the same ids in every family

SLICES = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
"""Whether generate() gives each chunk of a prompt its part of the images; before transformers 5.23 it left them out."""


@dataclass(frozen=True)
class Family:
    """Describe one family: how to make its model, and what its processor would bring.

    Attributes:
        key: as in ``models.build(key)``: the config's model_type, and a suffix for a variant.
        name: as its makers write it; a column of the README's table.
        make: builds the model, with random weights; ``models.build`` makes its attention peaked.
        image: the token ids that stand for one image in a prompt.
        pixels: what the processor brings beside the ids for n images: ``pixels(n, generator, ids)``; ids is (row, token).
        video, frames: the same for one video; None where the family reads none.
        decoder: returns the decoder's layers, whose ``self_attn`` the reference hooks into.
        spread: standard deviation of the weights; smaller where the usual one makes rounding errors reach the tolerance.
        functions: the attention functions that it runs with; it has no other than eager if its scores are not plain.
        lacks: what stock generate() itself cannot do with it: "chunks" (prefill_chunk_size), a prompt in two "parts" (the
            second by another call), several "turns" with token types, several "copies" of an image (beams, sampled sequences).
        unshared: why SharedPrefill refuses it, a regular expression; empty where it does not.
        unread: why LayerReadout (DoLa, DeCo) refuses it, a regular expression; empty where it does not.
        needs: the class of transformers that it needs, where not every admitted version has it; its module must not import it.
        hindrance: returns what the installed transformers cannot do although it has the class; empty where it can.
        newer: ``make test`` runs four cases of it, ``make compat`` all: see ``families.IN_FULL``.
        remark: what is special about it; a column of the README's table.
    """

    key: str
    name: str
    make: Callable[[], PreTrainedModel]
    image: tuple[int, ...]
    pixels: Callable[[int, Generator, Tensor], dict[str, Tensor]]
    video: tuple[int, ...] | None = None
    frames: Callable[[int, Generator, Tensor], dict[str, Tensor]] | None = None
    decoder: Callable[[PreTrainedModel], torch.nn.ModuleList] = field(default=lambda model: model.model.language_model.layers)
    spread: float = 0.22
    functions: tuple[str, ...] = ("sdpa", "eager")
    lacks: tuple[str, ...] = ()
    unshared: str = ""
    unread: str = ""
    needs: str = ""
    hindrance: Callable[[], str] = field(default=str)
    newer: bool = False
    remark: str = ""

    def is_defined(self) -> bool:
        """Return whether the installed transformers has its class, so that it can be made."""
        return not self.needs or hasattr(transformers, self.needs)

    def missing(self) -> str:
        """Return why the installed transformers cannot run it; empty where it can."""
        if not self.is_defined():
            return f"transformers {transformers.__version__} has no {self.needs}"
        return self.hindrance()


def asks_for_attention(config: PreTrainedConfig) -> bool:
    """Return whether the decoder of this configuration uses transformers' attention function, so that it is observed.

    CodeGen and GPT-J have attention code of their own up to some version, and use the function from then on.
    """
    modeling = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    return hasattr(modeling, "ALL_ATTENTION_FUNCTIONS")


def peaked(model: PreTrainedModel, spread: float) -> PreTrainedModel:
    """Draw the weights anew so that attention is peaked, and logits of about unit size.

    At the usual initializer_range of 0.02 attention is flat and a wrong position goes unnoticed; here the same mistake
    moves the logits by far more than the tolerance of the tests, `decode.TOLERANCE`.
    """
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1 if "lm_head" in name else spread)
    return model

"""prunehal: prune visual tokens from the KV cache while a multimodal LLM decodes, and test whether that helps.

    import prunehal as ph

    model, processor = ph.load()
    image = ph.load_image("photo.jpg")
    inputs = processor(images=image, text="<image>Describe this scene in detail.", return_tensors="pt")
    with ph.pruning(model, ph.PruneHal(r=0.4, t=3)) as run:
        ids = model.generate(**inputs, max_new_tokens=64)
    run.caches[0].events

Rooms, from the ground up: ``files``, ``stats``, ``core`` (attention observes, policy decides, cache acts), ``testbed`` (the world
and the training of the embedded model), ``models`` (load and ask them), ``decoding`` (mitigation decoders), ``benchmarks``
(scores by published rules), ``experiments`` (ablations that resume), ``running`` (real models on benchmarks), ``figures``,
``measuring``, ``studies`` (the code of the notebooks), ``commands`` (of ``python -m prunehal``).

Words used throughout, with the symbols of the paper (arXiv 2510.19183):

=================  ==================================================================================================
visual token       an entry of the prompt that stands for a patch of an image; N_l of them are in layer l's KV cache
step m             the forward pass that produces output token m; m = 1 is the prefill, m = 2 the first single-token pass
attention row      a_l: attention of the newest query token, averaged over the heads, on each visual token
A_l, Abar_l        the row's mean over the cached visual tokens (the statistic); its history of earlier steps (reference)
retention ratio r  the share of the visual tokens that a prune keeps in each layer
t                  the largest number of prunes for one caption, the forced one at m = 2 included
vote, majority     layer l votes when A_l < factor * Abar_l (factor: sqrt(r)); a prune takes more than half of the layers
CHAIR_i, CHAIR_s   hallucinated object mentions / mentions; captions with at least one / captions
recall             ground-truth objects that a caption mentions / ground-truth objects
shapes             (batch, layer, visual), (batch, head, query, key)
=================  ==================================================================================================
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("prunehal")

# Imported when first asked for, so that `import prunehal` does not wait for torch and transformers.
_HOMES = {
    "prunehal.files.images": ("load_image",),
    "prunehal.models.load": ("load",),
    "prunehal.core": (
        "Accumulated",
        "AttentionTrace",
        "Bank",
        "Draft",
        "FirstToken",
        "Informative",
        "Keep",
        "MassShare",
        "NoPruning",
        "PrunableCache",
        "PruneHal",
        "RobustVote",
        "SharedPrefill",
        "Standout",
        "StepTopK",
        "TopK",
        "attach",
        "pruning",
    ),
    "prunehal.experiments.captioning": ("Captioned", "caption_scenes", "mention_attention"),
    "prunehal.experiments": ("Experiment", "Store", "grid", "read_grid", "sweep"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'prunehal' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

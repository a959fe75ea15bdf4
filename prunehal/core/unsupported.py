"""Name the decoders whose cache is not just one entry of K and V for each token, layer and head."""

from transformers import PreTrainedConfig

__all__ = ["reason_against"]

# Kinds of layers that keep something else beside K and V, by the configuration's layer_types.
BESIDE = {
    "indexed_attention": "picks the tokens that a query sees by keys of an indexer, which are cached beside K and V",
    "minimax_m3_sparse": "picks the tokens that a query sees by keys of an indexer, which are cached beside K and V",
    "hybrid": "keeps a running state beside K and V in one layer",
    "hybrid_sliding": "keeps a running state beside K and V in one layer",
    "reference_sliding_attention": "keeps the prompt and a window of what follows in layers of its own",
}
# How often some layers run in one step, by the names of the configurations; each time with K and V of its own.
LOOPS = ("n_recurrent_loops", "loop_num_passes")


def reason_against(config: PreTrainedConfig) -> str | None:
    """Return why the cache of a model with this configuration cannot be pruned, and what was expected; None if it can.

    >>> from transformers import DeepseekV3Config, LlamaConfig
    >>> reason_against(LlamaConfig())
    >>> reason_against(DeepseekV3Config())[:60]
    'its decoder (deepseek_v3) caches K and V compressed (multi-h'
    """
    text = config.get_text_config(decoder=True)
    decoder = f"its decoder ({text.model_type})"
    if hasattr(config, "thinker_config"):
        return "its words are written by its thinker; expected that one. Fix: attach(model.thinker, ...), and its generate()"
    if _size(text, "kv_lora_rank"):
        return f"{decoder} caches K and V compressed (multi-head latent attention); expected K and V of each head"
    for kind in getattr(text, "layer_types", None) or ():
        if kind in BESIDE:
            return f"{decoder} {BESIDE[kind]}; expected layers that keep K and V only"
    if getattr(config, "canvas_length", None):
        block = f"canvas_length={config.canvas_length}"
        return f"{decoder} writes blocks of tokens at once, by diffusion ({block}); expected one token a step"
    for name in LOOPS:
        if _size(text, name) > 1:
            return (
                f"{decoder} runs some layers several times in a step ({name}={getattr(text, name)}), each time with K and V of "
                "its own; expected each layer once"
            )
    return None


def _size(text: PreTrainedConfig, name: str) -> int:
    # A configuration whose layers differ refuses to name one number for all of them.
    layers = getattr(text, "per_layer_config", None) or ()
    return max((getattr(layer, name, None) or 0 for layer in layers), default=0) or getattr(text, name, None) or 0

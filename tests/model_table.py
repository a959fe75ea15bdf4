"""The README's section on models: written from the models that the tests run, ``python tests/model_table.py --write``."""

import argparse
import logging
from pathlib import Path

from families import IMAGE, LISTED, VIDEO, Family
from families.refused import REFUSED

from prunehal.studies.readme import write_between

__all__ = ["BEGIN", "END", "models_section"]

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- models: begin, written by `python tests/model_table.py --write` -->", "<!-- models: end -->"
COLUMNS = "model | transformers class | visual tokens in the test | positions | attention | several images | video | remark"
KINDS = {"conv": "convolution", "linear_attention": "linear", "full_attention": "full"}
KINDS |= {"sliding_attention": "sliding window", "chunked_attention": "chunks"}
NO_ATTENTION = ("mlp", "moe")  # layers of their own in some decoders


def models_section() -> str:
    """Return the table of the models that are tested, and the list of those that are refused, as markdown."""
    rows = [f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
    rows += [f"| {' | '.join(_row(family))} |" for family in LISTED if family.is_defined()]
    refused: dict[str, list[str]] = {}
    for one in REFUSED:
        refused.setdefault(one.reason, []).append(one.name)
    return "\n".join([*rows, "", "Refused:", "", *(f"- {', '.join(names)}: {why}" for why, names in refused.items())])


def _row(family: Family) -> list[str]:
    model = family.make()
    text = model.config.get_text_config(decoder=True)
    attention = family.decoder(model)[0].self_attn
    tokens = sum(token in (IMAGE, VIDEO) for token in family.image)
    only_videos = VIDEO in family.image
    films = "" if family.video is None else f", video {sum(token in (IMAGE, VIDEO) for token in family.video)}"
    return [
        family.name,
        f"`{type(model).__name__}`",
        f"{tokens}{films}",
        _positions(text),
        _attention(text, any(name == "sinks" for name, _ in attention.named_parameters())),
        "" if only_videos else "yes",
        "yes" if only_videos or family.video else "",
        family.remark,
    ]


def _positions(text: object) -> str:
    rope = getattr(text, "rope_parameters", None)
    if not rope:
        return "RoPE" if getattr(text, "rotary_dim", None) else "learned"
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return "M-RoPE" if any("mrope_section" in part for part in parts) else "RoPE"


def _attention(text: object, sinks: bool) -> str:
    # A window at least as wide as the longest sequence is none.
    window = getattr(text, "sliding_window", None)
    plain = "full_attention" if window is None or window >= text.max_position_embeddings else "sliding_attention"
    kinds = [kind for kind in dict.fromkeys(getattr(text, "layer_types", None) or [plain]) if kind not in NO_ATTENTION]
    return ", ".join([KINDS[kind] for kind in kinds] + ["sinks"] * sinks)


def main() -> None:
    """Print the section, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it between the markers of the README")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if parser.parse_args().write:
        write_between(README, BEGIN, END, models_section())
    else:
        print(models_section())


if __name__ == "__main__":
    main()

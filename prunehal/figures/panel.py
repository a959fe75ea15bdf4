"""A panel for notebooks: move r, t and the threshold, and the scene is captioned again.

Where no front end is connected to the kernel (nbclient, nbval, nbconvert, a script) the panel is one figure instead, so that a
stored notebook shows something to readers without a kernel, and holds no widget state.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import html
import io
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.core import NoPruning, Policy, PruneHal
from prunehal.core.checks import as_count
from prunehal.figures import COLORS
from prunehal.figures.recaption import KEY, Recaption, draw, draw_patches, recaption
from prunehal.testbed.world.scenes import scene

__all__ = ["Panel", "caption_html", "front_end_is_live", "show_panel"]

IMAGES = tuple(range(20))
PAUSE = 0.15  # seconds without a further change before a run starts
DARKEST = 0.55  # of the colour map: black text stays legible on it


def show_panel(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    r: float = 0.4,
    t: int = 3,
    factor: float | None = None,
    image: int = 0,
    images: Sequence[int] = IMAGES,
    interactive: bool | None = None,
) -> None:
    """Show what pruning does to one caption: as widgets that caption again when moved, or as one figure.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        r, t, factor: of ``PruneHal``, to start with; factor None is sqrt(r).
        image: scene of the test split, to start with.
        images: scenes to choose from.
        interactive: True shows widgets, False one figure; None shows widgets where :func:`front_end_is_live`.

    Raises:
        ValueError: a value of r, t or factor that ``PruneHal`` refuses, an image that is not offered, another ``interactive``.
        ImportError: ``interactive=True`` without ipywidgets.
    """
    if interactive not in (None, True, False):
        raise ValueError(f"interactive={interactive!r}: expected True, False or None. Set interactive=None, the default.")
    policy = PruneHal(r, t, factor=factor)
    _check_images(image, images)
    if front_end_is_live() if interactive is None else interactive:
        panel = Panel(model, processor, policy, image=image, images=images)
        from IPython.display import display

        display(panel.box)
        panel.run()
    else:
        results = [recaption(model, processor, scene("test", image), each) for each in (policy, NoPruning())]
        draw(plt.figure(layout="constrained"), *results)
        plt.show()


def front_end_is_live() -> bool:
    """Say whether this is a kernel that a Jupyter server started for a notebook, and ipywidgets is installed.

    The server names the notebook in the environment variable JPY_SESSION_NAME; nbclient, and with it nbval and nbconvert,
    does not. Some other front ends (VS Code, Colab) do not either: there, say ``interactive=True``.

    >>> front_end_is_live()
    False
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_kernel = getattr(shell, "kernel", None) is not None
    return in_kernel and "JPY_SESSION_NAME" in os.environ and find_spec("ipywidgets") is not None


def caption_html(result: Recaption) -> str:
    """Write a caption with each word on a shade of its visual attention; its text is the caption.

    Objects are bold and boxed, in orange where the scene does not hold them, and say so when pointed at or read aloud.
    """
    top = max(result.attention, default=1)
    parts, end = [], 0
    for (begin, stop), value, mark in zip(result.spans, result.attention, result.marks, strict=True):
        style = f"background:{to_hex(colormaps['Blues'](DARKEST * value / top))};color:#111;padding:1px 2px;border-radius:2px;"
        style += f"font-weight:bold;outline:2px solid {COLORS[mark]};outline-offset:-1px;" if mark else ""
        note = {"hallucinated": ' title="hallucinated: not in the scene"', "faithful": ' title="in the scene"', None: ""}[mark]
        kind = f' class="prunehal-{mark}"' if mark else ""
        word = html.escape(result.caption[begin:stop])
        parts.append(f'{html.escape(result.caption[end:begin])}<span{kind}{note} style="{style}">{word}</span>')
        end = stop
    return "".join(parts) or "<i>(the caption is empty)</i>"


class Panel:
    """Widgets that caption a scene again whenever one of them is moved.

    In a kernel a run waits for a moment without changes, on the event loop that delivers them. What was moved while a slow
    model ran is therefore one further run, with the latest values, and not one for each move. Without a running event loop
    (a script, a test) every change runs at once. Results are kept, so that going back to a setting takes no time.

    Attributes:
        box: what to display.
        r, t, factor, square_root, image: the controls.
        status, captions, picture: HTML widgets: what goes on or went wrong, the captions with their numbers, the patches.
        result: what is shown now; None before the first run and after a failure.
        runs: how often the panel ran.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        policy: PruneHal | None = None,
        *,
        image: int = 0,
        images: Sequence[int] = IMAGES,
    ) -> None:
        """Build the widgets; ``run()`` fills them.

        Raises:
            ValueError: the image is not offered.
            ImportError: ipywidgets is missing.
        """
        if find_spec("ipywidgets") is None:
            raise ImportError(
                "ipywidgets is not installed, which interactive=True needs. "
                "Fix: pip install 'prunehal[notebooks]', or say interactive=False for one figure."
            )
        import ipywidgets as widgets

        policy = PruneHal() if policy is None else policy
        _check_images(image, images)
        self._model, self._processor = model, processor
        self._done: dict[tuple[int, Policy], Recaption] = {}
        self._lock = threading.Lock()  # comm messages may come on a thread of their own
        self._pending: asyncio.TimerHandle | None = None
        self._start, self._asked = policy, (image, policy)
        self.result: Recaption | None = None
        self.runs = 0

        moved = {"continuous_update": False, "style": {"description_width": "9em"}, "layout": {"width": "28em"}}
        shown = math.sqrt(policy.r) if policy.factor is None else policy.factor
        ratio = {"min": min(0.05, policy.r), "max": 1.0, "step": 0.05, "readout_format": ".2f"}
        self.r = widgets.FloatSlider(policy.r, description="r, share kept", **ratio, **moved)
        self.t = widgets.IntSlider(policy.t, min=0, max=max(6, policy.t), description="t, most prunes", **moved)
        self.square_root = widgets.Checkbox(policy.factor is None, indent=False)
        ratio["min"] = min(0.05, shown)
        self.factor = widgets.FloatSlider(shown, description="threshold factor", **ratio, **moved)
        names = [(f"{i}: {', '.join(sorted(scene('test', i).names))}", i) for i in images]
        self.image = widgets.Dropdown(
            options=names, value=image, description="scene", style=moved["style"], layout={"width": "44em", "max_width": "100%"}
        )
        self.status, self.captions, self.picture = widgets.HTML(), widgets.HTML(), widgets.HTML()
        rows = [widgets.HBox([self.r, self.t]), widgets.HBox([self.factor, self.square_root])]
        self.box = widgets.VBox([self.image, *rows, self.status, self.captions, self.picture])
        for control in (self.r, self.t, self.factor, self.square_root, self.image):
            control.observe(self._changed, names="value")
        self._label()

    @property
    def policy(self) -> PruneHal:
        """Return the setting that the controls show; further options are those of the first policy."""
        factor = None if self.square_root.value else self.factor.value
        return dataclasses.replace(self._start, r=self.r.value, t=self.t.value, factor=factor)

    def run(self) -> None:
        """Caption the chosen scene by the chosen setting, and show it; an error is shown in its place."""
        with self._lock:
            self._pending = None
            self.runs += 1
            self._say("Captioning …")
            began = time.perf_counter()
            try:
                result, base = self._recaption(self.policy), self._recaption(NoPruning())
                captions, picture = _captions(result, base), _picture(result)
            except Exception as error:
                self.result, self.captions.value, self.picture.value = None, "", ""
                self._say(f"{type(error).__name__}: {error}", traceback.format_exc())
            else:
                self.result, self.captions.value, self.picture.value = result, captions, picture
                self._say(f"Captioned in {time.perf_counter() - began:.1f} s.")

    def _recaption(self, policy: Policy) -> Recaption:
        key = self.image.value, policy
        if key not in self._done:
            self._done[key] = recaption(self._model, self._processor, scene("test", self.image.value), policy)
        return self._done[key]

    def _changed(self, change: dict[str, Any]) -> None:
        self._label()
        asked = self.image.value, self.policy
        if asked == self._asked:  # the slider of the factor has followed r
            return
        self._asked = asked
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.run()
            return
        self._say("Captioning …")
        if self._pending is not None:
            self._pending.cancel()
        self._pending = loop.call_later(PAUSE, self.run)

    def _label(self) -> None:
        self.square_root.description = f"sqrt(r) = {math.sqrt(self.r.value):.2f}"
        self.factor.disabled = self.square_root.value
        if self.square_root.value:
            self.factor.value = math.sqrt(self.r.value)

    def _say(self, text: str, details: str = "") -> None:
        role, color = ("alert", COLORS["hallucinated"]) if details else ("status", "inherit")
        more = f"<details><summary>traceback</summary><pre>{html.escape(details)}</pre></details>" if details else ""
        self.status.value = f'<div class="prunehal-status" role="{role}" style="color:{color}">{html.escape(text)}</div>{more}'


def _check_images(image: int, images: Sequence[int]) -> None:
    if not images or any(as_count(i) is None or i < 0 for i in images):
        raise ValueError(f"images={images!r}: expected numbers of scenes of the test split, from 0. Set images=range(20).")
    if image not in images:
        raise ValueError(f"image={image!r}: expected one of images={images!r}. Fix: add it there, or set image={images[0]}.")


def _captions(result: Recaption, base: Recaption) -> str:
    parts = [
        f'<div style="line-height:1.3;margin-top:6px"><b>{html.escape(each.setting)}</b>: {html.escape(each.numbers)}</div>'
        f'<p class="prunehal-caption" data-policy="{name}" style="line-height:1.9;margin:2px 0 8px">{caption_html(each)}</p>'
        for name, each in (("pruned", result), ("unpruned", base))
    ]
    key = f'<small style="display:block;line-height:1.3">{html.escape(KEY)}</small>'
    return f'<div style="max-width:70em">{"".join(parts)}{key}</div>'


def _picture(result: Recaption) -> str:
    figure, file = Figure(layout="constrained"), io.BytesIO()
    draw_patches(figure, result)
    figure.savefig(file, format="png", dpi=90)
    names = ", ".join(sorted(result.scene.names))
    steps = "; ".join(f"after m = {prune.step}: {prune.kept} visual tokens left in each layer" for prune in result.prunes)
    alt = html.escape(f"A scene with {names}, its dropped patches darkened. {steps or 'No prune'}.", quote=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" style="max-width:100%">'

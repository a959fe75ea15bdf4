"""The panel in a real browser: JupyterLab runs the notebook of the thresholds, a slider moves, the caption changes."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect, sync_playwright

import prunehal as ph
from prunehal.figures.recaption import recaption
from prunehal.testbed.world.scenes import scene

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"  # screenshots
NOTEBOOK = "03_ablate_thresholds.ipynb"
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
START, EXECUTE, MOVE = 90, 600, 120  # seconds to wait at most: for the server, for all cells, for one caption
# Every cell stays on the page, wherever it is scrolled to; nothing asks for news.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture
def browser_path():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "no chromium, chromium-browser or google-chrome is on the PATH; install Debian's package chromium"
        if os.environ.get("PRUNEHAL_NEED_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextlib.contextmanager
def lab(folder):
    """Run JupyterLab on a copy of the notebook, with all of its own files in the folder; yield its address."""
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder / "notebooks")
    for name, values in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
    own += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
    environment |= {name: str(folder / name.lower()) for name in own}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/api/status?token={token}")
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
    except BaseException as error:
        error.add_note(f"the server's log:\n{log.read_text()[-8000:]}")
        raise
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(server, address):
    end = time.monotonic() + START
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {START} s (exit code {server.poll()})")


@contextlib.contextmanager
def browse(path, folder):
    """Start a browser with a fresh profile that may reach this machine only; yield its page and what it was denied."""
    denied = []

    def local_only(route):
        if re.match(r"(https?://127\.0\.0\.1:|data:|blob:)", route.request.url):
            route.continue_()
        else:
            denied.append(route.request.url)
            route.abort()

    arguments = [f"--{flag}" for flag in FLAGS.split()]
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=path, args=arguments, headless=True, viewport={"width": 1360, "height": 1100}
        )
        try:
            context.route("**/*", local_only)
            yield context.pages[0], denied
        except BaseException as error:
            with contextlib.suppress(Error):  # of a browser that is gone
                context.pages[0].screenshot(path=BUILD / "panel_failed.png")
                error.add_note("what the browser showed: build/panel_failed.png")
            raise
        finally:
            context.close()


@pytest.mark.timeout(1500)
def test_moving_a_slider_of_the_notebook_changes_the_caption(browser_path, tmp_path):
    model, processor = ph.load()
    BUILD.mkdir(exist_ok=True)

    def caption(r):
        return recaption(model, processor, scene("test", 2), ph.PruneHal(r, 3)).caption

    with lab(tmp_path) as address, browse(browser_path, tmp_path) as (page, denied):
        page.goto(address, timeout=START * 1000)
        page.locator(".jp-Notebook").wait_for(timeout=START * 1000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=START * 1000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

        pruned, unpruned = (page.locator(f"p.prunehal-caption[data-policy={name}]") for name in ("pruned", "unpruned"))
        expect(pruned).to_have_text(caption(0.4), timeout=EXECUTE * 1000)
        base = unpruned.text_content()
        row = page.locator(".widget-slider", has_text="r, share kept")
        handle, readout = row.get_by_role("slider"), row.locator(".widget-readout")
        expect(readout).to_have_text("0.40")

        # Drag the slider to its end: all tokens stay, so that the caption is the one without pruning.
        handle.scroll_into_view_if_needed()
        box, track = handle.bounding_box(), row.locator(".noUi-base").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(track["x"] + track["width"] + 20, box["y"] + box["height"] / 2, steps=8)
        page.mouse.up()
        expect(readout).to_have_text("1.00", timeout=MOVE * 1000)
        expect(pruned).to_have_text(base, timeout=MOVE * 1000)
        assert base != caption(0.4)

        # Many small moves at once: in the end the panel shows the last of them.
        for _ in range(6):
            handle.press("ArrowLeft")
        expect(readout).to_have_text("0.70", timeout=MOVE * 1000)
        expect(pruned).to_have_text(caption(0.7), timeout=MOVE * 1000)
        assert caption(0.7) not in (base, caption(0.4))
        expect(unpruned).to_have_text(base)
        expect(page.locator(".prunehal-status")).to_contain_text("Captioned in", timeout=MOVE * 1000)
        picture = page.locator("img[alt^='A scene with']")
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        picture.scroll_into_view_if_needed()
        page.screenshot(path=BUILD / "panel.png")
        assert denied == []

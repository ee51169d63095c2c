"""The page in a real browser: nothing is complained of, nothing sticks out, the map answers."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from sslpipe.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--hide-scrollbars", "--force-device-scale-factor=1",
)  # fmt: skip
SCHEMES = {"dark": 0, "light": 1}  # as Blink counts them
HEIGHT = 1600
# what a person would do: press an arrow key on the first map, choose the first class
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, map = document.querySelector(".map");
  const tip = document.getElementById("tip"), only = document.getElementById("only");
  const told = {width: innerWidth, needs: root.scrollWidth};
  told.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  map.focus();
  map.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  told.tip = tip.hidden ? "" : tip.innerText;
  told.picture = getComputedStyle(tip.querySelector(".picture")).backgroundImage.slice(0, 20);
  const first = tip.innerText;
  map.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  told.moved = tip.innerText !== first;
  const circle = map.querySelector("circle"), box = circle.getBoundingClientRect();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  map.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y, bubbles: true}));
  told.hover = tip.innerText;
  map.blur();
  told.gone = tip.hidden;
  only.value = "0";
  only.dispatchEvent(new Event("change"));
  told.away = map.querySelectorAll("circle.away").length;
  only.value = "";
  only.dispatchEvent(new Event("change"));
  const reached = [...document.querySelectorAll("a, input, select, summary, [tabindex]")];
  told.reached = reached.filter((e) => e.tabIndex >= 0).length === reached.length;
  parent.postMessage(told, "*");
});
</script>"""
# a window is 500 pixels wide at least, a frame as narrow as one likes
FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style><script>
addEventListener("message", ({{ data }}) => {{
  for (const [name, value] of Object.entries(data)) document.documentElement.dataset[name] = value;
}});
</script><iframe src="{page}" width="{width}" height="{height}"></iframe>"""


def seen(page, profile, shot, *, width, scheme):
    """What the page says of itself, by name; what the browser complains of; its picture."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(page=page.name, width=width, height=HEIGHT))
    done = subprocess.run(
        [
            BROWSER, *QUIET, "--virtual-time-budget=3000", f"--user-data-dir={profile}",
            f"--window-size={max(width, 500)},{HEIGHT}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--screenshot={shot}", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    (root,) = re.findall(r"^<html[^>]*>", done.stdout, re.MULTILINE)
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', root))
    with Image.open(shot) as picture:
        levels = np.asarray(picture.convert("L"))
    return told, re.findall(r".*CONSOLE.*", done.stderr), levels[:, :width]


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    """A report with a script that tries it."""
    made = write_report([evaluation], tmp_path_factory.mktemp("report"))
    made.write_text(made.read_text().replace("</body>", PROBE + "</body>"))
    return made


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_shows_it(page, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    told, complaints, levels = seen(page, tmp_path / "profile", shot, width=width, scheme=scheme)
    assert complaints == []
    assert (int(told["width"]), int(told["needs"])) == (width, width), "it scrolls sideways"
    assert told["dark"] == str(scheme == "dark").lower()
    keys = [f"class{i % 3}/{i:03d}" for i in range(45)]
    assert told["tip"].split()[-1] in keys
    assert told["hover"].split()[-1] in keys
    assert told["picture"].startswith("url(&quot;data:image")
    assert (told["moved"], told["gone"], told["reached"]) == ("true", "true", "true")
    assert int(told["away"]) == 30
    assert levels.shape == (HEIGHT, width)
    background = int(np.median(levels))
    assert background < 64 if scheme == "dark" else background > 224
    assert (np.abs(levels.astype(int) - background) > 60).mean() > 0.01, "nothing is drawn"

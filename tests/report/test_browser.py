"""The page in Chromium: on a phone and on a desk, light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.report.made import FIGURES

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


PROBE = f"<script>{(Path(__file__).parent / 'probe.js').read_text()}</script>"
FRAME = """<!doctype html><iframe src="r.html" width="{width}" height="844"></iframe><script>
addEventListener("message", event => {{
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = event.data;
  document.body.append(out);
}});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_the_page_works_in_a_browser(reported: Path, dark: bool, width: int, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text((reported / "r.html").read_text().replace("<main>", PROBE + "<main>", 1))
    file = tmp_path / "frame.html"  # a window of Chromium is at least 500 pixels wide
    file.write_text(FRAME.format(width=width))
    page = seen(file, dark, tmp_path / "profile")
    assert page["wrong"] == []
    assert page["loaded"] == []
    assert page["inner"] == width
    assert page["scroll"] <= width, "the page is wider than the screen"
    assert page["summary"][0] <= page["summary"][1], "the summary is wider than the screen"
    assert {*page["figures"]} == {*FIGURES}
    for name, figure in page["figures"].items():
        looks_well(name, figure, width)
    assert page["hidden"] == {"rows": 0, "others": 0, "series": 0, "names": []}
    assert page["back"] > 0
    assert page["back"] % 100 == 0, "all rows are shown again"
    assert page["sorted"] == ["random", "source", "plain", "clone", "bad"]
    assert page["costs"] == ["random", "clone", "plain", "source"]
    assert page["figures"]["loss-tokens"]["keyed"].startswith("40k")
    assert "plain3.3" in page["figures"]["loss-tokens"]["keyed"]
    assert page["figures"]["tasks"]["keyed"].startswith("sciq")
    dark_page, dark_ink = sum(page["paper"][:3]) < 3 * 80, sum(page["ink"][:3]) < 3 * 80
    assert (dark_page, dark_ink) == (dark, not dark)
    ink = [int(part) for part in re.findall(r"\d+", page["figures"]["early"]["ink"])[:3]]
    assert (sum(ink) < 3 * 80) == (not dark), "the figure's text follows the page"
    assert page["switched"] == [True, False]
    assert page["log"] == ["loss-flops-log"]
    assert page["printed"] == [680, 255], "on paper, figures have its width and are dark on white"
    assert page["again"] < width
    assert (sum(page["other"][:3]) < 3 * 80) != dark


def looks_well(name: str, figure: dict[str, Any], width: int) -> None:
    """A figure of the page is whole, readable and can be looked into."""
    assert 0.85 * min(width, 1088) < figure["width"] <= width, name
    assert figure["height"] > 60, name
    assert figure["small"] > 9, f"text is too small in {name}"
    assert figure["cut"] == [], f"text is cut off in {name}"
    assert figure["paths"] > 3, name
    assert figure["tip"], f"no values are shown in {name}"
    assert figure["left"], f"values stay after the pointer has left {name}"
    assert figure["keyed"], f"no values are shown in {name} by the keyboard"
    assert figure["escaped"], name
    assert figure["file"] == {"good": True, "variables": False, "dark": False}, name
    zoomed = figure["zoomed"]
    assert zoomed["reset"] == zoomed["before"], name
    low, high = zoomed["before"][:2]
    half = [(low * (high / low) ** share if zoomed["log"] else low + share * (high - low)) for share in (0.25, 0.75)]
    assert zoomed["after"][:2] == pytest.approx(half, rel=1e-3), name


def seen(file: Path, dark: bool, profile: Path) -> dict[str, Any]:
    """What the probe says of a page in Chromium."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=4000", "--dump-dom",
        "--window-size=1400,900", file.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    page: dict[str, Any] = json.loads(html.unescape(found[1]))
    return page

"""``python -m tests.support.pictures REPORT [SAE]``: the pictures of README.md, made from a report of the demo.

REPORT is a ``report.json``; the page is rendered anew beside the accepted reports of this checkout. SAE is the one
whose `kl_gap` is shown, ``demo/standard`` unless another is named.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from sae_bench.frontends.cli import main as command_line
from tests.support.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
WIDTH, MARGIN = 1200, 12
READY = """(async () => {
  const section = document.getElementById(SECTION), all = (from) => [...from.querySelectorAll(".plot")];
  document.documentElement.style.scrollBehavior = "auto";
  document.querySelector("nav").style.position = "static";
  document.querySelectorAll("details.property").forEach((each) => { each.open = each === section; });
  for (const plot of [...all(document.querySelector("#compare").nextElementSibling), ...all(section)]) {
    plot.scrollIntoView();
    while (!plot.querySelector(".main-svg")) await new Promise((done) => setTimeout(done, 20));
  }
  scrollTo(0, 0);
  await new Promise((done) => setTimeout(done, 300));
  const around = (...nodes) => {
    const boxes = nodes.map((each) => each.getBoundingClientRect()), end = (side) => boxes.map((each) => each[side]);
    return [Math.min(...end("left")), Math.min(...end("top")), Math.max(...end("right")), Math.max(...end("bottom"))];
  };
  return {
    front: around(document.querySelector("h1"), document.querySelector("#compare").nextElementSibling),
    kl_gap: around(...[...section.querySelectorAll("figure")].slice(0, 4)),
  };
})()"""


def draw(report: Path, images: Path, sae: str) -> list[Path]:
    """Front page and the first four pictures of `kl_gap`, as PNG files."""
    images.mkdir(parents=True, exist_ok=True)
    written = []
    # The browser may still write to its profile when it has been closed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "report.html"
        if code := command_line(["render", str(report), "--html", str(page), "--baselines", str(ROOT / "baselines")]):
            sys.exit(code)
        browser = Browser(Path(folder) / "profile")
        try:
            # A picture beyond the window has no scroll bar: what is measured must have none either.
            browser.call("Emulation.setScrollbarsHidden", hidden=True)
            browser.open(page, WIDTH)
            places = browser.run(READY.replace("SECTION", json.dumps(f"{sae}--kl_gap")))
            for name, (left, top, right, bottom) in places.items():
                path = images / f"report-{name}.png"
                size = right - left + 2 * MARGIN, bottom - top + 2 * MARGIN
                path.write_bytes(browser.picture(left - MARGIN, top - MARGIN, *size))
                written.append(path)
        finally:
            browser.close()
    return written


if __name__ == "__main__":
    if CHROMIUM is None or len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m tests.support.pictures REPORT [SAE], with chromium on PATH")
    for written in draw(Path(sys.argv[1]), IMAGES, sys.argv[2] if len(sys.argv) == 3 else "demo/standard"):
        sys.stdout.write(f"{written} {written.stat().st_size // 1000} kB\n")

"""The search page over a large library: from the command to the address, and from opening the page to what is seen.

    python benchmarks/search_page.py --photos PHOTOS --student EXPORT --count 100000 --out results/page

Makes COUNT files by hard links to the photos, in folders of 1,000, and an index of them with made-up vectors, so that
nothing is left to embed; then runs `clip-distill search`, which looks through the folders meanwhile, and opens its page
in Chromium (Playwright) at once and ten times more, each time without a cache. `paint`: the browser's first contentful
paint; `photos`: until the thumbnails that fit the window are there, in milliseconds. All numbers: OUT.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, sync_playwright
from search import add_made_up

from clip_distill.corpus.report import Skips
from clip_distill.photosearch.update import found_files
from clip_distill.system.files import write_json
from clip_distill.verbs.search import make_engine

VISITS = 10
SEEN = """() => [...document.querySelectorAll("#results img")]
  .filter((image) => image.getBoundingClientRect().top < innerHeight)
  .map((image) => image.complete && image.naturalWidth > 0)"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"


def linked(photos: Path, count: int, folder: Path) -> None:
    """COUNT files, in folders of 1,000."""
    sources = sorted(path for path in photos.iterdir() if path.is_file())
    for number, source in zip(range(count), itertools.cycle(sources), strict=False):
        place = folder / f"{number // 1000:04}" / f"{number}{source.suffix}"
        if number % 1000 == 0:
            place.parent.mkdir(parents=True)
        place.hardlink_to(source)


def indexed(folder: Path, student: str, index: Path) -> None:
    """An index of the files, of made-up vectors."""
    names = {"student": student, "image": None, "text": None}
    engine = make_engine([str(folder)], names, None, str(index), None, "float16", None, "cpu")
    add_made_up(engine.index, list(found_files([str(folder)], Skips()).values()))


def visited(browser: Browser, address: str) -> dict[str, float]:
    """Milliseconds until the first paint, and until the photos in the window are there."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    page = context.new_page()
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    while not ((seen := page.evaluate(SEEN)) and all(seen)):
        page.wait_for_timeout(5)
    photos = 1000 * (time.perf_counter() - began)
    while not (found := page.evaluate(PAINT)):
        page.wait_for_timeout(5)
    context.close()
    return {"paint": found[0], "photos": photos}


def started(command: list[str]) -> tuple[subprocess.Popen[str], str, float]:
    """The server's process, its address, and the seconds until it was printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if address := re.search(r"http://\S+", line):
            return process, address[0], time.perf_counter() - began
    raise SystemExit("expected an address, found none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path, help="folder of photos, on the disk that --folder is on")
    parser.add_argument("--student", required=True, help="a folder that `clip-distill export --to onnx` wrote")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--folder", help="where the links and the index are made; by default a temporary one")
    parser.add_argument("--out", default="results/page", help="file's name, without its ending")
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    results: dict[str, Any] = {"photos": given.count}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder, index = Path(place) / "photos", Path(place) / "index"
        linked(given.photos, given.count, folder)
        indexed(folder, given.student, index)
        words = ["search", str(folder), "--student", given.student, "--index", str(index), "--open", "false"]
        server, address, results["seconds_to_address"] = started([sys.executable, "-m", "clip_distill", *words])
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            results["first_visit"] = visited(browser, address)
            visits = [visited(browser, address) for _ in range(VISITS)]
            browser.close()
        for key in ("paint", "photos"):
            values = [visit[key] for visit in visits]
            results[key] = {"median": statistics.median(values), "slowest": max(values)}
        results["server_mb"] = psutil.Process(server.pid).memory_info().rss / 1e6
        server.terminate()
        server.wait()
    print(results)
    write_json(Path(given.out).with_suffix(".json"), results)


if __name__ == "__main__":
    main()

"""``report.html``: the report as one file, as its source says and as a browser shows it."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import Result

from ddnkit import Job, Pipeline, Table, registry

Command = Callable[..., Result]

RECIPE = """
pipeline: toy_page
description: |
  Races <script>alert(1)</script> & compares. ![far](https://example.org/x.png)
  ![outside](../secret.png) ![gone](gone.png) [a link](https://example.org/)
seeds: [0, 1]
"""
#: What the pipeline's tables do in the running test.
TABLES: list[Table] = []


class ToyPage(Pipeline):
    """Two figures, and the tables in `TABLES`."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "train_loss", "test_top1")
    tested: bool = True

    def run(self, job: Job) -> None:
        for step in (1, 2):
            top1 = 40 * step + job.seed if self.tested else None
            job.record({"epoch": step, "step": step, "train_loss": 1 / step, "test_top1": top1})

    def figures(self, folder: Path) -> list[Path]:
        files = [folder / "figures" / name for name in ("wide one.png", "square.png")]
        files[0].parent.mkdir(exist_ok=True)
        for file, width in zip(files, (120, 60), strict=True):
            file.write_bytes(png(width, 50))
        return files

    def caption(self, figure: Path) -> str:
        return f"The {figure.stem} [in red]"

    def tables(self, folder: Path) -> list[Table]:
        assert (folder / "summary.csv").is_file()
        if not TABLES:
            raise RuntimeError("no chalk")
        return TABLES


def png(width: int, height: int) -> bytes:
    """A red rectangle."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\xdd\x00\x00" * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module", autouse=True)
def _pipeline() -> None:
    registry.register("pipelines", "toy_page", ToyPage)


@pytest.fixture
def report(ddnkit: Command) -> str:
    """The report of a run with two tables of its own, in o/report.html."""
    TABLES[:] = [
        Table(
            "Beside | the paper", (("", "ours", "published"), ("toy", "82", "80|81")), "Note *it*."
        ),
        Table("Wide", (tuple(f"a long column {i}" for i in range(30)), ("1",) * 30)),
    ]
    Path("page.yaml").write_text(RECIPE, encoding="utf-8")
    Path("secret.png").write_bytes(png(3, 3))
    result = ddnkit("run", "page.yaml", "--out", "o", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return Path("o/report.html").read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_anyone(report: str) -> None:
    assert report.startswith('<!doctype html>\n<html lang="en">')
    assert re.search("<title>page .*</title>", report)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in report
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in report
    sources = re.findall(r'src="([^"]{,30})', report)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<iframe|<object|@import|url\(", report)
    # A link is followed by a reader alone; nothing else may leave the page.
    links = [link for link in re.findall(r'href="([^"]*)"', report) if link[0] != "#"]
    assert links == ["data:,", "https://example.org/"]


def test_what_a_recipe_says_is_shown_as_text(report: str) -> None:
    assert "Races &lt;script&gt;alert(1)&lt;/script&gt; &amp; compares." in report
    for text in ("far", "outside", "gone"):
        assert re.search(f"<em>{text} .*</em>", report)


def test_images_are_inside_with_text_and_caption(report: str) -> None:
    wide, square = (
        base64.b64encode(Path("o/figures", name).read_bytes()).decode()
        for name in ("wide one.png", "square.png")
    )
    for number, name, kind, content, width in (
        (1, "wide one", ' class="wide"', wide, 120),
        (2, "square", "", square, 60),
    ):
        text = f"The {name} [in red]"
        assert (
            f'<figure{kind}>\n<img src="data:image/png;base64,{content}" alt="{text}" '
            f'width="{width}" height="50">\n<figcaption><b>Figure {number}.</b> {text}'
        ) in report
    markdown = Path("o/report.md").read_text(encoding="utf-8")
    assert r"![The wide one \[in red\]](figures/wide%20one.png)" in markdown


def test_the_contents_lead_to_the_headings(report: str) -> None:
    anchors = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a></li>', report)
    headings = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', report)
    assert anchors == headings
    assert any(anchor.startswith("test_top1-") for anchor in dict(headings))
    assert len(dict(headings)) == len(headings)


def test_a_pipelines_tables_stand_after_the_last_evaluation(report: str) -> None:
    markdown = Path("o/report.md").read_text(encoding="utf-8")
    table = "## Beside | the paper\n\n|  | ours | published |\n| --- | ---: | ---: |\n"
    assert f"{table}| toy | 82 | 80\\|81 |\n\nNote *it*.\n\n## Wide" in markdown
    order = ["## Last evaluation", "## Beside", "## Wide", "## test_top1 at each", "## Figures"]
    places = [markdown.index(heading) for heading in order]
    assert places == sorted(places)
    assert '<td style="text-align:right">80|81</td>' in report
    assert "<p>Note <em>it</em>.</p>" in report


def test_tables_that_fail_cost_nothing_else(ddnkit: Command, report: str) -> None:
    TABLES.clear()
    result = ddnkit("report", "o")
    assert result.exit_code == 0
    (warning,) = re.findall("^warning: (.*RuntimeError: no chalk)$", result.stderr, re.MULTILINE)
    page = Path("o/report.html").read_text(encoding="utf-8")
    assert re.search(f'<p class="notable">.*{re.escape(warning)}</p>', page)
    assert "<figure" in page


def test_what_was_not_measured_is_no_headline(ddnkit: Command, report: str) -> None:
    assert ddnkit("run", "page.yaml", "--out", "p", "-s", "tested=false").exit_code == 0
    markdown = Path("p/report.md").read_text(encoding="utf-8")
    assert re.search("^## train_loss ", markdown, re.MULTILINE)
    tested = Path("o/report.md").read_text(encoding="utf-8")
    assert re.search("^## test_top1 ", tested, re.MULTILINE)


def test_a_report_of_a_run_without_figures_is_a_page_too(ddnkit: Command, report: str) -> None:
    shutil.rmtree("o/runs")
    assert ddnkit("report", "o").exit_code == 0
    page = Path("o/report.html").read_text(encoding="utf-8")
    assert "0 of 2 jobs" in page
    assert "<figure" not in page


# The rest looks at the page in a browser.

#: Tells what the page came to, in the page itself, for the browser to print.
PROBE = """<script>addEventListener("load", () => {
  const told = {
    images: [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.complete]),
    tables: [...document.querySelectorAll("table")].map(t => t.rows.length),
    scrolls: [...document.querySelectorAll(".table")].some(t => t.scrollWidth > t.clientWidth),
    overflows: document.documentElement.scrollWidth > innerWidth,
    requests: performance.getEntriesByType("resource").map(e => e.name.slice(0, 40)),
  };
  document.body.dataset.told = JSON.stringify(told);
});</script></body>"""


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``browser(page, *flags)`` opens a page without a window."""
    names = ("chromium", "google-chrome", "chromium-browser")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed")

    def open_page(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
            "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", *flags,
            page.resolve().as_uri(),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result

    return open_page


def probed(report: str, browser: Any, width: int) -> dict[str, Any]:
    """What the page came to in a window so wide."""
    # Scripts are allowed in the copy alone: the report itself has none and allows none.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', "", report)
    file = Path("probe.html")
    file.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    dom = browser(file, f"--window-size={width},900", "--dump-dom").stdout
    told = re.search(r'data-told="([^"]*)"', dom)
    assert told, dom[:500]
    return dict(json.loads(html.unescape(told[1])))


@pytest.mark.parametrize("width", [1400, 520])
def test_a_browser_shows_tables_and_images(report: str, browser: Any, width: int) -> None:
    told = probed(report, browser, width)
    assert told["images"] == [[120, 50, True], [60, 50, True]]
    assert told["tables"] == [6, 2, 2, 3, 2]
    assert told["scrolls"]
    assert not told["overflows"]
    assert not [name for name in told["requests"] if not name.startswith("data:")]


def test_a_browser_finds_nothing_to_complain_of(report: str, browser: Any) -> None:
    result = browser(Path("o/report.html"), "--dump-dom")
    assert "<figcaption><b>Figure 2.</b>" in result.stdout
    assert "CONSOLE" not in result.stderr


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_is_light_or_dark_as_asked(
    report: str, browser: Any, scheme: str, dark: bool
) -> None:
    from matplotlib.image import imread

    number = {"dark": 0, "light": 1}[scheme]
    browser(
        Path("o/report.html"),
        "--window-size=1000,3200",
        f"--blink-settings=preferredColorScheme={number}",
        f"--screenshot={Path('shot.png').resolve()}",
    )
    pixels = np.asarray(imread("shot.png"))[..., :3]
    assert (pixels[0, 0].mean() < 0.5) == dark
    assert pixels.std() > 0.02
    # The figures' red is on the page, in the size of the two figures at least.
    red = (pixels[..., 0] > 0.8) & (pixels[..., 1:].max(axis=-1) < 0.1)
    assert red.sum() > 2 * 60 * 50

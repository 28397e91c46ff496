"""The page in a real browser: no complaint, everything drawn, nothing wider than the window."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from pruner_zero.report import report
from tests.report.conftest import JUDGED, write_comparison, write_prune, write_search
from tests.report.html import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LONG = "abs(zsn(row_normalize(S)))^3.0 * X^1.5 + abs(zsn(column_normalize(S)))^3.0 * sqrt(X) * G"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

# Tells how wide the page is and what of it a reader can see, in the page itself.
MEASURE = """<script>
const root = document.documentElement, told = {};
told.wide = root.scrollWidth - root.clientWidth;
const shown = (what) => [...document.querySelectorAll(what)].filter((one) => {
  const box = one.getBoundingClientRect(); return box.width > 30 && box.height > 10; }).length;
for (const what of ["svg", "math", "table", "pre"]) told[what] = shown(what);
told.paper = getComputedStyle(document.body).backgroundColor;
parent.document.title = JSON.stringify(told);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every part, a long formula and many blocks among them."""
    folder = tmp_path_factory.mktemp("report")
    judged = [*JUDGED, (LONG, "row", {"reconstruction": -3.0, "few": 3.5, "all": 3.5})]
    run = write_search(folder / "run", judged)
    table = write_comparison(folder / "table.json")
    return report([run, write_prune(folder / "pruned", 32), table], folder / "page.html")


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"),
    ]
    command = [str(CHROMIUM), *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_console_stays_empty(page: Path, tmp_path: Path) -> None:
    done = chromium(tmp_path, "--dump-dom", page.as_uri())
    assert "</html>" in done.stdout
    assert not re.findall(r".*CONSOLE.*", done.stderr)


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_and_nothing_is_too_wide(
    width: int, scheme: str, page: Path, tmp_path: Path
) -> None:
    html = page.read_text()
    # Scripts are forbidden in the page, and browsers differ in how one asks them for dark.
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    measured = measured.replace("</body>", f"{MEASURE}</body>")
    media = "all" if scheme == "dark" else "not all"
    measured = measured.replace("(prefers-color-scheme: dark)", media)
    # A window has a least width, a frame has none.
    style = f"width: {width}px; height: 3000px; border: 0"
    frame = f'<title></title><iframe srcdoc="{escape(measured)}" style="{style}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html>{frame}")
    uri = (tmp_path / "frame.html").as_uri()
    done = chromium(tmp_path, f"--window-size={width + 40},3100", "--dump-dom", uri)
    title = re.search(r"<title>(.+?)</title>", done.stdout)
    assert title, done.stdout[:500]
    measures = json.loads(unescape(title[1]))
    parsed = Page(html)
    shown = {name: measures[name] for name in ("svg", "math", "table", "pre")}
    assert shown == {name: parsed.count(name) for name in shown}
    assert measures["wide"] == 0
    assert measures["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_a_picture_of_it(page: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    file = tmp_path / "page.png"
    chromium(tmp_path, f"--screenshot={file}", "--window-size=1280,2400", page.as_uri())
    pixels = image.imread(file)[:, :, :3]
    assert pixels.shape == (2400, 1280, 3)
    # Mostly paper, some ink, and the accent of the figures.
    bright = pixels.min(axis=2) > 0.95
    blue = (pixels[:, :, 2] > 0.6) & (pixels[:, :, 0] < 0.2)
    assert 0.6 < bright.mean() < 0.99
    assert blue.mean() > 0.0005

"""A browser without a window, to see a page as a reader does."""

import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

_FRAME = """<!doctype html><meta charset="utf-8"><iframe id="f" src="{page}" width="{width}"
height="2000" style="border:0"></iframe><pre id="o"></pre><script>
f.onload = () => {{
  const d = f.contentDocument, images = [...d.querySelectorAll("img")];
  o.textContent = "SEEN " + [d.documentElement.scrollWidth,
    images.filter(i => !i.naturalWidth).length, d.scripts.length].join(" ");
}}
</script>"""


def look(page, width):
    """(width of the page in pixels, broken images, scripts, what the console says) at a width.

    The page stands in a frame: a window of the browser cannot be as narrow as a phone.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    frame = page.with_name("frame.html")
    frame.write_text(_FRAME.format(page=page.name, width=width))
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu",
            "--hide-scrollbars", "--allow-file-access-from-files",
            f"--user-data-dir={page.parent / 'browser'}", "--enable-logging=stderr",
            "--window-size=1400,2100", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = re.search(r'<pre id="o">SEEN (\d+) (\d+) (\d+)', done.stdout)
    assert seen, done.stdout[:500] + done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return (*map(int, seen.groups()), said)

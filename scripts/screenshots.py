"""Pictures of the page for the README and docs, from a report that is there: make demo, then

    python scripts/screenshots.py results/report/index.html docs/images

writes report-overview.png (laptop, light), report-conversation.png (laptop, dark) and report-phone.png. Needs a
chromium on the path.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        take(browser, options.page, options.output / "report-overview.png", (1280, 900), "light", None)
        take(browser, options.page, options.output / "report-conversation.png", (1280, 1180), "dark", ".chosen")
        take(browser, options.page, options.output / "report-phone.png", (390, 844), "light", "#turn")
        browser.close()


def take(browser: Browser, page: Path, target: Path, size: tuple[int, int], scheme: str, part: str | None) -> None:
    """One picture: from the top, or of the turns that are wrong from the element `part` on."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=2 if width < 500 else 1,
    )
    opened = context.new_page()
    opened.goto(page.absolute().as_uri())
    if part:
        opened.select_option("select[name=show]", "wrong")
        opened.wait_for_selector("#views .map canvas")
        opened.eval_on_selector(part, "one => one.scrollIntoView()")
        opened.wait_for_timeout(500)  # the waveform
    picture = Image.open(io.BytesIO(opened.screenshot()))
    # a palette with room for every hue: the usual one forgets small dots
    few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
    context.close()


if __name__ == "__main__":
    main()

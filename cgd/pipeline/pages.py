"""What pages share: one HTML file that asks for no other, its style, and pictures within it."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from PIL import Image, ImageDraw

from cgd.data.images import read_image
from cgd.errors import InputError

SIDE, QUALITY = 320, 82  # of the pictures: longest side in pixels, JPEG quality
Box = tuple[float, float, float, float]

BASE_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #59636e; --paper: #fff; --card: #f6f8fa; --right: #1a7f37;
  --wrong: #cf222e; --plain: #c4ccd4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9198a1; --paper: #0d1117; --card: #161b22;
  --right: #3fb950; --wrong: #f85149; --plain: #3d444d } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 24px 16px; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper) }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 16px; margin: 0; overflow-wrap: anywhere }
p { margin: 4px 0; color: var(--quiet) }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; margin: 0;
  padding: 0; list-style: none }
figure, li { margin: 0; background: var(--card); border: 3px solid var(--plain); border-radius: 8px; overflow: hidden }
li.right { border-color: var(--right) } li.wrong { border-color: var(--wrong); border-style: dashed }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882 }
.missing { aspect-ratio: 1; display: grid; place-items: center; padding: 8px; text-align: center; color: var(--quiet) }
.words { padding: 6px 8px; font-size: 13px; overflow-wrap: anywhere }
.words b { font-variant-numeric: tabular-nums } .words span { color: var(--quiet) }
.right .mark { color: var(--right) } .wrong .mark { color: var(--wrong) }
@media (max-width: 640px) { ol { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px } }
"""


def document(title: str, style: str, body: str) -> str:
    """A whole page; `title` is HTML already, and `style` goes behind the style that pages share."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{BASE_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def picture(root: Path | None, path: str, what: str, *, side: int = SIDE, box: Box | None = None) -> str:
    """The image as a small JPEG within the page: decoded and encoded anew, so that no file's own bytes get there.

    `box` is drawn into it. Of an image that is gone or cannot be decoded its place is left, and the reason.
    """
    try:
        decoded = read_image(root, path)
    except InputError as error:
        return _missing(str(error))
    if decoded.image is None:
        return _missing(decoded.reason)
    small = _boxed(decoded.image, box) if box else decoded.image
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/jpeg;base64,{source}">'


def _missing(reason: str) -> str:
    return f'<div class="missing">{html.escape(reason)}</div>'


def _boxed(image: Image.Image, box: Box) -> Image.Image:
    """The image with a frame around `box`, seen on light and dark ground."""
    boxed = image.copy()
    width = max(2, round(max(image.size) / 80))
    x1, y1, x2, y2 = box
    corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    draw = ImageDraw.Draw(boxed)
    draw.rectangle(corners, outline="#000000", width=width)
    draw.rectangle(corners, outline="#ffd400", width=max(1, width * 2 // 3))
    return boxed

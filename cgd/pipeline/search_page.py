"""The page of `cgd search --html`: queries and their nearest images as pictures, in one file that asks for no other."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgd.data.images import read_image
from cgd.types import ImageList

SIDE, QUALITY = 320, 82  # of the pictures: longest side in pixels, JPEG quality

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #59636e; --paper: #fff; --card: #f6f8fa; --right: #1a7f37;
  --wrong: #cf222e; --plain: #c4ccd4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9198a1; --paper: #0d1117; --card: #161b22;
  --right: #3fb950; --wrong: #f85149; --plain: #3d444d } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 24px 16px; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper) }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 16px; margin: 0; overflow-wrap: anywhere }
p { margin: 4px 0; color: var(--quiet) }
section { display: grid; grid-template-columns: 220px 1fr; gap: 20px; border-top: 1px solid var(--plain);
  padding: 20px 0; margin-top: 20px }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; margin: 0;
  padding: 0; list-style: none }
figure, li { margin: 0; background: var(--card); border: 3px solid var(--plain); border-radius: 8px; overflow: hidden }
li.right { border-color: var(--right) } li.wrong { border-color: var(--wrong); border-style: dashed }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882 }
.missing { aspect-ratio: 1; display: grid; place-items: center; padding: 8px; text-align: center; color: var(--quiet) }
.words { padding: 6px 8px; font-size: 13px; overflow-wrap: anywhere }
.words b { font-variant-numeric: tabular-nums } .words span { color: var(--quiet) }
.right .mark { color: var(--right) } .wrong .mark { color: var(--wrong) }
@media (max-width: 640px) { section { grid-template-columns: 1fr } figure { max-width: 220px }
  ol { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px } }
"""


def search_page(result: Mapping[str, Any], images: ImageList) -> str:
    """`result` of `pipeline.search.search` in the gallery `images`, as a self-contained HTML page.

    A picture that can no longer be read leaves its place and the reason.
    """
    known = any(q["label"] is not None for q in result["queries"])
    frames = "A solid green frame is a right answer, a dashed red one a wrong answer." if known else ""
    sections = "\n".join(_section(query, images) for query in result["queries"])
    title = f"Nearest images in {html.escape(result['gallery'])}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>{result["images"]:,} images, student {html.escape(result["student"])}, {html.escape(result["index"]["kind"])} search,
scales {", ".join(f"{s:g}" for s in result["scales"])}. Scores are cosines. {frames}</p>
{sections}
</body></html>
"""


def _section(query: Mapping[str, Any], images: ImageList) -> str:
    path = Path(query["image"]).absolute()
    results = "\n".join(_result(r, images) for r in query["results"])
    return f"""<section><div><figure>{_picture(path.parent, path.name, "the query")}</figure>
<h2>{html.escape(path.name)}</h2><p>{_label(query["label"])}</p>{_tally(query["results"])}</div>
<ol>
{results}
</ol></section>"""


def _tally(results: list[dict[str, Any]]) -> str:
    judged = [r["right"] for r in results if r["right"] is not None]
    return f"<p>{sum(judged)} of {len(judged)} right</p>" if judged else ""


def _result(result: Mapping[str, Any], images: ImageList) -> str:
    kind, mark = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("", "")}[result["right"]]
    words = "the query itself" if result["itself"] else _label(result["label"])
    return (
        f'<li class="{kind}" title="{html.escape(result["id"])}">'
        f"{_picture(images.root, result['path'], result['id'])}"
        f'<div class="words"><b>{result["rank"]}</b> · {result["score"]:.3f} <b class="mark">{mark}</b><br>'
        f"<span>{words}</span></div></li>"
    )


def _label(label: str | None) -> str:
    return "" if label is None else f"label {html.escape(label)}"


def _picture(root: Path | None, path: str, what: str) -> str:
    """The image as a small JPEG within the page: decoded and encoded anew, so that no file's own bytes get there."""
    decoded = read_image(root, path)
    if decoded.image is None:
        return f'<div class="missing">{html.escape(decoded.reason)}</div>'
    small = decoded.image
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/jpeg;base64,{source}">'

"""The page of `cgd search --html`: queries and their nearest images as pictures, in one file that asks for no other."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgd.pipeline.pages import document, picture
from cgd.types import ImageList

_STYLE = """
section { display: grid; grid-template-columns: 220px 1fr; gap: 20px; border-top: 1px solid var(--plain);
  padding: 20px 0; margin-top: 20px }
@media (max-width: 640px) { section { grid-template-columns: 1fr } figure { max-width: 220px } }
"""


def search_page(result: Mapping[str, Any], images: ImageList) -> str:
    """`result` of `pipeline.search.search` in the gallery `images`, as a self-contained HTML page.

    A picture that can no longer be read leaves its place and the reason.
    """
    known = any(q["label"] is not None for q in result["queries"])
    frames = "A solid green frame is a right answer, a dashed red one a wrong answer." if known else ""
    sections = "\n".join(_section(query, images) for query in result["queries"])
    title = f"Nearest images in {html.escape(result['gallery'])}"
    return document(
        title,
        _STYLE,
        f"""<h1>{title}</h1>
<p>{result["images"]:,} images, student {html.escape(result["student"])}, {html.escape(result["index"]["kind"])} search,
scales {", ".join(f"{s:g}" for s in result["scales"])}. Scores are cosines. {frames}</p>
{sections}""",
    )


def _section(query: Mapping[str, Any], images: ImageList) -> str:
    path = Path(query["image"]).absolute()
    results = "\n".join(_result(r, images) for r in query["results"])
    return f"""<section><div><figure>{picture(path.parent, path.name, "the query")}</figure>
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
        f"{picture(images.root, result['path'], result['id'])}"
        f'<div class="words"><b>{result["rank"]}</b> · {result["score"]:.3f} <b class="mark">{mark}</b><br>'
        f"<span>{words}</span></div></li>"
    )


def _label(label: str | None) -> str:
    return "" if label is None else f"label {html.escape(label)}"

"""``report.html``: the report as one file, images inside, that asks nothing of any server."""

from __future__ import annotations

import base64
import mimetypes
import re
import struct
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

# A browser that finds a reference to elsewhere in spite of us does not follow it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_NOTABLE = ("Warning: ", "**A smoke run")
#: Images at least so much wider than high take the whole width.
_WIDE = 1.8


def page(markdown: str, folder: Path) -> str:
    """The HTML page of a report.

    Args:
        markdown: CommonMark with tables; HTML in it is shown as text.
        folder: its images are in it, and nothing outside of it is read.
    """
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    tokens = parser.parse(markdown)
    contents = _add_anchors(tokens)
    environment = {"folder": folder.resolve(), "figures": 0}
    body = parser.renderer.render(list(_frame_images(tokens)), parser.options, environment)
    title = next((_text(tokens[i + 1]) for i, t in enumerate(tokens) if t.tag == "h1"), "Report")
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    entries = "\n".join(f'<li><a href="#{a}">{escape(text)}</a></li>' for a, text in contents)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ddnkit">
<link rel="icon" href="data:,">
<title>{escape(title)} – ddnkit report</title>
<style>
{style}</style>
</head>
<body>
<nav aria-label="Contents">
<p>Contents</p>
<ul>
{entries}
</ul>
</nav>
<main>
{body}</main>
</body>
</html>
"""


def _add_anchors(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give each second-level heading an id; the ids with the headings' texts."""
    found: dict[str, str] = {}
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            text = _text(content)
            slug = anchor = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
            number = 2
            while anchor in found:
                anchor, number = f"{slug}-{number}", number + 1
            found[anchor] = text
            opening.attrSet("id", anchor)
    return list(found.items())


def _frame_images(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with images out of their paragraphs, those in a row in one frame."""
    inside = False
    for i, token in enumerate(tokens):
        opening, content = token.type == "paragraph_open", tokens[min(i + 1, len(tokens) - 1)]
        if opening and _is_image(content):
            token.hidden = tokens[i + 2].hidden = True
            if not inside:
                yield Token("html_block", "", 0, content='<div class="figures">\n')
            inside = True
        elif inside and not token.hidden and not _is_image(token):
            yield Token("html_block", "", 0, content="</div>\n")
            inside = False
        if opening and content.content.startswith(_NOTABLE):
            token.attrSet("class", "notable")
        yield token
    if inside:
        yield Token("html_block", "", 0, content="</div>\n")


def _is_image(token: Token) -> bool:
    return [child.type for child in token.children or ()] == ["image"]


def _text(token: Token) -> str:
    """An inline token's text, without its markup."""
    return "".join(child.content for child in token.children or ())


class _Renderer(RendererHTML):
    """Tables in a frame that scrolls, images as figures with a caption and their bytes."""

    def table_open(self, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
        """Opens the frame, which the keyboard can reach to scroll it."""
        return '<div class="table" role="region" aria-label="Table" tabindex="0">\n<table>\n'

    def table_close(self, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
        """Closes it."""
        return "</table>\n</div>\n"

    def image(self, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
        """The image as a figure, or its text alone where it is not a file in the folder."""
        # Not renderInlineAsText, which lost escaped characters before markdown-it-py 4.3.
        parts = tokens[i].children or []
        text = escape("".join(" " if t.type == "softbreak" else t.content for t in parts))
        file = _inside(env["folder"], str(tokens[i].attrGet("src") or ""))
        if file is None:
            return f"<em>{text} (image not there)</em>"
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        content = file.read_bytes()
        size = _png_size(content)
        wide = ' class="wide"' if size and size[0] >= _WIDE * size[1] else ""
        sized = f' width="{size[0]}" height="{size[1]}"' if size else ""
        env["figures"] += 1
        encoded = base64.b64encode(content).decode()
        return (
            f'<figure{wide}>\n<img src="data:{kind};base64,{encoded}" alt="{text}"{sized}>\n'
            f"<figcaption><b>Figure {env['figures']}.</b> {text}</figcaption>\n</figure>\n"
        )


def _inside(folder: Path, source: str) -> Path | None:
    """The file in ``folder`` that an image's source names; None for anything else."""
    try:
        file = (folder / unquote(source)).resolve()
        return file if file.is_relative_to(folder) and file.is_file() else None
    except (OSError, ValueError):  # such as a data: URI, too long for a file's name
        return None


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG file."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return width, height

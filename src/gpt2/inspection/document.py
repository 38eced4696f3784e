"""A look inside as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any


def html(view: dict[str, Any]) -> str:
    """A page that draws a view (`gpt2.inspection.view.look`, or the answers of several checkpoints).

    Its own policy allows its one script and its one style sheet, by their hashes, and nothing else.
    """
    script, style = web_file("look.js"), web_file("look.css")
    # "<" would let a text of the model end the element that it stands in.
    data = json.dumps(view, ensure_ascii=False).replace("<", "\\u003c")
    # Scripts of a module are checked like others. Colours are set on elements by the script, which is no inline style.
    sources = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    page = web_file("look.html")
    for name, value in (("SOURCES", sources), ("STYLE", style), ("SCRIPT", script), ("VIEW", data)):
        before, after = page.split(name, 1)
        page = before + value + after
    return page


def web_file(name: str) -> str:
    """A file of the package's page."""
    return files("gpt2.inspection").joinpath("web", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

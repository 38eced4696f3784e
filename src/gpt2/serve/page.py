"""The page that a browser gets: a few files, read once, served under fixed names."""

from importlib.resources import files
from typing import NamedTuple


class PageFile(NamedTuple):
    """A file of the page."""

    name: str
    media_type: str

    def content(self) -> bytes:
        """Its bytes, from the package."""
        return files("gpt2.serve").joinpath("web", self.name).read_bytes()


PAGE = {
    "/": PageFile("index.html", "text/html; charset=utf-8"),
    "/app.js": PageFile("app.js", "text/javascript; charset=utf-8"),
    "/style.css": PageFile("style.css", "text/css; charset=utf-8"),
    "/icon.svg": PageFile("icon.svg", "image/svg+xml"),
}
"""Path → file. No path that a client sends becomes the name of a file."""

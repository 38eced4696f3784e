"""The page that a browser gets: a few files, read once, served under fixed names."""

from importlib.resources import files
from typing import NamedTuple

SCRIPT = "text/javascript; charset=utf-8"
STYLE = "text/css; charset=utf-8"


class PageFile(NamedTuple):
    """A file of the page."""

    name: str
    media_type: str
    package: str = "gpt2.serve"

    def content(self) -> bytes:
        """Its bytes, from the package."""
        return files(self.package).joinpath("web", self.name).read_bytes()


PAGE = {
    "/": PageFile("index.html", "text/html; charset=utf-8"),
    **{
        f"/{noun}.js": PageFile(f"{noun}.js", SCRIPT)
        for noun in (
            "app",
            "chat",
            "complete",
            "conversations",
            "draft",
            "inside",
            "server",
            "settings",
            "status",
            "store",
        )
    },
    "/style.css": PageFile("style.css", STYLE),
    "/look.js": PageFile("look.js", SCRIPT, "gpt2.inspection"),
    "/look.css": PageFile("look.css", STYLE, "gpt2.inspection"),
    "/icon.svg": PageFile("icon.svg", "image/svg+xml"),
}
"""Path → file. No path that a client sends becomes the name of a file."""

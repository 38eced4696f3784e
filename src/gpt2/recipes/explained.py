"""What `gpt2 explain` prints: all of it on stdout, each line as wide as the terminal at most."""

from collections.abc import Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from gpt2.console import results, table
from gpt2.generation.stream import printable
from gpt2.inspection.view import softmax_of

SHOWN = 10
"""Rows of a table."""
BAR = 40
"""Columns of a probability of 1."""


def print_look(view: dict[str, Any]) -> None:
    """What fits a terminal: surprise, next tokens, the guesses of each layer, where it comes from."""
    where = results()
    tokens = view["tokens"]
    rows = [
        (
            shown(token["text"]),
            str(token["id"]),
            "" if token["loss"] is None else f"{token['loss']:.2f}",
            "" if token["rank"] is None else str(token["rank"] + 1),
            "written" if token["written"] else "",
        )
        for token in tokens[-4 * SHOWN :]
    ]
    table("The text, token by token", rows, ("token", "id", "loss (nats)", "guess no.", ""), where=where)
    where.print()
    written = next((place for place, token in enumerate(tokens) if token["written"]), len(tokens))
    at = max(0, written - 1)
    shares = softmax_of(tokens[at])
    rows = [
        (shown(text), f"{share:.4f}", "█" * round(BAR * share))
        for (_, text, _), share in list(zip(tokens[at]["guesses"], shares, strict=True))[:SHOWN]
    ]
    title = f"What comes after {shown(tokens[at]['text'])}, at temperature 1"
    table(title, rows, ("token", "probability", ""), texts=("",), where=where)
    where.print()
    depths = ["embeddings", *(f"layer {layer + 1}" for layer in range(view["layers"]))]
    rows = [
        (name, *(f"{share:.2f} {shown(text)}" for text, share in guesses[at][:3]))
        for name, guesses in reversed(list(zip(depths, view["lens"], strict=True)))
    ]
    places = ("first", "second", "third")
    table("What each layer would say there", rows, ("read after", *places), texts=places, where=where)
    where.print()
    _print_origins(view["origins"])


def print_growth(view: dict[str, Any]) -> None:
    """What each checkpoint wrote, the oldest first, as it wrote it."""
    where = results()
    where.print(Text(f"{'To' if view['asked'] else 'After'} {view['prompt']!r}", style="bold"))
    for at in view["checkpoints"]:
        loss = "" if at["loss"] is None else f", validation loss {at['loss']:.4f}"
        where.print(Text(f"\nstep {at['step']:,}{loss}", style="dim"))
        where.print(Padding(Text(printable(at["text"]).strip("\n")), (0, 0, 0, 2), expand=False))


def _print_origins(found: dict[str, Any] | None) -> None:
    where = results()
    if found is None:
        where.print(Text("The training text is not at hand, so it cannot be said where this was read.", style="dim"))
        return
    spans: Sequence[dict[str, Any]] = found["spans"]
    where.print(
        f"{found['share']:.0%} of what it wrote stands word for word in the training text, "
        f"in spans of {found['characters']} characters or more{':' if spans else '.'}"
    )
    for span in spans[:SHOWN]:
        where.print(Text(f"  {span['document']}", style="dim"))
        before, text, after = (shown(span[part]) for part in ("before", "text", "after"))
        before, text, after = excerpt(before, text, after, where.width - 2)
        where.print(Text.assemble("  ", (before, "dim"), (text, "bold"), (after, "dim")), soft_wrap=True)
    rows = [(one["document"], f"{one['score']:g}", shown(one["text"])) for one in found["passages"]]
    if rows:
        where.print()
        table("Nearest passages of the training text", rows, ("document", "score", "begins"), ("begins",), where)


def excerpt(before: str, text: str, after: str, width: int) -> tuple[str, str, str]:
    """As much around a text as a line has room for; of a text that is too long itself, its beginning and its end.

    Args:
        before: what stands before the text.
        text: what shall be seen.
        after: what stands behind it.
        width: characters of all three at most, from 5.
    """
    room = width - len(text)
    if len(before) + len(after) <= room:
        return before, text, after
    if room < 2:  # for a … on each side
        half = (width - 3) // 2
        return "…", f"{text[:half]}…{text[len(text) - half :]}", "…"
    left = min(len(before), max(room // 2, room - len(after)))
    right = min(len(after), room - left)
    return _cut(before[::-1], left)[::-1], text, _cut(after, right)


def _cut(text: str, length: int) -> str:
    """A text's beginning; what ends in … has lost something."""
    return text if len(text) <= length else f"{text[: max(0, length - 1)]}…"


def shown(text: str) -> str:
    """A text on one line; where it is all white space, that is seen."""
    blank, text = not text.strip(), printable(text).replace("\n", "⏎").replace("\t", "⇥")
    return text.replace(" ", "·") if blank else text

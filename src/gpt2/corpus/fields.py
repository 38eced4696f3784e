"""What a record says: who said what in which of its fields."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from gpt2.corpus.tables.columns import judge_columns
from gpt2.errors import ConfigError, DataError

Speaker = Literal["system", "user", "assistant"]

# What tables call their columns, the surest name first.
_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "request", "user", "message", "title", "input", "q"),
    "response": ("response", "answer", "output", "completion", "reply", "assistant", "target", "chosen", "a"),
    "context": ("input", "context"),
    "system": ("system", "system_prompt"),
}


class Message(NamedTuple):
    """What one speaker said in one turn."""

    role: Speaker
    content: str


Conversation = tuple[Message, ...]
"""Messages in their order; it ends with an answer."""
Sample = tuple[Conversation, ...]
"""What one record gives: a conversation; or two that differ in their answer, the better one first."""


class Fields(NamedTuple):
    """Which column of a table, or key of a JSON object, holds what."""

    prompt: str | None = None
    response: str | None = None
    context: str | None = None
    """Stands below the prompt, after an empty line, where it is not empty."""
    system: str | None = None
    rejected: str | None = None
    """The worse answer, where `response` is the better one of two."""

    def sample(self, row: Mapping[str, str]) -> Sample:
        """The question and answer of a row, or its question with each of the two; empty messages are left out."""
        said = {name: row.get(key, "").strip() if key else "" for name, key in self._asdict().items()}
        asked = "\n\n".join(part for part in (said["prompt"], said["context"]) if part)
        opening: list[tuple[Speaker, str]] = [("system", said["system"]), ("user", asked)]
        return tuple(
            tuple(Message(role, content) for role, content in [*opening, ("assistant", said[answer])] if content)
            for answer in (("response", "rejected") if self.rejected else ("response",))
        )


def guess_fields(fields: Fields, names: Sequence[str], sample: list[list[str]], path: str) -> Fields:
    """Fill what the user left open: by the names of the fields, else the two that hold text, in their order.

    Raises:
        ConfigError: a named field is not there.
        DataError: no two fields could be a question and an answer.
    """
    for option, name in fields._asdict().items():
        if name is not None and name not in names:
            raise ConfigError(f"{path} has no {name!r} for --{option}.", f"It has: {', '.join(names)}.")
    taken = {name for name in fields if name is not None}
    found: dict[str, str | None] = fields._asdict()
    if fields.response is None and {"chosen", "rejected"} <= set(names) - taken:
        found |= {"response": "chosen", "rejected": "rejected"}
        taken |= {"chosen", "rejected"}

    def named(role: str) -> str | None:
        for wanted in _NAMES[role]:
            for name in names:
                if name.lower() == wanted and name not in taken:
                    taken.add(name)
                    return name
        return None

    for role in ("response", "prompt"):
        found[role] = found[role] or named(role)
    if found["prompt"] is None or found["response"] is None:
        text = [
            judged.column for judged in judge_columns(names, sample) if judged.picked and judged.column not in taken
        ]
        for role in ("prompt", "response"):
            if found[role] is None and text:
                found[role] = text.pop(0)
    if found["prompt"] is None or found["response"] is None:
        raise DataError(
            f"{path}: which of {', '.join(names)} is the question and which the answer?",
            "Say it: --prompt NAME --response NAME.",
        )
    for role in ("context", "system"):
        found[role] = found[role] or named(role)
    return Fields(**found)

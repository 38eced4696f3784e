"""Messages in a row → turns, and how many of them the model still sees."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple


class Message(NamedTuple):
    """What somebody said. The system gives instructions, which stand before the user's first message."""

    role: Literal["system", "user", "assistant"]
    text: str


def turns_of(messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
    """The finished turns (message, answer), and the message that shall be answered.

    Messages of the same role in a row are one, on lines of their own. No model here was trained on instructions: they
    are put before the user's first message as plain text, an empty line between.

    Raises:
        ValueError: the last message is not the user's.
    """
    instructions = "\n".join(text for role, text in messages if role == "system")
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    answered: list[str] = []
    for role, text in messages:
        if role == "user" and answered:
            turns.append(("\n".join(asked), "\n".join(answered)))
            asked, answered = [], []
        if role != "system":
            (asked if role == "user" else answered).append(text)
    if not asked or answered:
        raise ValueError("the last message must be the user's")
    last = "\n".join(asked)
    if instructions and turns:
        turns[0] = (f"{instructions}\n\n{turns[0][0]}", turns[0][1])
    elif instructions:
        last = f"{instructions}\n\n{last}"
    return turns, last


def remembered(prompt: list[int], earlier: Iterable[list[int]], room: int) -> tuple[list[int], int]:
    """A prompt with the newest turns before it that fit, and how many those are.

    Args:
        prompt: ids of the message that shall be answered.
        earlier: ids of finished turns, the newest first; read only as far as they fit.
        room: ids that may be given in all.
    """
    kept = 0
    for turn in earlier:
        if len(turn) + len(prompt) > room:
            break
        prompt = turn + prompt
        kept += 1
    return prompt, kept

"""Messages in a row → turns → ids: what a client sends whole, and how many of its turns the model still sees."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gpt2.chat.template import Format
from gpt2.corpus.fields import Message
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.bpe import LONGEST


class Unanswered(NamedTuple):
    """A conversation up to where an answer is due."""

    system: str
    """Instructions; empty: none."""
    turns: list[tuple[str, str]]
    """Messages and their answers, the oldest first."""
    message: str
    """What shall be answered."""


def conversation_of(messages: Sequence[Message]) -> Unanswered:
    """Messages as turns. Those of the same role in a row are one, on lines of their own.

    Raises:
        ValueError: the last message is not the user's.
    """
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    answered: list[str] = []
    for role, content in messages:
        if role == "user" and answered:
            turns.append(("\n".join(asked), "\n".join(answered)))
            asked, answered = [], []
        if role != "system":
            (asked if role == "user" else answered).append(content)
    if not asked or answered:
        raise ValueError("the last message must be the user's")
    system = "\n".join(content for role, content in messages if role == "system")
    return Unanswered(system, turns, "\n".join(asked))


def prompt_ids(
    conversation: Unanswered, form: Format, tokenizer: Tokenizer, room: int, longest: int | None = None
) -> list[int]:
    """The ids that the model shall continue: the last message always, before it the newest turns that fit.

    A model that was taught system messages has them before all turns, whatever of these is left out. To any other they
    stand before the first message as plain text, an empty line between.

    Args:
        conversation: what was said.
        form: how the model wants it written.
        tokenizer: the model's.
        room: ids at most; more are given only if the last message alone has more.
        longest: turns at most, that of the message included; None: as many as fit.
    """
    system, turns, message = conversation
    head = form.head(tokenizer, system)
    opening = f"{system}\n\n" if system and not form.instructed else ""
    strips = form.answers
    first = 0 if longest is None else max(0, len(turns) + 1 - longest)

    def earlier() -> Iterator[list[int]]:
        for number, (asked, answer) in reversed(list(enumerate(turns))[first:]):
            if len(asked) + len(answer) > room * LONGEST:  # it cannot fit, so that encoding it would be in vain
                return
            asked = asked if number else opening + asked
            if strips:
                asked, answer = asked.strip(), answer.rstrip()
            yield form.turn(tokenizer, asked, answer, first=number == 0)

    last = message if turns else opening + message
    prompt = form.prompt(tokenizer, last.strip() if strips else last, first=not turns)
    return head + remembered(prompt, earlier(), room - len(head))[0]


def answered_ids(
    conversation: Unanswered,
    answer: str,
    form: Format,
    tokenizer: Tokenizer,
    room: int,
    longest: int | None = None,
) -> tuple[list[int], int]:
    """The ids of a conversation whose last message has been answered, and how many of them are the answer's.

    Args:
        conversation: up to the last message.
        answer: what the model said to it.
        form: how the model wants it written.
        tokenizer: the model's.
        room: ids at most before the answer, as for `prompt_ids`.
        longest: turns at most, as for `prompt_ids`.
    """
    asked = prompt_ids(conversation, form, tokenizer, room, longest)
    message, first = conversation.message, not conversation.turns
    if form.answers:
        message, answer = message.strip(), answer.rstrip()
    prompt = form.prompt(tokenizer, message, first)
    whole = form.turn(tokenizer, message, answer, first)
    # A template's last space belongs to the answer's first token, so what both begin with is what was asked.
    alike = next((place for place, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    written = whole[min(alike, len(whole)) :]
    while written and written[-1] in form.stops(tokenizer):
        written.pop()
    return asked[: len(asked) - len(prompt) + alike] + written, len(written)


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

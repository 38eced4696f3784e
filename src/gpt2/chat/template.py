"""How a conversation is written down as ids. This is the only place where messages become ids.

A run trained on table rows has seen each row as one document, written by a template such as
`Q: {question}\\nA: {answer}`. A conversation with it is a row of such documents, and the one being written ends where
the answer begins. A run trained on running text has no template: the conversation is one text that grows.

Whatever is typed is encoded as plain text. Only the program sets the end-of-text id, so that no spelling of it in a
message can end a turn.
"""

from dataclasses import dataclass

from gpt2.corpus.tables.template import parse_template
from gpt2.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A template, read as a conversation if it has a place for a message and, at its end, one for the answer.

    The first field is the message, the last field is the answer, and fields between them stay empty. A template with
    a single field, or with text behind the last one, is no conversation; then the text is continued.
    """

    before: tuple[tuple[str, str | None], ...] = ()
    """Literal text and the field behind it, in order, up to the answer."""
    message: str = ""
    """Name of the field that the user's message goes to; empty if there is no conversation."""
    after: str = ""
    """White space behind the answer."""

    @classmethod
    def from_template(cls, template: str | None) -> "ChatFormat":
        """Read a template as the run's settings have it; None for a run on running text.

        Raises:
            ConfigError: it has no field, or its braces do not match.
        """
        if template is None:
            return cls()
        parts = [(text, None if name is None else name + more) for text, name, more in parse_template(template).parts]
        after = parts.pop()[0] if parts[-1][1] is None else ""
        fields = [field for _, field in parts if field is not None]
        if len(set(fields)) < 2 or after.strip() or fields.count(fields[-1]) > 1:
            return cls()
        return cls((*parts[:-1], (parts[-1][0], None)), fields[0], after)

    @property
    def answers(self) -> bool:
        """Whether the model was trained to answer; if not, it continues."""
        return bool(self.message)

    def turn(self, tokenizer: Tokenizer, message: str, answer: str, first: bool) -> list[int]:
        """The ids of a finished turn.

        Args:
            tokenizer: the run's.
            message: what the user wrote.
            answer: what the model wrote.
            first: whether no turn stands before it.
        """
        if self.answers:
            text = self._until_answer(message) + answer + self.after
            return [tokenizer.end_of_text, *_encode(tokenizer, text)]
        return _opening(tokenizer, first) + _encode(tokenizer, message + answer)

    def prompt(self, tokenizer: Tokenizer, message: str, first: bool) -> list[int]:
        """The ids of a message, up to where the model goes on. Arguments as for `turn`."""
        if not self.answers:
            return _opening(tokenizer, first) + _encode(tokenizer, message)
        text = self._until_answer(message)
        body = text.rstrip()
        space = text[len(body) :]
        # In GPT-2's pattern a space belongs to the word behind it, so the answer brings it along. Any other white
        # space directly before a word stands alone, even where more of it precedes.
        last = [] if not space or space.endswith(" ") else _encode(tokenizer, space[-1])
        return [tokenizer.end_of_text, *_encode(tokenizer, body + space[:-1]), *last]

    def shortened(self, tokenizer: Tokenizer, message: str, room: int) -> list[int]:
        """The ids of as much of a message's end as `room` ids can hold, up to where the model goes on.

        Args:
            tokenizer: the run's.
            message: what the user wrote.
            room: most ids to give, at least 1.
        """
        prompt = self.prompt(tokenizer, message, first=False)
        ids = _encode(tokenizer, message) if self.answers else []
        while len(prompt) > room and ids:
            ids = ids[len(prompt) - room :]
            # The cut may have gone through a character, whose remains are left out.
            message = tokenizer.decode(ids).lstrip("\ufffd")
            prompt = self.prompt(tokenizer, message, first=False)
        return prompt[-room:]  # running text loses its beginning; and even the bare template may be too long

    def _until_answer(self, message: str) -> str:
        """The text of a turn before its answer."""
        return "".join(text + (message if field == self.message else "") for text, field in self.before)


def _opening(tokenizer: Tokenizer, first: bool) -> list[int]:
    """What stands before a piece of running text: a new document begins, or a new line."""
    return [tokenizer.end_of_text] if first else _encode(tokenizer, "\n")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()

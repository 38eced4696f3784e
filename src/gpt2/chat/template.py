"""How a conversation is written down as ids. This is the only place where messages become ids.

A run tuned on conversations has an id for each speaker and one for the end of a message (`RoleFormat`).

A run trained on table rows has seen each row as one document, written by a template such as
`Q: {question}\\nA: {answer}`. A conversation with it is a row of such documents, and the one being written ends where
the answer begins. A run trained on running text has no template: the conversation is one text that grows
(`ChatFormat`).

Whatever is typed is encoded as plain text. Only the program sets the ids of speakers and ends, so that no spelling of
them in a message can end a turn or begin one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpt2.corpus.fields import Message
from gpt2.corpus.tables.template import parse_template
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.roles import Roles, roles_of

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('There is no role ' + message['role'] + ' here: system, user or assistant.') }}"
    "{%- endif -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|' + 'assistant' + '|>' }}{%- endif -%}"
)
"""`conversation_ids` for other programs, in Jinja, as tokenizer_config.json carries it. Nothing here renders it.

No mark is spelled in one piece: llama.cpp, without its Jinja engine, would take the spelling for another model's form.
"""


class Format(Protocol):
    """A way of writing conversations."""

    @property
    def answers(self) -> bool:
        """Whether the model was trained to answer; if not, it continues."""
        ...

    @property
    def instructed(self) -> bool:
        """Whether the model knows system messages."""
        ...

    def head(self, tokenizer: Tokenizer, system: str) -> list[int]:
        """The ids before the first turn."""
        ...

    def turn(self, tokenizer: Tokenizer, message: str, answer: str, first: bool) -> list[int]:
        """The ids of a finished turn.

        Args:
            tokenizer: the run's.
            message: what the user wrote.
            answer: what the model wrote.
            first: whether no turn stands before it.
        """
        ...

    def prompt(self, tokenizer: Tokenizer, message: str, first: bool) -> list[int]:
        """The ids of a message, up to where the model goes on. Arguments as for `turn`."""
        ...

    def shortened(self, tokenizer: Tokenizer, message: str, room: int) -> list[int]:
        """The ids of as much of a message's end as `room` ids can hold, up to where the model goes on.

        Args:
            tokenizer: the run's.
            message: what the user wrote.
            room: most ids to give, at least 1.
        """
        ...

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids that end an answer, besides the end of text."""
        ...


def chat_format(tokenizer: Tokenizer, template: str | None) -> Format:
    """How a model wants its conversations written.

    Args:
        tokenizer: the run's.
        template: by which its text was made of table rows, if it was.

    Raises:
        ConfigError: the template cannot be read.
    """
    return ChatFormat.from_template(template) if roles_of(tokenizer) is None else RoleFormat()


def conversation_ids(messages: Sequence[Message], tokenizer: Tokenizer, answering: bool = False) -> list[int]:
    """The ids of a conversation with a tuned model: each message between its speaker's mark and the end mark.

    Args:
        messages: in their order.
        tokenizer: has the marks of speakers.
        answering: whether the mark of an answer follows, for the model to go on.
    """
    roles = _roles(tokenizer)
    ids = [
        identifier
        for role, content in messages
        for identifier in (getattr(roles, role), *_encode(tokenizer, content), roles.end)
    ]
    return [*ids, roles.assistant] if answering else ids


class RoleFormat:
    """The form of a model that was tuned on conversations. Methods are those of `Format`."""

    answers = True
    instructed = True

    def head(self, tokenizer: Tokenizer, system: str) -> list[int]:
        """The ids of the system message; none without one."""
        return conversation_ids([Message("system", system)], tokenizer) if system else []

    def turn(self, tokenizer: Tokenizer, message: str, answer: str, first: bool) -> list[int]:
        """The ids of a finished turn, the same wherever it stands."""
        return conversation_ids([Message("user", message), Message("assistant", answer)], tokenizer)

    def prompt(self, tokenizer: Tokenizer, message: str, first: bool) -> list[int]:
        """The ids of a message and the mark of an answer."""
        return conversation_ids([Message("user", message)], tokenizer, answering=True)

    def shortened(self, tokenizer: Tokenizer, message: str, room: int) -> list[int]:
        """The same, with as much of the message's end as fits."""
        roles = _roles(tokenizer)
        kept = max(0, room - 3)
        ids = _encode(tokenizer, message)
        return [roles.user, *ids[max(0, len(ids) - kept) :], roles.end, roles.assistant][-room:]

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Any mark: behind an answer only the next message can begin."""
        return _roles(tokenizer).all


def _roles(tokenizer: Tokenizer) -> Roles:
    roles = roles_of(tokenizer)
    assert roles is not None, "the tokenizer has no marks of speakers"
    return roles


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
    instructed = False

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

    def head(self, tokenizer: Tokenizer, system: str) -> list[int]:
        """None: it knows no system messages."""
        return []

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """None: a document's end is the answer's."""
        return ()

    def turn(self, tokenizer: Tokenizer, message: str, answer: str, first: bool) -> list[int]:
        """The ids of a finished turn."""
        if self.answers:
            text = self._until_answer(message) + answer + self.after
            return [tokenizer.end_of_text, *_encode(tokenizer, text)]
        return _opening(tokenizer, first) + _encode(tokenizer, message + answer)

    def prompt(self, tokenizer: Tokenizer, message: str, first: bool) -> list[int]:
        """The ids of a message, up to where the model goes on."""
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
        """The ids of as much of a message's end as `room` ids can hold, up to where the model goes on."""
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

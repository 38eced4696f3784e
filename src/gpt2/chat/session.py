"""A conversation: what was said, how much of it the model still sees, and the next answer."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from gpt2.chat.conversation import remembered
from gpt2.chat.template import ChatFormat
from gpt2.config.commands import LARGEST_SEED, ChatSettings
from gpt2.errors import RunError
from gpt2.files import disk_error, require_folder, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.generation.stream import text_pieces
from gpt2.tokenizer.base import cannot_spell

REPETITIONS = 4
"""A span that stands this often behind itself at the end of an answer is a loop …"""
LOOP_LENGTH = 64
"""… if it all has at least this many characters: a short rule of dashes is none."""
LONGEST_SPAN = 400
"""Characters of the longest span that is looked for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, what the model made of it, and the ids of both as the model will see them."""

    message: str
    answer: str
    ids: list[int]


class Session:
    """A conversation with one model.

    Args:
        engine: the model and its tokenizer.
        template: the one that the run's table rows were written with; None for a run on running text.
        settings: how tokens are chosen, and how many an answer may have.
        origin: where the model came from, for the saved file.

    Raises:
        ConfigError: the template cannot be read.
    """

    def __init__(self, engine: Engine, template: str | None, settings: ChatSettings, origin: str = "") -> None:
        self.engine = engine
        self.template = template
        self.format = ChatFormat.from_template(template)
        self.settings = settings
        self.origin = origin
        self.turns: list[Turn] = []
        self.notices: list[str] = []
        """What the user should know about the last answer, in sentences."""
        self._said_forgotten = False
        self._saved: set[Path] = set()

    def ask(self, message: str) -> Generator[str, None, None]:
        """Answer a message, in pieces of text.

        The turn is remembered when the answer ends, also when the caller closes the iterator or Ctrl-C breaks in.
        With a seed, the answer depends on the seed and on the conversation so far only. `notices` is made anew.

        Raises:
            UserError: the model's answer is no number. The conversation is then as before.
        """
        self.notices = []
        message = message.strip() if self.format.answers else message
        prompt = self._prompt(message)
        limits = self.settings
        seed = None if limits.seed is None else (limits.seed + len(self.turns)) % (LARGEST_SEED + 1)
        sampling = Sampling(limits.temperature, limits.top_k, limits.top_p, limits.min_p, seed=seed)
        answer = ""
        try:
            for piece in text_pieces(self.engine.generate(prompt, limits.max_tokens, sampling), self.engine.tokenizer):
                if self.format.answers and not answer:
                    piece = piece.lstrip()  # the white space that the template has before an answer
                answer += piece
                if piece:
                    yield piece
                if loops(answer):
                    self.notices.append("The answer was cut: the model had begun to repeat itself.")
                    break
        except (KeyboardInterrupt, GeneratorExit):
            self._remember(message, answer)
            raise
        self._remember(message, answer)

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns.clear()
        self.notices = []
        self._said_forgotten = False

    def set_temperature(self, temperature: float) -> None:
        """Choose tokens at another temperature from the next answer on.

        Raises:
            ConfigError: it is out of range.
        """
        Sampling(temperature)
        self.settings = self.settings.model_copy(update={"temperature": temperature})

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, whole or not at all.

        Raises:
            RunError: there is a file of that name that this conversation did not write, or no such folder.
            UserError: the system refused.
        """
        path = path.expanduser().absolute()
        if path not in self._saved and path.exists():
            raise RunError(f"{path} exists already.", "Choose another name.")
        require_folder(path)
        roles = (("user", "message"), ("assistant", "answer"))
        conversation = {
            "origin": self.origin,
            "template": self.template,
            "settings": self.settings.model_dump(),
            "messages": [{"role": role, "content": getattr(turn, part)} for turn in self.turns for role, part in roles],
        }
        try:
            write_json(path, conversation)
        except OSError as error:
            raise disk_error(error, "saving the conversation") from error
        self._saved.add(path)

    def _prompt(self, message: str) -> list[int]:
        """The ids that the model shall continue: as many of the newest turns as fit, and the message."""
        context = self.engine.context_length
        room = context - min(self.settings.max_tokens, context // 2)  # the rest is for the answer
        tokenizer = self.engine.tokenizer
        if lost := cannot_spell(tokenizer, message):
            self.notices.append(lost)
        prompt = self.format.prompt(tokenizer, message, first=not self.turns)
        if len(prompt) > room:
            prompt = self.format.shortened(tokenizer, message, room)
            self.notices.append(
                f"The model saw only the end of your message: its context holds {context} tokens, "
                f"{context - room} of them for the answer."
            )
        prompt, kept = remembered(prompt, (turn.ids for turn in reversed(self.turns)), room)
        forgotten = len(self.turns) - kept
        if forgotten and not self._said_forgotten:
            self._said_forgotten = True
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            self.notices.append(f"The model forgot the oldest {turns}: its context holds {context} tokens.")
        return prompt

    def _remember(self, message: str, answer: str) -> None:
        if self.format.answers:
            answer = answer.rstrip()
        ids = self.format.turn(self.engine.tokenizer, message, answer, first=not self.turns)
        self.turns.append(Turn(message, answer, ids))


def loops(text: str) -> bool:
    """Whether a text ends in a span that stands there several times on end, long enough to be no ornament."""
    for span in range(1, min(LONGEST_SPAN, len(text) // REPETITIONS) + 1):
        length = span * max(REPETITIONS, math.ceil(LOOP_LENGTH / span))
        # A text that equals itself moved by `span` repeats with that period.
        if text[-span:] == text[-2 * span : -span] and length <= len(text):
            end = text[-length:]
            if end[span:] == end[:-span]:
                return True
    return False

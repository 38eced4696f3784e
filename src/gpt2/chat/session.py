"""A conversation: what was said, how much of it the model still sees, and the next answer."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from gpt2.chat.conversation import remembered
from gpt2.chat.template import chat_format
from gpt2.config.commands import LARGEST_SEED, ChatSettings
from gpt2.errors import ConfigError, RunError, UserError
from gpt2.files import disk_error, read_json, require_folder, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.generation.stream import text_pieces
from gpt2.tokenizer.base import cannot_spell, well_formed

REPETITIONS = 4
"""A span that stands this often behind itself at the end of an answer is a loop …"""
LOOP_LENGTH = 64
"""… if it all has at least this many characters: a short rule of dashes is none."""
RETRY = 1_000_003
"""From a seed to that of another answer in the same place: further than a conversation has turns."""
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
        longest: turns of the longest conversation that the model was tuned on; it is shown no longer ones. None: any.

    Raises:
        ConfigError: the template cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        template: str | None,
        settings: ChatSettings,
        origin: str = "",
        longest: int | None = None,
    ) -> None:
        self.engine = engine
        self.template = template
        self.format = chat_format(engine.tokenizer, template)
        self.settings = settings
        self.origin = origin
        self.longest = longest
        self.system = ""
        """What the model is told before the conversation; empty: nothing."""
        self.turns: list[Turn] = []
        self.notices: list[str] = []
        """What the user should know about the last answer, in sentences."""
        self._said_forgotten = False
        self._retries = 0
        self._saved: set[Path] = set()
        if settings.system:
            self.set_system(settings.system)

    def ask(self, message: str) -> Generator[str, None, None]:
        """Answer a message, in pieces of text.

        The turn is remembered when the answer ends, also when the caller closes the iterator or Ctrl-C breaks in.
        With a seed, the answer depends on the seed and on the conversation so far only. `notices` is made anew.

        Raises:
            UserError: the model's answer is no number. The conversation is then as before.
        """
        self._retries = 0
        yield from self._answer(message)

    def _answer(self, message: str) -> Generator[str, None, None]:
        self.notices = []
        message = message.strip() if self.format.answers else message
        prompt = self._prompt(message)
        limits = self.settings
        number = len(self.turns) + RETRY * self._retries
        seed = None if limits.seed is None else (limits.seed + number) % (LARGEST_SEED + 1)
        sampling = Sampling(limits.temperature, limits.top_k, limits.top_p, limits.min_p, seed=seed)
        answer = ""
        try:
            stops = self.format.stops(self.engine.tokenizer)
            ids = self.engine.generate(prompt, limits.max_tokens, sampling, stops)
            for piece in text_pieces(ids, self.engine.tokenizer):
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

    def retry(self) -> Generator[str, None, None]:
        """Answer the last message anew, as `ask` does; with a seed, differently at each retry.

        Raises:
            RunError: nothing was said yet.
            UserError: the model's answer is no number. The conversation is then as before.
        """
        turn = self.undo()
        self._retries += 1
        try:
            yield from self._answer(turn.message)
        except UserError:
            self.turns.append(turn)
            raise

    def undo(self) -> Turn:
        """Take back the last message and its answer.

        Raises:
            RunError: nothing was said yet.
        """
        if not self.turns:
            raise RunError("Nothing was said yet.", "Write a message first.")
        return self.turns.pop()

    def reset(self) -> None:
        """Begin a new conversation; the system message stays."""
        self.turns.clear()
        self.notices = []
        self._said_forgotten = False
        self._retries = 0

    def set_system(self, system: str) -> None:
        """Tell the model something before the conversation; empty: nothing.

        Raises:
            ConfigError: it was not taught system messages, or they leave no room.
        """
        system = system.strip()
        if system and not self.format.instructed:
            raise ConfigError(
                "This model knows no system messages: it was not tuned on conversations.", "gpt2 tune RUN faq.csv"
            )
        ids = self.format.head(self.engine.tokenizer, system)
        if len(ids) > self.engine.context_length // 4:
            raise ConfigError(
                f"This system message has {len(ids)} tokens, the model's whole context {self.engine.context_length}.",
                f"Say it with at most {self.engine.context_length // 4}.",
            )
        self.system = system

    @property
    def single(self) -> bool:
        """Whether each question is answered on its own."""
        return self.longest == 1

    @property
    def context(self) -> tuple[int, int]:
        """What the context holds when the last answer has ended: tokens, with their marks, and turns.

        Of more turns than the context or the model has room for, the newest.
        """
        head = self.format.head(self.engine.tokenizer, self.system)
        last = self.turns if self.longest is None else self.turns[-self.longest :]
        held, kept = remembered([], (turn.ids for turn in reversed(last)), self.engine.context_length - len(head))
        if last and not kept:  # the last one alone filled it
            return self.engine.context_length, 1
        return len(head) + len(held), kept

    @property
    def _oldest(self) -> int:
        """The first turn that the model may see beside the next message: it knows conversations of some turns only."""
        return 0 if self.longest is None else max(0, len(self.turns) - self.longest + 1)

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
            RunError: nothing was said yet; there is a file of that name that this conversation did not write, or no
                such folder.
            UserError: the system refused.
        """
        if not self.turns:
            raise RunError("There is nothing to save yet.", "Write a message first.")
        path = path.expanduser().absolute()
        if path not in self._saved and path.exists():
            raise RunError(f"{path} exists already.", "Choose another name.")
        require_folder(path)
        roles = (("user", "message"), ("assistant", "answer"))
        said = [{"role": role, "content": getattr(turn, part)} for turn in self.turns for role, part in roles]
        conversation = {
            "origin": self.origin,
            "template": self.template,
            "settings": self.settings.model_dump(),
            "messages": [{"role": "system", "content": self.system}] * bool(self.system) + said,
        }
        try:
            write_json(path, conversation)
        except OSError as error:
            raise disk_error(error, "saving the conversation") from error
        self._saved.add(path)

    def load(self, path: Path) -> None:
        """Go on with a conversation that `save` wrote, in place of this one.

        Raises:
            RunError: there is no such file, or it holds no conversation.
            ConfigError: it has a system message, and the model knows none.
        """
        path = path.expanduser().absolute()
        try:
            messages = read_json(path)["messages"]
            said = [(str(message["role"]), well_formed(str(message["content"]))) for message in messages]
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.", "Name a file that /save wrote.") from None
        except (UserError, KeyError, TypeError) as error:
            own = isinstance(error, UserError)
            why = str(error).removesuffix(".") if own else "no `messages`, a list with a `role` and a `content` in each"
            raise RunError(f"{path} holds no conversation: {why}.", "Name a file that /save wrote.") from None
        system = said.pop(0)[1] if said and said[0][0] == "system" else ""
        if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
            raise RunError(f"{path}: its messages are not by turns from user and assistant.", "Mend or choose another.")
        self.set_system(system)
        self.reset()
        for (_, message), (_, answer) in zip(said[::2], said[1::2], strict=True):
            self._remember(message, answer)

    def _prompt(self, message: str) -> list[int]:
        """The ids that the model shall continue: the system's, as many of the newest turns as fit, and the message."""
        context = self.engine.context_length
        tokenizer = self.engine.tokenizer
        if lost := cannot_spell(tokenizer, message):
            self.notices.append(lost)
        head = self.format.head(tokenizer, self.system)
        room = context - min(self.settings.max_tokens, context // 2) - len(head)  # the rest is for the answer
        prompt = self.format.prompt(tokenizer, message, first=not self.turns)
        if len(prompt) > room:
            prompt = self.format.shortened(tokenizer, message, room)
            self.notices.append(
                f"The model saw only the end of your message: its context holds {context} tokens, "
                f"{context - room - len(head)} of them for the answer."
            )
        prompt, kept = remembered(prompt, (turn.ids for turn in reversed(self.turns[self._oldest :])), room)
        forgotten = len(self.turns) - kept
        if forgotten and not self._said_forgotten and not self.single:
            self._said_forgotten = True
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            why = f"its context holds {context} tokens"
            if forgotten == self._oldest:
                why = f"it was tuned on conversations of {self.longest} turns at most"
            self.notices.append(f"The model forgot the oldest {turns}: {why}.")
        return head + prompt

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

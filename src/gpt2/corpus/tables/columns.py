"""Which columns of a table hold text: each is judged by its values, and each judgement has a reason to show."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_KINDS = {  # a value is of the first kind that fits all of it
    "dates": rf"\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}(?:[t ,]+\d{{1,2}}:.*)?|\d{{1,2}}:\d{{2}}(?::[\d.]+)?(?: ?[ap]m)?"
    rf"|(?:[a-z]+, ?)?\d{{1,2}}\.? {_MONTH},? \d{{2,4}}.{{0,20}}|(?:[a-z]+, ?)?{_MONTH} \d{{1,2}},? \d{{4}}.{{0,20}}",
    "numbers": r"[-+(]?\s*[$€£¥]?\s*[-+]?\.?\d[\d\s.,'_]*(?:e[-+]?\d+)?\s*[%$€£¥)]?|nan|[-+]?inf(?:inity)?",
    "web addresses": r"(?:https?|ftp)://\S+|www\.\S+",
    "e-mail addresses": r"[^\s@]+@[^\s@]+\.\w+",
    "file names": r"[\w./\\:-]*[\w-]\.(?:jpe?g|png|gif|webp|mp[34]|wav|pdf|txt|csv|json|html?|zip|py)",
    "identifiers": r"(?=\S*\d)[\w.:/#-]{3,80}|[0-9a-f]{8,}",
}
_KIND = re.compile("|".join(f"(?P<k{i}>{pattern})" for i, pattern in enumerate(_KINDS.values())), re.IGNORECASE)
_KIND_NAMES = tuple(_KINDS)
# Scripts that are written without spaces, where a word has about two characters.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")
# fmt: off
_TEXT_NAMES = frozenset((
    "abstract", "answer", "article", "body", "caption", "chosen", "comment", "completion", "content", "context",
    "description", "dialogue", "document", "headline", "input", "instruction", "message", "output", "paragraph",
    "passage", "poem", "post", "prompt", "question", "quote", "reply", "response", "review", "sentence", "story",
    "summary", "text", "title", "transcript", "tweet", "utterance",
))
# fmt: on
_LOOK = 500  # characters of a value that are counted: enough to tell prose, and bounded
_SAME_KIND = 0.9  # share of a column's values that make its kind
_FEW = 0.05  # share of different values up to which they are categories


def kind(value: str) -> str | None:
    """What a value is other than words: "numbers", "dates" and so on; None for words."""
    value = value.strip()
    if len(value) > 200 or (match := _KIND.fullmatch(value)) is None:
        return None
    return _KIND_NAMES[int((match.lastgroup or "k0")[1:])]


def looks_like_header(first: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether the first record names the columns of the others, judged in the order of how telling a sign is."""
    if any(kind(name) for name in first):
        return False
    columns = [[cell for cell in column if cell.strip()] for column in _transposed(body, len(first))]
    for cells in columns:  # words above a column of numbers or dates
        kinds = Counter(map(kind, cells))
        kinds.pop(None, None)
        if cells and sum(kinds.values()) >= _SAME_KIND * len(cells):
            return True
    if any(len(name) > 60 or len(name.split()) > 7 or name.rstrip().endswith((".", "!", ",")) for name in first):
        return False
    return not any(name.strip() and name in cells for name, cells in zip(first, columns, strict=True))


def _transposed(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    return [[row[i] for row in rows if i < len(row)] for i in range(width)]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a column is read as text, and why, in one line for the user."""

    column: str
    picked: bool
    reason: str


@dataclass(slots=True)
class _Profile:
    """Counts over the values of one column that are not empty."""

    values: int = 0
    kinds: Counter[str | None] = field(default_factory=Counter)
    length: int = 0
    looked_at: int = 0
    letters: int = 0
    words: float = 0.0
    different: set[int] = field(default_factory=set)

    def add(self, value: str) -> None:
        if not value.strip():
            return
        self.values += 1
        self.kinds[kind(value)] += 1
        self.length += len(value)
        self.different.add(hash(value))
        start = value[:_LOOK]
        self.looked_at += len(start)
        self.letters += sum(map(str.isalpha, start))
        self.words += max(len(start.split()), len(_UNSPACED.findall(start)) / 2)

    def other_than_words(self) -> str | None:
        """The kind of nearly all values, or None."""
        common = [(count, name) for name, count in self.kinds.items() if name is not None]
        count, name = max(common, default=(0, None))
        if count >= _SAME_KIND * self.values:
            return name
        # Prices, sizes and dates mixed: no single kind, but no words either.
        return "numbers and codes" if sum(count for count, _ in common) >= _SAME_KIND * self.values else None

    def judge(self, column: str, rows: int) -> Judgement:
        if not self.values:
            return Judgement(column, False, f"empty in the first {rows:,} rows")
        if name := self.other_than_words():
            return Judgement(column, False, name)
        words, length = self.words / self.values, self.length / self.values
        different = len(self.different)
        if self.values >= 20 and different <= max(_FEW * self.values, 1):
            values = "a single value" if different == 1 else f"only {different} different values"
            return Judgement(column, False, f"categories: {values} in {self.values:,} rows")
        if self.letters < 0.4 * self.looked_at:
            return Judgement(column, False, f"only {self.letters / self.looked_at:.0%} of its characters are letters")
        if words >= 4 or length >= 25:
            return Judgement(column, True, f"text: {words:.0f} words, {length:.0f} characters on average")
        if any(part in _TEXT_NAMES for part in re.split(r"[\W_]+", column.lower())):
            return Judgement(column, True, f"short text by its name: {words:.1f} words on average")
        return Judgement(column, False, f"short values: {words:.1f} words on average")


def judge_columns(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Judgement]:
    """Judge every column by the values of some rows. At least one is picked, unless none has any words.

    Args:
        columns: their names.
        rows: the cells; a row may have fewer than there are columns.
    """
    profiles = [_Profile() for _ in columns]
    count = 0
    for row in rows:
        count += 1
        for profile, value in zip(profiles, row, strict=False):
            profile.add(value)
    judgements = [profile.judge(column, count) for column, profile in zip(columns, profiles, strict=True)]
    if any(judgement.picked for judgement in judgements):
        return judgements
    wordy = [i for i, profile in enumerate(profiles) if profile.values and not profile.other_than_words()]
    if wordy:  # the first of the longest
        best = max(wordy, key=lambda i: profiles[i].length / profiles[i].values)
        length = profiles[best].length / profiles[best].values
        reason = f"no column reads like prose; this one has the longest text, {length:.0f} characters on average"
        judgements[best] = Judgement(columns[best], True, reason)
    return judgements

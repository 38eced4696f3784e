"""Where a tokenizer comes from: its name on the command line, or its files.

tokenizer.json is read as strictly as it is written, and nothing in it is run.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2.errors import CheckpointError, ConfigError, UserError
from gpt2.files import read_json
from gpt2.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2.tokenizer.bpe import LONGEST, BytePairTokenizer, train_bpe
from gpt2.tokenizer.char import UNKNOWN, CharTokenizer, train_char
from gpt2.tokenizer.gpt2 import gpt2_tokenizer, is_gpt2_merges
from gpt2.tokenizer.layout import CONFIG_FILE, NAME_KEY, TOKENIZER_FILE, unspell
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer

MOST_IDS = 2**20
"""Ids in a vocabulary at most; a file that claims more is damaged."""


def tokenizer_from_spec(spec: str, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """Make the tokenizer that `spec` names.

    Args:
        spec: gpt2, char, or bpe:N with N ids, the end-of-text mark included.
        texts: called for the pieces of text to train on; only char and bpe:N call it, once.

    Raises:
        UserError: no such tokenizer, or GPT-2's vocabulary is missing or altered.
    """
    if spec == "gpt2":
        return gpt2_tokenizer()
    if spec == "char":
        return train_char(texts())
    if match := re.fullmatch(r"bpe:([0-9]{1,7})", spec):
        return train_bpe(texts(), int(match[1]))
    raise ConfigError(f"There is no tokenizer {spec!r}.", "Choose gpt2, char, or bpe:N, such as bpe:4096.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer in a folder: one of ours, or GPT-2's as transformers saves it.

    The ids come from tokenizer.json alone; tokenizer_config.json gives at most the name.

    Raises:
        CheckpointError: tokenizer.json is missing, damaged, or of another kind than this package's.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}.", "Name a folder that holds a complete checkpoint.")
    try:
        content = read_json(path)
        _require(isinstance(content, dict), "it is no JSON object")
        _require(content.get("normalizer") is None, "it normalizes text, which no tokenizer here does")
        model = content.get("model")
        _require(isinstance(model, dict), "it has no model")
        added = content.get("added_tokens")
        spellings = _spellings(model.get("vocab"), added)
        _require(model.get("type") in ("BPE", "WordLevel"), f"its model is {model.get('type')!r}, no BPE or WordLevel")
        if model["type"] == "BPE":
            plain: Tokenizer = _byte_pairs(_saved_name(folder), spellings, model, content.get("pre_tokenizer"))
        else:
            plain = _characters(spellings, model, content.get("pre_tokenizer"))
        return plain if len(added) == 1 else _with_roles(plain, added)
    except UserError as error:  # not JSON, or too large: already said with the path
        raise CheckpointError(error.what, _MEND) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no tokenizer that can be used here: {error}.", _MEND) from error


_MEND = "Copy the folder again from where it came, or choose another checkpoint."


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _spellings(vocab: Any, added: Any) -> list[str]:
    """All spellings in the order of their ids, the end-of-text mark last and everything before it from `vocab`."""
    _require(isinstance(vocab, dict) and isinstance(added, list), "it has no vocabulary or no added tokens")
    known = (END_OF_TEXT, *ROLE_SPELLINGS)
    sound = len(added) in (1, len(known)) and all(isinstance(token, dict) for token in added)
    _require(sound, f"it must add {END_OF_TEXT}, and perhaps {' '.join(ROLE_SPELLINGS)}, but no other token")
    mark = added[0]
    _require(mark.get("content") == END_OF_TEXT, f"it adds {mark.get('content')!r} where {END_OF_TEXT} is expected")
    ids = {**vocab, END_OF_TEXT: mark.get("id")}
    _require(vocab.get(END_OF_TEXT, mark.get("id")) == mark.get("id"), f"it gives {END_OF_TEXT} two ids")
    _require(len(ids) <= MOST_IDS, f"it has {len(ids):,} ids; at most {MOST_IDS:,} are possible")
    _require(all(type(i) is int for i in ids.values()), "an id is no whole number")
    by_id = {i: spelling for spelling, i in ids.items()}
    _require(sorted(by_id) == list(range(len(ids))), f"its {len(ids):,} ids are not 0 to {len(ids) - 1:,}, each once")
    _require(ids[END_OF_TEXT] == len(ids) - 1, f"{END_OF_TEXT} is not the last id")
    return [by_id[i] for i in range(len(ids))]


def _with_roles(plain: Tokenizer, added: list[Any]) -> Tokenizer:
    """The tokenizer with the marks of speakers that the file has, if they are those of this program."""
    tokenizer = RoleTokenizer(plain)
    there = [(token.get("id"), token.get("content")) for token in added[1:]]
    expected = list(zip(tokenizer.roles.all, ROLE_SPELLINGS, strict=True))
    _require(there == expected, f"it adds {there} where {expected} are expected")
    return tokenizer


def _byte_pairs(name: str | None, spellings: list[str], model: dict[str, Any], split: Any) -> BytePairTokenizer:
    plain = isinstance(split, dict) and split.get("type") == "ByteLevel" and split.get("use_regex", True) is True
    _require(plain and split.get("add_prefix_space") is False, "its text is not split as GPT-2's")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        _require(not model.get(option), f"{option} is {model.get(option)!r}, which GPT-2's tokenizer does not have")
    tokens = [_token(spelling) for spelling in spellings[:-1]]
    _require(len(tokens) >= 256 and len(set(tokens[:256])) == 256, "its first 256 ids are not the single bytes")
    _require(all(len(token) == 1 for token in tokens[:256]), "its first 256 ids are not the single bytes")
    _require(max(map(len, tokens)) <= LONGEST, f"a token has more than {LONGEST} bytes")

    pairs = model.get("merges")
    if not isinstance(pairs, list) or len(pairs) != len(tokens) - 256:
        raise ValueError("it has not one merge for each token")
    merges = [_merge(pair) for pair in pairs]
    for at, (left, right) in enumerate(merges):
        _require(left + right == tokens[256 + at], f"merge {at} does not give token {256 + at}")
    known = is_gpt2_merges(merges)
    tokenizer = BytePairTokenizer("gpt2" if known else name or f"bpe:{len(spellings)}", tokens, merges)
    for at, merge in enumerate([] if known else merges):  # tiktoken knows tokens only: they must imply these merges
        _require(tokenizer.pair_of(tokens[256 + at]) == merge, f"merge {at} is not how its token is reached")
    return tokenizer


def _token(spelling: str) -> bytes:
    try:
        return unspell(spelling)
    except KeyError:
        raise ValueError(f"the token {spelling!r} is not in GPT-2's byte alphabet") from None


def _merge(pair: Any) -> tuple[bytes, bytes]:
    parts = pair.split(" ") if isinstance(pair, str) else pair  # "a b" in older files, ["a", "b"] in newer ones
    sound = isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)
    _require(sound, f"{pair!r} is no merge of two tokens")
    return _token(parts[0]), _token(parts[1])


def _characters(spellings: list[str], model: dict[str, Any], split: Any) -> CharTokenizer:
    isolated = isinstance(split, dict) and split.get("type") == "Split" and split.get("behavior") == "Isolated"
    _require(isolated and split.get("pattern") == {"Regex": r"[\s\S]"}, "its text is not split into characters")
    _require(
        model.get("unk_token") == UNKNOWN and spellings[-2:-1] == [UNKNOWN],
        "its unknown id is not the one before the last",
    )
    characters = spellings[:-2]
    _require(all(len(c) == 1 and not "\ud800" <= c <= "\udfff" for c in characters), "an entry is no single character")
    _require(characters == sorted(characters), "its characters are not in the order of their code points")
    return CharTokenizer("".join(characters))


def _saved_name(folder: Path) -> str | None:
    """The name, as asked for, of a BPE trained here: it may ask for more ids than its text gave. Else None."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except (UserError, OSError):
        return None
    name = config.get(NAME_KEY) if isinstance(config, dict) else None
    return name if isinstance(name, str) and re.fullmatch(r"bpe:[0-9]{1,7}", name) else None

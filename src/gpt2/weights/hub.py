"""A GPT-2 from the Hugging Face Hub: its four files, fetched once and kept as a folder."""

import errno
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from gpt2.console import progress, say
from gpt2.errors import UserError
from gpt2.files import atomic_folder

ENDPOINT = "https://huggingface.co"
"""Another one, such as a mirror's, is named by HF_ENDPOINT; HF_TOKEN opens private models."""
TIMEOUT = 30.0
_FILES = {  # file → the most bytes that are believed, and whether it must be there
    "config.json": (2**20, True),
    "tokenizer.json": (2**26, True),
    "tokenizer_config.json": (2**22, False),
    "model.safetensors": (2**34, True),
}
_PLAIN = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Names without an owner, from before there were owners."""


def is_hub_name(name: str) -> bool:
    """Whether a name looks like a model of the hub: owner/model, or one of OpenAI's."""
    return name in _PLAIN or re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name) is not None


def fetch(name: str, root: Path) -> Path:
    """The folder of a model, fetched now or before.

    Args:
        name: as `is_hub_name` takes it.
        root: where folders are kept.

    Raises:
        UserError: the hub cannot be reached, has no such model, or what came is not what it announced.
    """
    folder = root / name.replace("/", "--")
    if (folder / "config.json").is_file():
        return folder
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    say(f"Fetching {name} from {endpoint}.", style="dim")
    with atomic_folder(folder) as temporary:
        for file, (most, needed) in _FILES.items():
            _fetch_file(f"{endpoint}/{name}/resolve/main/{file}", temporary / file, most, needed, name)
        kind = json.loads((temporary / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "gpt2":
            raise UserError(f"{name} is a model of type {kind!r}, not 'gpt2'.", "Choose a GPT-2.")
    return folder


def _fetch_file(url: str, path: Path, most: int, needed: bool, name: str) -> None:
    """Write a file, of which all came that was announced."""
    request = urllib.request.Request(url)
    if token := os.environ.get("HF_TOKEN"):  # for the hub alone: it sends large files from elsewhere
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as file:
            announced, received = int(answer.headers.get("Content-Length") or 0), 0
            with progress(f"Fetching {path.name}", announced or None) as advance:
                while block := answer.read(2**20):
                    received += len(block)
                    if received > most:
                        raise UserError(f"{url} is larger than {most:,} bytes.", "Fetch the model by hand.")
                    file.write(block)
                    advance(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 404 and not needed:
            return
        why = {401: "it does not exist, or is private (HF_TOKEN)", 403: "it is private (HF_TOKEN)"}
        if error.code == 404:
            raise UserError(f"{name} has no {path.name} ({url}).", "Choose a GPT-2 with safetensors weights.") from None
        raise UserError(
            f"{url}: {why.get(error.code, f'the answer was {error.code} {error.reason}')}.", "Check the model's name."
        ) from None
    except (OSError, http.client.HTTPException) as error:  # URLError, a timeout, a connection that broke
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{name} is no run and no folder here, and the Hugging Face Hub cannot be reached: "
            f"{getattr(error, 'reason', error)}.",
            "Connect to the network (HF_ENDPOINT names a mirror), or give the folder of a model: it needs "
            f"{', '.join(file for file, (_, must) in _FILES.items() if must)}.",
        ) from error
    if announced and received != announced:
        raise UserError(f"{url} broke off after {received:,} of {announced:,} bytes.", "Try again.")

"""`gpt2 export`: a trained model as one file, for llama.cpp."""

from pathlib import Path

from gpt2.chat.template import CHAT_TEMPLATE
from gpt2.config.commands import ExportSettings
from gpt2.console import say
from gpt2.files import disk_error, require_folder, require_own
from gpt2.tokenizer.roles import roles_of
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training.checkpoint import open_checkpoint
from gpt2.weights.gguf import MAGIC, write_gguf
from gpt2.weights.huggingface import load_model


def export(settings: ExportSettings) -> None:
    """Write the GGUF file of a checkpoint.

    Raises:
        UserError: no such run, checkpoint or folder; llama.cpp does not know the tokenizer; the system refused.
    """
    checkpoint = open_checkpoint(settings.run, settings.checkpoint)
    name = checkpoint.run_folder or checkpoint.folder
    path = Path(settings.out or f"{name.absolute().name}.gguf").expanduser()
    require_folder(path)
    require_own(path, MAGIC, "GGUF file")
    model, tokenizer = load_model(checkpoint.folder), load_tokenizer(checkpoint.folder)
    template = None if roles_of(tokenizer) is None else CHAT_TEMPLATE
    try:
        write_gguf(path, model, tokenizer, name.absolute().name, template)
    except OSError as error:
        raise disk_error(error, f"writing {path}") from error
    say(f"Wrote {path}: {path.stat().st_size / 1e6:,.1f} MB.")
    chats = "llama-server --jinja -m" if template else "llama-server -m"
    say(f"With llama.cpp: {chats} {path}", style="dim")

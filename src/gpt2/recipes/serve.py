"""`gpt2 serve`: a trained model behind OpenAI's API, with a page for the browser."""

import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import torch

from gpt2.chat.template import chat_format
from gpt2.config.commands import ServeSettings
from gpt2.console import say, warn
from gpt2.errors import ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.request import Sampling
from gpt2.model.cost import parameters
from gpt2.model.precision import precision_of
from gpt2.recipes.chat import template_of
from gpt2.recipes.inspector import EngineInspector, training_text
from gpt2.runtime import apart, pick_device
from gpt2.serve import logs
from gpt2.serve.app import build_app
from gpt2.serve.limits import Limits, connections_that_fit
from gpt2.serve.metrics import Metrics
from gpt2.serve.model import ServedModel
from gpt2.serve.server import Server, bind
from gpt2.serve.service import Service
from gpt2.serve.worker import Worker
from gpt2.training.checkpoint import OpenedCheckpoint, open_checkpoint

KEY_VARIABLE = "GPT2_API_KEY"
SHORTEST_KEY = 16
"""Characters; a shorter key can be guessed."""
LONGEST_KEY = 4096


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Raises:
        UserError: no such run, checkpoint or device; the model's answer is no number; the address is taken, or open to
            others without a key; the memory of so many answers at once is not there.
    """
    _require_addresses(settings.trusted_proxies)
    _require_names(settings.allowed_hosts)
    key = read_key(settings)
    if key is None and not _is_own(settings.host):
        raise ConfigError(
            f"--host {settings.host} lets other machines in, and there is no key.",
            f"Set the environment variable {KEY_VARIABLE}, or --api-key-file; or leave --host out.",
        )
    listener = bind(settings.host, settings.port)  # before the seconds that a model takes
    device = pick_device(settings.device)
    checkpoint = open_checkpoint(settings.run, settings.checkpoint)
    # Apart, since the worker's thread is to be the only one that computes.
    engine = apart(lambda: _opened(checkpoint, device, settings))

    limits = Limits(queue=settings.queue, drain_seconds=settings.drain_seconds, connections=connections_that_fit())
    model = ServedModel(
        id=settings.name or _name(checkpoint),
        created=int((checkpoint.folder / "config.json").stat().st_mtime),
        tokenizer=engine.tokenizer,
        context_length=engine.context_length,
        format=chat_format(engine.tokenizer, template_of(checkpoint.settings)),
        turns=checkpoint.settings.get("turns"),
    )
    logs.configure()
    metrics = Metrics()
    worker = Worker(engine, limits, metrics)
    shards = training_text(checkpoint, engine.tokenizer) if settings.passages else None
    service = Service(model, worker, limits, metrics, EngineInspector(engine, shards))
    hosts = [*settings.allowed_hosts, settings.host]
    server = Server(build_app(service, key, hosts), service, limits, settings.trusted_proxies)

    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    size = parameters(engine.model.config)
    where = f"in {precision_of(engine.model)} on {device}"
    say(f"{model.id}: {size:,} parameters {where}, context {model.context_length}, {settings.slots} at once.")
    if not model.format.answers:
        say(
            "It was neither tuned nor trained with a template, so that chat continues a text, and does not answer.",
            style="dim",
        )
    say(f"{url}/  in the browser; {url}/v1  for OpenAI's clients, model {model.id!r}.", style="bold")
    say(f"Stop with Ctrl-C: what runs is finished, within {limits.drain_seconds:g} s; a second Ctrl-C ends it.", "dim")
    worker.start()
    try:
        server.run([listener])
    finally:
        worker.stop()
    if worker.failed:
        raise SystemExit(1)  # the log says why


def read_key(settings: ServeSettings) -> str | None:
    """The key that clients must know: from the environment or a file, never from the command line.

    Raises:
        ConfigError: there is no such file, or the key is too short.
    """
    if settings.api_key_file is None:
        key, origin = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
        if key is None:
            return None
    else:
        path = Path(settings.api_key_file)
        origin = str(path)
        try:
            with path.open("rb") as file:
                line = file.readline(LONGEST_KEY)
            if len(line) == LONGEST_KEY:
                raise ConfigError(f"The first line of {path} has no end: that is no key.", "Name a file with a key.")
            key = line.decode()
            if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                warn(f"{path} can be read by others on this machine. chmod 600 {path}")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"--api-key-file {path} cannot be read: {reason}.", "Name a file with a key.") from None
    key = key.strip()
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"The key in {origin} has {len(key)} characters; it needs {SHORTEST_KEY}.",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return key


def _opened(checkpoint: OpenedCheckpoint, device: torch.device, settings: ServeSettings) -> Engine:
    engine = open_engine(checkpoint.folder, device, settings.precision, settings.slots)
    engine.complete("", 1, Sampling())  # the first token takes longest; no client shall wait for it
    return engine


def _require_addresses(proxies: Sequence[str]) -> None:
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            raise ConfigError(
                f"--trusted-proxies {proxy}: that is no IP address, and no network of them.",
                "Name a proxy's address, such as 127.0.0.1 or 10.0.0.0/8.",
            ) from None


def _require_names(hosts: Sequence[str]) -> None:
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host, re.IGNORECASE):
            raise ConfigError(
                f"--allowed-hosts {host}: that is no name of a machine.",
                "Name it as clients do, without http:// and port, such as models.example.org.",
            )


def _is_own(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(checkpoint: OpenedCheckpoint) -> str:
    return (checkpoint.run_folder or checkpoint.folder).name

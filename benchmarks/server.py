"""What the measurements of a server share: a model of random weights in a folder, and `gpt2 serve` on it."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpt2.config.presets import PRESETS
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.weights.huggingface import to_files


def make_folder(folder: Path, preset: str) -> Path:
    """A model of a named size with random weights, which cost the same, and GPT-2's tokenizer."""
    tokenizer = gpt2_tokenizer()
    shape = PRESETS[preset]
    model = GPT2(GPT2Config(tokenizer.vocab_size, **shape._asdict()))
    model.init_weights(torch.Generator().manual_seed(1))
    config, generation, tensors = to_files(model, tokenizer.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **tokenizer.to_files(shape.context_length)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class ServerProcess:
    """`gpt2 serve` on a free port, under the name "bench"."""

    def __init__(self, folder: Path, slots: int, precision: str = "auto") -> None:
        words = [str(folder), "--port", "0", "--slots", str(slots), "--name", "bench", "--precision", precision]
        known = {name: value for name, value in os.environ.items() if name != "GPT2_API_KEY"}
        command = [sys.executable, "-m", "gpt2", "serve", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=known)
        assert self.process.stderr is not None
        self.complaints: list[str] = []
        """Lines of its log that are no plain report of a request."""
        said = ""
        try:
            while "Stop with" not in said:
                line = self.process.stderr.readline()
                assert line, f"the server did not start:\n{said}"
                said += line
        except BaseException:  # Ctrl-C, too
            self.process.kill()
            raise
        self.port = int(said.split("http://127.0.0.1:")[1].split("/")[0])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.complaints += [line for line in self.process.stderr if " INFO " not in line]

    def metric(self, name: str) -> float:
        """A counter or gauge; of one with labels the sum. 0 if it has not been counted yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    def resident(self) -> int:
        """Bytes in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Of all cores, so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self) -> int:
        """Stop it as a service manager does: its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

"""Writing with 124M: `gpt2.generation.engine` beside transformers, CTranslate2 and llama.cpp, at the same precision.

Every contestant is a process of its own with the same random weights, and they take turns. What is counted: new tokens
a second after prompts of 32 tokens, for one text and for several at once, and the time to the first token of a prompt
of 512. A limit of the machine stands beside it: bytes of weights that a token must read, by the speed of reading.

    pip install transformers ctranslate2 llama-cpp-python gguf
    python benchmarks/decoding.py
    python benchmarks/decoding.py --device cuda

On a GPU the peers are transformers and our own engine without recorded graphs. A – in the table: transformers has no
int8 of its own (libraries that add it are for GPUs), CTranslate2 neither fp16 nor bf16 on CPUs.
"""

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from results import machine, write_section

PROMPT, NEW, LONG = 32, 128, 512
CONTEXT = 1024


def prompts(turn: int, batch: int, length: int, vocabulary: int = 50_257) -> list[list[int]]:
    """The same ids for everybody, other ones each row and turn: our engine would reuse what it has read."""
    return np.random.default_rng(turn).integers(0, vocabulary - 1, (batch, length)).tolist()


# Contestants: from a folder to a function that writes `new` tokens after each prompt, all prompts at once.
Writer = Callable[[list[list[int]], int], None]


def ours(folder: Path, precision: str, batch: int, device: str, graphs: bool = True) -> Writer:
    import torch

    from gpt2.generation.load import open_engine
    from gpt2.generation.reader import Reader
    from gpt2.generation.request import Request, Sampling

    engine = open_engine(folder, torch.device(device), precision, batch)
    if not graphs:
        engine.reader = Reader(engine.model, batch)
    engine.reader.drafts = False  # random weights go in circles, which would be guessed
    no_end = Sampling(temperature=0, logit_bias={engine.tokenizer.end_of_text: -100.0})

    def write(rows: list[list[int]], new: int) -> None:
        count = sum(len(delta.tokens) for _, delta in engine.run([Request(tuple(row), new, no_end) for row in rows]))
        assert count == len(rows) * new

    return write


def without_graphs(folder: Path, precision: str, batch: int, device: str) -> Writer:
    return ours(folder, precision, batch, device, graphs=False)


def transformers(folder: Path, precision: str, batch: int, device: str) -> Writer:
    import torch
    from transformers import GPT2LMHeadModel

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval().to(device)

    def write(rows: list[list[int]], new: int) -> None:
        given = torch.tensor(rows, device=device)
        options: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        made = model.generate(given, attention_mask=torch.ones_like(given), pad_token_id=0, **options)
        assert made.shape == (len(rows), given.shape[1] + new)

    return write


def ctranslate(folder: Path, precision: str, batch: int, device: str) -> Writer:
    import ctranslate2

    kind = {"fp32": "float32", "int8": "int8"}[precision]
    converted = folder / f"ctranslate2-{kind}"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted), quantization=kind)
    generator = ctranslate2.Generator(str(converted), device="cpu", compute_type=kind, inter_threads=1)
    spelled = dict(enumerate(vocabulary(converted)))

    def write(rows: list[list[int]], new: int) -> None:
        made = generator.generate_batch(
            [[spelled[token] for token in row] for row in rows],
            max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False,
        )  # fmt: skip
        assert all(len(result.sequences_ids[0]) == new for result in made)

    return write


def vocabulary(converted: Path) -> list[str]:
    """The tokens as CTranslate2 spells them."""
    return json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))


def llama(folder: Path, precision: str, batch: int, device: str) -> Writer:
    import llama_cpp as lib

    path = folder / f"{precision}.gguf"
    if not path.exists():
        write_gguf(folder, path, precision)
    lib.llama_backend_init()
    # It speaks a lot while it loads.
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, lib.ctypes.c_void_p(0))
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = CONTEXT * max(1, batch), 2048, 512, batch
    options.n_threads = options.n_threads_batch = multiprocessing.cpu_count()
    context = lib.llama_init_from_model(model, options)
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    room = lib.llama_batch_init(2048, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, whether its logits are wanted) of each → the likeliest of those wanted."""
        room.n_tokens = len(entries)
        for place, (token, position, row, wanted) in enumerate(entries):
            room.token[place], room.pos[place], room.n_seq_id[place] = token, position, 1
            room.seq_id[place][0], room.logits[place] = row, wanted
        assert lib.llama_decode(context, room) == 0
        logits = (
            np.ctypeslib.as_array(lib.llama_get_logits_ith(context, place), (size,))
            for place, entry in enumerate(entries) if entry[3]
        )  # fmt: skip
        return [int(row.argmax()) for row in logits]

    def write(rows: list[list[int]], new: int) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        length = len(rows[0])
        last = decode(
            [
                (token, place, row, place == length - 1)
                for row, ids in enumerate(rows)
                for place, token in enumerate(ids)
            ]
        )
        for step in range(new - 1):
            last = decode([(token, length + step, row, True) for row, token in enumerate(last)])

    return write


def write_gguf(folder: Path, path: Path, precision: str) -> None:
    """The weights as llama.cpp reads them, without a tokenizer."""
    import gguf
    from safetensors.numpy import load_file

    kinds = {"fp32": gguf.GGMLQuantizationType.F32, "int8": gguf.GGMLQuantizationType.Q8_0,
             "fp16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}  # fmt: skip
    names = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
             "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}  # fmt: skip
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT), writer.add_embedding_length(768), writer.add_block_count(12)
    writer.add_feed_forward_length(3072), writer.add_head_count(12), writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab"), writer.add_vocab_size(50_257)
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        if name.startswith("h."):
            _, layer, rest = name.split(".", 2)
            module, part = rest.rsplit(".", 1)
            if module not in names:
                continue
            name = f"blk.{layer}.{names[module]}.{part}"
            tensor = tensor.T if module in names and tensor.ndim == 2 else tensor  # (outputs, inputs)
        else:
            start, part = name.rsplit(".", 1)
            name = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}[start] + f".{part}"
        tensor = np.ascontiguousarray(tensor, dtype=np.float32)
        # As its own converter does: vectors and positions stay in fp32.
        if tensor.ndim == 1 or name.startswith("position") or precision == "fp32":
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, kinds[precision]), raw_dtype=kinds[precision])
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def memory(folder: Path, precision: str, batch: int, device: str) -> Writer:
    """The limit: as many bytes as the weights have, read by all cores for each token, and nothing else."""
    import torch

    from gpt2.model.huge_pages import in_huge_pages

    block = torch.ones(weight_bytes(precision) // 8, dtype=torch.int64, device=device)
    block = in_huge_pages(block) if device == "cpu" else block

    def write(rows: list[list[int]], new: int) -> None:
        for _ in range(new):
            total = block.sum()
        total.item()  # a GPU is waited for

    return write


MAKERS = {
    "memory": memory,
    "ours": ours,
    "without graphs": without_graphs,
    "transformers": transformers,
    "CTranslate2": ctranslate,
    "llama.cpp": llama,
}
NEEDS = {  # module → package
    "without graphs": {},
    "transformers": {"transformers": "transformers"},
    "CTranslate2": {"ctranslate2": "ctranslate2", "transformers": "transformers"},
    "llama.cpp": {"llama_cpp": "llama-cpp-python", "gguf": "gguf"},
}
"""What each peer takes."""
PRECISIONS = {
    "fp32": ("ours", "without graphs", "transformers", "CTranslate2", "llama.cpp"),
    "fp16": ("ours", "without graphs", "transformers", "llama.cpp"),
    "bf16": ("ours", "without graphs", "transformers", "llama.cpp"),
    "int8": ("ours", "without graphs", "CTranslate2", "llama.cpp"),
}
ON = {"cpu": ("transformers", "CTranslate2", "llama.cpp"), "cuda": ("without graphs", "transformers")}
"""Peers by device."""


def contestant(pipe: Connection, name: str, folder: Path, precision: str, batch: int, device: str) -> None:
    """A process: a request (turn, prompt length, new tokens) to the seconds that it took, until None comes."""
    write = MAKERS[name](folder, precision, batch, device)
    write(prompts(0, batch, PROMPT), NEW if device == "cuda" else 4)  # there graphs are recorded on the way
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        turn, length, new = asked
        rows = prompts(turn, batch, length)
        began = time.perf_counter()
        write(rows, new)
        pipe.send(time.perf_counter() - began)


def compare(
    folder: Path, precision: str, batch: int, shape: tuple[int, int], rounds: int, peers: list[str], device: str
) -> dict[str, list[float]]:
    """Contestant → seconds of each round, in which each has a turn."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    able = [name for name in PRECISIONS[precision] if name == "ours" or name in peers]
    for name in (*able, *(("memory",) if batch == 1 and shape[1] > 1 else ())):
        pipes[name], far = context.Pipe()
        processes.append(context.Process(target=contestant, args=(far, name, folder, precision, batch, device)))
        processes[-1].start()
        far.close()
        assert pipes[name].recv() == "ready"
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for number in range(rounds):
        order = list(pipes)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            pipes[name].send((1 + number, *shape))
            seconds[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return seconds


def missing(peers: list[str]) -> list[str]:
    """The packages that these peers take and that are not installed."""
    return sorted(
        {package for peer in peers for name, package in NEEDS[peer].items() if importlib.util.find_spec(name) is None}
    )


def times(one: list[float], other: list[float]) -> float:
    """How many times as long the first takes as the second: the median over rounds, as the machine's speed drifts."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def weight_bytes(precision: str) -> int:
    """What a token reads: all matrices, positions aside, and vectors in fp32."""
    from gpt2.model.gpt2 import GPT2Config

    config = GPT2Config(50_257, CONTEXT, 12, 12, 768)
    matrices = 12 * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return matrices * {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}[precision] + 12 * 13 * config.n_embd * 4


def make_folder(folder: Path) -> None:
    """124M random weights with GPT-2's tokenizer, as a checkpoint has them."""
    import torch
    from safetensors.torch import save_file

    from gpt2.model.gpt2 import GPT2, GPT2Config
    from gpt2.tokenizer.gpt2 import gpt2_tokenizer
    from gpt2.weights.huggingface import to_files

    model, tokenizer = GPT2(GPT2Config(50_257, CONTEXT, 12, 12, 768)), gpt2_tokenizer()
    model.init_weights(torch.Generator().manual_seed(0))
    config, generation, tensors = to_files(model, tokenizer.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **tokenizer.to_files(CONTEXT)}
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--device", default="cpu", choices=list(ON))
    parser.add_argument("--peers", nargs="*", choices=list(NEEDS), help="beside us; else all of this device")
    arguments = parser.parse_args()
    device = arguments.device
    arguments.peers = list(ON[device]) if arguments.peers is None else arguments.peers
    if lacking := missing(arguments.peers):
        wanted = f"pip install {' '.join(lacking)}"
        parser.error(f"not all peers are installed. {wanted}; or name those that you want with --peers.")
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folder(folder)
        peers = [name for name in ON[device] if name in arguments.peers]
        head = ["", "precision", "ours", *peers, "ours ÷ fastest peer", "of the limit"]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for batch in arguments.batches:
            turns = arguments.rounds * (3 if batch == 1 else 1)
            for precision in arguments.precisions:
                found = compare(folder, precision, batch, (PROMPT, NEW), turns, peers, device)
                what = f"{batch} text{'s' * (batch > 1)}, tokens/s"
                lines.append(_row(what, precision, batch * NEW, found, peers, "0f"))
                rate = NEW / statistics.median(found["memory"]) if "memory" in found else 0.0
                print(lines[-1], f"{rate * weight_bytes(precision) / 1e9:.1f} GB/s" if rate else "", flush=True)
        for precision in arguments.precisions:
            found = compare(folder, precision, 1, (LONG, 1), 3 * arguments.rounds, peers, device)
            lines.append(_row(f"first token after {LONG}, per s", precision, 1, found, peers, "2f"))
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{machine()}{_gpu(device)}; medians of {arguments.rounds} rounds, of 3 times as many with one text. Prompts "
        f"of {PROMPT} tokens, {NEW} new ones, greedy; the limit: as many bytes as the weights have, read for each new "
        "token by all cores, or the GPU, and nothing else, in turn.",
    ]
    if device == "cpu":
        write_section("decoding", "Writing with 124M", lines)
    else:
        write_section("decoding-on-a-gpu", "Writing with 124M on a GPU", lines)


def _gpu(device: str) -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if device == "cuda" else ""


def _row(what: str, precision: str, count: int, found: dict[str, list[float]], peers: list[str], form: str) -> str:
    rates = {name: count / statistics.median(seconds) for name, seconds in found.items()}
    fastest = max((name for name in peers if name in rates), key=lambda name: rates[name], default=None)
    ahead = f"**{times(found[fastest], found['ours']):.2f}**" if fastest else ""
    share = f"{times(found['memory'], found['ours']):.0%}" if "memory" in found else ""
    cells = [f"{rates[name]:.{form}}" if name in rates else "–" for name in ("ours", *peers)]
    return "| " + " | ".join([what, precision, *cells, ahead, share]) + " |"


if __name__ == "__main__":
    main()

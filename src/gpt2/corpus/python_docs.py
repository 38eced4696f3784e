"""The embedded corpus: the documentation inside every Python, so that a first run needs no file and no network.

It has two views that share no text. Prose: the language reference's topics and what modules say of themselves.
Questions and answers: what each public class, function and method says of itself. Everything is read from the running
Python's own source files, without importing them, and from a fixed list of its modules that are written in C. So one
Python version gives one corpus, and another version a slightly different one.
"""

import ast
import csv
import functools
import hashlib
import importlib
import inspect
import io
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt2.corpus.document import Document
from gpt2.errors import DataError

EMBEDDED = "python-docs"
"""What it is called as a source."""
QA_TEMPLATE = "Q: {question}\nA: {answer}"
"""How a row of questions and answers becomes text: a table's template."""

# Not documentation of Python: tests, demonstrations, applications, tables of codecs, tools for building Python itself.
_SKIPPED = (
    *("antigravity", "dist-packages", "distutils", "encodings", "ensurepip", "genericpath", "idlelib", "lib-dynload"),
    *("lib2to3", "ntpath", "nturl2path", "pydoc_data", "site-packages", "test", "tests", "this", "turtledemo"),
)
# Written in C, or with members written in C, and safe to import: what they say is found on the objects themselves.
_C_MODULES = (
    *("array", "atexit", "binascii", "builtins", "cmath", "collections", "datetime", "decimal", "errno", "functools"),
    *("gc", "io", "itertools", "marshal", "math", "operator", "os", "select", "signal", "struct", "sys", "time"),
    *("unicodedata", "weakref", "zlib"),
)
_ALIASES = {"posixpath": "os.path"}
_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters and halves of surrogate pairs
_Member = tuple[str, str, str]
"""Kind (class, function, method, attribute), signature or "", and docstring."""


def text_documents() -> list[tuple[str, str]]:
    """The prose, as (name, text): topics of the language reference, then modules, each in the order of names."""
    topics = _topics()
    kept = sorted(_shortest_names(topics))
    prose = [(f"topic {name}", topics[name].strip() + "\n") for name in kept]
    modules = _documentation()[0]
    return prose + [(f"module {name}", f"{name}\n{'*' * len(name)}\n\n{text}\n") for name, text in modules.items()]


def question_answer_rows() -> list[tuple[str, str, str]]:
    """The questions and answers, as (name, question, answer), in the order of names.

    An answer is the signature, where it is known, an empty line, and the docstring.
    """
    rows = []
    for name, (kind, signature, text) in _documentation()[1].items():
        question = {
            "class": f"What is {name}?",
            "function": f"What does {name} do?",
            "method": f"What does the method {name} do?",
            "attribute": f"What does the attribute {name} hold?",
        }[kind]
        rows.append((name, question, f"{name}{signature}\n\n{text}" if signature else text))
    return rows


def origin() -> str:
    """What the corpus is called: python and the version that it comes from."""
    return f"python {platform.python_version()}"


def documents() -> Iterator[Document]:
    """Yield both views, the prose first.

    Raises:
        DataError: this Python was installed without its documentation.
    """
    texts, rows = text_documents(), question_answer_rows()
    if not texts and not rows:
        raise DataError("This Python was installed without its documentation.", "Give a text or CSV file to train on.")
    for name, text in texts:
        yield Document(f"{origin()}: {name}", None, (text,))
    for name, question, answer in rows:
        text = QA_TEMPLATE.format(question=question, answer=answer)
        yield Document(f"{origin()}: {name}", None, (text,))


@functools.cache
def digest() -> tuple[int, str]:
    """Bytes and sha256 of the embedded corpus."""
    found, size = hashlib.sha256(), 0
    for document in documents():
        encoded = document.text.encode() + b"\0"
        found.update(encoded)
        size += len(encoded) - 1
    return size, found.hexdigest()


def as_text() -> bytes:
    """The prose as UTF-8 text, two empty lines between documents."""
    return "\n\n".join(text for _, text in text_documents()).encode()


def as_csv() -> bytes:
    """The questions and answers as a UTF-8 table with the columns name, question and answer."""
    written = io.StringIO(newline="")
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(("name", "question", "answer"))
    rows.writerows(question_answer_rows())
    return written.getvalue().encode()


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return {}
    return topics


@functools.cache
def _documentation() -> tuple[dict[str, str], dict[str, _Member]]:
    """Texts of modules and members by name, sorted; a text that has several names stands under the shortest."""
    modules: dict[str, str] = {}
    members: dict[str, _Member] = {}
    for name, path in _source_files():
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # a template or a broken installation: the rest is enough
            continue
        if text := _fit(ast.get_docstring(tree, clean=False)):
            modules[name] = text
        for member, found in _in_source(tree.body, name, within_class=False):
            members.setdefault(member, found)
    for name in _C_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # zlib and select are left out of some builds
            continue
        if text := _fit(module.__doc__):
            modules.setdefault(name, text)
        for member, found in _in_module(module, name):
            members.setdefault(member, found)
    kept = _shortest_names({name: text for name, (_, _, text) in members.items()} | modules)
    return (
        {name: modules[name] for name in sorted(modules) if name in kept},
        {name: members[name] for name in sorted(members) if name in kept and name not in modules},
    )


def _shortest_names(texts: dict[str, str]) -> set[str]:
    """Of the names of each text, whatever its white space, the one with the fewest dots, then letters."""
    first: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (name.count("."), len(name), name)):
        first.setdefault(" ".join(texts[name].split()), name)
    return set(first.values())


def _fit(docstring: Any) -> str:
    """A docstring without its indentation, or "" if it is none, says nothing, or holds unfit characters."""
    if not isinstance(docstring, str):
        return ""
    text = inspect.cleandoc(docstring.replace("\r\n", "\n")).strip()
    return "" if len(text.split()) < 2 or _UNFIT.search(text) else text


def _source_files() -> Iterator[tuple[str, Path]]:
    """Yield the public modules of the standard library, in the order of their names, with their files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, Path]] = []
    pending = [root]
    while pending:
        for path in pending.pop().iterdir() if root.is_dir() else ():
            if path.stem in _SKIPPED or (path.stem.startswith("_") and path.name != "__init__.py"):
                continue
            if path.suffix == ".py":
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found.append((_ALIASES.get(name, name), path))
            elif path.name.isidentifier() and (path / "__init__.py").is_file():
                pending.append(path)
    return iter(sorted((name, path) for name, path in found if name))


def _in_source(body: Iterable[ast.stmt], owner: str, within_class: bool) -> Iterator[tuple[str, _Member]]:
    """Yield the documented public classes and functions of a module or class body, and those within its classes."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = f"{owner}.{node.name}"
        text = _fit(ast.get_docstring(node, clean=False))
        if isinstance(node, ast.ClassDef):
            if text:
                yield name, ("class", _class_signature(node), text)
            yield from _in_source(node.body, name, within_class=True)
        elif text:
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if any(word.endswith((".setter", ".deleter", "overload")) for word in decorators):
                continue
            if any(word.endswith("property") for word in decorators):
                yield name, ("attribute", "", text)
                continue
            bound = within_class and "staticmethod" not in decorators
            yield name, ("method" if within_class else "function", _signature(node, bound), text)


def _class_signature(node: ast.ClassDef) -> str:
    """How the class is called, if it says so itself."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _signature(member, bound=True).removesuffix(" -> None")
    return ""


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    """Parameters as in the source, without self or cls, and what is returned, where that is annotated."""
    arguments = node.args
    if bound and arguments.posonlyargs:
        del arguments.posonlyargs[0]
    elif bound and arguments.args:
        del arguments.args[0]
    # Defaults belong to the last parameters: one too many was that of the parameter that is gone.
    del arguments.defaults[: max(len(arguments.defaults) - len(arguments.args) - len(arguments.posonlyargs), 0)]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returns}"


def _in_module(module: Any, owner: str) -> Iterator[tuple[str, _Member]]:
    """Yield the documented public classes and functions of a module that are written in C."""
    for name, value in sorted(vars(module).items()):
        value = vars(module).get(f"__{name}__", value)  # sys.excepthook and its like may have been replaced
        public = f"{'' if owner == 'builtins' else owner + '.'}{name}"
        # What others put there has another home; so have names that a module only borrows.
        home = getattr(value, "__module__", None) or ""
        ours = home == owner or home.startswith("_") or (owner == "os" and home in ("posix", "nt"))
        if name.startswith("_") or not ours or not (inspect.isclass(value) or inspect.isbuiltin(value)):
            continue
        if text := _fit(value.__doc__):
            yield public, ("class" if inspect.isclass(value) else "function", _live_signature(value, False), text)
        if inspect.isclass(value):
            for part, member in sorted(vars(value).items()):
                text = "" if part.startswith("_") else _fit(getattr(member, "__doc__", None))
                if text and (inspect.ismethoddescriptor(member) or isinstance(member, classmethod | staticmethod)):
                    bound = inspect.ismethoddescriptor(member) and not isinstance(member, classmethod | staticmethod)
                    yield f"{public}.{part}", ("method", _live_signature(member, bound), text)
                elif text and inspect.isgetsetdescriptor(member):
                    yield f"{public}.{part}", ("attribute", "", text)


def _live_signature(value: Any, bound: bool) -> str:
    """The signature that an object of C tells, if it does and if it is the same in every process."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = list(signature.parameters.values())[int(bound) :]
    told = str(signature.replace(parameters=parameters))
    return "" if " object" in told or " at 0x" in told or told == "(*args, **kwargs)" else told

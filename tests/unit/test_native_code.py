"""What was compiled is kept, and used only as it was made: what is damaged is compiled again."""

import shutil
from pathlib import Path

import pytest

from gpt2 import native_code
from gpt2.native_code import NativeCodeError, load

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "seven.cpp"
    file.write_text('extern "C" int seven() { return 7; }\n')
    return file


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The places that something was compiled to."""
    places: list[Path] = []
    made = native_code._compile

    def noted(command: list[str], source: Path, path: Path) -> None:
        places.append(path)
        made(command, source, path)

    monkeypatch.setattr(native_code, "_compile", noted)
    return places


def test_it_is_compiled_once(source: Path, compiled: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert [load(source, announcement="Compiling seven").seven() for _ in range(2)] == [7, 7]
    assert len(compiled) == 1
    assert capsys.readouterr().err.count("Compiling seven") == 1
    load(source, "-O1")
    source.write_text('extern "C" int seven() { return 8; }\n')
    load(source)
    assert len(set(compiled)) == len(compiled) == 3  # other options, another file


@pytest.mark.parametrize("damage", ["cut short", "empty", "a bit", "a folder"])
def test_what_is_damaged_is_compiled_again(source: Path, compiled: list[Path], damage: str) -> None:
    load(source)
    (path,) = compiled
    whole = path.read_bytes()
    path.unlink()  # this process has it in its memory
    if damage == "a folder":
        (path / "in it").mkdir(parents=True)
    else:
        flipped = bytes([*whole[:5_000], whole[5_000] ^ 1, *whole[5_001:]])
        path.write_bytes({"cut short": whole[:9_000], "empty": b"", "a bit": flipped}[damage])
    assert load(source).seven() == 7
    assert len(compiled) == 2
    assert path.read_bytes() == whole
    assert sorted(file.suffix for file in native_code._folder().iterdir()) == [".lock", ".so"]


def test_a_compiler_may_have_arguments(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{native_code._compiler()[0]} -O1")
    assert load(source).seven() == 7


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CXX", "/nope", "No such file or directory: /nope .*CXX names the compiler"),
        ("CXX", "/bin/false", r"the C\+\+ compiler /bin/false failed: 1"),
        ("XDG_CACHE_HOME", "/proc/nope", "/proc/nope.* XDG_CACHE_HOME, else ~/.cache"),
    ],
)
def test_why_not_is_said_with_what_to_look_at(
    source: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(NativeCodeError, match=said):
        load(source)


def test_a_compilers_first_line_is_enough(source: Path) -> None:
    source.write_text("int seven( { return 7; }\nint eight( { }\n")
    with pytest.raises(NativeCodeError) as refused:
        load(source)
    assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_read(
    source: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(source)

    def refuse(*given: object, **more: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "chmod", "touch"):
        monkeypatch.setattr(native_code.Path, name, refuse)
    monkeypatch.setattr(native_code, "alone", refuse)
    assert load(source).seven() == 7
    assert len(compiled) == 1

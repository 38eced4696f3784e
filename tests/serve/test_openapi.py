"""The OpenAPI document is true: what fits it, and what does not, gets an answer that it describes, and never a 5xx."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2.generation.engine import Engine
from tests.serve.fake import BYTES
from tests.serve.harness import SECONDS, Running, serving, until
from tests.serve.tiny import CONTEXT, tiny_model

KEY = "a key that is long enough"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,"
    "allow_header_conformance,ignored_auth"
)
"""All but positive_data_acceptance: a text that is too long for the context fits the schema."""
REFUSALS = "[checks]\nnegative_data_rejection.expected-statuses = [400, 401, 404, 405, 413, 415, 431]\n"
"""What may be answered to a request that does not fit the document."""


@pytest.fixture
def running() -> Iterator[Running]:
    with serving(Engine(tiny_model(), BYTES, slots=4), key=KEY, context_length=CONTEXT) as made:
        yield made


def responses(running: Running, kind: str = "") -> int:
    """How many responses with a status that begins like this were given."""
    (family,) = running.service.metrics.requests.collect()
    counted = (one for one in family.samples if one.name.endswith("_total") and one.labels["status"].startswith(kind))
    return int(sum(one.value for one in counted))


def explore(running: Running, folder: Path, phases: str, examples: int) -> None:
    """Have schemathesis ask, in keeping with the document and against it."""
    (folder / "schemathesis.toml").write_text(REFUSALS)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{running.url}/openapi.json"),
            *("--mode", "all", "--phases", phases, "--checks", CHECKS, "--seed", "4"),
            *("--max-examples", str(examples), "--header", f"Authorization: Bearer {KEY}", "--no-color"),
            *("--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"),
            *("--request-timeout", str(SECONDS)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-1000:]
    assert responses(running, "5") == 0
    assert responses(running, "2") > 10
    until(lambda: running.service.worker.outstanding == 0)


def test_whatever_is_asked_is_answered_as_documented(running: Running, tmp_path: Path) -> None:
    explore(running, tmp_path, "examples,fuzzing", 15)
    assert responses(running) > 40


@pytest.mark.slow
def test_five_thousand_times(running: Running, tmp_path: Path) -> None:
    explore(running, tmp_path, "examples,coverage,fuzzing", 1500)
    assert responses(running) >= 5000
    print(f"{responses(running):,} responses, {responses(running, '2'):,} of them 2xx, {responses(running, '5')} 5xx")

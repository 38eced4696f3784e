"""What goes wrong, in the shape that OpenAI's clients read. No path, address or line of code leaves the server."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gpt2.errors import UserError
from gpt2.serve.responses import ErrorBody, ErrorResponse
from gpt2.serve.schemas import FIELDS

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ROLES = frozenset({"system", "developer", "user", "assistant"})
LONGEST_MESSAGE = 300
"""Characters of a message that is made of what a client sent."""
MOST_MISTAKES = 100
"""In one body, that are looked at one by one."""
LONGEST_SHOWN = 40
"""Characters of a wrong value that are repeated."""
KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}
"""pydantic's word for a mistake → what a field can be."""
BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be finite",
    "literal_error": "must be {expected}",
    "none_required": "must be null",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "string_pattern_mismatch": "must have token ids as names",
    "union_tag_invalid": "must have one of the roles {expected_tags}",
}
"""pydantic's word → what is allowed."""
LACKS = {
    "missing": "is missing",
    "too_short": "is empty",
    "string_too_short": "is empty",
    "union_tag_not_found": "has no role",
}
"""pydantic's word → what is wrong, where there is no value to tell."""


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: for the client's user: what is wrong and what to do.
        param: the field that is to blame.
        code: a word for programs.
        headers: of the response, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The response's body, JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = ErrorBody(message=self.message, type=kind, param=self.param, code=self.code)
        return ErrorResponse(error=error).model_dump_json().encode()


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body: its field, what is allowed there, and the beginning of what came."""
    if error.error_count() > MOST_MISTAKES:
        return ApiError(400, f"The body has more than {MOST_MISTAKES} mistakes.", code="invalid_value")
    problems: Any = error.errors(include_url=False)
    problem = max(problems, key=_nearness)
    field = ".".join(_fields(problem["loc"]))
    if problem["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {problem['ctx']['error']}.", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        field = ".".join([*_fields(problem["loc"][:-1]), str(problem["loc"][-1])[:100]])
        return ApiError(400, f"There is no field {field!r}.", field, "unknown_field")
    if problem["type"] == "value_error":  # ours, which names the fields
        message = problem["msg"].removeprefix("Value error, ")
    else:
        message = f"{field or 'The body'} {_wrong(problem, problems)}"
    return ApiError(400, f"{message[:LONGEST_MESSAGE]}.", field or None, "invalid_value")


def _wrong(problem: Any, problems: Sequence[Any]) -> str:
    """What is wrong with a field, behind its name: what is allowed, and what came."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in LACKS:
        return LACKS[kind]
    if kind in KINDS:
        path = _fields(problem["loc"])
        others = dict.fromkeys(
            KINDS[one["type"]] for one in problems if one["type"] in KINDS and _fields(one["loc"]) == path
        )
        allowed = f"must be {' or '.join(others)}"
    elif kind in BOUNDS:
        allowed = BOUNDS[kind].format(
            **{name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
        )
    else:  # a word that we do not know yet
        return f"is wrong: {problem['msg']}"
    if kind == "too_long" and not context["max_length"]:
        return "must be empty, or left out: there is nothing of the kind here"
    if kind in ("too_long", "string_too_long"):
        return f"{allowed}, not {len(given):,}"
    return f"{allowed}, not {_shown(context.get('tag', given))}"


def _shown(value: object) -> str:
    """A value as JSON; of a long one its beginning, of what holds others its kind and size."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"{json.dumps(value[:LONGEST_SHOWN], ensure_ascii=False)} …"
    return json.dumps(value, ensure_ascii=False)


def _nearness(problem: Any) -> tuple[bool, int, int]:
    """Where a field can be of several types, one problem is told for each: how near its type is to what was meant.

    It is nearest where the type was right and only the value was not; else where it was right to the greatest depth,
    and furthest along a list.
    """
    path = problem["loc"]
    return not problem["type"].endswith("_type"), len(path), path[-1] if path and isinstance(path[-1], int) else 0


def _fields(path: Sequence[str | int]) -> list[str]:
    """A pydantic path without the names of types and roles that it passes through."""
    return [
        str(part)
        for depth, part in enumerate(path)
        if isinstance(part, int) or (part in FIELDS and not (depth and part in ROLES))
    ]


def describe(error: BaseException) -> str:
    """An exception without its words, which may hold what a user wrote: its kind, and where it arose."""
    if isinstance(error, UserError):
        return error.what
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} in {' > '.join(places[-6:])}"

"""The routes: what OpenAI's clients ask for, how the server is, and the page."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from gpt2 import __version__
from gpt2.serve.asking import for_chat, for_completion, for_look
from gpt2.serve.errors import ApiError
from gpt2.serve.gate import Gate
from gpt2.serve.page import PAGE
from gpt2.serve.responses import (
    ChatChunk,
    ChatCompletion,
    Completion,
    ErrorResponse,
    Health,
    Look,
    ModelCard,
    ModelList,
)
from gpt2.serve.schemas import ChatRequest, CompletionRequest, LookRequest, Sampled
from gpt2.serve.service import Service, as_json
from gpt2.serve.writers import ChatWriter, CompletionWriter

STATUSES = (400, 401, 403, 404, 413, 415, 429, 431, 500, 503)
"""Other than 200, of the routes that need a key."""
BODIES = (CompletionRequest, ChatRequest, LookRequest)


def build_app(service: Service, key: str | None, hosts: Collection[str]) -> ASGIApp:
    """The whole application, its door included.

    Args:
        service: what the routes share.
        key: what clients must know; None: nothing.
        hosts: names that the server is called by, besides localhost and IP addresses.
    """
    app = FastAPI(title="gpt2", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_routes(app, service)
    _add_page(app)
    app.openapi = lambda: _document(app, service.model.id, key is not None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    return Gate(app, key, hosts, service.limits, service.metrics, lambda: service.draining)


def _add_routes(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in STATUSES}

    @app.post(
        "/v1/completions",
        responses={**errors, **_answered(Completion, Completion)},
        openapi_extra=_takes(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Continue a text."""
        body = await service.read(request, CompletionRequest)
        asked = await for_completion(body, service.model)
        writer = CompletionWriter(asked, service.model, body.logprobs is not None, _wants_usage(body))
        return await service.answer(request, asked, writer, bool(body.stream))

    @app.post(
        "/v1/chat/completions",
        responses={**errors, **_answered(ChatCompletion, ChatChunk)},
        openapi_extra=_takes(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a message."""
        body = await service.read(request, ChatRequest)
        asked = await for_chat(body, service.model)
        writer = ChatWriter(asked, service.model, bool(body.logprobs), _wants_usage(body))
        return await service.answer(request, asked, writer, bool(body.stream))

    @app.post("/v1/look", responses={**errors, 200: {"model": Look}}, openapi_extra=_takes(LookRequest))
    async def look(request: Request) -> Response:
        """What goes on in the model at a text: for the page. Not OpenAI's."""
        body = await service.read(request, LookRequest)
        ids, written = await for_look(body, service.model)
        return await service.look(request, body, ids, written)

    @app.get("/v1/models", response_model=ModelList, responses=errors)
    async def models() -> Response:
        """The models that are served: one."""
        return as_json(ModelList(data=[service.card()]))

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=errors)
    async def model(name: str) -> Response:
        """One model."""
        service.check_model(name)
        return as_json(service.card())

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health, responses={503: {"model": Health}, 400: errors[400], 431: errors[431]})
    async def health() -> Response:
        """Whether requests are answered; 503 while the server drains, so that a balancer turns elsewhere."""
        status = service.status
        return as_json(status, 200 if status.status == "ok" else 503)

    @app.get("/metrics", responses={**errors, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    def route(path: str, content: bytes, media_type: str) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def file() -> Response:
            return Response(content, media_type=media_type)

    for path, file in PAGE.items():
        route(path, file.content(), file.media_type)


def _wants_usage(body: Sampled) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _takes(schema: type[BaseModel]) -> dict[str, Any]:
    """The body of a route, for the OpenAPI document: it is read by hand, as strictly as the schema says."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def _answered(whole: type[BaseModel], piece: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that can stream, for the OpenAPI document."""
    says = f"JSON of a {piece.__name__}; [DONE] after the last"
    event = {"type": "object", "properties": {"data": {"type": "string", "description": says}}, "required": ["data"]}
    return {200: {"model": whole, "content": {"text/event-stream": {"itemSchema": event}}}}


def _document(app: FastAPI, model: str, with_key: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with this model."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas: list[tuple[type[BaseModel], Any]] = [(schema, "validation") for schema in BODIES]
        _, definitions = models_json_schema(schemas, ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {})
        for schema in BODIES:
            definitions["$defs"][schema.__name__]["properties"]["model"]["enum"] = [model]
        components.setdefault("schemas", {}).update(definitions["$defs"])
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        if with_key:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


async def _api_error(request: Request, error: Any) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


async def _http_error(request: Request, error: Any) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is no such path.", 405: "This path does not know this method."}
    shown = ApiError(
        error.status_code, words.get(error.status_code, "The request cannot be read."), headers=error.headers
    )
    return await _api_error(request, shown)


async def _failure(request: Request, error: Any) -> Response:
    return await _api_error(request, ApiError(500, "The server failed."))

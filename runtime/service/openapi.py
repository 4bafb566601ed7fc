"""The interface as OpenAPI 3.1, made from the same tables that requests are read by."""

from typing import Any

from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.parameters import MIN_CONFIDENCE, PARAMETERS
from captionlite.runtime.service.uploads import FIELD

_ERRORS = {
    400: "The request does not follow this description: no photograph, broken multipart, JSON or base64, an unknown "
    "or ill-formed option.",
    401: "No token, or a wrong one.",
    403: "A page of another site asked.",
    404: "There is nothing at this path.",
    405: "This path has no such method.",
    408: "The body did not come in time.",
    411: "There is no body.",
    413: "Too many bytes, or too many pixels.",
    415: "A type of body that is not taken, or a compressed one.",
    421: "The Host header names something else.",
    422: "A photograph that cannot be read, or options that contradict each other or the bundle.",
    500: "A fault of the service.",
    503: "Overloaded, or about to stop: come again after the seconds in Retry-After.",
    504: "No caption in time.",
}
_EVERYWHERE = (401, 403, 421, 500, 503)

_CAPTION = {
    "caption": "a dog runs on the grass",
    "tokens": [4, 5, 6, 7, 8, 10, 3],
    "logprob": -0.71,
    "timings_ms": {"decode": 1.2, "step": 0.17, "image": 2.1, "encode": 1.9, "total": 5.2},
    "confidence": 0.32,
    "maybe": [{"label": "espresso", "probability": 0.71}],
}
_TOKENS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}


def describe(limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The document for a service with these limits; `secured`: with a token."""
    from captionlite.runtime import __version__

    options = {name: parameter.schema() | {"description": parameter.about} for name, parameter in PARAMETERS.items()}
    file = {"type": "string", "contentMediaType": "image/*", "description": _file(limits)}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "captionlite",
            "version": __version__,
            "description": "Captions for photographs. Every error is an object `error` that says what, found, "
            "expected and next.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/caption": {
                "post": {
                    "operationId": "caption",
                    "summary": "Caption one photograph.",
                    "description": "The photograph in one of three ways. Options stand in the query, beside it in the "
                    "form or in the JSON, each in one place only.",
                    "parameters": [
                        {
                            "name": name,
                            "in": "query",
                            "required": False,
                            "description": parameter.about,
                            "schema": parameter.schema(),
                            "example": parameter.example,
                        }
                        for name, parameter in PARAMETERS.items()
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "multipart/form-data": {"schema": _form(file, options)},
                            "image/*": {"schema": file},
                            "application/octet-stream": {"schema": file},
                            "application/json": {
                                "schema": {"$ref": "#/components/schemas/CaptionRequest"},
                                "example": {FIELD: "/9j/4AAQSkZJRg==", "beams": 3, "no_repeat_ngram": 3},
                            },
                        },
                    },
                    "responses": {
                        "200": _answer("The caption.", "Caption", _CAPTION),
                        **_errors(400, 408, 411, 413, 415, 422, 504, *_EVERYWHERE),
                    },
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether the graphs are loaded and a worker is there. Needs no token.",
                    "security": [],
                    "responses": {
                        "200": _answer("All is well.", "Health", _health("ok", 2)),
                        "503": {
                            "description": "No worker is left, or the service has too many connections.",
                            "content": _json(
                                {
                                    "anyOf": [
                                        {"$ref": "#/components/schemas/Health"},
                                        {"$ref": "#/components/schemas/Error"},
                                    ]
                                },
                                _health("unavailable", 0),
                            ),
                        },
                        **_errors(403, 421, 500),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters and histograms in Prometheus' text format.",
                    "responses": {
                        "200": {
                            "description": "The figures.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_errors(*_EVERYWHERE),
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This description.",
                    "responses": {
                        "200": {"description": "OpenAPI 3.1.", "content": _json({"type": "object"})},
                        **_errors(*_EVERYWHERE),
                    },
                }
            },
        },
        "components": {
            "schemas": _schemas(options, limits),
            "responses": {str(status): _error(status) for status in _ERRORS},
        },
    }
    if secured:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _file(limits: Limits) -> str:
    return (
        f"A JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file of at most {limits.upload_bytes:,} bytes and "
        f"{limits.pixels:,} pixels."
    )


def _form(file: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: file, **options},
        "additionalProperties": False,
    }


def _schemas(options: dict[str, Any], limits: Limits) -> dict[str, Any]:
    encoded = {"type": "string", "contentEncoding": "base64", "description": _file(limits), "minLength": 4}
    texts: dict[str, Any] = {"type": ["string", "null"]}
    return {
        "CaptionRequest": {
            "type": "object",
            "required": [FIELD],
            "properties": {FIELD: encoded, **options},
            "additionalProperties": False,
        },
        "Caption": {
            "type": "object",
            "required": ["caption", "tokens", "logprob", "timings_ms"],
            "properties": {
                "caption": {"type": "string"},
                "tokens": {**_TOKENS, "description": "Ids in the bundle's vocabulary, the end token included."},
                "logprob": {"type": "number", "description": "Mean natural logarithm of the tokens' probabilities."},
                "timings_ms": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
                "confidence": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "description": "Calibrated chance that the caption fits; only of bundles that have it.",
                },
                "maybe": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Label"},
                    "minItems": 1,
                    "description": "What the photograph may show besides, by the encoder's ImageNet classifier; there "
                    "when the confidence is low and the classifier is sure enough.",
                },
                "sure": {"const": False, "description": f"There when the confidence is below {MIN_CONFIDENCE}."},
                "alternatives": {"type": "array", "items": {"$ref": "#/components/schemas/Alternative"}},
            },
            "additionalProperties": False,
        },
        "Alternative": {
            "type": "object",
            "required": ["caption", "tokens", "logprob", "score"],
            "properties": {
                "caption": {"type": "string"},
                "tokens": _TOKENS,
                "logprob": {"type": "number"},
                "score": {"type": "number", "description": "What hypotheses are ranked by."},
            },
            "additionalProperties": False,
        },
        "Label": {
            "type": "object",
            "required": ["label", "probability"],
            "properties": {
                "label": {"type": "string"},
                "probability": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "additionalProperties": False,
        },
        "Health": {
            "type": "object",
            "required": ["status", "workers", "busy", "waiting"],
            "properties": {
                "status": {"enum": ["ok", "unavailable"]},
                "workers": {"type": "integer"},
                "busy": {"type": "integer"},
                "waiting": {"type": "integer"},
            },
        },
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["status", "title", "what", "found", "expected", "next"],
                    "properties": {
                        "status": {"type": "integer"},
                        "title": {"type": "string"},
                        "what": {"type": "string"},
                        "found": texts,
                        "expected": texts,
                        "next": {"type": "string"},
                    },
                    "additionalProperties": False,
                }
            },
            "additionalProperties": False,
        },
    }


def _health(status: str, workers: int) -> dict[str, Any]:
    return {"status": status, "workers": workers, "busy": 0, "waiting": 0}


def _json(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


def _answer(about: str, schema: str, example: Any) -> dict[str, Any]:
    return {"description": about, "content": _json({"$ref": f"#/components/schemas/{schema}"}, example)}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(set(statuses))}


def _error(status: int) -> dict[str, Any]:
    described = _answer(_ERRORS[status], "Error", None)
    if status == 503:
        described["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}}
    return described

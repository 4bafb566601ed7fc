"""The description is valid OpenAPI, has every route and error there is, and what it says holds for real answers."""

from base64 import b64encode
from typing import Any

import pytest
import serving
from serving import Client, form, png

from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.service.parameters import MIN_CONFIDENCE, PARAMETERS

validator = pytest.importorskip("openapi_spec_validator")


@pytest.fixture(scope="module")
def document(service: Client) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/openapi.json").body
    return found


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Raises ValidationError when the value is not as the schema says."""
    import jsonschema

    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validator.validate(document)


def test_it_has_the_routes_that_there_are(document: dict[str, Any], service: Client) -> None:
    for path, methods in document["paths"].items():
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            status = service.ask(method, path).status
            assert (status != 405) == (method.lower() in methods), (method, path)
            assert status != 404


def test_every_route_of_the_app_is_described(document: dict[str, Any]) -> None:
    with serving.serve_here(serving.Gate()) as client:
        rows = client.get("/metrics").body  # nothing else tells paths from others
        assert rows
        for path in document["paths"]:
            client.ask("GET", path)
        assert 'path="other"' not in client.get("/metrics").body


def test_every_option_is_one_of_decoding_and_described(document: dict[str, Any]) -> None:
    names = {parameter["name"] for parameter in document["paths"]["/v1/caption"]["post"]["parameters"]}
    assert names == set(PARAMETERS)
    assert names - {MIN_CONFIDENCE} == set(DecodingOptions.__dataclass_fields__)


def test_examples_are_what_schemas_say(document: dict[str, Any]) -> None:
    seen = 0

    def walk(node: Any) -> None:
        nonlocal seen
        if isinstance(node, dict):
            if "example" in node and "schema" in node:
                check(document, node["schema"], node["example"])
                seen += 1
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)
    assert seen > len(PARAMETERS) + 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_example_of_an_option_can_be_read(name: str) -> None:
    from captionlite.runtime.service.parameters import read_texts, read_values

    example = PARAMETERS[name].example
    texts = [(name, str(one)) for one in (example if isinstance(example, list) else [example])]
    expected = tuple(example) if isinstance(example, list) else example
    assert read_texts(texts, "query")[name] == expected
    assert read_values({name: example}, "JSON")[name] == expected


def answers(service: Client) -> list[tuple[str, str, Any]]:
    image = png()
    empty, headers = form(("beams", b"3", None))
    return [
        ("/v1/caption", "post", service.caption(image, "?beams=3&n_best=3")),
        ("/v1/caption", "post", service.caption(image)),
        ("/v1/caption", "post", service.caption(image[:40])),
        ("/v1/caption", "post", service.caption(image, "?beams=x")),
        ("/v1/caption", "post", service.caption(image, kind="text/plain")),
        ("/v1/caption", "post", service.caption(bytes(11_000_000))),
        ("/v1/caption", "post", service.ask("POST", "/v1/caption", empty, headers)),
        ("/v1/caption", "post", service.caption(image, Host="evil.example")),
        ("/v1/caption", "post", service.caption(image, Origin="http://evil.example")),
        ("/healthz", "get", service.get("/healthz")),
        ("/healthz", "get", service.get("/healthz", Host="evil.example")),
        ("/openapi.json", "get", service.get("/openapi.json")),
    ]


def test_real_answers_are_as_described(document: dict[str, Any], service: Client) -> None:
    statuses = set()
    for path, method, reply in answers(service):
        described = document["paths"][path][method]["responses"][str(reply.status)]
        if "$ref" in described:
            described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
        check(document, described["content"]["application/json"]["schema"], reply.body)
        statuses.add(reply.status)
    assert statuses == {200, 400, 403, 413, 415, 421, 422}


def test_a_real_request_is_as_described(document: dict[str, Any]) -> None:
    import jsonschema

    schema = {"$ref": "#/components/schemas/CaptionRequest"}
    check(document, schema, {"image": b64encode(png()).decode(), "beams": 3, "suppress": ["dog"]})
    for wrong in ({}, {"image": ""}, {"image": "AAAA", "beams": 9}, {"image": "AAAA", "nothing": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check(document, schema, wrong)

"""`captionlite serve` as its clients see it: captions by all three ways, options, errors, figures, and its end."""

import json
import socket
import subprocess
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import serving
from serving import Client, form, png

from captionlite.runtime import Captioner, DecodingOptions


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    times = record["timings_ms"]
    assert set(times) == {"image", "encode", "decode", "step", "total"}
    return {name: value for name, value in record.items() if name != "timings_ms"}


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory)


def test_all_three_ways_give_what_caption_json_gives(service: Client, toy_directory: Path, tmp_path: Path) -> None:
    image = png()
    (tmp_path / "photo.png").write_bytes(image)
    command = [sys.executable, "-m", "captionlite.runtime.cli", "caption", "--bundle", str(toy_directory), "--json"]
    command += [str(tmp_path / "photo.png"), "--beams", "3", "--n-best", "2"]
    expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    del expected["image"]
    body, headers = form(("image", image, "photo.png"), ("beams", b"3", None), ("n_best", b"2", None))
    encoded = json.dumps({"image": b64encode(image).decode(), "beams": 3, "n_best": 2})
    replies = [
        service.ask("POST", "/v1/caption", body, headers),
        service.caption(image, "?beams=3&n_best=2"),
        service.caption(image, "?beams=3&n_best=2", "application/octet-stream"),
        service.ask("POST", "/v1/caption?n_best=2", json.dumps({"image": b64encode(image).decode(), "beams": 3}),
                    {"Content-Type": "application/json; charset=utf-8"}),
        service.ask("POST", "/v1/caption", encoded, {"Content-Type": "Application/JSON"}),
        service.ask("POST", "/v1/caption", json.dumps(
            {"image": "data:image/png;base64," + b64encode(image).decode(), "beams": 3, "n_best": 2}
        ), {"Content-Type": "application/json"}),
    ]  # fmt: skip
    for reply in replies:
        assert reply.status == 200, reply.body
        assert without_times(reply.body) == without_times(expected)


def test_a_chunked_body_is_read_too(service: Client, captioner: Captioner) -> None:
    image = png(5)
    pieces = iter([image[:10], image[10:11], image[11:]])
    reply = service.ask("POST", "/v1/caption", pieces, {"Content-Type": "image/png"}, encode_chunked=True)
    assert (reply.status, reply.body["caption"]) == (200, captioner.caption(image).text)


def test_many_at_once_each_get_their_own_caption(service: Client, captioner: Captioner) -> None:
    images = [png(seed) for seed in range(12)]
    expected = [captioner.caption(image).tokens for image in images]
    assert len(set(expected)) > 3
    with ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            replies = list(threads.map(service.caption, images))
            assert [tuple(reply.body["tokens"]) for reply in replies] == expected


def test_one_connection_serves_many_requests(service: Client) -> None:
    connection = service.connect()
    first: Any = None
    for _ in range(3):
        connection.request("POST", "/v1/caption", png(), {"Content-Type": "image/png"})
        assert serving.read_reply(connection.getresponse()).status == 200
        first = first or connection.sock
        assert connection.sock is first
    connection.close()


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("?beams=0", 400, "'0'"),
        ("?beams=9", 400, "'9'"),
        ("?beams=three", 400, "'three'"),
        ("?beams=1.5", 400, "'1.5'"),
        ("?beams=2&beams=3", 400, None),
        ("?temperature=nan", 400, "nan"),
        ("?temperature=inf", 400, "inf"),
        ("?beam=3", 400, "'beam'"),
        ("?prefix=" + "a" * 201, 400, "'aaa"),
        ("?prefix=%ff", 400, "'utf-8'"),
        ("?&&;", 400, "bad query"),
        ("?suppress=dog" * 1 + "&suppress=dog" * 16, 400, "17 entries"),
        ("?x=" + "a" * 5000, 400, "5,002 bytes"),
        ("?n_best=2", 422, "n_best"),
        ("?top_k=3", 422, "top_k"),
        ("?suppress=zebra", 422, "zebra"),
        ("?passes=2", 422, "masked_lm"),
        ("?max_length=999", 422, "max_length"),
        ("?min_confidence=0.5", 422, "no calibrated confidence"),
        ("?suppress=" + "&suppress=".join(["a", "dog", "runs", "on", "the", "red", "grass", "fast"]) + "&min_length=1",
         422, "no token"),
    ],
)  # fmt: skip
def test_options_that_are_refused(service: Client, query: str, status: int, field: str | None) -> None:
    reply = service.caption(png(), query)
    assert reply.status == status, reply.body
    if field is None:
        assert "twice" in reply.error["what"]
    else:
        assert field in reply.error["found"]


def test_options_are_followed(service: Client, captioner: Captioner) -> None:
    image = png(8)
    query = "?temperature=1.5&seed=7&best_of=3&suppress=dog&suppress=red&no_repeat_ngram=2&prefix=a"
    options = DecodingOptions(
        temperature=1.5, seed=7, best_of=3, suppress=("dog", "red"), no_repeat_ngram=2, prefix="a"
    )
    assert tuple(service.caption(image, query).body["tokens"]) == captioner.caption(image, options).tokens


def test_an_option_in_two_places_is_refused(service: Client) -> None:
    body, headers = form(("image", png(), "x"), ("beams", b"3", None))
    reply = service.ask("POST", "/v1/caption?beams=2", body, headers)
    assert reply.status == 400
    assert "in the query and in the body" in reply.error["what"]


def test_other_paths_and_methods(service: Client) -> None:
    assert service.get("/nothing").error["status"] == 404
    assert service.get("/v1/caption/").error["status"] == 404
    refused = service.get("/v1/caption")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert refused.error["expected"] == "POST"
    assert service.ask("DELETE", "/healthz").error["status"] == 405
    assert service.ask("POST", "/nothing", b"x" * 300_000).error["status"] == 404
    assert service.ask("BREW", "/v1/caption").error["status"] == 405


def test_health_says_ok(service: Client) -> None:
    reply = service.get("/healthz")
    assert (reply.status, reply.body["status"], reply.body["workers"]) == (200, "ok", 2)


def test_metrics_count_what_was_asked(service: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def figures() -> dict[tuple[str, ...], float]:
        text = service.get("/metrics").body
        rows = [row for family in text_string_to_metric_families(text) for row in family.samples]
        return {(row.name, *row.labels.values()): row.value for row in rows}

    before = figures()
    service.caption(png())
    service.caption(b"no image")
    service.get("/secret-path")
    after = figures()

    def grown(*key: str) -> float:
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("captionlite_captions_total") == 1
    assert grown("captionlite_requests_total", "/v1/caption", "200") == 1
    assert grown("captionlite_requests_total", "/v1/caption", "422") == 1
    assert grown("captionlite_requests_total", "other", "404") == 1
    for stage in ("read", "wait", "image", "encode", "decode", "total"):
        assert grown("captionlite_stage_seconds_count", stage) == 1
    assert after[("captionlite_requests_in_flight",)] == 1  # this one
    assert after[("captionlite_queue_depth",)] == 0
    assert after[("captionlite_held_bytes",)] == 0
    assert after[("captionlite_workers_alive",)] == 2
    assert after[("process_resident_memory_bytes",)] > 10**7
    assert any(key[0] == "captionlite_bundle_info" and "toy" in key for key in after)
    assert "secret-path" not in service.get("/metrics").body


def test_sigterm_lets_a_request_in_flight_finish(toy_directory: Path) -> None:
    image = png()
    with serving.serve(toy_directory, "--workers", "1") as client:
        assert client.process is not None
        with socket.create_connection((client.host, client.port), 60) as connection:
            head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n"
            connection.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode() + image[:20])
            client.await_metric("captionlite_requests_in_flight", 2)  # and the one that asks
            client.process.terminate()

            def refuses() -> bool:
                try:
                    socket.create_connection((client.host, client.port), 1).close()
                except OSError:
                    return True
                return False

            serving.until(refuses, "the port to close")
            connection.sendall(image[20:])
            with connection.makefile("rb") as answers:
                answer = answers.read()  # to the end, because the service closes
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"caption"' in answer
        assert client.process.wait(60) == 0


def test_ctrl_c_with_nothing_to_do_ends_with_0(toy_directory: Path) -> None:
    import signal

    with serving.serve(toy_directory) as client:
        assert client.process is not None
        client.process.send_signal(signal.SIGINT)
        assert client.process.wait(60) == 0
        assert client.process.stderr is not None
        assert "Traceback" not in client.process.stderr.read()


def test_defaults_of_the_command_line_hold_for_requests_that_bring_none(
    toy_directory: Path, captioner: Captioner
) -> None:
    image = png(9)
    with serving.serve(toy_directory, "--beams", "3", "--n-best", "2", "--max-length", "4") as client:
        expected = captioner.caption(image, DecodingOptions(beams=3, n_best=2, max_length=4))
        reply = client.caption(image)
        assert tuple(reply.body["tokens"]) == expected.tokens
        assert [other["caption"] for other in reply.body["alternatives"]] == [a.text for a in expected.alternatives]
        assert "alternatives" not in client.caption(image, "?n_best=1&beams=1").body
        assert client.stop() == 0


def failing(*options: str, bundle: str = "default") -> str:
    command = [sys.executable, "-m", "captionlite.runtime.cli", "serve", "--port", "0", "--bundle", bundle, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_start_says_why(service: Client, toy_directory: Path) -> None:
    assert "a token is needed" in failing("--host", "0.0.0.0")
    assert "no address of this machine" in failing("--host", "no such host.invalid")
    assert "cannot listen there" in failing("--port", str(service.port), bundle=str(toy_directory))
    assert "no calibrated confidence" in failing("--min-confidence", "0.5", bundle=str(toy_directory))
    assert "masked_lm" in failing("--passes", "3", bundle=str(toy_directory))
    assert "nowhere" in failing(bundle="nowhere")
    assert "exclude each other" in failing("--beams", "2", "--temperature", "1")


def test_memory_of_a_large_photograph_goes_back(toy_directory: Path) -> None:
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.new("RGBA", (4000, 4000), (3, 4, 5, 100)).save(stream, "PNG")
    with serving.serve(toy_directory, "--workers", "1") as client:
        client.caption(png())
        before = client.metric("process_resident_memory_bytes")
        assert client.caption(stream.getvalue()).status == 200  # 256 MB while it is decoded
        assert client.metric("process_resident_memory_bytes") - before < 60_000_000


def test_a_missing_extra_is_named() -> None:
    for command in ("serve", "service show"):
        code = (
            "import sys\nsys.modules['uvicorn'] = None\n"  # as if not installed
            f"from captionlite.runtime.cli import main\nmain({command.split()!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert "pip install 'captionlite[serve]'" in done.stderr
        assert "Traceback" not in done.stderr

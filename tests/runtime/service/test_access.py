"""Who may ask: tokens, names in Host, other sites' pages; and tokens that are none."""

from pathlib import Path

import pytest
import serving
from serving import Client, Gate, png

from captionlite.runtime.errors import CaptionliteError, OptionsError
from captionlite.runtime.service.access import VARIABLE, Access, read_token

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.3.2.1", "[::1]:8080", "localhost."]
)
def test_names_of_this_machine_are_answered(service: Client, host: str) -> None:
    assert service.get("/healthz", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "192.168.1.2", "127.0.0.1.nip.io", "[::2]", ""],
)
def test_other_names_are_refused_against_dns_rebinding(service: Client, host: str) -> None:
    reply = service.get("/healthz", Host=host)
    assert reply.status == 421
    assert "--allow-host" in reply.error["next"]
    assert service.caption(png(), Host=host).status == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://localhost.evil"])
def test_pages_of_other_sites_are_refused(service: Client, origin: str) -> None:
    reply = service.caption(png(), Origin=origin, Host=f"localhost:{service.port}")
    assert reply.status == 403
    assert "access-control-allow-origin" not in reply.headers


def test_its_own_page_is_answered(service: Client) -> None:
    host = f"localhost:{service.port}"
    assert service.caption(png(), Origin=f"http://{host}", Host=host).status == 200


def test_a_browser_asking_for_permission_gets_none(service: Client) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    reply = service.ask("OPTIONS", "/v1/caption", headers=headers)
    assert reply.status == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_with_a_token_everything_but_health_needs_it(toy_directory: Path) -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    with serving.serve(toy_directory, environment={VARIABLE: TOKEN}) as client:
        for path in ("/v1/caption", "/metrics", "/openapi.json", "/nothing"):
            reply = client.get(path)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/healthz").status == 200
        for wrong in ("", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN,
                      "Bearer " + "é" * 21):  # fmt: skip
            assert client.caption(png(), Authorization=wrong.encode("latin-1").decode("latin-1")).status == 401
        assert client.caption(png(), **good).status == 200
        assert client.get("/openapi.json", **good).body["security"] == [{"token": []}]
        assert client.get("/nothing", **good).status == 404


def test_other_addresses_are_served_with_a_token_file(toy_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    with serving.serve(toy_directory, "--host", "0.0.0.0", "--token-file", str(path)) as client:
        assert client.caption(png(), Host="pi.lan").status == 401
        assert client.caption(png(), Host="pi.lan", Authorization=f"Bearer {TOKEN}").status == 200
        assert client.process is not None
        assert TOKEN not in Path(f"/proc/{client.process.pid}/cmdline").read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(OptionsError, match="--token-file"):
        Access.of(host, None)
    assert Access.of(host, b"x" * 16).hosts is None
    assert Access.of(host, b"x" * 16, ["Pi.Lan"]).hosts == {"pi.lan"}


def test_a_token_file_must_be_private_and_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(CaptionliteError, match="cannot be read"):
        read_token(path)
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(CaptionliteError, match="chmod o="):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN.encode()
    for wrong, what in (("short", "5 characters"), ("two words are no token", "blanks"), ("", "0 characters")):
        path.write_text(wrong)
        with pytest.raises(CaptionliteError, match=what):
            read_token(path)
    path.write_bytes(b"\xff" * 30)
    with pytest.raises(CaptionliteError, match="not ASCII"):
        read_token(path)


def test_an_empty_variable_is_no_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(CaptionliteError, match=VARIABLE):
        read_token(None)
    monkeypatch.delenv(VARIABLE)
    assert read_token(None) is None


def test_a_refused_upload_is_not_read_into_memory(toy_directory: Path) -> None:
    with serving.serve_here(Gate(), token=TOKEN.encode()) as client:
        reply = client.caption(bytes(5_000_000))
        assert reply.status == 401  # and the sender, who sends on, sees it

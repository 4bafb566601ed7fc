"""The systemd unit: what it says, that systemd understands it, how exposed it is, and how it is put there."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import serving
from click.testing import CliRunner

from captionlite.runtime.cli import cli
from captionlite.runtime.errors import CaptionliteError, OptionsError
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.unit import MARK, Unit, check_reachable, quote

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def unit(**changed: Any) -> Unit:
    given: dict[str, Any] = {
        "command": ["/bin/true", "serve"],
        "limits": Limits(workers=2),
        "local": True,
        "port": 8080,
        "needed": [Path("/opt/captionlite")],
    }
    return Unit(**{**given, **changed})


KINDS: dict[str, dict[str, Any]] = {
    "system": {},
    "for others": {"local": False, "token_file": Path("/etc/captionlite.token"), "port": 80},
    "from a home": {"needed": [Path("/home/pi/venv"), Path("/usr/lib/python3")], "run_as": "daemon"},
    "odd words": {"command": ["/bin/true", "serve", "--prefix", 'a "b" 50% $HOME \\n', ""]},
    "with a delegate": {"delegate": True},
    "user": {"user": True},
}


def lines(text: str) -> dict[str, list[str]]:
    """Values by name, all sections together."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@needs_systemd
@pytest.mark.parametrize("kind", KINDS)
def test_systemd_understands_every_line(kind: str, tmp_path: Path) -> None:
    assert ANALYZE is not None
    path = tmp_path / "captionlite.service"
    path.write_text(unit(**KINDS[kind]).text())
    manager = "--user" if KINDS[kind].get("user") else "--system"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [ANALYZE, "verify", manager, "--man=no", "--recursive-errors=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.strip()}")
    assert str(path) not in done.stderr
    assert "captionlite.service:" not in done.stderr
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize(("kind", "most"), [("system", 1.2), ("for others", 1.7), ("from a home", 1.4)])
def test_what_is_exposed_is_little(kind: str, most: float, tmp_path: Path) -> None:
    assert ANALYZE is not None
    path = tmp_path / "captionlite.service"
    path.write_text(unit(**KINDS[kind]).text())
    command = [ANALYZE, "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"systemd-analyze security --offline does not work here: {done.stderr.strip()}")
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found
    assert float(found[1]) <= most  # of 10


def test_what_it_says() -> None:
    found = lines(unit().text())
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["on-failure"]
    assert found["RestartSec"] == ["2"]
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == found["DynamicUser"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["MemoryMax"] == [f"{Limits(workers=2).memory_bytes // 10**6}M"]
    assert found["IPAddressDeny"] == ["any"]
    assert int(found["TimeoutStopSec"][0]) > Limits(workers=2).grace_s


def test_memory_is_never_all_that_the_machine_has() -> None:
    assert lines(unit(memory_bytes=400_000_000).text())["MemoryMax"] == ["300M"]


def test_a_token_goes_through_systemd_and_not_the_command_line() -> None:
    found = lines(unit(**KINDS["for others"]).text())
    assert found["LoadCredential"] == ["token:/etc/captionlite.token"]
    assert found["ExecStart"][0].endswith("--token-file %d/token")
    assert found["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert "IPAddressDeny" not in found


def test_of_a_home_only_what_is_needed_is_shown() -> None:
    found = lines(unit(**KINDS["from a home"]).text())
    assert found["ProtectHome"] == ["tmpfs"]
    assert found["BindReadOnlyPaths"] == ["/home/pi/venv"]
    assert found["User"] == ["daemon"]
    assert "DynamicUser" not in found


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("plain-1.0", "plain-1.0"), ("a b", '"a b"'), ("50%", "50%%"), ("$X", "$$X"), ('"\\', '"\\"\\\\"'), ("", '""'),
     (";", '";"'), ("#", '"#"')],
)  # fmt: skip
def test_words_are_quoted(word: str, quoted: str) -> None:
    assert quote(word) == quoted


def test_a_line_cannot_be_broken_out_of() -> None:
    with pytest.raises(OptionsError, match="unit file"):
        unit(command=["/bin/true", "a\nExecStartPre=/bin/sh"]).text()
    with pytest.raises(OptionsError, match="path"):
        unit(token_file=Path("/etc/a\nb")).text()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["service", *arguments])


def test_install_show_and_uninstall(tmp_path: Path) -> None:
    options = ["--user", "--into", str(tmp_path / "new" / "units"), "--name", "captions"]
    serve_options = ["--", "--port", "9000", "--beams", "3", "--workers", "2"]
    path = tmp_path / "new" / "units" / "captions.service"
    shown = run("show", *options, *serve_options)
    assert shown.exit_code == 0, shown.output
    assert "serve --port 9000 --beams 3 --workers 2" in shown.output
    assert not path.exists()
    installed = run("install", *options, "--json", *serve_options)
    assert installed.exit_code == 0, installed.output
    told = json.loads(installed.output)
    assert told["path"] == str(path)
    assert "systemctl --user enable --now captions" in told["next"]
    assert path.read_text() == shown.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["captions.service"]
    assert run("install", *options).exit_code == 0  # again, over its own
    removed = run("uninstall", *options)
    assert removed.exit_code == 0
    assert "systemctl --user stop captions" in removed.output
    assert not path.exists()
    assert run("uninstall", *options).exit_code == 1


def test_somebody_elses_unit_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "captionlite.service"
    path.write_text("[Unit]\n")
    for action in ("install", "uninstall"):
        refused = run(action, "--user", "--into", str(tmp_path))
        assert refused.exit_code == 1
        assert "did not write this" in refused.output
    assert path.read_text() == "[Unit]\n"
    assert run("install", "--user", "--into", str(tmp_path), "--force").exit_code == 0
    assert path.read_text().startswith(MARK)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--", "--host", "0.0.0.0"], 1, "--token-file"),
        (["--", "--port", "no"], 2, "not a valid int"),
        (["--", "--bundle", "nowhere"], 1, "nowhere"),
        (["--name", "../evil"], 2, "small letters"),
        (["--run-as", "pi"], 2, "--run-as"),
    ],
)
def test_what_could_not_start_is_not_installed(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    refused = run("install", "--user", "--into", str(tmp_path), *arguments)
    assert refused.exit_code == code
    assert says in refused.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_names_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = run("install", "--user", "--into", str(tmp_path / "file" / "units"))
    assert refused.exit_code == 1
    assert "cannot be" in refused.output


def test_what_the_services_user_cannot_read_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "venv").mkdir()
    with pytest.raises(CaptionliteError, match=r"closed \(700\).*--run-as"):
        check_reachable([closed / "venv"])
    with pytest.raises(CaptionliteError, match="No such file"):
        check_reachable([tmp_path / "nothing"])
    check_reachable([Path("/usr")])


def test_systemd_is_told_when_it_is_ready_and_when_it_ends(toy_directory: Path, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(serving.TIMEOUT_S)
        environment = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "60000"}
        with serving.serve(toy_directory, environment=environment) as client:
            assert listener.recv(100) == b"READY=1"
            assert client.get("/healthz").status == 200
            assert {listener.recv(100) for _ in range(3)} == {b"WATCHDOG=1"}
            assert client.stop() == 0
        listener.setblocking(False)
        received = [b""]
        while received[-1] != b"STOPPING=1":
            received.append(listener.recv(100))  # raises when there is none left


NO_NEW_CODE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, what MemoryDenyWriteExecute= does; Linux 6.3
    sys.exit(77)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_it_captions_where_no_memory_may_become_code(toy_directory: Path) -> None:
    through = [sys.executable, "-c", NO_NEW_CODE]
    if subprocess.run([*through, "/bin/true"]).returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    with serving.serve(toy_directory, through=through) as client:
        assert client.caption(serving.png(), "?beams=3").status == 200
        assert client.stop() == 0


def system_calls(name: str) -> set[str]:
    """What one of systemd's sets of system calls holds."""
    assert ANALYZE is not None
    listed = subprocess.run([ANALYZE, "syscall-filter", "--no-pager", name], capture_output=True, text=True).stdout
    words = {line.strip() for line in listed.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    return {one for word in words for one in (system_calls(word) if word.startswith("@") else {word})}


@needs_systemd
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_it_makes_no_call_that_the_unit_forbids(toy_directory: Path, tmp_path: Path) -> None:
    through = ["strace", "-f", "-c", "-o", str(tmp_path / "calls")]
    if subprocess.run([*through, "/bin/true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    with serving.serve(toy_directory, through=through) as client:
        assert client.caption(serving.png(), "?beams=3").status == 200
        assert client.caption(b"no image").status == 422
        assert client.get("/metrics").status == 200
        assert client.stop() == 0
    rows = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    made = {row[-1] for row in rows if row and row[-1].isidentifier()} - {"syscall", "total"}
    assert {"mmap", "accept4"} & made
    allowed = system_calls("@system-service") - system_calls("@privileged") - system_calls("@resources")
    # OpenBLAS, of NumPy, asks for memory near its core, and does without when it is refused.
    assert made - allowed <= {"mbind", "get_mempolicy", "sched_setaffinity"}

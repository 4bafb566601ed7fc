"""Native C on the interpreter's own library: the same files and the same loop without Python (native/captions.c).

The ai-edge-litert wheel carries libLiteRt.so, which exports LiteRT's C API; there are no headers beside it, so the
program declares what it calls, and versions whose declarations are not known to be these are left alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.benchmarks.peers.base import Peer, PeerError, PeerUnavailable, Pixels, Task, Turn, Weights
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.interpreter import core_count
from captionlite.runtime.manifest import Manifest

KNOWN_VERSIONS = ("2.3.",)  # LiteRtCreateModelFromFile takes the environment since 2.3
LIBRARY = "libLiteRt.so"
COMPILE_TIMEOUT_S = 60
_FLAGS = (("-O3", "-march=native"), ("-O2",))  # not every compiler knows the machine that it runs on


class NativeC(Peer):
    """The program in a process of its own, which waits for the next turn between two; it times itself."""

    title = "native C, same files and library"
    packages = ("ai-edge-litert",)

    def __init__(self, weights: Weights, task: Task, program: Path, library: Path, compiler: str) -> None:
        super().__init__(weights)
        self.facts.threads = {"encoder": core_count(), "decoder": 1}
        self.facts.choices = {"compiler": compiler}
        folder = task.scratch / f"native-{weights}"
        folder.mkdir()
        bundle = task.captioner(weights).bundle
        graphs = [_graph_file(bundle, name, folder) for name in ("encoder", "decoder")]
        encoder = bundle.read(bundle.manifest.graphs["encoder"].file)
        (folder / "plan").write_text(plan(bundle.manifest, aliases(encoder)))
        self._pixels = folder / "pixels"
        self._given: list[bytes] = []
        threads = (str(core_count()), "1")
        self._command = [str(part) for part in (program, library, *graphs, folder / "plan", self._pixels, *threads)]
        self._process: subprocess.Popen[str] | None = None

    def encode(self, pixels: Pixels) -> Any:
        return pixels

    def decode(self, encoded: Any) -> list[int]:
        return self.captions([encoded])[0]

    def captions(self, photographs: Sequence[Pixels]) -> list[list[int]]:
        return self._ask(photographs)[2]

    def turn(self, photographs: Sequence[Pixels]) -> Turn:
        self._ask(photographs, 1)
        encode_ns, decode_ns, tokens = self._ask(photographs)
        return Turn(encode_ns / 1e9, decode_ns / 1e9, len(photographs), sum(map(len, tokens)))

    def _ask(self, photographs: Sequence[Pixels], count: int | None = None) -> tuple[int, int, list[list[int]]]:
        """Nanoseconds of encoding and of decoding, and the tokens, of the first so many of these photographs."""
        given = [pixels.tobytes() for pixels in photographs]
        if self._process is None or given != self._given:
            self._start(given)
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        count = count or len(photographs)
        try:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
            encode_ns, decode_ns = map(int, process.stdout.readline().split())
            tokens = [[int(word) for word in process.stdout.readline().split()] for _ in range(count)]
        except (OSError, ValueError) as error:
            raise PeerError(f"native C: the program ended early: {self._last_words()}") from error
        return encode_ns, decode_ns, tokens

    def _start(self, given: list[bytes]) -> None:
        self.close()
        self._given = given
        self._pixels.write_bytes(b"".join(given))
        with open(self._pixels.with_name("stderr"), "wb") as stderr:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise PeerUnavailable(f"the program cannot run here: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._pixels.with_name("stderr").read_text(errors="replace").splitlines()
        told = [line for line in lines if line.strip() and not line.startswith(("INFO", "WARNING"))]
        return told[-1] if told else "it said nothing"

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the program may have ended by itself
                if stream is not None:
                    stream.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prepare(task: Task, weights: Weights) -> Peer:
    library = find_library()
    task.captioner(weights)
    program, compiler = compile_program(task.scratch)
    peer = NativeC(weights, task, program, library, compiler)
    try:
        peer.captions(task.photographs[:1])
    except BaseException:
        peer.close()
        raise
    return peer


def find_library() -> Path:
    """libLiteRt.so of the installed wheel. Raises PeerUnavailable for a wheel without it or of another version."""
    try:
        found = version("ai-edge-litert")
    except PackageNotFoundError:
        raise PeerUnavailable("ai-edge-litert is not installed, whose library it would run on") from None
    if not found.startswith(KNOWN_VERSIONS):
        raise PeerUnavailable(f"ai-edge-litert is {found}, and the C API has been tried with {KNOWN_VERSIONS[0]}x only")
    spec = importlib.util.find_spec("ai_edge_litert")
    places = (Path(place, LIBRARY) for place in (spec.submodule_search_locations or ()) if spec) if spec else ()
    library = next((place for place in places if place.is_file()), None)
    if library is None:
        raise PeerUnavailable(f"ai-edge-litert {found} has no {LIBRARY} on this system")
    return library


def compile_program(scratch: Path) -> tuple[Path, str]:
    """The program and the first line of what its compiler says of itself. Raises PeerUnavailable."""
    compiler = os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise PeerUnavailable(f"there is no C compiler {compiler!r} here; name one in CC, or install gcc or clang")
    described = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    program = scratch / "captions"
    said = ""
    with as_file(files("captionlite.benchmarks.peers") / "native" / "captions.c") as source:
        for flags in _FLAGS:
            command = [compiler, "-std=gnu11", *flags, "-o", str(program), str(source), "-ldl"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise PeerUnavailable(f"the C compiler {compiler!r} failed: {error}") from error
            if done.returncode == 0:
                return program, (described.splitlines() or [compiler])[0]
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
    raise PeerUnavailable(f"the C compiler {compiler!r} refused the program: {said}")


def aliases(content: bytes) -> list[tuple[str, str]]:
    """Outputs of a TFLite file that are one tensor under several names (an LSTM's h and c), each with each other.

    LiteRT keeps only one name of a tensor.
    """
    from ai_edge_litert import schema_py_generated as schema

    names: dict[int, list[str]] = {}
    for output in schema.ModelT.InitFromPackedBuf(content, 0).signatureDefs[0].outputs:
        names.setdefault(int(output.tensorIndex), []).append(output.name.decode())
    return [(one, other) for group in names.values() for one in group for other in group if one != other]


def plan(manifest: Manifest, also: Sequence[tuple[str, str]] = ()) -> str:
    """What the program must know of the manifest, a word and its numbers a line, and the `aliases`."""
    decoding, image = manifest.decoding, manifest.image
    lines = [
        f"image {image.height * image.width * 3}",
        f"vocabulary {manifest.vocabulary.size}",
        f"steps {decoding.max_length}",
        f"start {decoding.start_id}",
        f"end {decoding.end_id}",
        *(f"suppress {token}" for token in decoding.suppressed_ids),
    ]
    for row in manifest.state:
        shape, item = [size or 1 for size in row.shape], np.dtype(row.dtype).itemsize
        axis = len(shape) if row.axis is None else row.axis
        outer, length = (1, 1) if row.axis is None else (int(np.prod(shape[:axis])), shape[axis])
        inner = int(np.prod(shape)) // (outer * length) * item
        lines.append(f"state {row.name} {row.kind} {outer} {length} {inner}")
    lines += [f"alias {one} {other}" for one, other in also]
    return "\n".join(lines) + "\n"


def _graph_file(bundle: Bundle, name: str, folder: Path) -> Path:
    file = bundle.manifest.graphs[name].file
    path = bundle.path(file)
    if path is None:  # inside a zip
        path = folder / file
        path.write_bytes(bundle.read(file))
    return path

"""A bundle says on which interpreters it was proven; on any other it proves itself once, before its first caption.

Interpreters load files that they compute wrongly without a word: tflite-runtime 2.14 does so with int8 weights that
have a scale per channel and activations quantized as they come. So on an interpreter, version or machine that the
manifest's `proven` does not name, the first golden photograph is computed and held against the golden vectors; a pass
is remembered (`remembered.py`), a failure refuses the bundle. `captionlite verify` is the whole check.
"""

import hashlib
import json
import os
import sys
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from captionlite.runtime.bundle import MAX_MANIFEST_BYTES, Bundle
from captionlite.runtime.errors import BundleError, WrongNumbersError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.interpreter import UNKNOWN_VERSION, find_backend
from captionlite.runtime.jsonreader import parse_json
from captionlite.runtime.manifest import MANIFEST_FILE, Manifest, ProvenSpec
from captionlite.runtime.specs import MAX_PROVEN

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.delegates import Delegation
    from captionlite.runtime.verify import TensorCheck

FORMAT_WITH_PROVEN = (1, 3)
# The modules that a golden photograph goes through. Their bytes tell a version of captionlite from the next one, and a
# developer's tree from itself an hour ago; asking the package's metadata would cost 10 ms of a cold start.
_COMPUTING = ("captioner.py", "interpreter.py", "loop.py", "masked.py", "selfcheck.py", "verify.py")
_CPU_FIELDS = (b"model name", b"flags", b"Features", b"CPU implementer", b"CPU architecture", b"CPU part")


def proven_here() -> tuple[ProvenSpec, ...]:
    """What `proven` says of a bundle whose golden vectors were computed here: one row, none for an unknown version.

    Raises InterpreterError without an interpreter.
    """
    here = _here()
    return () if here.version == UNKNOWN_VERSION else (here,)


def check_here(captioner: "Captioner") -> None:
    """Do nothing where the captioner's bundle is proven or passed before; else compute a golden photograph.

    Raises WrongNumbersError when tensors are not within the manifest's tolerance, and BundleError for golden vectors
    that do not fit. What this refuses, `verify` refuses as well.
    """
    here, manifest = _here(), captioner.bundle.manifest
    known = here.version != UNKNOWN_VERSION
    delegation = captioner.delegation
    delegated = delegation is not None and delegation.active  # nobody has proven that one
    if known and here in manifest.proven and not delegated:
        return
    from captionlite.runtime.remembered import passed_before, remember_pass

    key = _key(manifest, here) if known else None
    if delegation is not None and delegated:
        key = _delegated_key(key, delegation)
    if key is not None and passed_before(key):
        return
    from captionlite.runtime.verify import compare_tensors, read_golden  # at the first opening only

    golden = read_golden(captioner.bundle)
    checks = compare_tensors(captioner, golden.first())
    if not all(check.passed for check in checks):
        # The tolerance is that of the whole: one photograph may be a little beyond it where all together are not.
        checks = compare_tensors(captioner, golden)
    if delegation is not None and delegated:
        if delegation.active and not all(check.passed for check in checks):
            captioner.leave_delegate(
                f"it computes wrong numbers: {_worst(captioner.bundle, checks)}. `captionlite verify "
                f"{captioner.bundle.location} --delegate ...` shows every tensor."
            )
        if not delegation.active:  # it failed on the way, or it was wrong: now the CPU has to prove itself
            check_here(captioner)
            return
    if not all(check.passed for check in checks):
        raise _wrong_numbers(captioner.bundle, here, checks)
    if key is not None:
        remember_pass(key)


def require_directory(bundle: Bundle) -> None:
    """Raises BundleError for a zip, in which nothing can be recorded."""
    if not bundle.location.is_dir():
        raise BundleError(
            f"{bundle.location}: a zip, but a proof is recorded in a bundle directory. Unpack it, run `captionlite "
            f"verify DIRECTORY --record`, and pack the files again without compression (`zip -0`)."
        )


def record_proof(bundle: Bundle) -> bool:
    """Add this interpreter to the `proven` of a bundle directory that `verify` has passed here; False if it was there.

    manifest.json is replaced in one stroke; fields of a newer minor format are kept. Raises BundleError.
    """
    require_directory(bundle)
    rows, path = proven_here(), bundle.location / MANIFEST_FILE
    if not rows:
        raise BundleError(
            f"{path}: {find_backend().name} does not say its version, so nothing can be recorded. Install a release of "
            f"it with pip."
        )
    if rows[0] in bundle.manifest.proven:
        return False
    if bundle.manifest.format < (1, 2) and "refine" in bundle.manifest.graphs:
        raise BundleError(f"{path}: its format has no golden vectors of the graph refine. Export the bundle again.")
    if len(bundle.manifest.proven) >= MAX_PROVEN:
        raise BundleError(f"{path}: proven has {MAX_PROVEN} rows, the most there may be. Take some out.")
    found = parse_json(path.read_bytes()[: MAX_MANIFEST_BYTES + 1], str(path))
    if Manifest.from_json(found, str(path)) != bundle.manifest:
        raise BundleError(f"{path}: changed while the bundle was verified. Run `captionlite verify --record` again.")
    row = dict(vars(rows[0]))
    if "proven" in found:
        found["proven"].append(row)
    else:  # behind `golden`, where `Manifest.to_json` has it
        at = list(found).index("golden") + 1
        found = dict([*list(found.items())[:at], ("proven", [row]), *list(found.items())[at:]])
    found["format"] = list(max(tuple(found["format"]), FORMAT_WITH_PROVEN))
    Manifest.from_json(found, str(path))
    text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        write_bytes_atomically(path, text.encode())
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written ({error.strerror}). Copy the bundle into a folder of yours and record it there."
        ) from None
    return True


def _here() -> ProvenSpec:
    backend = find_backend()
    return ProvenSpec(backend.name, backend.version, _machine())


def _machine() -> str:
    """What `platform.machine()` says, except of a 32-bit Python on a 64-bit kernel, whose kernels are others."""
    if hasattr(os, "uname"):
        machine = os.uname().machine
    else:
        import platform

        machine = platform.machine()
    return machine if sys.maxsize > 2**32 or "64" not in machine else f"{machine} (32 bits)"


def _key(manifest: Manifest, here: ProvenSpec) -> str | None:
    """Hash of all that the numbers depend on; None where that cannot be told."""
    described = manifest.to_json()  # with the checksum of every file
    for name in ("name", "proven", "provenance", "scores"):
        described.pop(name, None)
    try:
        code = [hashlib.sha256((Path(__file__).parent / name).read_bytes()).hexdigest() for name in _COMPUTING]
    except OSError:  # compiled files alone
        return None
    everything = json.dumps([described, vars(here), _cpu(), code], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()


def _delegated_key(key: str | None, delegation: "Delegation") -> str | None:
    """The key of a pass with this delegate: its library's file and its options count as well."""
    if key is None or delegation.identity is None:
        return None
    code = hashlib.sha256((Path(__file__).parent / "delegates.py").read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([key, delegation.identity, code], sort_keys=True).encode()).hexdigest()


def _cpu() -> str:
    """Model and features of the first processor, by which the interpreter chooses its kernels; Linux alone tells."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            first = file.read(1 << 14).partition(b"\n\n")[0]
    except OSError:
        return ""
    return b"\n".join(line for line in first.splitlines() if line.startswith(_CPU_FIELDS)).decode(errors="replace")


def _worst(bundle: Bundle, checks: "tuple[TensorCheck, ...]") -> str:
    worst = max(checks, key=lambda check: float("inf") if isnan(check.error) else check.error)
    return (
        f"{worst.name} has a relative error of {worst.error:.2e} on the golden photographs, tolerance "
        f"{bundle.manifest.golden.tolerance:.2e}"
    )


def _wrong_numbers(bundle: Bundle, here: ProvenSpec, checks: "tuple[TensorCheck, ...]") -> WrongNumbersError:
    proven = ", ".join(map(str, bundle.manifest.proven))
    return WrongNumbersError(
        f"{bundle.location}: {here} loads this bundle and computes wrong numbers: {_worst(bundle, checks)}. "
        f"{f'It is proven on {proven}. ' if proven else ''}`captionlite verify {bundle.location}` shows "
        f"every tensor. {find_backend().next_step}"
    )

"""The systemd unit of the service: restarted when it fails, and able to do nothing but answer requests.

What each line forbids was tried on the real process: `MemoryDenyWriteExecute` by the same prctl (the interpreter and
XNNPACK generate no code), the system calls by strace (all 53 that it makes are in @system-service; mbind, of OpenBLAS,
may fail). `ProcSubset=pid` is not there because XNNPACK reads /proc/cpuinfo on ARM to choose its kernels.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captionlite.runtime.errors import CaptionliteError, OptionsError
from captionlite.runtime.service.limits import MB, Limits

MARK = "# Written by `captionlite service install`; it may be overwritten by the same command."
RESTART_S = 2
WATCHDOG_S = 60
HOMES = ("/home", "/root", "/run/user")


@dataclass(frozen=True)
class Unit:
    """What the unit depends on.

    `command` starts the service, `needed` are the files and folders that it reads. With `user` the unit is one of a
    user's own systemd, which cannot take away more than the user's own rights. Otherwise it runs as `run_as`, or, if
    that is None, as a user made up for as long as it runs.
    """

    command: Sequence[str]
    limits: Limits
    local: bool
    port: int
    needed: Sequence[Path]
    token_file: Path | None = None
    delegate: bool = False
    user: bool = False
    run_as: str | None = None
    memory_bytes: int | None = None  # of the machine

    def text(self) -> str:
        """The unit file."""
        online = "network.target" if self.local else "network-online.target"
        sections = {
            "Unit": [
                "Description=captionlite: captions for photographs over HTTP",
                f"After={online}",
                *([] if self.local else [f"Wants={online}"]),
                "# Never give up: a board without a keyboard has nobody to start it again.",
                "StartLimitIntervalSec=0",
            ],
            "Service": [*self._service(), "", *(self._hardening_of_all()), *([] if self.user else self._hardening())],
            "Install": [f"WantedBy={'default' if self.user else 'multi-user'}.target"],
        }
        blocks = ["\n".join([f"[{name}]", *lines]) for name, lines in sections.items()]
        return "\n\n".join([MARK, *blocks]) + "\n"

    def _service(self) -> list[str]:
        command = list(map(quote, self.command))
        token: list[str] = []
        if self.token_file is not None and not self.user:  # systemd opens it as root and hands a copy over
            token = [f"LoadCredential=token:{quote_path(self.token_file)}"]
            command += ["--token-file", "%d/token"]
        lines = [
            "Type=notify",
            f"ExecStart={' '.join(command)}",
            *token,
            "Restart=on-failure",
            f"RestartSec={RESTART_S}",
            f"WatchdogSec={WATCHDOG_S}",
            "TimeoutStartSec=180",
            f"TimeoutStopSec={int(self.limits.grace_s) + 10}",
            "KillMode=mixed",
            "# Workers, queue and the largest photograph at once; more than that is a fault, and a restart mends it.",
            f"MemoryMax={self._memory() // MB}M",
            f"TasksMax={64 + 4 * self.limits.workers}",
        ]
        if self.user:
            return lines
        who = ["DynamicUser=yes"] if self.run_as is None else [f"User={self.run_as}"]
        return [*lines, *who, "CacheDirectory=captionlite", "Environment=XDG_CACHE_HOME=%C/captionlite"]

    def _memory(self) -> int:
        """What the limits need, and never so much that the machine itself runs short of it."""
        most = self.limits.memory_bytes
        return most if self.memory_bytes is None else min(most, self.memory_bytes * 3 // 4)

    def _hardening_of_all(self) -> list[str]:
        """What a user's own systemd can do as well: all by seccomp and prctl."""
        return [
            "NoNewPrivileges=yes",
            "LockPersonality=yes",
            *(["# A vendor's delegate may generate code: no MemoryDenyWriteExecute."] if self.delegate else []),
            *([] if self.delegate else ["MemoryDenyWriteExecute=yes"]),
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "RestrictNamespaces=yes",
            f"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6{' AF_NETLINK' if self.delegate else ''}",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "SystemCallFilter=~@privileged @resources",
            "SystemCallErrorNumber=EPERM",
            "UMask=0077",
        ]

    def _hardening(self) -> list[str]:
        low_port = 0 < self.port < 1024
        capability = "CAP_NET_BIND_SERVICE" if low_port else ""
        home = sorted({str(path) for path in self.needed if _below(path, HOMES)})
        devices = ["DevicePolicy=auto"] if self.delegate else ["PrivateDevices=yes", "DevicePolicy=closed"]
        return [
            f"CapabilityBoundingSet={capability}",
            f"AmbientCapabilities={capability}",
            "ProtectSystem=strict",
            f"ProtectHome={'tmpfs' if home else 'yes'}",
            *(f"BindReadOnlyPaths={quote_path(Path(path))}" for path in home),
            "PrivateTmp=yes",
            *devices,
            *([] if low_port else ["PrivateUsers=yes"]),  # its capabilities would be of that namespace only
            "ProtectClock=yes",
            "ProtectControlGroups=yes",
            "ProtectHostname=yes",
            "ProtectKernelLogs=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "ProtectProc=invisible",
            "RemoveIPC=yes",
            "KeyringMode=private",
            *(["IPAddressDeny=any", "IPAddressAllow=localhost"] if self.local else []),
        ]


def quote(word: str) -> str:
    """One word of ExecStart. Raises OptionsError for control characters, which no unit can have."""
    if not word.isprintable():
        raise OptionsError(f"{word!r}: a unit file cannot have this. Use printable characters only.")
    word = word.replace("%", "%%").replace("$", "$$")
    if word and re.fullmatch(r"[\w@%+=:,./$-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_path(path: Path) -> str:
    """A path in a list of paths. Raises OptionsError for what cannot be written there."""
    text = str(path)
    if not text.isprintable() or set(text) & set(" :\\\"'"):
        raise OptionsError(f"{text!r}: a unit file cannot have blanks, colons or quotes in a path. Move it elsewhere.")
    return text.replace("%", "%%")


def check_reachable(needed: Iterable[Path]) -> None:
    """Raises CaptionliteError when a user who is neither the owner nor in a group could not read what is needed."""
    for path in needed:
        for part in (path, *path.parents):
            try:
                mode = os.stat(part).st_mode
            except OSError as error:
                raise CaptionliteError(f"{part}: {error.strerror}. The service needs it.") from None
            wanted = 0o5 if part.is_dir() else 0o4
            if part != path:
                wanted = 0o1  # to pass through is enough
            if mode & wanted != wanted:
                raise CaptionliteError(
                    f"{path}: the service's own user could not read it, because of the permissions of {part} "
                    f"({mode & 0o777:o}). Install captionlite where everybody can (`sudo python3 -m venv "
                    f"/opt/captionlite`), give --run-as USER, or --user for a service of your own."
                )


def _below(path: Path, folders: Iterable[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)

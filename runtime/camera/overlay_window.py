"""The overlay in a window, which is a process of its own: Tk wants a main thread, and this one's captions.

Run as a program it is that window: JPEGs come in on stdin, each after its length in 4 bytes.
"""

import os
import subprocess
import sys
from contextlib import suppress
from io import BytesIO
from threading import Event, Thread

from captionlite.runtime.camera.overlay import Overlay
from captionlite.runtime.camera.source import SourceError

READY = b"ready\n"
POLL_MS = 20


class OverlayWindow:
    """A context manager; `closed` says whether somebody closed the window."""

    def __init__(self, overlay: Overlay, title: str) -> None:
        """Opens the window. Raises SourceError where there is no display, or no Tk."""
        self._overlay = overlay
        self._gone = Event()
        command = [sys.executable, "-m", "captionlite.runtime.camera.overlay_window", title]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if first != READY:
            self._process.communicate()
            raise SourceError(
                f"--overlay window: {first.decode(errors='replace').strip() or 'the window did not open'}. Without a "
                f"screen, `--overlay http://127.0.0.1:8080` shows the same in a browser."
            )
        self._thread = Thread(target=self._feed, name="captionlite-window", daemon=True)

    def __enter__(self) -> "OverlayWindow":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._gone.set()
        self._process.terminate()
        with suppress(OSError):
            self._process.communicate(timeout=5.0)
        self._thread.join(5.0)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or died."""
        return self._gone.is_set()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        self._overlay.look(1)
        number = 0
        try:
            while not self._overlay.ended and self._process.poll() is None:
                found = self._overlay.next_picture(number, 0.5)
                if found is not None:
                    number, jpeg = found
                    self._process.stdin.write(len(jpeg).to_bytes(4, "big") + jpeg)
                    self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # the window is closed
        finally:
            self._overlay.look(-1)
            self._gone.set()


def main() -> None:
    """The window's own process."""
    try:
        import tkinter

        from PIL import Image, ImageTk

        root = tkinter.Tk()
    except ImportError as error:
        raise SystemExit(_say(f"it needs Tk ({error}); run `sudo apt install python3-tk`")) from None
    except Exception as error:  # tkinter.TclError, which cannot be named before tkinter is there
        raise SystemExit(_say(str(error))) from None
    root.title(sys.argv[1] if len(sys.argv) > 1 else "captionlite")
    label = tkinter.Label(root, bg="black")
    label.pack(fill="both", expand=True)
    newest: list[bytes] = []
    over = Event()

    def receive() -> None:
        pipe = sys.stdin.buffer
        while head := pipe.read(4):
            newest[:] = [pipe.read(int.from_bytes(head, "big"))]
        over.set()

    def show() -> None:
        if over.is_set():
            root.destroy()
            return
        if newest:
            with suppress(OSError, tkinter.TclError):
                picture = ImageTk.PhotoImage(Image.open(BytesIO(newest.pop()), formats=["JPEG"]))
                label.configure(image=picture)
                label.picture = picture  # type: ignore[attr-defined]  # Tk does not keep it
        root.after(POLL_MS, show)

    Thread(target=receive, daemon=True).start()
    show()
    os.write(1, READY)
    root.mainloop()
    os._exit(0)  # the reading thread may be in the middle of a picture


def _say(problem: str) -> int:
    os.write(1, problem.splitlines()[0].encode() + b"\n" if problem else b"\n")
    return 1


if __name__ == "__main__":
    main()

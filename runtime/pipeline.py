"""Many items through encoders and decoders at once, results in the order of the items.

Measured on two cores with the default bundle: two encoders on a thread each, loading included, do 1.9 times what one
does, while one encoder on two threads does 1.4 times; a stage a thread (load, encode, decode) waits for the encoder. So
a thread takes one item from file to encoding, then decodes if enough encodings have gathered, then takes the next item.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Generic, TypeVar

from captionlite.runtime.errors import ImageError

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")
Result = TypeVar("Result")


def run(
    items: Iterable[Item],
    encoders: Sequence[Callable[[Item], Encoded]],
    decoders: Sequence[Callable[[list[Encoded]], list[Result]]],
    group: int = 1,
) -> Iterator[Result | ImageError]:
    """Encode and decode every item; as many threads as there are encoders.

    No encoder or decoder is called by two threads at once. A decoder gets up to `group` encodings, and fewer only when
    no other item is on its way. `items` is read in the caller's thread, at most `look_ahead` items beyond the result
    yielded last. An ImageError that an encoder raises is yielded in the item's place; any other exception, and those of
    `items` itself, are raised in their place, and end it. No thread is left when the iterator has ended or was closed.
    """
    pending: deque[Future[Result | ImageError]] = deque()
    most = look_ahead(len(encoders), group)
    crew = _Crew(encoders, decoders, group)
    source = iter(items)
    ended_by: Exception | None = None
    threads = ThreadPoolExecutor(len(encoders), thread_name_prefix="captionlite")
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # its turn comes after the results of the items before it
                ended_by = error
                break
            pending.append(Future())
            crew.expect()
            threads.submit(crew.work, item, pending[-1])
            while pending and (len(pending) >= most or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
    if ended_by is not None:
        raise ended_by


def look_ahead(encoders: int, group: int) -> int:
    """How many items may be taken beyond the result yielded last: enough to keep every thread and decoder busy."""
    return 2 * (encoders + group)


class _Crew(Generic[Item, Encoded, Result]):
    """What the threads share. Nobody waits here for anybody, so that no thread can be left waiting."""

    def __init__(
        self,
        encoders: Sequence[Callable[[Item], Encoded]],
        decoders: Sequence[Callable[[list[Encoded]], list[Result]]],
        group: int,
    ) -> None:
        self._lock = Lock()
        self._free_encoders = list(encoders)
        self._free_decoders = list(decoders)
        self._group = group
        self._on_the_way = 0  # items taken, whose encoding is not there yet
        self._gathered: deque[tuple[Encoded, Future[Result | ImageError]]] = deque()

    def expect(self) -> None:
        """One more item is on its way to `work`."""
        with self._lock:
            self._on_the_way += 1

    def work(self, item: Item, result: "Future[Result | ImageError]") -> None:
        """Encode an item, then decode for as long as there is enough to decode and a decoder for it."""
        with self._lock:
            encode = self._free_encoders.pop()
        encoded = []
        try:
            encoded.append((encode(item), result))
        except ImageError as error:
            result.set_result(error.with_traceback(None))  # or whoever keeps errors would keep photographs
        except BaseException as error:
            result.set_exception(error)
        with self._lock:
            self._free_encoders.append(encode)
            self._gathered.extend(encoded)
            self._on_the_way -= 1
        while self._decode_some():
            pass

    def _decode_some(self) -> bool:
        """Decode one group. False when there is none, or when all decoders are busy: their threads then look again."""
        with self._lock:
            enough = len(self._gathered) >= self._group or (self._gathered and self._on_the_way == 0)
            if not enough or not self._free_decoders:
                return False
            decode = self._free_decoders.pop()
            group = [self._gathered.popleft() for _ in range(min(self._group, len(self._gathered)))]
        try:
            decoded = decode([encoded for encoded, _ in group])
        except BaseException as error:
            for _, result in group:
                result.set_exception(error)
        else:
            for (_, result), value in zip(group, decoded, strict=True):
                result.set_result(value)
        with self._lock:
            self._free_decoders.append(decode)
        return True

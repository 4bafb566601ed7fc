"""What the service tells Prometheus. Its text format and the process's figures are prometheus_client's."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.service.body import Held
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.pool import Answer, Question, Worker, WorkerPool

CONTENT_TYPE = CONTENT_TYPE_LATEST

STAGES = ("read", "wait", "image", "encode", "decode", "total")
"""Of a request: its body comes in, waits for a worker, becomes pixels, is encoded, is put into words; and all that."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one service, in a registry of its own; `connect` adds the gauges of what there is at the moment."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "captionlite_requests",
            "Requests answered, by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self._captions = Counter("captionlite_captions", "Photographs captioned.", registry=self._registry)
        self._in_flight = Gauge("captionlite_requests_in_flight", "Requests not answered yet.", registry=self._registry)
        self._stages = Histogram(
            "captionlite_stage_seconds",
            "Time of a captioned request, by stage.",
            ("stage",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._by_stage = {stage: self._stages.labels(stage) for stage in STAGES}
        ProcessCollector(registry=self._registry)  # process_resident_memory_bytes and its kin

    def connect(self, pool: WorkerPool[Worker, Question, Answer], held: Held, bundle: Bundle, limits: Limits) -> None:
        """Gauges that are read when somebody asks, and what is served."""
        for name, about, value in (
            ("queue_depth", "Requests that wait for a worker.", lambda: pool.waiting),
            ("workers_busy", "Workers at work.", lambda: pool.busy),
            ("workers_alive", "Workers there are.", lambda: pool.alive),
            ("workers_given_up", "Workers at something nobody waits for any more.", lambda: pool.given_up),
            ("held_bytes", "Bodies in memory.", lambda: held.bytes),
            ("queue_limit", "Requests that may wait.", lambda: limits.queue),
        ):
            Gauge(f"captionlite_{name}", about, registry=self._registry).set_function(value)
        manifest = bundle.manifest
        info = {
            "name": manifest.name,
            "family": manifest.family,
            "encoder": manifest.files["encoder.tflite"].sha256[:16],
        }
        Info("captionlite_bundle", "What captions.", registry=self._registry).info(info)

    def arrived(self) -> None:
        self._in_flight.inc()

    def answered(self, path: str, status: int) -> None:
        """`path` must be one of a few: each becomes a row for good."""
        self._in_flight.dec()
        self._requests.labels(path, str(status)).inc()

    def captioned(self, seconds: dict[str, float]) -> None:
        """One caption, with what its stages took."""
        self._captions.inc()
        for stage, value in seconds.items():
            self._by_stage[stage].observe(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)

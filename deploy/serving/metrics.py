"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one server.

    Args:
        waiting: gives the number of rows that wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("serve_requests", "Requests answered.", ("path", "status"), registry=own)
        self.latency = Histogram(
            "serve_request_seconds", "Time to an answer.", ("path",), buckets=SECONDS, registry=own
        )
        self.rows = Counter("serve_rows", "Rows predicted.", registry=own)
        self.batch_rows = Histogram("serve_batch_rows", "Rows decoded together.", buckets=ROWS, registry=own)
        self.batch_seconds = Histogram("serve_batch_seconds", "Time to decode them.", buckets=SECONDS, registry=own)
        Gauge("serve_waiting_rows", "Rows that wait.", registry=own).set_function(waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.latency.labels(path).observe(seconds)

    def decoded(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows.inc(rows)
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

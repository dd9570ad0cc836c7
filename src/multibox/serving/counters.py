"""What the server counts, for Prometheus: requests, latency, images, queue, batches, bytes, drift, models."""

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from multibox.serving.batching import Looked
from multibox.serving.front import Exchange
from multibox.serving.hosted import Models
from multibox.serving.workers import SHARED

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32)


class Counters:
    """Counts of one process, or of several that share the folder in `PROMETHEUS_MULTIPROC_DIR`.

    Args:
        models: Whose queues and drift are told.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.shared = SHARED in os.environ
        disable_created_metrics()
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        by = ("method", "path", "status")
        self.requests = Counter("multibox_requests", "Requests by method, address and status.", by, **own)
        self.seconds = Histogram(
            "multibox_request_seconds", "Seconds from the request's head to the end of its response.", ("path",),
            buckets=SECONDS, **own,
        )  # fmt: skip
        self.received = Counter("multibox_received_bytes", "Bytes of bodies received.", **own)
        self.sent = Counter("multibox_sent_bytes", "Bytes of bodies sent.", **own)
        self.images = Counter("multibox_images", "Images looked at.", ("model",), **own)
        self.objects = Counter("multibox_detections", "Detections reported.", ("model",), **own)
        self.busy = Counter("multibox_busy", "Requests refused with 503.", **own)
        self.queued = Histogram(
            "multibox_queue_seconds", "Seconds that images waited.", ("model",), buckets=SECONDS, **own
        )
        self.worked = Histogram(
            "multibox_work_seconds",
            "Seconds of decoding and network, of the batch.",
            ("model",),
            buckets=SECONDS,
            **own,
        )
        self.batches = Histogram(
            "multibox_batch_size", "Images that went through together, per image.", ("model",), buckets=BATCHES, **own
        )
        several: dict[str, Any] = {**own, "multiprocess_mode": "livesum"}
        self.waiting = Gauge("multibox_queue_images", "Images that wait now.", ("model",), **several)
        latest: dict[str, Any] = {**own, "multiprocess_mode": "livemostrecent"}
        self.info = Gauge(
            "multibox_model_info", "Models by name and version; always 1.", ("model", "version"), **latest
        )
        self.ready = Gauge("multibox_model_ready", "Whether a model answers at once.", ("model",), **latest)
        self.drift = Gauge(
            "multibox_drift", "Distance of the images from training in standard deviations, where they are far.",
            ("model", "statistic"), **latest,
        )  # fmt: skip
        self._of_request: dict[tuple[str, str, int], Any] = {}
        self._of_path: dict[str, Any] = {}
        self._of_model: dict[str, list[Any]] = {}
        self._versions: dict[str, str] = {}
        self._far: dict[str, set[str]] = {}

    def add(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        key = exchange.method, exchange.route, exchange.status
        child = self._of_request.get(key)
        if child is None:
            child = self._of_request[key] = self.requests.labels(*map(str, key))
        child.inc()
        timer = self._of_path.get(exchange.route)
        if timer is None:
            timer = self._of_path[exchange.route] = self.seconds.labels(exchange.route)
        timer.observe(exchange.seconds)
        if exchange.received:
            self.received.inc(exchange.received)
        if exchange.sent:
            self.sent.inc(exchange.sent)
        # Not those for health, which say 503 while a server begins or ends
        if exchange.status == 503 and exchange.method == "POST":
            self.busy.inc()

    def looked(self, model: str, looked: Looked) -> None:
        """Count an image that was looked at."""
        children = self._of_model.get(model)
        if children is None:
            kinds: tuple[Any, ...] = self.images, self.objects, self.queued, self.worked, self.batches
            children = self._of_model[model] = [kind.labels(model) for kind in kinds]
        images, objects, queued, worked, batches = children
        images.inc()
        objects.inc(len(looked.found))
        queued.observe(looked.queued)
        worked.observe(looked.worked)
        batches.observe(looked.batch)
        if self.shared:
            # Another process may be asked for the counts
            self.waiting.labels(model).set(self.models[model].waiting)

    def exposition(self) -> tuple[bytes, str]:
        """Return all counts as text, and its media type."""
        self._refresh()
        registry = self.registry
        if self.shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _refresh(self) -> None:
        """Set what is not counted but looked up."""
        for name, model in self.models.items():
            self.waiting.labels(name).set(model.waiting)
            self.ready.labels(name).set(model.ready)
            self._set_version(name, model.version)
            far = {drift.name: drift.distance for drift in model.drift()}
            for statistic in {*self._far.get(name, ()), *far}:
                self.drift.labels(name, statistic).set(far.get(statistic, 0.0))
            self._far[name] = set(far)

    def _set_version(self, model: str, version: str) -> None:
        """Say which version answers now; one that was replaced stays, with 0."""
        old = self._versions.get(model)
        if old is not None and old != version:
            self.info.labels(model, old).set(0)
        self._versions[model] = version
        self.info.labels(model, version).set(1)

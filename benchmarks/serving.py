"""Put `multibox serve` under load and compare it with the engine alone.

Many keep-alive clients post JPEG images of 640 x 480, each as soon as its last one was answered. Every response has to
equal `predict` (0.1 pixel, 0.001 of score; equal scores in any order), and none may be missing.

    python benchmarks/serving.py                          # 200 clients, 60 s
    python benchmarks/serving.py --hup 10 --term          # models are read again every 10 s; SIGTERM at the end
    python benchmarks/serving.py --workers 2 --clients 50 --seconds 10
"""

import argparse
import asyncio
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.inference.load import load
from multibox.inference.streaming import open_copies, predict_stream
from multibox.limits import available_cores

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"
SIZE, PIXEL, SCORE = (640, 480), 0.1, 0.001
IMAGES = 16
ENGINE_SECONDS = 10.0


def make_images() -> list[bytes]:
    """Return photos at 640 x 480, or noise where there are none."""
    files = sorted(PHOTOS.glob("*.jpg"))[:IMAGES]
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)) for _ in range(IMAGES - len(files))]
    encoded: list[bytes] = []
    for image in [*(Image.open(file).convert("RGB") for file in files), *noise]:
        data = io.BytesIO()
        image.resize(SIZE, Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
        encoded.append(data.getvalue())
    return encoded


class Load:
    """Clients that send and compare."""

    def __init__(self, port: int, images: list[bytes], expected: list[Any]) -> None:
        self.port, self.expected = port, expected
        self.requests = [
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b"
            % (port, len(image), image)
            for image in images
        ]
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self.stopping = False
        self.stopped = asyncio.Event()
        self.clients = 0
        self.tasks: set[asyncio.Task[None]] = set()
        # A response that was found right is compared byte by byte from then on
        self.right: list[set[bytes]] = [set() for _ in images]

    def check(self, number: int, body: bytes) -> None:
        """Compare the response to an image with what `predict` finds."""
        if body in self.right[number]:
            return
        assert_same(json.loads(body)["detections"], self.expected[number])
        self.right[number].add(body)

    async def run(self, clients: int, seconds: float) -> float:
        """Send for some seconds, wait for the last responses, and return the seconds that it took."""
        started = time.monotonic()
        self.clients = clients
        for number in range(clients):
            self.start(number)
        await asyncio.sleep(seconds)
        self.stopping = True
        await asyncio.wait_for(self.stopped.wait(), 60)
        return time.monotonic() - started

    def start(self, number: int) -> None:
        """Let a client connect."""
        task = asyncio.get_running_loop().create_task(self.connect(number))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, number: int) -> None:
        """Open the connection of a client."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: Client(self, number), "127.0.0.1", self.port)
        except OSError:
            # Nobody listens any more: such a request was never accepted
            self.counts["refused"] += 1
            self.leave()

    def leave(self) -> None:
        """Count a client that sends no more."""
        self.clients -= 1
        if self.clients == 0:
            self.stopped.set()


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number = load, number
        self.data = bytearray()
        self.total = 0
        self.closing = False

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Send the next image."""
        self.number += 1
        self.image = self.number % len(self.load.requests)
        self.began = time.monotonic()
        self.waits = True
        self.transport.write(self.load.requests[self.image])

    def data_received(self, data: bytes) -> None:
        """Collect a response."""
        self.data += data
        if not self.total:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.data[:end]).lower()
            self.status = int(head[9:12])
            self.total = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            self.closing = b"connection: close" in head
        if len(self.data) >= self.total:
            body = bytes(self.data[self.data.find(b"\r\n\r\n") + 4 :])
            self.data.clear()
            self.total = 0
            self.answered(body)

    def answered(self, body: bytes) -> None:
        """Compare a response, and go on."""
        load, self.waits = self.load, False
        load.counts[str(self.status)] += 1
        load.times.append(time.monotonic() - self.began)
        if self.status == 200:
            load.check(self.image, body)
        elif self.status != 503:
            load.counts[body[:200].decode()] += 1
        if load.stopping:
            self.transport.close()
            load.leave()
        elif self.closing:
            self.transport.close()
            load.start(self.number)
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        """Count a request without a response as lost."""
        if self.waits:
            self.load.counts["lost"] += 1
            self.load.leave()


def assert_same(found: list[dict[str, Any]], expected: Any) -> None:
    """Compare detections, those of nearly equal scores in any order."""
    assert len(found) == len(expected), (len(found), len(expected))
    left = list(range(len(expected)))
    for one in found:
        place = next(
            place
            for place in left
            if expected.labels[place] == one["label"]
            and abs(float(expected.scores[place]) - one["score"]) <= SCORE
            and np.abs(expected.boxes[place] - np.array(one["box"])).max() <= PIXEL
        )
        left.remove(place)


def measure_engine(images: list[bytes]) -> tuple[float, float]:
    """Return images per second, and processor seconds per image, of the engine alone on the same files."""
    copies = open_copies(lambda threads: load("coco", threads=threads))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(len(images))]
        for file, image in zip(files, images, strict=True):
            file.write_bytes(image)
        for _ in predict_stream(copies, files):
            pass
        started, used, count = time.monotonic(), time.process_time(), 0
        while time.monotonic() - started < ENGINE_SECONDS:
            count += sum(1 for _ in predict_stream(copies, files * 8))
        return count / (time.monotonic() - started), (time.process_time() - used) / count


def processes_of(parent: int) -> list[int]:
    """Return a process and its children."""
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [parent, *map(int, tasks.read_text().split())] if tasks.exists() else [parent]


def usage(parent: int) -> tuple[float, float]:
    """Return the processor seconds and the memory (MB) of a server and its workers so far."""
    seconds = memory = 0.0
    for process in processes_of(parent):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return seconds, memory


async def watch(process: subprocess.Popen[str], options: argparse.Namespace, seen: list[tuple[float, float]]) -> None:
    """Note what the server uses, and send it signals."""
    started, hups = time.monotonic(), 0
    while True:
        await asyncio.sleep(0.5)
        passed = time.monotonic() - started
        if process.poll() is None:
            seen.append(usage(process.pid))
        if options.hup and passed > options.hup * (hups + 1) and passed < options.seconds:
            process.send_signal(signal.SIGHUP)
            hups += 1
        if options.term and passed > options.seconds - 3:
            process.send_signal(signal.SIGTERM)
            return


async def put_under_load(process: subprocess.Popen[str], load_: Load, options: argparse.Namespace) -> Any:
    # Warm: every client once
    warm = Load(load_.port, [request.partition(b"\r\n\r\n")[2] for request in load_.requests], load_.expected)
    await warm.run(options.clients, 2.0)
    seen = [usage(process.pid)]
    used = resource.getrusage(resource.RUSAGE_SELF)
    watching = asyncio.create_task(watch(process, options, seen))
    seconds = await load_.run(options.clients, options.seconds)
    if not options.term:
        seen.append(usage(process.pid))
    watching.cancel()
    now = resource.getrusage(resource.RUSAGE_SELF)
    clients = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return seconds, clients, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hup", type=float, default=0, help="seconds between two SIGHUP")
    parser.add_argument("--term", action="store_true", help="SIGTERM 3 s before the end")
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine alone")
    options = parser.parse_args()
    images = make_images()
    detector = load("coco", threads=1)
    expected = [detector.predict(image) for image in images]
    before = None if options.no_engine else measure_engine(images)
    log = Path(tempfile.mkdtemp()) / "serve.log"
    command = [sys.executable, "-m", "multibox", "serve", "coco", "--port", "0", "--log", "json"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--workers", str(options.workers)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        assert process.stdout is not None
        port = int(re.findall(r":(\d+)/", process.stdout.readline())[0])
        try:
            load_ = Load(port, images, expected)
            seconds, clients, seen = asyncio.run(put_under_load(process, load_, options))
        finally:
            if not options.term:
                process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    report(load_, seconds, clients, seen, options)
    events = Counter(json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{"))
    print(f"exit code {code}; log: {log}; events: {dict(events)}")
    assert code == 0 and load_.counts["lost"] == 0, (code, load_.counts)
    if before is None:
        return
    after = measure_engine(images)
    rate, cost = ((one + other) / 2 for one, other in zip(before, after, strict=True))
    answered = load_.counts["200"]
    left = 1 - clients / (available_cores() * seconds)
    print(f"engine alone: {rate:.1f} images/s, {cost * 1e3:.2f} ms of processor time per image")
    print(f"server, of the engine on the processor time that clients leave: {answered / seconds / (rate * left):.1%}")
    if not options.term and not options.hup:
        print(f"the same in processor time per image: {cost / ((seen[-1][0] - seen[0][0]) / answered):.1%}")


def report(load_: Load, seconds: float, clients: float, seen: list[tuple[float, float]], options: Any) -> None:
    times = np.array(load_.times) * 1e3
    answered = load_.counts["200"]
    print(f"{options.clients} clients, {seconds:.1f} s: {dict(load_.counts)}")
    print(f"{answered / seconds:.1f} images/s; p50 {np.median(times):.0f} ms, p99 {np.percentile(times, 99):.0f} ms")
    memory = [seen[round(part * (len(seen) - 1))][1] for part in (0, 0.25, 0.5, 0.75, 1)]
    print(f"server's memory in MB: {', '.join(f'{one:.0f}' for one in memory)}")
    used = seen[-1][0] - seen[0][0]
    print(f"processor time: server {used:.1f} s, {used / answered * 1e3:.2f} ms per image; clients {clients:.1f} s")


if __name__ == "__main__":
    main()

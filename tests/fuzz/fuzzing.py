"""Feed one parser with damaged copies of valid files, in a process of its own with little memory.

    python tests/fuzz/fuzzing.py TARGET [--seconds N | --examples N] [--seed N]

Exit code 1, with the smallest example that hypothesis finds, if a parser raises anything but a `MultiboxError`, takes
more than `EXAMPLE_SECONDS` of processor time or `MOST_MEMORY` of memory, or writes outside of its cache folder.
"""

import argparse
import math
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_samples import SAMPLES, Files
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from multibox.errors import MultiboxError

EXAMPLE_SECONDS = 10
MOST_MEMORY = 1 << 30
EXAMPLES = 100
"""Of one run of hypothesis; runs follow each other, each with other seeds, until the time or the number is reached."""

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]+")
NUMBERS = [
    *(b"-1", b"0", b"-0.0", b"1", b"2", b"0.5", b"1e999", b"-1e999", b"1e-400", b"nan", b"-inf", b"NaN", b"Infinity"),
    *(b"2147483648", b"4294967296", b"-9223372036854775809", b"99999999999999999999", b"7" * 5000, b"1e308", b"1e18"),
    *(b"0x10", b"1_0", b"1,5", b"1.", b".", b"", b"true", b"null", b"[]", b"{}", b'"x"', b'"1"', b"[1]", b"\xd9\xa3"),
]
WORDS = [
    *(b"../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"C:\\x", b"a" * 300, b"\0", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"\n", b"\r", b"\t", b" ", b"", b"&e;", b"null", b"true", b"%20", b"\\ud800", b"\xe9", b"\xc3\xa9", b"..", b"."),
    *(b"\x1b[31m", b"'", b'"', b",", b";", b":", b"<", b">", b"]]>", b"<!--", b"#", b"!!python/object", b"*a", b"&a"),
    *(b"background", b"images", b"train", b"val", b"rle", b"segmentation", b"bbox", b"polygon"),
]
OPENINGS = [b"[", b"{", b'{"a":', b"[1,", b"<a>", b'"', b"(", b"- ", b"&a [*a,"]
WHOLES = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1FFFFFFF, 0xCED7230A, 0x10000, 3]

Change = tuple[int, int, int, int, int]
CHANGES = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 11), *[st.integers(0, 1 << 16)] * 2, st.integers(0, 255)),
    min_size=1,
    max_size=6,
)
"""Of each damage: which file, its kind, and three numbers whose meaning the kind decides."""


def changed(data: bytes, change: tuple[int, int, int, int], other: bytes) -> bytes:
    """Return the bytes of a file with one damage done to them."""
    kind, first, second, byte = change
    at = first * len(data) // ((1 << 16) + 1)
    length = second * len(data) // (1 << 16)
    if kind == 0:  # a bit flipped
        return data[:at] + bytes([data[at] ^ 1 << byte % 8]) + data[at + 1 :] if data else b""
    if kind == 1:  # a byte set
        return data[:at] + bytes([byte]) + data[at + 1 :]
    if kind == 2:  # cut off
        return data[:at]
    if kind == 3:  # a piece taken out
        return data[:at] + data[at + second % 64 :]
    if kind == 4:  # a piece many times
        return data[: at + 40] + data[at : at + second % 40] * (byte * 8) + data[at + 40 :]
    if kind == 5:  # spliced with another file
        return data[:at] + other[length * len(other) // max(1, len(data)) :]
    if kind == 6:  # a whole number in binary
        order = "<I" if byte % 2 else ">I"
        return data[:at] + struct.pack(order, WHOLES[second % len(WHOLES)]) + data[at + 4 :]
    if kind == 7:  # nested deeply
        return data[:at] + OPENINGS[second % len(OPENINGS)] * (1 << byte % 15) + data[at:]
    if kind == 8:
        return replaced(data, NUMBER, first, NUMBERS[second % len(NUMBERS)])
    if kind == 9:
        return replaced(data, WORD, first, WORDS[second % len(WORDS)])
    if kind == 10:  # a word where another stands
        words = WORD.findall(data)
        return replaced(data, WORD, first, words[second % len(words)]) if words else data
    return data[:at] + WORDS[second % len(WORDS)] * (1 + byte % 3) + data[at:]


def replaced(data: bytes, pattern: re.Pattern[bytes], which: int, by: bytes) -> bytes:
    """Return the data with one of the matches of a pattern replaced."""
    found = list(pattern.finditer(data))
    if not found:
        return data
    match = found[which % len(found)]
    return data[: match.start()] + by + data[match.end() :]


def damaged(files: Files, changes: list[Change]) -> Files:
    """Return a sample of which some files are damaged."""
    held, names = dict(files), sorted(files)
    for file, *change in changes:
        name, other = names[file % len(names)], names[file // 7 % len(names)]
        held[name] = changed(held[name], tuple(change), held[other])[: 1 << 19]
    return held


class TooSlowError(Exception):
    """A parser took too long."""


def too_slow(*_: object) -> None:
    raise TooSlowError(f"more than {EXAMPLE_SECONDS} s of processor time")


class Guard:
    """Notices what is written outside of the cache folder."""

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.armed = (str(allowed), os.devnull), False
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        writing = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate")
        if event == "open" and isinstance(arguments[2], int):
            writing = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        writing = writing or event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect")
        place = str(arguments[0])
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder, as rmtree does
            place = f"{Path(f'/proc/self/fd/{arguments[1]}').readlink()}/{place}"
        if writing and not place.startswith(self.allowed):
            self.found.append(f"{event} {place}")


def places(root: Path) -> Iterator[Path]:
    """Yield new empty folders."""
    number = 0
    while True:
        number += 1
        place = root / f"{number:06}"
        place.mkdir()
        yield place


def fuzz(target: str, seconds: float, most: float, start: int) -> tuple[int, float]:
    """Run a target until the time is over or it saw the most examples; return their number and the slowest's seconds.

    Without a limit of time, the same seed gives the same examples with the same version of hypothesis.
    """
    make, parse = SAMPLES[target]
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    cache = root / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    folders, guard = places(root), Guard(cache)
    samples = make(next(folders))
    for files in samples:  # a sample that is refused tests nothing
        parse(written(files, next(folders)))
    end, seen, slowest = time.monotonic() + seconds, 0, 0.0

    def example(sample: int, changes: list[Change]) -> None:
        nonlocal seen, slowest
        if time.monotonic() > end or seen >= most:
            return
        seen += 1
        place = written(damaged(samples[sample], changes), next(folders))
        signal.setitimer(signal.ITIMER_PROF, EXAMPLE_SECONDS)
        guard.armed, began = True, time.process_time()
        try:
            parse(place)
        except MultiboxError as error:
            text = str(error)
            assert text and "Traceback" not in text, "an error without a sentence"
        finally:
            guard.armed = False
            slowest = max(slowest, time.process_time() - began)
            signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(place)
        assert not guard.found, guard.found
        shutil.rmtree(cache, ignore_errors=True)

    signal.signal(signal.SIGPROF, too_slow)
    limit_memory()
    options = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
        print_blob=False,
    )
    numbers = random.Random(start)
    try:
        while time.monotonic() < end and seen < most:
            draws = given(st.integers(0, len(samples) - 1), CHANGES)(example)
            seed(numbers.getrandbits(64))(options(draws))()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return seen, slowest


def written(files: Files, place: Path) -> Path:
    """Write a sample's files into a folder."""
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def limit_memory() -> None:
    """Let this process take at most `MOST_MEMORY` more than it has."""
    with Path("/proc/self/statm").open() as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


Parse = Callable[[Path], None]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.set_int_max_str_digits(4300)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=SAMPLES)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--examples", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="drawn anew without it")
    asked = parser.parse_args()
    try:
        count, longest = fuzz(asked.target, asked.seconds, asked.examples, asked.seed)
    except BaseException:
        sys.stderr.write(f"target {asked.target}, seed {asked.seed}\n")
        raise
    sys.stdout.write(f"{asked.target}: {count} examples, the slowest {longest:.1f} s, seed {asked.seed}\n")

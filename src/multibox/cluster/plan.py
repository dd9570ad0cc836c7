"""The division of a job into numbered blocks, and the folder of results that remembers it.

The folder holds `_plan.json`, one `part-00042.parquet` per finished block, and `_SUCCESS` at the end; readers of
Parquet pass over names that begin with an underscore. A part appears whole or not at all and its content follows from
the plan, so a block that is done twice, by a process thought dead, changes nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NamedTuple

from multibox import __version__
from multibox.cluster.places import join, kind_of, names_in, open_binary, read_bytes, remove, write_whole
from multibox.errors import ConfigError

BLOCK = 256
"""Images per block: about 2 s of one core. Starting a block takes some 10 ms."""
PLAN, FINISHED = "_plan.json", "_SUCCESS"
KEY = b"multibox"
"""Name of the Parquet metadata of a part: its `Part` as JSON."""
_FORMAT = 1
_READERS = 16
_OWN_PART = re.compile(r"part-\d{5,}\.parquet")
"""Other programs write files such as part-00000-ab12.parquet."""


class Block(NamedTuple):
    """Images that are done together and become one part."""

    kind: str
    """"files", "parquet" or "tar"."""
    files: tuple[str, ...]
    """The images; or one Parquet file or tar."""
    sizes: tuple[int | None, ...] = ()
    """Bytes of the files, where the listing tells them."""
    first: int = 0
    """First row of a Parquet file; position in bytes of the first member of a tar."""
    images: int | None = None
    """How many; None takes all of a tar."""
    options: str = ""
    """Options of the store that holds the files."""

    def encode(self) -> bytes:
        """Return the block as JSON; names that are no valid text survive."""
        return json.dumps(self, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes) -> "Block":
        """Return the block that `encode` gave."""
        kind, files, sizes, *rest = json.loads(data)
        return Block(kind, tuple(files), tuple(sizes), *rest)


class Plan(NamedTuple):
    """What a job computes: two jobs of one plan have the same rows."""

    multibox: str
    model: str
    """SHA-256 of the model's files."""
    threshold: float | None
    flip: bool
    background: tuple[int, ...] | None
    images: int | None
    """None where tars are counted only when they are read."""
    blocks: int
    source: str
    """SHA-256 of all blocks: names, sizes and their division."""

    @property
    def digest(self) -> str:
        """A short name of the plan, which every part carries."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]

    def part(self, number: int) -> str:
        """Return the file name of a block's results."""
        return f"part-{number:0{max(5, len(str(self.blocks - 1)))}}.parquet"


class Part(NamedTuple):
    """What is known of a finished block without its rows."""

    plan: str
    block: int
    images: int
    objects: int
    unreadable: int
    complaint: str
    """What is wrong with the first unreadable image."""


def make_plan(
    blocks: Sequence[Block],
    model: str,
    threshold: float | None,
    flip: bool = False,
    background: tuple[int, ...] | None = None,
) -> Plan:
    """Return the plan of a job; `model` is the hash of the model's files."""
    source = hashlib.sha256()
    for block in blocks:
        source.update(block.encode())
    counts = [block.images for block in blocks if block.images is not None]
    images = sum(counts) if len(counts) == len(blocks) else None
    return Plan(__version__, model, threshold, flip, background, images, len(blocks), source.hexdigest())


def divide(names: Sequence[str], sizes: Sequence[int | None], options: str = "", size: int = BLOCK) -> list[Block]:
    """Return blocks of up to `size` image files."""
    return [
        Block(
            "files", tuple(names[at : at + size]), tuple(sizes[at : at + size]), 0, len(names[at : at + size]), options
        )
        for at in range(0, len(names), size)
    ]


def open_folder(out: str, plan: Plan, *, overwrite: bool = False) -> list[Part]:
    """Make a folder for the results, or return the parts that an earlier run of the same plan finished there.

    Args:
        out: the folder, local or in a store.
        plan: what is to be computed.
        overwrite: remove the results of another plan first.

    Raises:
        ConfigError: the folder holds something else, or results of another plan.
    """
    if kind_of(out) == "file":
        raise ConfigError(f"--out {out} is a file, expected a folder for the parts; give another name")
    names = names_in(out)
    if PLAN not in names:
        if names and overwrite and _holds_results_alone(out, names):
            _remove_results(out, names)
        elif names:
            raise ConfigError(
                f"--out {out} holds other files ({sorted(names)[0]}), expected a new folder or one that --ray began; "
                "give another name"
            )
        write_whole(join(out, PLAN), _as_json(plan))
        return []
    differences = _differences(read_bytes(join(out, PLAN)), plan)
    if differences and not overwrite:
        raise ConfigError(
            f"--out {out} was begun with {differences}; repeat the command as it was, give another --out, or "
            "--overwrite to start again"
        )
    if differences or overwrite:
        _remove_results(out, names)
        write_whole(join(out, PLAN), _as_json(plan))
        return []
    return _finished_parts(out, plan, [number for number in range(plan.blocks) if plan.part(number) in names])


def _holds_results_alone(out: str, names: Iterable[str]) -> bool:
    """Return whether a folder without a plan holds nothing but results of ours, by their names and the first part."""
    parts = sorted(name for name in names if name != FINISHED)
    if not all(map(is_part, parts)):
        return False
    try:
        for name in parts[:1]:
            with open_binary(join(out, name)) as file:
                return KEY in (import_module("pyarrow.parquet").read_metadata(file).metadata or {})
    except import_module("pyarrow").ArrowException:
        return False
    return True


def _is_result(name: str) -> bool:
    return is_part(name) or name == FINISHED


def _remove_results(out: str, names: Iterable[str]) -> None:
    for name in sorted(filter(_is_result, names)):
        remove(join(out, name))


def is_part(name: str) -> bool:
    """Return whether a file name is that of a part."""
    return _OWN_PART.fullmatch(name) is not None


def finish(out: str, parts: Iterable[Part], plan: Plan) -> None:
    """Mark the folder as finished, once every part is there.

    Raises:
        ConfigError: a part is missing, since something else removed it.
    """
    names = names_in(out)
    missing = [plan.part(number) for number in range(plan.blocks) if plan.part(number) not in names]
    if missing or len({part.block for part in parts}) != plan.blocks:
        raise ConfigError(
            f"--out {out}: {len(missing)} parts are missing ({', '.join(missing[:1])}) though they were written; "
            "the same command writes them again"
        )
    write_whole(join(out, FINISHED), b"")


def _finished_parts(out: str, plan: Plan, numbers: Sequence[int]) -> list[Part]:
    """Return what the parts say of themselves; one that is damaged, as after a power cut, is left out."""
    parquet, pyarrow = import_module("pyarrow.parquet"), import_module("pyarrow")

    def look(number: int) -> Part | None:
        place = join(out, plan.part(number))
        try:
            with open_binary(place) as file:
                found: Any = parquet.read_metadata(file).metadata or {}
            part = Part(*json.loads(found[KEY]))
        except (pyarrow.ArrowException, KeyError, ValueError, TypeError):
            return None
        if part.plan != plan.digest or part.block != number:
            raise ConfigError(f"{place} belongs to another run, expected part {number} of this one; give another --out")
        return part

    with ThreadPoolExecutor(_READERS) as pool:
        return [part for part in pool.map(look, numbers) if part is not None]


def _as_json(plan: Plan) -> bytes:
    return (json.dumps({"format_version": _FORMAT, **plan._asdict()}, indent=1) + "\n").encode()


def _differences(found: bytes, plan: Plan) -> str:
    """Return in words how a stored plan differs; empty if it is the same."""
    try:
        stored: Any = json.loads(found)
        version, own = stored.pop("format_version"), json.loads(json.dumps(plan._asdict()))
    except (ValueError, KeyError, AttributeError, TypeError):
        return "a plan that cannot be read"
    if version != _FORMAT:
        return f"version {version} of the plan, expected {_FORMAT}"
    different = [name for name in own if stored.get(name, ...) != own[name]]
    words = {
        "model": "another model",
        "source": _images_differ(stored.get("images"), own["images"]),
        "flip": f"{'' if stored.get('flip') else 'no '}--flip",
        "threshold": f"{_threshold(stored.get('threshold'))} (now {_threshold(own['threshold'])})",
        "background": f"{_background(stored.get('background'))} (now {_background(own['background'])})",
    }
    return " and ".join(
        words.get(name, f"{name} {stored.get(name)} (now {own[name]})")
        for name in different
        if name not in ("images", "blocks") or "source" not in different
    )


def _images_differ(before: int | None, now: int | None) -> str:
    if before == now:
        # The number, if it is known, says nothing
        return "other images: names, sizes or their order differ"
    then, since = ("a number not known" if number is None else f"{number:,}" for number in (before, now))
    return f"other images ({then} then, {since} now)"


def _threshold(value: float | None) -> str:
    return "the model's own threshold" if value is None else f"threshold {value:g}"


def _background(value: list[int] | None) -> str:
    return "the model's own background" if value is None else f"background {','.join(map(str, value))}"

"""What a training run says about its data before it starts: the fast part of an examination, in a few lines."""

import contextlib
import json
import shlex
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import multibox
from multibox.doctor.examine import examine
from multibox.doctor.findings import SEVERITIES
from multibox.errors import MultiboxError
from multibox.files import write_text_whole

_TOLD_BY_READERS = (
    *("reversed-box", "empty-box", "outside-box", "clipped-box", "not-a-number", "outline-as-box"),
    *("unreadable-label", "label-without-image", "list-names-missing-file", "unreadable-image", "class-out-of-range"),
    *("exif-mismatch", "size-mismatch", "empty-file", "unknown-encoding", "missing-category", "dangling-id"),
)
_TOLD_BY_ADVICE = ("swapped-axes", "scale-mismatch", "rare-class", "unused-class", "no-objects")
TOLD_BY_TRAINING = frozenset((*_TOLD_BY_READERS, *_TOLD_BY_ADVICE))
"""Kinds of which a run that starts has a note of its own."""
SHOWN = 8
"""Kinds named in a line."""
MOST_IMAGES = 200_000
"""Images up to which a run looks at its data; more would take minutes and much memory."""

Counts = Mapping[str, Mapping[str, int]]
"""How many findings there are of each kind, by severity."""


def glance(paths: Sequence[str], format: str | None = None) -> Counts:
    """Return how many errors and warnings labels and image headers show, without decoding images.

    What cannot be examined is no matter here: reading the data says it.
    """
    counts: dict[str, dict[str, int]] = {}
    for path in paths:
        found = []
        with contextlib.suppress(MultiboxError):
            found = examine(path, format=format, fast=True)
        for one in found:
            if one.severity != "note":
                kinds = counts.setdefault(one.severity, {})
                kinds[one.kind] = kinds.get(one.kind, 0) + 1
    return counts


def cached_glance(paths: Sequence[str], format: str | None, cache: Path, digest: str) -> Counts:
    """Return what `glance` does, kept in a cache file for data of this fingerprint."""
    file = cache / f"doctor-{multibox.__version__}-{digest[:24]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        held = json.loads(file.read_text(encoding="utf-8"))
        return {severity: {**held[severity]} for severity in SEVERITIES if severity in held}
    counts = glance(paths, format)
    with contextlib.suppress(OSError):
        write_text_whole(file, json.dumps(counts) + "\n")
    return counts


def glance_lines(counts: Counts, paths: Sequence[str], told: Container[str] = ()) -> list[str]:
    """Return a line for the errors and one for the warnings, with counts by kind.

    Args:
        counts: What `glance` returned.
        paths: The data sets, for the command that tells more.
        told: Kinds that something else tells.
    """
    lines: list[str] = []
    for severity in SEVERITIES:
        kept = {kind: count for kind, count in counts.get(severity, {}).items() if kind not in told}
        if kept:
            shown = ", ".join(f"{kind} {count:,}" for kind, count in list(kept.items())[:SHOWN])
            more = f" and {len(kept) - SHOWN} more kinds" if len(kept) > SHOWN else ""
            total = sum(kept.values())
            lines.append(f"the data has {total:,} {severity}{'' if total == 1 else 's'}: {shown}{more}")
    if lines:
        lines[-1] += f"; {shlex.join(['multibox', 'doctor', *paths])} tells more"
    return lines

"""What a training run says about its data before it starts: the fast part of an examination, in a few lines."""

from collections import Counter
from collections.abc import Iterable, Sequence

from multibox.doctor.examine import examine
from multibox.doctor.findings import SEVERITIES, Finding
from multibox.errors import MultiboxError

_TOLD_BY_READERS = (
    *("reversed-box", "empty-box", "outside-box", "clipped-box", "not-a-number", "outline-as-box"),
    *("unreadable-label", "label-without-image", "list-names-missing-file", "unreadable-image", "class-out-of-range"),
    *("exif-mismatch", "size-mismatch"),
)
_TOLD_BY_ADVICE = ("swapped-axes", "scale-mismatch", "rare-class", "unused-class", "no-objects")
TOLD_BY_TRAINING = frozenset((*_TOLD_BY_READERS, *_TOLD_BY_ADVICE))
"""Kinds of which a run that starts has a note of its own."""
SHOWN = 8
"""Kinds named in a line."""


def glance(paths: Sequence[str], format: str | None = None) -> list[Finding]:
    """Return the errors and warnings that labels and image headers show, without decoding images.

    What cannot be examined is no matter here: reading the data says it.
    """
    found: list[Finding] = []
    for path in paths:
        try:
            found += examine(path, format=format, fast=True)
        except MultiboxError:
            continue
    return [one for one in found if one.severity != "note"]


def glance_lines(findings: Iterable[Finding], paths: Sequence[str], told: Iterable[str] = ()) -> list[str]:
    """Return a line for the errors and one for the warnings, with counts by kind.

    Args:
        findings: What `glance` returned.
        paths: The data sets, for the command that tells more.
        told: Kinds that something else tells.
    """
    kept = [one for one in findings if one.kind not in frozenset(told)]
    lines: list[str] = []
    for severity in SEVERITIES:
        counts = Counter(one.kind for one in kept if one.severity == severity)
        if counts:
            shown = ", ".join(f"{kind} {count:,}" for kind, count in list(counts.items())[:SHOWN])
            more = f" and {len(counts) - SHOWN} more kinds" if len(counts) > SHOWN else ""
            total = sum(counts.values())
            lines.append(f"the data has {total:,} {severity}{'' if total == 1 else 's'}: {shown}{more}")
    if lines:
        lines[-1] += f"; multibox doctor {' '.join(paths)} tells more"
    return lines

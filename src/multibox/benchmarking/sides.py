"""torchvision and ours with the same weights: float32, bfloat16 and exported, compared before they are timed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from multibox.benchmarking.agreement import EXACT, ROUNDED, Tolerance, agree
from multibox.benchmarking.eager import eager_subject
from multibox.benchmarking.exported import exported_subject
from multibox.benchmarking.subject import Subject
from multibox.benchmarking.torchvision_peer import comparable, torchvision_twin, twin_subject
from multibox.benchmarking.workload import synthetic_pictures
from multibox.inference.detector import Detector

PICTURES = 4
BEST = 20
"""Of each picture's detections in bfloat16, so many of the best need a partner in float32."""


def torchvision_sides(detector: Detector, out: Path, threads: int | None, precision: str | None) -> list[Subject]:
    """Return torchvision's network, ours, and ours exported to `out` where that can be done; float32 comes first.

    Raises:
        ConfigError: torchvision has no such network.
    """
    detector = comparable(detector)
    twin = torchvision_twin(detector)
    precisions = dict.fromkeys(("float32", precision or "bfloat16"))
    found = [twin_subject(twin, detector, each) for each in precisions]
    found += [eager_subject(detector, each) for each in precisions]
    if find_spec("onnxscript"):
        from multibox.exporting import export

        export(detector, out)
        found.append(exported_subject(out, threads, precision))
    return found


def compare(subjects: Sequence[Subject], size: tuple[int, int]) -> list[str]:
    """Assert that all subjects find what the first one does, on pictures of the network's size; say how alike they are.

    At other sizes torchvision's resize, which does not antialias, shows the network another picture.

    Args:
        subjects: the first one computes in float32.
        size: height and width of the network's input.

    Raises:
        DisagreementError: some find other objects.
    """
    pictures = synthetic_pictures(PICTURES, (size[1], size[0]))
    first, *others = subjects
    wanted = first.predict(pictures)
    notes = []
    for other in others:
        tolerance, best = (EXACT, None) if other.exact else (ROUNDED, BEST)
        alike = agree(f"{first.name} and {other.name}", wanted, other.predict(pictures), tolerance, best)
        among = f"of the best {best}" if best else f"of {alike.detections}"
        notes.append(
            f"{other.name} finds what {first.name} finds: {alike.share:.1%} {among} matched (scores within "
            f"{alike.score:.1g}, IoU from {alike.overlap:.3f}; {_words(tolerance)})"
        )
    return notes


def _words(tolerance: Tolerance) -> str:
    return (
        f"at least {tolerance.share:.0%} were asked, within a share of {tolerance.score:g} of the score and an IoU of "
        f"{tolerance.overlap:g}"
    )

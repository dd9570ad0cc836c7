"""What an exported file says of itself: one JSON text under the key `multibox`."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multibox.exporting.graph import Dialect
from multibox.inference.detector import Detector
from multibox.inference.engines import FORMAT_VERSION

_PATH = re.compile(r"(?<![\w/:])(?:[A-Za-z]:|~|\.{1,2})?(?:[\\/][^\s\\/,;:()\"']+){2,}")
"""A path with folders that is absolute, or begins with ~, . or ..; not the end of a URL."""


def describe(
    detector: Detector, dialect: Dialect, *, license: str = "", source: str = "", precision: str = "fp32"
) -> dict[str, Any]:
    """Return the metadata, but for the report of the verification."""
    config = detector.config
    return {
        "format_version": FORMAT_VERSION,
        "dialect": dialect,
        "precision": precision,
        "names": list(detector.names),
        "preset": config.preset,
        "input_size": list(config.model.input_size),
        "score": config.model.score,
        "post": config.to_dict()["post"],
        "license": license,
        "source": without_folders(source),
        "weights_sha256": weights_hash(detector.model.state_dict()),
    }


def without_folders(text: str) -> str:
    """Return a text in which every path with folders is its last name: files go to others, and need no home folders."""
    return _PATH.sub(lambda path: re.split(r"[\\/]", path[0])[-1], text)


def as_text(values: Mapping[str, Any]) -> str:
    """Return the metadata as it stands in the file."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and values of all weights, sorted by name; however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()

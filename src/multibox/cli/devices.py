"""Where a model runs."""

from importlib.util import find_spec
from pathlib import Path


def checked_device(asked: str, model: Path) -> str:
    """Return the device that is meant; `cpu` without a look at PyTorch where the model needs none of it.

    Raises:
        ConfigError: this machine has no such device.
    """
    from multibox.inference.engines import SUFFIXES

    if asked == "cpu" or (asked == "auto" and (model.suffix in SUFFIXES or find_spec("torch") is None)):
        return "cpu"
    from multibox.training.precision import choose_device

    return choose_device(asked)

"""Where a model answers."""


def checked_device(asked: str) -> str:
    """Return the device that is meant; `cpu`, all that an exported file needs, without a look at PyTorch.

    Raises:
        ConfigError: this machine has no such device.
    """
    if asked == "cpu":
        return asked
    from multibox.training.precision import choose_device

    return choose_device(asked)

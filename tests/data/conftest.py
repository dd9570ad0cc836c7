from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The real sets beside the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: the real sets are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def image() -> Callable[..., Path]:
    """Write a small image of a given size; the suffix says in which format."""

    def write(path: Path, size: tuple[int, int] = (100, 50), shade: int = 128) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade, shade, shade)).save(path)
        return path

    return write


@pytest.fixture
def case() -> Callable[[str], Path]:
    """Return the folder of a known failure of others, which tests only read."""

    def find(name: str) -> Path:
        folder = SHARED / "cases" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here: the known failures are not part of the repository")
        return folder

    return find

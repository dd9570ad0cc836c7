"""What docs/serve.md shows works."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

from multibox.serving.bodies import MOST_PARTS
from multibox.serving.connections import HEAD_SECONDS
from multibox.serving.counters import Counters
from multibox.serving.front import Limits
from multibox.serving.looking import MOST_PIXELS

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs/serve.md").read_text(encoding="utf-8")
sys.path.insert(0, str(HERE))
try:
    from http_help import found, picture, serving
finally:
    sys.path.remove(str(HERE))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(picture(64, 48, "JPEG"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:unclosed")
def test_the_python_client_works(here, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with serving() as port:
        exec(compile(block.replace(":8000", f":{port}"), "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out == "64 48 [('cat', 0.87654, [0.0, 0.0, 64.0, 48.0])]\n"


def test_the_curl_commands_work(here):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = re.findall(r"^curl .*$", PAGE, re.MULTILINE)
    with serving() as port:
        one, two = (
            json.loads(subprocess.run(shlex.split(line.replace(":8000", f":{port}")), capture_output=True).stdout)
            for line in lines
        )
    dog = {"label": 1, "name": "dog", "score": 0.4, "box": [0.0, 0.0, 32.0, 24.0]}
    assert one["detections"] == [*found(64, 48)["detections"], dog]
    assert two == [found(64, 48)] * 2


def test_the_limits_are_those_of_the_code():
    limits = Limits()
    assert (limits.receive, limits.in_flight, HEAD_SECONDS) == (60, 512_000_000, 20)
    assert f"{limits.body // 10**6} MB of body, {MOST_PIXELS // 10**6} million pixels or {MOST_PARTS} images" in PAGE
    text = Counters({}).exposition()[0].decode()
    for name in re.findall(r"`(multibox_\w+)`", PAGE):
        assert f"# HELP {name} " in text, name

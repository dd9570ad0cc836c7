"""The description of the server is true: schemathesis asks for everything that it says, and for what it forbids."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

from multibox.serving.schema import REASONS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from http_help import Fake, ask, picture, serving
finally:
    sys.path.remove(str(HERE))

TOKEN = "correct-horse-battery"


def test_the_description_names_every_address_and_its_errors():
    with serving(Fake("pets"), Fake("other")) as port:
        described = ask(port, "/openapi.json").value
        for path, operations in described["paths"].items():
            (method,) = operations
            at = path.replace("{name}", "pets").replace("{version}", "1").replace("{verb}", "load")
            status = ask(port, at, method=method.upper()).status
            assert status not in (404, 405, 500), path
            assert str(status) in operations[method]["responses"], (path, status)
        predict = described["paths"]["/predict"]["post"]
        assert predict["parameters"][2]["schema"]["enum"] == ["pets", "other"]
        assert described["security"] == []
    assert set(predict["responses"]) == {"200", *map(str, REASONS)}
    assert described["openapi"] == "3.1.0"


def test_a_token_is_described():
    with serving(token=TOKEN) as port:
        assert ask(port, "/openapi.json").status == 401
        described = ask(port, "/openapi.json", authorization=f"Bearer {TOKEN}").value
    assert described["security"] == [{"token": []}]
    assert described["paths"]["/v2/health/ready"]["get"]["security"] == []


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path):
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed (extra dev)")
    with serving(token=TOKEN) as port:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"]
        # What is described as base64 need be no image, so a request that fits the schema may well be refused
        checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        more = ["--max-examples", "15", "--seed", "1", "--no-color", "-H", f"Authorization: Bearer {TOKEN}"]
        done = subprocess.run([*command, *checks, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-5000:]
        assert ask(port, body=picture(), content_type="image/png", authorization=f"Bearer {TOKEN}").status == 200

"""The Dockerfile: what docker would run, run here without docker."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    "FROM",
    "ARG",
    "WORKDIR",
    "RUN",
    "COPY",
    "ENV",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def read_dockerfile():
    """Return the instructions in order, as (word, rest), with continued lines joined and comments left out."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


def last(word):
    """Return what counts in the final stage."""
    return [rest for name, rest in read_dockerfile() if name == word][-1]


def ignored():
    return [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]


def test_every_instruction_is_one_of_dockers_and_lists_are_json():
    for word, rest in read_dockerfile():
        assert word in KNOWN
        if rest.startswith("["):
            assert all(isinstance(each, str) for each in json.loads(rest))


def test_it_is_small_and_runs_without_root():
    stages = [rest for word, rest in read_dockerfile() if word == "FROM"]
    assert all("-slim" in stage for stage in stages)
    assert stages[0].endswith(" AS build")
    final = read_dockerfile()[-10:]
    assert int(last("USER")) > 0
    order = [word for word, _ in final]
    assert order.index("USER") < order.index("ENTRYPOINT") < order.index("CMD")
    install = next(rest for word, rest in read_dockerfile() if "pip" in rest)
    assert "'.[serve]'" in install, "only what serving needs"
    assert "--no-cache-dir" in install


def test_what_is_copied_is_not_ignored_and_nothing_else_is_sent():
    """`*` ignores all, then each exception is named."""
    rules = ignored()
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for word, rest in read_dockerfile() if word == "COPY" and "--from" not in rest
              for name in rest.split()[:-1]}  # fmt: skip
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)


def test_every_option_exists_and_the_secret_is_no_part_of_the_image():
    from typer.main import get_command

    from multibox.cli.main import app

    program, verb, *arguments = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
    assert (program, verb) == ("multibox", "serve")
    command = get_command(app).commands["serve"]
    context = command.make_context("serve", arguments)
    assert context.params["host"] == "0.0.0.0"
    assert context.params["models"] == ["coco"]
    assert str(context.params["port"]) == last("EXPOSE")
    assert context.params["token"] is None
    token = next(option for option in command.params if option.name == "token")
    assert token.envvar == "MULTIBOX_TOKEN"
    assert not any("TOKEN" in rest for word, rest in read_dockerfile() if word in ("ENV", "ARG"))


@pytest.mark.slow
def test_without_a_token_it_refuses_to_start():
    command = [sys.executable, "-m", *json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    environment = {name: value for name, value in os.environ.items() if name != "MULTIBOX_TOKEN"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "MULTIBOX_TOKEN" in done.stderr


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the image is Linux's")
def test_its_commands_build_serve_and_end(tmp_path):
    """The same pip line on the same files, the same command, health check and signal, in a venv on a loopback port."""
    for rule in ignored():
        if rule.startswith("!"):
            source = ROOT / rule[1:]
            leave_out = shutil.ignore_patterns("__pycache__")
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tmp_path / source.name, **({"ignore": leave_out} if source.is_dir() else {}))
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = next(rest for word, rest in read_dockerfile() if word == "RUN" and "pip" in rest)
    arguments = shlex.split(install.replace("${PACKAGES}", "").replace("/opt/multibox", str(venv)))
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip cannot install here: {done.stderr[-300:]}")
    port = str(free_port())

    def here(text):
        """Put the port and the loopback address in place of the container's."""
        return [part.replace("8000", port).replace("0.0.0.0", "127.0.0.1") for part in json.loads(text)]

    environment = {"PATH": f"{venv}/bin:{os.environ['PATH']}", "MULTIBOX_TOKEN": "a-token-of-the-test"}
    empty = tmp_path / "models"
    empty.mkdir()
    server = subprocess.Popen([*here(last("ENTRYPOINT")), *here(last("CMD"))], env=environment, cwd=empty)
    try:
        check = here(last("HEALTHCHECK").split("CMD ", 1)[1])
        deadline = time.monotonic() + 60
        while subprocess.run(check, env=environment, capture_output=True).returncode:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        ask = [sys.executable, "-c", "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"]
        refused = subprocess.run([*ask, f"http://127.0.0.1:{port}/v2/models/coco"], capture_output=True, text=True)
        assert "401" in refused.stderr
        assert not list(empty.iterdir()), "it writes nothing where it may not"
    finally:
        server.send_signal(signal.Signals[last("STOPSIGNAL")])
        ended = server.wait(40)
    assert ended == 0
    assert subprocess.run(check, env=environment, capture_output=True).returncode, "unhealthy once it is gone"

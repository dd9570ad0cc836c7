"""`multibox export --to web`: a static folder whose page runs the model in the browser, with onnxruntime-web."""

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multibox.data.pixels import WHITE
from multibox.errors import ConfigError
from multibox.files import write_text_whole
from multibox.inference.engines import open_engine
from multibox.pages.live_page import LOWEST, live_page, live_script
from multibox.pages.page import asset
from multibox.thresholds import class_thresholds, just_below

HOW = "run `npm install onnxruntime-web`, then give --runtime node_modules/onnxruntime-web/dist"
MOST_CANDIDATES = 2000
"""Boxes before suppression that the page gets, best first; its sliders choose among them."""
PAGE, SCRIPT, MODEL, LICENCES = "index.html", "multibox.js", "model.onnx", "LICENSES.txt"
_RUNTIME = {"script": "ort.wasm.min.js", "module": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
"""What the page needs of onnxruntime-web: the same files since its version 1.19, not the builds for WebGPU."""
_RULES = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self' blob: data:; "
    "img-src 'self' blob: data:; media-src 'self' blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of the page: the browser refuses every request to another host."""
_BANNER = re.compile(r"ONNX Runtime Web v(\S+)")
_MIT = """MIT License

Copyright (c) Microsoft Corporation. All rights reserved.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""Licence that the scripts of onnxruntime-web name; its package has no file of it."""


class Runtime(NamedTuple):
    """Files of onnxruntime-web."""

    files: dict[str, Path]
    """`script`, `module` and `wasm`."""
    licences: tuple[Path, ...]
    version: str


def check_runtime(runtime: Path | None) -> Runtime:
    """Return the files of onnxruntime-web in the folder that `--runtime` names.

    Raises:
        ConfigError: there is no such folder, or it does not hold them.
    """
    if runtime is None:
        raise ConfigError(f"--to web needs --runtime, the folder of onnxruntime-web that runs the model: {HOW}")
    if not runtime.is_dir():
        raise ConfigError(f"--runtime {runtime} is no folder, expected that of onnxruntime-web: {HOW}")
    # The package's own folder, or the one in which npm ran, is meant as well
    inside = (runtime, runtime / "dist", runtime / "node_modules" / "onnxruntime-web" / "dist")
    folder = next((each for each in inside if (each / _RUNTIME["script"]).is_file()), runtime)
    missing = [name for name in _RUNTIME.values() if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"--runtime {runtime} does not hold {missing[0]}, which onnxruntime-web has since version 1.19: {HOW}"
        )
    files = {kind: folder / name for kind, name in _RUNTIME.items()}
    with files["wasm"].open("rb") as file:
        head = file.read(4)
    if head != b"\0asm":
        raise ConfigError(f"{files['wasm']} is no WebAssembly file, so onnxruntime-web was not copied whole: {HOW}")
    banner = _BANNER.search(files["script"].read_text(encoding="utf-8", errors="replace")[:1000])
    return Runtime(files, tuple(_licences(folder)), banner[1] if banner else "of unknown version")


def _licences(folder: Path) -> Iterator[Path]:
    """Yield the licence files of the package, where there are any."""
    # Above a copied `dist` lies something of the user's
    for place in (folder, *([folder.parent] if (folder.parent / "package.json").is_file() else [])):
        for file in sorted(place.glob("*")):
            if file.is_file() and re.match(r"(?i)(licen[cs]e|thirdpartynotices|notice)", file.name):
                yield file


def write_web(model: Path, folder: Path, *, name: str, runtime: Path | None) -> list[str]:
    """Fill a folder that any static file server can serve, and return lines to print.

    Args:
        model: a .onnx file of the dialect plain that holds its weights.
        folder: an empty folder.
        name: what the page calls the model.
        runtime: the folder of onnxruntime-web.

    Raises:
        ConfigError: `runtime` does not hold onnxruntime-web.
        WeightsError: the model is foreign, broken or of another dialect.
    """
    found = check_runtime(runtime)
    about = open_engine(model, device="cpu").about
    files = {kind: _served(path.name) for kind, path in found.files.items()}
    for kind, path in found.files.items():
        shutil.copyfile(path, folder / files[kind])
    shutil.copyfile(model, folder / MODEL)
    script = _script()
    write_text_whole(folder / SCRIPT, script)
    # The version in each address keeps a browser from joining files of two exports out of its cache
    files = {kind: f"{file}?{found.version}" for kind, file in files.items()}
    files["model"] = f"{MODEL}?{_hash(model.read_bytes())}"
    size = (folder / MODEL).stat().st_size + found.files["wasm"].stat().st_size
    write_text_whole(folder / PAGE, _page(name, about, files, size, f"{SCRIPT}?{_hash(script.encode())}"))
    write_text_whole(folder / LICENCES, _licence_text(name, about, found))
    return [
        f"a page that runs {name} in the browser, with onnxruntime-web {found.version}; to see it, run in the folder "
        "`python -m http.server --bind 127.0.0.1` and open http://127.0.0.1:8000",
        "any static web host will do; cameras need https there",
    ]


def _served(name: str) -> str:
    # Some web servers do not know .mjs, and browsers run no module of an unknown type
    return name.replace(".mjs", ".js")


def _script() -> str:
    """Return the one script: in a page it shows the page, in a worker it runs the model."""
    return (
        "/* multibox: a detector in the browser. Apache-2.0; see LICENSES.txt. */\n"
        '"use strict";\n'
        'if (typeof document === "undefined") {\n'
        f"{asset('live-onnx-worker.js')}\n}} else {{\n{live_script('onnx')}\nglobalThis.multibox = multibox;\n}}\n"
    )


def _page(name: str, about: Mapping[str, Any], files: Mapping[str, str], size: int, script: str) -> str:
    names, post = about["names"], about["post"]
    thresholds = class_thresholds(post["thresholds"], names)
    web = {
        "files": files,
        "bytes": size,
        "score": min(LOWEST, just_below(min(thresholds))),
        "most": MOST_CANDIDATES,
        "background": about.get("background", WHITE),
    }
    return live_page(
        title=name,
        names=names,
        thresholds=thresholds,
        nms=post["nms_threshold"],
        most=post["max_detections"],
        backend="onnx",
        inclusive=bool(post.get("nms_inclusive")),
        about=str(about.get("preset") or ""),
        licence=str(about.get("license") or ""),
        extra={"web": web},
        source=script,
        rules=_RULES,
    )


def _licence_text(name: str, about: Mapping[str, Any], runtime: Runtime) -> str:
    """Return the licences of all that the folder holds."""
    source = f" Source: {about['source']}" if about.get("source") else ""
    scripts = ", ".join(_served(path.name) for path in runtime.files.values())
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in runtime.licences] or [_MIT]
    parts = [
        f"{PAGE}, {SCRIPT}: multibox, Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0",
        f"{MODEL}: the weights of {name}, licence: {about.get('license') or 'not stated'}.{source}",
        f"{scripts}: ONNX Runtime Web {runtime.version}, https://github.com/microsoft/onnxruntime",
    ]
    return "\n".join(parts) + "\n\n" + "\n".join(texts)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]

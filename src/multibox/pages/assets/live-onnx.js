"use strict";
/* The live page of an exported folder: the model runs in a worker of this script, with onnxruntime-web. Nothing is sent. */
{
const { data, el } = multibox;
const script = document.currentScript.src;
const WORDS = {
  en: {
    loading: (done, all) => `Loading the model: ${done} of ${all} MB`,
    starting: "Starting the model",
    ready: (seconds, threads) => `The model runs in this browser (loaded in ${seconds} s, ${threads} thread${threads > 1 ? "s" : ""}). Nothing leaves this device.`,
    file: "This page was opened as a file, and browsers let no file load a model. Serve its folder instead: run `python -m http.server` in the folder, then open http://127.0.0.1:8000",
    webassembly: "WebAssembly is missing or switched off in this browser, and the model needs it. Use a current Chrome, Edge, Firefox or Safari.",
    old: "This browser is too old for the model: it lacks SIMD in WebAssembly or OffscreenCanvas. Use Chrome 91, Firefox 114, Safari 16.4 or a newer one.",
    missing: (what) => `A file of this folder could not be loaded: ${what}. Copy the folder whole.`,
    memory: "This browser ran out of memory. Close other tabs, or take a smaller image.",
    image: "This browser cannot decode the file as an image. Expected JPEG, PNG, WebP or the like.",
    failed: (what) => `The model failed: ${what}`,
  },
  zh: {
    loading: (done, all) => `正在加载模型：${done} / ${all} MB`,
    starting: "正在启动模型",
    ready: (seconds, threads) => `模型在本浏览器中运行（加载用时 ${seconds} 秒，${threads} 个线程）。数据不会离开本设备。`,
    file: "此页面是以文件方式打开的，浏览器不允许文件加载模型。请在该文件夹中运行 `python -m http.server`，然后打开 http://127.0.0.1:8000",
    webassembly: "此浏览器没有 WebAssembly 或已将其关闭，而模型需要它。请使用新版 Chrome、Edge、Firefox 或 Safari。",
    old: "此浏览器版本过旧：缺少 WebAssembly SIMD 或 OffscreenCanvas。请使用 Chrome 91、Firefox 114、Safari 16.4 或更新版本。",
    missing: (what) => `无法加载文件夹中的文件：${what}。请完整复制该文件夹。`,
    memory: "浏览器内存不足。请关闭其他标签页，或使用较小的图像。",
    image: "此浏览器无法将该文件解码为图像。支持 JPEG、PNG、WebP 等格式。",
    failed: (what) => `模型运行失败：${what}`,
  },
};
const words = () => WORDS[document.documentElement.lang.startsWith("zh") ? "zh" : "en"];

/** What went wrong, as a sentence in the page's language. */
class Problem extends Error {
  constructor({ code, detail = "" }) {
    const text = words()[code] || words().failed;
    super(typeof text === "string" ? text : text(detail));
    this.code = code;
    this.detail = detail;
  }
}

const MB = (bytes) => (bytes / 1e6).toFixed(1);
const { files, bytes, ...plan } = data.web;
const address = (file) => new URL(file, document.baseURI).href;
const status = el("span", { role: "status" });
const bar = el("progress", { max: bytes, value: 0, "aria-hidden": "true" });
const note = el("p", { class: "note engine" }, bar, " ", status);
let told = () => "";
/** Show what becomes of the model: `state` is loading, ready or failed; `text` gives the sentence in the page's language. */
function tell(state, text) {
  told = text;
  status.textContent = text();
  note.dataset.state = state;
  note.classList.toggle("bad", state === "failed");
  bar.hidden = state !== "loading";
}
new MutationObserver(() => { status.textContent = told(); }).observe(document.documentElement, { attributeFilter: ["lang"] });

let worker = null, opened = null, asked = 0;
const waiting = new Map();

/** Ask the worker for something; `onload` gets the bytes loaded so far. */
function ask(message, transfer = [], onload = null) {
  return new Promise((resolve, reject) => {
    const id = asked++;
    waiting.set(id, { resolve, reject, onload });
    worker.postMessage({ ...message, id }, transfer);
  });
}

function start() {
  const mine = new Worker(script);
  mine.onmessage = ({ data: { id, result, problem, loaded } }) => {
    const one = waiting.get(id);
    if (!one) return;
    if (loaded !== undefined) { one.onload?.(loaded); return; }
    waiting.delete(id);
    if (problem) one.reject(new Problem(problem)); else one.resolve(result);
  };
  mine.onerror = (event) => {
    event.preventDefault();
    if (worker === mine) stop(new Problem({ code: "failed", detail: event.message || script }));
  };
  worker = mine;
}

/** End the worker; what was asked fails, and the next question loads the model anew. */
function stop(problem) {
  worker?.terminate();
  worker = opened = null;
  const lost = [...waiting.values()];
  waiting.clear();
  for (const { reject } of lost) reject(problem);
}

/** Load the model, once. */
function open() {
  opened ??= load().catch((error) => {
    stop(error);
    tell("failed", () => new Problem(error).message);
    throw error;
  });
  return opened;
}

async function load() {
  if (location.protocol === "file:") throw new Problem({ code: "file" });
  if (typeof WebAssembly !== "object") throw new Problem({ code: "webassembly" });
  if (typeof Worker !== "function" || typeof createImageBitmap !== "function") throw new Problem({ code: "old" });
  bar.value = 0;
  tell("loading", () => words().loading(MB(0), MB(bytes)));
  const began = performance.now();
  start();
  const addresses = Object.fromEntries(Object.entries(files).map(([name, file]) => [name, address(file)]));
  const onload = (loaded) => {
    bar.value = loaded;
    tell("loading", () => (loaded < bytes ? words().loading(MB(loaded), MB(bytes)) : words().starting));
  };
  const { threads } = await ask({ task: "open", files: addresses, ...plan }, [], onload);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  tell("ready", () => words().ready(seconds, threads));
}

/** Candidates before suppression in a Blob or a canvas, best first; for a Blob also `kept`, what the model itself keeps of
    them: it compares boxes before they are cut at the border. That takes a second run, too slow for a camera. */
async function detect(source) {
  await open();
  const still = source instanceof Blob;
  const given = still ? source : await createImageBitmap(source);
  try {
    const found = await ask({ task: "detect", source: given, nms: still ? [1, data.nms] : [1] }, still ? [] : [given]);
    for (const list of [found.candidates, found.kept ?? []]) for (const one of list) one.name = data.names[one.label];
    return found;
  } catch (error) {
    // WebAssembly's memory never shrinks, and after a failed allocation the runtime cannot be trusted
    if (error.code === "memory" || error.code === "failed") stop(error);
    throw error;
  }
}

multibox.onnx = { detect, note, ready: open() };
multibox.onnx.ready.catch(() => {}); // `note` shows it, and `detect` tries again
}

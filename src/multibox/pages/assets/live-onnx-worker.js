"use strict";
/* The worker of an exported folder: loads model and runtime, decodes images and runs the model, so that the page stays
   fluid. It gets `{ id, task, ... }` and sends `{ id, result }`, `{ id, problem: { code, detail } }` or `{ id, loaded }`. */
{
const STRIP = 4e6; // pixels read from a canvas at a time: some browsers allow no canvas above 16 million
const HEARD = 100; // milliseconds between two reports of progress, at least
const MEMORY = /memory|bad_alloc|alloc|OOM|too large|RangeError/i;

let session = null, runtime = null, plan = null;

class Problem extends Error {
  constructor(code, detail = "") { super(`${code}: ${detail}`); this.code = code; this.detail = String(detail); }
}

const tasks = { open, detect };
let turn = Promise.resolve();
self.onmessage = ({ data }) => {
  turn = turn.then(async () => {
    try {
      self.postMessage({ id: data.id, result: await tasks[data.task](data) });
    } catch (error) {
      const problem = error instanceof Problem ? error : new Problem(MEMORY.test(error) ? "memory" : "failed", error);
      self.postMessage({ id: data.id, problem: { code: problem.code, detail: problem.detail } });
    }
  });
};

/** Load everything. `files` has the addresses of script, module, wasm and model; `bytes` is the size of all that is fetched. */
async function open({ id, files, score, most, background }) {
  if (typeof WebAssembly !== "object") throw new Problem("webassembly");
  if (typeof OffscreenCanvas !== "function" || typeof createImageBitmap !== "function") throw new Problem("old");
  plan = { score, most, background };
  let loaded = 0, last = 0;
  const report = (more) => {
    loaded += more;
    if (Date.now() - last > HEARD) { last = Date.now(); self.postMessage({ id, loaded }); }
  };
  const [wasm, model] = await Promise.all([fetchAll(files.wasm, report), fetchAll(files.model, report)]);
  self.postMessage({ id, loaded });
  try {
    importScripts(files.script);
  } catch (error) {
    throw new Problem("missing", `${files.script} (${error.message})`);
  }
  runtime = self.ort;
  runtime.env.wasm.wasmBinary = wasm.buffer;
  runtime.env.wasm.wasmPaths = { mjs: files.module };
  // Threads share memory, which browsers allow only on pages that are isolated by two HTTP headers
  runtime.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  try {
    session = await runtime.InferenceSession.create(model, { executionProviders: ["wasm"] });
  } catch (error) {
    throw /SIMD/.test(error) ? new Problem("old", error) : error;
  }
  return { threads: runtime.env.wasm.numThreads };
}

/** Fetch a file whole; `report` is told of each part that came. */
async function fetchAll(address, report) {
  const parts = [];
  let size = 0;
  try {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const reader = answer.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      size += value.length;
      report(value.length);
    }
  } catch (error) {
    throw new Problem("missing", `${address} (${error.message})`);
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  return whole;
}

/** Detect objects in a Blob or an ImageBitmap, once per overlap allowed in `nms`; boxes in pixels, best first. */
async function detect({ source, nms }) {
  const bitmap = source instanceof ImageBitmap ? source : await decode(source);
  const { width, height } = bitmap;
  let pixels;
  try {
    pixels = rgb(bitmap, plan.background);
  } finally {
    bitmap.close();
  }
  const images = new runtime.Tensor("uint8", pixels, [1, height, width, 3]);
  const lists = [];
  for (const overlap of nms) lists.push(await run(images, overlap));
  return { width, height, candidates: lists[0], kept: lists[1] };
}

async function run(images, overlap) {
  const { Tensor } = runtime;
  const outputs = await session.run({
    images,
    score_threshold: new Tensor("float32", Float32Array.of(plan.score), []),
    nms_threshold: new Tensor("float32", Float32Array.of(overlap), []),
    max_detections: new Tensor("int64", BigInt64Array.of(BigInt(plan.most)), []),
  });
  const { boxes, scores, labels, counts } = Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, value.data]));
  const rows = Array.from({ length: Number(counts[0]) }, (_, row) => (
    { label: Number(labels[row]), score: scores[row], box: Array.from(boxes.subarray(4 * row, 4 * row + 4)) }));
  for (const value of Object.values(outputs)) value.dispose();
  return rows;
}

/** Decode an image file, upright by its EXIF orientation. Colour profiles are not applied: neither did training. */
async function decode(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch (error) {
    throw new Problem("image", error.message);
  }
}

/** Return the pixels as bytes [h * w * 3]; `background` shows where they are transparent. */
function rgb(bitmap, background) {
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const pixels = new Uint8Array(3 * width * height);
  const canvas = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = `rgb(${background.join(",")})`;
  let to = 0;
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    canvas.fillRect(0, 0, width, rows);
    canvas.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    const { data } = canvas.getImageData(0, 0, width, count);
    for (let from = 0; from < data.length; from += 4, to += 3) {
      pixels[to] = data[from];
      pixels[to + 1] = data[from + 1];
      pixels[to + 2] = data[from + 2];
    }
  }
  return pixels;
}
}

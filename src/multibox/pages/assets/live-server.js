"use strict";
/* The live page's back end on a server: `POST /predict`. */
{
const PATIENCE = 120; // seconds
const QUALITY = 0.8; // of a camera's frames as JPEG
let token = null;

// The server remembered it in a cookie; the address may be shown to others
const here = new URL(location.href);
if (here.searchParams.has("token")) { here.searchParams.delete("token"); history.replaceState(null, "", here); }

/** What went wrong. `key` is a word of the page; without one the message is the server's own sentence. */
class Problem extends Error {
  constructor(message, { key = null, wait = null, token = false } = {}) { super(message); Object.assign(this, { key, wait, token }); }
}

const encoded = (canvas) => new Promise((resolve, reject) =>
  canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Problem("the frame cannot be encoded"))), "image/jpeg", QUALITY));

/** Candidates before suppression in a Blob or a canvas, best first; and `kept`, those that the server itself keeps.
    `onprogress` gets the share of the image that is sent; `signal` (of an AbortController) ends it. */
async function detect(source, { onprogress = null, signal = null } = {}) {
  const body = source instanceof Blob ? source : await encoded(source);
  const query = new URLSearchParams({ threshold: multibox.data.lowest, raw: 1, ...(multibox.data.model ? { model: multibox.data.model } : {}) });
  const answer = await send(`predict?${query}`, body, onprogress, signal);
  return { width: answer.width, height: answer.height, candidates: joined(answer), kept: answer.detections };
}

/** The candidates and, where the server sends only the best of them, the detections that are not among those. */
function joined({ candidates = [], detections }) {
  const id = ({ label, score, box }) => `${label} ${score} ${box}`;
  const known = new Set(candidates.map(id));
  const missing = detections.filter((one) => !known.has(id(one)));
  return missing.length ? [...candidates, ...missing].sort((a, b) => b.score - a.score) : candidates;
}

/** Not `fetch`: it does not tell how much was sent. */
function send(address, body, onprogress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.timeout = 1000 * PATIENCE;
    // The server tells the format by the bytes
    request.setRequestHeader("content-type", body.type.startsWith("image/") ? body.type : "image/unknown");
    request.setRequestHeader("x-multibox", "page");
    if (token) request.setRequestHeader("authorization", `Bearer ${token}`);
    if (onprogress) request.upload.onprogress = (event) => { if (event.lengthComputable) onprogress(event.loaded / event.total); };
    request.onerror = () => reject(new Problem("no answer", { key: "unreachable" }));
    request.ontimeout = () => reject(new Problem("no answer in time", { key: "slow" }));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.onload = () => {
      const answer = parsed(request.responseText);
      if (request.status === 200 && answer) resolve(answer);
      else reject(refused(request, answer));
    };
    if (signal?.aborted) request.onabort(); else request.send(body);
  });
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

function refused(request, answer) {
  const what = typeof answer?.error === "string" ? answer.error : request.responseText.slice(0, 300).trim() || `HTTP ${request.status}`;
  const after = Number(request.getResponseHeader("retry-after"));
  return new Problem(what, { wait: request.status === 503 ? Math.min(30, Math.max(1, after || 1)) : null, token: request.status === 401 });
}

multibox.server = { detect, api: true, setToken: (value) => { token = value; } };
}

"use strict";
/* The camera of the live page: a frame is looked at when the one before is answered, so frames never queue. */
multibox.camera = ({ side, detect, onframe, onproblem, onstate }) => {
  const { el } = multibox;
  const SMOOTH = 8; // frames over which the rate is the mean
  const PAUSE = 1000; // milliseconds after a frame that failed
  const video = el("video", { playsinline: true, autoplay: true });
  video.muted = true; // the attribute alone does not count for videos made by scripts
  let stream = null, starting = false, round = 0, times = [], aborter = null;

  const available = () => Boolean(navigator.mediaDevices?.getUserMedia);
  const running = () => stream !== null;
  /** Whether the camera looks at its user, who then expects a mirror. */
  const mirrored = () => stream?.getVideoTracks()[0]?.getSettings().facingMode === "user";

  async function start(device = null) {
    stop();
    const mine = round;
    starting = true;
    onstate("starting");
    const video_ = device ? { deviceId: { exact: device } } : { facingMode: "environment", width: { ideal: 1280 } };
    let opened;
    try {
      opened = await navigator.mediaDevices.getUserMedia({ video: video_, audio: false });
    } catch (error) {
      if (mine === round) { stop(); onproblem(...reason(error)); }
      return;
    }
    // Another start or a stop came first
    if (mine !== round) { release(opened); return; }
    stream = opened;
    starting = false;
    stream.getVideoTracks()[0].addEventListener("ended", () => { if (stream === opened) { stop(); onproblem("cameraLost"); } });
    video.srcObject = stream;
    try { await video.play(); } catch { /* it plays when it is shown */ }
    onstate("on");
    loop(mine);
  }

  function reason(error) {
    const known = { NotAllowedError: "denied", SecurityError: "denied", NotFoundError: "noCamera", OverconstrainedError: "noCamera", NotReadableError: "cameraBusy", AbortError: "cameraBusy" }[error.name];
    return known ? [known] : ["cameraOther", error.message || error.name];
  }

  function release(which) { which.getTracks().forEach((track) => track.stop()); }

  function stop() {
    round += 1;
    aborter?.abort();
    times = [];
    if (!stream && !starting) return;
    if (stream) release(stream);
    stream = null;
    starting = false;
    video.srcObject = null;
    onstate("off");
  }

  /** The camera's picture of this moment, its longest side at most `side` pixels. */
  function grab() {
    const scale = Math.min(1, side / Math.max(video.videoWidth, video.videoHeight));
    const canvas = el("canvas", { width: Math.round(video.videoWidth * scale), height: Math.round(video.videoHeight * scale) });
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  const nextPicture = () => new Promise((resolve) => {
    // A hidden page gets no pictures; it waits until it is shown again
    if (document.hidden) { onstate("paused"); document.addEventListener("visibilitychange", () => { if (stream) onstate("on"); resolve(); }, { once: true }); } else requestAnimationFrame(() => resolve());
  });

  async function loop(mine) {
    while (mine === round) {
      await nextPicture();
      if (mine !== round) return;
      if (document.hidden || !video.videoWidth) continue;
      const canvas = grab(), began = performance.now();
      aborter = new AbortController();
      try {
        const found = await detect(canvas, { signal: aborter.signal });
        if (mine !== round) return;
        const now = performance.now();
        times = [...times, now].slice(-SMOOTH - 1);
        const rate = times.length > 1 ? 1000 * (times.length - 1) / (now - times[0]) : null;
        onframe(found, canvas, { rate, milliseconds: now - began });
      } catch (error) {
        if (mine !== round) return;
        if (error.wait === undefined || error.wait === null) { stop(); onproblem(error); return; }
        times = [];
        await new Promise((resolve) => setTimeout(resolve, Math.max(PAUSE, 1000 * error.wait)));
      }
    }
  }

  /** The cameras of this device; their names are known once one was allowed. */
  async function devices() {
    try { return (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput"); } catch { return []; }
  }

  return { video, available, running, mirrored, start, stop, devices, current: () => stream?.getVideoTracks()[0]?.getSettings().deviceId ?? null };
};

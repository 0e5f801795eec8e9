// The plain page: camera or file in, what the service sees drawn over it.
// Frames go out only against a credit; the drawing never waits for the service.

const $ = (id) => document.getElementById(id);
const video = $("video"), overlay = $("overlay"), pen = overlay.getContext("2d");
const grabber = document.createElement("canvas");
const COLOURS = ["#00e676", "#40c4ff", "#ffd740", "#ff6e40", "#e040fb", "#b2ff59"];
const PICTURE_RATE_MS = 200; // between a still picture's result and its next frame
const SURE = 0.3; // keypoints less confident are not drawn

let socket = null, picture = null, session = null, latest = null, credits = 0, sequence = 0;
let skeleton = [], arrivals = [];

$("camera").onclick = async () => {
  stop();
  if (!navigator.mediaDevices) return say("This page may not use the camera: open it on localhost or over https.");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    return say(error.name === "NotAllowedError"
      ? "The camera was refused. Allow it in the address bar, or open a file."
      : `No camera: ${error.message}. Open a file instead.`);
  }
  await video.play();
  start();
};

$("file").onchange = async (event) => {
  const file = event.target.files[0];
  event.target.value = ""; // the same file may be opened again
  if (!file) return;
  stop();
  try {
    if (file.type.startsWith("image/")) return await showPicture(file);
    video.src = URL.createObjectURL(file);
    video.loop = true;
    await video.play();
  } catch {
    return say(`This browser cannot show ${file.name}: want a picture, or a video in MP4 or WebM.`);
  }
  start();
};

$("sample").onclick = async () => {
  stop();
  await showPicture(await (await fetch("/web/sample.jpg")).blob());
};

async function showPicture(blob) {
  picture = await createImageBitmap(blob);
  video.poster = URL.createObjectURL(blob);
  start();
}

document.onvisibilitychange = () => {
  if (session) socket.send(JSON.stringify({ type: document.hidden ? "pause" : "resume" }));
};

$("stop").onclick = stop;
$("access").onsubmit = (event) => event.preventDefault();

function start() {
  $("hint").hidden = true;
  $("stop").disabled = false;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/ws/inference`);
  socket.onopen = () => {
    const init = { type: "init", protocol: 1 };
    if ($("token").value) init.token = $("token").value;
    socket.send(JSON.stringify(init));
    say("connected, waiting for a slot");
  };
  socket.onmessage = (event) => receive(JSON.parse(event.data));
  socket.onclose = (event) => { if (session || event.code !== 1000) say(`closed: ${event.reason || event.code}`); session = null; };
  requestAnimationFrame(draw);
}

function stop() {
  if (socket) { socket.onclose = null; socket.close(); socket = null; }
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.removeAttribute("src");
  video.removeAttribute("poster");
  video.load();
  session = latest = picture = null;
  arrivals = [];
  $("numbers").replaceChildren();
  $("stop").disabled = true;
  $("hint").hidden = false;
  pen.clearRect(0, 0, overlay.width, overlay.height);
  say("stopped");
}

function receive(message) {
  if (message.type === "ready") {
    session = message;
    credits = message.credits;
    skeleton = message.models.pose?.skeleton ?? [];
    $("models").textContent = describe(message.models);
    say("live");
    for (let free = credits; free > 0; free -= 1) pump();
  } else if (message.type === "result") {
    latest = message;
    arrivals.push(performance.now());
    credit();
    show(message);
  } else if (message.type === "error") {
    say(message.message);
    if (message.seq !== null) credit();
  } else if (message.type === "queued") say(`waiting room: ${message.ahead} ahead of you`);
  else if (message.type === "notice") say(message.message);
  else if (message.type === "ping") socket.send(JSON.stringify({ type: "pong", t: message.t }));
  else if (message.type === "bye") say(`session ended: ${message.message ?? message.reason}`);
}

function describe({ detect, pose, ocr }) {
  const parts = [`detection: ${detect?.name ?? "none"}`, `pose: ${pose?.name ?? "none"}`, `text: ${ocr ?? "none"}`];
  if (detect?.name === "mediapipe") parts.push("for YOLO's 80 classes run: make models");
  return parts.join(" · ");
}

function credit() {
  credits += 1;
  if (picture) setTimeout(pump, PICTURE_RATE_MS);
  else if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(pump);
  else requestAnimationFrame(pump);
}

function pump() {
  const source = picture ?? video;
  const width = picture?.width ?? video.videoWidth, height = picture?.height ?? video.videoHeight;
  if (!session || !socket || credits < 1 || !width) return;
  credits -= 1;
  const scale = Math.min(1, 960 / Math.max(width, height));
  grabber.width = Math.round(width * scale);
  grabber.height = Math.round(height * scale);
  grabber.getContext("2d").drawImage(source, 0, 0, grabber.width, grabber.height);
  const captured = Date.now();
  grabber.toBlob(async (blob) => {
    const message = new Uint8Array(16 + blob.size), view = new DataView(message.buffer);
    message.set([0x53, 0x4c, 0x46, 0x31]); // SLF1
    view.setUint32(4, ++sequence);
    view.setFloat64(8, captured);
    message.set(new Uint8Array(await blob.arrayBuffer()), 16);
    if (socket?.readyState === WebSocket.OPEN) socket.send(message);
  }, "image/jpeg", 0.8);
}

function draw() {
  if (!socket) return;
  requestAnimationFrame(draw);
  if (!latest) return;
  const { width, height } = latest.image, ratio = devicePixelRatio;
  $("stage").style.setProperty("--aspect", width / height);
  // Drawn in pixels of the screen, so that lines and letters are sharp whatever the frame's size.
  const wide = Math.round(overlay.clientWidth * ratio), high = Math.round(overlay.clientHeight * ratio);
  if (overlay.width !== wide || overlay.height !== high) { overlay.width = wide; overlay.height = high; }
  pen.clearRect(0, 0, wide, high);
  pen.lineWidth = 2 * ratio;
  pen.font = `${13 * ratio}px system-ui, sans-serif`;
  const at = (x, y) => [x * wide / width, y * high / height];
  for (const one of latest.objects) box(one, at);
  for (const pose of latest.poses) bones(pose.keypoints, at);
  const { status, age_ms } = latest.stages.ocr;
  const old = status === "stale" ? ` · ${(age_ms / 1000).toFixed(1)} s ago` : "";
  for (const text of latest.texts) polygon(text.polygon.map(([x, y]) => at(x, y)), text.text + old, old !== "");
}

function box(one, at) {
  const [x1, y1] = at(one.box.x1, one.box.y1), [x2, y2] = at(one.box.x2, one.box.y2);
  pen.strokeStyle = pen.fillStyle = COLOURS[one.class_id % COLOURS.length];
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  tag(`${one.class_name} ${one.confidence.toFixed(2)}${one.track_id === null ? "" : ` #${one.track_id}`}`, x1, y1);
}

function tag(label, x, y) {
  const size = parseFloat(pen.font), wide = pen.measureText(label).width + size * 0.7, high = size * 1.5;
  const left = Math.max(0, Math.min(x - pen.lineWidth / 2, overlay.width - wide)), top = Math.max(0, y - high);
  pen.fillRect(left, top, wide, high);
  pen.fillStyle = "#000";
  pen.fillText(label, left + size * 0.35, top + size * 1.12);
}

function bones(points, at) {
  pen.strokeStyle = pen.fillStyle = "#ffffffe0";
  const places = points.map((point) => point.confidence < SURE ? null : at(point.x, point.y));
  for (const [a, b] of skeleton) {
    if (!places[a] || !places[b]) continue;
    pen.beginPath();
    pen.moveTo(...places[a]);
    pen.lineTo(...places[b]);
    pen.stroke();
  }
  for (const place of places) {
    if (!place) continue;
    pen.beginPath();
    pen.arc(...place, pen.lineWidth * 1.5, 0, 7);
    pen.fill();
  }
}

// A text that was read in an earlier frame is dashed: it stands where it stood then.
function polygon(corners, label, old) {
  pen.strokeStyle = pen.fillStyle = "#ffd740";
  pen.setLineDash(old ? [pen.lineWidth * 3, pen.lineWidth * 2] : []);
  pen.beginPath();
  for (const corner of corners) pen.lineTo(...corner);
  pen.closePath();
  pen.stroke();
  pen.setLineDash([]);
  tag(label, ...corners[0]);
}

function show(result) {
  const now = performance.now();
  arrivals = arrivals.filter((at) => now - at < 2000);
  const { motion, stages } = result;
  const tiles = [
    ["results a second", (arrivals.length / 2).toFixed(1)],
    ["age in the service", `${result.age_ms.toFixed(0)} ms`],
    ["dropped", result.dropped.total],
    ["camera moves", motion ? `${Math.hypot(motion.camera.dx, motion.camera.dy).toFixed(1)} px a frame` : "–"],
    ["moving", motion ? `${(motion.moving_fraction * 100).toFixed(0)} %` : "–"],
    ...Object.entries(stages).map(([name, stage]) => [name, said(stage), stage.status]),
    ["text", result.texts.map((text) => text.text).join(" · ") || nothing(stages.ocr), "wide"],
  ];
  $("numbers").replaceChildren(...tiles.map(([name, value, kind]) => {
    const tile = document.createElement("div"), term = document.createElement("dt"), data = document.createElement("dd");
    term.textContent = name;
    data.textContent = value;
    tile.className = kind ?? "";
    tile.append(term, data);
    return tile;
  }));
}

function said({ status, reason, age_ms }) {
  if (status === "stale") return `${(age_ms / 1000).toFixed(1)} s old (${reason})`;
  return reason ? `${status} (${reason})` : status;
}

function nothing({ status, reason }) {
  return status === "ok" || status === "stale" ? "none in the picture" : `not read: ${reason}`;
}

function say(text) { $("status").textContent = text; }

// The plain page: camera or file in, what the service sees drawn over it.
// Frames go out only against a credit; the drawing never waits for the service.

const $ = (id) => document.getElementById(id);
const video = $("video"), overlay = $("overlay"), pen = overlay.getContext("2d");
const grabber = document.createElement("canvas");
const COLOURS = ["#00e676", "#40c4ff", "#ffd740", "#ff6e40", "#e040fb", "#b2ff59"];
const PICTURE_RATE_MS = 200; // a still picture is sent five times a second

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
  if (!file) return;
  stop();
  if (file.type.startsWith("image/")) return showPicture(file);
  video.src = URL.createObjectURL(file);
  video.loop = true;
  await video.play();
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
  const { width, height } = latest.image;
  if (overlay.width !== width || overlay.height !== height) { overlay.width = width; overlay.height = height; }
  pen.clearRect(0, 0, width, height);
  pen.lineWidth = Math.max(2, width / 320);
  pen.font = `${Math.max(12, width / 45)}px system-ui`;
  for (const one of latest.objects) box(one.box, `${one.class_name} ${one.confidence.toFixed(2)}${one.track_id ? ` #${one.track_id}` : ""}`, COLOURS[one.class_id % COLOURS.length]);
  for (const pose of latest.poses) bones(pose.keypoints);
  for (const text of latest.texts) polygon(text.polygon, text.text);
}

function box({ x1, y1, x2, y2 }, label, colour) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  tag(label, x1, y1);
}

function tag(label, x, y) {
  const size = parseFloat(pen.font), wide = pen.measureText(label).width + 8, top = Math.max(0, y - size * 1.4);
  pen.fillRect(x, top, wide, size * 1.4);
  pen.fillStyle = "#000";
  pen.fillText(label, x + 4, top + size * 1.05);
}

function bones(points) {
  pen.strokeStyle = pen.fillStyle = "#ffffffd0";
  for (const [a, b] of skeleton) {
    if (points[a].confidence < 0.3 || points[b].confidence < 0.3) continue;
    pen.beginPath();
    pen.moveTo(points[a].x, points[a].y);
    pen.lineTo(points[b].x, points[b].y);
    pen.stroke();
  }
  for (const point of points) {
    if (point.confidence < 0.3) continue;
    pen.beginPath();
    pen.arc(point.x, point.y, pen.lineWidth * 1.5, 0, 7);
    pen.fill();
  }
}

function polygon(corners, label) {
  pen.strokeStyle = pen.fillStyle = "#ffd740";
  pen.beginPath();
  for (const [x, y] of corners) pen.lineTo(x, y);
  pen.closePath();
  pen.stroke();
  tag(label, corners[0][0], corners[0][1]);
}

function show(result) {
  const now = performance.now();
  arrivals = arrivals.filter((at) => now - at < 2000);
  const motion = result.motion;
  const rows = {
    "results a second": (arrivals.length / 2).toFixed(1),
    "age in the service": `${result.age_ms.toFixed(0)} ms`,
    "dropped": result.dropped.total,
    "movement": motion ? `${(motion.score * 1000).toFixed(1)} ‰, ${(motion.moving_fraction * 100).toFixed(0)} % moving` : "–",
    ...Object.fromEntries(Object.entries(result.stages).map(([name, stage]) => [name, stage.status + (stage.reason ? ` (${stage.reason})` : "")])),
  };
  $("numbers").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("div"), term = document.createElement("dt"), data = document.createElement("dd");
    term.textContent = name;
    data.textContent = value;
    row.append(term, data);
    return row;
  }));
  const items = result.texts.map((text) => Object.assign(document.createElement("li"), { textContent: text.text }));
  $("texts").replaceChildren(...(items.length ? items : [Object.assign(document.createElement("li"), { textContent: "none", className: "none" })]));
}

function say(text) { $("status").textContent = text; }

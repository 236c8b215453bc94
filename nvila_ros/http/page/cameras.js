// The live picture, the list of cameras, and a single frame in the picture's place.

import { ago, clockTime, digits, find, inAddress, make, seconds, setText, toMs } from "./dom.js";
import { store } from "./store.js";

const RETRY_MS = 500;
const MAX_KEPT = 160;

const kept = new Map(); // pictures of single frames, by address: promise of an object URL, or of null
let camera = null;
let held = null; // the single frame that is shown: {camera, stamp_ns}
let loop = null; // of the live picture
let liveUrl = "";
let liveStamp = null;

export const shownCamera = () => camera;

export function startCameras() {
  find("live-again").addEventListener("click", () => hold(null));
  store.on("state connection", draw);
  document.addEventListener("visibilitychange", restart);
}

/** Show a camera by its place in the list. */
export function chooseCamera(place) {
  const found = store.state?.cameras[place];
  if (!found) return;
  camera = found.name;
  hold(null);
  restart();
  draw();
}

/** Show one frame and keep it, or go on with what is live. */
export async function hold(frame) {
  held = frame;
  find("live-again").hidden = !frame;
  find("stage").classList.toggle("held", Boolean(frame));
  if (frame) {
    const url = await frameUrl(frame, 960);
    if (held === frame && url) show(url, `Frame of ${frame.camera}`);
  } else if (liveUrl) {
    show(liveUrl, `Live picture of ${camera}`);
  }
  document.dispatchEvent(new CustomEvent("held", { detail: frame }));
  drawCaption();
}

/** An object URL of a frame, or null where the buffer has it no more; what was seen once is kept here for a while. */
export function frameUrl(frame, width) {
  const address = `/api/cameras/${inAddress(frame.camera)}/frame?stamp_ns=${frame.stamp_ns}&width=${width}`;
  if (!kept.has(address)) {
    if (!isInBuffer(frame)) return Promise.resolve(null);
    kept.set(address, load(address));
    if (kept.size > MAX_KEPT) forget(kept.keys().next().value);
  }
  return kept.get(address);
}

async function forget(address) {
  const url = kept.get(address);
  kept.delete(address);
  URL.revokeObjectURL(await url);
}

function isInBuffer(frame) {
  const found = store.state?.cameras.find((each) => each.name === frame.camera);
  return Boolean(found?.oldest_ns) && BigInt(frame.stamp_ns) >= BigInt(found.oldest_ns);
}

async function load(address) {
  try {
    const response = await fetch(address);
    return response.ok ? URL.createObjectURL(await response.blob()) : null;
  } catch {
    return null;
  }
}

function restart() {
  loop?.abort();
  loop = null;
  if (document.hidden || !camera || !store.isConnected) return;
  loop = new AbortController();
  run(camera, loop.signal);
}

/** Ask for one picture after the other: one that cannot keep up skips what it has no time for. */
async function run(name, signal) {
  let after = "0";
  while (!signal.aborted) {
    try {
      const width = Math.min(1280, Math.ceil(find("stage").clientWidth * devicePixelRatio));
      const address = `/api/cameras/${inAddress(name)}/latest.jpg?width=${width}&after_ns=${after}`;
      const response = await fetch(address, { signal });
      if (response.status === 204) continue;
      if (!response.ok) throw new Error(response.statusText);
      after = response.headers.get("X-Nvila-Stamp-Ns");
      await showLive(await response.blob(), after, signal);
    } catch {
      if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

async function showLive(blob, stamp, signal) {
  const before = liveUrl;
  const url = URL.createObjectURL(blob);
  if (signal.aborted) return URL.revokeObjectURL(url);
  liveUrl = url;
  liveStamp = toMs(stamp);
  if (!held) await show(url, `Live picture of ${camera}`);
  if (before) URL.revokeObjectURL(before);
  drawCaption();
}

async function show(url, words) {
  const picture = find("picture");
  picture.src = url;
  picture.alt = words;
  await picture.decode().catch(() => null);
  picture.hidden = false;
  find("stage-empty").hidden = true;
}

function draw() {
  const cameras = store.state?.cameras ?? [];
  if (!cameras.some((each) => each.name === camera) && cameras.length) {
    camera = cameras[0].name;
  }
  if (!store.isConnected) restart();
  else if (!loop) restart();
  drawList(cameras);
  drawEmpty(cameras);
  drawCaption();
}

function drawList(cameras) {
  const list = find("cameras");
  if (list.children.length !== cameras.length) {
    list.replaceChildren(...cameras.map((each, place) => make("li", {}, tab(place))));
  }
  cameras.forEach((each, place) => drawTab(list.children[place].firstChild, each));
}

function tab(place) {
  const key = place < 9 ? String(place + 1) : null;
  return make(
    "button",
    { type: "button", "aria-keyshortcuts": key, onclick: () => chooseCamera(place) },
    make("span", { class: "dot" }),
    make("b"),
    make("span", { class: "rate" }),
  );
}

function drawTab(button, each) {
  const [dot, name, rate] = button.children;
  button.setAttribute("aria-pressed", String(each.name === camera));
  button.title = [each.source, each.warning].filter(Boolean).join(": ");
  dot.dataset.state = each.warning ? "failed" : each.is_stale ? "stale" : "ready";
  setText(name, each.name);
  const stale = each.age_s === null ? "no frame yet" : `STALE ${seconds(each.age_s)}`;
  setText(rate, each.is_stale ? stale : `${digits(each.rate_hz)} Hz`);
}

function drawEmpty(cameras) {
  const found = cameras.find((each) => each.name === camera);
  if (!found || found.newest_ns) return;
  find("picture").hidden = true;
  const empty = find("stage-empty");
  empty.hidden = false;
  empty.replaceChildren(
    make("p", {}, `No frame has come from ${found.name} yet.`),
    make("p", { class: "hint" }, found.warning || `It listens to ${found.source}.`),
    found.source.startsWith("/") ? make("p", {}, make("code", {}, `ros2 topic hz ${found.source}`)) : null,
  );
}

function drawCaption() {
  const caption = find("caption");
  if (held) {
    const age = (store.now() - toMs(held.stamp_ns)) / 1000;
    setText(caption, `${held.camera} · frame of ${clockTime(toMs(held.stamp_ns))} · ${ago(age)}`);
  } else if (liveStamp !== null && camera) {
    const age = (store.now() - liveStamp) / 1000;
    const word = !store.isConnected ? "last frame" : age > (store.state?.defaults.max_age_s || 5) ? "STALE" : "live";
    setText(caption, `${camera} · ${word}${age > 1 ? ` · ${ago(age)}` : ""}`);
    caption.dataset.state = word === "live" ? "ready" : "stale";
  }
}

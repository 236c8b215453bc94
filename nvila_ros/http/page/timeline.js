// The last minute from left to right: which frames are kept, what was asked, and a strip for each standing query.

import { ago, clockTime, find, make, makeSvg, seconds, setText, share, toMs } from "./dom.js";
import { choose } from "./answer.js";
import { hold } from "./cameras.js";
import { change, remove } from "./standing.js";
import { store } from "./store.js";

const LANE = 12;
const STRIP = 40;
const MIN_RANGE_MS = 200;
const TICKS = [0, 0.25, 0.5, 0.75, 1];

let drag = null; // where a drag began, ms
let isDue = false;

const rows = new Map(); // by name of a standing query

export function startTimeline() {
  store.on("state answer event standing range selection", draw);
  new ResizeObserver(draw).observe(find("axis"));
  const axis = find("axis");
  axis.addEventListener("pointerdown", begin);
  axis.addEventListener("pointermove", move);
  axis.addEventListener("pointerup", end);
  axis.addEventListener("pointercancel", () => ((drag = null), store.setRange(null)));
  find("events").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) showEvent(button.dataset.event);
  });
}

const spanMs = () => 1000 * Math.max(store.state.defaults.past_s, store.state.defaults.buffer_s, 10);

function draw() {
  if (isDue || !store.state) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const scale = makeScale(find("axis").clientWidth);
    drawAxis(scale);
    drawRows(scale);
    drawEvents();
    drawRangeText();
  });
}

/** Time to px, and back; what is on the right is now. */
function makeScale(width) {
  const [span, now] = [spanMs(), store.now()];
  return {
    width,
    span,
    now,
    x: (ms) => Math.round((width * (ms - now + span)) / span * 10) / 10,
    ms: (x) => now - span + (x / width) * span,
  };
}

function drawAxis(scale) {
  const cameras = store.state.cameras;
  const height = 22 + LANE * cameras.length + 12;
  const svg = find("axis");
  svg.setAttribute("viewBox", `0 0 ${scale.width} ${height}`);
  svg.style.height = `${height}px`;
  const lanes = cameras.map((camera, at) => lane(scale, camera, 18 + at * LANE));
  const bottom = 18 + LANE * cameras.length;
  svg.replaceChildren(...ticks(scale, height), ...lanes.flat(), ...marks(scale, bottom + 6), ...selection(scale, height));
}

function ticks(scale, height) {
  return TICKS.flatMap((part) => {
    const x = Math.round(scale.width * part);
    const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
    const back = (scale.span / 1000) * (1 - part);
    const text = makeSvg("text", { x, y: 10, "text-anchor": anchor }, back ? `${Math.round(back)} s ago` : "now");
    return [text, makeSvg("line", { class: "tick", x1: x, x2: x, y1: 15, y2: height })];
  });
}

/** Frames of a camera: thinned out in the past, all of the last seconds. */
function lane(scale, camera, y) {
  if (!camera.oldest_ns) return [];
  const [oldest, newest] = [toMs(camera.oldest_ns), toMs(camera.newest_ns)];
  const dense = Math.max(oldest, newest - store.state.defaults.buffer_s * 1000);
  const bar = (from, to, kind) => {
    const [start, stop] = [Math.max(0, scale.x(from)), scale.x(to)];
    return makeSvg("rect", { class: kind, x: start, y, width: Math.max(0, stop - start), height: LANE - 4, rx: 2 }, makeSvg("title", {}, `${camera.name}: frames of ${seconds((to - from) / 1000)}`));
  };
  return [dense > oldest ? bar(oldest, dense, "kept-past") : null, bar(dense, newest, "kept")].filter(Boolean);
}

/** A mark where each question looked last, and the span of the one that is shown. */
function marks(scale, y) {
  const made = [];
  for (const answer of store.answers.values()) {
    const stamps = (answer.view?.frames ?? []).filter((frame) => frame.stamp_ns).map((frame) => toMs(frame.stamp_ns));
    const [first, last] = [Math.min(...stamps), Math.max(...stamps)];
    if (!stamps.length || scale.x(last) < 0) continue;
    const isShown = answer.key === store.selected;
    if (isShown) made.push(makeSvg("line", { class: "seen", x1: scale.x(first), x2: scale.x(last), y1: y, y2: y }));
    made.push(makeSvg("circle", { class: isShown ? "mark shown" : "mark", cx: scale.x(last), cy: y, r: isShown ? 4 : 2.5 }, makeSvg("title", {}, answer.view.question)));
  }
  return made;
}

function selection(scale, height) {
  if (!store.range) return [];
  const [x, stop] = [scale.x(store.range.start), scale.x(store.range.end)];
  return [makeSvg("rect", { class: "range", x, y: 14, width: Math.max(2, stop - x), height: height - 15, rx: 3 })];
}

function drawRangeText() {
  const range = store.range;
  const back = (ms) => ((store.now() - ms) / 1000).toFixed(1);
  setText(find("range-text"), range ? `${((range.end - range.start) / 1000).toFixed(1)} s chosen: from ${back(range.start)} to ${back(range.end)} s ago` : "Drag over it to ask about a part of the past.");
}

function at(event) {
  const box = find("axis").getBoundingClientRect();
  const scale = makeScale(box.width);
  return Math.min(scale.now, Math.max(scale.now - scale.span, scale.ms(event.clientX - box.left)));
}

function begin(event) {
  if (event.button) return;
  find("axis").setPointerCapture(event.pointerId);
  drag = at(event);
}

function move(event) {
  if (drag === null) return;
  const here = at(event);
  if (Math.abs(here - drag) >= MIN_RANGE_MS) store.setRange({ start: Math.min(drag, here), end: Math.max(drag, here) });
}

/** A drag chooses a range; a click forgets it, or shows the answer that it meets. */
function end(event) {
  if (drag === null) return;
  const isClick = Math.abs(at(event) - drag) < MIN_RANGE_MS;
  drag = null;
  if (!isClick) return find("question").focus({ preventScroll: true });
  store.setRange(null);
  const near = nearest(at(event));
  if (near) choose(near);
}

function nearest(ms) {
  const close = (spanMs() / find("axis").clientWidth) * 8;
  const found = [...store.answers.values()].filter((answer) => answer.view?.stamp_ns && Math.abs(toMs(answer.view.stamp_ns) - ms) < close);
  return found.at(-1)?.key ?? null;
}

function drawRows(scale) {
  const names = store.state.standing.map((each) => each.query.name);
  for (const [name, row] of rows) if (!names.includes(name)) (row.remove(), rows.delete(name));
  for (const standing of store.state.standing) {
    const name = standing.query.name;
    if (!rows.has(name)) {
      rows.set(name, makeRow(name));
      find("rows").append(rows.get(name));
    }
    drawRow(rows.get(name), standing, scale);
  }
}

function makeRow(name) {
  const pause = make("button", { type: "button", class: "quiet" }, "Pause");
  pause.addEventListener("click", () => change(name, pause.dataset.enabled !== "true"));
  const away = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, onclick: () => remove(name) }, "Remove");
  return make("div", { class: "row strip-row", "data-name": name }, make("div", { class: "row-name" }, make("b", {}, name), make("span", { class: "hint" })), makeSvg("svg", { class: "strip", role: "img" }), make("div", { class: "row-value" }), make("div", { class: "row-buttons" }, pause, away));
}

function drawRow(row, standing, scale) {
  const [title, strip, value, buttons] = row.children;
  const { query } = standing;
  setText(title.lastChild, query.question);
  title.title = `${query.question} (${query.rate_hz} times a second)`;
  const isOpen = standing.open_event_id !== null;
  const shown = standing.probability === null ? "" : ` ${share(standing.probability)}`;
  setText(value, query.enabled ? `${isOpen ? "\u25cf " : ""}${standing.text ?? "\u2026"}${shown}` : "paused");
  value.classList.toggle("on", isOpen);
  row.classList.toggle("paused", !query.enabled);
  buttons.firstChild.dataset.enabled = String(query.enabled);
  setText(buttons.firstChild, query.enabled ? "Pause" : "Go on");
  buttons.firstChild.setAttribute("aria-label", `${query.enabled ? "Pause" : "Go on with"} ${query.name}`);
  drawStrip(strip, standing, { ...scale, width: strip.clientWidth || scale.width });
}

function drawStrip(svg, { query, probability }, scale) {
  const points = (store.curves.get(query.name) ?? []).filter((point) => point.ms > scale.now - scale.span);
  const y = (value) => Math.round((STRIP - 6) * (1 - value) * 10) / 10 + 3;
  svg.setAttribute("viewBox", `0 0 ${scale.width} ${STRIP}`);
  svg.setAttribute("aria-label", `Probability of ${query.name}: ${probability === null ? "none yet" : share(probability)}`);
  const base = y(0);
  const [line, area] = paths(points, scale, y, base, (3500 / query.rate_hz) + 500);
  const has = query.trigger === "rising" || query.trigger === "falling";
  svg.replaceChildren(
    makeSvg("line", { class: "base", x1: 0, x2: scale.width, y1: base, y2: base }),
    makeSvg("path", { class: "area", d: area }),
    makeSvg("path", { class: "curve", d: line }),
    ...(has ? [makeSvg("line", { class: "threshold", x1: 0, x2: scale.width, y1: y(query.threshold), y2: y(query.threshold) })] : []),
    ...store.events.filter((event) => event.name === query.name).map((event) => eventMark(event, scale, y)).filter(Boolean),
  );
}

/** Steps, since a value holds until the next; a pause longer than `gapMs` is a gap. */
function paths(points, scale, y, base, gapMs) {
  let [line, area] = ["", ""];
  points.forEach((point, at) => {
    const [x, height] = [scale.x(point.ms), y(point.probability)];
    const isNew = !at || point.ms - points[at - 1].ms > gapMs;
    line += isNew ? `M${x} ${height}` : `H${x}V${height}`;
    area += isNew ? `${at ? `V${base}Z` : ""}M${x} ${base}V${height}` : `H${x}V${height}`;
  });
  return [line, area && `${area}V${base}Z`];
}

function eventMark(event, scale, y) {
  const x = scale.x(toMs(eventStamp(event)));
  if (x < 0) return null;
  const kind = event.phase.toLowerCase();
  const cy = y(Math.min(0.9, Math.max(0.12, event.probability ?? 0.5)));
  const title = makeSvg("title", {}, `${event.phase} at ${clockTime(toMs(eventStamp(event)))}: ${event.text}`);
  if (kind === "instant") return makeSvg("rect", { class: "event instant", x: x - 4, y: cy - 4, width: 8, height: 8, transform: `rotate(45 ${x} ${cy})` }, title);
  return makeSvg("circle", { class: `event ${kind}`, cx: x, cy, r: 4.5 }, title);
}

const eventStamp = (event) => event.end_stamp_ns ?? event.begin_stamp_ns;
const eventKey = (event) => `${event.event_id}-${event.phase}`;

function drawEvents() {
  const newest = store.events.slice(-12).reverse();
  const items = newest.map((event) =>
    make("li", {}, make("button", { type: "button", class: "quiet", "data-event": eventKey(event) }, make("span", { class: `sign ${event.phase.toLowerCase()}` }, event.phase), ` ${event.name} `, make("span", { class: "hint" }, `${event.text}, ${ago((store.now() - toMs(eventStamp(event))) / 1000)}`))),
  );
  const list = find("events");
  items.forEach((item, at) => {
    if (!list.children[at]) list.append(item);
    else if (!list.children[at].isEqualNode(item)) list.children[at].replaceWith(item);
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

/** Show the answer that an event came with, and the frame that it was about. */
export function showEvent(key) {
  const event = store.events.find((each) => eventKey(each) === key);
  if (!event) return;
  const answer = store.keyOf(event.query_id);
  if (!store.get(answer)) store.putAnswer(answer, { view: eventAnswer(event), isOpen: false });
  store.select(answer);
  history.replaceState(null, "", `#event=${key}`);
  if (event.frames.length) hold(event.frames.at(-1));
}

function eventAnswer(event) {
  const none = { queue_s: 0, preprocess_s: 0, vision_s: 0, prefill_s: 0, decode_s: 0, ttft_s: 0, total_s: 0 };
  const counts = { num_frames_encoded: event.frames.length, num_prompt_tokens: 0, num_reused_tokens: 0 };
  return { ...event, standing: event.name, finish_reason: "STOP", error: "", stamp_ns: event.frames.at(-1)?.stamp_ns ?? null, age_s: null, timings: none, counts };
}

// One answer in full: its text, its probabilities, its time; the frames it is about; and the answers before it.

import { ago, clockTime, find, make, seconds, setText, share, toMs } from "./dom.js";
import { frameUrl, hold } from "./cameras.js";
import { intervals, isInside, textOf } from "./moments.js";
import { store } from "./store.js";

const STAGES = [
  ["queue", "queue_s", "waited for its turn"],
  ["pictures", "preprocess_s", "decoded and cut into tiles"],
  ["vision", "vision_s", "vision tower"],
  ["prompt", "prefill_s", "prompt read"],
  ["words", "decode_s", "answer written"],
];
const WHY = {
  LENGTH: "cut: it reached the longest answer allowed",
  CANCELED: "canceled",
  DEADLINE: "cut: its time was over",
  NO_FRAMES: "there were no frames to look at",
  REJECTED: "refused",
  INVALID: "refused",
  FAILED: "the model failed",
  REPLACED: "made room for another question",
};
const MAX_PAST = 60;
const MAX_FILM = 64;

let drawn = ""; // frames that the film shows
let isDue = false;

export function startAnswers() {
  store.on("answer selection state connection", () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(draw);
  });
  store.on("answer", keepFrames);
  document.addEventListener("held", (event) => markHeld(event.detail));
  draw();
}

/** Go to the answer before or after. */
export function step(by) {
  const keys = [...store.answers.keys()];
  const at = keys.indexOf(store.selected);
  const key = keys[Math.min(keys.length - 1, Math.max(0, (at < 0 ? keys.length : at) + by))];
  if (key) choose(key);
}

export function choose(key) {
  store.select(key);
  hold(null);
  history.replaceState(null, "", `#answer=${key.split("/").pop()}`);
}

function draw() {
  isDue = false;
  drawAnswer(store.chosen);
  drawFilm(store.chosen?.view?.frames ?? [], intervals(store.chosen?.view));
  drawPast();
}

/** Frames leave the buffer: those of one's own answers are fetched while they are there. */
function keepFrames(answer) {
  if (!answer.isMine || !answer.view || answer.hasFrames) return;
  answer.hasFrames = true;
  for (const frame of answer.view.frames.slice(-MAX_FILM)) if (frame.stamp_ns) frameUrl(frame, 160);
}

function drawAnswer(answer) {
  const parts = answer ? answerParts(answer) : [hello()];
  const article = find("answer");
  article.setAttribute("aria-busy", String(Boolean(answer?.isOpen)));
  article.replaceChildren(...parts.flat().filter(Boolean));
}

function hello() {
  const model = store.state?.model;
  if (model && model.state !== "READY") return modelCard(model);
  return make(
    "div",
    { class: "hello" },
    make("p", { class: "question", id: "answer-question" }, "Nothing asked yet"),
    make("p", { class: "hint" }, "Press / to write a question, Enter to ask it."),
    ...["What do you see?", "How many objects are there?"].map((text) => make("button", { type: "button", class: "quiet example", "data-question": text }, text)),
  );
}

/** What the model is doing while it answers nothing. */
function modelCard(model) {
  const words = { LOADING: "The model is being loaded", BUILDING: "The model is being built", FAILED: "The model failed" };
  const percent = Math.round(model.progress * 100);
  return make(
    "div",
    { class: "hello" },
    make("p", { class: "question", id: "answer-question" }, words[model.state] ?? "Waiting for the model"),
    model.state === "BUILDING" ? make("progress", { max: 1, value: model.progress, "aria-label": `${percent} %` }) : null,
    make("p", { class: model.state === "FAILED" ? "wrong" : "hint" }, model.refusal || model.text || model.part || "One moment."),
  );
}

function answerParts(answer) {
  const view = answer.view;
  const reason = view ? view.finish_reason : answer.isCanceled ? "CANCELED" : "";
  const text = textOf(answer) + (answer.isOpen ? "\u258d" : "");
  return [
    make("p", { class: "question", id: "answer-question" }, view?.question ?? answer.question),
    text ? make("p", { class: text.length > 60 ? "text long" : "text" }, text) : null,
    answer.error || view?.error ? make("p", { class: "wrong" }, answer.error || view.error) : null,
    reason && reason !== "STOP" ? make("p", { class: "why" }, WHY[reason] ?? reason.toLowerCase()) : null,
    view?.probabilities.length ? bars(view) : null,
    view && view.timings.total_s > 0 ? stages(view.timings) : null,
    view ? facts(answer, view) : null,
  ];
}

/** Likeliest first; many are cut to what can be read. */
function bars(view) {
  const ranked = view.choices.map((name, at) => [name, view.probabilities[at]]).sort((a, b) => b[1] - a[1]);
  const said = view.answer_type === "when" ? ranked[0][0] : view.text;
  const rows = ranked.slice(0, 8).map(([name, value]) => {
    const meter = make("span", { class: "bar-track" }, make("span", { class: "bar-fill" }));
    meter.firstChild.style.width = `${value * 100}%`;
    return make("tr", { class: name === said ? "won" : null }, make("th", { scope: "row" }, name), make("td", { class: "wide" }, meter), make("td", {}, share(value)));
  });
  return make("table", { class: "bars", "aria-label": "Probabilities" }, make("tbody", {}, rows));
}

function facts(answer, view) {
  const now = view.stamp_ns ? (store.now() - toMs(view.stamp_ns)) / 1000 : null;
  const { counts, timings } = view;
  const items = [
    view.age_s === null ? null : ["age", `${seconds(view.age_s)} when answered${now > 1 ? `, ${ago(now)}` : ""}`, "of the newest frame that it saw"],
    timings.ttft_s ? ["first word", `after ${seconds(timings.ttft_s)}`] : null,
    ["saw", `${view.frames.length} ${view.frames.length === 1 ? "frame" : "frames"}${counts.num_frames_encoded < view.frames.length ? `, ${view.frames.length - counts.num_frames_encoded} already known` : ""}`],
    counts.num_prompt_tokens ? ["read", `${counts.num_prompt_tokens} tokens, ${counts.num_reused_tokens} reused`] : null,
  ];
  return make("dl", { class: "facts" }, items.filter(Boolean).map(([name, value, title]) => make("div", { title }, make("dt", {}, name), make("dd", {}, value))));
}

/** Where the time went: one bar of five parts, with the words below. */
function stages(timings) {
  const total = Math.max(timings.total_s, STAGES.reduce((sum, [, key]) => sum + timings[key], 0));
  const parts = STAGES.map(([name, key, title], at) => {
    const part = make("span", { class: `stage-${at}`, title: `${name}: ${title}, ${seconds(timings[key])}` });
    part.style.width = `${(timings[key] / total) * 100}%`;
    return part;
  });
  const legend = STAGES.map(([name, key], at) => make("li", {}, make("span", { class: `key stage-${at}` }), `${name} ${seconds(timings[key])}`));
  return make(
    "div",
    { class: "stages" },
    make("div", { class: "stages-bar", "aria-hidden": "true" }, parts),
    make("ul", { "aria-label": "Time of each stage" }, legend, make("li", {}, `${seconds(timings.total_s)} in all`)),
  );
}

function drawFilm(frames, found) {
  const stamped = frames.filter((frame) => frame.stamp_ns).slice(-MAX_FILM);
  const name = stamped.map((frame) => frame.camera + frame.stamp_ns).join() + found.map(({ from, to }) => `${from}-${to}`);
  find("film").hidden = !stamped.length;
  if (name === drawn) return;
  drawn = name;
  const newest = Math.max(...stamped.map((frame) => toMs(frame.stamp_ns)));
  setText(find("film-title"), stamped.length === 1 ? "The frame of this answer" : `The ${stamped.length} frames of this answer`);
  find("film-frames").replaceChildren(...stamped.map((frame) => filmFrame(frame, newest, new Set(frames.map((each) => each.camera)).size > 1, found)));
  find("film-frames").scrollLeft = 1e6;
}

function filmFrame(frame, newest, hasNames, found) {
  const ms = toMs(frame.stamp_ns);
  const age = (ms - newest) / 1000;
  const label = age > -0.0005 ? "newest" : `\u2212${Math.abs(age).toFixed(2)} s`;
  const picture = make("span", { class: "thumb" });
  const button = make(
    "button",
    { type: "button", title: `${frame.camera}, ${clockTime(ms)}`, "data-stamp": frame.stamp_ns, onclick: () => hold(frame) },
    picture,
    make("span", { class: "film-age" }, hasNames ? `${frame.camera} ${label}` : label),
  );
  frameUrl(frame, 160).then((url) => {
    if (url) picture.replaceWith(make("img", { class: "thumb", src: url, alt: "" }));
    else picture.textContent = "no longer kept";
  });
  return make("li", { class: isInside(found, ms) ? "inside" : null }, button);
}

function markHeld(frame) {
  for (const button of find("film-frames").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.stamp === frame?.stamp_ns));
  }
}

function drawPast() {
  const answers = [...store.answers.values()].reverse().slice(0, MAX_PAST);
  find("past").parentElement.hidden = answers.length < 2 && store.selected !== null;
  const list = find("past");
  const rows = answers.map(pastRow);
  rows.forEach((row, at) => {
    const old = list.children[at];
    if (!old) list.append(row);
    else if (!old.isEqualNode(row)) old.replaceWith(row);
  });
  while (list.children.length > rows.length) list.lastChild.remove();
}

function pastRow(answer) {
  const view = answer.view;
  const stamp = view?.stamp_ns ? toMs(view.stamp_ns) : answer.askedMs;
  const text = answer.error || view?.error || textOf(answer) || (answer.isOpen ? "\u2026" : "canceled");
  return make(
    "li",
    { class: answer.follows ? "follows" : null },
    make(
      "button",
      { type: "button", "data-key": answer.key, "aria-current": answer.key === store.selected ? "true" : null },
      make("span", { class: "past-question" }, view?.question ?? answer.question),
      make("span", { class: "past-text" }, text),
      stamp ? make("time", { title: clockTime(stamp) }, ago((store.now() - stamp) / 1000)) : null,
    ),
  );
}

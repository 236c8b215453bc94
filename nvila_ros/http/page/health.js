// What the model is doing, what is wrong, and the counters.

import { ago, bytes, digits, find, make, seconds, setText } from "./dom.js";
import { store } from "./store.js";

let lostMs = 0;

export function startHealth() {
  find("health-open").addEventListener("click", () => (draw(), find("health").showModal()));
  find("health-close").addEventListener("click", () => find("health").close());
  store.on("state connection", draw);
  setInterval(() => store.isConnected || draw(), 1000);
}

function draw() {
  drawModel();
  drawBanner();
  if (find("health").open || !find("health-body").children.length) drawCounters();
}

function drawModel() {
  const model = store.state?.model;
  const isOn = store.isConnected;
  find("model").firstChild.dataset.state = !isOn ? "unknown" : { READY: "ready", FAILED: "failed" }[model?.state] ?? "stale";
  if (!model) return;
  const what = [model.model, model.precision].filter(Boolean).join(" ");
  const build = model.state === "BUILDING" ? ` ${Math.round(model.progress * 100)} % ${model.part}` : "";
  setText(find("model-text"), isOn ? `${what ? `${what} · ` : ""}${model.state}${build}` : `${what || "nvila"} · OFFLINE`);
  find("model-text").title = [store.state.name, model.backend, model.text].filter(Boolean).join(" · ");
}

/** One line about what keeps questions from being answered. */
function drawBanner() {
  const banner = find("banner");
  const { state, isConnected } = store;
  if (isConnected) lostMs = 0;
  else lostMs ||= performance.now();
  document.body.classList.toggle("offline", !isConnected && state !== null);
  const lost = state ? `Connection lost ${ago((performance.now() - lostMs) / 1000)}; trying again. What you see is the last that came.` : "";
  const building = state?.model.state === "BUILDING" ? `Building ${state.model.part}: ${Math.round(state.model.progress * 100)} %. ${state.model.text}` : "";
  const text = isConnected ? state.faults.join(" ") || state.model.refusal || building : lost;
  banner.hidden = !text;
  setText(banner, text);
}

function drawCounters() {
  const { state } = store;
  if (!state) return;
  const cameras = table(["camera", "source", "rate", "age", "received", "lost", "malformed"], state.cameras.map((each) => [each.name, each.source, `${digits(each.rate_hz)} Hz`, each.age_s === null ? "none" : seconds(each.age_s), each.received, each.lost, each.malformed]));
  const standing = table(["standing", "asked", "answered", "missed", "repeated", "skipped", "events"], state.standing.map(({ query, counts }) => [query.name, counts.asked, counts.answered, counts.missed, counts.repeated, counts.skipped, counts.events]));
  const counters = Object.entries(state.counters).map(([name, value]) => [name.replaceAll("_", " ").replace(/ bytes$/, ""), name.endsWith("bytes") ? bytes(value) : value]);
  const scrolled = find("health-body").scrollTop;
  find("health-body").replaceChildren(...[cameras, state.standing.length ? standing : null, make("dl", { class: "counters" }, counters.map(([name, value]) => make("div", { class: value ? null : "zero" }, make("dt", {}, name), make("dd", {}, String(value)))))].filter(Boolean));
  find("health-body").scrollTop = scrolled;
}

function table(names, rows) {
  return make("div", { class: "scrolls" }, make("table", {}, make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value) => make("td", {}, String(value))))))));
}

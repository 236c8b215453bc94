// Where it begins: the parts, the keyboard, and the addresses behind #.

import { choose, startAnswers, step } from "./answer.js";
import { cancel, startAsking } from "./ask.js";
import { chooseCamera, startCameras } from "./cameras.js";
import { find, say } from "./dom.js";
import { follow } from "./feed.js";
import { startHealth } from "./health.js";
import { startStanding } from "./standing.js";
import { store } from "./store.js";
import { showEvent, startTimeline } from "./timeline.js";

function onKey(event) {
  const isTyping = event.target.closest("input[type=text], input[type=number], textarea, select, dialog");
  if (event.key === "Escape" && !event.target.closest("dialog")) return cancel();
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    find("question").focus();
  } else if (/^[1-9]$/.test(event.key)) {
    chooseCamera(Number(event.key) - 1);
  } else if (["ArrowUp", "ArrowDown"].includes(event.key) && !event.target.closest("[type=radio]")) {
    event.preventDefault();
    step(event.key === "ArrowUp" ? 1 : -1);
  }
}

function onClick(event) {
  const past = event.target.closest("[data-key]");
  if (past) choose(past.dataset.key);
  const example = event.target.closest("[data-question]");
  if (example) {
    find("question").value = example.dataset.question;
    find("ask").requestSubmit();
  }
}

/** An answer, an event and a time range have addresses, so that others see the same. */
async function openAddress() {
  const [, kind, value] = location.hash.match(/^#(answer|event|range)=([\w.-]+)$/) ?? [];
  if (kind === "event") showEvent(value);
  if (kind === "range") {
    const [start, end] = value.split("-").map(Number);
    if (start < end) store.setRange({ start, end });
  }
  if (kind !== "answer") return;
  const key = store.keyOf(value);
  if (!store.get(key)) {
    const response = await fetch(`/api/answers/${value}`);
    if (!response.ok) return say("That answer is no longer kept");
    store.putAnswer(key, { view: await response.json(), isOpen: false });
  }
  choose(key);
}

startCameras();
startAsking();
startAnswers();
startTimeline();
startStanding();
startHealth();
document.addEventListener("keydown", onKey);
document.addEventListener("click", onClick);
window.addEventListener("hashchange", openAddress);
store.on("event", (event) => say(`Event: ${event.name} ${event.phase.toLowerCase()}`));
store.addEventListener("connection", () => setTimeout(openAddress, 100), { once: true });
follow();

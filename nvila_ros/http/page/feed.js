// Follows what happens on the server; goes on where it was after a break, and rests while the page is hidden.

import { store } from "./store.js";

const RETRY_MS = 1000;
const SILENT_MS = 30000;

let source = null;
let timer = 0;
let last = "0";
let run = "";
let heard = 0;

export function follow() {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  setInterval(() => source && performance.now() - heard > SILENT_MS && lose(), RETRY_MS);
  open();
}

function open() {
  close();
  heard = performance.now();
  source = new EventSource(`/api/events?last=${last}`);
  source.onerror = lose;
  listen("state", takeState);
  listen("answer", takeAnswer);
  listen("event", (event) => store.addEvent(event));
  listen("standing", ({ name, state }) => store.setStanding(name, state));
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

function listen(kind, take) {
  source.addEventListener(kind, (message) => {
    heard = performance.now();
    if (kind !== "state" && !run) return; // whose it is says the state, which comes first
    if (message.lastEventId) last = message.lastEventId;
    take(JSON.parse(message.data));
  });
}

/** What somebody asked and canceled before it had an answer is nothing to see. */
function takeAnswer(view) {
  const key = store.keyOf(view.query_id);
  if (view.finish_reason !== "CANCELED" || store.get(key)) store.putAnswer(key, { view, isOpen: false });
}

/** A process that was started again has numbers of its own: hear all that it has to say. */
function takeState(state) {
  const isOther = run && run !== state.run;
  run = state.run;
  store.setState(state);
  if (!store.isConnected) {
    store.isConnected = true;
    store.tell("connection");
  }
  if (isOther) {
    last = "0";
    open();
  }
}

function lose() {
  close();
  if (store.isConnected) {
    store.isConnected = false;
    store.tell("connection");
  }
  timer = setTimeout(open, RETRY_MS);
}

// Standing queries: added by a form, paused, removed.

import { find, inAddress, say } from "./dom.js";
import { shownCamera } from "./cameras.js";
import { store } from "./store.js";

const form = () => find("standing-form");
const field = (name) => form().elements[name];
let isNameTyped = false;

export function startStanding() {
  find("standing-open").addEventListener("click", show);
  find("standing-close").addEventListener("click", () => find("standing-dialog").close());
  field("name").addEventListener("input", () => (isNameTyped = field("name").value !== ""));
  field("question").addEventListener("input", suggestName);
  form().addEventListener("change", reveal);
  form().addEventListener("submit", (event) => {
    event.preventDefault();
    add();
  });
  reveal();
}

function show() {
  find("standing-error").hidden = true;
  const asked = find("question").value.trim();
  if (asked && !field("question").value) field("question").value = asked;
  suggestName();
  find("standing-dialog").showModal();
  field("question").focus();
}

/** The last long word of the question, until another name is typed. */
function suggestName() {
  if (isNameTyped) return;
  const words = field("question").value.toLowerCase().match(/[a-z0-9]{3,}/g) ?? [];
  field("name").value = words.length ? words.at(-1) : "";
}

function reveal() {
  const kind = field("answer_type").value;
  for (const part of form().querySelectorAll("[data-type]")) part.hidden = part.dataset.type !== kind;
  const watches = ["rising", "falling"].includes(field("trigger").value);
  form().querySelector("[data-target]").hidden = !watches || kind === "yes_no";
}

function body() {
  const kind = field("answer_type").value;
  const query = {
    name: field("name").value,
    question: field("question").value.trim(),
    answer_type: kind,
    trigger: field("trigger").value,
    rate_hz: Number(field("rate_hz").value),
    threshold: Number(field("threshold").value),
  };
  if (shownCamera()) query.cameras = [shownCamera()];
  if (kind === "choices") query.choices = field("choices").value.split(",").map((each) => each.trim()).filter(Boolean);
  if (kind === "integer") Object.assign(query, { minimum: Number(field("minimum").value), maximum: Number(field("maximum").value) });
  if (kind !== "yes_no" && ["rising", "falling"].includes(query.trigger)) query.target = field("target").value;
  return query;
}

async function add() {
  const query = body();
  const error = await send("POST", "/api/standing", query);
  find("standing-error").hidden = !error;
  find("standing-error").textContent = error;
  if (error) return;
  find("standing-dialog").close();
  form().reset();
  isNameTyped = false;
  reveal();
  say(`${query.name} is asked ${query.rate_hz} times a second`);
}

export async function change(name, isEnabled) {
  say((await send("PATCH", address(name), { enabled: isEnabled })) || `${name} ${isEnabled ? "goes on" : "is paused"}`);
}

export async function remove(name) {
  const error = await send("DELETE", address(name));
  if (!error) store.setStanding(name, null);
  say(error || `${name} is removed`);
}

const address = (name) => `/api/standing/${inAddress(name)}`;

/** Return what went wrong, or an empty text. */
async function send(method, path, content) {
  const options = content ? { headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) } : {};
  try {
    const response = await fetch(path, { method, ...options });
    return response.ok ? "" : (await response.json()).error.message;
  } catch {
    return "the server cannot be reached";
  }
}

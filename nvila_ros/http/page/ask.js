// The question: its form, the request to OpenAI's endpoint, and the pieces of the answer as they come.

import { find, inAddress, make, say, toNs } from "./dom.js";
import { shownCamera } from "./cameras.js";
import { textOf } from "./moments.js";
import { store } from "./store.js";

const ALL = "*";
let open = null; // the answer that is under way, and what aborts it

const form = () => find("ask");
const field = (name) => form().elements[name];

export function startAsking() {
  form().addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  form().addEventListener("change", reveal);
  find("cancel").addEventListener("click", cancel);
  for (const name of ["ago_start", "ago_end"]) field(name).addEventListener("change", takeTyped);
  store.on("range", takeRange);
  store.on("state", drawCameras);
  store.on("selection answer", drawFollow);
  reveal();
}

export function cancel() {
  open?.aborter.abort();
}

/** Show the inputs that belong to what is chosen. */
function reveal() {
  if (field("kind").value === "when" && field("about").value === "now") field("about").value = "last"; // one frame has no time
  for (const line of form().querySelectorAll(".more[data-kind]")) line.hidden = line.dataset.kind !== field("kind").value;
  for (const line of form().querySelectorAll(".more[data-about]")) line.hidden = line.dataset.about !== field("about").value;
  if (field("about").value === "past" && !store.range) takeTyped();
  if (field("about").value !== "past" && store.range) store.setRange(null);
}

function takeTyped() {
  const [start, end] = [Number(field("ago_start").value), Number(field("ago_end").value)];
  if (start > end) store.setRange({ start: store.now() - start * 1000, end: store.now() - end * 1000 });
}

function takeRange() {
  if (!store.range) {
    if (field("about").value === "past") field("about").value = "now";
  } else {
    field("about").value = "past";
    field("ago_start").value = ((store.now() - store.range.start) / 1000).toFixed(1);
    field("ago_end").value = Math.max(0, (store.now() - store.range.end) / 1000).toFixed(1);
  }
  for (const line of form().querySelectorAll(".more[data-about]")) line.hidden = line.dataset.about !== field("about").value;
}

function drawCameras() {
  const names = store.state.cameras.map((each) => each.name);
  find("through").hidden = names.length < 2;
  const select = field("camera");
  if (select.options.length === names.length + 2) return;
  const options = [["", "shown camera"], [ALL, "all cameras"], ...names.map((name) => [name, name])];
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

function drawFollow() {
  const can = Boolean(store.chosen?.conversation) && store.chosen.view?.finish_reason === "STOP";
  find("follow-chip").hidden = !can;
  if (!can && field("about").value === "follow") {
    field("about").value = "now";
    reveal();
  }
}

/** The addresses of the live frames that are asked about. */
function addresses() {
  const about = field("about").value;
  const chosen = field("camera").value || shownCamera();
  const where = chosen === ALL || !chosen ? "nvila:latest" : `nvila:camera/${inAddress(chosen)}`;
  const count = (name) => Math.max(1, Number(field(name).value) || 1);
  if (about === "now") return `${where}?frames=1`;
  if (about === "last") return `${where}?frames=${count("frames")}&window_s=${Number(field("window").value) || 2}`;
  const { start, end } = store.range;
  return `${where}?frames=${count("past_frames")}&start_ns=${toNs(start)}&end_ns=${toNs(end)}`;
}

/** What may be answered, in the words of OpenAI and vLLM. */
function answerFormat() {
  const schema = (value) => ({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: value } } });
  switch (field("kind").value) {
    case "yes_no":
      return { structured_outputs: { choice: ["yes", "no"] } };
    case "choices":
      return { structured_outputs: { choice: field("choices").value.split(",").map((each) => each.trim()).filter(Boolean) } };
    case "integer":
      return schema({ type: "integer", minimum: Number(field("minimum").value), maximum: Number(field("maximum").value) });
    case "json":
      return schema(JSON.parse(field("schema").value));
    case "when":
      return { answer_type: "when" };
    default:
      return {};
  }
}

function request(question) {
  const follows = field("about").value === "follow" && store.chosen;
  const conversation = follows ? follows.conversation : `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  const text = { type: "text", text: question };
  const content = follows ? [text] : [text, { type: "image_url", image_url: { url: addresses() } }];
  const body = { model: "live", stream: true, conversation, messages: [{ role: "user", content }], ...answerFormat() };
  return { body, conversation, follows: follows ? follows.key : null };
}

async function ask() {
  const question = field("question").value.trim();
  if (!question) return;
  cancel();
  const key = `asked/${performance.now()}`;
  const answer = store.putAnswer(key, { question, text: "", isOpen: true, isMine: true, askedMs: store.now() });
  const aborter = new AbortController();
  open = { answer, aborter };
  try {
    const { body, conversation, follows } = request(question);
    Object.assign(answer, { conversation, follows, answerType: body.answer_type });
    store.select(key);
    drawButtons();
    await stream(body, answer, aborter.signal);
    say(`Answer: ${textOf(answer)}`);
  } catch (error) {
    answer.error = aborter.signal.aborted ? "" : error.message;
    answer.isCanceled = aborter.signal.aborted;
    say(answer.isCanceled ? "Canceled" : `No answer: ${error.message}`);
    if (answer.key === key) store.select(key);
  }
  answer.isOpen = false;
  if (open?.answer === answer) open = null;
  drawButtons();
  store.select(store.selected);
  store.tell("answer", answer);
}

function drawButtons() {
  find("cancel").hidden = !open;
  find("send").hidden = Boolean(open);
}

async function stream(body, answer, signal) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", options).catch((error) => {
    throw signal.aborted ? error : new Error("the server cannot be reached");
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const chunk of chunks(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    take(answer, chunk);
  }
}

function take(answer, chunk) {
  store.rename(answer, store.keyOf(chunk.id.replace("chatcmpl-", "")));
  const piece = chunk.choices[0]?.delta.content;
  if (piece) answer.text += piece;
  if (piece && !answer.firstMs) answer.firstMs = store.now();
  if (chunk.nvila) answer.view = chunk.nvila;
  store.tell("answer", answer);
}

/** JSON of each `data:` line of server-sent events. */
async function* chunks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

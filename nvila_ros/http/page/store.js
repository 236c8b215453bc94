// What the page knows, and who wants to hear when it changes. Kinds of changes:
// state, answer, event, standing, selection, range, connection.

import { toMs } from "./dom.js";

const MAX_ANSWERS = 200;
const MAX_POINTS = 2000;

class Store extends EventTarget {
  state = null;
  isConnected = false;
  isEnding = false;
  answers = new Map(); // by key, oldest first; those of a person
  standing = new Map(); // answers of standing queries, by key
  events = []; // newest last
  curves = new Map(); // of a standing query: [{ms, probability, text}], by name
  selected = null; // key of an answer
  range = null; // {start, end} in ms of the server's clock
  #run = "";
  #offset = 0;

  /** Tell those who listen. */
  tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  on(kinds, listener) {
    for (const kind of kinds.split(" ")) this.addEventListener(kind, (event) => listener(event.detail));
  }

  /** The server's clock, ms. */
  now() {
    return performance.now() + this.#offset;
  }

  keyOf(queryId) {
    return `${this.#run}/${queryId}`;
  }

  /** Take a state; one of another process begins anew, and keeps the answers that it has. */
  setState(state) {
    if (this.#run !== state.run) {
      this.#run = state.run;
      this.curves.clear();
      this.events = [];
    }
    this.state = state;
    this.#offset = toMs(state.now_ns) - performance.now();
    for (const standing of state.standing) this.#addPoint(standing.query.name, standing);
    this.tell("state");
  }

  /** Take an answer, of whomever; what is known of it already stays. */
  putAnswer(key, values) {
    const map = values.view?.standing ? this.standing : this.answers;
    const answer = Object.assign(map.get(key) ?? { key }, values);
    map.set(key, answer);
    if (map.size > MAX_ANSWERS) map.delete(map.keys().next().value);
    this.tell("answer", answer);
    return answer;
  }

  /** Move an answer to the name that the server has given it. */
  rename(answer, key) {
    if (answer.key === key) return;
    this.answers.delete(answer.key);
    if (this.selected === answer.key) this.selected = key;
    answer.key = key;
    this.answers.set(key, answer);
  }

  get(key) {
    return this.answers.get(key) ?? this.standing.get(key) ?? null;
  }

  get chosen() {
    return this.get(this.selected);
  }

  select(key) {
    this.selected = key;
    this.tell("selection");
  }

  setRange(range) {
    this.range = range;
    this.tell("range");
  }

  addEvent(event) {
    if (this.events.some((each) => each.event_id === event.event_id && each.phase === event.phase)) return;
    this.events.push(event);
    if (this.events.length > MAX_ANSWERS) this.events.shift();
    this.tell("event", event);
  }

  setStanding(name, standing) {
    if (standing) this.#addPoint(name, standing);
    else this.curves.delete(name);
    if (this.state) {
      const others = this.state.standing.filter((each) => each.query.name !== name);
      const at = this.state.standing.findIndex((each) => each.query.name === name);
      if (standing) others.splice(at < 0 ? others.length : at, 0, standing);
      this.state.standing = others;
    }
    this.tell("standing");
  }

  #addPoint(name, standing) {
    if (standing.stamp_ns === null || standing.probability === null) return;
    const points = this.curves.get(name) ?? [];
    const ms = toMs(standing.stamp_ns);
    if (points.length && points.at(-1).ms >= ms) return;
    points.push({ ms, probability: standing.probability, text: standing.text });
    if (points.length > MAX_POINTS) points.shift();
    this.curves.set(name, points);
  }
}

export const store = new Store();

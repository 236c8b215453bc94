// Small helpers: elements, and words for numbers and times.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** Make an element; `children` are elements or texts, null is left out. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function makeSvg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set a text only where it is another, so that screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Three significant digits at most. */
export function digits(value) {
  return Number(value.toPrecision(3)).toString();
}

export function seconds(value) {
  const size = Math.abs(value);
  if (size < 0.9995) return `${digits(value * 1000)} ms`;
  if (size < 99.95) return `${value.toFixed(size < 9.995 ? 2 : 1)} s`;
  if (size < 5940) return `${Math.round(value / 60)} min`;
  return `${digits(value / 3600)} h`;
}

/** How long ago, coarse enough not to flicker. */
export function ago(value) {
  if (value < 1) return "just now";
  return `${value < 100 ? Math.round(value) + " s" : seconds(value)} ago`;
}

export function share(value) {
  return value.toFixed(2);
}

export function bytes(value) {
  return value < 1e6 ? `${digits(value / 1e3)} kB` : `${digits(value / 1e6)} MB`;
}

/** Stamps come as text, in nanoseconds; ms as a number keep a microsecond. */
export function toMs(stampNs) {
  return Number(BigInt(stampNs) / 1000n) / 1000;
}

export function toNs(ms) {
  return (BigInt(Math.round(ms * 1000)) * 1000n).toString();
}

export function clockTime(ms) {
  const date = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  const thousandths = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${thousandths}`;
}

/** A name as a part of an address; a slash in it stays one. */
export const inAddress = (name) => name.split("/").map(encodeURIComponent).join("/");

/** Tell a screen reader. */
export function say(text) {
  find("say").textContent = text;
}

// When something happened: intervals of time, as words and on the frames that they were found in.

import { toMs } from "./dom.js";

/** The text of an answer for people; one that says when is JSON. */
export function textOf(answer) {
  const { view } = answer;
  const text = view?.text || answer.text || "";
  if ((view?.answer_type ?? answer.answerType) !== "when") return text;
  if (view?.finish_reason !== "STOP") return "";
  const found = intervals(view);
  return found.length ? found.map(words).join(", ") : "it does not happen";
}

/** Begin and end of each interval, in seconds before the newest frame, and in ms. */
export function intervals(view) {
  if (view?.answer_type !== "when" || view.finish_reason !== "STOP" || !view.frames.length) return [];
  const first = toMs(view.frames[0].stamp_ns); // stamps as numbers would lose their last digits: seconds do not
  const newest = toMs(view.frames.at(-1).stamp_ns);
  return JSON.parse(view.text).intervals.map((each) => {
    const [from, to] = [first + each.start_s * 1000, first + each.end_s * 1000];
    return { from, to, before: [(newest - from) / 1000, (newest - to) / 1000] };
  });
}

/** Whether a frame lies in one of the intervals. */
export function isInside(found, ms) {
  return found.some(({ from, to }) => from - 1 <= ms && ms <= to + 1);
}

function words({ before }) {
  const [from, to] = before.map((s) => (s < 0.0005 ? "newest" : `\u2212${s.toFixed(2)} s`));
  return from === to ? from : `${from} to ${to}`;
}

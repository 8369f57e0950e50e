// A rate over the last minutes, drawn.

import { make } from "./elements.js";
import { rate } from "./units.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;

/** @typedef {import("./rates.js").Rates} Rates */

/** Shows in a figure what a rate is now and how it went. */
export class Plot {
  /**
   * @param {HTMLElement} figure
   * @param {string} what such as "tokens a second"
   */
  constructor(figure, what) {
    this._what = what;
    this._now = make("strong", { textContent: "–" });
    this._peak = make("span", { className: "peak" });
    this._svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this._area = drawn("path", { class: "area" });
    this._line = drawn("path", { class: "line" });
    this._svg.append(drawn("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), this._area, this._line);
    const axis = make("p", { className: "axis" }, make("span", { textContent: "5 min" }), this._peak);
    axis.setAttribute("aria-hidden", "true");
    figure.append(make("figcaption", {}, this._now, ` ${what}`), this._svg, axis);
  }

  /**
   * @param {Rates} rates
   * @param {number} now in the rates' seconds
   * @param {boolean} known whether what they are now is known
   */
  show(rates, now, known = true) {
    const { peak, span } = rates;
    const latest = known ? rates.latest : undefined;
    // A little air above, and no noise made large.
    const top = Math.max(peak * 1.1, 1);
    const lines = rates.lines().map((line) => line.map((point) => [
      Math.max(WIDTH * (1 - (now - point.time) / span), 0),
      HEIGHT - 1 - (HEIGHT - 2) * (point.rate / top),
    ]));
    this._line.setAttribute("d", lines.map(path).join(""));
    this._area.setAttribute("d", lines.map((line) => `${path(line)}V${HEIGHT}H${line[0][0].toFixed(1)}Z`).join(""));
    this._now.textContent = latest === undefined ? "–" : rate(latest);
    this._peak.textContent = `at most ${rate(peak)}`;
    this._svg.setAttribute("aria-label", `${this._what} over the last five minutes: ${
      latest === undefined ? "now not known" : `now ${rate(latest)}, at most ${rate(peak)}`}`);
  }
}

/** @param {number[][]} line */
function path(line) {
  return line.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/**
 * A part of a drawing.
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 */
export function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, String(value));
  return made;
}

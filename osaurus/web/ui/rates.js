// From a counter that is looked at now and then to how fast it goes, over the last minutes.

/**
 * @typedef {{time: number, rate: number}} Point in seconds, and a second
 */

/** Keeps what a counter was for `span` seconds; a rate is taken over at least `window` of them, if there are as many. */
export class Rates {
  /**
   * @param {number} span
   * @param {number} window
   * @param {number} gap after which a line is not drawn on, in seconds: nobody looked
   */
  constructor(span, window, gap) {
    this.span = span;
    this._window = window;
    this._gap = gap;
    /** @type {{time: number, value: number}[][]} runs without a gap */
    this._runs = [];
  }

  /**
   * @param {number} time in seconds
   * @param {number} value
   */
  add(time, value) {
    const run = this._runs.at(-1);
    const last = run?.at(-1);
    // A counter that went back is another server's.
    if (!run || !last || time - last.time > this._gap || value < last.value) this._runs.push([{ time, value }]);
    else run.push({ time, value });
    const oldest = time - this.span - this._window;
    this._runs = this._runs.map((each) => each.filter((sample) => sample.time >= oldest)).filter((each) => each.length);
  }

  /**
   * The rates, as lines without gaps.
   * @returns {Point[][]}
   */
  lines() {
    return this._runs.map((run) => {
      let from = 0;
      return run.slice(1).map(({ time, value }, index) => {
        while (from < index && time - run[from + 1].time >= this._window) from += 1;
        return { time, rate: (value - run[from].value) / (time - run[from].time) };
      });
    }).filter((line) => line.length);
  }

  /** The rate now; undefined where that is not known yet. */
  get latest() {
    const run = this._runs.at(-1);
    return run && run.length > 1 ? this.lines().at(-1)?.at(-1)?.rate : undefined;
  }

  /** The largest rate within the span. */
  get peak() {
    return Math.max(0, ...this.lines().flat().map(({ rate }) => rate));
  }
}

// What the server is doing: whether it is there, and its numbers.

import { element, make } from "./elements.js";
import { parse, reading } from "./metrics.js";
import { drawn, Plot } from "./plot.js";
import { Rates } from "./rates.js";
import { Refusal } from "./server.js";
import { bytes, percent } from "./units.js";

const SPAN = 300;
const GAP = 15;
const PATIENCE = 10000;

/** @typedef {"running" | "failing" | "locked" | "away" | "unknown"} State */

/** @type {Record<State, string>} */
const WORDS = {
  running: "Running", failing: "Cannot answer", locked: "Key needed", away: "Not reachable", unknown: "Connecting",
};

/** @type {[string, string][]} the kinds of memory, and their names */
const KINDS = [["models", "Models"], ["rows", "Answers under way"], ["prefixes", "Prompts read before"]];

/**
 * Asks the server how it is, and shows it. Of the questions each has its own time: what is slow holds up nothing else, and
 * is not asked again before it is answered.
 */
export class Overview {
  /**
   * @param {import("./server.js").Server} server
   * @param {import("./models.js").Models} models
   */
  constructor(server, models) {
    this._server = server;
    this._models = models;
    /** @type {State} */
    this._health = "unknown";
    this.reason = "";
    this._ahead = 0; // the server's clock of ours, in milliseconds
    this._numbers = true; // whether the server tells them
    /** @type {Set<string>} */
    this._asking = new Set();
    this._tokens = new Rates(SPAN, 1.5, GAP);
    this._requests = new Rates(SPAN, 10, GAP);
    this._tokensPlot = new Plot(element("tokens-plot"), "tokens a second");
    this._requestsPlot = new Plot(element("requests-plot"), "requests a second");
  }

  /** @returns {State} */
  get state() {
    return this._server.locked && this._health === "running" ? "locked" : this._health;
  }

  /**
   * Looks once; returns whether the server answered. The rest is shown as it comes.
   * @returns {Promise<boolean>}
   */
  async look() {
    await this._askHealth();
    if (this._health === "away") {
      this._numbers = true;
    } else {
      // Where a key is wanted this tells as well when it no longer is.
      this._ask("ps", async (answer) => {
        this._models.showResident((await answer.json()).models, Date.now() + this._ahead);
      });
      if (this._numbers && !this._server.locked) {
        this._ask("metrics", async (answer) => this._showNumbers(reading(parse(await answer.text()))));
      }
    }
    this.show();
    return this._health !== "away";
  }

  /** Shows how the server is, as far as that is known. */
  show() {
    const { state } = this;
    const sign = element("state");
    if (sign.dataset.state !== state) {
      sign.dataset.state = state;
      element("state-text").textContent = WORDS[state];
    }
    const past = state === "away" || state === "locked";
    element("server").classList.toggle("past", past);
    if (past) this._showRates(false);
  }

  async _askHealth() {
    this.reason = "";
    try {
      const answer = await this._server.ask("health", { signal: AbortSignal.timeout(PATIENCE) });
      this._ahead = Date.parse((await answer.json()).timestamp) - Date.now();
      this._health = "running";
    } catch (error) {
      // A proxy's errors say that there is no server behind it.
      this._health = error instanceof Refusal && error.status === 503 && error.told ? "failing" : "away";
      if (error instanceof Error) this.reason = error.message;
    }
  }

  /**
   * Asks for what is shown if it comes; it is asked for at every look.
   * @param {"ps" | "metrics"} path
   * @param {(answer: Response) => Promise<void>} show
   */
  async _ask(path, show) {
    if (this._asking.has(path)) return;
    this._asking.add(path);
    try {
      await show(await this._server.ask(path, { signal: AbortSignal.timeout(PATIENCE) }));
    } catch (error) {
      if (path === "metrics" && error instanceof Refusal && [403, 404].includes(error.status)) {
        // Not asked for again until another server may be there.
        this._numbers = false;
        this._showNumbers(null);
      }
    } finally {
      this._asking.delete(path);
    }
  }

  /** @param {boolean} known whether what the rates are now is known */
  _showRates(known) {
    const now = performance.now() / 1000;
    this._tokensPlot.show(this._tokens, now, known);
    this._requestsPlot.show(this._requests, now, known);
  }

  /** @param {import("./metrics.js").Reading | null} told null where the server does not tell */
  _showNumbers(told) {
    for (const card of ["throughput", "work", "memory", "cache"]) element(card).hidden = !told;
    if (!told) return;
    const now = performance.now() / 1000;
    this._tokens.add(now, told.tokens);
    this._requests.add(now, told.requests);
    this._showRates(true);
    for (const state of ["writing", "reading", "waiting", "parked"]) {
      element(`rows-${state}`).textContent = String(told.rows[state] ?? 0);
    }
    element("queue").textContent = String(told.queue ?? 0);
    element("cache-rate").textContent = percent(told.hits, told.hits + told.misses);
    element("cache-memory").textContent = bytes(told.prefixes.memory ?? 0);
    element("cache-disk").textContent = bytes(told.prefixes.disk ?? 0);
    // Until the engine is there nothing is known of it.
    element("memory").hidden = !told.memory.limit;
    showMemory(told.memory);
  }
}

/** @param {Record<string, number>} memory in bytes, by kind */
function showMemory(memory) {
  const used = KINDS.map(([kind, name]) => ({ kind, name, size: memory[kind] ?? 0 }));
  const sum = used.reduce((total, { size }) => total + size, 0);
  const limit = Math.max(memory.limit ?? 0, sum, 1);
  const bar = drawn("svg", { viewBox: "0 0 1000 1", preserveAspectRatio: "none", class: "gauge", role: "img" });
  bar.append(drawn("rect", { class: "free", width: 1000, height: 1 }));
  let x = 0;
  for (const { kind, size } of used) {
    const width = (1000 * size) / limit;
    bar.append(drawn("rect", { class: kind, x, width, height: 1 }));
    x += width;
  }
  const summary = `${bytes(sum)} of ${bytes(memory.limit ?? limit)}, ${percent(sum, limit)}`;
  bar.setAttribute("aria-label", `Memory in use: ${summary}`);
  const legend = make("ul", { className: "legend" }, ...used.map(({ kind, name, size }) => {
    const mark = make("span", { className: `mark ${kind}` });
    return make("li", {}, mark, `${name} `, make("b", { textContent: bytes(size) }));
  }));
  element("memory-bar").replaceChildren(make("p", { className: "sum", textContent: summary }), bar, legend);
}

// The models: those in memory, which can be unloaded, and those that are installed.

import { element, make } from "./elements.js";
import { explained } from "./server.js";
import { bytes, duration } from "./units.js";

const YEAR = 365 * 86400;
// In milliseconds. Digests of large models, which come with their sizes, take long the first time.
const PATIENCE = 10000;
const LONG_PATIENCE = 60000;

/**
 * @typedef {{name: string, size: number, size_vram?: number, context_length?: number, expires_at?: string,
 *   details?: {parameter_size?: string, quantization_level?: string, family?: string}}} Model
 */

/** Shows them as the server tells them. */
export class Models extends EventTarget {
  /** @param {import("./server.js").Server} server */
  constructor(server) {
    super();
    this._server = server;
    /** @type {Map<string, {item: HTMLElement, facts: HTMLElement}>} */
    this._resident = new Map();
    /** @type {string[]} */
    this.installed = [];
    this.known = false; // whether all that is installed is shown as it is
    /** @type {AbortController | null} */
    this._looking = null;
    this._again = false;
  }

  get looking() {
    return this._looking !== null;
  }

  /**
   * Shows what is in memory; rows stay the same, so that the focus does.
   * @param {Model[]} models
   * @param {number} now the server's time, in milliseconds since the epoch
   */
  showResident(models, now) {
    const list = element("resident");
    for (const [name, { item }] of this._resident) {
      if (models.some((model) => model.name === name)) continue;
      if (item.contains(document.activeElement)) element("memory-models-title").focus();
      item.remove();
      this._resident.delete(name);
    }
    for (const model of models) {
      const row = this._resident.get(model.name) ?? this._row(model.name, list);
      const text = residence(model, now);
      if (row.facts.textContent !== text) row.facts.textContent = text;
    }
    element("resident-none").hidden = models.length > 0;
    element("resident-none").textContent = "No model is in memory. One is loaded when it is first asked.";
  }

  /** Asks which models there are; if that is being done, once more afterwards. */
  async look() {
    this._again = this.looking;
    if (this.looking) return;
    do {
      this._again = false;
      this._looking = new AbortController();
      this.known = await this._list(this._looking);
    } while (this._again);
    this._looking = null;
  }

  /** The server has gone: what was asked of it is not waited for, and asked for anew when it is back. */
  leave() {
    this.known = false;
    this._looking?.abort(new Error("The server does not answer."));
  }

  /**
   * Shows what is installed; returns whether it could.
   * @param {AbortController} looking
   */
  async _list(looking) {
    const { signal } = looking;
    const late = new Error("The models are still being looked at.");
    let timer = setTimeout(() => looking.abort(late), PATIENCE);
    try {
      // Ids come at once.
      const listed = await (await this._server.ask("models", { signal })).json();
      this.installed = listed.data.map((/** @type {{id: string}} */ { id }) => id);
      this.dispatchEvent(new Event("installed"));
      clearTimeout(timer);
      timer = setTimeout(() => looking.abort(late), LONG_PATIENCE);
      const { models } = await (await this._server.ask("tags", { signal })).json();
      element("installed").replaceChildren(...models.map(installedRow));
      element("installed-none").hidden = models.length > 0;
      element("installed-none").textContent = "No model is installed yet.";
      return true;
    } catch (error) {
      element("installed-none").textContent = explained(error);
      element("installed-none").hidden = false;
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * @param {string} name
   * @param {HTMLElement} list
   */
  _row(name, list) {
    const facts = make("span", { className: "facts" });
    const problem = make("p", { className: "problem", role: "alert" });
    const button = make("button", { type: "button", className: "quiet", textContent: "Unload" });
    button.setAttribute("aria-label", `Unload ${name}`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      button.textContent = "Unloading …";
      problem.textContent = "";
      try {
        await this._server.ask("chat", { body: { model: name, messages: [], keep_alive: 0 } });
      } catch (error) {
        problem.textContent = explained(error);
      }
      button.disabled = false;
      button.textContent = "Unload";
      this.dispatchEvent(new Event("changed"));
    });
    const item = make("li", {}, make("span", { className: "name", textContent: name }), button, facts, problem);
    list.append(item);
    const row = { item, facts };
    this._resident.set(name, row);
    return row;
  }
}

/**
 * @param {Model} model
 * @param {number} now
 */
function residence({ size, size_vram, context_length, expires_at }, now) {
  const left = expires_at ? (Date.parse(expires_at) - now) / 1000 : NaN;
  const stay = left > YEAR ? "stays" : left > 0 ? `leaves in ${duration(Math.max(left, 1))}` : "in use";
  const where = size_vram ? `${bytes(size)} on the GPU` : bytes(size);
  const context = context_length ? `context ${context_length.toLocaleString("en")}` : "";
  return [where, context, stay].filter(Boolean).join(" · ");
}

/** @param {Model} model */
function installedRow({ name, size, details = {} }) {
  const facts = [details.parameter_size === "0" ? "" : details.parameter_size, details.quantization_level,
    size ? bytes(size) : ""];
  return make("li", {}, make("span", { className: "name", textContent: name }),
    make("span", { className: "facts", textContent: facts.filter(Boolean).join(" · ") }));
}

// Getting a model from where models are, with how far that is.

import { element } from "./elements.js";
import { errorIn, explained, Refusal } from "./server.js";
import { lines } from "./streams.js";
import { bytes, percent } from "./units.js";

const LOST = "The pull broke off: the connection to the server was lost. Pull it again: it goes on from there.";

/**
 * @typedef {{status: string, digest?: string, total?: number, completed?: number}} Progress
 */

/**
 * Yields how far a pull is; returns when the model is there. Throws what Server.ask does, and Error if it broke off.
 * @param {import("./server.js").Server} server
 * @param {string} name
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Progress>}
 */
export async function* pulling(server, name, signal) {
  const response = await server.ask("pull", { body: { model: name, stream: true }, signal });
  let last = "";
  try {
    for await (const line of lines(/** @type {ReadableStream<Uint8Array>} */ (response.body))) {
      if (!line) continue;
      const told = JSON.parse(line);
      const problem = errorIn(told);
      if (problem !== undefined) throw new Refusal(response.status, problem);
      last = told.status;
      yield told;
    }
  } catch (error) {
    if (error instanceof Refusal || signal.aborted) throw error;
    throw new Error(LOST);
  }
  if (last !== "success") throw new Error(LOST);
}

/**
 * Has the form pull models. `installed` is called when there is one more.
 * @param {import("./server.js").Server} server
 * @param {() => void} installed
 */
export function pullForm(server, installed) {
  /** @type {HTMLInputElement} */
  const input = element("pull-name");
  const button = element("pull-button");
  const outcome = element("pull-outcome");
  const progress = element("pull-progress");
  /** @type {AbortController | null} */
  let running = null;

  element("pull").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (running) return running.abort();
    const name = input.value.trim();
    if (!name) return input.focus();
    running = new AbortController();
    button.textContent = "Cancel";
    input.readOnly = true;
    outcome.className = "";
    outcome.textContent = `Pulling ${name}.`;
    progress.hidden = false;
    show({ status: "Asking for it" });
    try {
      for await (const told of pulling(server, name, running.signal)) show(told);
      outcome.textContent = `${name} is installed.`;
      input.value = "";
      installed();
    } catch (error) {
      outcome.className = running.signal.aborted ? "" : "problem";
      outcome.textContent = running.signal.aborted
        ? "Cancelled. What has arrived is kept: pull it again, and it goes on from there."
        : explained(error);
    } finally {
      running = null;
      button.textContent = "Pull";
      input.readOnly = false;
      progress.hidden = true;
    }
  });
}

/** @param {Progress} told */
function show({ status, total, completed = 0 }) {
  /** @type {HTMLProgressElement} */
  const bar = element("pull-bar");
  if (total) {
    bar.max = total;
    bar.value = completed;
    element("pull-status").textContent =
      `${status}: ${bytes(completed)} of ${bytes(total)}, ${percent(completed, total)}`;
  } else {
    bar.removeAttribute("value");
    element("pull-status").textContent = `${status} …`;
  }
}

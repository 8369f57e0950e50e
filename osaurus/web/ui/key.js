// The dialog for the server's API key.

import { element } from "./elements.js";
import { explained } from "./server.js";

/**
 * Asks for the key whenever the server wants one. Returns how to ask again.
 * @param {import("./server.js").Server} server
 */
export function keyDialog(server) {
  /** @type {HTMLDialogElement} */
  const dialog = element("key");
  /** @type {HTMLInputElement} */
  const value = element("key-value");
  const problem = element("key-problem");

  const open = () => {
    if (dialog.open) return;
    problem.textContent = "";
    value.removeAttribute("aria-invalid");
    dialog.showModal();
    value.focus();
  };
  const refuse = (/** @type {string} */ reason) => {
    problem.textContent = reason;
    value.setAttribute("aria-invalid", "true");
    value.select();
  };

  element("key-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    const key = value.value.trim();
    if (!key) return refuse("Enter one of the server's keys.");
    if (!/^[\x21-\x7e]+$/.test(key)) return refuse("A key has no spaces and no letters beyond ASCII.");
    try {
      if (!(await server.unlock(key))) return refuse("That is none of this server's keys.");
    } catch (error) {
      return refuse(explained(error));
    }
    value.value = "";
  });
  element("key-later").addEventListener("click", () => dialog.close());
  server.addEventListener("locked", open);
  server.addEventListener("unlocked", () => dialog.close());
  return open;
}

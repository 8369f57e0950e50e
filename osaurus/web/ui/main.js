// The page, put together.

import { Chat } from "./chat.js";
import { element } from "./elements.js";
import { keyDialog } from "./key.js";
import { Models } from "./models.js";
import { Overview } from "./overview.js";
import { Polling } from "./polling.js";
import { pullForm } from "./pull.js";
import { explained, Server } from "./server.js";

// Models come and go by other ways as well: every so many looks they are asked for again.
const LOOKS = 30;

const server = new Server(sessionStorage);
const models = new Models(server);
const overview = new Overview(server, models);
const chat = new Chat(server);
const askKey = keyDialog(server);

let looks = 0;
let known = false;
let looking = false;

async function lookForModels() {
  // Digests of large models take long the first time.
  if (looking) return;
  looking = true;
  try {
    await models.look();
    known = true;
  } catch (error) {
    known = false;
    element("installed-none").textContent = explained(error);
    element("installed-none").hidden = false;
  }
  looking = false;
}

const polling = new Polling(
  async () => {
    const answered = await overview.look();
    if (answered && !server.locked && (!known || looks % LOOKS === 0)) lookForModels();
    if (!answered) known = false;
    looks += 1;
    return answered;
  },
  (milliseconds) => notice(milliseconds / 1000),
);

/** @param {number} seconds until the next look */
function notice(seconds) {
  const { state, reason } = overview;
  const said = {
    away: `The server does not answer. The page looks again in ${seconds} s.`,
    failing: `The server is there, but cannot answer: ${reason}`,
    locked: "This server asks for an API key.",
  }[/** @type {string} */ (state)];
  element("notice").hidden = said === undefined;
  element("notice").dataset.state = state;
  if (element("notice-text").textContent !== said) element("notice-text").textContent = said ?? "";
  element("notice-action").textContent = state === "locked" ? "Enter the key" : "Look now";
}

element("notice-action").addEventListener("click", () => {
  if (server.locked) askKey();
  else polling.now();
});
server.addEventListener("unlocked", () => polling.now());
models.addEventListener("installed", () => chat.offer(models.installed));
models.addEventListener("changed", () => polling.now());
pullForm(server, lookForModels);
element("welcome-pull").addEventListener("click", () => {
  show("server");
  element("pull-name").value = "smollm2:135m";
  element("pull-button").focus();
});

/**
 * Shows one of the two views, where there is no room for both.
 * @param {"chat" | "server"} view
 */
function show(view) {
  document.body.dataset.view = view;
  for (const name of ["chat", "server"]) {
    if (name === view) element(`to-${name}`).setAttribute("aria-current", "page");
    else element(`to-${name}`).removeAttribute("aria-current");
  }
}

for (const view of /** @type {const} */ (["chat", "server"])) {
  element(`to-${view}`).addEventListener("click", (/** @type {Event} */ event) => {
    event.preventDefault();
    show(view);
  });
}
show("chat");
polling.start();
window.addEventListener("online", () => polling.now());
// On a phone this would bring up the keyboard.
if (matchMedia("(pointer: fine)").matches) element("message").focus();

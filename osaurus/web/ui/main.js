// The page, put together.

import { Chat } from "./chat.js";
import { element } from "./elements.js";
import { keyDialog } from "./key.js";
import { Models } from "./models.js";
import { Overview } from "./overview.js";
import { Polling } from "./polling.js";
import { pullForm } from "./pull.js";
import { Server } from "./server.js";
import { tabStorage } from "./storage.js";

// Models come and go by other ways as well: every so many looks they are asked for again.
const LOOKS = 30;

const server = new Server(tabStorage());
const models = new Models(server);
const overview = new Overview(server, models);
const askKey = keyDialog(server);
const chat = new Chat(server, askKey);

let looks = 0;

const polling = new Polling(
  async () => {
    const answered = await overview.look();
    if (!answered) models.leave();
    else if (!server.locked && !models.looking && (!models.known || looks % LOOKS === 0)) models.look();
    looks += 1;
    return answered;
  },
  (milliseconds) => notice(milliseconds / 1000),
);

/** @param {number} seconds until the next look */
function notice(seconds) {
  const { state, reason } = overview;
  const said = {
    away: "The server does not answer.",
    failing: `The server is there, but cannot answer: ${reason}`,
    locked: "This server asks for an API key.",
  }[/** @type {string} */ (state)];
  element("notice").hidden = said === undefined;
  element("notice").dataset.state = state;
  if (element("notice-text").textContent !== said) element("notice-text").textContent = said ?? "";
  // These change each time, and are for those who see them.
  element("notice-wait").textContent = state === "away" ? `The page looks again in ${seconds} s.` : "";
  element("notice-action").textContent = state === "locked" ? "Enter the key" : "Look now";
}

element("notice-action").addEventListener("click", () => {
  if (server.locked) askKey();
  else polling.now();
});
for (const event of ["locked", "unlocked"]) {
  server.addEventListener(event, () => {
    overview.show();
    notice(0);
    polling.now();
  });
}
models.addEventListener("installed", () => chat.offer(models.installed));
models.addEventListener("changed", () => polling.now());
pullForm(server, () => models.look());
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
element("skip").addEventListener("click", () => show("chat"));
show("chat");
polling.start();
window.addEventListener("online", () => polling.now());
// On a phone this would bring up the keyboard.
if (matchMedia("(pointer: fine)").matches) element("message").focus();

// The chat: what was said, and the answer that is being written.

import { Answer } from "./answer.js";
import { complete } from "./completion.js";
import { Conversation } from "./conversation.js";
import { element, make } from "./elements.js";
import { explained } from "./server.js";

// So near its end, in pixels, a conversation is followed as it grows.
const NEAR = 48;
// So soon after an answer's end, in milliseconds, a click on the button was meant to stop it.
const SOON = 500;

/** Runs the chat's part of the page. */
export class Chat {
  /**
   * @param {import("./server.js").Server} server
   * @param {() => void} askKey has the key asked for
   */
  constructor(server, askKey) {
    this._server = server;
    this._askKey = askKey;
    this._conversation = new Conversation();
    /** @type {AbortController | null} */
    this._running = null;
    this._ended = -Infinity; // when the last answer did
    this._known = false; // whether the models are
    this._place = element("conversation");
    this._welcome = element("welcome");
    this._welcomeText = element("welcome-text");
    this._welcomePull = element("welcome-pull");
    this._message = element("message");
    this._send = element("send");
    this._model = element("model");
    this._unsent = element("unsent");
    this._send.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      // The button changes under whoever clicks: the second of two clicks, or one that comes as the answer ends.
      if (event.detail > 1 || performance.now() - this._ended < SOON) event.preventDefault();
    });
    element("composer").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this._running) this._running.abort();
      else this._ask();
    });
    this._message.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      // While characters are being composed, Enter is for whoever composes them. Safari's comes when that is over, with
      // the code that keys have meanwhile.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      if (!this._running) this._ask();
    });
    this._message.addEventListener("input", () => {
      this._unsent.textContent = "";
      this._fit();
    });
    element("new").addEventListener("click", () => this._begin());
    closing(element("options"));
  }

  /**
   * Has these models to choose from.
   * @param {string[]} models
   */
  offer(models) {
    const chosen = this._model.value;
    this._known = true;
    this._unsent.textContent = "";
    this._model.replaceChildren(...models.map((name) => make("option", { value: name, textContent: name })));
    if (models.includes(chosen)) this._model.value = chosen;
    if (!models.length) this._model.append(make("option", { value: "", textContent: "No model" }));
    this._model.disabled = !models.length;
    this._welcomeText.textContent = models.length ? "Ask something." : "No model is installed yet.";
    this._welcomePull.hidden = models.length > 0;
  }

  _begin() {
    this._running?.abort();
    this._conversation = new Conversation();
    this._place.replaceChildren(this._welcome);
    element("told").textContent = "A new conversation.";
    this._message.focus();
  }

  _ask() {
    const question = this._message.value.trim();
    if (!question) return;
    if (this._server.locked) return this._askKey();
    this._unsent.textContent = "";
    if (!this._model.value) {
      this._unsent.textContent = this._known
        ? "No model is installed yet."
        : "Which models there are is not known yet: the server has not told.";
      return;
    }
    for (const field of [element("temperature"), element("longest")]) {
      if (field.validity.valid) continue;
      element("options").open = true;
      field.reportValidity();
      return;
    }
    this._message.value = "";
    this._fit();
    this._welcome.remove();
    this._place.append(make("article", { className: "question" }, make("h3", { className: "unseen", textContent: "You" }),
      make("p", { textContent: question })));
    this._answer(this._conversation.ask(question));
  }

  /**
   * Has a question answered, for the first time or in the place of an answer that failed.
   * @param {import("./conversation.js").Turn} turn
   * @param {Answer} [failed]
   */
  async _answer(turn, failed) {
    const conversation = this._conversation;
    const running = new AbortController();
    const model = this._model.value;
    const temperature = element("temperature").valueAsNumber;
    const longest = element("longest").valueAsNumber;
    const answer = new Answer(model, (change) => this._follow(change));
    this._running = running;
    this._send.textContent = "Stop";
    if (failed) {
      failed.element.replaceWith(answer.element);
    } else {
      this._place.append(answer.element);
      this._place.scrollTop = this._place.scrollHeight;
    }
    element("told").textContent = `${model} is answering.`;
    let told = "";
    try {
      const asked = {
        model,
        messages: conversation.messages(turn, element("system").value.trim()),
        ...(Number.isNaN(temperature) ? {} : { temperature }),
        ...(Number.isNaN(longest) ? {} : { max_tokens: longest }),
      };
      for await (const part of complete(this._server, asked, running.signal)) answer.take(part);
      told = answer.end({});
    } catch (error) {
      if (running.signal.aborted) told = answer.end({ stopped: true });
      else told = answer.end({ problem: explained(error), again: () => this._again(turn, answer) });
    }
    turn.answer = answer.text;
    if (this._conversation === conversation) element("told").textContent = told;
    // A new conversation may have begun, and have an answer of its own under way.
    if (this._running !== running) return;
    this._running = null;
    this._ended = performance.now();
    this._send.textContent = "Send";
  }

  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {Answer} failed
   */
  _again(turn, failed) {
    if (this._running) return;
    turn.answer = "";
    this._message.focus();
    this._answer(turn, failed);
  }

  /** @param {() => void} change */
  _follow(change) {
    const place = this._place;
    const near = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR;
    change();
    if (near) place.scrollTop = place.scrollHeight;
  }

  /** Has the message's field as high as what is in it; the style sheet bounds it. */
  _fit() {
    this._message.style.height = "auto";
    this._message.style.height = `${this._message.scrollHeight + 2}px`;
  }
}

/**
 * Has what unfolds over the page fold again with Escape, and with a click beside it.
 * @param {HTMLDetailsElement} details
 */
function closing(details) {
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    details.open = false;
    details.querySelector("summary")?.focus();
  });
  document.addEventListener("click", (event) => {
    if (event.target instanceof Node && !details.contains(event.target)) details.open = false;
  });
}

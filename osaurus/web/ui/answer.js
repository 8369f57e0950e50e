// One answer on the page, while it is written and afterwards.

import { copyButton, make } from "./elements.js";
import { Formatter } from "./formatting.js";
import { shownIn } from "./rendering.js";
import { duration, rate } from "./units.js";

/** @typedef {import("./completion.js").Part} Part */

/**
 * Shows an answer's parts as they come, with the browser's frames: however many come, each frame changes the page once.
 */
export class Answer {
  /**
   * @param {string} model
   * @param {(change: () => void) => void} follow makes a change and keeps the end in view
   */
  constructor(model, follow) {
    this.text = "";
    /** @type {string | undefined} */
    this.reason = undefined;
    /** @type {import("./completion.js").Usage | undefined} */
    this.usage = undefined;
    this._follow = follow;
    this._asked = performance.now();
    this._first = 0; // when something came, and when the text began
    this._began = 0;
    this._unseen = { text: "", thought: "" };
    this._frame = 0;
    this._body = make("div", { className: "text" });
    this._formatter = new Formatter(shownIn(this._body));
    /** @type {HTMLDetailsElement | null} */
    this._thoughts = null;
    this._thought = document.createTextNode("");
    this._summary = make("summary", { textContent: "Thinking …" });
    this._after = make("footer", {}, make("span", { className: "waiting", textContent: "…" }));
    this.element = make("article", { className: "answer" }, make("h3", { textContent: model }), this._body, this._after);
  }

  /** @param {Part} part */
  take({ thought = "", text = "", reason, usage }) {
    this.reason = reason ?? this.reason;
    this.usage = usage ?? this.usage;
    if (!thought && !text) return;
    this._first ||= performance.now();
    if (text) this._began ||= performance.now();
    this.text += text;
    this._unseen.thought += thought;
    this._unseen.text += text;
    this._frame ||= requestAnimationFrame(() => this._follow(() => this._show()));
  }

  /**
   * The answer is complete, was stopped, or failed. Returns what there is to say of it.
   * @param {{stopped?: boolean, problem?: string, again?: () => void}} end
   */
  end({ stopped = false, problem = "", again }) {
    const ended = performance.now();
    const facts = this._facts(ended, stopped);
    this._follow(() => {
      this._show();
      this._formatter.end();
      if (this._thoughts && !this._began) this._thoughtFor(ended);
      this._after.replaceChildren();
      if (this.text) this._after.append(copyButton("Copy", () => this.text));
      if (facts) this._after.append(make("span", { className: "facts", textContent: facts }));
      if (problem) this._fail(problem, again);
    });
    return problem || `${stopped ? "The answer was stopped" : "The answer is complete"}. ${facts}`;
  }

  _show() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    const { text, thought } = this._unseen;
    this._unseen = { text: "", thought: "" };
    if (thought) {
      if (!this._thoughts) {
        this._thoughts = make("details", { className: "thoughts" }, this._summary, make("div", {}, this._thought));
        this._body.before(this._thoughts);
      }
      this._thought.appendData(thought);
    }
    if (text) {
      if (this._thoughts && this._began) this._thoughtFor(this._began);
      this._formatter.feed(text);
    }
  }

  /** @param {number} until */
  _thoughtFor(until) {
    this._summary.textContent = `Thought for ${duration((until - this._first) / 1000)}`;
  }

  /**
   * @param {number} ended
   * @param {boolean} stopped
   */
  _facts(ended, stopped) {
    const facts = [];
    if (stopped) facts.push("stopped");
    if (this.reason === "length") facts.push("cut off at the most tokens");
    if (this.usage) {
      const { prompt_tokens, completion_tokens, prompt_tokens_details } = this.usage;
      const seconds = (ended - this._first) / 1000;
      facts.push(`${completion_tokens} ${completion_tokens === 1 ? "token" : "tokens"}`);
      if (completion_tokens > 1 && seconds > 0) facts.push(`${rate((completion_tokens - 1) / seconds)} a second`);
      const cached = prompt_tokens_details?.cached_tokens;
      facts.push(`prompt of ${prompt_tokens}${cached ? `, ${cached} read before` : ""}`);
    }
    if (this._first) facts.push(`first after ${duration((this._first - this._asked) / 1000)}`);
    return facts.join(" · ");
  }

  /**
   * @param {string} problem
   * @param {(() => void) | undefined} again
   */
  _fail(problem, again) {
    const told = make("div", { className: "failure" }, make("p", { className: "problem", textContent: problem }));
    if (again) {
      const button = make("button", { type: "button", className: "quiet", textContent: "Try again" });
      button.addEventListener("click", again);
      told.append(button);
    }
    this.element.append(told);
  }
}

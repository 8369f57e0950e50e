// The text of an answer as elements. What a model writes is from a stranger: it becomes text, never markup.

import { copyButton, make } from "./elements.js";
import { spans } from "./formatting.js";

/**
 * Returns where a Formatter sends its blocks to have them shown at the end of an element.
 * @param {HTMLElement} container
 * @returns {import("./formatting.js").Sink}
 */
export function shownIn(container) {
  /** @type {HTMLElement | null} */
  let paragraph = null;
  /** @type {Text | null} */
  let code = null;
  return {
    paragraph(text) {
      if (!paragraph) {
        paragraph = make("p");
        container.append(paragraph);
      }
      paragraph.replaceChildren(...spans(text.trimEnd()).map(span));
    },
    code(language) {
      const text = document.createTextNode("");
      code = text;
      const name = language || "code";
      const head = make("div", { className: "code-head" }, make("span", { textContent: name }),
        copyButton("Copy code", () => text.data));
      const block = make("pre", { tabIndex: 0 }, make("code", {}, text));
      block.setAttribute("aria-label", `Block of ${language || "code"}`);
      container.append(make("div", { className: "code" }, head, block));
    },
    add(text) {
      code?.appendData(text);
    },
    end() {
      paragraph = null;
      code = null;
    },
  };
}

/** @param {{kind: string, text: string}} span */
function span({ kind, text }) {
  return kind === "text" ? text : make(kind === "code" ? "code" : "strong", { textContent: text });
}

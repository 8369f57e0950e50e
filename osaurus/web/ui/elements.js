// Elements of the page: those that index.html has, and new ones. Text only ever becomes text.

/**
 * The element that index.html has under an id.
 * @param {string} id
 * @returns {any} of whatever kind it has there
 */
export function element(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/**
 * A new element.
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, any>} properties as the DOM has them, such as `className`
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/**
 * A button that copies a text, and says so.
 * @param {string} label
 * @param {() => string} text
 */
export function copyButton(label, text) {
  const button = make("button", { type: "button", className: "copy quiet", textContent: label });
  let timer = 0;
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not copied";
    clearTimeout(timer);
    timer = setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

/**
 * Copies a text; returns whether that was possible.
 * @param {string} text
 */
async function copied(text) {
  // Browsers have the clipboard for pages from this machine and over TLS only; for others there is the old way.
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const area = make("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}

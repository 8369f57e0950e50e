// The little of Markdown that answers are shown with: paragraphs, fenced blocks of code, and in a line `code` and
// **strong**. Answers come bit by bit and may be long: what is complete is never looked at again, code is only added
// to, and of the text no more than the last paragraph is told anew.

/**
 * @typedef {object} Sink where the blocks go
 * @property {(text: string) => void} paragraph the text of the paragraph that is last, which goes on until `end`
 * @property {(language: string) => void} code a block of code begins, and goes on until `end`
 * @property {(text: string) => void} add more of its text
 * @property {() => void} end the block is complete
 */

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
// The beginning of a line that may turn out to be a fence.
const PERHAPS_FENCE = /^ {0,3}(`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*)?$/;

/** Takes text bit by bit and tells its blocks. */
export class Formatter {
  /** @param {Sink} sink */
  constructor(sink) {
    this._sink = sink;
    this._line = ""; // what is here of the line that is not complete
    this._paragraph = "";
    this._fence = ""; // what began the block of code; none in text
    this._told = 0; // of that line, as code
  }

  /** @param {string} text */
  feed(text) {
    const lines = (this._line + text).split("\n");
    this._line = lines.pop() ?? "";
    for (const line of lines) this._complete(line);
    this._partial(this._line);
  }

  /** The text is complete. */
  end() {
    if (this._line) this._complete(this._line);
    if (this._fence || this._paragraph) this._sink.end();
    this._line = this._paragraph = this._fence = "";
  }

  /** @param {string} line */
  _complete(line) {
    if (this._fence) {
      if (this._closes(line)) {
        this._fence = "";
        this._sink.end();
      } else {
        this._code(`${line}\n`);
      }
      this._told = 0;
      return;
    }
    const fence = FENCE.exec(line);
    if (fence || !line.trim()) {
      if (this._paragraph) this._sink.end();
      this._paragraph = "";
    } else {
      this._paragraph += `${line}\n`;
      this._sink.paragraph(this._paragraph);
    }
    if (fence) {
      this._fence = fence[1];
      this._sink.code(fence[2]);
    }
  }

  /** @param {string} line */
  _partial(line) {
    if (this._fence) {
      const may = this._fence[0] === "`" ? /^ {0,3}`*[ \t]*$/ : /^ {0,3}~*[ \t]*$/;
      if (!may.test(line)) this._code(line);
    } else if (line.trim() && !PERHAPS_FENCE.test(line)) {
      this._sink.paragraph(this._paragraph + line);
    }
  }

  /** @param {string} line */
  _code(line) {
    if (line.length > this._told) this._sink.add(line.slice(this._told));
    this._told = line.length;
  }

  /** @param {string} line */
  _closes(line) {
    const mark = line.trim();
    return /^ {0,3}\S/.test(line) && mark.length >= this._fence.length && mark === this._fence[0].repeat(mark.length);
  }
}

/**
 * Takes the text of a paragraph apart.
 * @param {string} text
 * @returns {{kind: "text" | "code" | "strong", text: string}[]}
 */
export function spans(text) {
  /** @type {{kind: "text" | "code" | "strong", text: string}[]} */
  const found = [];
  const marks = /(?<!`)(`+)(?!`)(.*?[^`])\1(?!`)|\*\*(?=\S)([^*\n]*\S)\*\*/g;
  let end = 0;
  for (const match of text.matchAll(marks)) {
    if (match.index > end) found.push({ kind: "text", text: text.slice(end, match.index) });
    if (match[1]) found.push({ kind: "code", text: match[2] });
    else found.push({ kind: "strong", text: match[3] });
    end = match.index + match[0].length;
  }
  if (end < text.length) found.push({ kind: "text", text: text.slice(end) });
  return found;
}

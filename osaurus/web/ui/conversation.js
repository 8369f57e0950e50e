// What was said, as the model is told of it.

/** @typedef {{question: string, answer: string}} Turn */

/** Questions and answers, in their order. */
export class Conversation {
  constructor() {
    /** @type {Turn[]} */
    this._turns = [];
  }

  /**
   * Adds a question, whose answer is still to come.
   * @param {string} question
   * @returns {Turn}
   */
  ask(question) {
    const turn = { question, answer: "" };
    this._turns.push(turn);
    return turn;
  }

  /**
   * The messages that a turn's answer continues. What never got an answer is left out: many models take questions and
   * answers in turns only.
   * @param {Turn} turn
   * @param {string} system what the model is told before all
   * @returns {import("./completion.js").Message[]}
   */
  messages(turn, system) {
    const before = this._turns.slice(0, this._turns.indexOf(turn)).filter(({ answer }) => answer);
    return [
      ...(system ? [{ role: "system", content: system }] : []),
      ...before.flatMap(({ question, answer }) => [
        { role: "user", content: question },
        { role: "assistant", content: answer },
      ]),
      { role: "user", content: turn.question },
    ];
  }
}

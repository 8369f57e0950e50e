// One answer of a model, as it comes.

import { errorIn, Refusal } from "./server.js";
import { events } from "./streams.js";

/**
 * @typedef {{role: string, content: string}} Message
 * @typedef {{prompt_tokens: number, completion_tokens: number, prompt_tokens_details?: {cached_tokens: number}}} Usage
 * @typedef {{thought?: string, text?: string, reason?: string, usage?: Usage}} Part
 */

/** An answer that broke off. */
export class BrokenOff extends Error {}

/**
 * Yields the parts of an answer: thoughts, text, why it ended, what it used. Throws what Server.ask does, and BrokenOff.
 * @param {import("./server.js").Server} server
 * @param {{model: string, messages: Message[], temperature?: number, max_tokens?: number}} asked
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Part>}
 */
export async function* complete(server, asked, signal) {
  const body = { ...asked, stream: true, stream_options: { include_usage: true } };
  const response = await server.ask("chat/completions", { body, signal });
  let complete = false;
  try {
    for await (const data of events(/** @type {ReadableStream<Uint8Array>} */ (response.body))) {
      if (data === "[DONE]") {
        complete = true;
        break;
      }
      const chunk = JSON.parse(data);
      const problem = errorIn(chunk);
      if (problem !== undefined) throw new Refusal(response.status, problem);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { reason: choice.finish_reason };
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (error instanceof Refusal || signal.aborted) throw error;
    throw new BrokenOff("The answer broke off: the connection to the server was lost.");
  }
  if (!complete) throw new BrokenOff("The answer broke off: the connection to the server was lost.");
}

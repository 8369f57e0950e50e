// The ollama package for JavaScript in front of the server at OSU_TEST_URL.

import assert from "node:assert/strict";
import test from "node:test";

import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.OSU_TEST_URL });
const model = "smollm2:135m";
const messages = [{ role: "user", content: "Tell me the capital of France." }];
const answer = "The capital of France is Paris.";
const story = [{ role: "user", content: "Write a very long story." }];

test("an answer has its text, its reason to end and its counts", async () => {
  const response = await client.chat({ model, messages, options: { temperature: 0 } });
  assert.equal(response.message.content, answer);
  assert.equal(response.done_reason, "stop");
  assert.deepEqual([response.prompt_eval_count, response.eval_count], [37, 8]);
  assert.ok(response.total_duration >= response.eval_duration && response.eval_duration > 0);
});

test("a stream holds the same answer, and its counts at the end", async () => {
  const parts = [];
  for await (const part of await client.chat({ model, messages, options: { temperature: 0 }, stream: true })) {
    parts.push(part);
  }
  assert.equal(parts.map((part) => part.message.content).join(""), answer);
  assert.deepEqual(parts.map((part) => part.done), parts.map((_, index) => index === parts.length - 1));
  assert.ok(parts.length > 2);
  assert.deepEqual([parts.at(-1).prompt_eval_count, parts.at(-1).eval_count], [37, 8]);
});

test("models are listed with their details", async () => {
  const { models } = await client.list();
  assert.deepEqual(models.map((entry) => [entry.model, entry.details.family]), [["smollm2-135m-instruct:latest", "llama"]]);
});

for (const stream of [false, true]) {
  const how = stream ? "streamed" : "whole";
  test(`a model that does not exist is the SDKs own error, ${how}`, async () => {
    await assert.rejects(client.chat({ model: "nope", messages, stream }), {
      name: "ResponseError",
      status_code: 404,
      message: "Model not found: nope",
    });
  });
}

test("stop ends the answer before the word", async () => {
  const response = await client.chat({ model, messages, options: { temperature: 0, stop: [" Paris"] } });
  assert.equal(response.message.content, "The capital of France is");
  assert.equal(response.done_reason, "stop");
});

test("the same seed gives the same answer", async () => {
  const options = { temperature: 1.5, top_p: 1, seed: 7, num_predict: 6 };
  const ask = () => client.chat({ model, messages: story, options });
  const [first, second] = [await ask(), await ask()];
  assert.equal(first.message.content, second.message.content);
  assert.equal(first.done_reason, "length");
});

test("a conversation is read from its beginning", async () => {
  const conversation = [
    ...messages,
    { role: "assistant", content: answer },
    { role: "user", content: "And of Italy?" },
  ];
  const response = await client.chat({ model, messages: conversation, options: { temperature: 0 } });
  assert.equal(response.message.content, "The capital of Italy is Rome.");
});

test("a stream that is aborted in the middle does not disturb the next request", async () => {
  const stream = await client.chat({ model, messages: story, options: { num_predict: 4000 }, stream: true });
  await assert.rejects(
    async () => {
      for await (const part of stream) {
        if (part.message.content) stream.abort();
      }
    },
    { name: "AbortError" },
  );
  const response = await client.chat({ model, messages, options: { temperature: 0 } });
  assert.equal(response.message.content, answer);
});

for (const stream of [false, true]) {
  const how = stream ? "streamed" : "whole";
  test(`a tool is called, ${how}`, async () => {
    const tool = {
      type: "function",
      function: {
        name: "get_weather",
        description: "Get current temperature for a given location.",
        parameters: { type: "object", properties: { location: { type: "string" } }, required: ["location"] },
      },
    };
    // A model of this size calls where it sees that it did so before.
    const conversation = [
      { role: "user", content: "What is the weather like in Rome today?" },
      {
        role: "assistant",
        content: "",
        tool_calls: [{ function: { name: "get_weather", arguments: { location: "Rome" } } }],
      },
      { role: "tool", tool_name: "get_weather", content: "23 degrees, sunny" },
      { role: "assistant", content: "It is 23 degrees and sunny in Rome." },
      { role: "user", content: "What is the weather like in Paris today?" },
    ];
    const options = { temperature: 0, num_predict: 60 };
    const response = await client.chat({ model, messages: conversation, tools: [tool], options, stream });
    const parts = [];
    if (stream) for await (const part of response) parts.push(part);
    else parts.push(response);
    const calls = parts.flatMap((part) => part.message.tool_calls ?? []);
    assert.deepEqual(calls.map((call) => call.function.name), ["get_weather"]);
    assert.match(calls[0].function.arguments.location, /Paris/);
    assert.equal(parts.map((part) => part.message.content).join(""), "");
  });
}

test("an answer keeps to a schema", async () => {
  const format = {
    type: "object",
    properties: { capital: { type: "string", maxLength: 20 } },
    required: ["capital"],
  };
  const response = await client.chat({ model, messages, format, options: { temperature: 2, num_predict: 40 } });
  assert.deepEqual(Object.keys(JSON.parse(response.message.content)), ["capital"]);
  assert.equal(response.done_reason, "stop");
});

// The openai package for JavaScript in front of the server at OSU_TEST_URL.

import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.OSU_TEST_URL}/v1`, apiKey: "none", maxRetries: 0 });
const model = "smollm2:135m";
const messages = [{ role: "user", content: "Tell me the capital of France." }];
const answer = "The capital of France is Paris.";
const weather = [{ role: "user", content: "What is the weather like in Paris today?" }];
const getWeather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get current temperature for a given location.",
    parameters: {
      type: "object",
      properties: { location: { type: "string", description: "City and country e.g. Bogotá, Colombia" } },
      required: ["location"],
      additionalProperties: false,
    },
    strict: true,
  },
};
const story = [{ role: "user", content: "Write a very long story." }];

test("an answer has its text, its reason to end and its usage", async () => {
  const completion = await client.chat.completions.create({ model, messages, temperature: 0 });
  assert.equal(completion.choices[0].message.content, answer);
  assert.equal(completion.choices[0].finish_reason, "stop");
  assert.deepEqual([completion.usage.prompt_tokens, completion.usage.completion_tokens], [37, 8]);
});

test("a stream holds the same answer, and its usage at the end", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const texts = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? ""));
  assert.equal(texts.join(""), answer);
  assert.ok(texts.filter((text) => text).length > 1);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.total_tokens, 45);
});

test("the streaming helper gathers the answer", async () => {
  const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
  const completion = await runner.finalChatCompletion();
  assert.equal(completion.choices[0].message.content, answer);
  assert.equal(completion.choices[0].finish_reason, "stop");
});

test("models are listed", async () => {
  const ids = [];
  for await (const { id } of client.models.list()) ids.push(id);
  assert.deepEqual(ids, ["smollm2-135m-instruct"]);
});

for (const stream of [false, true]) {
  const how = stream ? "streamed" : "whole";
  test(`a model that does not exist is the SDKs own error, ${how}`, async () => {
    await assert.rejects(client.chat.completions.create({ model: "nope", messages, stream }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      assert.match(error.message, /Model not found: nope/);
      return true;
    });
  });
}

test("a field out of range is the SDKs own error and names the field", async () => {
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
});

test("stop ends the answer before the word", async () => {
  const completion = await client.chat.completions.create({ model, messages, temperature: 0, stop: [" Paris"] });
  assert.equal(completion.choices[0].message.content, "The capital of France is");
  assert.equal(completion.choices[0].finish_reason, "stop");
});

test("the same seed gives the same answer", async () => {
  const ask = () =>
    client.chat.completions.create({ model, messages: story, temperature: 1.5, top_p: 1, seed: 7, max_tokens: 6 });
  const [first, second] = [await ask(), await ask()];
  assert.equal(first.choices[0].message.content, second.choices[0].message.content);
  assert.equal(first.choices[0].finish_reason, "length");
});

test("a conversation is read from its beginning", async () => {
  const conversation = [
    ...messages,
    { role: "assistant", content: answer },
    { role: "user", content: "And of Italy?" },
  ];
  const completion = await client.chat.completions.create({ model, messages: conversation, temperature: 0 });
  assert.equal(completion.choices[0].message.content, "The capital of Italy is Rome.");
});

test("a stream that is aborted in the middle does not disturb the next request", async () => {
  const stream = await client.chat.completions.create({ model, messages: story, max_tokens: 4000, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  assert.ok(stream.controller.signal.aborted);
  const completion = await client.chat.completions.create({ model, messages, temperature: 0 });
  assert.equal(completion.choices[0].message.content, answer);
});

test("a call that must be made is made, and its result read", async () => {
  const said = [...weather];
  const ask = { model, tools: [getWeather], temperature: 0, max_tokens: 60 };
  const { choices } = await client.chat.completions.create({ ...ask, messages: said, tool_choice: "required" });
  const [call] = choices[0].message.tool_calls;
  assert.equal(choices[0].finish_reason, "tool_calls");
  assert.equal(choices[0].message.content, null);
  assert.equal(call.function.name, "get_weather");
  assert.match(JSON.parse(call.function.arguments).location, /Paris/);
  const told = "The temperature in Paris is 31 degrees Celsius today.";
  said.push(choices[0].message, { role: "tool", tool_call_id: call.id, content: told });
  const completion = await client.chat.completions.create({ ...ask, messages: said, tool_choice: "none" });
  assert.match(completion.choices[0].message.content, /31/);
});

test("the streaming helper gathers calls", async () => {
  const runner = client.chat.completions.stream({
    model,
    messages: weather,
    tools: [getWeather],
    tool_choice: { type: "function", function: { name: "get_weather" } },
    temperature: 0,
    max_tokens: 60,
  });
  const told = [];
  runner.on("tool_calls.function.arguments.done", (call) => told.push(call));
  const completion = await runner.finalChatCompletion();
  const [call] = completion.choices[0].message.tool_calls;
  assert.equal(completion.choices[0].finish_reason, "tool_calls");
  assert.match(JSON.parse(call.function.arguments).location, /Paris/);
  assert.deepEqual(told.map(({ name, arguments: text }) => [name, text]), [["get_weather", call.function.arguments]]);
});

test("an answer keeps to a schema", async () => {
  const schema = {
    type: "object",
    properties: { capital: { type: "string", maxLength: 20 } },
    required: ["capital"],
    additionalProperties: false,
  };
  const completion = await client.chat.completions.parse({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "capital", schema, strict: true } },
    temperature: 2,
    max_tokens: 40,
  });
  assert.equal(completion.choices[0].finish_reason, "stop");
  assert.deepEqual(Object.keys(JSON.parse(completion.choices[0].message.content)), ["capital"]);
});

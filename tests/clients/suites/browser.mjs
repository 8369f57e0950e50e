// A page of another origin, in the Chromium at CHROME, in front of the server at OSU_TEST_URL.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

const url = process.env.OSU_TEST_URL;
const model = "smollm2:135m";
const messages = [{ role: "user", content: "Tell me the capital of France." }];
const answer = "The capital of France is Paris.";
const story = [{ role: "user", content: "Write a very long story." }];

let browser, page, preflights;

// The pages' origin: this folder, and the openai package beside it.
const origin = createServer(async (request, response) => {
  const path = request.url === "/" ? "page.html" : `..${request.url}`;
  const type = path.endsWith(".html") ? "text/html" : "text/javascript";
  const body = await readFile(new URL(path, import.meta.url)).catch(() => null);
  response.writeHead(body === null ? 404 : 200, { "Content-Type": type }).end(body);
});

before(async () => {
  await new Promise((resolve) => origin.listen(0, "127.0.0.1", resolve));
  browser = await chromium.launch({
    executablePath: process.env.CHROME,
    // Playwright's own defaults leave the sandbox off, so that this works as root as well; the pages are ours. What a
    // browser would do by itself on the network is off too.
    args: ["--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync"],
  });
  page = await browser.newPage();
  preflights = [];
  const devtools = await page.context().newCDPSession(page);
  await devtools.send("Network.enable");
  devtools.on("Network.requestWillBeSent", ({ request }) => {
    if (request.method === "OPTIONS") preflights.push(request.headers["Access-Control-Request-Headers"]);
  });
  await page.goto(`http://127.0.0.1:${origin.address().port}/`);
});

after(async () => {
  await browser?.close();
  origin.close();
});

test("a page of another origin streams an answer with fetch", async () => {
  const { texts, finished } = await page.evaluate(([url, body]) => gather(url, body), [
    url,
    { model, messages, temperature: 0 },
  ]);
  assert.equal(texts.join(""), answer);
  assert.ok(texts.length > 1);
  assert.ok(finished);
});

test("the browser asks beforehand for the content type and the header of its own", () => {
  assert.deepEqual(preflights.slice(0, 1), ["content-type,x-stainless-os"]);
});

test("what docs/clients/browser.md says works in a page", async () => {
  const text = await readFile(new URL("../../../docs/clients/browser.md", import.meta.url), "utf8");
  const source = text.match(/^```javascript\n(.*?)^```$/ms)[1].replace("http://127.0.0.1:1337", url);
  const printed = [];
  const listen = (message) => printed.push(message.text());
  page.on("console", listen);
  await page.evaluate(`(async () => { ${source} })()`);
  page.off("console", listen);
  assert.equal(printed.join(""), answer);
});

test("a page of another origin reads the models", async () => {
  const ids = await page.evaluate(async (url) => {
    const response = await fetch(`${url}/v1/models`);
    return (await response.json()).data.map((entry) => entry.id);
  }, url);
  assert.deepEqual(ids, ["smollm2-135m-instruct"]);
});

test("a page of another origin reads an error and its status", async () => {
  const refused = await page.evaluate(
    ([url, body]) => gather(url, body).catch(({ status, error }) => ({ status, error })),
    [url, { model: "nope", messages }],
  );
  assert.equal(refused.status, 404);
  assert.equal(refused.error.message, "Model not found: nope");
});

test("a stream that a page aborts does not disturb the next request", async () => {
  const left = await page.evaluate(([url, body]) => leave(url, body), [
    url,
    { model, messages: story, max_tokens: 4000 },
  ]);
  assert.equal(left, "AbortError");
  const { texts } = await page.evaluate(([url, body]) => gather(url, body), [url, { model, messages, temperature: 0 }]);
  assert.equal(texts.join(""), answer);
});

test("the openai package streams an answer inside a browser", async () => {
  const text = await page.evaluate(
    async ([url, body]) => {
      const { default: OpenAI } = await import("/node_modules/openai/index.mjs");
      const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", dangerouslyAllowBrowser: true, maxRetries: 0 });
      let text = "";
      for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
        text += chunk.choices[0].delta.content ?? "";
      }
      return text;
    },
    [url, { model, messages, temperature: 0 }],
  );
  assert.equal(text, answer);
  assert.match(preflights.at(-1), /authorization.*x-stainless-lang/);
});

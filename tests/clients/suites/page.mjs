// The page at /ui, in the Chromium at CHROME. Servers: one with the starter model at OSU_TEST_URL, one with a key that
// takes one request at a time at OSU_LOCKED_URL, one without models in front of a hub at OSU_PULLING_URL, and one that is
// read only at OSU_READ_ONLY_URL.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { after, afterEach, before, test } from "node:test";

import { chromium } from "playwright-core";

const { OSU_TEST_URL: url, OSU_LOCKED_URL: locked, OSU_PULLING_URL: pulling, OSU_READ_ONLY_URL: readOnly } = process.env;
const key = "right-key";
const model = "smollm2-135m-instruct";
const question = "Tell me the capital of France.";
const answer = "The capital of France is Paris.";
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let browser;
let contexts = [];

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROME,
    // As in browser.mjs.
    args: ["--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync"],
  });
});

after(() => browser?.close());

// What a page complained of is looked at after every test: what the policy refused, what failed, what was not found.
afterEach(async () => {
  const opened = contexts;
  contexts = [];
  for (const { context, problems, expected } of opened) {
    await context.close();
    assert.deepEqual(problems.filter((problem) => !expected.some((pattern) => pattern.test(problem))), []);
  }
});

// Opens the page in a browser of its own.
async function open(at = url, { expected = [], routes = {}, path = "/ui", script = () => {}, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const problems = [];
  contexts.push({ context, problems, expected });
  await context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`The policy refused ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  await context.addInitScript(script);
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`${message.text()} ${message.location().url}`);
  });
  for (const [where, answered] of Object.entries(routes)) {
    await page.route(where, (route) => (answered instanceof Function ? answered(route) : route.fulfill(answered)));
  }
  await page.goto(at + path);
  return page;
}

// What holds whoever waits for it, until it is let go.
function gate() {
  let open;
  const passed = new Promise((resolve) => (open = resolve));
  return { passed, open };
}

// The URL of a proxy in front of the server. `take` returns the path that a request is passed on to, or answers it.
async function proxied(t, take) {
  const proxy = createServer((incoming, outgoing) => {
    const path = take(incoming, outgoing);
    if (path === undefined) return;
    const { method, headers } = incoming;
    const passed = request(url + path, { method, headers }, (response) => {
      outgoing.writeHead(response.statusCode, response.headers);
      response.pipe(outgoing);
    });
    incoming.pipe(passed);
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    proxy.close();
    proxy.closeAllConnections();
  });
  return `http://127.0.0.1:${proxy.address().port}`;
}

const json = (value, status = 200) => ({ status, contentType: "application/json", body: JSON.stringify(value) });

// An answer of the model's, as it would come.
const saying = (text, thought) => ({
  contentType: "text/event-stream",
  body: [
    { choices: [{ index: 0, delta: { role: "assistant", content: "" } }] },
    ...(thought ? [{ choices: [{ index: 0, delta: { reasoning_content: thought } }] }] : []),
    ...[...text].map((content) => ({ choices: [{ index: 0, delta: { content } }] })),
    { choices: [{ index: 0, delta: {}, finish_reason: "stop" }] },
    { choices: [], usage: { prompt_tokens: 9, completion_tokens: 7 } },
  ].map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("") + "data: [DONE]\n\n",
});

async function ready(page) {
  await page.locator("#model:enabled").waitFor();
}

// At temperature 0 the starter model is brief.
async function ask(page, text, temperature = "0") {
  await ready(page);
  await page.locator("#temperature").evaluate((field, value) => (field.value = value), temperature);
  await page.fill("#message", text);
  await page.press("#message", "Enter");
}

const complete = (page) => page.locator(".answer .copy", { hasText: /^Copy$/ }).last().waitFor();
const text = (page, selector) => page.locator(selector).innerText();
const said = (page, selector, pattern) => page.locator(selector, { hasText: pattern }).waitFor();

// What the server takes for the page to be.
async function status(at, path, body, headers = {}) {
  const response = await fetch(at + path, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
  });
  await response.text();
  return response.status;
}

const chat = (content) => ({ model, messages: [{ role: "user", content }], max_tokens: 1 });

// Looking.

test("it shows what the server is doing", async () => {
  const page = await open();
  await said(page, "#state", "Running");
  await said(page, "#installed", model);
  assert.match(await text(page, "#installed"), /135M · Q4 · 10\d MB/);
  assert.equal(await page.title(), "Osaurus");
  assert.ok(await page.locator("#notice").isHidden());
});

test("it is the same under every prefix, with a slash and without", async () => {
  for (const path of ["/ui/", "/v1/ui", "/api/ui/", "/v1/api/ui"]) {
    const page = await open(url, { path });
    await said(page, "#installed", model);
  }
});

test("behind a proxy it works below any path", async (t) => {
  const proxy = await proxied(t, (incoming, outgoing) => {
    if (incoming.url.startsWith("/llm/")) return incoming.url.slice("/llm".length);
    outgoing.writeHead(404).end();
  });
  for (const path of ["/llm/ui", "/llm/ui/"]) {
    const page = await open(proxy, { path });
    await said(page, "#installed", model);
    await ask(page, question);
    await complete(page);
  }
});

// Numbers, of a server that has written so many tokens.
const numbers = (tokens) => `osaurus_requests_total{endpoint="/chat/completions",status="200"} 3
osaurus_completion_tokens_total{model="a"} ${tokens}
osaurus_queue_depth 4
osaurus_rows{state="writing"} 2
osaurus_rows{state="waiting"} 5
osaurus_prefix_cache_bytes{tier="memory"} 4.2e8
osaurus_prefix_cache_bytes{tier="disk"} 9.1e8
osaurus_prefix_cache_hits_total 3
osaurus_prefix_cache_misses_total 1
osaurus_memory_bytes{kind="models"} 5e8
osaurus_memory_bytes{kind="limit"} 2e9
`;

test("numbers are shown as the server tells them", async () => {
  let tokens = 0;
  const page = await open(url, {
    routes: { "**/metrics": (route) => route.fulfill({ contentType: "text/plain", body: numbers((tokens += 1000)) }) },
  });
  await page.locator("#tokens-plot .line[d^=M]").waitFor({ state: "attached" });
  assert.ok(Number.parseInt(await text(page, "#tokens-plot strong"), 10) > 0);
  assert.match(await page.locator("#tokens-plot svg").getAttribute("aria-label"), /^tokens a second .*: now \d+, at most/);
  assert.deepEqual(
    await Promise.all(["rows-writing", "rows-waiting", "rows-parked", "queue"].map((id) => text(page, `#${id}`))),
    ["2", "5", "0", "4"],
  );
  assert.deepEqual(
    await Promise.all(["cache-rate", "cache-memory", "cache-disk"].map((id) => text(page, `#${id}`))),
    ["75 %", "420 MB", "910 MB"],
  );
  assert.match(await text(page, "#memory-bar .sum"), /^500 MB of 2.0 GB, 25 %$/);
});

test("the server's own numbers are shown", async () => {
  const page = await open();
  await ask(page, question);
  await complete(page);
  await said(page, "#tokens-plot .peak", /^at most (?!0$)/);
  await said(page, "#requests-plot .peak", /^at most (?!0$)/);
  await said(page, "#memory-bar .legend", /Models 96\.6 MB/);
  assert.match(await text(page, "#memory-bar .sum"), /^[\d.]+ MB of [\d.]+ GB, \d+ %$/);
  assert.match(await text(page, "#cache-rate"), /^\d+ %$/);
  assert.match(await text(page, "#cache-memory"), /MB$/);
});

test("without numbers it shows the rest, and asks no more for them", async () => {
  let asked = 0;
  const page = await open(url, {
    expected: [/404/],
    routes: { "**/metrics": (route) => route.fulfill(json({ error: { message: "no" } }, 404), (asked += 1)) },
  });
  await said(page, "#installed", model);
  for (let looks = 0; looks < 2; looks += 1) await page.waitForResponse("**/ps");
  assert.equal(asked, 1);
  assert.ok(await page.locator("#throughput").isHidden());
});

test("numbers that fail to come once are asked for again, and what was shown stays", async () => {
  let asked = 0;
  const answers = () => ((asked += 1) === 2 ? { status: 502, body: "Bad gateway" } : { body: numbers(1000 * asked) });
  const page = await open(url, {
    expected: [/502/],
    routes: { "**/metrics": (route) => route.fulfill({ contentType: "text/plain", ...answers() }) },
  });
  await page.waitForResponse((response) => response.url().endsWith("/metrics") && response.status() === 502);
  assert.ok(await page.locator("#throughput").isVisible());
  await page.waitForResponse("**/metrics");
  assert.ok(await page.locator("#throughput").isVisible());
});

test("while it is not told what is in memory, all else is shown, and that not asked for again", async () => {
  let asked = 0;
  const page = await open(url, { routes: { "**/ps": () => void (asked += 1) } });
  await said(page, "#state", "Running");
  await said(page, "#installed", model);
  await page.locator("#throughput").waitFor();
  for (let looks = 0; looks < 2; looks += 1) await page.waitForResponse("**/metrics");
  assert.equal(asked, 1);
});

test("models are looked for anew once the server is back, though it never answered", async () => {
  let away = false;
  let asked = 0;
  const page = await open(url, {
    expected: [/ERR_FAILED/],
    routes: {
      "**/health": (route) => (away ? route.abort() : route.continue()),
      "**/tags": (route) => ((asked += 1) > 1 ? route.continue() : undefined),
    },
  });
  await ready(page);
  away = true;
  await said(page, "#state", "Not reachable");
  assert.equal(asked, 1);
  away = false;
  await said(page, "#installed", model);
});

test("a server that is away is said to be, and found again", async () => {
  const page = await open(url, { expected: [/ERR_INTERNET_DISCONNECTED/] });
  await said(page, "#state", "Running");
  await said(page, "#tokens-plot strong", /\d/);
  await page.context().setOffline(true);
  await said(page, "#notice", /does not answer/);
  await said(page, "#state", "Not reachable");
  // Its numbers are those that it had, and what goes on now is not known.
  assert.equal(await text(page, "#tokens-plot strong"), "–");
  assert.ok(await page.locator("#server.past").isVisible());
  // What is told does not change with the seconds.
  assert.equal(await text(page, "#notice-text"), "The server does not answer.");
  assert.match(await text(page, "#notice-wait[aria-hidden=true]"), /^The page looks again in \d+ s\.$/);
  await ask(page, question);
  await said(page, ".failure", "The server does not answer.");
  await page.context().setOffline(false);
  await said(page, "#state", "Running");
  assert.ok(await page.locator("#notice").isHidden());
  await page.click(".failure button");
  await complete(page);
});

test("an engine that cannot answer is said to, with the reason", async () => {
  const page = await open(url, {
    expected: [/503/],
    routes: { "**/health": json({ status: "error", reason: "the engine <b>died</b>", timestamp: "2024-03-15T10:30:45Z" }, 503) },
  });
  await said(page, "#notice", "The server is there, but cannot answer: the engine <b>died</b>");
  assert.equal(await text(page, "#state"), "Cannot answer");
});

test("a model in memory is shown, and unloaded", async () => {
  const page = await open();
  await ask(page, question);
  await complete(page);
  await said(page, "#resident", /context 8,192 · leaves in [45] min/);
  await page.getByRole("button", { name: `Unload ${model}` }).click();
  await page.locator("#resident-none").waitFor();
  const running = await (await fetch(`${url}/api/ps`)).json();
  assert.deepEqual(running.models, []);
});

// Chatting.

test("an answer streams, with what it took", async () => {
  const page = await open();
  let growing = 0;
  await page.exposeFunction("grew", () => (growing += 1));
  await page.evaluate(() => {
    new MutationObserver(() => window.grew()).observe(document.querySelector("#conversation"), {
      subtree: true, childList: true, characterData: true,
    });
  });
  await ask(page, question);
  await complete(page);
  assert.equal(await text(page, ".answer .text"), answer);
  assert.match(await text(page, ".answer footer"), /8 tokens · [\d.]+ a second · prompt of 37/);
  assert.ok(growing > 2);
  assert.match(await text(page, "#told"), /^The answer is complete\. 8 tokens/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
});

test("a conversation goes on, with a system prompt, and begins anew", async () => {
  const bodies = [];
  const page = await open(url, {
    routes: {
      "**/chat/completions": (route) => {
        bodies.push(route.request().postDataJSON());
        return route.fulfill(saying(`answer ${bodies.length}`));
      },
    },
  });
  await page.click("#options summary");
  await page.fill("#system", "Be brief.");
  await page.click("#conversation", { position: { x: 20, y: 20 } });
  assert.ok(await page.locator("#system").isHidden());
  await ask(page, "one", "");
  await complete(page);
  await page.click("#options summary");
  await page.fill("#longest", "0");
  await page.press("#longest", "Escape");
  await page.fill("#message", "refused");
  await page.press("#message", "Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "longest");
  await page.fill("#longest", "12");
  await page.fill("#temperature", "1.5");
  await page.press("#temperature", "Escape");
  assert.ok(await page.locator("#temperature").isHidden());
  await page.fill("#message", "two");
  await page.press("#message", "Shift+Enter");
  await page.keyboard.type("lines");
  await page.press("#message", "Enter");
  await said(page, ".answer .text", "answer 2");
  assert.deepEqual(bodies[1].messages, [
    { role: "system", content: "Be brief." },
    { role: "user", content: "one" },
    { role: "assistant", content: "answer 1" },
    { role: "user", content: "two\nlines" },
  ]);
  assert.deepEqual(bodies.map((body) => [body.temperature, body.max_tokens]), [[undefined, undefined], [1.5, 12]]);
  await complete(page);
  await page.click("#new");
  assert.equal(await page.locator(".answer").count(), 0);
  assert.ok(await page.locator("#welcome").isVisible());
  await ask(page, "three");
  await said(page, ".answer .text", "answer 3");
  assert.equal(bodies[2].messages.length, 2);
});

test("thoughts are folded", async () => {
  const page = await open(url, { routes: { "**/chat/completions": saying("Paris.", "Which country?") } });
  await ask(page, question);
  await complete(page);
  assert.match(await text(page, ".thoughts summary"), /^Thought for /);
  assert.ok(!(await page.getByText("Which country?").isVisible()));
  await page.click(".thoughts summary");
  assert.ok(await page.getByText("Which country?").isVisible());
  assert.equal(await text(page, ".answer .text"), "Paris.");
});

test("answers and blocks of code are copied", async () => {
  const spoken = "Use `cat`:\n\n```sh\ncat a\n```\n";
  const page = await open(url, {
    permissions: ["clipboard-read", "clipboard-write"],
    routes: { "**/chat/completions": saying(spoken) },
  });
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await ask(page, question);
  await complete(page);
  await page.getByRole("button", { name: "Copy code" }).click();
  await page.getByRole("button", { name: "Copied" }).waitFor();
  assert.equal(await clipboard(), "cat a\n");
  await page.getByRole("button", { name: "Copy", exact: true }).click();
  await said(page, ".answer footer", "Copied");
  assert.equal(await clipboard(), spoken);
});

test("what is no page of this machine's copies too", async () => {
  const page = await open(url, { routes: { "**/chat/completions": saying("Paris.") } });
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await ask(page, question);
  await complete(page);
  await page.getByRole("button", { name: "Copy", exact: true }).click();
  await said(page, ".answer footer", "Copied");
});

test("an error that comes in the middle is told where the answer is, and so is one that is cut", async () => {
  const half = saying("Par").body.split("data: ").slice(0, 5).join("data: ");
  const ends = [`${half}data: {"error":{"message":"The engine died"}}\n\ndata: [DONE]\n\n`, half];
  const page = await open(url, {
    routes: {
      "**/chat/completions": (route) => route.fulfill({ contentType: "text/event-stream", body: ends.shift() }),
    },
  });
  await ask(page, question);
  await said(page, ".failure", "The engine died.");
  assert.equal(await text(page, ".answer .text"), "Par");
  await page.click(".failure button");
  await said(page, ".failure", "The answer broke off");
});

test("an older question is answered again where it was asked", async () => {
  const bodies = [];
  const page = await open(url, {
    expected: [/500/],
    routes: {
      "**/chat/completions": (route) => {
        bodies.push(route.request().postDataJSON());
        return route.fulfill(bodies.length === 1 ? json({ error: { message: "broken" } }, 500) : saying(`answer ${bodies.length}`));
      },
    },
  });
  await ask(page, "one");
  await said(page, ".failure", "broken");
  await ask(page, "two");
  await said(page, ".answer .text", "answer 2");
  await complete(page);
  await page.click(".failure button");
  await said(page, ".answer .text", "answer 3");
  assert.deepEqual(await page.locator(".question p, .answer .text").allInnerTexts(), ["one", "answer 3", "two", "answer 2"]);
  await said(page, "#send", "Send");
  await ask(page, "three");
  await said(page, ".answer .text", "answer 4");
  assert.deepEqual(bodies[3].messages.map(({ content }) => content), ["one", "answer 3", "two", "answer 2", "three"]);
});

test("a double click on Send sends, and no more", async () => {
  const held = gate();
  const page = await open(url, {
    routes: { "**/chat/completions": (route) => held.passed.then(() => route.fulfill(saying("late"))) },
  });
  await ready(page);
  await page.fill("#message", question);
  await page.dblclick("#send");
  await said(page, "#send", "Stop");
  held.open();
  await complete(page);
  assert.equal(await text(page, ".answer .text"), "late");
});

test("a click that comes to Stop as the answer ends sends nothing", async () => {
  const page = await open(url, { routes: { "**/chat/completions": saying("done") } });
  await ready(page);
  await page.evaluate(() => {
    const button = document.querySelector("#send");
    new MutationObserver(() => {
      if (button.textContent !== "Send") return;
      document.querySelector("#message").value = "not yet";
      button.click();
    }).observe(button, { childList: true });
  });
  await ask(page, question);
  await complete(page);
  await page.waitForFunction(() => document.querySelector("#message").value === "not yet");
  assert.equal(await page.locator(".question").count(), 1);
});

test("an Enter that ends what is being composed sends nothing", async () => {
  const page = await open(url, { routes: { "**/chat/completions": saying("done") } });
  await ready(page);
  await page.fill("#message", "か");
  for (const init of [{ isComposing: true }, { keyCode: 229 }]) {
    await page.locator("#message").evaluate((field, more) => field.dispatchEvent(
      new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...more })), init);
  }
  assert.equal(await page.locator(".question").count(), 0);
  await page.press("#message", "Enter");
  await complete(page);
});

test("before the models are known it says why it does not send", async () => {
  const held = gate();
  const page = await open(url, {
    routes: {
      "**/models": (route) => held.passed.then(() => route.continue()),
      "**/chat/completions": saying("done"),
    },
  });
  await page.fill("#message", question);
  await page.press("#message", "Enter");
  await said(page, "#unsent", "Which models there are is not known yet");
  held.open();
  await ready(page);
  assert.equal(await text(page, "#unsent"), "");
  await page.press("#message", "Enter");
  await complete(page);
});

test("what the server refuses is told with its reason", async () => {
  const page = await open(url, { expected: [/400/] });
  await ask(page, "word ".repeat(9000));
  await said(page, ".failure", /8192/);
});

test("an answer that is stopped frees its place on the server", async () => {
  const page = await open(locked, { expected: [/401/] });
  await page.fill("#key-value", key);
  await page.keyboard.press("Enter");
  await ask(page, "Write a very long story.");
  await page.locator(".answer .text p").first().waitFor();
  await said(page, "#rows-writing", "1");
  const headers = { Authorization: `Bearer ${key}` };
  assert.equal(await status(locked, "/v1/chat/completions", chat("x"), headers), 429);
  await page.getByRole("button", { name: "Stop" }).click();
  await said(page, ".answer footer", "stopped");
  assert.equal(await text(page, "#send"), "Send");
  // The server learns of it by the connection's end.
  const deadline = Date.now() + 5000;
  while ((await status(locked, "/v1/chat/completions", chat("x"), headers)) === 429) assert.ok(Date.now() < deadline);
  await said(page, "#rows-writing", "0");
});

test("a busy server's answer says when to ask again, and asking again works", async () => {
  const page = await open(locked, { expected: [/401/, /429/] });
  await page.fill("#key-value", key);
  await page.keyboard.press("Enter");
  await ready(page);
  const leaving = new AbortController();
  const headers = { Authorization: `Bearer ${key}` };
  const body = JSON.stringify({ ...chat("Write a very long story."), max_tokens: 4000, stream: true });
  const held = await fetch(`${locked}/v1/chat/completions`, { method: "POST", headers, body, signal: leaving.signal });
  await ask(page, question);
  await said(page, ".failure", /1 are the most at once\. Try again in \d+ s\./);
  leaving.abort();
  await held.text().catch(() => {});
  while (!(await page.locator(".answer .copy").count())) {
    await page.click(".failure button");
    await page.locator(".answer .copy, .failure").first().waitFor();
  }
  assert.equal(await page.locator(".question").count(), 1);
  assert.equal(await page.locator(".answer").count(), 1);
});

// Keys.

test("a key is asked for, tried, and kept for the tab", async () => {
  const page = await open(locked, { expected: [/401/] });
  const dialog = page.getByRole("dialog", { name: "This server asks for an API key" });
  await dialog.waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "key-value");
  await page.fill("#key-value", "wrong-key");
  await page.keyboard.press("Enter");
  await said(page, "#key-problem", "That is none of this server's keys.");
  await page.fill("#key-value", key);
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  await said(page, "#installed", model);
  assert.equal(await text(page, "#state"), "Running");
  assert.deepEqual(await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]), [1, 0, ""]);
  await page.reload();
  await said(page, "#installed", model);
  assert.ok(await dialog.isHidden());
});

test("whoever has no key at hand can give it later", async () => {
  const page = await open(locked, { expected: [/401/] });
  await page.getByRole("button", { name: "Not now" }).click();
  await said(page, "#notice", "This server asks for an API key.");
  assert.equal(await text(page, "#state"), "Key needed");
  await page.getByRole("button", { name: "Enter the key" }).click();
  await page.fill("#key-value", key);
  await page.getByRole("button", { name: "Continue" }).click();
  await said(page, "#state", "Running");
  assert.ok(await page.locator("#notice").isHidden());
});

test("a question is kept while the key is asked for", async () => {
  const page = await open(locked, { expected: [/401/] });
  await page.getByRole("button", { name: "Not now" }).click();
  await page.fill("#message", question);
  await page.press("#message", "Enter");
  await page.getByRole("dialog").waitFor();
  assert.equal(await page.inputValue("#message"), question);
});

const keyWanted = json({ error: { message: "no key", type: "authentication_error", code: "invalid_api_key" } }, 401);

test("where keys are taken away the page goes on without one", async () => {
  let keys = true;
  const answered = (route) => (keys ? route.fulfill(keyWanted) : route.continue());
  const page = await open(url, {
    expected: [/401/],
    routes: { "**/ps": answered, "**/metrics": answered, "**/models": answered, "**/tags": answered },
  });
  await page.getByRole("dialog").waitFor();
  await said(page, "#state", "Key needed");
  keys = false;
  await said(page, "#installed", model);
  assert.ok(await page.getByRole("dialog").isHidden());
  await said(page, "#state", "Running");
  assert.ok(await page.locator("#notice").isHidden());
});

test("a proxy's 401 asks for no key of the server's", async () => {
  const page = await open(url, {
    expected: [/401/],
    routes: { "**/ps": { status: 401, contentType: "text/html", body: "<h1>Log in</h1>" } },
  });
  for (let looks = 0; looks < 2; looks += 1) await page.waitForResponse("**/ps");
  await said(page, "#state", "Running");
  assert.ok(await page.getByRole("dialog").isHidden());
});

test("where the browser keeps nothing the key is kept in the page", async () => {
  const page = await open(locked, {
    expected: [/401/],
    script: () => Object.defineProperty(window, "sessionStorage", {
      get() {
        throw new DOMException("blocked", "SecurityError");
      },
    }),
  });
  await page.fill("#key-value", key);
  await page.keyboard.press("Enter");
  await said(page, "#installed", model);
});

// Pulling.

async function pull(page, name) {
  await page.fill("#pull-name", name);
  await page.press("#pull-name", "Enter");
}

test("a pull shows its progress, is cancelled, and goes on where it was", async () => {
  const page = await open(pulling);
  await said(page, "#installed-none", "No model is installed yet.");
  await pull(page, "tests/slow");
  await said(page, "#pull-status", /^pulling \w+: \d+ \w+ of 4\d\d kB, \d+ %$/);
  assert.ok(await page.locator("#pull-bar[value]").isVisible());
  await page.getByRole("button", { name: "Cancel" }).click();
  await said(page, "#pull-outcome", /^Cancelled\./);
  assert.ok(await page.locator("#pull-progress").isHidden());
  await pull(page, "tests/slow");
  await said(page, "#pull-status", /: [23]\d\d kB of 4\d\d kB, [5-9]\d %$/);
  await page.getByRole("button", { name: "Cancel" }).click();
});

test("a model that is not there is told", async () => {
  const page = await open(pulling, { expected: [/400/, /404/] });
  await pull(page, "tests/none");
  await said(page, "#pull-outcome.problem", /tests\/none/);
  await pull(page, "../../etc");
  await said(page, "#pull-outcome.problem", /names no model/);
});

test("a pulled model can be chosen", async () => {
  const page = await open(pulling);
  await said(page, "#welcome", "No model is installed yet.");
  await page.getByRole("button", { name: "Get a small model to begin with" }).click();
  assert.equal(await page.inputValue("#pull-name"), "smollm2:135m");
  await pull(page, "tests/quick");
  await said(page, "#pull-outcome", "tests/quick is installed.");
  await said(page, "#installed", "quick");
  assert.equal(await page.inputValue("#model"), "quick");
  await said(page, "#welcome", "Ask something.");
});

test("a model that comes while models are looked at is offered as well", async () => {
  const held = gate();
  let pulled = false;
  const listed = () => [{ id: "old" }, ...(pulled ? [{ id: "new" }] : [])];
  const page = await open(url, {
    routes: {
      "**/models": (route) => route.fulfill(json({ data: listed() })),
      "**/tags": (route) => held.passed.then(() => route.fulfill(json({ models: [] }))),
      "**/pull": (route) => {
        pulled = true;
        return route.fulfill({ contentType: "application/x-ndjson", body: '{"status":"success"}\n' });
      },
    },
  });
  await ready(page);
  await pull(page, "tests/new");
  await said(page, "#pull-outcome", "tests/new is installed.");
  held.open();
  await page.locator("#model option", { hasText: "new" }).waitFor({ state: "attached" });
});

test("a pull that breaks off is told as that", async () => {
  const page = await open(url, {
    routes: { "**/pull": { contentType: "application/x-ndjson", body: '{"status":"pulling manifest"}\n{"stat' } },
  });
  await pull(page, "tests/cut");
  await said(page, "#pull-outcome.problem", "The pull broke off: the connection to the server was lost.");
});

test("a server that is read only refuses to pull, and says so", async () => {
  const page = await open(readOnly, { expected: [/403/] });
  await pull(page, "smollm2:135m");
  await said(page, "#pull-outcome.problem", /read_only/);
});

// Strangers' text.

test("whatever models and people write stays text", async () => {
  const evil = '<img src="/evil.png" onerror="window.hit=1"><script>window.hit=1</script>';
  const bare = "<img src=/evil.png onerror=window.hit=1>";
  const requests = [];
  const page = await open(url, {
    routes: {
      "**/models": json({ object: "list", data: [{ id: bare }] }),
      "**/tags": json({ models: [{ name: bare, size: 1, details: { parameter_size: bare, quantization_level: bare } }] }),
      "**/ps": json({ models: [{ name: bare, size: 1, context_length: 1, expires_at: bare }] }),
      "**/chat/completions": saying(
        `${evil} **${evil}** \`${evil}\` [x](javascript:window.hit=1)\n\n\`\`\`${bare.replaceAll(" ", "")}\n${evil}\n\`\`\`\n`, evil),
      "**/pull": json({ error: { message: evil } }, 500),
    },
    expected: [/500/],
  });
  page.on("request", (each) => requests.push(each.url()));
  await page.click("#options summary");
  await page.fill("#system", evil);
  await page.click("#options summary");
  await ask(page, evil);
  await complete(page);
  await page.click(".thoughts summary");
  await pull(page, evil);
  await said(page, "#pull-outcome", evil);
  assert.equal(await text(page, ".question p"), evil);
  assert.equal(await text(page, ".thoughts div"), evil);
  assert.equal(await text(page, ".answer .text p"), `${evil} ${evil} ${evil} [x](javascript:window.hit=1)`);
  assert.equal((await text(page, ".answer pre")).trim(), evil);
  assert.equal(await text(page, "#installed .name"), bare);
  assert.equal(await text(page, "#resident .name"), bare);
  assert.equal(await page.inputValue("#model"), bare);
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await page.locator("main img:not(#welcome img), main script, main a[href^=javascript]").count(), 0);
  assert.deepEqual(requests.filter((each) => each.includes("evil")), []);
});

test("the policy keeps text from becoming markup even where the page would err", async () => {
  const page = await open(url, { expected: [/The policy refused/, /TrustedHTML/, /Content Security Policy/] });
  const outcome = await page.evaluate(() => {
    try {
      document.body.insertAdjacentHTML("beforeend", "<b>x</b>");
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(outcome, "TypeError");
});

// For everybody.

const busy = {
  "**/chat/completions": saying("Some `code` and **more**:\n\n```python\nprint('x')\n```\n", "Let me see."),
  "**/pull": json({ error: { message: "No room" } }, 500),
};

for (const colorScheme of ["light", "dark"]) {
  test(`there is nothing that axe finds wrong in ${colorScheme}`, async () => {
    const page = await open(url, { colorScheme, routes: busy, expected: [/500/, /503/] });
    const check = async (what) => {
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => [what, id, nodes.map(({ html }) => html)]), []);
    };
    await said(page, "#installed", model);
    await check("empty");
    await ask(page, question);
    await complete(page);
    await page.click(".thoughts summary");
    await page.click("#options summary");
    await pull(page, "x/y");
    await said(page, "#pull-outcome", "No room");
    await check("after an answer");
    await page.click("#options summary");
    await page.route("**/health", (route) => route.fulfill(json({ status: "error", reason: "it died" }, 503)));
    await said(page, "#notice", "it died");
    await check("with an error");
    await page.evaluate(() => document.querySelector("#key").showModal());
    await check("the key");
    await page.keyboard.press("Escape");
    await page.setViewportSize({ width: 360, height: 740 });
    await check("on a phone");
  });
}

test("on a phone nothing is wider than the screen", async () => {
  const long = "a-model-with-a-name-that-is-much-longer-than-a-phone-is-wide-and-has-no-end-4bit";
  const page = await open(url, {
    viewport: { width: 360, height: 740 },
    routes: {
      ...busy,
      "**/models": json({ data: [{ id: long }] }),
      "**/tags": json({ models: [{ name: long, size: 5e9, details: { parameter_size: "70B", quantization_level: "Q4" } }] }),
      "**/ps": json({ models: [{ name: long, size: 5e9, size_vram: 5e9, context_length: 131072, expires_at: "2999-01-01T00:00:00Z" }] }),
      "**/chat/completions": saying(`${"x".repeat(300)} \`${"y".repeat(300)}\`\n\n\`\`\`\n${"z".repeat(300)}\n\`\`\`\n`),
    },
    expected: [/500/],
  });
  const overflowing = () => page.evaluate(() =>
    [document.documentElement, ...document.querySelectorAll("#conversation, #server, .top, .bar, #composer, .card")]
      .filter((each) => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > 360)
      .map((each) => `${each.tagName} ${each.id}`));
  await ask(page, "w".repeat(300));
  await complete(page);
  assert.deepEqual(await overflowing(), []);
  await page.click("#options summary");
  assert.deepEqual(await overflowing(), []);
  await page.click("#to-server");
  await said(page, "#resident", long);
  await said(page, "#installed", long);
  await pull(page, "x/y");
  await said(page, "#pull-outcome", "No room");
  assert.ok(await page.locator("#chat").isHidden());
  assert.deepEqual(await overflowing(), []);
});

test("on a phone the way to the message leads there from the server's view, and what is told is told there", async () => {
  const page = await open(url, { viewport: { width: 360, height: 740 } });
  await page.click("#to-server");
  assert.ok(await page.locator("#told").evaluate((told) => told.getClientRects().length > 0));
  await page.locator(".skip").focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
});

test("everything is reached by the keyboard, in the order in which it is seen", async () => {
  const page = await open(url);
  await said(page, "#installed", model);
  await page.locator(".skip").focus();
  const reached = ["Skip to the message"];
  for (let steps = 0; steps < 12; steps += 1) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
  }
  const expected = ["Skip to the message", "model", "Options", "new", "conversation", "message", "send"];
  assert.deepEqual(reached.slice(0, expected.length), expected);
  assert.ok(reached.includes("pull-name"));
  assert.ok(reached.includes("pull-button"));
  await page.locator(".skip").focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
});

test("a long answer stays fast: what is complete is not touched again", async (t) => {
  // Each piece ends in the middle of a paragraph, and is sent when the one before it is seen.
  const pieces = Array.from({ length: 8 }, () => `${`${"word ".repeat(40)}\n\n`.repeat(5)}half of a `);
  const gates = pieces.map(gate);
  const send = async (outgoing) => {
    outgoing.writeHead(200, { "Content-Type": "text/event-stream" });
    for (const [index, content] of pieces.entries()) {
      outgoing.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`);
      await gates[index].passed;
    }
    outgoing.end("data: [DONE]\n\n");
  };
  const page = await open(await proxied(t, (incoming, outgoing) => {
    if (!incoming.url.endsWith("/chat/completions")) return incoming.url;
    send(outgoing);
  }));
  await ready(page);
  await page.evaluate(() => {
    window.touched = [];
    const complete = new Set();
    new MutationObserver((changes) => {
      for (const { target, removedNodes } of changes) {
        const changed = (target instanceof Element ? target : target.parentElement)?.closest(".text p");
        for (const each of [changed, ...removedNodes]) if (complete.has(each)) window.touched.push(each.textContent);
      }
      for (const each of document.querySelectorAll(".answer .text > :not(:last-child)")) complete.add(each);
      window.complete = complete.size;
    }).observe(document.querySelector("#conversation"), { subtree: true, childList: true, characterData: true });
  });
  await ask(page, question);
  for (const [index, { open: next }] of gates.entries()) {
    await page.waitForFunction((count) => document.querySelectorAll(".answer .text p").length === count, 5 * (index + 1) + 1);
    assert.equal(await page.evaluate(() => window.complete), 5 * (index + 1));
    next();
  }
  await complete(page);
  assert.deepEqual(await page.evaluate(() => window.touched), []);
});

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
async function open(at = url, { expected = [], routes = {}, path = "/ui", ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const problems = [];
  contexts.push({ context, problems, expected });
  await context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`The policy refused ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
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
  const proxy = createServer((incoming, outgoing) => {
    if (!incoming.url.startsWith("/llm/")) return outgoing.writeHead(404).end();
    const { method, headers } = incoming;
    const passed = request(url + incoming.url.slice("/llm".length), { method, headers }, (response) => {
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
  for (const path of ["/llm/ui", "/llm/ui/"]) {
    const page = await open(`http://127.0.0.1:${proxy.address().port}`, { path });
    await said(page, "#installed", model);
    await ask(page, question);
    await complete(page);
  }
});

test("numbers are shown as the server tells them", async () => {
  let tokens = 0;
  const told = () => `osaurus_requests_total{endpoint="/chat/completions",status="200"} 3
osaurus_completion_tokens_total{model="a"} ${(tokens += 1000)}
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
  const page = await open(url, {
    routes: { "**/metrics": (route) => route.fulfill({ contentType: "text/plain", body: told() }) },
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
  await said(page, "#memory-bar .legend", /Models 98\.3 MB/);
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

test("a server that is away is said to be, and found again", async () => {
  const page = await open(url, { expected: [/ERR_INTERNET_DISCONNECTED/] });
  await said(page, "#state", "Running");
  await page.context().setOffline(true);
  await said(page, "#notice", /does not answer/);
  await said(page, "#state", "Not reachable");
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
  assert.deepEqual(bodies.map((body) => body.temperature), [undefined, 1.5]);
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
  await page.locator(".answer .text p").waitFor();
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

test("a long answer stays fast: what is complete is not touched again", async () => {
  const block = `${"word ".repeat(40)}\n\n`;
  const page = await open(url, { routes: { "**/chat/completions": saying(block.repeat(40)) } });
  await ready(page);
  await page.evaluate(() => {
    window.touched = 0;
    new MutationObserver((changes) => {
      const last = document.querySelector(".answer .text")?.lastElementChild;
      for (const { target } of changes) {
        const paragraph = target.parentElement?.closest(".text p");
        if (paragraph && paragraph.nextElementSibling?.nextElementSibling && paragraph !== last) window.touched += 1;
      }
    }).observe(document.querySelector("#conversation"), { subtree: true, childList: true, characterData: true });
  });
  await ask(page, question);
  await complete(page);
  assert.equal(await page.locator(".answer .text p").count(), 40);
  assert.equal(await page.evaluate(() => window.touched), 0);
});

// The parts of the page at /ui that need no browser.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { complete } from "../../../osaurus/web/ui/completion.js";
import { Conversation } from "../../../osaurus/web/ui/conversation.js";
import { Formatter, spans } from "../../../osaurus/web/ui/formatting.js";
import { parse, reading } from "../../../osaurus/web/ui/metrics.js";
import { pause, Polling } from "../../../osaurus/web/ui/polling.js";
import { pulling } from "../../../osaurus/web/ui/pull.js";
import { Rates } from "../../../osaurus/web/ui/rates.js";
import { explained, Refusal, Server, Unreachable } from "../../../osaurus/web/ui/server.js";
import { tabStorage } from "../../../osaurus/web/ui/storage.js";
import { events, lines } from "../../../osaurus/web/ui/streams.js";
import { bytes, duration, percent, rate } from "../../../osaurus/web/ui/units.js";

async function all(iterable) {
  const found = [];
  for await (const each of iterable) found.push(each);
  return found;
}

// A body that comes in these pieces.
function body(...pieces) {
  const encoder = new TextEncoder();
  return ReadableStream.from(pieces.map((piece) => (typeof piece === "string" ? encoder.encode(piece) : piece)));
}

// A text in two pieces of bytes, in every way.
function* inTwo(text) {
  const encoded = new TextEncoder().encode(text);
  for (let at = 0; at <= encoded.length; at += 1) yield [encoded.slice(0, at), encoded.slice(at)];
}

// Streams.

test("lines are the same wherever a body is split", async () => {
  for (const pieces of inTwo("é1\r\n\n二\r三\n4")) {
    assert.deepEqual(await all(lines(body(...pieces))), ["é1", "", "二", "三", "4"]);
  }
});

test("events are the same wherever a body is split", async () => {
  const text = ': hello\ndata: {"a":"é"}\n\nevent: x\nid: 1\ndata:one\ndata: two\r\n\r\n: \n\ndata\n\ndata: [DONE]\n\n';
  for (const pieces of inTwo(text)) {
    assert.deepEqual(await all(events(body(...pieces))), ['{"a":"é"}', "one\ntwo", "", "[DONE]"]);
  }
});

test("an event that the body ends in is none", async () => {
  assert.deepEqual(await all(events(body("data: 1\n\ndata: 2\n"))), ["1"]);
});

test("whoever leaves early ends the request", async () => {
  let ended = false;
  const endless = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\n")),
    cancel: () => (ended = true),
  });
  for await (const data of events(endless)) {
    assert.equal(data, "1");
    break;
  }
  assert.ok(ended);
});

// Answers.

const answering = (...pieces) => ({ ask: async () => ({ status: 200, body: body(...pieces) }) });
const chunk = (value) => `data: ${JSON.stringify(value)}\n\n`;
const delta = (value, finish_reason = null) => chunk({ choices: [{ index: 0, delta: value, finish_reason }] });
const signal = new AbortController().signal;

test("an answer's thoughts, text, end and usage are told apart", async () => {
  const usage = { prompt_tokens: 3, completion_tokens: 2 };
  const server = answering(
    delta({ role: "assistant", content: "" }),
    ": keep-alive\n\n",
    delta({ reasoning_content: "hm" }),
    delta({ content: "Hel" }) + delta({ content: "lo" }),
    delta({}, "stop"),
    chunk({ choices: [], usage }),
    "data: [DONE]\n\n",
  );
  assert.deepEqual(await all(complete(server, { model: "m", messages: [] }, signal)), [
    { thought: "hm" },
    { text: "Hel" },
    { text: "lo" },
    { reason: "stop" },
    { usage },
  ]);
});

test("an error in a stream is thrown with what came before it told", async () => {
  const server = answering(delta({ content: "Hel" }), chunk({ error: { message: "broken" } }), "data: [DONE]\n\n");
  const told = [];
  await assert.rejects(async () => {
    for await (const part of complete(server, {}, signal)) told.push(part);
  }, new Refusal(200, "broken"));
  assert.deepEqual(told, [{ text: "Hel" }]);
});

test("an answer without its end broke off", async () => {
  await assert.rejects(all(complete(answering(delta({ content: "Hel" })), {}, signal)), /broke off/);
});

test("a pull tells its lines, and fails where its last is not success", async () => {
  const told = [{ status: "pulling manifest" }, { status: "pulling 00", total: 10, completed: 3 }, { status: "success" }];
  const text = told.map((each) => `${JSON.stringify(each)}\n`);
  assert.deepEqual(await all(pulling(answering(...text), "m", signal)), told);
  await assert.rejects(all(pulling(answering(...text.slice(0, 2)), "m", signal)), /goes on from there/);
  await assert.rejects(all(pulling(answering(text[0], '{"error":"no room"}\n'), "m", signal)), /no room/);
  await assert.rejects(all(pulling(answering('{"error":{"message":"no room"}}\n'), "m", signal)), /no room/);
});

test("a pull whose connection is lost says so, however that is seen", async () => {
  const line = '{"status":"pulling manifest"}\n';
  const failing = async function* () {
    yield new TextEncoder().encode(line);
    throw new TypeError("network error");
  };
  const lost = { ask: async () => ({ status: 200, body: ReadableStream.from(failing()) }) };
  for (const server of [lost, answering(line, '{"status":"pull'), answering(line, "null\n")]) {
    await assert.rejects(all(pulling(server, "m", signal)), { message: /^The pull broke off: .* it goes on from there\.$/ });
  }
});

test("a conversation leaves out what was never answered", () => {
  const conversation = new Conversation();
  conversation.ask("one").answer = "1";
  conversation.ask("failed");
  const turn = conversation.ask("two");
  const said = [
    { role: "user", content: "one" },
    { role: "assistant", content: "1" },
    { role: "user", content: "two" },
  ];
  assert.deepEqual(conversation.messages(turn, ""), said);
  assert.deepEqual(conversation.messages(turn, "Be brief."), [{ role: "system", content: "Be brief." }, ...said]);
});

test("a question that is answered late is told where it was asked", () => {
  const conversation = new Conversation();
  const late = conversation.ask("one");
  conversation.ask("two").answer = "2";
  assert.deepEqual(conversation.messages(late, ""), [{ role: "user", content: "one" }]);
  late.answer = "1";
  const said = conversation.messages(conversation.ask("three"), "").map(({ content }) => content);
  assert.deepEqual(said, ["one", "1", "two", "2", "three"]);
});

// The server.

const memory = () => {
  const kept = new Map();
  return { getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value) };
};
const root = new URL("http://host/llm/");

test("everything is asked for below the server's root, wherever that is", async () => {
  const asked = [];
  const server = new Server(memory(), async (url) => {
    asked.push(String(url));
    return new Response("{}");
  }, root);
  await server.ask("chat/completions", { body: {} });
  await server.ask("ps");
  assert.deepEqual(asked, ["http://host/llm/chat/completions", "http://host/llm/ps"]);
});

for (const [what, answer, message, told] of [
  ["the server's", '{"error":{"message":"no such model"}}', "no such model", true],
  ["Ollama's", '{"error":"no such model"}', "no such model", true],
  ["health's", '{"status":"error","reason":"it died"}', "it died", true],
  ["a proxy's", "<html>Bad gateway</html>", "The answer was 502 Bad Gateway", false],
]) {
  test(`an error of ${what} shape is told`, async () => {
    const response = () => new Response(answer, { status: 502, statusText: "Bad Gateway", headers: { "Retry-After": "7" } });
    const server = new Server(memory(), async () => response(), root);
    await assert.rejects(server.ask("ps"), (error) => {
      assert.deepEqual([error.message, error.status, error.retryAfter, error.told], [message, 502, 7, told]);
      return true;
    });
  });
}

test("where nobody answers the error says so, and an aborted request keeps its own", async () => {
  const server = new Server(memory(), async (_, { signal }) => {
    signal?.throwIfAborted();
    throw new TypeError("Failed to fetch");
  }, root);
  await assert.rejects(server.ask("ps"), Unreachable);
  await assert.rejects(server.ask("ps", { signal: AbortSignal.abort() }), { name: "AbortError" });
});

const KEY_WANTED = '{"error":{"message":"no key","type":"authentication_error","code":"invalid_api_key"}}';

// A server, what it tells, and the key that it asks for.
function keeper(key) {
  const kept = { key, told: [] };
  kept.server = new Server(memory(), async (url, { headers }) => {
    assert.equal(headers["Authorization"], undefined);
    const open = url.pathname.endsWith("/health") || kept.key === undefined || headers["X-Api-Key"] === kept.key;
    return open ? new Response("{}") : new Response(KEY_WANTED, { status: 401 });
  }, root);
  for (const event of ["locked", "unlocked"]) kept.server.addEventListener(event, () => kept.told.push(event));
  return kept;
}

test("a key is asked for once, tried, and kept when it is right", async () => {
  const { server, told } = keeper("right");
  await assert.rejects(server.ask("ps"), { status: 401 });
  await assert.rejects(server.ask("tags"), { status: 401 });
  assert.deepEqual(told, ["locked"]);
  assert.equal(await server.unlock("wrong"), false);
  await assert.rejects(server.ask("ps"), { status: 401 });
  assert.equal(await server.unlock("right"), true);
  assert.deepEqual(told, ["locked", "unlocked"]);
  assert.ok((await server.ask("ps")).ok);
});

test("where keys are taken away the server is open again", async () => {
  const kept = keeper("right");
  await assert.rejects(kept.server.ask("ps"), { status: 401 });
  await kept.server.ask("health");
  assert.ok(kept.server.locked);
  kept.key = undefined;
  await kept.server.ask("ps");
  assert.ok(!kept.server.locked);
  assert.deepEqual(kept.told, ["locked", "unlocked"]);
});

test("a proxy's 401 is no wish for a key", async () => {
  for (const answer of ["<h1>401 Authorization Required</h1>", '{"error":"log in"}', ""]) {
    const server = new Server(memory(), async () => new Response(answer, { status: 401 }), root);
    server.addEventListener("locked", assert.fail);
    await assert.rejects(server.ask("ps"), { status: 401 });
    assert.ok(!server.locked);
    await assert.rejects(server.unlock("key"), { status: 401 });
  }
});

test("where the browser keeps nothing, the page does", () => {
  const there = memory();
  assert.equal(tabStorage(() => there), there);
  const blocked = tabStorage(() => {
    throw new DOMException("blocked", "SecurityError");
  });
  assert.equal(blocked.getItem("key"), null);
  blocked.setItem("key", "1");
  assert.equal(blocked.getItem("key"), "1");
});

test("when to ask again is told where that helps", () => {
  assert.equal(explained(new Refusal(429, "Too many", { retryAfter: 9 })), "Too many. Try again in 9 s.");
  assert.equal(explained(new Refusal(400, "Too long.", { retryAfter: 9 })), "Too long.");
});

test("a server that is away is looked at less and less often, at most every half minute", () => {
  assert.deepEqual([0, 1, 2, 3, 4, 9].map(pause), [2000, 4000, 8000, 16000, 30000, 30000]);
});

test("nobody looks while the page is hidden", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const page = Object.assign(new EventTarget(), { hidden: false });
  let looks = 0;
  const waits = [];
  const polling = new Polling(async () => ++looks !== 2, (wait) => waits.push(wait), page);
  const settled = () => new Promise((resolve) => setImmediate(resolve));
  const turn = async (hidden) => {
    page.hidden = hidden;
    page.dispatchEvent(new Event("visibilitychange"));
    await settled();
  };
  polling.start();
  await settled();
  mock.timers.tick(2000);
  await settled();
  assert.deepEqual([looks, waits], [2, [2000, 4000]]);
  await turn(true);
  mock.timers.tick(100000);
  await settled();
  assert.equal(looks, 2);
  await turn(false);
  assert.deepEqual([looks, waits], [3, [2000, 4000, 2000]]);
  mock.timers.reset();
});

// Numbers.

const EXPOSITION = `# HELP osaurus_requests_total Requests, by endpoint and status.
# TYPE osaurus_requests_total counter
osaurus_requests_total{endpoint="/chat/completions",status="200"} 12.0
osaurus_requests_total{endpoint="/chat",status="429"} 3.0
osaurus_requests_total{endpoint="/ps",status="200"} 900.0
osaurus_requests_created{endpoint="/ps",status="200"} 1.7e+09
osaurus_completion_tokens_total{model="a \\"b\\" \\\\ {c},\\n"} 1e+02 1700000000000
osaurus_completion_tokens_total{model="d"} 11
osaurus_rows{state="writing"} 2
osaurus_rows{state="parked"} 0
osaurus_memory_bytes{kind="limit"} 6e+09
osaurus_prefix_cache_hits_total 9
osaurus_inter_token_seconds_bucket{le="+Inf",model="d"} +Inf
osaurus_engine_up 1

what is this
nothing{x="y"} NaN
`;

test("the text of metrics is read, labels as they were meant", () => {
  const metrics = parse(EXPOSITION);
  assert.deepEqual(metrics.by("osaurus_completion_tokens_total", "model"), { 'a "b" \\ {c},\n': 100, d: 11 });
  assert.equal(metrics.sum("osaurus_engine_up"), 1);
  assert.equal(metrics.sum("osaurus_inter_token_seconds_bucket"), Infinity);
  assert.equal(metrics.sum("what"), undefined);
  assert.equal(metrics.sum("nothing"), undefined);
});

test("requests are those that answers come from", () => {
  const told = reading(parse(EXPOSITION));
  assert.equal(told.requests, 15);
  assert.equal(told.tokens, 111);
  assert.deepEqual(told.rows, { writing: 2, parked: 0 });
  assert.deepEqual(told.memory, { limit: 6e9 });
});

test("of nothing nothing is read", () => {
  assert.deepEqual(reading(parse("")), {
    requests: 0, tokens: 0, queue: undefined, rows: {}, prefixes: {}, hits: 0, misses: 0, memory: {},
  });
});

test("a rate is taken over a window, and forgotten with time", () => {
  const rates = new Rates(10, 4, 5);
  assert.equal(rates.latest, undefined);
  for (const [time, value] of [[0, 0], [2, 2], [4, 10], [6, 10]]) rates.add(time, value);
  assert.deepEqual(rates.lines(), [[{ time: 2, rate: 1 }, { time: 4, rate: 2.5 }, { time: 6, rate: 2 }]]);
  assert.deepEqual([rates.latest, rates.peak], [2, 2.5]);
  for (let time = 8; time <= 40; time += 2) rates.add(time, 10);
  assert.deepEqual([rates.latest, rates.peak], [0, 0]);
});

test("a counter that went back, or was not looked at for long, begins another line", () => {
  const rates = new Rates(100, 1, 5);
  for (const [time, value] of [[0, 50], [2, 60], [4, 3], [6, 5], [20, 50], [22, 52]]) rates.add(time, value);
  assert.deepEqual(rates.lines().map((line) => line.map((point) => point.rate)), [[5], [1], [1]]);
});

test("numbers are told as people read them", () => {
  assert.deepEqual([0, 999, 1000, 98300000, 999600, 5.38e9].map(bytes),
    ["0 bytes", "999 bytes", "1.0 kB", "98.3 MB", "1.0 MB", "5.4 GB"]);
  assert.deepEqual([0, 0.25, 3.14, 87.6].map(rate), ["0", "0.25", "3.1", "88"]);
  assert.deepEqual([0.3, 42, 290, 7200, 200000].map(duration), ["0.3 s", "42 s", "5 min", "2 h", "2 days"]);
  assert.deepEqual([percent(1, 3), percent(0, 0)], ["33 %", "–"]);
});

// Text.

// What a text becomes that is fed in these pieces, and what was told on the way.
function blocks(...pieces) {
  const found = [];
  let open = null;
  const formatter = new Formatter({
    paragraph(text) {
      if (!open) found.push((open = { kind: "p", text: "" }));
      assert.equal(open.kind, "p");
      open.text = text;
    },
    code(language) {
      assert.equal(open, null);
      found.push((open = { kind: "code", language, text: "" }));
    },
    add(text) {
      open.text += text;
    },
    end() {
      assert.notEqual(open, null);
      open = null;
    },
  });
  for (const piece of pieces) formatter.feed(piece);
  formatter.end();
  assert.equal(open, null);
  return found;
}

const ANSWER = "Here:\nit is\n\n```python\nprint('`')\n  ``\n\n~~~\n```\nDone, `x`.\n\n~~~\n```\n~~~~\n\nEnd";

test("paragraphs and blocks of code are found wherever the text is split", () => {
  const expected = [
    { kind: "p", text: "Here:\nit is\n" },
    { kind: "code", language: "python", text: "print('`')\n  ``\n\n~~~\n" },
    { kind: "p", text: "Done, `x`.\n" },
    { kind: "code", language: "", text: "```\n" },
    { kind: "p", text: "End\n" },
  ];
  const normal = (found) => found.map((block) => ({ ...block, text: block.text.replace(/End$/, "End\n") }));
  for (let at = 0; at <= ANSWER.length; at += 1) {
    assert.deepEqual(normal(blocks(ANSWER.slice(0, at), ANSWER.slice(at))), expected);
  }
  assert.deepEqual(normal(blocks(...ANSWER)), expected);
});

test("a block of code that is not closed ends with the text", () => {
  assert.deepEqual(blocks("```js\na", "b"), [{ kind: "code", language: "js", text: "ab\n" }]);
  assert.deepEqual(blocks("text\n```"), [
    { kind: "p", text: "text\n" },
    { kind: "code", language: "", text: "" },
  ]);
});

test("blank text has no blocks", () => {
  assert.deepEqual(blocks("\n", "  \n", ""), []);
});

test("code and strong words are found in a paragraph, and nothing else", () => {
  const kinds = (text) => spans(text).map(({ kind, text }) => `${kind}: ${text}`);
  assert.deepEqual(kinds("use `a*b` and **two words**"), ["text: use ", "code: a*b", "text:  and ", "strong: two words"]);
  assert.deepEqual(kinds("``a`b`` `open"), ["code: a`b", "text:  `open"]);
  assert.deepEqual(kinds("2 ** 3 ** 4 <b>x</b> [a](javascript:b)"), ["text: 2 ** 3 ** 4 <b>x</b> [a](javascript:b)"]);
  assert.deepEqual(kinds(""), []);
});

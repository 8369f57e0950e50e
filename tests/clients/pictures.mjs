// The pictures of docs/page.md, into the folder that is given: the page of the server at OSU_TEST_URL while it works, in
// the Chromium at CHROME.

import { setTimeout as wait } from "node:timers/promises";
import { chromium } from "playwright-core";

const url = process.env.OSU_TEST_URL;
const folder = process.argv[2];
const model = "smollm2-135m-instruct";
const WORKING = 170;

const stories = ["a dragon", "a lighthouse", "two brothers", "an old train", "the sea", "a lost letter", "a winter"];
let working = true;

// Others ask as well, now more of them and now fewer.
async function other(index) {
  await wait(index * 7000);
  for (let turn = index; working; turn += 1) {
    const content = `Write a story about ${stories[turn % stories.length]}.`;
    const body = { model, messages: [{ role: "user", content }], max_tokens: 250 + 60 * index };
    await (await fetch(`${url}/v1/chat/completions`, { method: "POST", body: JSON.stringify(body) })).text();
    await wait(2500 * ((turn * 5) % 4));
  }
}

const browser = await chromium.launch({
  executablePath: process.env.CHROME,
  args: ["--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 920 }, deviceScaleFactor: 1.5 });
await page.goto(`${url}/ui`);
const others = [0, 1, 2].map(other);
await wait(WORKING * 1000);

await page.locator("#temperature").evaluate((field) => (field.value = "0"));
for (const question of ["Tell me the capital of France.", "Write a Python function that adds two numbers."]) {
  await page.fill("#message", question);
  await page.press("#message", "Enter");
  await page.locator(".answer").last().locator("footer .copy").waitFor();
}
await wait(3000);
await page.screenshot({ path: `${folder}/page.png` });
await page.emulateMedia({ colorScheme: "dark" });
await page.screenshot({ path: `${folder}/page-dark.png` });
await page.emulateMedia({ colorScheme: "light" });
await page.setViewportSize({ width: 390, height: 844 });
await page.click("#to-server");
await page.screenshot({ path: `${folder}/page-phone.png` });

working = false;
await Promise.all(others);
await browser.close();

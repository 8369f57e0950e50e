// The server that the page came from: where it is, the key that it may ask for, and what it says when it refuses.

// The page's files lie in a folder below the server's root, wherever a proxy has put that.
const ROOT = new URL("..", import.meta.url);
const KEY = "osaurus-key";

/**
 * An answer that is an error. `retryAfter` is in seconds, if the server says when to ask again; `told` is whether it was
 * the server that gave the reason, not something between it and the page; `code` is the server's name for the error.
 */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{retryAfter?: number, told?: boolean, code?: string}} [more]
   */
  constructor(status, message, { retryAfter, told = true, code } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.told = told;
    this.code = code;
  }

  /** Whether the server asks for one of its keys. A proxy that wants a password says so to the browser. */
  get wantsKey() {
    return this.status === 401 && this.code === "invalid_api_key";
  }
}

/** No answer at all. */
export class Unreachable extends Error {}

/**
 * Asks the server. Tells "locked" when it wants a key that it was not given, and "unlocked" when it has been, or is not
 * wanted any more.
 */
export class Server extends EventTarget {
  /**
   * @param {{getItem(name: string): string | null, setItem(name: string, value: string): void}} storage
   * @param {typeof fetch} fetching
   * @param {URL} root
   */
  constructor(storage, fetching = (...asked) => fetch(...asked), root = ROOT) {
    super();
    this.locked = false;
    this._storage = storage;
    this._fetch = fetching;
    this._root = root;
  }

  /**
   * Returns the answer to a GET, or to a POST where there is a body. Throws Refusal and Unreachable, or what `signal`
   * was aborted with.
   * @param {string} path relative to the server's root
   * @param {{body?: object, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>}
   */
  async ask(path, options = {}) {
    let response;
    try {
      response = await this._send(path, this._storage.getItem(KEY), options);
    } catch (error) {
      if (error instanceof Refusal && error.wantsKey && !this.locked) {
        this.locked = true;
        this.dispatchEvent(new Event("locked"));
      }
      throw error;
    }
    // That one is open to everybody.
    if (path !== "health") this._open();
    return response;
  }

  /**
   * Use a key from now on, if the server takes it; returns whether it does. Throws Refusal and Unreachable.
   * @param {string} key
   */
  async unlock(key) {
    try {
      await this._send("version", key, {});
    } catch (error) {
      if (error instanceof Refusal && error.wantsKey) return false;
      throw error;
    }
    this._storage.setItem(KEY, key);
    this._open();
    return true;
  }

  _open() {
    if (!this.locked) return;
    this.locked = false;
    this.dispatchEvent(new Event("unlocked"));
  }

  /**
   * @param {string} path
   * @param {string | null} key
   * @param {{body?: object, signal?: AbortSignal}} options
   */
  async _send(path, key, { body, signal }) {
    /** @type {Record<string, string>} */
    const headers = {};
    // `Authorization` may be a proxy's, which the browser sends by itself.
    if (key) headers["X-Api-Key"] = key;
    if (body) headers["Content-Type"] = "application/json";
    const method = body ? "POST" : "GET";
    let response;
    try {
      response = await this._fetch(new URL(path, this._root), {
        method, headers, signal, body: body && JSON.stringify(body), cache: "no-store", credentials: "same-origin",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Unreachable("The server does not answer.");
    }
    if (response.ok) return response;
    throw await refusalOf(response);
  }
}

/** @param {Response} response */
async function refusalOf(response) {
  const after = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const { reason, code } = reasonIn(await response.text().catch(() => ""));
  return new Refusal(response.status, reason ?? `The answer was ${response.status} ${response.statusText}`.trim(), {
    retryAfter: Number.isNaN(after) ? undefined : after,
    told: reason !== undefined,
    code,
  });
}

/**
 * The reason in the body of an error, or of an answer about the server's health, and the error's code.
 * @param {string} text
 * @returns {{reason?: string, code?: string}}
 */
function reasonIn(text) {
  try {
    const told = JSON.parse(text);
    return { reason: errorIn(told) ?? told.reason, code: told.error?.code };
  } catch {
    return {};
  }
}

/**
 * The message of an error that came as a value, undefined if it is none.
 * @param {any} value
 * @returns {string | undefined}
 */
export function errorIn(value) {
  const error = value?.error;
  if (error === undefined || error === null) return undefined;
  return typeof error === "string" ? error : String(error.message ?? "Something went wrong.");
}

/**
 * What to tell somebody of an error.
 * @param {unknown} error
 * @returns {string}
 */
export function explained(error) {
  if (error instanceof Refusal && error.retryAfter !== undefined && [429, 503].includes(error.status)) {
    return `${sentence(error.message)} Try again in ${error.retryAfter} s.`;
  }
  return sentence(error instanceof Error ? error.message : String(error));
}

/** @param {string} text */
function sentence(text) {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

// Looking again and again, while somebody looks at the page: less often where the server is away, not at all while the
// page is hidden.

const USUAL = 2000;
const LONGEST = 30000;

/**
 * How long to wait after so many failures in a row, in milliseconds.
 * @param {number} failures
 */
export function pause(failures) {
  return Math.min(USUAL * 2 ** failures, LONGEST);
}

/** Calls `look`, which tells whether the server answered, and after each time `waits` with the milliseconds to the next. */
export class Polling {
  /**
   * @param {() => Promise<boolean>} look
   * @param {(milliseconds: number) => void} waits
   * @param {EventTarget & {hidden: boolean}} page
   */
  constructor(look, waits, page = document) {
    this._look = look;
    this._waits = waits;
    this._page = page;
    this._failures = 0;
    this._looking = false;
    this._again = false;
    /** @type {number | undefined} */
    this._timer = undefined;
  }

  start() {
    this._page.addEventListener("visibilitychange", () => {
      if (this._page.hidden) clearTimeout(this._timer);
      else this.now();
    });
    this.now();
  }

  /** Look at once; if that is being done, once more afterwards. */
  async now() {
    this._again = this._looking;
    if (this._looking) return;
    clearTimeout(this._timer);
    this._looking = true;
    do {
      this._again = false;
      this._failures = (await this._look()) ? 0 : this._failures + 1;
    } while (this._again);
    this._looking = false;
    const wait = pause(this._failures);
    this._waits(wait);
    if (!this._page.hidden) this._timer = setTimeout(() => this.now(), wait);
  }
}

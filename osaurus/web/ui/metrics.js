// The server's numbers, as `GET /metrics` tells them: Prometheus' text format.

/**
 * @typedef {Record<string, string>} Labels
 * @typedef {{labels: Labels, value: number}} Sample
 */

const LINE = /^([A-Za-z_:][\w:]*)(\{.*\})?[ \t]+(\S+)(?:[ \t]|$)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
/** @type {Record<string, string>} */
const ESCAPED = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** What was told at one time. */
export class Metrics {
  /** @param {Map<string, Sample[]>} samples */
  constructor(samples) {
    this._samples = samples;
  }

  /**
   * The sum over those samples of a name whose labels are as asked for; undefined if there are none.
   * @param {string} name
   * @param {(labels: Labels) => boolean} [where]
   */
  sum(name, where = () => true) {
    const found = this._samples.get(name)?.filter(({ labels }) => where(labels));
    return found?.length ? found.reduce((total, { value }) => total + value, 0) : undefined;
  }

  /**
   * The values of a name by one of its labels.
   * @param {string} name
   * @param {string} label
   * @returns {Record<string, number>}
   */
  by(name, label) {
    return Object.fromEntries((this._samples.get(name) ?? []).map(({ labels, value }) => [labels[label], value]));
  }
}

/**
 * Reads the text; lines that are not understood are left out.
 * @param {string} text
 */
export function parse(text) {
  /** @type {Map<string, Sample[]>} */
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const value = number(match[3]);
    if (Number.isNaN(value)) continue;
    const found = [...(match[2] ?? "").matchAll(LABEL)];
    const labels = Object.fromEntries(found.map(([, name, quoted]) => [name, unescaped(quoted)]));
    const same = samples.get(match[1]);
    if (same) same.push({ labels, value });
    else samples.set(match[1], [{ labels, value }]);
  }
  return new Metrics(samples);
}

/** @param {string} text */
function number(text) {
  if (text === "+Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

/** @param {string} text */
function unescaped(text) {
  return text.replace(/\\./g, (pair) => ESCAPED[pair] ?? pair);
}

// The endpoints that answers come from, without their prefix; the page's own looking is no traffic.
const ANSWERING = /^\/?(v1\/api\/|v1\/|api\/)?(chat\/completions|completions|chat|generate|responses|messages)\/?$/;

/**
 * What the page shows of the numbers; what the server does not tell is undefined.
 * @param {Metrics} metrics
 */
export function reading(metrics) {
  return {
    requests: metrics.sum("osaurus_requests_total", ({ endpoint }) => ANSWERING.test(endpoint)) ?? 0,
    tokens: metrics.sum("osaurus_completion_tokens_total") ?? 0,
    queue: metrics.sum("osaurus_queue_depth"),
    rows: metrics.by("osaurus_rows", "state"),
    prefixes: metrics.by("osaurus_prefix_cache_bytes", "tier"),
    hits: metrics.sum("osaurus_prefix_cache_hits_total") ?? 0,
    misses: metrics.sum("osaurus_prefix_cache_misses_total") ?? 0,
    memory: metrics.by("osaurus_memory_bytes", "kind"),
  };
}

/** @typedef {ReturnType<typeof reading>} Reading */

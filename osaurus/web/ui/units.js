// Numbers, as people read them.

const STEPS = ["bytes", "kB", "MB", "GB", "TB", "PB"];

/** @param {number} count of bytes */
export function bytes(count) {
  let step = 0;
  let rest = count;
  // What would be rounded to 1000 is one of the next.
  while (rest >= (step ? 999.5 : 1000) && step < STEPS.length - 1) {
    rest /= 1000;
    step += 1;
  }
  return `${step && rest < 99.95 ? rest.toFixed(1) : Math.round(rest)} ${STEPS[step]}`;
}

/** @param {number} count a second */
export function rate(count) {
  return count < 0.005 ? "0" : count < 10 ? count.toFixed(count < 1 ? 2 : 1) : String(Math.round(count));
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/**
 * @param {number} part
 * @param {number} whole
 */
export function percent(part, whole) {
  return whole ? `${Math.round((100 * part) / whole)} %` : "–";
}

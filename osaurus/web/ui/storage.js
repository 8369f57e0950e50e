// Where the key is kept.

/**
 * What the browser keeps for this tab; where it keeps nothing, as with site data blocked, the page does until it is left.
 * @param {() => Storage} find may throw
 * @returns {{getItem(name: string): string | null, setItem(name: string, value: string): void}}
 */
export function tabStorage(find = () => sessionStorage) {
  try {
    const storage = find();
    storage.getItem("");
    return storage;
  } catch {
    /** @type {Map<string, string>} */
    const kept = new Map();
    return { getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => void kept.set(name, value) };
  }
}

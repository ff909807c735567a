/** Stores of the browser, which may be full or forbidden. */

type Where = "localStorage" | "sessionStorage";

export function load(where: Where, key: string): string | null {
  try {
    return window[where].getItem(`reattach ${key}`);
  } catch {
    return null;
  }
}

/** Keep a text until the tab (`sessionStorage`) or for good (`localStorage`); null removes it. */
export function keep(where: Where, key: string, value: string | null): void {
  try {
    if (value === null) window[where].removeItem(`reattach ${key}`);
    else window[where].setItem(`reattach ${key}`, value);
  } catch {
    // The page works without it until it is loaded again.
  }
}

/** Remove everything that this page keeps for the tab. */
export function forgetTab(): void {
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith("reattach ")) sessionStorage.removeItem(key);
  } catch {
    // Nothing was kept.
  }
}

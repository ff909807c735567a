/** The view that the fragment of the address names: `#inspector/run-1&seq=7400`. */

import { signal } from "@preact/signals";

export interface Route {
  /** The segments: the view, then what it shows. */
  path: string[];
  params: Record<string, string>;
}

export function parse(hash: string): Route {
  const route: Route = { path: [], params: {} };
  for (const [at, part] of hash.replace(/^#\/?/, "").split("&").entries()) {
    const [name, value] = part.split(/=(.*)/) as [string, string | undefined];
    // An id may have any character, also `=`.
    if (value !== undefined && !(at === 0 && name.includes("/"))) route.params[name] = decoded(value);
    else if (at === 0) route.path = part.split("/").filter(Boolean).map(decoded);
  }
  return route;
}

export function address(path: string[], params: Record<string, string | number> = {}): string {
  const more = Object.entries(params).map(([name, value]) => `&${name}=${encodeURIComponent(value)}`);
  return `#${path.map(encodeURIComponent).join("/")}${more.join("")}`;
}

export const route = signal(parse(location.hash));

export function go(path: string[], params?: Record<string, string | number>): void {
  location.hash = address(path, params);
  route.value = parse(location.hash); // The event comes later.
}

/** Change the address without a new entry of the history. */
export function replace(path: string[], params?: Record<string, string | number>): void {
  history.replaceState(null, "", address(path, params));
  route.value = parse(location.hash);
}

addEventListener("hashchange", () => (route.value = parse(location.hash)));

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

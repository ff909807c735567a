/** The line to the server, which the user may cut. Only streams and sends use it. */

import { computed, signal } from "@preact/signals";

const DROP_LEAST_MS = 400;
const DROP_MORE_MS = 1600;

/** When the cut ends, in milliseconds since 1970; 0: the line is whole. */
export const cutUntil = signal(0);
export const isCut = computed(() => cutUntil.value > 0);
/** Drop each m-th connection a moment after it was made; 0: none. */
export const dropEvery = signal(0);

/** When a connection was last cut on purpose. */
let meantAt = 0;
const MEANT_MS = 1000;

/** Whether a connection that is lost now is lost on purpose. */
export const wasMeant = (): boolean => isCut.peek() || Date.now() - meantAt < MEANT_MS;

const open = new Set<AbortController>();
const mended = new Set<() => void>();
let connections = 0;
let timer: ReturnType<typeof setTimeout>;

/** Cut all connections, and refuse new ones for a while. */
export function cutLine(ms: number): void {
  clearTimeout(timer);
  cutUntil.value = Date.now() + ms;
  for (const connection of [...open]) drop(connection);
  timer = setTimeout(mendLine, ms);
}

function drop(connection: AbortController): void {
  meantAt = Date.now();
  open.delete(connection);
  connection.abort(new TypeError("the line was cut"));
}

export function mendLine(): void {
  clearTimeout(timer);
  cutUntil.value = 0;
  for (const listener of [...mended]) listener();
}

/** Call `listener` when the line is whole again, as a browser does with `online`. */
export function onMended(listener: () => void): () => void {
  mended.add(listener);
  return () => void mended.delete(listener);
}

/** `fetch` over the line. */
export const lineFetch: typeof fetch = async (input, init = {}) => {
  if (isCut.peek()) throw new TypeError("the line is cut");
  const connection = new AbortController();
  open.add(connection);
  const leave = (): void => void open.delete(connection);
  init.signal?.addEventListener("abort", () => {
    leave();
    connection.abort(init.signal!.reason);
  });
  try {
    const response = await fetch(input, { ...init, signal: connection.signal });
    connections += 1;
    const every = dropEvery.peek();
    if (every && connections % every === 0) {
      const ms = DROP_LEAST_MS + Math.random() * DROP_MORE_MS;
      setTimeout(() => open.has(connection) && drop(connection), ms);
    }
    return response;
  } catch (error) {
    leave();
    throw error;
  }
};

// The browser, where there is one: Node, Deno and Bun lack the page and some of its events.

/** Whether nobody sees the page. */
export const isHidden = (): boolean => globalThis.document?.visibilityState === "hidden";

/** Call back until the signal aborts, when the page may have a network again, or is seen again. */
export function onWake(wake: () => void, signal: AbortSignal): void {
  const listener = ({ type }: Event): void => {
    if (type === "online" || !isHidden()) wake();
  };
  for (const name of ["online", "pageshow", "visibilitychange"]) {
    globalThis.addEventListener?.(name, listener, { signal });
  }
}

/** Return a text that nobody else makes. Pages without TLS have no `randomUUID`, Node 18 no `crypto`. */
export function randomId(): string {
  const words = new Uint32Array(4).map(() => Math.random() * 2 ** 32);
  globalThis.crypto?.getRandomValues(words);
  return words.join("-");
}

/** Abort a controller when a signal aborts, unless the controller has been aborted before. */
export function link(signal: AbortSignal | undefined, controller: AbortController): void {
  const abort = (): void => controller.abort(signal!.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort, { signal: controller.signal });
}

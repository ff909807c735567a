/** Data that a view asks for again and again while somebody looks. */

import { signal, type ReadonlySignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ApiError, asApiError } from "./api";

export interface Polled<T> {
  /** The last answer; null before the first. It stays while later requests fail. */
  data: ReadonlySignal<T | null>;
  error: ReadonlySignal<ApiError | null>;
  /** When the last answer came, in milliseconds since 1970. */
  at: ReadonlySignal<number>;
  /** Ask now. */
  again: () => void;
}

/**
 * Ask at once, and again `everyMs` after each answer while the tab is visible; null: once.
 *
 * A change of `key` forgets the data of another subject.
 */
export function usePolled<T>(ask: (signal: AbortSignal) => Promise<T>, everyMs: number | null, key = ""): Polled<T> {
  const polled = useMemo(() => {
    const data = signal<T | null>(null);
    const error = signal<ApiError | null>(null);
    return { data, error, at: signal(0), again: () => {} };
  }, [key]);
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isAsking = false;
    const look = async (): Promise<void> => {
      clearTimeout(timer);
      if (isAsking || stop.signal.aborted) return;
      isAsking = true;
      try {
        polled.data.value = await ask(stop.signal);
        polled.error.value = null;
        polled.at.value = Date.now();
      } catch (raised) {
        if (stop.signal.aborted) return;
        polled.error.value = asApiError(raised);
      } finally {
        isAsking = false;
      }
      const waits = everyMs ?? (polled.error.value?.status === 0 ? 2000 : null);
      if (waits !== null && !document.hidden) timer = setTimeout(look, waits);
    };
    const wake = (): void => void (document.hidden || everyMs === null || look());
    polled.again = () => void look();
    document.addEventListener("visibilitychange", wake);
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
    };
  }, [polled, everyMs]);
  return polled;
}

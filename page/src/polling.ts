/** Data that a view asks for again and again while somebody looks. */

import { signal, type ReadonlySignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ApiError, asApiError } from "./api";
import { token } from "./session";

const LONGEST_WAIT_MS = 30_000;
const HIDDEN_TIMES = 10;

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
 * Ask at once, and again `everyMs` after each answer; null: once. A hidden tab asks less often.
 *
 * After errors the waits grow. A refusal, which another request would only get again, ends the asking until
 * `again()` or another key. A change of `key` forgets the data of another subject.
 */
export function usePolled<T>(ask: (signal: AbortSignal) => Promise<T>, everyMs: number | null, key = ""): Polled<T> {
  const polled = useMemo(() => {
    const data = signal<T | null>(null);
    const error = signal<ApiError | null>(null);
    return { data, error, at: signal(0), again: () => {} };
  }, [key]);
  const secret = token.value;
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isAsking = false;
    let isStale = false;
    let failures = 0;
    const look = async (): Promise<void> => {
      clearTimeout(timer);
      if (isAsking || stop.signal.aborted) return;
      isAsking = true;
      try {
        polled.data.value = await ask(stop.signal);
        polled.error.value = null;
        polled.at.value = Date.now();
        failures = 0;
      } catch (raised) {
        if (stop.signal.aborted) return;
        polled.error.value = asApiError(raised);
        failures += 1;
      } finally {
        isAsking = false;
      }
      // A request may have been answered after the view was left.
      if (stop.signal.aborted) return;
      if (isStale) {
        isStale = false;
        return void look();
      }
      const error = polled.error.value;
      if (error ? !passes(error) : everyMs === null) return;
      const waitMs = (everyMs ?? 2000) * (document.hidden ? HIDDEN_TIMES : 1) * 2 ** Math.min(failures, 5);
      timer = setTimeout(look, failures ? Math.min(waitMs, LONGEST_WAIT_MS) : waitMs);
    };
    const wake = (): void => {
      const error = polled.error.value;
      if (!document.hidden && (error ? passes(error) : everyMs !== null)) void look();
    };
    // A request under way may have been answered before the change that this call is about.
    polled.again = () => (isAsking ? void (isStale = true) : void look());
    document.addEventListener("visibilitychange", wake);
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
    };
  }, [polled, everyMs, secret]);
  return polled;
}

/** Whether the same request may succeed later: the server is away or busy. */
function passes({ status }: ApiError): boolean {
  return status === 0 || status === 408 || status === 429 || status >= 500;
}

/** A list whose newest page is asked for again and again, and whose further pages come by a button. */

import { signal, type ReadonlySignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { api, asApiError } from "../api";
import { usePolled, type Polled } from "../polling";
import { toast } from "../toasts";

interface Page<T> {
  items: T[];
  has_more: boolean;
}

export interface Paged<T> {
  polled: Polled<Page<T>>;
  items: ReadonlySignal<T[]>;
  hasMore: ReadonlySignal<boolean>;
  more: () => Promise<void>;
}

const EVERY_MS = 5000;
const LIMIT = 50;

export function usePaged<T>(path: string, idOf: (item: T) => string): Paged<T> {
  const list = useMemo(() => ({ items: signal<T[]>([]), hasMore: signal(false), isWhole: false }), [path]);
  const ask = async (stop: AbortSignal): Promise<Page<T>> => {
    const page = await api<Page<T>>(path, { query: { limit: LIMIT }, signal: stop });
    const seen = new Set(page.items.map(idOf));
    const further = list.items.peek().slice(LIMIT);
    list.items.value = [...page.items, ...(page.has_more ? further.filter((one) => !seen.has(idOf(one))) : [])];
    if (!list.isWhole) list.hasMore.value = page.has_more;
    return page;
  };
  const polled = usePolled(ask, EVERY_MS, path);
  const more = async (): Promise<void> => {
    const last = list.items.peek()[list.items.peek().length - 1];
    if (!last) return;
    try {
      const page = await api<Page<T>>(path, { query: { limit: LIMIT, after: idOf(last) } });
      const seen = new Set(list.items.peek().map(idOf));
      list.items.value = [...list.items.peek(), ...page.items.filter((one) => !seen.has(idOf(one)))];
      list.hasMore.value = page.has_more;
      list.isWhole = !page.has_more;
    } catch (error) {
      toast(asApiError(error).detail, "bad");
    }
  };
  return { polled, items: list.items, hasMore: list.hasMore, more };
}

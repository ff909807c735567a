/** The events of a run around the places that somebody looks at. Never all of them are in memory. */

import { signal } from "@preact/signals";
import { asApiError, type ApiError } from "../api";
import { getFrames, type Frame } from "./facts";

const PAGE = 100;
const MOST_PAGES = 60;

export class Frames {
  readonly first = signal(1);
  readonly last = signal(0);
  readonly error = signal<ApiError | null>(null);
  /** Changes with the frames that are here. */
  readonly version = signal(0);
  /** By page, the most recently used ones last. */
  private readonly pages = new Map<number, Map<number, Frame>>();
  private readonly loading = new Map<number, Promise<void>>();

  constructor(
    private readonly run: string,
    private readonly stop: AbortSignal,
  ) {}

  get(seq: number): Frame | undefined {
    return this.pages.get(pageOf(seq))?.get(seq);
  }

  /** Whether all events from one to another are here. */
  has(from: number, to: number): boolean {
    for (let seq = from; seq <= to; seq += 1) if (!this.get(seq)) return false;
    return true;
  }

  /** Get the events from one to another. */
  async need(from: number, to: number): Promise<void> {
    const wanted = [];
    const end = Math.min(to, this.last.peek() || to);
    for (let page = pageOf(Math.max(from, this.first.peek())); page <= pageOf(end); page += 1) {
      const start = page * PAGE + 1;
      if (!this.has(Math.max(start, this.first.peek()), Math.min(start + PAGE - 1, end))) wanted.push(this.load(page));
      else this.use(page);
    }
    await Promise.all(wanted);
  }

  /** Add an event that was followed. */
  add(frame: Frame): void {
    this.put(frame);
    this.last.value = Math.max(this.last.peek(), frame.seq);
    this.version.value += 1;
  }

  /** Note how far the log reaches. */
  extend(first: number, last: number): void {
    this.first.value = first;
    this.last.value = Math.max(this.last.peek(), last);
  }

  private load(page: number): Promise<void> {
    const known = this.loading.get(page);
    if (known) return known;
    const loading = this.ask(page).finally(() => this.loading.delete(page));
    this.loading.set(page, loading);
    return loading;
  }

  private async ask(page: number): Promise<void> {
    let after = page * PAGE;
    const before = after + PAGE + 1;
    try {
      while (after < before - 1) {
        // A page of large events has fewer.
        const found = await getFrames(this.run, { after_seq: after, before_seq: before, limit: PAGE }, this.stop);
        this.extend(found.first_seq, found.last_seq);
        for (const frame of found.items) this.put(frame);
        const last = found.items[found.items.length - 1];
        if (!last || last.seq >= found.last_seq) break;
        after = last.seq;
      }
      this.error.value = null;
    } catch (raised) {
      if (this.stop.aborted) return;
      this.error.value = asApiError(raised);
    }
    this.version.value += 1;
  }

  private put(frame: Frame): void {
    const page = pageOf(frame.seq);
    const frames = this.pages.get(page) ?? new Map<number, Frame>();
    frames.set(frame.seq, frame);
    this.pages.set(page, frames);
    this.use(page);
  }

  private use(page: number): void {
    const frames = this.pages.get(page);
    if (!frames) return;
    this.pages.delete(page);
    this.pages.set(page, frames);
    if (this.pages.size > MOST_PAGES) this.pages.delete(this.pages.keys().next().value!);
  }
}

const pageOf = (seq: number): number => Math.floor((seq - 1) / PAGE);

/** Return the event of a frame, or null if it is not readable. */
export function eventOf({ frame }: Frame): any {
  try {
    return JSON.parse(dataOf(frame));
  } catch {
    return null;
  }
}

/** Return the text after `data: `. */
export function dataOf(frame: string): string {
  const at = frame.indexOf("data: ");
  return (at < 0 ? frame : frame.slice(at + 6)).trimEnd();
}

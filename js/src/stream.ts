import type { Life } from "./reader.js";
import type { State } from "./types.js";

/** The items of one reading, each once and in order. Iterate over it once. */
export interface Stream<T> extends AsyncIterableIterator<T> {
  readonly state: State;
  /** Return the next item. To ask for it says that the one before was processed. */
  next(): Promise<IteratorResult<T, void>>;
  /** Disconnect. The run goes on. */
  return(): Promise<IteratorResult<T, void>>;
  [Symbol.asyncIterator](): this;
  /** End a wait, and connect at once. */
  tryNow(): void;
  /** Disconnect, and let the iteration end with an AbortError. The run goes on. Idempotent. */
  close(): void;
}

/** The events of a run. */
export interface RunStream<T> extends Stream<T> {
  /** The id of the run, once the server has named it. Rejects if the stream ends before. */
  readonly runId: Promise<string>;
  /** The position of the last event that was yielded. */
  readonly seq: number;
}

/** The events of many runs, each once, and in order within each run. */
export interface Many<T> extends Stream<T> {
  /**
   * Follow a run after a cursor. The connection is opened anew, with the cursors of all runs.
   *
   * A run that is there already keeps its cursor. Raises ReattachError if it would be run 101.
   */
  add(run: string, after?: number): void;
  /** Leave a run. The connection is opened anew. */
  drop(run: string): void;
}

/**
 * Add the members of a stream.
 *
 * With `starts` it connects now, and keeps the first item until somebody asks for it.
 */
export function streamOf<T, M extends { readonly state: State }>(
  items: AsyncGenerator<T, void, undefined>,
  life: Life,
  members: M,
  settle = (): void => {},
  starts?: boolean,
): M & Stream<T> {
  let first = starts && items.next();
  if (first) first.catch(() => {});
  const stream = Object.assign(members, {
    next() {
      const next = first;
      first = false;
      if (!next) settle();
      return next || items.next();
    },
    return: () => items.return(),
    [Symbol.asyncIterator]: () => stream,
    tryNow: () => life.wake(),
    close: () => life.controller.abort(),
  }) as M & Stream<T>;
  return stream;
}

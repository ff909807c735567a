/** The run that the Inspector shows, and the moment of it. */

import { connect, type State } from "@reattach/client";
import { batch, computed, signal } from "@preact/signals";
import { replace } from "../router";
import { base, token } from "../session";
import { AnswerAt } from "./answer_at";
import { Frames } from "./frames";
import type { Frame, SnapshotState } from "./facts";

const AROUND = 60;
/** Browsers allow a page few changes of its address. */
const ADDRESS_MS = 300;
const HIDDEN_MS = 500;
/** The longest time between two looks of a stream whose answer takes long to lay out. */
const SLOWEST_MS = 500;
const encoder = new TextEncoder();

type Item = { message_type: string; seq_id: number; [member: string]: unknown };

export class Subject {
  readonly seq = signal(0);
  readonly isFollowing = signal(false);
  readonly stream = signal<State | null>(null);
  readonly frames: Frames;
  readonly answer: AnswerAt;
  /** Whether the answer is not yet that of the moment. */
  readonly isLate = computed(() => this.answer.seq.value !== this.seq.value);
  private readonly stop = new AbortController();
  private following: AbortController | null = null;
  private queue: Item[] = [];
  private isScheduled = false;
  /** How long the browser was busy with the last look. */
  private busyMs = 0;
  private writing: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly run: string,
    private readonly onEnd: () => void,
  ) {
    this.frames = new Frames(run, this.stop.signal);
    this.answer = new AnswerAt(run, this.frames, this.stop.signal);
  }

  close(): void {
    clearTimeout(this.writing);
    this.stop.abort();
    this.following?.abort();
  }

  /** Go to an event, and stop following. */
  move(seq: number): void {
    this.unfollow();
    const { first, last } = this.frames;
    this.show(Math.max(Math.min(Math.round(seq), last.peek() || seq), Math.min(first.peek(), last.peek())));
    this.writeAddress();
  }

  /** Show the events as they come. */
  follow(): void {
    if (this.isFollowing.peek()) return;
    const following = new AbortController();
    this.following = following;
    this.isFollowing.value = true;
    this.writeAddress();
    void this.read(following);
  }

  unfollow(): void {
    this.following?.abort();
    this.following = null;
    this.queue = [];
    this.stream.value = null;
    this.isFollowing.value = false;
  }

  /** Note how far the log reaches. */
  extend(last: number): void {
    if (last > this.frames.last.peek()) this.frames.extend(this.frames.first.peek(), last);
  }

  private show(seq: number): void {
    this.seq.value = seq;
    void this.frames.need(seq - AROUND, seq + AROUND);
    this.answer.want(seq);
  }

  private async read(following: AbortController): Promise<void> {
    const secret = token.peek();
    const client = connect({ url: base, ...(secret ? { token: secret } : {}) });
    const onState = (state: State): void => {
      if (!following.signal.aborted) this.stream.value = state;
    };
    try {
      const items = client.follow({ run: this.run }, { snapshot: true, signal: following.signal, onState });
      for await (const item of items as AsyncIterable<Item>) {
        if (following.signal.aborted) break;
        this.queue.push(item);
        this.schedule();
      }
      this.flush();
      // The state stays, so that the end and a failure can be read.
      if (this.following === following) this.isFollowing.value = false;
    } catch {
      // The state has the error.
      if (this.following === following) this.isFollowing.value = false;
    } finally {
      client.close();
      if (!this.stop.signal.aborted) this.onEnd();
    }
  }

  private schedule(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    // Hidden tabs have no frames.
    if (document.hidden) setTimeout(() => this.flush(), HIDDEN_MS);
    // Half of the time is left for the user's own input.
    else setTimeout(() => requestAnimationFrame(() => this.measured()), Math.min(this.busyMs, SLOWEST_MS));
  }

  /** Show what came, and measure how long the browser takes until the frame with the text is painted. */
  private measured(): void {
    const began = performance.now();
    this.flush();
    const painted = (): void => {
      this.busyMs = performance.now() - began;
    };
    requestAnimationFrame(() => setTimeout(painted));
  }

  /** Show everything that came since the last frame. */
  private flush(): void {
    this.isScheduled = false;
    const items = this.queue;
    if (!items.length) return;
    this.queue = [];
    batch(() => {
      for (const item of items) {
        if (item.message_type === "snapshot") {
          const snapshot = item as unknown as SnapshotState;
          this.answer.begin(snapshot);
          this.extend(snapshot.seq);
          void this.frames.need(snapshot.seq - AROUND, snapshot.seq);
          this.seq.value = snapshot.seq;
        } else if (item.seq_id) {
          this.answer.add(item);
          this.frames.add(frameOf(item));
          this.seq.value = item.seq_id;
        }
      }
    });
  }

  private writeAddress(): void {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => {
      const params: Record<string, number> = this.isFollowing.peek() ? {} : { seq: this.seq.peek() };
      replace(["inspector", this.run], params);
    }, ADDRESS_MS);
  }
}

/** The form that the event had on the way: members keep their order. */
function frameOf(item: Item): Frame {
  const name = item.message_type === "error_message" ? "event: error\n" : "";
  const frame = `${name}data: ${JSON.stringify(item)}\n\n`;
  return { seq: item.seq_id, type: item.message_type, at: new Date().toISOString(), bytes: encoder.encode(frame).length, frame };
}

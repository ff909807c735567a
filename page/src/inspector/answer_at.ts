/** The answer as of any event. */

import { signal } from "@preact/signals";
import { asApiError, type ApiError } from "../api";
import { Transcript } from "../chat/transcript";
import { getSnapshot, type SnapshotState } from "./facts";
import { eventOf, type Frames } from "./frames";

/** Events up to which going on from the answer that is shown is cheaper than a snapshot. */
const STEPS = 300;
const IDLE_MS = 100;

export class AnswerAt {
  readonly transcript = signal(new Transcript());
  /** The event as of which the transcript is. */
  readonly seq = signal(0);
  readonly error = signal<ApiError | null>(null);
  private wanted = 0;
  private isWorking = false;
  /** Counts the transcripts, so that an answer that comes too late is not shown. */
  private generation = 0;

  constructor(
    private readonly run: string,
    private readonly frames: Frames,
    private readonly stop: AbortSignal,
  ) {}

  /** Show the answer as of an event, soon. Of several wishes only the last one is fulfilled. */
  want(seq: number): void {
    this.wanted = seq;
    if (!this.isWorking) void this.work();
  }

  /** Begin with a snapshot that came with a stream. */
  begin(snapshot: SnapshotState): void {
    const transcript = new Transcript();
    for (const item of snapshot.messages) transcript.absorb(item, false);
    transcript.prepend([]);
    this.generation += 1;
    this.transcript.value = transcript;
    this.seq.value = this.wanted = snapshot.seq;
    this.error.value = null;
  }

  /** Take the next event of a stream. */
  add(event: { message_type: string; seq_id: number }): void {
    if (event.seq_id !== this.seq.peek() + 1) return;
    this.transcript.peek().absorb(event, true);
    this.seq.value = this.wanted = event.seq_id;
  }

  private step(seq: number): void {
    const event = eventOf(this.frames.get(seq)!);
    if (event?.seq_id !== this.seq.peek() + 1) return;
    this.transcript.peek().absorb(event, true);
    this.seq.value = seq;
  }

  private async work(): Promise<void> {
    this.isWorking = true;
    try {
      while (this.wanted !== this.seq.peek() && !this.stop.aborted) {
        await idle();
        const target = this.wanted;
        const at = this.seq.peek();
        if (at > 0 && target > at && target - at <= STEPS && this.frames.has(at + 1, target)) {
          for (let seq = at + 1; seq <= target; seq += 1) this.step(seq);
          if (this.seq.peek() === target) continue;
        }
        const generation = this.generation;
        const found = await getSnapshot(this.run, target, this.stop);
        if (this.generation !== generation) continue;
        const wanted = this.wanted;
        this.begin({ ...found, seq: target });
        this.wanted = wanted;
      }
      this.error.value = null;
    } catch (raised) {
      if (!this.stop.aborted) this.error.value = asApiError(raised);
    } finally {
      this.isWorking = false;
    }
  }
}

/** Return when the browser has nothing more urgent to do. */
function idle(): Promise<void> {
  return new Promise((resolve) => {
    // Safari has no idle callbacks.
    if ("requestIdleCallback" in window) requestIdleCallback(() => resolve(), { timeout: IDLE_MS });
    else setTimeout(resolve);
  });
}

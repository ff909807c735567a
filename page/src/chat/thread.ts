/** One conversation: what it shows, and the run that it follows. */

import { connect, Conflict, Gone, NotFound, Unauthorized, type RunStream, type State } from "@reattach/client";
import { signal, type Signal } from "@preact/signals";
import { asApiError, type ApiError } from "../api";
import { counted } from "../format";
import { base, refused, server, token } from "../session";
import { keep, load } from "../stored";
import { say } from "../toasts";
import { lineFetch, onMended, wasMeant } from "./line";
import { getRun, isActive, lastSeq, listMessages, listMessagesOfRun } from "./server";
import { Transcript, type Cut, type ImageSource } from "./transcript";

const PAGE_MESSAGES = 60;
const TICK_MS = 100;
const PROBE_MS = 500;
/** A loss that the user did not ask for is shown only after this long. */
export const QUIET_MS = 3000;

export interface Draft {
  text: string;
  images: ImageSource[];
}

/** A moment of the line, for the strip that is drawn. */
export interface Moment {
  at: number;
  seq: number;
  isLive: boolean;
}

export class Thread {
  readonly transcript = new Transcript();
  readonly state = signal<State>({ name: "idle" });
  /** When the connection was lost, in milliseconds since 1970; 0: it is there. */
  readonly lostAt = signal(0);
  /** Whether the loss is shown: at once if the user cut the line, else after a while. */
  readonly isLossShown = signal(false);
  readonly runId = signal<string | null>(null);
  readonly isActive = signal(false);
  readonly seq = signal(0);
  /** The newest event of the server, while the line is cut. */
  readonly ahead = signal<number | null>(null);
  readonly error = signal<ApiError | null>(null);
  readonly isLoaded = signal(false);
  readonly hasEarlier = signal(false);
  readonly isStopping = signal(false);
  readonly draft: Signal<Draft>;
  readonly moments: Moment[] = [];
  /** Called when a run of this conversation begins or ends. */
  onChange = (): void => {};

  private stream: RunStream<any> | null = null;
  private client: ReturnType<typeof connect>;
  private oldest: string | undefined;
  /** A message that waits until the earlier ones are loaded. */
  private queued: Draft | null = null;
  private cut: Signal<Cut> | null = null;
  private isClosed = false;
  /** Runs whose events were shown to their end. */
  private readonly ended = new Set<string>();
  private readonly leave: () => void;

  constructor(
    readonly conversation: string,
    readonly agent: string | null,
    /** The only run, where a token is for that alone. */
    private readonly onlyRun: string | null = null,
  ) {
    const kept = load("sessionStorage", `draft ${this.conversation} ${this.agent}`);
    this.draft = signal({ text: kept ?? "", images: [] });
    this.client = this.connected();
    this.leave = onMended(() => this.stream?.tryNow());
  }

  private connected(): ReturnType<typeof connect> {
    const secret = token.peek();
    const keepaliveMs = (server.peek()?.ping_interval_seconds ?? 15) * 1000;
    return connect({ url: base, fetch: lineFetch, keepaliveMs, ...(secret ? { token: secret } : {}) });
  }

  /** Load what is stored, and follow the active run. */
  async open(activeRun: string | null): Promise<void> {
    try {
      if (this.onlyRun) {
        this.isLoaded.value = true;
        return void this.follow(this.onlyRun);
      }
      const items = await listMessages(this.conversation, this.agent, PAGE_MESSAGES);
      if (this.isClosed) return;
      this.oldest = items[0]?.id;
      this.hasEarlier.value = items.length >= PAGE_MESSAGES;
      const outbox = JSON.parse(load("sessionStorage", this.outboxKey) ?? "null");
      // A token for a conversation lists no runs, but an active one has the newest messages.
      const newest = this.agent ? null : ([...items].reverse().find(({ run_id }) => run_id)?.run_id ?? null);
      const lastRun = newest ? await getRun(newest).catch(() => null) : null;
      if (this.isClosed) return;
      if (lastRun?.background && isActive(lastRun)) activeRun = lastRun.id;
      // The stream of a run brings all of it.
      const sentRun = outbox && items.find(({ otid }) => otid === outbox.otid)?.run_id;
      this.transcript.prepend(items.filter(({ run_id }) => !run_id || (run_id !== activeRun && run_id !== sentRun)));
      this.isLoaded.value = true;
      this.error.value = null;
      if (outbox) return this.resend(outbox);
      const queued = this.queued;
      this.queued = null;
      if (queued && !activeRun) this.send(queued);
      else if (activeRun) this.follow(activeRun);
    } catch (raised) {
      this.error.value = asApiError(raised);
    }
  }

  async loadEarlier(): Promise<void> {
    const items = await listMessages(this.conversation, this.agent, PAGE_MESSAGES, this.oldest);
    this.oldest = items[0]?.id ?? this.oldest;
    this.hasEarlier.value = items.length >= PAGE_MESSAGES;
    this.transcript.prepend(items);
  }

  /** Leave the conversation. Its run goes on. */
  close(): void {
    this.isClosed = true;
    this.leave();
    this.client.close();
  }

  /** Go on after signing in again. */
  renew(): void {
    this.client.close();
    this.client = this.connected();
    this.error.value = null;
    const run = this.runId.peek();
    if (!this.isLoaded.peek()) void this.open(run);
    else if (run && this.isActive.peek()) this.follow(run, this.seq.peek());
  }

  setDraft(draft: Draft): void {
    this.draft.value = draft;
    keep("sessionStorage", `draft ${this.conversation} ${this.agent}`, draft.text || null);
  }

  /** Follow a run that somebody else began. Does nothing if it is followed, or was. */
  notice(run: string, isActive: boolean): void {
    if (this.isActive.peek() || this.ended.has(run) || run === this.runId.peek()) return;
    if (isActive) this.follow(run);
    else {
      this.ended.add(run);
      void this.reload();
    }
  }

  /** Load the messages that came while nobody looked. */
  private async reload(): Promise<void> {
    const asked = this.onlyRun ? listMessagesOfRun(this.onlyRun) : listMessages(this.conversation, this.agent, PAGE_MESSAGES);
    const items = await asked.catch(() => []);
    for (const item of items) this.transcript.absorb(item, false);
    this.transcript.close();
  }

  send(draft: Draft): void {
    if (!this.isLoaded.peek()) {
      this.queued = draft;
      return;
    }
    const { text, images } = draft;
    const content =
      images.length === 0 ? text : [...(text ? [{ type: "text", text }] : []), ...images.map((source) => ({ type: "image", source }))];
    this.resend({ otid: newOtid(), input: [{ role: "user", content }], text, images });
    this.setDraft({ text: "", images: [] });
  }

  /** Send the decisions on all calls that wait. */
  decide(approvals: Array<Record<string, unknown>>): void {
    for (const block of this.transcript.pending()) {
      const decision = approvals.find(({ tool_call_id }) => tool_call_id === block.callId);
      if (!decision) continue;
      block.decision.value = decision.type === "tool" ? "answered" : decision.approve ? "approved" : "denied";
      if (decision.type === "tool") {
        block.result.value = { status: String(decision.status), text: String(decision.tool_return) };
      }
    }
    this.resend({ otid: newOtid(), input: [{ type: "approval", approvals }] });
  }

  async stop(): Promise<void> {
    this.isStopping.value = true;
    try {
      await this.client.cancel({ run: this.runId.peek()! });
    } catch (raised) {
      if (!(raised instanceof Conflict)) this.error.value = asApiError(raised);
    } finally {
      this.isStopping.value = false;
    }
  }

  tryNow(): void {
    this.stream?.tryNow();
  }

  /** Follow again after the client gave up. */
  again(): void {
    const run = this.runId.peek();
    this.error.value = null;
    if (run) this.follow(run, this.seq.peek());
    else void this.open(null);
  }

  private get outboxKey(): string {
    return `outbox ${this.conversation} ${this.agent}`;
  }

  /** Send a message. The same OTID makes one run, however often it is sent. */
  private resend(sent: { otid: string; input: Array<Record<string, unknown>>; text?: string; images?: ImageSource[] }): void {
    const { otid, input, text, images } = sent;
    keep("sessionStorage", this.outboxKey, JSON.stringify(sent));
    const key = `user ${otid}`;
    if (text !== undefined) this.transcript.send(key, text, images ?? []);
    this.error.value = null;
    const stream = this.client.send(this.conversation, input, {
      otid,
      ...(this.conversation === "default" && this.agent ? { agent: this.agent } : {}),
      onState: (state) => this.changed(state),
    });
    this.begin(stream, null, 0);
    stream.runId.then(
      () => keep("sessionStorage", this.outboxKey, null),
      (raised) => {
        if (this.isClosed || raised?.name === "AbortError" || raised instanceof Unauthorized) return;
        keep("sessionStorage", this.outboxKey, null);
        if (text === undefined) return this.undecide(input);
        this.transcript.remove(key);
        if (!this.draft.peek().text) this.setDraft({ text, images: images ?? [] });
      },
    );
  }

  /** Ask again for decisions that the server refused. */
  private undecide(input: Array<Record<string, unknown>>): void {
    const ids = (input[0]!.approvals as Array<{ tool_call_id: string }>).map(({ tool_call_id }) => tool_call_id);
    for (const block of this.transcript.blocks.peek()) {
      if (block.kind === "tool" && ids.includes(block.callId)) block.decision.value = block.result.value = null;
    }
  }

  private follow(run: string, after?: number): void {
    const onState = (state: State): void => this.changed(state);
    const stream =
      after === undefined
        ? this.client.follow({ run }, { snapshot: true, onState })
        : this.client.follow({ run }, { after, onState });
    this.begin(stream, run, after ?? 0);
  }

  private begin(stream: RunStream<any>, run: string | null, seq: number): void {
    this.stream = stream;
    this.runId.value = run;
    this.seq.value = seq;
    this.isActive.value = true;
    this.lostAt.value = 0;
    void this.read(stream);
    void stream.runId.then(
      (id) => {
        if (this.stream !== stream) return;
        this.runId.value = id;
        this.onChange();
      },
      () => {},
    );
  }

  private async read(stream: RunStream<any>): Promise<void> {
    try {
      for await (const item of stream) {
        if (item.message_type === "snapshot") {
          for (const message of item.messages) this.transcript.absorb(message, true);
        } else {
          this.transcript.absorb(item, true);
        }
        this.seq.value = stream.seq;
        this.mark();
      }
      const asked = this.transcript.pending().map(({ name }) => name.peek());
      if (asked.length) say(`Waiting for your decision on ${asked.join(", ")}.`);
      else say(`Answer finished, ${counted(stream.seq, "event")}.`);
    } catch (raised) {
      if (this.isClosed || stream !== this.stream) return;
      await this.failed(raised);
      if (raised instanceof Unauthorized) return;
    }
    if (stream !== this.stream) return;
    this.transcript.close();
    const run = this.runId.peek();
    if (run) this.ended.add(run);
    this.isActive.value = false;
    this.endCut();
    this.onChange();
  }

  private async failed(raised: unknown): Promise<void> {
    const error = asApiError(raised);
    if (raised instanceof Unauthorized) return refused(error.detail);
    const isGone = raised instanceof Gone;
    if (isGone || (raised instanceof NotFound && this.runId.peek())) {
      // Messages that were shown in part are shown whole.
      this.transcript.clear();
      const why = isGone ? "The events are past retention" : "The run was deleted";
      this.transcript.note(`gone ${this.runId.peek()}`, `${why}; the messages are below.`);
      return this.reload();
    }
    this.error.value = error;
  }

  /** Note the state of the connection, and begin or end the display of a loss. */
  private changed(state: State): void {
    this.state.value = state;
    if (state.name === "waiting" && !this.lostAt.peek()) {
      this.lostAt.value = Date.now();
      void this.watchLoss(this.lostAt.peek(), wasMeant());
    }
    if (state.name === "live" && this.lostAt.peek()) void this.reattached();
    this.mark();
  }

  /** Let the loss tick, and ask how far the server is meanwhile. */
  private async watchLoss(since: number, isMeant: boolean): Promise<void> {
    const seq = this.seq.peek();
    this.ahead.value = null;
    let probedAt = 0;
    while (this.lostAt.peek() === since && !this.isClosed) {
      const ms = Date.now() - since;
      if (!this.cut && (isMeant || ms >= QUIET_MS)) {
        this.isLossShown.value = true;
        this.cut = this.transcript.cut({ seq, ms, missed: null, isOver: false, isMeant });
      }
      if (Date.now() - probedAt >= PROBE_MS && isMeant) {
        probedAt = Date.now();
        void this.probe(since);
      }
      const ahead = this.ahead.peek();
      if (this.cut) this.cut.value = { seq, ms, missed: ahead === null ? null : ahead - seq, isOver: false, isMeant };
      this.mark();
      await new Promise((resolve) => setTimeout(resolve, TICK_MS));
    }
  }

  private async probe(since: number): Promise<void> {
    const run = this.runId.peek();
    if (!run) return;
    const seq = await lastSeq(run, this.seq.peek()).catch(() => null);
    if (seq === null || this.lostAt.peek() !== since) return;
    this.ahead.value = Math.max(seq, this.seq.peek());
    if (this.cut) this.cut.value = { ...this.cut.peek(), missed: this.ahead.peek()! - this.cut.peek().seq };
  }

  private async reattached(): Promise<void> {
    const cut = this.cut;
    const ms = Date.now() - this.lostAt.peek();
    this.lostAt.value = 0;
    this.isLossShown.value = false;
    this.cut = null;
    if (!cut) return;
    const { seq } = cut.peek();
    cut.value = { ...cut.peek(), ms, isOver: true };
    const run = this.runId.peek();
    const reached = run ? await lastSeq(run, this.seq.peek()).catch(() => this.seq.peek()) : this.seq.peek();
    const missed = Math.max(reached, this.seq.peek()) - seq;
    cut.value = { ...cut.peek(), missed };
    this.ahead.value = null;
    say(`Reattached after ${(ms / 1000).toFixed(1)} seconds, ${counted(missed, "event")}.`);
  }

  private endCut(): void {
    this.lostAt.value = 0;
    this.isLossShown.value = false;
    if (this.cut) this.cut.value = { ...this.cut.peek(), isOver: true };
    this.cut = null;
  }

  private mark(): void {
    const now = Date.now();
    const isLive = this.lostAt.peek() === 0;
    const last = this.moments[this.moments.length - 1];
    if (last && last.isLive === isLive && now - last.at < TICK_MS / 2) last.seq = this.seq.peek();
    else this.moments.push({ at: now, seq: this.seq.peek(), isLive });
    if (this.moments.length > 2000) this.moments.splice(0, 1000);
  }
}

/** Return an OTID. `crypto.randomUUID` exists only over HTTPS and on this machine. */
function newOtid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

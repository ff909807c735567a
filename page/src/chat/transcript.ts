/** The parts of a conversation as they are shown, folded from stored messages and from events. */

import { batch, signal, type Signal } from "@preact/signals";

export interface ImageSource {
  type: "base64" | "url" | string;
  media_type?: string;
  data?: string;
  url?: string;
}

export interface ToolResult {
  status: string;
  text: string;
}

interface Keyed {
  key: string;
}

export type Block =
  | (Keyed & { kind: "user"; text: string; images: ImageSource[]; runId: string | null })
  | (Keyed & { kind: "answer"; text: Signal<string>; isWhole: Signal<boolean>; marks: Signal<Mark[]> })
  | (Keyed & { kind: "reasoning"; text: Signal<string>; isWhole: Signal<boolean>; tookMs: Signal<number | null> })
  | (Keyed & {
      kind: "tool";
      callId: string;
      name: Signal<string>;
      args: Signal<string>;
      result: Signal<ToolResult | null>;
      /** Whether the call waits for a decision until it has a result. */
      asks: Signal<boolean>;
      /** The user's decision, once it was sent. */
      decision: Signal<string | null>;
    })
  | (Keyed & { kind: "note"; tone: "plain" | "bad"; text: string; code?: string })
  | (Keyed & { kind: "cut"; cut: Signal<Cut> });

/** A loss of the connection in the middle of a text, at a number of its characters. */
export interface Mark {
  at: number;
  cut: Signal<Cut>;
}

/** A loss of the connection during an answer. */
export interface Cut {
  seq: number;
  ms: number;
  /** How many events came meanwhile, as far as known. */
  missed: number | null;
  isOver: boolean;
  /** Whether the user cut the line. */
  isMeant: boolean;
}

type Item = { message_type: string; id?: string; otid?: string | null; [member: string]: any };
type BlockOf<K extends Block["kind"]> = Extract<Block, { kind: K }>;

/** Reasons for which a run stops as it should. */
const USUAL_ENDS = ["end_turn", "requires_approval", "stop_sequence", "tool_rule"];

export class Transcript {
  readonly blocks = signal<Block[]>([]);
  /** Whether there was anything but calls that are decided. */
  private readonly known = new Map<string, Block>();
  private readonly waiting = new Map<Signal<string>, string>();
  private readonly begun = new Map<string, number>();
  private isScheduled = false;
  private open: BlockOf<"answer"> | BlockOf<"reasoning"> | null = null;
  private count = 0;

  /** Add stored messages before everything else, oldest first. */
  prepend(items: Item[]): void {
    const earlier = new Transcript();
    for (const item of items) earlier.absorb(item, false);
    earlier.flush();
    earlier.close();
    for (const [key, block] of earlier.known) if (!this.known.has(key)) this.known.set(key, block);
    const mine = new Set(this.blocks.peek().map(({ key }) => key));
    this.blocks.value = [...earlier.blocks.peek().filter(({ key }) => !mine.has(key)), ...this.blocks.peek()];
  }

  /** Take a stored message, or an event if it `isLive`: then its text continues what came before. */
  absorb(item: Item, isLive: boolean): void {
    switch (item.message_type) {
      case "user_message":
        return this.user(item);
      case "assistant_message":
        return this.text("answer", item, textOf(item.content), isLive);
      case "reasoning_message":
        return this.text("reasoning", item, String(item.reasoning ?? ""), isLive);
      case "hidden_reasoning_message":
        return this.text("reasoning", item, item.hidden_reasoning ?? "(The provider keeps this reasoning to itself.)", isLive);
      case "tool_call_message":
      case "approval_request_message":
        this.close();
        for (const call of callsOf(item)) this.call(call, item.message_type === "approval_request_message", isLive);
        return;
      case "tool_return_message":
        this.close();
        for (const one of item.tool_returns?.length ? item.tool_returns : [item]) this.result(one);
        return;
      case "approval_response_message":
        for (const one of item.approvals ?? []) {
          const block = this.known.get(`call ${one.tool_call_id}`);
          if (block?.kind === "tool") block.decision.value = one.approve === false ? "denied" : "approved";
        }
        return;
      case "summary_message":
        this.close();
        return this.note(`note ${item.id}`, `Summary of the conversation so far: ${textOf(item.summary)}`);
      case "stop_reason":
        this.flush();
        this.close();
        if (USUAL_ENDS.includes(item.stop_reason) || /error/.test(item.stop_reason)) return;
        return this.note(`end ${item.run_id}`, item.stop_reason === "cancelled" ? "Stopped." : `Ended: ${item.stop_reason}.`);
      case "error_message":
        return this.note(`error ${item.run_id}`, item.message ?? "The run failed.", "bad", item.error_type);
    }
  }

  /** Show a message that is about to be sent. */
  send(key: string, text: string, images: ImageSource[]): void {
    this.close();
    this.put({ kind: "user", key, text, images, runId: null });
  }

  note(key: string, text: string, tone: "plain" | "bad" = "plain", code?: string): void {
    if (!this.known.has(key)) this.put({ kind: "note", key, tone, text, ...(code ? { code } : {}) });
  }

  /** Show that the line is cut, at the place where the answer is. */
  cut(cut: Cut): Signal<Cut> {
    this.flush();
    const shown = signal(cut);
    const open = this.open;
    if (open?.kind === "answer") {
      open.marks.value = [...open.marks.peek(), { at: open.text.peek().length, cut: shown }];
      return shown;
    }
    this.put({ kind: "cut", key: `cut ${++this.count} ${cut.seq}`, cut: shown });
    this.open = open;
    return shown;
  }

  /** Forget everything, because the messages are loaded again. */
  clear(): void {
    this.waiting.clear();
    this.known.clear();
    this.open = null;
    this.blocks.value = [];
  }

  remove(key: string): void {
    this.known.delete(key);
    this.blocks.value = this.blocks.peek().filter((block) => block.key !== key);
  }

  /** The calls that wait for a decision. */
  pending(): BlockOf<"tool">[] {
    return this.blocks.value.filter(
      (block): block is BlockOf<"tool"> => block.kind === "tool" && block.asks.value && !block.result.value && !block.decision.value,
    );
  }

  /** Mark the text that is being written as whole. */
  close(): void {
    const open = this.open;
    if (!open) return;
    this.flush();
    this.open = null;
    open.isWhole.value = true;
    const began = this.begun.get(open.key);
    if (open.kind === "reasoning" && began !== undefined) open.tookMs.value = performance.now() - began;
  }

  private user(item: Item): void {
    this.close();
    const content: unknown = item.content;
    const parts = Array.isArray(content) ? content : [];
    const key = `user ${item.otid ?? item.id}`;
    if (this.known.has(key)) return;
    const images = parts.filter(({ type }) => type === "image").map(({ source }) => source as ImageSource);
    this.put({ kind: "user", key, text: textOf(content), images, runId: item.run_id ?? null });
  }

  private text(kind: "answer" | "reasoning", item: Item, piece: string, isLive: boolean): void {
    const key = `${kind} ${item.id} ${item.otid}`;
    let block = this.known.get(key) as BlockOf<typeof kind> | undefined;
    if (!block) {
      if (!piece.trim()) return;
      this.close();
      const text = signal("");
      const isWhole = signal(false);
      block = kind === "answer" ? { kind, key, text, isWhole, marks: signal<Mark[]>([]) } : { kind, key, text, isWhole, tookMs: signal<number | null>(null) };
      this.put(block);
      if (isLive) this.begun.set(key, performance.now());
    } else if (!isLive) {
      return;
    }
    this.open = block;
    this.waiting.set(block.text, (this.waiting.get(block.text) ?? "") + piece);
    this.schedule();
  }

  private call(call: Item, asks: boolean, isLive: boolean): void {
    const key = `call ${call.tool_call_id}`;
    let block = this.known.get(key);
    if (!block) {
      block = {
        kind: "tool",
        key,
        callId: call.tool_call_id,
        name: signal(call.name ?? ""),
        args: signal(""),
        result: signal<ToolResult | null>(null),
        asks: signal(asks),
        decision: signal<string | null>(null),
      };
      this.put(block);
    } else if (!isLive) {
      return;
    }
    if (block.kind !== "tool") return;
    if (call.name) block.name.value = call.name;
    if (call.arguments) block.args.value += call.arguments;
  }

  private result(one: Item): void {
    const block = this.known.get(`call ${one.tool_call_id}`);
    if (block?.kind === "tool") block.result.value = { status: one.status, text: textOf(one.tool_return) };
  }

  private put(block: Block): void {
    this.known.set(block.key, block);
    this.blocks.value = [...this.blocks.peek(), block];
  }

  private schedule(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    // Hidden tabs have no frames.
    if (document.hidden) setTimeout(() => this.flush(), 100);
    else requestAnimationFrame(() => this.flush());
  }

  /** Show everything that came since the last frame. */
  private flush(): void {
    this.isScheduled = false;
    if (this.waiting.size === 0) return;
    batch(() => {
      for (const [text, more] of this.waiting) text.value += more;
    });
    this.waiting.clear();
  }
}

function callsOf(item: Item): Item[] {
  const calls = item.tool_calls ?? item.tool_call ?? [];
  return Array.isArray(calls) ? calls : [calls];
}

/** Return the text of a content: a string, or a list of parts. */
export function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content === null || content === undefined ? "" : JSON.stringify(content);
  return content
    .filter((part) => part?.type === "text")
    .map((part) => part.text)
    .join("\n\n");
}

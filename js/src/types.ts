import type { ReattachError } from "./errors.js";

/** Members that every event of a run has. */
export interface Numbered {
  run_id: string;
  /** The position of the event in its run: 1, 2, 3 … */
  seq_id: number;
}

interface Kept extends Numbered {
  id: string;
  date: string;
  otid: string | null;
  step_id: string | null;
}

export interface ToolCall {
  name: string | null;
  /** JSON text, or a piece of it. */
  arguments: string;
  tool_call_id: string;
}

export interface ToolReturn {
  name: string;
  tool_return: string;
  status: "success" | "error";
  tool_call_id: string;
  stdout: string[] | null;
  stderr: string[] | null;
}

/** An event of a run, as the server sends it. Events of later servers may have further kinds. */
export type RunEvent =
  | (Kept & { message_type: "assistant_message"; content: string })
  | (Kept & { message_type: "reasoning_message"; reasoning: string; signature: string | null })
  | (Kept & { message_type: "hidden_reasoning_message"; hidden_reasoning: string | null })
  | (Kept & { message_type: "tool_call_message"; tool_call: ToolCall })
  | (Kept & { message_type: "approval_request_message"; tool_call: ToolCall })
  | (Kept & { message_type: "tool_return_message"; tool_returns: ToolReturn[] } & ToolReturn)
  | (Kept & { message_type: "event_message"; event_type: string })
  | (Kept & { message_type: "summary_message"; summary: string })
  | (Kept & { message_type: "ping" })
  | (Numbered & { message_type: "stop_reason"; stop_reason: string })
  | (Numbered & {
      message_type: "error_message";
      error_type: string;
      message: string;
      detail: string | null;
    })
  | (Numbered & {
      message_type: "usage_statistics";
      completion_tokens: number;
      prompt_tokens: number;
      total_tokens: number;
      step_count: number;
    });

/** The messages of a run as of event `seq`. */
export interface Snapshot {
  run_id: string;
  conversation_id: string | null;
  status: string;
  stop_reason: string | null;
  seq: number;
  messages: Array<{ id: string; message_type: string; [member: string]: unknown }>;
}

/** The first item of a stream that was followed with `snapshot: true`. */
export type SnapshotEvent = Snapshot & { message_type: "snapshot" };

/** A run of `many()` that cannot be followed. It ends no other run. */
export interface RunError {
  message_type: "run_error";
  run_id: string;
  status: number;
  code: string;
  detail: string;
}

/** The state of a stream. */
export type State =
  | { name: "idle" }
  | { name: "connecting" }
  /** Connected: events come as the server logs them. */
  | { name: "live" }
  /** The connection was lost; the next attempt comes after `ms`, or at `tryNow()`. */
  | { name: "waiting"; attempt: number; ms: number; reason: string }
  /** Waiting for a fresh token. */
  | { name: "renewing" }
  /** All events were yielded. `status` is the run's stop reason, if its event came. */
  | { name: "ended"; status: string | undefined }
  | { name: "failed"; error: ReattachError }
  /** The consumer left, or aborted. */
  | { name: "closed" };

/** The run to follow. */
export type Target =
  | { run: string }
  /** The active run of the conversation; with a `storage`, the run that this page followed there. */
  | { conversation: string; agent?: string }
  /** The newest run that a message with this OTID started. A conversation's token needs `conversation`. */
  | { otid: string; conversation?: string };

/** A token, or the answer of `POST /v1/tokens`. */
export type Token = string | { token: string; expires_at: string };

/**
 * Returns a token. With `fresh`, the one before has expired or is about to, or was refused.
 *
 * A ReattachError from it ends the stream; after every other error it is asked again.
 */
export type TokenSource = string | ((ask: { fresh: boolean }) => Token | Promise<Token>);

/** `sessionStorage`, or anything with these methods. It may throw. */
export interface Store {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface Options {
  /** Address of the server, such as `https://example.org/reattach`; `/v1` may follow. */
  url: string;
  /** An API key or a stream token, or a function that gets one. None: without authorization. */
  token?: TokenSource;
  /** Replaces the global `fetch`. */
  fetch?: typeof fetch;
  /**
   * Keeps the OTID, the run and the cursor of each conversation over a reload. Give it if the page
   * keeps what it has shown, or follows with `snapshot: true`. A store of several tabs, such as
   * `localStorage`, would mix their cursors.
   */
  storage?: Store;
  /** `tabs`: one connection for all tabs of the origin, where the browser can do that. */
  share?: "tabs" | false;
  backoff?: {
    /** Bound of the second wait in milliseconds, by default 250. The first retry is immediate. */
    firstMs?: number;
    /** Bound of all waits, by default 15,000. */
    lastMs?: number;
  };
  /** The server's interval of keepalives, by default 15,000. Three of it without a byte: lost. */
  keepaliveMs?: number;
  /** How long a visible page retries without a sign of life, by default 600,000. */
  giveUpMs?: number;
  /** How long a token function may take, by default 10,000. */
  tokenMs?: number;
}

export interface StreamOptions {
  /** Ends the iteration with its reason. The run goes on. */
  signal?: AbortSignal;
  /** Called with each change of the state. */
  onState?: (state: State) => void;
}

export interface FollowOptions extends StreamOptions {
  /** The seq of the last event that the page has; 0 or absent: from the start. */
  after?: number;
  /** Begin with the messages so far in one item, then the events after it. */
  snapshot?: boolean;
}

export interface SendOptions extends StreamOptions {
  /** The idempotency key of the message; made if absent. */
  otid?: string;
  /** The agent, with the conversation `default`. */
  agent?: string;
  clientTools?: Array<{ name: string; description?: string; parameters?: object }>;
  /** Further members of the request, such as `override_model`. */
  body?: Record<string, unknown>;
}

/** A text, or messages: input of the user, or answers to approval requests. */
export type Input = string | ReadonlyArray<Record<string, unknown>>;

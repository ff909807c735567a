/** A run as the Inspector asks for it. */

import { api } from "../api";
import { asRow, type PlainRun, type RunRow } from "../runs/list";
import { may } from "../session";

export interface Attempt {
  number: number;
  owner: string | null;
  /** The fencing token. */
  token: number | null;
  began_at: string;
  ended_at: string | null;
  after_seq: number | null;
  first_seq: number | null;
  way: string | null;
  interruption: string | null;
}

export interface ToolCall {
  id: string;
  name: string;
  began_seq: number | null;
  ended_seq: number | null;
  began_at: string | null;
  ended_at: string | null;
  status: string | null;
}

export interface Step {
  id: string;
  model: string | null;
  began_at: string | null;
  ended_at: string | null;
  usage: { prompt_tokens?: number; completion_tokens?: number } | null;
}

export interface Reader {
  process: string | null;
  client: string;
  transport: string;
  cursor: number;
  lag_events: number;
  since: string;
}

export interface CutOff {
  at: string;
  reason: string;
  cursor: number;
  client: string;
  transport: string;
  process: string | null;
}

export interface RunFacts extends RunRow {
  /** Whether the operator's API gave them; else the lists below are not known. */
  isWhole: boolean;
  last_seq: number | null;
  log: "open" | "closed" | "deleted" | "lost" | null;
  log_deleted_at: string | null;
  attempt_list: Attempt[];
  steps: Step[];
  tool_calls: ToolCall[];
  readers_list: Reader[];
  cut_offs: CutOff[];
  usage: { prompt_tokens: number; completion_tokens: number } | null;
}

export interface Timeline {
  first_seq: number;
  last_seq: number;
  began_at: string;
  commits: Array<{ seq: number; at: string }>;
  gaps: Array<{ after_seq: number; seconds: number }>;
  /** Events without times. */
  missing: Array<{ first_seq: number; last_seq: number }>;
}

export interface Frame {
  seq: number;
  type: string;
  at: string | null;
  bytes: number;
  /** The event in the bytes that its readers got. */
  frame: string;
}

export interface FramePage {
  first_seq: number;
  last_seq: number;
  items: Frame[];
}

/** Return the error with which a run failed. */
export function problemOf({ error }: RunFacts): { text: string; code: string } | null {
  if (!error) return null;
  const { error_type: code = "", message, detail } = Object(error) as Record<string, string | undefined>;
  const text = typeof error === "string" ? error : [message, detail !== message && detail].filter(Boolean).join(" ");
  return { text: text || "The run failed.", code };
}

const BUCKETS = 600;

const path = (run: string, more = ""): string => `v1/runs/${encodeURIComponent(run)}${more}`;

export async function getFacts(run: string, signal?: AbortSignal): Promise<RunFacts> {
  if (may("admin") || may("operator")) {
    const found = await api<RunFacts>(`v1/admin/runs/${encodeURIComponent(run)}`, { signal });
    return { ...found, isWhole: true };
  }
  const plain = await api<PlainRun>(path(run), { signal });
  const nothing = { attempt_list: [], steps: [], tool_calls: [], readers_list: [], cut_offs: [], usage: null };
  return { ...asRow(plain), ...nothing, isWhole: false, last_seq: null, log: null, log_deleted_at: null };
}

export const getTimeline = (run: string, signal?: AbortSignal): Promise<Timeline> =>
  api(path(run, "/timeline"), { query: { buckets: BUCKETS }, signal });

export interface FrameQuery {
  after_seq?: number;
  before_seq?: number;
  limit?: number;
}

export const getFrames = (run: string, query: FrameQuery, signal?: AbortSignal): Promise<FramePage> =>
  api(path(run, "/frames"), { query: { ...query }, signal });

export interface SnapshotState {
  seq: number;
  messages: Array<{ message_type: string; id: string }>;
}

export const getSnapshot = (run: string, seq: number, signal?: AbortSignal): Promise<SnapshotState> =>
  api(path(run, "/snapshot"), { query: { seq }, signal });

export const getMessages = (run: string, signal?: AbortSignal): Promise<SnapshotState["messages"]> =>
  api(path(run, "/messages"), { query: { limit: 200, order: "asc" }, signal });

export const cancelRun = (run: string): Promise<unknown> => api(path(run, "/cancel"), { method: "POST" });

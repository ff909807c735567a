/** The server as the operator's API shows it. */

import { shortId } from "../format";

export interface Operation {
  operation: string;
  count: number;
  p50_seconds: number | null;
  p99_seconds: number | null;
}

export interface Process {
  id: string;
  host: string | null;
  pid: number | null;
  worker: number | null;
  version: string;
  started_at: string;
  reported_at: string;
  is_this: boolean;
  draining: boolean;
  open_runs: number;
  readers: number;
  connections: number | null;
  memory_bytes: number | null;
  event_loop_lag_seconds: number | null;
  lease: { seconds: number; margin_seconds: number | null } | null;
  stores: Array<{ store: string; backend: string; operations: Operation[] }>;
}

export interface Finding {
  check: string;
  level: "ok" | "warning" | "wrong";
  detail: string;
  remedy: string;
}

export interface Findings {
  items: Finding[];
  audit: Array<{ process: string; kind: string; count: number }>;
  checked_at: string | null;
}

export interface Tenant {
  tenant: string;
  agents: number;
  conversations: number;
  keys: number;
  active_runs: number;
  runs_last_day: number;
  prompt_tokens_last_day: number;
  completion_tokens_last_day: number;
  last_run_at: string | null;
  quotas: Array<{ name: string; used: number | null; limit: number | null }>;
}

export interface Key {
  id: string;
  name: string;
  prefix: string;
  tenant: string;
  scopes: string[];
  state: "active" | "expired" | "revoked";
  created_at: string;
  expires_at: string | null;
  last_used_at: string | null;
}

export interface AuditEntry {
  id: string;
  at: string;
  tenant: string | null;
  actor: { kind: string; id: string | null; name: string | null };
  action: string;
  subject: string | null;
  detail: Record<string, unknown>;
}

/** Return how people call a process. */
export function nameOf({ worker, host, pid, id }: Process): string {
  const place = host && pid !== null ? `${host}:${pid}` : shortId(id);
  return worker === null ? place : `worker ${worker} · ${place}`;
}

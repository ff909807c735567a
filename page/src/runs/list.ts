/** The runs that the view shows, newest first. They are kept by id while pages of them come. */

import { signal } from "@preact/signals";
import { api } from "../api";

export interface RunRow {
  id: string;
  tenant: string;
  status: "created" | "running" | "completed" | "failed" | "cancelled";
  stop_reason: string | null;
  agent_id: string;
  agent_name: string | null;
  conversation_id: string | null;
  model: string | null;
  background: boolean;
  created_at: string;
  completed_at: string | null;
  first_event_seconds: number | null;
  events: number | null;
  events_per_second: number | null;
  bytes: number | null;
  attempts: number | null;
  readers: number | null;
  owner: string | null;
  worker: number | null;
  cancel_requested_at: string | null;
  input_preview: string | null;
  error: unknown;
}

export interface RunPage {
  items: RunRow[];
  active: number | null;
  total: number | null;
  has_more: boolean;
}

export interface Filter {
  query: string;
  /** `""` for all, `active`, or a status of the API. */
  status: string;
  model: string;
  agent_id: string;
  tenant: string;
}

const PAGE = 100;
const ALL_ACTIVE = 1000;
const MOST_AGENTS = 1000;
const ACTIVE = ["created", "running"];

export const isActive = ({ status }: { status: string }): boolean => ACTIVE.includes(status);

export class RunList {
  readonly rows = signal<RunRow[]>([]);
  readonly active = signal<number | null>(null);
  readonly total = signal<number | null>(null);
  readonly hasMore = signal(false);
  private readonly byId = new Map<string, RunRow>();
  private isPaging = false;
  /** Names of agents by their ids, where the runs do not bring them. */
  private names: Map<string, string> | null = null;

  constructor(
    private readonly filter: Filter,
    /** Whether the key may use the operator's API; else the runs have fewer members. */
    private readonly isAdmin: boolean,
    private readonly pageSize = PAGE,
  ) {}

  /** Get the newest runs, and the state of those active ones that are further down. */
  async look(stop: AbortSignal): Promise<true> {
    const page = await this.page({}, stop);
    const isFirst = this.byId.size === 0;
    const seen = new Set(page.items.map(({ id }) => id));
    // Everything newer than the last item of the page, and absent from it, was deleted or no longer fits.
    const oldest = page.items[page.items.length - 1];
    for (const row of this.byId.values()) {
      const isCovered = !page.has_more || (oldest && order(row, oldest) < 0);
      if (isCovered && !seen.has(row.id)) this.byId.delete(row.id);
    }
    for (const row of page.items) this.byId.set(row.id, row);
    const others = [...this.byId.values()].filter((row) => isActive(row) && !seen.has(row.id));
    if (others.length) await this.refresh(others, stop);
    this.active.value = page.active;
    this.total.value = page.total;
    if (isFirst || !page.has_more) this.hasMore.value = page.has_more;
    this.show();
    return true;
  }

  /** Get the page after the last run that is shown. */
  async more(): Promise<void> {
    const last = this.rows.peek()[this.rows.peek().length - 1];
    if (this.isPaging || !this.hasMore.peek() || !last) return;
    this.isPaging = true;
    try {
      const page = await this.page({ after: last.id });
      for (const row of page.items) this.byId.set(row.id, row);
      this.hasMore.value = page.has_more;
      this.show();
    } finally {
      this.isPaging = false;
    }
  }

  private async refresh(rows: RunRow[], stop: AbortSignal): Promise<void> {
    const page = await this.page({ status: ACTIVE, limit: ALL_ACTIVE }, stop);
    const active = new Map(page.items.map((row) => [row.id, row]));
    for (const row of rows) {
      const found = active.get(row.id) ?? (await this.one(row.id, stop));
      if (found) this.byId.set(row.id, found);
      else this.byId.delete(row.id);
    }
  }

  private async page(more: { after?: string; status?: string[]; limit?: number }, stop?: AbortSignal): Promise<RunPage> {
    const { status, ...filter } = this.filter;
    const statuses = more.status ?? (status === "active" ? ACTIVE : status ? [status] : []);
    const limit = more.limit ?? this.pageSize;
    if (this.isAdmin) {
      const query = { ...filter, status: statuses, limit, ...(more.after ? { after: more.after } : {}) };
      return api<RunPage>("v1/admin/runs", { query, signal: stop });
    }
    const query = { agent_id: filter.agent_id, statuses, limit: limit + 1, ...(more.after ? { after: more.after } : {}) };
    const found = await api<PlainRun[]>("v1/runs/", { query, signal: stop });
    const names = await this.namesOf(found, stop);
    const items = found
      .slice(0, limit)
      .map((run) => ({ ...asRow(run), agent_name: names.get(run.agent_id) || null }))
      .filter(({ id }) => id.includes(filter.query));
    return { items, active: null, total: null, has_more: found.length > limit };
  }

  /** Return the names of agents. They are asked for again when a run of a new one comes. */
  private async namesOf(runs: PlainRun[], stop?: AbortSignal): Promise<Map<string, string>> {
    if (this.names && runs.every(({ agent_id }) => this.names!.has(agent_id))) return this.names;
    const names = new Map(this.names);
    const agents = await api<Array<{ id: string; name: string }>>("v1/agents/", { query: { limit: MOST_AGENTS }, signal: stop });
    for (const { id, name } of agents) names.set(id, name);
    // Deleted agents have no name any more.
    for (const { agent_id } of runs) if (!names.has(agent_id)) names.set(agent_id, "");
    return (this.names = names);
  }

  private async one(id: string, stop: AbortSignal): Promise<RunRow | null> {
    try {
      const path = encodeURIComponent(id);
      if (this.isAdmin) return await api<RunRow>(`v1/admin/runs/${path}`, { signal: stop });
      const row = asRow(await api<PlainRun>(`v1/runs/${path}`, { signal: stop }));
      return { ...row, agent_name: this.names?.get(row.agent_id) || null };
    } catch (error) {
      if (stop.aborted) throw error;
      return null;
    }
  }

  private show(): void {
    this.rows.value = [...this.byId.values()].sort(order);
  }
}

/** A run as clients without the scope `admin` see it. */
export interface PlainRun {
  id: string;
  agent_id: string;
  conversation_id: string | null;
  status: RunRow["status"];
  stop_reason: string | null;
  background: boolean;
  created_at: string;
  completed_at: string | null;
  metadata: { error?: unknown; attempts?: unknown[] };
}

export function asRow({ metadata, ...run }: PlainRun): RunRow {
  const unknown = { agent_name: null, model: null, first_event_seconds: null, events: null, events_per_second: null };
  const more = { bytes: null, readers: null, owner: null, worker: null, cancel_requested_at: null, input_preview: null };
  return { ...unknown, ...more, ...run, tenant: "", attempts: metadata?.attempts?.length ?? 1, error: metadata?.error ?? null };
}

function order(a: RunRow, b: RunRow): number {
  if (a.created_at !== b.created_at) return a.created_at < b.created_at ? 1 : -1;
  return a.id < b.id ? 1 : -1;
}

/** Agents, conversations and runs as the API has them. */

import { api } from "../api";
import { textOf } from "./transcript";

export interface Agent {
  id: string;
  name: string;
  model: string | null;
  system: string | null;
}

export interface Conversation {
  id: string;
  agent_id: string;
  summary: string | null;
  last_message_at: string | null;
  created_at: string;
}

export interface Run {
  id: string;
  agent_id: string;
  conversation_id: string | null;
  status: string;
  background: boolean;
  created_at: string;
}

export interface Model {
  handle: string;
  display_name: string;
}

export const isActive = (run: Run): boolean => run.status === "created" || run.status === "running";

export const listAgents = (signal?: AbortSignal): Promise<Agent[]> => api("v1/agents/", { query: { limit: 200 }, signal });
export const listModels = (): Promise<Model[]> => api("v1/models/");
export const listConversations = (agent: string, signal?: AbortSignal): Promise<Conversation[]> =>
  api("v1/conversations/", { query: { agent_id: agent, limit: 200 }, signal });
export const listRuns = (agent: string, signal?: AbortSignal): Promise<Run[]> =>
  api("v1/runs/", { query: { agent_id: agent, limit: 20 }, signal });

export const getRun = (run: string): Promise<Run> => api(`v1/runs/${encodeURIComponent(run)}`);

export interface Message {
  id: string;
  message_type: string;
  run_id: string | null;
  [member: string]: unknown;
}

/** Return the messages of a run, oldest first. */
export const listMessagesOfRun = (run: string): Promise<Message[]> =>
  api(`v1/runs/${encodeURIComponent(run)}/messages`, { query: { order: "asc", limit: 1000 } });

/** Return a page of messages, oldest first: the newest ones, or those before a message. */
export async function listMessages(
  conversation: string,
  agent: string | null,
  limit: number,
  before?: string,
): Promise<Message[]> {
  const query = { limit, before, order: "desc", agent_id: conversation === "default" ? agent : null };
  const page = await api<Message[]>(`v1/conversations/${encodeURIComponent(conversation)}/messages`, { query });
  // The parts of a message share its id, and are in order within it.
  const messages: Message[][] = [];
  for (const item of page) {
    const last = messages[messages.length - 1];
    if (last?.[0]!.id === item.id) last!.push(item);
    else messages.push([item]);
  }
  return messages.reverse().flat();
}

const TITLE_CHARS = 60;

/** Return a text as a title: without marks of Markdown, and short. */
export const titleFrom = (text: string): string =>
  text.replace(/\[\w+=[^\]]*\]|[#*`>|]/g, "").replace(/\s+/g, " ").trim().slice(0, TITLE_CHARS);

/** Return the beginning of the first message of a conversation; empty: there is none. */
export async function firstText(conversation: string): Promise<string> {
  const page = await api<Message[]>(`v1/conversations/${encodeURIComponent(conversation)}/messages`, { query: { limit: 5, order: "asc" } });
  return titleFrom(textOf(page.find(({ message_type }) => message_type === "user_message")?.content));
}

/** Return the newest event of a run, of which the page has those until `seq`. */
export async function lastSeq(run: string, seq: number): Promise<number> {
  const query = { after_seq: seq, limit: 1 };
  return (await api<{ last_seq: number }>(`v1/runs/${encodeURIComponent(run)}/frames`, { query })).last_seq;
}

import type { RunEvent, SnapshotEvent } from "@reattach/client";

/** An item of a stream that may begin with a snapshot. */
export type Item = RunEvent | SnapshotEvent;

export interface Message {
  id: string;
  author: "user" | "agent" | "error";
  text: string;
}

/** A message as the server lists it. */
export interface Listed {
  id: string;
  message_type: string;
  otid?: unknown;
  content?: unknown;
}

/** Return the messages of a person and an agent. A person's message is named by its OTID, as it was sent. */
export function shownOf(listed: readonly Listed[]): Message[] {
  return listed.flatMap(({ id, message_type: type, otid, content }): Message[] => {
    if (typeof content !== "string") return []; // Pictures, for example.
    if (type === "user_message") return [{ id: String(otid ?? id), author: "user", text: content }];
    return type === "assistant_message" ? [{ id, author: "agent", text: content }] : [];
  });
}

/** Return the messages of an answer with the next item of its stream. */
export function withItem(answer: readonly Message[], item: Item): readonly Message[] {
  if (item.message_type === "snapshot") return merged(answer, shownOf(item.messages));
  if (item.message_type === "error_message") {
    return merged(answer, [{ id: item.run_id, author: "error", text: item.message }]);
  }
  if (item.message_type !== "assistant_message") return answer;
  const before = answer.find(({ id }) => id === item.id)?.text ?? "";
  return merged(answer, [{ id: item.id, author: "agent", text: before + item.content }]);
}

/** Return the messages with others, which take the place of those with the same id. */
export function merged(messages: readonly Message[], others: readonly Message[]): readonly Message[] {
  const known = new Set(messages.map(({ id }) => id));
  const newer = new Map(others.map((message) => [message.id, message]));
  const kept = messages.map((message) => newer.get(message.id) ?? message);
  return [...kept, ...others.filter(({ id }) => !known.has(id))];
}

import { useEffect, useMemo, useSyncExternalStore } from "react";
import type { Client } from "@reattach/client";
import { Conversation } from "./conversation.js";
import type { Message } from "./messages.js";

/** Show a conversation, and its answers as they come. `list` returns the messages that the server has. */
export function useAnswer(client: Client, id: string, list: (id: string) => Promise<Message[]>) {
  const conversation = useMemo(() => new Conversation(client, id, list), [client, id, list]);
  const { messages, state } = useSyncExternalStore(conversation.subscribe, conversation.view);
  useEffect(() => {
    conversation.open();
    return () => conversation.close(); // The run goes on.
  }, [conversation]);
  return { messages, state, send: conversation.send, stop: conversation.stop };
}

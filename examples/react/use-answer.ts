import { useCallback, useEffect, useRef, useState } from "react";
import { type Client, ReattachError, type RunStream, type State } from "@reattach/client";
import { type Item, type Message, merged, withItem } from "./messages.js";

/** Show a conversation, and its answers as they come. `list` returns the messages that the server has. */
export function useAnswer(client: Client, conversation: string, list: (id: string) => Promise<Message[]>) {
  const [messages, setMessages] = useState<readonly Message[]>([]);
  const [state, setState] = useState<State>({ name: "idle" });
  const current = useRef<RunStream<Item>>(null);
  const unsent = `unsent ${conversation}`; // The question until the server has it, also over a reload.
  // A closed stream is one that was left: its state is no longer that of the answer.
  const onState = useCallback((next: State) => void (next.name !== "closed" && setState(next)), []);

  const read = useCallback(
    async (stream: RunStream<Item>, answer: readonly Message[] = []) => {
      current.current?.close();
      current.current = stream;
      const isLeft = () => current.current !== stream;
      setMessages((shown) => merged(shown, answer));
      try {
        for await (const item of stream) {
          // The list is read after the snapshot, so no message falls between the two.
          if (item.message_type === "snapshot") answer = await list(conversation);
          if (isLeft()) return;
          const soFar = (answer = withItem(answer, item));
          setMessages((shown) => merged(shown, soFar));
        }
      } catch (error) {
        if (isLeft()) return;
        sessionStorage.removeItem(unsent);
        if (error instanceof ReattachError && error.status === 400) setState({ name: "idle" });
        const listed = await list(conversation); // Nothing is active, or the server has refused.
        if (!isLeft()) setMessages(listed);
      }
    },
    [conversation, list, unsent],
  );

  const send = useCallback(
    (text: string): Promise<string> => {
      sessionStorage.setItem(unsent, text);
      const stream = client.send(conversation, text, { onState });
      stream.runId.then(() => sessionStorage.removeItem(unsent)).catch(() => {});
      void read(stream, [{ id: stream.otid, author: "user", text }]);
      return stream.runId; // Rejects if the server refuses.
    },
    [client, conversation, onState, read, unsent],
  );

  useEffect(() => {
    const question = sessionStorage.getItem(unsent);
    if (question) {
      send(question).catch(() => {});
      void list(conversation).then((earlier) => setMessages((shown) => merged(earlier, shown)));
    } else void read(client.follow({ conversation }, { snapshot: true, onState }));
    return () => {
      current.current?.close(); // The run goes on.
      current.current = null;
    };
  }, [client, conversation, list, onState, read, send, unsent]);

  const stop = async () => client.cancel({ run: await current.current!.runId });
  return { messages, state, send, stop };
}
